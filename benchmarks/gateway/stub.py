"""The upstream of the benchmark: a server that answers chat completions at once, so that the proxy is what is measured.

`python stub.py ADDRESS PORT`. A plain asyncio protocol on uvloop: it costs a fraction of any proxy in front of it.
A streamed answer has TOKENS chunks, each sent in a turn of the event loop of its own, as a model does.
"""

import asyncio
import json
import sys
from collections.abc import Iterator
from typing import cast

import uvloop

TOKENS = 32
MODEL = "stub"


def _event(delta: dict[str, str], reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    chunk = {"id": "chatcmpl-0", "object": "chat.completion.chunk", "created": 1, "model": MODEL, "choices": [choice]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def _usage() -> dict[str, int]:
    return {"prompt_tokens": 20, "completion_tokens": TOKENS, "total_tokens": 20 + TOKENS}


def _whole() -> bytes:
    message = {"role": "assistant", "content": "word " * TOKENS}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    body = json.dumps(
        {
            "id": "chatcmpl-0",
            "object": "chat.completion",
            "created": 1,
            "model": MODEL,
            "choices": [choice],
            "usage": _usage(),
        }
    ).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body


def _chunks(*, usage: bool) -> list[bytes]:
    events = [_event({"role": "assistant", "content": ""})]
    events += [_event({"content": "word "}) for _ in range(TOKENS)]
    events.append(_event({}, "stop"))
    if usage:
        last = {"id": "chatcmpl-0", "object": "chat.completion.chunk", "created": 1, "model": MODEL, "choices": [],
                "usage": _usage()}  # fmt: skip
        events.append(b"data: " + json.dumps(last).encode() + b"\n\n")
    events.append(b"data: [DONE]\n\n")
    return [b"%x\r\n" % len(event) + event + b"\r\n" for event in events] + [b"0\r\n\r\n"]


WHOLE = _whole()
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
STREAM = {usage: _chunks(usage=usage) for usage in (False, True)}
HEALTH = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Answers(asyncio.Protocol):
    """One connection; requests come one after the other."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
            if len(self._buffer) < end + 4 + length:
                return
            body = self._buffer[end + 4 : end + 4 + length]
            self._buffer = self._buffer[end + 4 + length :]
            self._answer(body)

    def _answer(self, body: bytes) -> None:
        assert self._transport is not None
        if not body:
            self._transport.write(HEALTH)
        elif json.loads(body).get("stream"):
            self._transport.write(HEAD)
            self._next(iter(STREAM[b"include_usage" in body]))
        else:
            self._transport.write(WHOLE)

    def _next(self, chunks: Iterator[bytes]) -> None:
        chunk = next(chunks, None)
        if chunk is not None and self._transport is not None and not self._transport.is_closing():
            self._transport.write(chunk)
            self._loop.call_soon(self._next, chunks)


async def main(address: str, port: int) -> None:
    """Serves for ever."""
    server = await asyncio.get_running_loop().create_server(Answers, address, port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2])))
