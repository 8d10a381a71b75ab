"""The life of the gateway process: start, serve, drain, close.

Room: gateway. Binds the port and hears signals.
"""

import asyncio
import gc
import logging
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol

from aiohttp import web

from ratchet_gateway.app import Gateway
from ratchet_gateway.metrics import Metrics
from ratchet_gateway.routes import Table
from ratchet_gateway.settings import Settings
from ratchet_gateway.upload import ObjectStore

log = logging.getLogger(__name__)


class RouteSource(Protocol):
    """Where tables come from."""

    @property
    def synced(self) -> bool:
        """Whether the first table is complete."""
        ...

    async def run(self) -> None:
        """Publishes tables until it is cancelled."""
        ...


MakeSource = Callable[[Callable[[Table], None], Metrics], RouteSource]


class StaticTable:
    """A table that never changes: for tests and benchmarks, where there is no cluster."""

    synced = True

    def __init__(self, table: Table, publish: Callable[[Table], None]) -> None:
        publish(table)

    async def run(self) -> None:
        """Does nothing."""
        await asyncio.Event().wait()


class Service:
    """A gateway that listens."""

    def __init__(self, settings: Settings, store: ObjectStore, make_source: MakeSource) -> None:
        """Call it in a running event loop. Raises SpoolInUse or OSError when the spool folder cannot be used."""
        self.settings = settings
        self.gateway = Gateway(settings, store)
        self._source = make_source(self._publish, self.gateway.metrics)
        self._following: asyncio.Task[None] | None = None
        # A client that goes away cancels its handler, so that its arm stops generating.
        self._runner = web.AppRunner(
            self.gateway.application(), access_log=None, handler_cancellation=True, shutdown_timeout=1.0
        )
        self._site: web.TCPSite | None = None

    def _publish(self, table: Table) -> None:
        self.gateway.publish(table)
        self.gateway.readiness.synced = True

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._runner.addresses[0][1])

    async def start(self) -> None:
        """Listens; ready as soon as the first table is in. Raises OSError when the port is taken."""
        self.gateway.start()
        self._following = asyncio.create_task(self._source.run(), name="routes")
        await self._runner.setup()
        self._site = web.TCPSite(self._runner, self.settings.host, self.settings.port, backlog=1024)
        await self._site.start()
        gc.collect()
        gc.freeze()
        log.info("listening on %s port %d", self.settings.host, self.port)

    async def wait(self, stop: Awaitable[object]) -> None:
        """Serves until `stop` is done. Raises what ended the following of routes, which should never end."""
        assert self._following is not None
        stopping = asyncio.ensure_future(stop)
        done, _ = await asyncio.wait({stopping, self._following}, return_when=asyncio.FIRST_COMPLETED)
        if self._following in done:
            stopping.cancel()
            self._following.result()
            raise RuntimeError("the watch of routes ended")

    async def stop(self, drain_seconds: float) -> None:
        """Not ready any more; answer for a while; end answers under way; seal and upload."""
        settings, gateway = self.settings, self.gateway
        gateway.readiness.draining = True
        log.info("shutting down: %d requests under way", gateway.inflight)
        await asyncio.sleep(drain_seconds)
        if self._site is not None:
            await self._site.stop()
        if gateway.inflight:
            gateway.idle.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(gateway.idle.wait(), settings.grace_seconds)
        if gateway.inflight:
            log.warning("%d answers are broken off after %s s", gateway.inflight, settings.grace_seconds)
        await self._runner.cleanup()
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait({self._following})
        if not await gateway.close(settings.upload_seconds):
            log.warning("%d bytes of records wait in the spool for the next start", gateway.spool.room.used)


async def serve(settings: Settings, store: ObjectStore, make_source: MakeSource) -> None:
    """Runs a gateway until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    service = Service(settings, store, make_source)
    try:
        await service.start()
        await service.wait(stop.wait())
    except Exception:
        await service.stop(drain_seconds=0.0)
        raise
    await service.stop(drain_seconds=settings.drain_seconds)
