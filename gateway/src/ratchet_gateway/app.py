"""The gateway as an aiohttp application, and what a table change means.

Room: gateway. Puts the parts together; binds no port.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import orjson
from aiohttp import web

from ratchet_gateway.answers import AnswerIndex
from ratchet_gateway.chat import Chat, Routes, error_response, list_models
from ratchet_gateway.errors import NoRoute, UnknownModel
from ratchet_gateway.exchange import Ledger
from ratchet_gateway.feedback import FeedbackHandler
from ratchet_gateway.metrics import Metrics
from ratchet_gateway.routes import Table
from ratchet_gateway.settings import Settings
from ratchet_gateway.spool import Spool
from ratchet_gateway.upload import ObjectStore, Uploader
from ratchet_gateway.upstream import Upstream

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(slots=True)
class Readiness:
    """Whether requests should be sent here."""

    synced: bool = False
    """The first lists of cycles and pods are in."""
    draining: bool = False
    """The process is on its way out."""

    def reason(self, spool_writable: bool) -> str:
        """Why not; empty when ready."""
        if self.draining:
            return "the gateway is shutting down"
        if not self.synced:
            return "the first list of cycles and pods is not in yet"
        return "" if spool_writable else "the spool cannot be written: look at its disk"


@dataclass(slots=True)
class Gateway:
    """One gateway: made and closed inside a running event loop."""

    settings: Settings
    store: ObjectStore
    metrics: Metrics = field(default_factory=Metrics)
    routes: Routes = field(default_factory=Routes)
    readiness: Readiness = field(default_factory=Readiness)
    inflight: int = 0
    """Requests that are being answered."""
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when, while draining, no request is being answered any more."""
    spool: Spool = field(init=False)
    uploader: Uploader = field(init=False)
    answers: AnswerIndex = field(init=False)
    upstream: Upstream = field(init=False)
    chat: Chat = field(init=False)
    feedback: FeedbackHandler = field(init=False)
    _created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        """Raises SpoolInUse, or OSError when the spool folder cannot be used."""
        spool, limits = self.settings.spool, self.settings.limits
        self.spool = Spool(spool, lambda used: self.metrics.spool_bytes.set(used), self._segments_closed)
        self.answers = AnswerIndex(spool.folder / "answers", spool.remembered_answers)
        self.uploader = Uploader(spool.folder, self.store, self.spool.room, self.metrics, spool.retry_seconds)
        ledger = Ledger(self.metrics, self.spool, self.answers)
        self.upstream = Upstream(limits, ledger)
        self.chat = Chat(self.routes, self.upstream, ledger, limits)
        self.feedback = FeedbackHandler(self.routes, ledger, limits)

    def _segments_closed(self) -> None:
        self.uploader.wake()

    def publish(self, table: Table) -> None:
        """Route by a new table from now on. Its arms' series exist, with value 0, before their first request."""
        self.routes.table = table
        weights: dict[tuple[str, str, str], int] = {}
        for (namespace, name), cycle in table.cycles.items():
            for version, weight in cycle.weights().items():
                weights[namespace, name, version] = weight
                self.answers.know((namespace, name, version))
            for version in cycle.former:
                self.answers.know((namespace, name, version))
        self.metrics.weights(weights)

    def application(self) -> web.Application:
        """All paths."""
        app = web.Application(client_max_size=self.settings.limits.body_bytes)
        app.router.add_post("/v1/chat/completions", self._counted(self.chat.handle))
        app.router.add_post("/v1/feedback", self._counted(self.feedback.handle))
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v1/models/{name:.+}", self._model)
        app.router.add_get("/routes", self._routes)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_route("*", "/{path:.*}", self._nothing)
        return app

    def start(self) -> None:
        """Begin to write and upload."""
        self.spool.start()
        self.uploader.start()

    async def close(self, upload_seconds: float) -> bool:
        """Close the spool's segments and upload them; says whether nothing is left on disk."""
        await self.upstream.close()
        await self.spool.close()
        empty = await asyncio.to_thread(self.uploader.stop, upload_seconds)
        self.answers.close()
        self.spool.release()
        return empty

    def _counted(self, handler: Handler) -> Handler:
        async def counted(request: web.Request) -> web.StreamResponse:
            self.inflight += 1
            try:
                response = await handler(request)
                if self.readiness.draining:
                    response.force_close()
                return response
            finally:
                self.inflight -= 1
                if self.inflight == 0 and self.readiness.draining:
                    self.idle.set()

        return counted

    async def _models(self, request: web.Request) -> web.Response:
        return await list_models(self.routes, self._created)

    async def _model(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in self.routes.table.models():
            known = ", ".join(self.routes.table.models()) or "none yet"
            return error_response(UnknownModel(f"model {name!r} does not exist; models that exist: {known}"))
        return _json({"id": name, "object": "model", "created": self._created, "owned_by": "ratchet"})

    async def _routes(self, request: web.Request) -> web.Response:
        return _json({"cycles": self.routes.table.weights()})

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self.metrics.render(), headers={"content-type": _METRICS_TYPE})

    async def _healthz(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, request: web.Request) -> web.Response:
        reason = self.readiness.reason(self.spool.writable)
        return web.Response(status=503 if reason else 200, text=f"{reason or 'ok'}\n")

    async def _nothing(self, request: web.Request) -> web.Response:
        return error_response(
            NoRoute(f"there is no {request.method} {request.path}: see /v1/chat/completions, /v1/models, /v1/feedback")
        )


def _json(body: object) -> web.Response:
    return web.Response(body=orjson.dumps(body), content_type="application/json")
