"""The aliases of a registered model in MLflow, by its REST API 2.0.

Room: operator, clients. Short requests, no redirects, never to a link-local address: the address is a person's.
"""

from collections.abc import Mapping
from typing import Any

import aiohttp
from yarl import URL

from ratchet_api.tracking import DIGEST_TAG
from ratchet_operator.clients.webhooks import forbidden, guarded

SECONDS = 10.0
PAGE = 200


class NotTold(Exception):
    """A sentence: the server did not do what it was asked to."""


class Mlflow:
    """Tracking servers. Create it inside a running loop, and close it."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._session = aiohttp.ClientSession(connector=guarded(), trust_env=False, cookie_jar=aiohttp.DummyCookieJar())
        self._timeout = aiohttp.ClientTimeout(total=seconds)

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def point(self, url: str, login: Mapping[str, str], model: str, wanted: Mapping[str, str | None]) -> None:
        """Make each alias point at the newest model version with that adapter's digest, or at none (None, or one that
        MLflow was never told of). Changes what is otherwise, and nothing else. Raises NotTold."""
        host = URL(url).host
        if host is None or forbidden(host):
            raise NotTold("the url is a link-local address: write the server's own")
        server = _Server(self._session, self._timeout, url, login)
        known = await server.ask("GET", "registered-models/get", {"name": model}, absent=True)
        if known is None:
            return  # no training was written down yet: there is nothing to point at
        present = {one["alias"]: str(one["version"]) for one in known["registered_model"].get("aliases") or []}
        for alias, digest in wanted.items():
            number = None if digest is None else await _number(server, model, digest)
            if number == present.get(alias):
                continue
            said = {"name": model, "alias": alias}
            if number is None:
                await server.ask("DELETE", "registered-models/alias", said, absent=True)
            else:
                await server.ask("POST", "registered-models/alias", said | {"version": number})


async def _number(server: "_Server", model: str, digest: str) -> str | None:
    asked = f"name='{model}' and tags.`{DIGEST_TAG}` = '{digest}'"
    query = {"filter": asked, "max_results": str(PAGE)}
    found = await server.ask("GET", "model-versions/search", query) or {}
    numbers = [int(one["version"]) for one in found.get("model_versions") or []]
    return str(max(numbers)) if numbers else None


class _Server:
    def __init__(
        self, session: aiohttp.ClientSession, timeout: aiohttp.ClientTimeout, url: str, login: Mapping[str, str]
    ) -> None:
        self._session, self._timeout = session, timeout
        self._base, self._headers = f"{url.rstrip('/')}/api/2.0/mlflow", dict(login)

    async def ask(self, method: str, what: str, said: Mapping[str, str], absent: bool = False) -> Any:
        """The answer's JSON. `absent`: None when there is no such thing."""
        content: Any = {"params": said} if method == "GET" else {"json": dict(said)}
        try:
            async with self._session.request(
                method, f"{self._base}/{what}", headers=self._headers, allow_redirects=False, timeout=self._timeout,
                **content,
            ) as answer:  # fmt: skip
                status = answer.status
                body = await answer.json(content_type=None) if status in (200, 400, 404) else {}
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise NotTold(f"no answer ({type(error).__name__})") from None
        if status == 200:
            return body
        if absent and status == 404:
            return None
        code = body.get("error_code", "") if isinstance(body, dict) else ""
        raise NotTold(f"it answers {status} {code}".rstrip())
