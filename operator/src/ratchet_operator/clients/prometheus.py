"""Instant queries: exactly one finite number, or the reason why there is none.

Room: operator, clients. Fetching is not judging: nothing here says Pass or Fail, and an outage is a reading too.
"""

import asyncio
import math
from typing import Any

from ratchet_operator.clients.access import Access, BadCredentials
from ratchet_operator.clients.http import Http, NoAnswer
from ratchet_operator.domain.analysis import ArmReadings, NoSample, Reading, Sample
from ratchet_operator.domain.queries import ArmQueries

SECONDS = 10.0
_CURE = "see prometheus.credentialsSecret in the chart's values"


class Prometheus:
    """The HTTP API of one Prometheus."""

    def __init__(self, http: Http, url: str, access: Access | None = None) -> None:
        self._http = http
        self._url = f"{url}/api/v1/query"
        self._access = access or Access()

    async def reading(self, query: str) -> Reading:
        """The query's one number. Never raises: what goes wrong is QueryError, NoData or ManySeries."""
        try:
            headers, tls = self._access.headers(), self._access.tls()
            status, body = await self._http.get(self._url, SECONDS, {"query": query}, headers, tls)
        except BadCredentials as error:
            return NoSample("QueryError", str(error))
        except NoAnswer as error:
            return NoSample("QueryError", f"Prometheus does not answer ({error})")
        if status in (401, 403):
            return NoSample(
                "QueryError", f"Prometheus lets nobody in without the right credentials ({status}): {_CURE}"
            )
        return parsed(status, body)

    async def arm(self, queries: ArmQueries) -> ArmReadings:
        """All readings of one arm, asked at once so that they speak of one moment."""
        names = [name for name in ("bad", "all", "value", "samples", "age") if getattr(queries, name) is not None]
        readings = await asyncio.gather(*(self.reading(getattr(queries, name)) for name in names))
        return ArmReadings(**dict(zip(names, readings, strict=True)))

    async def number(self, query: str) -> float | None:
        """The query's one number, or None."""
        reading = await self.reading(query)
        return reading.value if isinstance(reading, Sample) else None


def parsed(status: int, body: Any) -> Reading:
    """Answer of `/api/v1/query` to a Reading."""
    if not isinstance(body, dict) or body.get("status") != "success":
        detail = body.get("error") if isinstance(body, dict) else None
        return NoSample("QueryError", f"Prometheus refuses the query ({status}): {detail or 'no reason given'}")
    data = body.get("data") or {}
    kind, result = data.get("resultType"), data.get("result")
    values: list[Any]
    if kind == "scalar":
        values = [result]
    elif kind == "vector":
        values = [series.get("value") for series in result or []]
    else:
        return NoSample("QueryError", f"the query gives a {kind}: write one that gives one number")
    if not values:
        return NoSample("NoData", "no series")
    if len(values) > 1:
        return NoSample("ManySeries", f"{len(values)} series where one was expected: aggregate the query, as by sum()")
    try:
        number = float(values[0][1])
    except (TypeError, ValueError, IndexError):
        return NoSample("QueryError", f"{values[0]!r} is no number")
    if not math.isfinite(number):
        return NoSample("NoData", f"the value is {number}")
    return Sample(number)
