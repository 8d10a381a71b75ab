"""A cycle's world for tests on the real API server: people who apply, a kubelet, a gateway, arms and a Prometheus.

The kubelet is the test: it says how pods fare. The other three are ports with the real ones' answers.
"""

import asyncio
import dataclasses
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from ratchet_api.cycle import ImprovementCycle
from ratchet_api.names import ARM_LABEL, CYCLE_LABEL, STAGE_LABEL, VERSION_LABEL
from ratchet_api.stage import Levels, StageReport
from ratchet_api.version import ModelVersion
from ratchet_operator.clients.arms import Server
from ratchet_operator.clients.events import Events
from ratchet_operator.clients.gateway import Routes
from ratchet_operator.clients.git.proposer import Proposer
from ratchet_operator.clients.kube import RESOURCES, Kube, Resource
from ratchet_operator.clients.objects import Deployment, Job, Pod
from ratchet_operator.clients.transport import JSON, Transport
from ratchet_operator.domain.analysis import ArmReadings, NoSample, Reading, Sample
from ratchet_operator.domain.letters import Letter
from ratchet_operator.domain.queries import ArmQueries
from ratchet_operator.errors import Unavailable
from ratchet_operator.metrics import Metrics
from ratchet_operator.reconcile import cycle as cycles
from ratchet_operator.reconcile import version as versions
from ratchet_operator.reconcile.background import Background
from ratchet_operator.reconcile.context import Context
from ratchet_operator.reconcile.courier import Courier, SenderPort
from ratchet_operator.reconcile.desk import Desk, ProposerPort
from ratchet_operator.reconcile.registrar import Registrar, RegistryPort
from ratchet_operator.reconcile.tracing import Tracer
from ratchet_operator.settings import Address, Images, Settings

NOW = "the time at which the kubelet writes it"
SETTINGS = Settings(
    gateway_namespace="gateway",
    prometheus_url="http://127.0.0.1:1",
    images=Images(trainer="ratchet/trainer:test", vllm="vllm/vllm-openai:test"),
    health=Address("127.0.0.1", 0),
    metrics=Address("127.0.0.1", 0),
)


def resource(kind: str) -> Resource:
    """Where a kind lives."""
    return RESOURCES[kind]


def digest(letter: str) -> str:
    """A digest of one letter, for reading."""
    return "sha256:" + letter * 64


def cycle_manifest(namespace: str, name: str = "assistant", **spec: Any) -> JSON:
    """A small cycle with quick rollouts."""
    suite = {"name": "house", "role": "target", "cases": {"configMap": {"name": "suites", "key": "house.jsonl"}}}
    return {
        "apiVersion": "ratchet.dev/v1alpha1",
        "kind": "ImprovementCycle",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "baseModel": {"uri": "s3://models/base"},
            "storage": {"uri": "s3://ratchet/assistant", "credentialsSecret": {"name": "storage"}},
            "evaluation": {"suites": [suite], "minImprovement": "0.01"},
            "serving": {"runtime": "transformers"},
            "rollout": {
                "steps": [{"weight": 25, "minTime": "1s"}, {"weight": 100, "minTime": "0s"}],
                "interval": "1s",
                "bake": "2s",
                "scaleDownDelay": "1s",
                "metrics": [{"name": "errors", "preset": "errors", "minSamples": 20}],
            },
            **spec,
        },
    }


def version_manifest(namespace: str, name: str, letter: str = "b", cycle: str = "assistant") -> JSON:
    """A version that a person applies, with a finished adapter."""
    return {
        "apiVersion": "ratchet.dev/v1alpha1",
        "kind": "ModelVersion",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"cycle": cycle, "adapter": {"uri": f"s3://ratchet/hand/{name}", "digest": digest(letter)}},
    }


def curated(letter: str = "d", examples: int = 40) -> JSON:
    """Report of a curate stage that found enough."""
    numbers = {"uri": f"s3://ratchet/assistant/datasets/{letter}", "digest": digest(letter), "interactions": 60}
    return {
        "stage": "curate",
        "outcome": "Succeeded",
        "reason": "Succeeded",
        "dataset": numbers
        | {"successful": examples, "categories": 3, "examples": examples, "characters": examples * 400},
    }


def trained(letter: str = "e") -> JSON:
    """Report of a train stage."""
    return {
        "stage": "train",
        "outcome": "Succeeded",
        "reason": "Succeeded",
        "artifact": {"uri": f"s3://ratchet/assistant/versions/{letter}", "digest": digest(letter)},
        "training": {"examples": 40, "step": 5, "steps": 5, "loss": "0.31"},
    }


def evaluated(
    better: int = 30,
    worse: int = 0,
    cases: int = 100,
    name: str = "house",
    p: str = "0.001",
    asks: str = "a1b2c3d4e5f6",
) -> JSON:
    """Report of an evaluate stage: of `cases`, the candidate alone passes `better`, the champion alone `worse`."""
    difference = (Decimal(better) - Decimal(worse)) / Decimal(cases)
    suite = {
        "name": name,
        "role": "target",
        "digest": asks,
        "cases": cases,
        "champion": str(Decimal(worse) / Decimal(cases)),
        "candidate": str(Decimal(better) / Decimal(cases)),
        "difference": str(difference),
        "lowerBound": str(difference - Decimal("0.08")),
        "pValue": p if better > worse else "0.9",
        "better": better,
        "worse": worse,
    }
    artifact = {"uri": "s3://ratchet/assistant/report", "digest": digest("f")}
    return {"stage": "evaluate", "outcome": "Succeeded", "reason": "Succeeded", "artifact": artifact, "suites": [suite]}


def at_levels(report: JSON, told: str) -> JSON:
    """The report of an evaluate stage at the error rates that its input, `told` as JSON, has for its targets."""
    levels = Levels.model_validate(json.loads(told)["levels"])
    suites = []
    for suite in report["suites"]:
        level = levels.of(suite["digest"])
        suites.append({"look": level.number, "alpha": str(level.alpha)} | suite)
    return report | {"suites": suites}


def exported() -> JSON:
    """Report of an export stage."""
    numbers = {"bytes": 5_000_000, "error": "0.0002", "effect": "1.0001", "agreement": "1"}
    one = {"format": "gguf-q8_0", "uri": "s3://ratchet/assistant/exports/q", "digest": digest("9")} | numbers
    hub = {"repository": "acme/assistant", "revision": "4" * 40, "tag": "assistant-1"}
    oci = {"format": "gguf-q8_0", "digest": digest("8"), "tag": "assistant-1-gguf-q8_0"}
    result = {"formats": [one], "hub": hub, "oci": [oci]}
    return {"stage": "export", "outcome": "Succeeded", "reason": "Succeeded", "export": result}


def failed(stage: str, reason: str, message: str = "as the test wants it") -> JSON:
    """Report of a stage that failed."""
    return {"stage": stage, "outcome": "Failed", "reason": reason, "message": message}


@dataclass
class Clock:
    """Real time, plus what the test adds."""

    ahead: timedelta = timedelta(0)

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.ahead += timedelta(seconds=seconds)


@dataclass
class Arms:
    """Every ready pod lists what it should, except the versions named."""

    lost: set[str] = field(default_factory=set)

    async def serves(self, servers: Sequence[Server], port: int, model_name: str) -> bool | None:
        return model_name not in self.lost if servers else None


@dataclass
class Gateway:
    """A gateway that has in force what the cycle's status asks for; `silent` ones do not answer."""

    world: "World"
    silent: bool = False

    async def routes(self) -> list[Routes] | None:
        if self.silent:
            return None
        cycle = await self.world.kube.get(ImprovementCycle, self.world.namespace, "assistant")
        serving = cycle.status.serving if cycle is not None else None
        arms = [arm for arm in (serving.stable, serving.candidate) if arm is not None] if serving is not None else []
        weights = {arm.version: arm.weight for arm in arms}
        return [Routes(cycles={f"{self.world.namespace}/assistant": weights})]


@dataclass
class Prometheus:
    """Counts of bad and all events by version; `down` answers nothing."""

    bad: dict[str, float] = field(default_factory=dict)
    all: float = 400.0
    down: bool = False
    progress: dict[str, float] = field(default_factory=dict)

    async def arm(self, queries: ArmQueries) -> ArmReadings:
        def read(name: str) -> Reading | None:
            query = getattr(queries, name)
            if query is None:
                return None
            if self.down:
                return NoSample("QueryError", "Prometheus does not answer")
            version = next((v for v in self.bad if f'version="{v}"' in query), None)
            values = {"bad": self.bad.get(version or "", 0.0), "all": self.all, "age": 1.0}
            return Sample(values.get(name, 1.0))

        return ArmReadings(**{f.name: read(f.name) for f in dataclasses.fields(ArmReadings)})

    async def number(self, query: str) -> float | None:
        return next((value for name, value in self.progress.items() if name in query), None)


class NoReceiver:
    """Nobody is to be told anything."""

    async def send(self, letter: Letter) -> None:
        raise AssertionError(f"no notice is expected here: {letter.body!r}")


class Killed(BaseException):
    """The operator's process ends here: no handler of ordinary errors sees it."""


class Counting:
    """A Transport that counts writes and can be told to fail at one of them."""

    def __init__(self, inner: Transport) -> None:
        self._inner = inner
        self.writes: list[tuple[str, str]] = []
        """All that were attempted."""
        self.done: list[tuple[str, str]] = []
        """Those that the API server carried out."""
        self.before: Callable[[int, str, str], None] = lambda number, method, path: None
        self.after: Callable[[int, str, str], None] = lambda number, method, path: None

    async def request(
        self,
        method: str,
        path: str,
        body: JSON | None = None,
        query: Mapping[str, str] | None = None,
        content_type: str | None = None,
        accept: str | None = None,
    ) -> JSON:
        if method == "get":
            return await self._inner.request(method, path, body, query, content_type, accept)
        number = len(self.writes)
        self.writes.append((method, path))
        self.before(number, method, path)
        answer = await self._inner.request(method, path, body, query, content_type, accept)
        self.done.append((method, path))
        self.after(number, method, path)
        return answer

    def outside(self, what: str) -> None:
        """A write that has been done to something else than the API server."""
        number = len(self.writes)
        self.writes.append(("git", what))
        self.done.append(("git", what))
        self.after(number, "git", what)


class World:
    """One namespace with its fakes, and the reconcilers run by hand."""

    def __init__(self, transport: Transport, namespace: str) -> None:
        self.namespace = namespace
        self.raw = transport
        self.transport = Counting(transport)
        self.kube = Kube(transport)
        """The test's own hands; not counted."""
        self.clock = Clock()
        self.arms = Arms()
        self.gateway = Gateway(self)
        self.prometheus = Prometheus()
        self.neighbours: list[Callable[[], Awaitable[None]]] = []
        """Others who write, each time that the kubelet does."""
        self.proposer: Callable[[], ProposerPort] = lambda: Proposer(lambda: None)
        """Made anew with every operator."""
        self.sender: SenderPort = NoReceiver()
        """Who takes notices; lives longer than an operator."""
        self.registry: RegistryPort | None = None
        """MLflow, if there is one; lives longer than an operator."""
        self.shop: Any = None
        """Its repository and forge, if it has some."""
        self.tracer: Tracer | None = None
        self.tolerated: tuple[type[Exception], ...] = ()
        """Errors after which the queue would come back to the object."""
        self.restart()

    def restart(self) -> None:
        """A new operator process: nothing in its memory."""
        kube = Kube(self.transport)
        background = Background()
        self.context = Context(
            kube=kube,
            events=Events(kube, "test"),
            prometheus=self.prometheus,
            gateway=self.gateway,
            arms=self.arms,
            settings=SETTINGS,
            metrics=Metrics(),
            background=background,
            desk=Desk(kube, self.proposer(), background),
            courier=Courier(kube, self.sender, background),
            registrar=Registrar(kube, self.registry, background) if self.registry is not None else None,
            tracer=self.tracer,
            now=self.clock,
        )

    async def established(self) -> None:
        """The API server answers 429 while it makes room for new CRDs."""
        async with asyncio.timeout(60):
            while True:
                try:
                    await self.kube.select(ImprovementCycle, self.namespace)
                    await self.kube.select(ModelVersion, self.namespace)
                    return
                except Unavailable:
                    await asyncio.sleep(0.1)

    # People

    async def apply(self, manifest: JSON) -> JSON:
        """Server-side apply by somebody who is not the operator. Raises Stalling with the API server's words."""
        meta = manifest["metadata"]
        path = resource(manifest["kind"]).path(meta["namespace"], meta["name"])
        query = {"fieldManager": "person", "force": "true"}
        return await self.raw.request("patch", path, manifest, query, "application/apply-patch+yaml")

    async def annotate(self, key: str, value: str | None, name: str = "assistant") -> None:
        """`kubectl annotate cycle`."""
        body = {"metadata": {"annotations": {f"ratchet.dev/{key}": value}}}
        path = resource("ImprovementCycle").path(self.namespace, name)
        await self.raw.request("patch", path, body, content_type="application/merge-patch+json")

    async def edit(self, spec: JSON, name: str = "assistant") -> None:
        """`kubectl patch cycle`."""
        path = resource("ImprovementCycle").path(self.namespace, name)
        await self.raw.request("patch", path, {"spec": spec}, content_type="application/merge-patch+json")

    async def remove(self, kind: str, name: str) -> None:
        """`kubectl delete`."""
        await self.kube.delete(kind, self.namespace, name)

    async def secret(self) -> None:
        """The credentials that the cycle names."""
        meta = {"namespace": self.namespace, "name": "storage"}
        await self.apply({"apiVersion": "v1", "kind": "Secret", "metadata": meta})

    async def suites(self, *keys: str, cases: str = "{}") -> None:
        """The ConfigMap with the suites."""
        meta = {"namespace": self.namespace, "name": "suites"}
        data = dict.fromkeys(keys, cases)
        await self.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data})

    async def storage(self) -> None:
        """Everything that the cycle names."""
        await self.secret()
        await self.suites("house.jsonl")

    # Looking

    async def cycle(self, name: str = "assistant") -> ImprovementCycle:
        found = await self.kube.get(ImprovementCycle, self.namespace, name)
        assert found is not None
        return found

    async def version(self, name: str) -> ModelVersion:
        found = await self.kube.get(ModelVersion, self.namespace, name)
        assert found is not None, f"there is no version {name}"
        return found

    async def versions(self) -> dict[str, ModelVersion]:
        return {v.metadata.name: v for v in await self.kube.select(ModelVersion, self.namespace)}

    async def jobs(self) -> dict[str, Job]:
        return {j.metadata.name: j for j in await self.kube.select(Job, self.namespace)}

    async def deployments(self) -> dict[str, Deployment]:
        found = await self.kube.select(Deployment, self.namespace)
        return {d.metadata.name: d for d in found if d.metadata.deletion_timestamp is None}

    async def pods(self, **labels: str) -> list[Pod]:
        selector = ",".join(f"{key}={value}" for key, value in labels.items())
        found = await self.kube.select(Pod, self.namespace, selector)
        return [pod for pod in found if pod.metadata.deletion_timestamp is None]

    # The operator

    async def step(self) -> bool:
        """One pass over everything; False when the operator was killed in it, and a new one has to go on."""
        try:
            await self._step()
        except Killed:
            await self.context.background.close()
            self.restart()
            return False
        except self.tolerated:
            return False
        return True

    async def _step(self) -> None:
        for cycle in await self.kube.select(ImprovementCycle, self.namespace):
            await cycles.reconcile(self.context, self.namespace, cycle.metadata.name)
        for version in await self.kube.select(ModelVersion, self.namespace):
            await versions.reconcile(self.context, self.namespace, version.metadata.name)
        await self.context.background.idle()

    async def settle(self) -> None:
        """Passes until one of them writes nothing."""
        for _ in range(60):
            before = len(self.transport.writes)
            rests = await self.step() and len(self.transport.writes) == before
            if rests and not self.context.desk.busy((self.namespace, "assistant")):
                return
        raise AssertionError(f"the operator does not come to rest: {self.transport.writes[-10:]}")

    async def until(self, what: Callable[[], Awaitable[bool]], seconds: float = 60.0, tick: float = 0.0) -> None:
        """Passes, with `tick` seconds of the clock before each, until a condition holds."""
        deadline = asyncio.get_running_loop().time() + seconds
        while not await what():
            assert asyncio.get_running_loop().time() < deadline, f"not within {seconds} s: {await self.describe()}"
            self.clock.advance(tick)
            await self.kubelet()
            await self.step()

    async def describe(self) -> str:
        """What is known, for a failed wait."""
        cycle = await self.cycle()
        lines = [f"cycle {cycle.status.phase} run={cycle.status.run} rollout={cycle.status.rollout}"]
        lines += [f"  {c.type}={c.status} {c.reason}: {c.message}" for c in cycle.status.conditions]
        for name, version in (await self.versions()).items():
            lines.append(f"version {name} {version.status.phase} {version.status.stages}")
            lines += [f"  {c.type}={c.status} {c.reason}: {c.message}" for c in version.status.conditions]
        return "\n".join(lines)

    # The kubelet

    async def kubelet(self) -> None:
        """Every pod of an arm runs and is ready."""
        for pod in await self.pods(**{ARM_LABEL: "true"}):
            if not pod.ready:
                await self.pod_status(pod.metadata.name, running("server"))
        for neighbour in self.neighbours:
            await neighbour()

    async def pod_status(self, name: str, status: JSON) -> None:
        """What a kubelet would write, by the world's clock."""
        now = self.clock().isoformat(timespec="seconds").replace("+00:00", "Z")
        status = json.loads(json.dumps(status).replace(NOW, now))
        path = f"/api/v1/namespaces/{self.namespace}/pods/{name}/status"
        body = {"status": status}
        await self.raw.request("patch", path, body, content_type="application/strategic-merge-patch+json")

    async def stage_pod(self, stage: str, version: str = "") -> Pod:
        """The unfinished pod of a stage, once the Job controller has made it."""
        labels = {STAGE_LABEL: stage, CYCLE_LABEL: "assistant"} | ({VERSION_LABEL: version} if version else {})
        async with asyncio.timeout(60):
            while True:
                pods = [p for p in await self.pods(**labels) if p.status.phase not in ("Succeeded", "Failed")]
                if pods:
                    return pods[0]
                await asyncio.sleep(0.05)

    async def finish(self, stage: str, report: JSON | None, code: int = 0, version: str = "", **extra: Any) -> None:
        """The stage's pod ends with this report and exit code; returns when its Job has noticed."""
        pod = await self.stage_pod(stage, version)
        if stage == "evaluate" and report is not None and "suites" in report:
            name = pod.metadata.labels["batch.kubernetes.io/job-name"]
            path = f"/api/v1/namespaces/{self.namespace}/configmaps/{name}"
            report = at_levels(report, (await self.raw.request("get", path))["data"]["stage.json"])
        message = StageReport.model_validate(report).encode().decode() if report is not None else ""
        await self.pod_status(pod.metadata.name, terminated("stage", code, message, **extra))
        job = pod.metadata.labels["batch.kubernetes.io/job-name"]
        async with asyncio.timeout(60):
            while True:
                found = (await self.jobs()).get(job)
                if found is None or found.condition("Complete") or found.condition("Failed"):
                    return
                await asyncio.sleep(0.05)


def running(container: str) -> JSON:
    """Status of a pod whose container runs and is ready."""
    now = NOW
    return {
        "phase": "Running",
        "podIP": "127.0.0.1",
        "podIPs": [{"ip": "127.0.0.1"}],
        "conditions": [
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": now},
            {"type": "Initialized", "status": "True", "lastTransitionTime": now},
            {"type": "ContainersReady", "status": "True", "lastTransitionTime": now},
            {"type": "Ready", "status": "True", "lastTransitionTime": now},
        ],
        "containerStatuses": [
            {
                "name": container,
                "ready": True,
                "restartCount": 0,
                "image": "x",
                "imageID": "",
                "state": {"running": {"startedAt": now}},
            }
        ],
    }


def terminated(container: str, code: int, message: str = "", reason: str = "", **extra: Any) -> JSON:
    """Status of a pod whose container has ended."""
    now = NOW
    end = {"exitCode": code, "reason": reason or ("Completed" if code == 0 else "Error"), "message": message}
    return {
        "phase": "Succeeded" if code == 0 else "Failed",
        "containerStatuses": [
            {
                "name": container,
                "ready": False,
                "restartCount": 0,
                "image": "x",
                "imageID": "",
                "state": {"terminated": end | {"finishedAt": now, "startedAt": now}},
            }
        ],
        **extra,
    }
