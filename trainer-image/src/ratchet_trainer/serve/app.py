"""The runtime's HTTP face: OpenAI's chat completions, models, health and metrics.

Room: trainer. Runs on the event loop; the model is the worker's.
"""

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ratchet_api.metrics import LATENCY_BUCKETS
from ratchet_trainer.chat import TemplateError, Tokenizer, prompt_ids
from ratchet_trainer.generation.conversation import Conversation, Sampling
from ratchet_trainer.generation.text import TextStream
from ratchet_trainer.serve import protocol
from ratchet_trainer.serve.protocol import ApiError, ChatRequest
from ratchet_trainer.serve.worker import Overloaded, Ticket, Worker

MAX_BODY = 8 << 20
DEFAULT_TEMPERATURE = 1.0
"""OpenAI's."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Loaded:
    """What is known once the model is loaded."""

    tokenizer: Tokenizer
    capacity: int
    """Longest prompt and answer together, in tokens."""


class Metrics:
    """The runtime's own series. What people see is measured at the gateway."""

    def __init__(self, worker: Worker) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "ratchet_runtime_requests", "Chat completions by HTTP status", ["code"], registry=self.registry
        )
        self.duration = Histogram(
            "ratchet_runtime_request_duration_seconds", "Whole answers", buckets=LATENCY_BUCKETS, registry=self.registry
        )
        self.tokens = Counter("ratchet_runtime_tokens", "Tokens by type", ["type"], registry=self.registry)
        running = Gauge("ratchet_runtime_running", "Answers under way", registry=self.registry)
        running.set_function(lambda: worker.running)
        waiting = Gauge("ratchet_runtime_waiting", "Requests that wait for a place", registry=self.registry)
        waiting.set_function(lambda: worker.waiting)


class Runtime:
    """One served model."""

    def __init__(self, names: Sequence[str], worker: Worker, loaded: Callable[[], Loaded]) -> None:
        self._names = names
        self._name = names[0]
        """What answers say, whichever of the names was asked for: people see which version it was."""
        self._worker = worker
        self._loaded = loaded
        self._created = int(time.time())
        self.metrics = Metrics(worker)
        self.leaving = False
        """SIGTERM has come: not healthy any more, so that nobody new is sent here."""

    def app(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(client_max_size=MAX_BODY, middlewares=[_errors])
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        return app

    async def _health(self, request: web.Request) -> web.Response:
        if self.leaving:
            return web.Response(status=503, text="leaving\n")
        if not self._worker.ready.is_set():
            return web.Response(status=503, text="loading\n")
        return web.Response(text="ok\n")

    async def _models(self, request: web.Request) -> web.Response:
        if not self._worker.ready.is_set():
            raise ApiError(503, "the model is being loaded", "service_unavailable", retry_after=2)
        return web.json_response(protocol.model_list(self._names, self._created))

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self.metrics.registry), content_type="text/plain", charset="utf-8")

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        began = time.monotonic()
        code = "499"
        try:
            response = await self._answer(request)
            code = str(response.status)
        except ApiError as error:
            code = str(error.status)
            raise
        finally:
            self.metrics.requests.labels(code).inc()
            self.metrics.duration.observe(time.monotonic() - began)
        return response

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if not self._worker.ready.is_set():
            raise ApiError(503, "the model is being loaded", "service_unavailable", retry_after=2)
        parsed = protocol.parse_request(await request.read())
        if parsed.model not in self._names:
            text = f"the model {parsed.model!r} does not exist here; write {self._names[-1]!r}"
            raise ApiError(404, text, param="model", code="model_not_found")
        conversation = self._conversation(parsed)
        try:
            ticket = self._worker.submit(conversation, asyncio.get_running_loop())
        except Overloaded:
            text = "too many requests are waiting; try again in a second"
            raise ApiError(503, text, "overloaded_error", code="overloaded", retry_after=1) from None
        stream = TextStream(self._loaded().tokenizer, parsed.stops)
        try:
            if parsed.stream:
                return await self._streamed(request, parsed, ticket, stream)
            return await self._whole(ticket, stream)
        finally:
            # Also when the client went away, which cancels this task: its place is given to somebody else.
            ticket.cancel()
            self.metrics.tokens.labels("prompt").inc(len(conversation.prompt))
            self.metrics.tokens.labels("completion").inc(len(conversation.tokens))

    def _conversation(self, request: ChatRequest) -> Conversation:
        loaded = self._loaded()
        try:
            prompt = prompt_ids(loaded.tokenizer, protocol.parse_messages(request))
        except TemplateError as error:
            text = f"messages: the model's chat template refuses them: {error}"
            raise ApiError(400, text, param="messages") from None
        room = loaded.capacity - len(prompt)
        if room < 1:
            raise ApiError(
                400, f"the messages have {len(prompt)} tokens; this model takes {loaded.capacity} with the answer",
                param="messages", code="context_length_exceeded",
            )  # fmt: skip
        temperature = DEFAULT_TEMPERATURE if request.temperature is None else request.temperature
        sampling = Sampling(temperature, 1.0 if request.top_p is None else request.top_p, request.seed)
        return Conversation(prompt, min(room, request.limit or room), sampling)

    async def _whole(self, ticket: Ticket, stream: TextStream) -> web.Response:
        finish = None
        while finish is None:
            _, finish = await self._more(ticket, stream)
        counts = _usage(ticket, stream)
        return web.json_response(protocol.completion(_new_id(), self._name, stream.text, finish, counts))

    async def _streamed(
        self, request: web.Request, parsed: ChatRequest, ticket: Ticket, stream: TextStream
    ) -> web.StreamResponse:
        answer_id, created = _new_id(), int(time.time())
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})

        async def send(data: dict[str, Any]) -> None:
            await response.write(b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n")

        # Nothing is sent before the first token is there: until then an error can still be an HTTP status.
        text, finish = await self._more(ticket, stream)
        with contextlib.suppress(ConnectionResetError):
            await response.prepare(request)
            role = {"role": "assistant", "content": ""}
            await send(protocol.chunk(answer_id, self._name, created, role, None))
            while True:
                if text:
                    await send(protocol.chunk(answer_id, self._name, created, {"content": text}, None))
                if finish is not None:
                    break
                text, finish = await self._more(ticket, stream)
            await send(protocol.chunk(answer_id, self._name, created, {}, finish))
            if parsed.stream_options is not None and parsed.stream_options.include_usage:
                await send(protocol.usage_chunk(answer_id, self._name, created, _usage(ticket, stream)))
            await response.write(b"data: [DONE]\n\n")
            await response.write_eof()
        return response

    async def _more(self, ticket: Ticket, stream: TextStream) -> tuple[str, str | None]:
        """The next piece of text, which may be empty, and how the answer ended, if it did."""
        progress = await ticket.news.get()
        while not ticket.news.empty() and progress.finish is None:
            progress = ticket.news.get_nowait()
        if progress.error is not None:
            raise ApiError(500, "the model failed; the server starts again", "server_error")
        tokens = ticket.conversation.tokens[: progress.tokens]
        text = stream.push(tokens, final=progress.finish is not None)
        return text, "stop" if stream.stopped else progress.finish


def _usage(ticket: Ticket, stream: TextStream) -> dict[str, int]:
    conversation = ticket.conversation
    # The token that ends an answer was generated too.
    ended = conversation.finish == "stop" and not stream.stopped
    return protocol.usage(len(conversation.prompt), len(conversation.tokens) + ended)


def _new_id() -> str:
    return f"chatcmpl-{uuid.uuid4().hex}"


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error as OpenAI's error object."""
    try:
        return await handler(request)
    except ApiError as error:
        headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
        return web.json_response(error.body, status=error.status, headers=headers)
    except web.HTTPRequestEntityTooLarge:
        raised = ApiError(413, f"the request is larger than {MAX_BODY >> 20} MiB")
    except web.HTTPNotFound:
        raised = ApiError(404, f"there is no {request.method} {request.path} here")
    except web.HTTPMethodNotAllowed:
        raised = ApiError(405, f"{request.path} does not take {request.method}")
    return web.json_response(raised.body, status=raised.status)
