"""Spans to an OpenTelemetry collector: OTLP over HTTP, in its JSON encoding (OTLP specification 1.10).

Room: operator, clients. The encoding is small and stable; the SDK, made for spans of its own process that end now,
would have to be talked into ids and times that are decided elsewhere.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import aiohttp

from ratchet_operator.domain.traces import Span, Value

SECONDS = 10.0
_ERROR = 2
"""STATUS_CODE_ERROR"""
_INTERNAL = 1
"""SPAN_KIND_INTERNAL"""


class Unexported(Exception):
    """A sentence; `final`: the collector will never take it."""

    def __init__(self, message: str, final: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.final = final


def request(spans: Sequence[Span], resource: Mapping[str, Value]) -> dict[str, Any]:
    """ExportTraceServiceRequest as JSON."""
    scope = {"scope": {"name": "ratchet"}, "spans": [_span(span) for span in spans]}
    return {"resourceSpans": [{"resource": {"attributes": _attributes(resource)}, "scopeSpans": [scope]}]}


def _span(span: Span) -> dict[str, Any]:
    told: dict[str, Any] = {
        "traceId": span.trace,
        "spanId": span.id,
        "name": span.name,
        "kind": _INTERNAL,
        "startTimeUnixNano": _nanoseconds(span.begun),
        "endTimeUnixNano": _nanoseconds(span.ended),
        "attributes": _attributes(span.attributes),
        "events": [
            {"name": e.name, "timeUnixNano": _nanoseconds(e.at), "attributes": _attributes(e.attributes)}
            for e in span.events
        ],
    }
    if span.parent:
        told["parentSpanId"] = span.parent
    if span.error is not None:
        told["status"] = {"code": _ERROR, "message": span.error}
    return told


def _nanoseconds(at: datetime) -> str:
    return f"{round(at.timestamp() * 1_000_000)}000"


def _attributes(values: Mapping[str, Value]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in values.items()]


def _value(value: Value) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    return {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value}


class Collector:
    """Sends spans. Create it inside a running loop, and close it."""

    def __init__(self, endpoint: str, headers: Mapping[str, str], resource: Mapping[str, Value]) -> None:
        """`endpoint`: base address, to which /v1/traces is added."""
        self._url = f"{endpoint}/v1/traces"
        self._resource = resource
        timeout = aiohttp.ClientTimeout(total=SECONDS)
        self._session = aiohttp.ClientSession(headers=dict(headers), timeout=timeout, trust_env=False)

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def export(self, spans: Sequence[Span]) -> None:
        """One attempt. Raises Unexported."""
        try:
            async with self._session.post(
                self._url, json=request(spans, self._resource), allow_redirects=False
            ) as answer:
                status, text = answer.status, (await answer.text())[:200]
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise Unexported(f"{type(error).__name__}: {error}".rstrip(": ")) from None
        if not 200 <= status < 300:
            # The specification's retryable answers; all others say no for good.
            raise Unexported(f"it answers {status}: {text}", final=status not in (408, 429, 502, 503, 504))
