"""The few calls that the node makes to the API server.

Room: local. Plain aiohttp rather than the generated client: the node reads a dozen fields of pods into its own types,
streams watches, and must pass every other field through untouched; it also keeps its resident size at a third.
"""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from ratchet_local.node.settings import Settings

WATCH_SECONDS = 300


class ApiError(Exception):
    """The API server refused; `status` is the HTTP code."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


TRANSPORT_ERRORS = (aiohttp.ClientError, TimeoutError, ConnectionError)
"""The API server cannot be reached: try again later, as a kubelet does."""


class Api:
    """A session with the node's own identity."""

    def __init__(self, settings: Settings) -> None:
        context = ssl.create_default_context(cafile=str(settings.authority))
        context.load_cert_chain(settings.cert, settings.key)
        self._session = aiohttp.ClientSession(
            settings.api_url,
            connector=aiohttp.TCPConnector(ssl=context, limit=64),
            timeout=aiohttp.ClientTimeout(total=30),
            headers={"User-Agent": "ratchet-process-node", "Accept": "application/json"},
        )

    async def close(self) -> None:
        await self._session.close()

    async def get(self, path: str, **query: str) -> dict[str, Any] | None:
        """An object or a list; None when it does not exist. Raises ApiError otherwise."""
        try:
            return await self._call("GET", path, params=query)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return await self._call("POST", path, json=body)

    async def patch(
        self, path: str, body: dict[str, Any], kind: str = "application/strategic-merge-patch+json"
    ) -> dict[str, Any]:
        return await self._call("PATCH", path, data=json.dumps(body), headers={"Content-Type": kind})

    async def delete(self, path: str, body: dict[str, Any]) -> None:
        """Delete; an object that is gone, or another one of that name, is left alone."""
        try:
            await self._call("DELETE", path, json=body)
        except ApiError as error:
            if error.status not in (404, 409):
                raise

    async def watch(self, path: str, version: str, **query: str) -> AsyncIterator[dict[str, Any]]:
        """Events after `version`, until the server ends the stream. Raises ApiError(410) when it is too old."""
        parameters = query | {
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_SECONDS),
        }
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=WATCH_SECONDS + 30)
        async with self._session.get(path, params=parameters, timeout=timeout) as response:
            if response.status != 200:
                raise ApiError(response.status, await response.text())
            buffer = bytearray()
            async for chunk in response.content.iter_any():
                buffer += chunk
                while (end := buffer.find(b"\n")) >= 0:
                    line = bytes(buffer[:end])
                    del buffer[: end + 1]
                    event: dict[str, Any] = json.loads(line)
                    if event["type"] == "ERROR":
                        raise ApiError(int(event["object"].get("code", 500)), event["object"].get("message", ""))
                    yield event

    async def _call(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        async with self._session.request(method, path, **arguments) as response:
            text = await response.text()
            if response.status >= 400:
                raise ApiError(response.status, _message(text))
            result: dict[str, Any] = json.loads(text)
            return result


def _message(text: str) -> str:
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text.strip()


async def insist(call: Any, *arguments: Any, **named: Any) -> Any:
    """Repeat a call until the API server can be reached and does not answer with a server error."""
    while True:
        try:
            return await call(*arguments, **named)
        except TRANSPORT_ERRORS:
            await asyncio.sleep(0.5)
        except ApiError as error:
            if error.status < 500 and error.status != 429:
                raise
            await asyncio.sleep(0.5)
