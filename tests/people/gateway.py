"""A gateway as people see it, scripted by a test: real HTTP, made-up answers."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

HEADERS = {"x-ratchet-version": "assistant-0"}


@dataclass
class Gateway:
    """What it answers, and what it was asked."""

    answer: Callable[[dict[str, Any]], str] = lambda body: "The capital of France is Paris."
    """Content of an answer, given the request."""
    fault: Callable[[int], str] = lambda number: ""
    """Given the request's number from 0: `refuse`, `cut`, `anonymous`, `mute` (feedback) or nothing."""
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    """No answer is given before it is set."""
    requests: list[dict[str, Any]] = field(default_factory=list)
    sessions: list[str] = field(default_factory=list)
    feedback: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        number = len(self.requests)
        self.requests.append(body)
        self.sessions.append(request.headers["x-session-id"])
        await self.gate.wait()
        fault = self.fault(number)
        if fault == "refuse":
            return web.json_response({"error": {"message": "no arm is ready"}}, status=503, headers=HEADERS)
        headers = {} if fault == "anonymous" else HEADERS
        identity = f"chatcmpl-{'mute-' if fault == 'mute' else ''}{number}"
        if body.get("stream"):
            return await self._stream(request, identity, self.answer(body), headers, cut=fault == "cut")
        finish = None if fault == "cut" else "stop"
        message = {"role": "assistant", "content": self.answer(body)}
        choice = {"index": 0, "finish_reason": finish, "message": message}
        return web.json_response(
            {"id": identity, "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]},
            headers=headers,
        )

    async def _stream(
        self, request: web.Request, identity: str, text: str, headers: dict[str, str], cut: bool
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={**headers, "content-type": "text/event-stream"})
        await response.prepare(request)
        deltas: list[tuple[str, str | None]] = [(word, None) for word in text.split(" ")]
        deltas = [("", None), *((word if i == 0 else f" {word}", None) for i, (word, _) in enumerate(deltas))]
        for content, finish in [*deltas, *([] if cut else [("", "stop")])]:
            chunk = {
                "id": identity, "object": "chat.completion.chunk", "created": 1, "model": "m",
                "choices": [{"index": 0, "delta": {"content": content}, "finish_reason": finish}],
            }  # fmt: skip
            await response.write(f"data: {json.dumps(chunk)}\n\n".encode())
        await response.write(b"" if cut else b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    async def take(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.feedback.append(body)
        if "mute" in body["response_id"]:
            return web.json_response({"error": {"message": "the spool is full"}}, status=507, headers=HEADERS)
        return web.json_response({"version": "assistant-0"})


@asynccontextmanager
async def serving(gateway: Gateway) -> AsyncIterator[Gateway]:
    """The gateway on a free port of the loopback address."""
    app = web.Application()
    app.router.add_post("/v1/chat/completions", gateway.chat)
    app.router.add_post("/v1/feedback", gateway.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    gateway.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        yield gateway
    finally:
        await runner.cleanup()
