"""The operator without its watches: clients, queue, workers, leader, servers; what an error means.

Room: operator. `handlers` puts keys on the queue; here they are worked on.
"""

import asyncio
import logging
import zlib
from collections.abc import Awaitable, Callable, Iterable
from types import TracebackType
from typing import Literal, Self

from ratchet_api.names import CYCLE_KIND, VERSION_KIND
from ratchet_operator.clients.access import Access
from ratchet_operator.clients.arms import Arms
from ratchet_operator.clients.events import Events
from ratchet_operator.clients.gateway import Gateway
from ratchet_operator.clients.git.proposer import Proposer
from ratchet_operator.clients.http import Http
from ratchet_operator.clients.kube import Kube
from ratchet_operator.clients.mirror import MIRRORED, Mirror, Telling, Unsettled
from ratchet_operator.clients.mlflow import Mlflow
from ratchet_operator.clients.otlp import Collector
from ratchet_operator.clients.prometheus import Prometheus
from ratchet_operator.clients.transport import JSON, Api, NotFound, Transport
from ratchet_operator.clients.webhooks import Webhooks
from ratchet_operator.errors import Conflict, Forbidden, NotLeading, OperatorError, Stalling, Transient, Waiting
from ratchet_operator.health import Servers
from ratchet_operator.index import Index, of_child, rests
from ratchet_operator.leader import Leader
from ratchet_operator.metrics import Metrics
from ratchet_operator.queue import Key, WorkQueue
from ratchet_operator.reconcile import cycle, version
from ratchet_operator.reconcile.background import Background
from ratchet_operator.reconcile.context import Context
from ratchet_operator.reconcile.courier import Courier
from ratchet_operator.reconcile.desk import Desk
from ratchet_operator.reconcile.registrar import Registrar
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
        self.mirror = Mirror()
        self.queue = WorkQueue(self._depth)
        self.leader = Leader(settings.election)
        self._identity = settings.election.identity if settings.election is not None else "ratchet-operator"
        self.synced = False
        self.failed: asyncio.Event = asyncio.Event()
        """Set when a task that must not end has ended: the process should."""
        self._transport = transport
        self._api: Api | None = None
        self._http: Http | None = None
        self._webhooks: Webhooks | None = None
        self._mlflow: Mlflow | None = None
        self._collector: Collector | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._servers = Servers(self.alive, self.ready, self.metrics)
        self.context: Context
        self._looking: Context | None = None

    async def __aenter__(self) -> Self:
        if self._transport is None:
            self._transport = self._api = await Api.connect()
        self._http = Http()
        self._webhooks = Webhooks()
        self._mlflow = Mlflow()
        kube = Kube(Telling(self._transport, self.answered), self.leader.guard, self.metrics)
        access = Access(self.settings.prometheus_credentials, self.settings.prometheus_headers)
        otlp = self.settings.otlp
        if otlp is not None:
            resource = {"service.name": "ratchet-operator", "service.instance.id": self._identity}
            self._collector = Collector(otlp.endpoint, otlp.headers, resource)
        background = Background(self._look_at)
        self.context = Context(
            kube=kube,
            events=Events(kube, self._identity),
            prometheus=Prometheus(self._http, self.settings.prometheus_url, access),
            gateway=Gateway(self._http, kube, self.settings.gateway_namespace),
            arms=Arms(self._http),
            settings=self.settings,
            metrics=self.metrics,
            background=background,
            desk=Desk(kube, Proposer(self.leader.guard), background),
            courier=Courier(kube, self._webhooks, background, self.leader.guard),
            registrar=Registrar(kube, self._mlflow, background, self.leader.guard),
            tracer=Tracer(self._collector, self.leader.guard) if self._collector is not None else None,
        )
        await self._servers.start(self.settings.health, self.settings.metrics)
        self.leader.on_change(self._leads)
        self._spawn("leader", self.leader.run(kube), endless=self.settings.election is not None)
        for number in range(self.settings.workers):
            self._spawn(f"worker {number}", self._work())
        self._spawn("lists", self.keep_listing())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.context.background.close()
        if self.context.tracer is not None:
            await self.context.tracer.close()
        self.queue.clear()
        await self.leader.release(self.context.kube)
        await self._servers.stop()
        for client in (self._http, self._webhooks, self._mlflow, self._collector):
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
                await self._list_all()
                self.seed_all()
                self.synced = True
            except (OperatorError, NotFound) as error:
                missing = " (are the CRDs installed?)" if isinstance(error, NotFound) else ""
                log.warning("the objects cannot be listed yet: %s%s", error, missing)
                await asyncio.sleep(delay)
                delay = min(15.0, delay * 2)

    async def keep_listing(self) -> None:
        """Look at all objects again and again, in case that an event got lost."""
        while True:
            await asyncio.sleep(self.settings.pace.relist)
            if not self.synced:
                continue
            try:
                await self._list_all()
            except (OperatorError, NotFound) as error:
                log.warning("the objects cannot be listed again: %s", error)

    async def _list_all(self) -> None:
        """All that is mirrored, a page at a time; children first, so that a look finds those of its cycle."""
        for kind, label in reversed(MIRRORED.items()):
            for namespace in self.settings.namespaces or ("",):
                gone = self.mirror.known(kind, namespace)
                async for page in self.context.kube.pages(kind, namespace, label):
                    for body in page:
                        gone.pop((kind, body["metadata"]["namespace"], body["metadata"]["name"]), None)
                        self.seen(kind, body)
                    await asyncio.sleep(0)
                for where, revision in gone.items():
                    last = self.mirror.get(*where)
                    if last is not None and self.mirror.revision(where) == revision:
                        self.gone(kind, last)

    # What the watches bring

    def seen(self, kind: str, body: JSON) -> None:
        """An object is like this."""
        if kind in MIRRORED and not self.mirror.note(kind, body):
            return  # whoever it concerns has looked, or is about to
        meta = body["metadata"]
        if kind in RECONCILERS:
            self._tell(self.index.note(Key(kind, meta["namespace"], meta["name"]), body))
        else:
            self._tell(self._child(kind, body))

    def answered(self, kind: str, body: JSON) -> None:
        """The API server has just said that an object is like this, unless the answer is older than its deletion."""
        meta = body["metadata"]
        if self.mirror.revision((kind, meta["namespace"], meta["name"])) is not None:
            self.seen(kind, body)

    def gone(self, kind: str, body: JSON) -> None:
        """An object was deleted."""
        if kind in MIRRORED and not self.mirror.forget(kind, body):
            return
        meta = body["metadata"]
        if kind in RECONCILERS:
            self._tell(self.index.forget(Key(kind, meta["namespace"], meta["name"])))
        else:
            self._tell(self._child(kind, body))

    def _child(self, kind: str, body: JSON) -> list[Key]:
        meta = body.get("metadata") or {}
        if kind == "HorizontalPodAutoscaler":
            target = ((body.get("spec") or {}).get("scaleTargetRef") or {}).get("name")
            found = self.mirror.get("Deployment", meta["namespace"], target) if target else None
            meta = (found or {}).get("metadata") or {}
        key = of_child(meta)
        return [] if key is None else [key]

    def _tell(self, keys: Iterable[Key]) -> None:
        if self.synced:
            for key in keys:
                self.queue.add(key)

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
            delay = await self._pass(key)
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
            self.queue.add_after(key, self._spread(key, delay))
        return "done"

    def _look_at(self, key: tuple[str, str]) -> None:
        self.queue.add(Key(CYCLE_KIND, *key))

    async def _pass(self, key: Key) -> float | None:
        """A look at what is known, when all seems to rest; unless that is all there is to it, a pass that acts."""
        reconcile = RECONCILERS[key.kind]
        known = self.mirror.get(key.kind, key.namespace, key.name)
        if known is not None and rests(key.kind, known):
            if self._looking is None:
                self._looking = self.context.looking(self.mirror, self._identity)
            try:
                return await reconcile(self._looking, key.namespace, key.name)
            except (Unsettled, OperatorError):
                pass  # whatever it is, it is found out again from what the API server says now
        return await reconcile(self.context, key.namespace, key.name)

    def _spread(self, key: Key, delay: float) -> float:
        """Looks that only come round come at different times; those that are due at a moment are left alone."""
        resync = self.settings.pace.resync
        if delay != resync:
            return delay
        return resync * (0.75 + 0.25 * (zlib.crc32(f"{key.namespace}/{key.name}".encode()) & 0xFFFF) / 0xFFFF)

    def _depth(self, waiting: int, delayed: int) -> None:
        self.metrics.queued.set(waiting)
        self.metrics.delayed.set(delayed)
