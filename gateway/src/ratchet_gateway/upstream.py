"""Requests to the arms' pods: which pod, when another one, when another arm.

Room: gateway. Talks HTTP to pods.

Nothing has reached the client while this module works, so it may begin again:

- A pod that cannot be connected to has not seen the request: the next pod is tried, each once.
- A pod that drops the connection before it answers may have seen it. A chat completion changes nothing, so it is sent
  once more, on another pod if there is one; only once, so that a request that kills servers kills no more than two.
- A pod that says 502 or 503 (it is being shut down, as a rule) is passed over, once, if another one is ready.
- When no pod of a candidate can be reached, the session goes to stable: a crash or a rollback fails nobody. A pinned
  version is never replaced.
"""

import io
import time
from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp

from ratchet_gateway.answers import PREFIX
from ratchet_gateway.errors import ArmFailed, ArmTimeout, ArmUnavailable
from ratchet_gateway.exchange import Exchange, Ledger
from ratchet_gateway.routes import Pod, fallback, pick_pod
from ratchet_gateway.settings import Limits

_KEEPALIVE_SECONDS = 4.0
"""Shorter than the 5 s after which uvicorn, and so vLLM, closes idle connections."""
_ONE_GO = 2**20
_SENT_AGAIN = frozenset({502, 503})


class _Unreachable(Exception):
    """No pod of the arm can be reached."""


@dataclass(slots=True)
class Reply:
    """A pod's answer: whole, or a stream of which the first bytes are there. `close` it at the end."""

    pod: Pod
    response: aiohttp.ClientResponse
    body: bytes
    """The whole body, or the stream's first bytes."""

    @property
    def is_stream(self) -> bool:
        return self.response.content_type == "text/event-stream"

    def close(self) -> None:
        """Gives the connection back, or cuts it when the answer was not read to its end: the server then stops."""
        self.pod.inflight -= 1
        if self.response.content.at_eof():
            self.response.release()
        else:
            self.response.close()


class Upstream:
    """The gateway's HTTP client."""

    def __init__(self, limits: Limits, ledger: Ledger) -> None:
        self._limits = limits
        self._ledger = ledger
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_SECONDS),
            timeout=aiohttp.ClientTimeout(
                total=limits.request_seconds, sock_connect=limits.connect_seconds, sock_read=limits.idle_seconds
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            read_bufsize=2**18,
            headers={"accept-encoding": "identity", "content-type": "application/json"},
            skip_auto_headers=("user-agent", "accept"),
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()

    async def open(self, exchange: Exchange, headers: Mapping[str, str]) -> Reply:
        """Sends the request to the arm of the exchange, which is changed to stable if its candidate is unreachable.

        Raises ArmUnavailable, ArmFailed or ArmTimeout.
        """
        while True:
            try:
                return await self._open_arm(exchange, headers)
            except _Unreachable:
                instead = fallback(exchange.cycle, exchange.choice)
                if instead is None:
                    raise ArmUnavailable(f"no pod of {exchange.version} is ready: try again in a few seconds") from None
                self._ledger.arm(exchange).fallbacks.inc()
                exchange.choice = instead

    async def _open_arm(self, exchange: Exchange, headers: Mapping[str, str]) -> Reply:
        arm = exchange.choice.arm
        payload = exchange.ask.payload(arm.model_name)
        request_id = self._ledger.name(exchange).removeprefix(PREFIX)
        headers = {**headers, "x-request-id": request_id}
        tried: set[Pod] = set()
        dropped = refused = False
        while (pod := self._pick(exchange, tried)) is not None:
            tried.add(pod)
            try:
                reply = await self._attempt(pod, payload, headers, exchange.ask.stream)
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
                pod.suspect_until = time.monotonic() + self._limits.suspect_seconds
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, aiohttp.ClientPayloadError) as error:
                if dropped:
                    raise ArmFailed("the model's server closed the connection without an answer") from error
                dropped = True
                if self._pick(exchange, tried) is None:
                    tried.remove(pod)  # the connection may just have been idle for too long
            else:
                if refused or reply.response.status not in _SENT_AGAIN or self._pick(exchange, tried) is None:
                    return reply
                refused = True
                reply.close()
            self._ledger.arm(exchange).retries.inc()
        raise _Unreachable

    def _pick(self, exchange: Exchange, tried: set[Pod]) -> Pod | None:
        """A candidate's suspects are left alone, because stable can answer instead; elsewhere they are a last hope."""
        pods, now = exchange.choice.arm.pods, time.monotonic()
        found = pick_pod(pods, now, tried)
        if found is None and exchange.choice.how != "candidate":
            found = pick_pod(pods, now, tried, suspects=True)
        return found

    async def _attempt(self, pod: Pod, payload: bytes, headers: Mapping[str, str], stream: bool) -> Reply:
        """Raises aiohttp's connection errors, ArmFailed or ArmTimeout."""
        pod.inflight += 1
        reply: Reply | None = None
        answered = False
        try:
            # aiohttp writes bytes in one go, and larger ones in pieces only when they come as a file.
            data = payload if len(payload) <= _ONE_GO else io.BytesIO(payload)
            response = await self._session.post(pod.chat_url, data=data, headers=headers, allow_redirects=False)
            reply = Reply(pod, response, b"")
            reply.body = await self._read(response, whole=not (stream and reply.is_stream))
            if not reply.body and reply.is_stream:
                raise aiohttp.ServerDisconnectedError("the stream ended before it began")
            answered = True
        except aiohttp.ConnectionTimeoutError:
            raise
        except TimeoutError as error:
            raise ArmTimeout("the model's server did not answer in time") from error
        finally:
            if not answered:
                _drop(pod, reply)
        return reply

    async def _read(self, response: aiohttp.ClientResponse, *, whole: bool) -> bytes:
        data = await response.content.readany()
        if not whole:
            return data
        parts, size = [data], len(data)
        while size <= self._limits.answer_bytes:
            if response.content.at_eof():
                return b"".join(parts)
            parts.append(await response.content.readany())
            size += len(parts[-1])
        raise ArmFailed(f"the model's server sent an answer of more than {self._limits.answer_bytes} bytes")


def _drop(pod: Pod, reply: Reply | None) -> None:
    if reply is None:
        pod.inflight -= 1
    else:
        reply.close()
