"""/healthz, /readyz and /metrics.

Room: operator. Serves HTTP; asks the application how it is.

Alive: the loop turns, no pass takes longer than it ever should, and the tasks that keep us going have not ended.
Ready: the first look at all objects has succeeded, so that credentials, rights and CRDs are proven.
"""

from collections.abc import Awaitable, Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from ratchet_operator.metrics import Metrics
from ratchet_operator.settings import Address

Probe = Callable[[], str | None]
"""None when all is well, else a sentence."""


class Servers:
    """The two HTTP servers of the process."""

    def __init__(self, alive: Probe, ready: Probe, metrics: Metrics) -> None:
        self._alive, self._ready, self._metrics = alive, ready, metrics
        self._runners: list[web.AppRunner] = []

    async def start(self, health: Address, metrics: Address) -> None:
        """Listen. Raises OSError when an address is taken."""
        app = web.Application()
        app.add_routes([web.get("/healthz", _answer(self._alive)), web.get("/readyz", _answer(self._ready))])
        await self._serve(app, health)
        app = web.Application()
        app.add_routes([web.get("/metrics", self._scrape)])
        await self._serve(app, metrics)

    async def stop(self) -> None:
        """Close both."""
        for runner in self._runners:
            await runner.cleanup()
        self._runners.clear()

    async def _serve(self, app: web.Application, address: Address) -> None:
        runner = web.AppRunner(app, handle_signals=False, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        self._runners.append(runner)
        await web.TCPSite(runner, address.host, address.port).start()

    async def _scrape(self, request: web.Request) -> web.Response:
        body = generate_latest(self._metrics.registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})


def _answer(probe: Probe) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handler(request: web.Request) -> web.StreamResponse:
        trouble = probe()
        return web.Response(status=200 if trouble is None else 503, text=f"{trouble or 'ok'}\n")

    return handler
