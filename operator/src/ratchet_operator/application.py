"""The operator without its watches: clients, queue, workers, leader, servers; what an error means.

Room: operator. `handlers` puts keys on the queue; here they are worked on.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Literal, Self

from ratchet_api.cycle import ImprovementCycle
from ratchet_api.names import CYCLE_KIND, VERSION_KIND
from ratchet_api.version import ModelVersion
from ratchet_operator.clients.access import Access
from ratchet_operator.clients.arms import Arms
from ratchet_operator.clients.events import Events
from ratchet_operator.clients.gateway import Gateway
from ratchet_operator.clients.git.proposer import Proposer
from ratchet_operator.clients.http import Http
from ratchet_operator.clients.kube import Kube
from ratchet_operator.clients.otlp import Collector
from ratchet_operator.clients.prometheus import Prometheus
from ratchet_operator.clients.transport import Api, NotFound, Transport
from ratchet_operator.clients.webhooks import Webhooks
from ratchet_operator.errors import Conflict, Forbidden, NotLeading, OperatorError, Stalling, Transient, Waiting
from ratchet_operator.health import Servers
from ratchet_operator.index import Index
from ratchet_operator.leader import Leader
from ratchet_operator.metrics import Metrics
from ratchet_operator.queue import Key, WorkQueue
from ratchet_operator.reconcile import cycle, version
from ratchet_operator.reconcile.context import Context
from ratchet_operator.reconcile.courier import Courier
from ratchet_operator.reconcile.desk import Desk
from ratchet_operator.reconcile.tracing import Tracer
from ratchet_operator.settings import Settings

log = logging.getLogger(__name__)
STUCK_SECONDS = 300.0
"""A pass does a few dozen requests with time limits; one that takes longer hangs."""
FORBIDDEN_DELAY = 30.0

Reconcile = Callable[[Context, str, str], Awaitable[float | None]]
RECONCILERS: dict[str, Reconcile] = {CYCLE_KIND: cycle.reconcile, VERSION_KIND: version.reconcile}


class Application:
    """One operator process. Use it as an asynchronous context manager inside a running loop."""

    def __init__(self, settings: Settings, transport: Transport | None = None) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.index = Index()
        self.queue = WorkQueue(self._depth)
        self.leader = Leader(settings.election)
        self.synced = False
        self.failed: asyncio.Event = asyncio.Event()
        """Set when a task that must not end has ended: the process should."""
        self._transport = transport
        self._api: Api | None = None
        self._http: Http | None = None
        self._webhooks: Webhooks | None = None
        self._collector: Collector | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._servers = Servers(self.alive, self.ready, self.metrics)
        self.context: Context

    async def __aenter__(self) -> Self:
        if self._transport is None:
            self._transport = self._api = await Api.connect()
        self._http = Http()
        self._webhooks = Webhooks()
        kube = Kube(self._transport, self.leader.guard, self.metrics)
        access = Access(self.settings.prometheus_credentials, self.settings.prometheus_headers)
        identity = self.settings.election.identity if self.settings.election is not None else "ratchet-operator"
        otlp = self.settings.otlp
        if otlp is not None:
            resource = {"service.name": "ratchet-operator", "service.instance.id": identity}
            self._collector = Collector(otlp.endpoint, otlp.headers, resource)
        self.context = Context(
            kube=kube,
            events=Events(kube, identity),
            prometheus=Prometheus(self._http, self.settings.prometheus_url, access),
            gateway=Gateway(self._http, kube, self.settings.gateway_namespace),
            arms=Arms(self._http),
            settings=self.settings,
            metrics=self.metrics,
            desk=Desk(kube, Proposer(self.leader.guard), self._look_at),
            courier=Courier(kube, self._webhooks, self.leader.guard, self._look_at),
            tracer=Tracer(self._collector, self.leader.guard) if self._collector is not None else None,
        )
        await self._servers.start(self.settings.health, self.settings.metrics)
        self.leader.on_change(self._leads)
        self._spawn("leader", self.leader.run(kube), endless=self.settings.election is not None)
        for number in range(self.settings.workers):
            self._spawn(f"worker {number}", self._work())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.context.desk.close()
        await self.context.courier.close()
        if self.context.tracer is not None:
            await self.context.tracer.close()
        self.queue.clear()
        await self.leader.release(self.context.kube)
        await self._servers.stop()
        for client in (self._http, self._webhooks, self._collector):
            if client is not None:
                await client.close()
        if self._api is not None:
            await self._api.close()

    # Health

    def alive(self) -> str | None:
        """Why the process should be restarted, or None."""
        if self.failed.is_set():
            return "a task that must not end has ended; the log says which and why"
        longest = self.queue.oldest()
        return f"a pass has taken {longest:.0f} s so far" if longest > STUCK_SECONDS else None

    def ready(self) -> str | None:
        """Why it is not ready, or None."""
        return None if self.synced else "not all objects have been seen yet"

    # Tasks

    def _spawn(self, name: str, work: Awaitable[None], endless: bool = True) -> None:
        async def guarded() -> None:
            try:
                await work
            except asyncio.CancelledError:
                raise
            except BaseException:
                log.exception("%s has failed", name)
                self.failed.set()
                raise
            if endless:
                log.error("%s has ended", name)
                self.failed.set()

        self._tasks.append(asyncio.create_task(guarded(), name=name))

    def _leads(self, leads: bool) -> None:
        self.metrics.lead(leads)
        if leads:
            self.seed_all()

    def seed_all(self) -> None:
        """Everything that is known has to be looked at."""
        for key in self.index.known():
            self.queue.add(key)

    async def sync(self) -> None:
        """The first look at all objects; tried until it succeeds. Afterwards we are ready."""
        delay = 0.5
        while not self.synced:
            try:
                for namespace in self.settings.namespaces or ("",):
                    for found in await self.context.kube.select(ModelVersion, namespace):
                        self.index.note_version(found)
                    for item in await self.context.kube.select(ImprovementCycle, namespace):
                        self.index.note_cycle(item)
                self.seed_all()
                self.synced = True
            except (OperatorError, NotFound) as error:
                missing = " (are the CRDs installed?)" if isinstance(error, NotFound) else ""
                log.warning("the objects cannot be listed yet: %s%s", error, missing)
                await asyncio.sleep(delay)
                delay = min(15.0, delay * 2)

    async def _work(self) -> None:
        while True:
            await self.leader.wait()
            key = await self.queue.take()
            try:
                await self.process(key)
            finally:
                self.queue.done(key)

    async def process(self, key: Key) -> None:
        """One pass over one object, and what follows from how it ended."""
        begun = asyncio.get_running_loop().time()
        result = await self._attempt(key)
        self.metrics.reconciles.labels(key.kind, result).inc()
        self.metrics.duration.labels(key.kind).observe(asyncio.get_running_loop().time() - begun)

    async def _attempt(
        self, key: Key
    ) -> Literal["done", "waiting", "stalled", "forbidden", "conflict", "unavailable", "observing", "error"]:
        where = f"{key.kind} {key.namespace}/{key.name}"
        try:
            delay = await RECONCILERS[key.kind](self.context, key.namespace, key.name)
        except Waiting as error:
            log.debug("%s: %s", where, error)
            self.queue.add_after(key, error.delay)
            return "waiting"
        except Stalling as error:
            log.warning("%s: %s", where, error)
            self.queue.add_after(key, self.settings.pace.stalled_last)
            return "stalled"
        except Forbidden as error:
            log.error("%s: the operator's Role lacks a rule: %s", where, error)
            self.queue.add_after(key, FORBIDDEN_DELAY)
            return "forbidden"
        except Conflict as error:
            log.debug("%s: changed in between: %s", where, error)
            self.queue.add_backoff(key)
            return "conflict"
        except NotLeading:
            return "observing"
        except Transient as error:
            log.warning("%s: tried again in %.1f s: %s", where, self.queue.add_backoff(key), error)
            return "unavailable"
        except Exception:
            # A bug in one object's pass must not take the others down.
            log.exception("%s: a bug: tried again in %.1f s", where, self.queue.add_backoff(key))
            return "error"
        self.queue.succeeded(key)
        if delay is not None:
            self.queue.add_after(key, delay)
        return "done"

    def _look_at(self, key: tuple[str, str]) -> None:
        self.queue.add(Key(CYCLE_KIND, *key))

    def _depth(self, waiting: int, delayed: int) -> None:
        self.metrics.queued.set(waiting)
        self.metrics.delayed.set(delayed)
