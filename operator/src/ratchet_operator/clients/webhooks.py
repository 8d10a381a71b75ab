"""Notices over HTTP: one POST, no redirects, never to a link-local address.

Room: operator, clients. The address is a person's, and the operator stands inside the cluster's network: an address is
looked at after its name was resolved, so that no name can lead to the cloud's metadata.
"""

import errno
import ipaddress
import socket
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import aiohttp
from aiohttp.abc import ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from ratchet_operator.clients.git.trouble import said
from ratchet_operator.domain.letters import Letter

SECONDS = 10.0
LONGEST_WAIT = 3600.0
"""Seconds; a Retry-After that says more is not obeyed."""
_REFUSED = (400, 413, 415, 422)
"""The notice itself is not wanted: sending it again is of no use."""
_TELLING = 8
"""Characters; a shorter path is no secret, and would be found in other words."""
_METADATA = ipaddress.ip_address("fd00:ec2::254")


class Undelivered(Exception):
    """A sentence without secrets; `after`: seconds that the receiver asked for; `final`: it will never take it."""

    def __init__(self, message: str, after: float = 0.0, final: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.after = after
        self.final = final


class _Unwanted(OSError):
    """An address that nothing is sent to."""


def forbidden(host: str) -> bool:
    """Whether it is an IP address that is link-local or a cloud's metadata."""
    try:
        address = ipaddress.ip_address(host.split("%", 1)[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_link_local or address == _METADATA


class _Resolver(ThreadedResolver):
    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await super().resolve(host, port, family)
        if any(forbidden(one["host"]) for one in found):
            raise _Unwanted(errno.EACCES, "the name leads to a link-local address")
        return found


def guarded() -> aiohttp.TCPConnector:
    """Connections to addresses that people name: none to a link-local one."""
    # The receivers' connections are few and far between; a kept one would mostly be a dead one.
    return aiohttp.TCPConnector(resolver=_Resolver(), force_close=True, use_dns_cache=False)


class Webhooks:
    """Sends letters. Create it inside a running loop, and close it."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._session = aiohttp.ClientSession(connector=guarded(), trust_env=False, cookie_jar=aiohttp.DummyCookieJar())
        self._timeout = aiohttp.ClientTimeout(total=seconds)

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def send(self, letter: Letter) -> None:
        """One attempt. Raises Undelivered."""
        try:
            url = URL(letter.url)
        except ValueError:
            raise Undelivered("the url cannot be read: write an http(s) address") from None
        if url.host is None or forbidden(url.host):
            raise Undelivered("the url is a link-local address: write the receiver's own")
        try:
            async with self._session.post(
                url, data=letter.body, headers=letter.headers, allow_redirects=False, timeout=self._timeout
            ) as answer:
                status, after = answer.status, _retry_after(answer.headers.get("Retry-After", ""))
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            path = url.raw_path_qs.strip("/")
            secrets = (*letter.secrets, path) if len(path) >= _TELLING else letter.secrets
            text = said(f"{type(error).__name__}: {error}".rstrip(": "), secrets)
            raise Undelivered(text) from None
        if 300 <= status < 400:
            raise Undelivered(f"the receiver answers {status}, and redirects are not followed: write its last address")
        if not 200 <= status < 300:
            raise Undelivered(f"the receiver answers {status}", after, final=status in _REFUSED)


def _retry_after(value: str) -> float:
    """Seconds that the header asks for (RFC 9110: a number, or a date); 0 without a sensible one."""
    if value.strip().isdigit():
        return min(float(value), LONGEST_WAIT)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return min(max(0.0, (moment - datetime.now(UTC)).total_seconds()), LONGEST_WAIT)
