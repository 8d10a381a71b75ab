"""One story with one seed: a cluster, operators that die, people, gateways, and what must hold at every change.

The loop's time is virtual: waiting costs nothing, and the same seed is the same story to the last await.
"""

import asyncio
import dataclasses
import logging
import selectors
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from cluster import NAMESPACE, Clock, Controllers, Server, plural_path, ready, split
from faults import Dice, Killed, Link
from invariants import Invariants
from operator_world import SETTINGS, at_levels
from surroundings import Endpoints, Gate, Repository, Threads

from ratchet_api.names import ARM_LABEL, CYCLE_KIND, CYCLE_LABEL, STAGE_LABEL, VERSION_LABEL
from ratchet_api.stage import StageReport
from ratchet_operator import handlers
from ratchet_operator.application import Application
from ratchet_operator.clients.arms import Server as ModelServer
from ratchet_operator.clients.events import Events
from ratchet_operator.clients.gateway import Routes
from ratchet_operator.clients.git.credentials import Credentials
from ratchet_operator.clients.git.proposer import Errand
from ratchet_operator.clients.kube import Kube
from ratchet_operator.clients.mirror import Telling
from ratchet_operator.clients.transport import JSON
from ratchet_operator.domain.analysis import ArmReadings, NoSample, Reading, Sample
from ratchet_operator.domain.letters import Letter
from ratchet_operator.domain.proposal import Seen
from ratchet_operator.domain.queries import ArmQueries
from ratchet_operator.leader import Leader
from ratchet_operator.queue import LAST_BACKOFF, Key
from ratchet_operator.reconcile.background import Background
from ratchet_operator.reconcile.context import Context
from ratchet_operator.reconcile.courier import Courier
from ratchet_operator.reconcile.desk import Desk
from ratchet_operator.settings import Election

RELIST_SECONDS = 240.0
"""kopf's watching.server_timeout, see handlers."""
STORY_SECONDS = 3 * 3600.0
REST_SECONDS = 75.0
"""Longer than every appointment of an operator at rest."""
PASSES = 6000
"""More than any seed needs by far; a hot loop needs more in no time."""


class _Selector(selectors.SelectSelector):
    """Where others wait for sockets, time passes."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise AssertionError("everybody waits for everybody: no timer is left")
        self.now += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """asyncio with a clock that only moves when nothing else can."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)
        self.set_exception_handler(lambda loop, context: None)

    def time(self) -> float:
        return self._virtual.now


class Process(Application):
    """An operator process: all of it but kopf's sockets, the health servers and HTTP."""

    def __init__(self, simulation: "Simulation", name: str, election: Election | None, visitor: bool) -> None:
        self.visitor = visitor
        """One too many, who is not replaced."""
        self.link = Link(simulation, name)
        settings = dataclasses.replace(SETTINGS, election=election, workers=2, namespaces=(NAMESPACE,))
        super().__init__(settings, self.link)
        self._simulation = simulation
        self.name = name
        self._loop = asyncio.get_running_loop()
        self._blocked_until: dict[str, float] = {}
        self._due: dict[str, float] = {}
        self.skew = timedelta(seconds=simulation.dice.between(-1.5, 1.5))
        if not simulation.dice.strikes("skew", 1.0):
            self.skew = timedelta(0)
        self.leader = Leader(election, self._loop.time)
        kube = Kube(Telling(self.link, self.answered), self.leader.guard, self.metrics)
        repository = simulation.repository
        proposer = NoGit() if repository is None else repository.proposer(self.link, self.leader.guard)
        background = Background(lambda key: self.queue.add(Key(CYCLE_KIND, *key)))
        self.context = Context(
            kube=kube,
            events=Events(kube, name),
            prometheus=Prometheus(simulation, self.link),
            gateway=Gateways(simulation, self.link),
            arms=Arms(simulation, self.link),
            settings=settings,
            metrics=self.metrics,
            background=background,
            desk=Desk(kube, proposer, background),
            courier=Courier(kube, NoReceiver(), background),
            now=lambda: simulation.clock() + self.skew,
        )
        self.link.die = self.die

    def start(self) -> None:
        """As Application and __main__ do."""
        self.leader.on_change(self._leads)
        self._spawn("lists", self.keep_listing())
        self._spawn("leader", self.leader.run(self.context.kube), endless=False)
        for number in range(self.settings.workers):
            self._spawn(f"worker {number}", self._work())
        self._spawn("sync", self._watch(), endless=False)

    async def _watch(self) -> None:
        await self.sync()
        self._simulation.server.listeners.append(self._changed)
        self._relist()

    def die(self) -> None:
        """kill -9: nothing more is done, nothing is remembered."""
        if self.link.dead:
            return
        self.link.dead = True
        if self._changed in self._simulation.server.listeners:
            self._simulation.server.listeners.remove(self._changed)
        for task in self._tasks:
            task.cancel()
        self.context.background.cancel()
        self.queue.clear()
        self._simulation.died(self)

    async def process(self, key: Any) -> None:
        """Counted, and a bug is one here."""
        self._simulation.passes += 1
        if self._simulation.passes > PASSES:
            raise self._simulation.fail(f"more than {PASSES} passes: a hot loop")
        await super().process(key)

    async def _attempt(self, key: Any) -> Any:
        result = await super()._attempt(key)
        if result in ("error", "forbidden", "stalled"):
            self._simulation.fail(f"a pass over {key} ended with {result}: {self._simulation.last_log}")
        return result

    # Watches

    def _changed(self, who: str, kind: str, old: JSON | None, new: JSON | None) -> None:
        if kind not in WATCHED or self.link.dead:
            return
        dice, now = self._simulation.dice, self._loop.time()
        if dice.strikes("broken watch", 0.03):
            self._simulation.note(f"broken watch of {kind}: {self.name}")
            self._blocked_until[kind] = now + dice.between(1.0, 20.0)
            self._loop.call_at(self._blocked_until[kind], self._list, kind)
        if now < self._blocked_until.get(kind, 0.0):
            return
        if dice.strikes("lost event", 0.1):
            self._simulation.note(f"lost event of {kind}: {self.name}")
            return
        due = max(self._due.get(kind, 0.0), now + dice.between(0.005, 0.5))
        self._due[kind] = due
        event = "DELETED" if new is None else "ADDED" if old is None else "MODIFIED"
        for _ in range(2 if dice.strikes("doubled event", 0.2) else 1):
            self._loop.call_at(due, self._deliver, kind, event, new or old)

    def _deliver(self, kind: str, event: str | None, thing: JSON) -> None:
        if self.link.dead or (kind not in OURS and CYCLE_LABEL not in (thing["metadata"].get("labels") or {})):
            return
        handlers.tell(self, kind, {"type": event, "object": thing})

    def _list(self, kind: str) -> None:
        if not self.link.dead:
            for thing in self._simulation.server.all(kind):
                self._deliver(kind, None, thing)

    def _relist(self) -> None:
        if not self.link.dead:
            for kind in WATCHED:
                self._list(kind)
            self._loop.call_later(RELIST_SECONDS, self._relist)


OURS = ("ImprovementCycle", "ModelVersion")
WATCHED = (*OURS, "Job", "Deployment", "Pod")


@dataclasses.dataclass
class Prometheus:
    """Bad and all events by version, or no answer."""

    simulation: "Simulation"
    link: Link

    async def arm(self, queries: ArmQueries) -> ArmReadings:
        await self.link.pause("ask", "prometheus")
        blind = self.simulation.dice.strikes("blind prometheus", 0.3)

        def read(name: str) -> Reading | None:
            query = getattr(queries, name)
            if query is None:
                return None
            if blind:
                return NoSample("QueryError", "Prometheus does not answer")
            version = next((v for v in self.simulation.bad if f'version="{v}"' in query), "")
            values = {"bad": self.simulation.bad.get(version, 0.0), "all": 400.0, "age": 1.0}
            return Sample(values.get(name, 1.0))

        return ArmReadings(**{f.name: read(f.name) for f in dataclasses.fields(ArmReadings)})

    async def number(self, query: str) -> float | None:
        return None


@dataclasses.dataclass
class Arms:
    """Ready pods list the version they were made for."""

    simulation: "Simulation"
    link: Link

    async def serves(self, servers: Sequence[ModelServer], port: int, model_name: str) -> bool | None:
        await self.link.pause("ask", "arms")
        addresses = [server.address for server in servers]
        if not addresses or self.simulation.dice.strikes("silent arm", 0.3):
            return None
        pods = {(p.get("status") or {}).get("podIP"): p for p in self.simulation.server.all("Pod")}
        found = [pods[address] for address in addresses if address in pods]
        if len(found) < len(addresses):
            return None
        return all(pod["metadata"]["labels"].get(VERSION_LABEL) == model_name for pod in found)


class NoGit:
    """No story promotes by Git."""

    async def visit(self, errand: Errand, credentials: Credentials) -> Seen:
        raise AssertionError(f"nothing is to be proposed: {errand.title}")


class NoReceiver:
    """No story tells anybody."""

    async def send(self, letter: Letter) -> None:
        raise AssertionError(f"no notice is expected: {letter.body!r}")


@dataclasses.dataclass
class Gateways:
    """Asks all gateway pods, as clients.gateway does."""

    simulation: "Simulation"
    link: Link

    async def routes(self) -> list[Routes] | None:
        await self.link.pause("ask", "gateways")
        if self.simulation.dice.strikes("silent gateway", 0.3):
            return None
        key = f"{NAMESPACE}/assistant"
        known = [gateway.weights for gateway in self.simulation.gateways]
        return [Routes(cycles={} if weights is None else {key: dict(weights)}) for weights in known]


class GatewayPod:
    """Has in force what it read last of the cycle's status."""

    def __init__(self, simulation: "Simulation") -> None:
        self._simulation = simulation
        self.weights: dict[str, int] | None = None
        self._slow_until = 0.0
        simulation.server.listeners.append(self._changed)

    def _changed(self, who: str, kind: str, old: JSON | None, new: JSON | None) -> None:
        if kind != "ImprovementCycle":
            return
        dice, loop = self._simulation.dice, asyncio.get_running_loop()
        if dice.strikes("slow gateway", 0.25):
            self._slow_until = max(self._slow_until, loop.time() + dice.between(2.0, 25.0))
        loop.call_at(max(self._slow_until, loop.time() + dice.between(0.05, 1.0)), self._read)
        if dice.strikes("restarted gateway", 0.03):
            self._simulation.note("a gateway pod restarts")
            self.weights = None

    def _read(self) -> None:
        cycle = self._simulation.server.find("ImprovementCycle", "assistant")
        serving = ((cycle or {}).get("status") or {}).get("serving") or {}
        arms = [arm for arm in (serving.get("stable"), serving.get("candidate")) if arm]
        self.weights = {arm["version"]: arm["weight"] for arm in arms} if cycle is not None else None


@dataclasses.dataclass(frozen=True)
class Result:
    """How one seed went."""

    seed: int | None
    story: str
    failures: list[str]
    schedule: list[str]
    ending: dict[str, Any]
    passes: int
    requests: int
    writes: int
    seconds: float
    """Virtual ones."""


class Simulation:
    """Everything of one run."""

    def __init__(self, story: "Story", dice: Dice) -> None:
        self.story = story
        self.dice = dice
        loop = asyncio.get_running_loop()
        self._loop = loop
        self.clock = Clock(loop)
        self.server = Server(self.clock)
        self.failures: list[str] = []
        self.bad: dict[str, float] = dict(story.bad)
        self.passes = 0
        self.writes: list[str] = []
        self.last_log = ""
        self._old: dict[str, deque[tuple[float, dict[str, JSON]]]] = {}
        self._processes: list[Process] = []
        self._made = 0
        self._over = False
        self.server.listeners.append(self._remember)
        self.controllers = Controllers(self.server, self._delay, self._ending)
        self.endpoints = Endpoints(self.server, self._delay)
        self.gate = Gate(self.server, self._delay)
        self.repository: Repository | None = None
        if story.git:
            loop.set_default_executor(Threads(self))
            self.repository = Repository(self)
        self.gateways = [GatewayPod(self), GatewayPod(self)]
        self.invariants = Invariants(self)
        self.server.listeners.append(self.invariants.changed)

    def note(self, what: str) -> None:
        """Into the schedule."""
        self.dice.schedule.append(f"{self._loop.time():8.2f}  {what}")

    def fail(self, text: str) -> AssertionError:
        """Something must not be."""
        self.failures.append(f"{self._loop.time():8.2f}  {text}")
        return AssertionError(text)

    # The world's faults

    def _delay(self, work: str) -> float:
        low, high = {"work": (1.0, 6.0), "start": (0.2, 3.0)}.get(work, (0.05, 1.0))
        if self.dice.strikes("slow controllers", 0.2):
            high *= 6
        return self.dice.between(low, high)

    def _ending(self, pod: JSON) -> tuple[int, str, JSON]:
        labels = pod["metadata"]["labels"]
        stage, version = labels[STAGE_LABEL], labels.get(VERSION_LABEL, "")
        if self.dice.disturbs("eviction", 0.4):
            self.note(f"eviction of {pod['metadata']['name']}")
            condition = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}
            return 143, "", {"conditions": [condition]}
        if self.dice.disturbs("infrastructure", 0.4):
            self.note(f"infrastructure failure in {pod['metadata']['name']}")
            report = {"stage": stage, "outcome": "Failed", "reason": "InfrastructureError", "message": "S3 is away"}
            return 75, StageReport.model_validate(report).encode().decode(), {}
        report = self.story.report(stage, version)
        if stage == "evaluate":
            told = self.server.find("ConfigMap", labels["batch.kubernetes.io/job-name"])
            assert told is not None, "a pod is there, so its input is"
            report = at_levels(report, told["data"]["stage.json"])
        return 0, StageReport.model_validate(report).encode().decode(), {}

    def _remember(self, who: str, kind: str, old: JSON | None, new: JSON | None) -> None:
        if who.startswith("operator") and kind != "Lease":
            self.writes.append(f"{self._loop.time():8.2f} {who} {kind} {(new or old or {})['metadata']['name']}")
        if kind in ("Pod", "Deployment", "ModelVersion"):
            things = dict(self.server.collections[plural_path(kind)])
            self._old.setdefault(plural_path(kind), deque(maxlen=40)).append((self._loop.time(), things))

    def stale(self, path: str, query: Mapping[str, str] | None) -> JSON:
        """A list as it was up to five seconds ago; of versions that exist all the same."""
        collection, _, _ = split(path)
        present = self.server.collections.setdefault(collection, {})
        since = self._loop.time() - self.dice.between(0.5, 5.0)
        older = [things for at, things in self._old.get(collection, ()) if at <= since]
        stale = older[-1] if older else present
        if collection == plural_path("ModelVersion"):
            stale = {name: stale.get(name, thing) for name, thing in present.items()}
        self.server.collections[collection] = stale
        try:
            return self.server.request("operator", "get", path, None, query)
        finally:
            self.server.collections[collection] = present

    async def _meddle(self) -> None:
        """What happens to pods and Jobs, and second operators."""
        while not self.dice.quiet:
            await asyncio.sleep(self.dice.between(1.0, 10.0))
            arms = [p for p in self.server.all("Pod") if p["metadata"]["labels"].get(ARM_LABEL) and ready(p)]
            if arms and self.dice.strikes("drain", 0.3):
                name = self.dice.random.choice(arms)["metadata"]["name"]
                self.note(f"drain of {name}")
                self.server.delete("drain", plural_path("Pod"), name)
            jobs = [j for j in self.server.all("Job") if not j.get("status") and self.invariants.noted(j)]
            if jobs and self.dice.disturbs("deleted job", 0.3):
                name = self.dice.random.choice(jobs)["metadata"]["name"]
                self.note(f"Job {name} is deleted")
                self.server.delete("somebody", plural_path("Job"), name)
            visited = any(process.visitor and not process.link.dead for process in self._processes)
            if not visited and self.dice.strikes("intruder", 0.2):
                self.note("a second operator")
                self._loop.call_later(self.dice.between(5.0, 30.0), self._begin(None, visitor=True).die)

    # Operators

    def _begin(self, election: Election | None, visitor: bool = False) -> Process:
        self._made += 1
        process = Process(self, f"operator-{self._made}", election, visitor)
        self._processes.append(process)
        process.start()
        return process

    def _election(self) -> Election | None:
        if not self.dice.elected:
            return None
        return Election(NAMESPACE, identity=f"operator-{self._made + 1}", retry=4.0)

    def died(self, process: Process) -> None:
        """Another one takes its place, unless it was one too many."""
        if not self._over and not process.visitor:
            self._loop.call_later(self.dice.between(1.0, 20.0), self._again)

    def _again(self) -> None:
        if not self._over:
            self._begin(self._election())

    # People

    async def until(self, what: Callable[[], bool], words: str) -> None:
        """Wait for something in the cluster."""
        while not what():
            if self.failures:
                raise AssertionError(self.failures[0])
            if self._loop.time() > STORY_SECONDS:
                raise self.fail(f"it never comes to this: {words}")
            await asyncio.sleep(0.5)

    async def run(self) -> Result:
        """The story, the quiet after it, and a look at how it ended."""
        for _ in range(2 if self.dice.elected else 1):
            self._begin(self._election())
        meddling = asyncio.create_task(self._meddle())
        ending: dict[str, Any] = {}
        try:
            await self.story.people(self)
            self.dice.quiet = True
            self.note("quiet")
            await self._rest()
            ending = self.story.ending(self)
            self.invariants.at_the_end()
        except AssertionError as error:
            if not self.failures:
                self.fail(str(error))
        except Exception as error:  # noqa: BLE001 - whatever it is, the seed has failed
            self.fail(f"the simulation itself failed: {type(error).__name__}: {error}")
        self._over = True
        if self.failures:
            self.note(f"the end: {self._describe()}")
        meddling.cancel()
        tasks = [task for process in self._processes for task in process._tasks]
        for process in self._processes:
            process.die()
        await asyncio.gather(meddling, *tasks, return_exceptions=True)
        if self.repository is not None:
            self.repository.close()
        return Result(
            self.dice.seed, self.story.name, self.failures, self.dice.schedule, ending, self.passes,
            sum(1 for _ in self.writes), len(self.writes), self._loop.time(),
        )  # fmt: skip

    def _describe(self) -> str:
        """What is known, for a failed seed."""
        lines = []
        for kind in OURS:
            for thing in self.server.all(kind):
                status = thing.get("status") or {}
                lines.append(f"{kind} {thing['metadata']['name']} {status.get('phase')} run={status.get('run')}")
                lines += [f"    {key}: {status[key]}" for key in ("serving", "rollout", "stages") if status.get(key)]
                for c in status.get("conditions") or []:
                    lines.append(f"    {c['type']}={c['status']} {c['reason']}: {c.get('message')}")
        return "\n".join(lines)

    async def _rest(self) -> None:
        """What was delayed is done, the longest back-off and the next list are over; then nothing is written."""
        await asyncio.sleep(max(LAST_BACKOFF, RELIST_SECONDS) + 10.0)
        before = len(self.writes)
        await asyncio.sleep(REST_SECONDS)
        if len(self.writes) > before:
            raise self.fail(f"it does not come to rest: {self.writes[before:][-5:]}")


class Story:
    """A story: what people do, what the stages report, and what its end is."""

    name = ""
    bad: Mapping[str, float] = {}
    returns = False
    """Whether versions may have more than one rollout, because a person moves the pointer."""
    git = False
    """Whether there is a repository with a forge."""
    workload: JSON = {}  # noqa: RUF012
    """The Deployment of people's that serves."""

    async def people(self, simulation: Simulation) -> None:
        """What people do."""
        raise NotImplementedError

    def report(self, stage: str, version: str) -> JSON:
        """What a stage reports."""
        raise NotImplementedError

    def ending(self, simulation: Simulation) -> dict[str, Any]:
        """Everything that should not depend on what went wrong."""
        raise NotImplementedError


class _LastLog(logging.Handler):
    """Tracebacks of bugs, for the report."""

    def __init__(self, simulation: Simulation) -> None:
        super().__init__(logging.WARNING)
        self._simulation = simulation

    def emit(self, record: logging.LogRecord) -> None:
        self._simulation.last_log = self.format(record)


def tell(story: Story, seed: int | None) -> Result:
    """One story with one seed."""
    loop = VirtualLoop()
    log = logging.getLogger("ratchet_operator")
    log.propagate, log.level = False, logging.WARNING

    async def told() -> Result:
        simulation = Simulation(story, Dice(seed))
        handler = _LastLog(simulation)
        log.addHandler(handler)
        try:
            return await simulation.run()
        finally:
            log.removeHandler(handler)

    try:
        return loop.run_until_complete(told())
    finally:
        log.propagate, log.level = True, logging.NOTSET
        loop.close()


__all__ = ["Awaitable", "Dice", "Killed", "Result", "Simulation", "Story", "datetime", "tell"]
