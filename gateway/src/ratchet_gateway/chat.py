"""POST /v1/chat/completions: parse, route, ask the arm, pass the answer on, settle.

Room: gateway. Its order of events is the promise of the spool: the record is durable before the client gets the last
byte of its answer, which for a stream is `[DONE]`.
"""

import asyncio
import time
from datetime import UTC, datetime

import aiohttp
import orjson
from aiohttp import hdrs, web

from ratchet_gateway.answer import DONE, Answer, Stream, error_event, read_whole, readable_error
from ratchet_gateway.ask import SESSION_HEADER, Ask, parse_ask
from ratchet_gateway.errors import ArmFailed, ArmTimeout, ArmUnavailable, GatewayError, TooLarge, TooSlow, error_body
from ratchet_gateway.exchange import BROKEN, CANCELLED, CLIENT_GONE, Exchange, Ledger, hash_identity
from ratchet_gateway.routes import Choice, Cycle, Table, choose_arm
from ratchet_gateway.settings import Limits
from ratchet_gateway.upstream import Reply, Upstream

VERSION_HEADER = "x-ratchet-version"
_JSON = "application/json"
_FORWARDED = ("traceparent", "tracestate")
_OUR_FAULT = frozenset({401, 403, 404, 405})
"""Statuses by which an arm refuses the gateway, not the client: to the client they are a failure of the server."""


class Routes:
    """The table in force."""

    def __init__(self) -> None:
        self.table = Table()


async def read_body(request: web.Request, limits: Limits) -> bytes:
    """The request's body. Raises TooLarge or TooSlow."""
    try:
        if request.content.is_eof():  # it came with the head, as most do
            return await request.read()
        async with asyncio.timeout(limits.body_seconds):
            return await request.read()
    except TimeoutError:
        raise TooSlow(f"the body did not come within {limits.body_seconds:g} s") from None
    except web.HTTPRequestEntityTooLarge:
        raise TooLarge(f"the body has more than {limits.body_bytes} bytes: send a shorter conversation") from None


def error_response(error: GatewayError, headers: dict[str, str] | None = None) -> web.Response:
    """The error object as an answer."""
    return web.Response(
        status=error.status, body=error.body(), content_type=_JSON, headers={**(headers or {}), **error.headers}
    )


class Chat:
    """The handler and what it works with."""

    def __init__(self, routes: Routes, upstream: Upstream, ledger: Ledger, limits: Limits) -> None:
        self._routes = routes
        self._upstream = upstream
        self._ledger = ledger
        self._limits = limits

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answers one request. Every path that reaches an arm ends in `settle`, exactly once."""
        arrived, moment = time.monotonic(), datetime.now(UTC)
        try:
            ask, cycle, choice = await self._route(request)
        except GatewayError as error:
            self._ledger.metrics.refused.labels(str(error.status)).inc()
            return error_response(error)
        principal = hash_identity(request.headers.get(hdrs.AUTHORIZATION))
        exchange = Exchange(ask, cycle, choice, moment, arrived, principal)
        try:
            forwarded = {name: request.headers[name] for name in _FORWARDED if name in request.headers}
            reply = await self._upstream.open(exchange, forwarded)
        except GatewayError as error:
            return await self._fail(exchange, error)
        except BaseException as error:
            self._abandon(exchange, error)
            raise
        try:
            if reply.response.status != 200:
                return await self._refused(exchange, reply)
            if ask.stream:
                return await self._stream(request, exchange, reply)
            return await self._whole(exchange, reply)
        finally:
            reply.close()

    async def _route(self, request: web.Request) -> tuple[Ask, Cycle, Choice]:
        ask = parse_ask(await read_body(request, self._limits), request.headers.get(SESSION_HEADER))
        target = self._routes.table.resolve(ask.model)
        choice = choose_arm(target, ask.session)
        if choice is None:
            raise ArmUnavailable(f"cycle {target.cycle.name} serves nothing yet: try again later", retry_after=10)
        return ask, target.cycle, choice

    async def _whole(self, exchange: Exchange, reply: Reply) -> web.StreamResponse:
        try:
            answer, body = read_whole(reply.body, exchange.answer_id, exchange.ask.model)
        except ArmFailed as error:
            return await self._fail(exchange, error)
        exchange.answer = answer
        exchange.delivered = True
        await self._ledger.settle(exchange, 200, time.monotonic())
        return web.Response(body=body, content_type=_JSON, headers=_headers(exchange))

    async def _fail(self, exchange: Exchange, error: GatewayError) -> web.Response:
        exchange.answer = Answer()
        await self._ledger.settle(exchange, error.status, time.monotonic())
        return error_response(error, _headers(exchange))

    async def _refused(self, exchange: Exchange, reply: Reply) -> web.Response:
        """An arm's error becomes ours: same status and words, but the public model name."""
        status = reply.response.status
        message = readable_error(reply.body, exchange.choice.arm.model_name, exchange.ask.model)
        if status in _OUR_FAULT or not 400 <= status <= 599:
            return await self._fail(
                exchange, ArmFailed(f"the server of {exchange.version} answered {status}: {message or 'no reason'}")
            )
        await self._ledger.settle(exchange, status, time.monotonic())
        kind = "invalid_request_error" if status < 500 else "server_error"
        headers = _headers(exchange)
        if hdrs.RETRY_AFTER in reply.response.headers:
            headers[hdrs.RETRY_AFTER] = reply.response.headers[hdrs.RETRY_AFTER]
        body = error_body(message or f"the model's server answered {status}", kind)
        return web.Response(status=status, body=body, content_type=_JSON, headers=headers)

    def _abandon(self, exchange: Exchange, error: BaseException) -> None:
        """The client is gone, or there is a bug: nothing more can be sent, so nothing waits for the record."""
        gone = isinstance(error, asyncio.CancelledError | ConnectionError)
        exchange.answer.finish_reason = CANCELLED if gone else BROKEN
        self._ledger.settle(exchange, CLIENT_GONE if gone else 500, time.monotonic())

    async def _stream(self, request: web.Request, exchange: Exchange, reply: Reply) -> web.StreamResponse:
        if not reply.is_stream:
            return await self._fail(exchange, ArmFailed("the model's server cannot stream"))
        response = web.StreamResponse(headers=_headers(exchange))
        response.headers[hdrs.CONTENT_TYPE] = "text/event-stream; charset=utf-8"
        response.headers[hdrs.CACHE_CONTROL] = "no-cache"
        response.headers["x-accel-buffering"] = "no"
        stream = Stream(
            exchange.answer_id, exchange.ask.model, exchange.ask.include_usage, max_line=self._limits.answer_bytes
        )
        try:
            broken = await self._pass(request, response, reply, stream, exchange)
        except BaseException as error:
            exchange.answer = stream.close()
            self._abandon(exchange, error)
            raise
        exchange.answer = stream.close()
        if broken is None:
            await self._settle_stream(exchange, stream, 200)
            await response.write_eof(DONE)
        else:
            exchange.answer.finish_reason = BROKEN
            await self._settle_stream(exchange, stream, broken.status)
            await response.write_eof(error_event(broken.message, broken.code) if not stream.failed else b"")
        return response

    async def _pass(
        self,
        request: web.Request,
        response: web.StreamResponse,
        reply: Reply,
        stream: Stream,
        exchange: Exchange,
    ) -> GatewayError | None:
        """The passage, with a bound on clients that do not read. Raises ConnectionError for them as for those gone."""
        passage = _Passage(request, response, reply, stream, exchange)
        try:
            async with asyncio.timeout(self._limits.request_seconds):
                return await passage.run()
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionAbortedError("the client does not read its answer") from None

    async def _settle_stream(self, exchange: Exchange, stream: Stream, status: int) -> None:
        inter_token = self._ledger.arm(exchange).inter_token
        for gap in stream.gaps:
            inter_token.observe(gap)
        await self._ledger.settle(exchange, status, time.monotonic())


def _headers(exchange: Exchange) -> dict[str, str]:
    return {VERSION_HEADER: exchange.version, SESSION_HEADER: exchange.ask.session}


class _Passage:
    """A stream's way from the arm to the client."""

    def __init__(
        self, request: web.Request, response: web.StreamResponse, reply: Reply, stream: Stream, exchange: Exchange
    ) -> None:
        self._request = request
        self._response = response
        self._reply = reply
        self._stream = stream
        self._exchange = exchange

    async def run(self) -> GatewayError | None:
        """Passes on everything but `[DONE]`; says how the arm failed, if it did.

        Raises ConnectionError or CancelledError when the client goes away.
        """
        broken: GatewayError | None = None
        data = self._reply.body
        await self._response.prepare(self._request)
        self._exchange.delivered = True
        while broken is None:
            try:
                out = self._stream.feed(data, time.monotonic())
            except ArmFailed as error:
                return error
            if out:
                await self._response.write(out)
            if self._stream.done:
                break
            try:
                data = await self._reply.response.content.readany()
            except TimeoutError:
                return ArmTimeout("the model's server was silent for too long")
            except aiohttp.ClientError:
                data = b""
            if not data:
                break
        if self._stream.complete:
            return None
        return ArmFailed(self._stream.failed or "the model's server broke off its answer")


async def list_models(routes: Routes, created: int) -> web.Response:
    """GET /v1/models."""
    data = [
        {"id": name, "object": "model", "created": created, "owned_by": "ratchet"} for name in routes.table.models()
    ]
    return web.Response(body=orjson.dumps({"object": "list", "data": data}), content_type=_JSON)
