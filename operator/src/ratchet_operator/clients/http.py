"""One HTTP session for Prometheus, the gateway and the arms.

Room: operator, clients.
"""

import ssl
from collections.abc import Mapping
from typing import Any

import aiohttp


class NoAnswer(Exception):
    """No answer in time, or one that is not what was asked for."""


class Http:
    """Short requests of JSON. Create it inside a running loop, and close it."""

    def __init__(self) -> None:
        self._session = aiohttp.ClientSession(trust_env=False)

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def get(
        self,
        url: str,
        seconds: float,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | bool = True,
    ) -> tuple[int, Any]:
        """(status, JSON). `tls` True trusts the system's authorities. Raises NoAnswer."""
        timeout = aiohttp.ClientTimeout(total=seconds)
        try:
            async with self._session.get(url, params=params, headers=headers, ssl=tls, timeout=timeout) as answer:
                return answer.status, await answer.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise NoAnswer(f"{type(error).__name__}: {error}".rstrip(": ")) from error

    async def post(self, url: str, seconds: float, body: Mapping[str, Any]) -> tuple[int, Any]:
        """(status, JSON). Raises NoAnswer."""
        timeout = aiohttp.ClientTimeout(total=seconds)
        try:
            async with self._session.post(url, json=body, timeout=timeout) as answer:
                return answer.status, await answer.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise NoAnswer(f"{type(error).__name__}: {error}".rstrip(": ")) from error
