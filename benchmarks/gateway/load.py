"""The client of the benchmark: as cheap as a client can be, so that its own cost does not drown the difference.

`asyncio` protocols on uvloop that send one prepared request again and again and look for the end of each answer.
"""

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

_LONGEST = 60.0
PROMPT = "Tell me in a few words what a ratchet is and why it does not slip. " * 3


def prepare(url: str, model: str, *, stream: bool) -> bytes:
    """The bytes of a chat completion request."""
    body = json.dumps(
        {"model": model, "messages": [{"role": "user", "content": PROMPT}], "stream": stream, "user": "bench"}
    ).encode()
    parts = urlsplit(url)
    head = (
        f"POST {parts.path}/v1/chat/completions HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer sk-bench\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@dataclass(slots=True)
class Tally:
    """Answers so far."""

    answers: int = 0
    failures: list[str] = field(default_factory=list)


class Client(asyncio.Protocol):
    """One connection that asks again as soon as it is answered."""

    def __init__(self, request: bytes, tally: Tally, *, once: bool = False) -> None:
        self._request = request
        self._tally = tally
        self._once = once
        self._buffer = b""
        self._transport: asyncio.Transport | None = None
        self.answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if not self._once:
            self._transport.write(self._request)

    def ask(self) -> asyncio.Future[None]:
        """One request; for `once`."""
        assert self._transport is not None
        self.answered = asyncio.get_running_loop().create_future()
        self._transport.write(self._request)
        return self.answered

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        lower = head.lower()
        if b"transfer-encoding: chunked" in lower:
            if not body.endswith(b"0\r\n\r\n"):
                return
            good = b"data: [DONE]" in body[-80:]
        else:
            if len(body) < int(lower.partition(b"content-length:")[2].partition(b"\r\n")[0]):
                return
            good = True
        self._buffer = b""
        self._finish(head, good)

    def _finish(self, head: bytes, good: bool) -> None:
        if good and head.startswith(b"HTTP/1.1 200"):
            self._tally.answers += 1
        else:
            self._tally.failures.append(head[:200].decode("latin-1"))
        assert self._transport is not None
        if self._once:
            self.answered.set_result(None)
        elif not self._transport.is_closing():
            self._transport.write(self._request)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.answered.done():
            self.answered.cancel()

    def close(self) -> None:
        """End of the load."""
        if self._transport is not None:
            self._transport.abort()


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


async def throughput(url: str, model: str, *, stream: bool, at_once: int, seconds: float) -> float:
    """Answers a second, with so many requests under way all the time, over at least `seconds` and two answers each.

    Raises RuntimeError when any of them failed.
    """
    loop = asyncio.get_running_loop()
    tally = Tally()
    request = prepare(url, model, stream=stream)
    clients = [
        (await loop.create_connection(lambda: Client(request, tally), *_address(url)))[1] for _ in range(at_once)
    ]
    await asyncio.sleep(min(1.0, seconds / 4))  # warm
    before, since = tally.answers, time.perf_counter()
    while (took := time.perf_counter() - since) < seconds or tally.answers - before < 2 * at_once:
        if took > _LONGEST:
            break
        await asyncio.sleep(0.1)
    rate = (tally.answers - before) / took
    for client in clients:
        client.close()
    if tally.failures:
        raise RuntimeError(f"{len(tally.failures)} answers failed, the first with {tally.failures[0]!r}")
    return rate


async def latencies(url: str, model: str, *, stream: bool, rate: float, count: int) -> list[float]:
    """Seconds of each of `count` answers, asked for one by one at `rate` a second on one connection."""
    loop = asyncio.get_running_loop()
    tally = Tally()
    request = prepare(url, model, stream=stream)
    _, client = await loop.create_connection(lambda: Client(request, tally, once=True), *_address(url))
    found = []
    for _ in range(count):
        started = time.perf_counter()
        await client.ask()
        took = time.perf_counter() - started
        found.append(took)
        await asyncio.sleep(max(0.0, 1 / rate - took))
    client.close()
    if tally.failures:
        raise RuntimeError(f"{len(tally.failures)} answers failed, the first with {tally.failures[0]!r}")
    return found
