"""The port to a forge: a pull request is found by its branch, opened once, closed when it is not wanted any more.

Room: operator, clients. One module per forge speaks its documented REST API; here is what they share.
"""

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol
from urllib.parse import urljoin, urlsplit

import aiohttp
from yarl import URL

from ratchet_api.reasons import Reason
from ratchet_operator.clients.git.credentials import Credentials
from ratchet_operator.clients.git.trouble import Trouble, said

SECONDS = 20.0
MOST_BYTES = 32 * 1024 * 1024
MOST_PAGES = 20
State = Literal["Open", "Merged", "Closed"]
_ORDER: dict[State, int] = {"Open": 0, "Merged": 1, "Closed": 2}


@dataclass(frozen=True)
class Pull:
    """A pull request, or merge request."""

    number: int
    state: State
    url: str


class AlreadyThere(Exception):
    """A pull request of that branch is open already: look it up again."""


class Forge(Protocol):
    """What is asked of a forge. Every method raises Trouble."""

    async def find_pull(self, branch: str, base: str) -> Pull | None:
        """The one from `branch` into `base`: an open one first, then a merged one, then the newest closed one."""
        ...

    async def open_pull(self, branch: str, base: str, title: str, body: str, labels: list[str]) -> Pull:
        """A new one. Raises AlreadyThere."""
        ...

    async def pull_state(self, number: int) -> Pull | None:
        """The one of that number, as it is now; None when there is none."""
        ...

    async def label(self, number: int, labels: list[str]) -> None:
        """Labels that opening it could not give it; harmless when they are there."""
        ...

    async def close_pull(self, number: int, comment: str) -> None:
        """Close it, and say why."""
        ...


def chosen(pulls: list[Pull]) -> Pull | None:
    """The one that counts of those of one branch."""
    return min(pulls, key=lambda pull: (_ORDER[pull.state], -pull.number), default=None)


def owner_and_name(repository: str) -> tuple[str, str]:
    """The last two parts of the repository's path. Raises Trouble."""
    parts = full_path(repository).split("/")
    if len(parts) < 2:
        text = "promotion.git.repository: a forge keeps repositories under an owner: write .../owner/name"
        raise Trouble(Reason.INVALID_SPEC, text)
    return parts[-2], parts[-1]


def full_path(repository: str) -> str:
    """The repository's path on its host, without `.git`."""
    return urlsplit(repository).path.strip("/").removesuffix(".git")


def origin(repository: str) -> str:
    """Scheme and host."""
    parts = urlsplit(repository)
    return f"{parts.scheme}://{parts.netloc}"


class Refused(Exception):
    """The forge understood and refuses (4xx): the caller knows what it may mean."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text

    def trouble(self, what: str) -> Trouble:
        """When the caller does not."""
        return Trouble(Reason.FORGE_DENIED, f"the forge refuses {what} ({self.status}: {self.text})")


class ForgeApi:
    """JSON over HTTP with one set of headers. Redirects are not followed: the token is for this address alone."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        base: str,
        headers: Mapping[str, str],
        credentials: Credentials,
    ) -> None:
        self._session = session
        self._base = base.rstrip("/")
        self._headers = {"User-Agent": "ratchet", "Accept": "application/json", **headers}
        self._secrets = credentials.secrets
        self._tls = credentials.tls()

    async def call(self, method: str, path: str, body: Any = None, query: Mapping[str, str] | None = None) -> Any:
        """The answer's JSON. Raises Refused (400, 404, 405, 409, 410, 422) and Trouble."""
        return (await self._request(method, f"{self._base}{path}", body, query))[0]

    async def pages(self, path: str, query: Mapping[str, str]) -> AsyncIterator[Any]:
        """The items of all pages of a list, by the Link header (RFC 8288)."""
        url, parameters = f"{self._base}{path}", dict(query)
        for _ in range(MOST_PAGES):
            items, following = await self._request("GET", url, None, parameters)
            if not isinstance(items, list):
                raise Trouble(Reason.FORGE_UNAVAILABLE, f"the forge answers {path} with something else than a list")
            for item in items:
                yield item
            if following is None:
                return
            # Behind a proxy a forge may not know its own name: only the page's parameters are taken from the link.
            url, parameters = f"{self._base}{path}", following

    async def _request(
        self, method: str, url: str, body: Any, query: Mapping[str, str] | None
    ) -> tuple[Any, dict[str, str] | None]:
        try:
            async with self._session.request(
                method,
                url,
                json=body,
                params=query,
                headers=self._headers,
                ssl=self._tls,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=SECONDS),
            ) as answer:
                text = await self._read(answer)
                self._check(answer, text)
                found = answer.links.get("next")
                following = dict(URL(str(found["url"])).query) if found is not None else None
                return (json.loads(text) if text else None), following
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            what = said(error or type(error).__name__, self._secrets)
            raise Trouble(Reason.FORGE_UNAVAILABLE, f"the forge does not answer: {what}") from None
        except ValueError:
            words = f"the forge answers {method} {urlsplit(url).path} with something else than JSON"
            raise Trouble(Reason.FORGE_UNAVAILABLE, f"{words}: is promotion.git.apiUrl right?") from None

    @staticmethod
    async def _read(answer: aiohttp.ClientResponse) -> bytes:
        parts, length = [], 0
        async for part in answer.content.iter_chunked(65536):
            length += len(part)
            if length > MOST_BYTES:
                raise Trouble(Reason.FORGE_UNAVAILABLE, "the forge's answer has no end")
            parts.append(part)
        return b"".join(parts)

    def _check(self, answer: aiohttp.ClientResponse, text: bytes) -> None:
        status, words = answer.status, said(_message(text), self._secrets)
        if status < 300:
            return
        limited = answer.headers.get("X-RateLimit-Remaining") == "0" or "rate limit" in words.lower()
        if status == 429 or status >= 500 or (status == 403 and limited):
            raise Trouble(Reason.FORGE_UNAVAILABLE, f"the forge does not answer now ({status}: {words})")
        if status in (401, 403):
            fix = "correct promotion.git.credentialsSecret, or its rights on pull requests"
            raise Trouble(Reason.FORGE_DENIED, f"the forge refuses the credentials ({status}: {words}): {fix}")
        if status < 400:
            fix = "write the address that it has now into promotion.git.repository and apiUrl"
            raise Trouble(Reason.FORGE_DENIED, f"the forge has moved ({status}), and credentials do not follow: {fix}")
        raise Refused(status, words)


def _message(text: bytes) -> str:
    """The words of an error, in whichever form a forge has them."""
    try:
        body = json.loads(text)
    except ValueError:
        return text[:200].decode(errors="replace")
    if not isinstance(body, dict):
        return str(body)
    parts = [body.get("message") or body.get("error") or ""]
    parts += [one.get("message") or one.get("code") or "" for one in body.get("errors") or [] if isinstance(one, dict)]
    return "; ".join(str(part) for part in parts if part)


def api_address(given: str | None, repository: str, suffix: str) -> str:
    """The API's address: what was given, or what belongs to the repository's host."""
    return given.rstrip("/") if given is not None else urljoin(f"{origin(repository)}/", suffix)
