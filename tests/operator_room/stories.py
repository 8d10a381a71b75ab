"""Stories that tests tell in several ways: told once, told with the operator killed at any point."""

import json
from typing import Any

from operator_fake import FakeApi
from operator_neighbours import METRICS, Neighbours, by_route, route_manifest
from operator_world import (
    World,
    curated,
    cycle_manifest,
    evaluated,
    exported,
    resource,
    terminated,
    trained,
    version_manifest,
)

from ratchet_api.names import VERSION_LABEL
from ratchet_api.stage import ExitCode, StageReport
from ratchet_operator.clients.objects import Pod, TrainJob
from ratchet_operator.clients.traffic import Service
from ratchet_operator.clients.transport import JSON, NotFound
from ratchet_operator.clients.webhooks import Undelivered
from ratchet_operator.domain.letters import Letter


async def serving(world: World, **spec: Any) -> None:
    """The base model serves."""
    await world.storage()
    await world.apply(cycle_manifest(world.namespace, **spec))

    async def ready() -> bool:
        stable = (await world.cycle()).status.serving.stable
        return stable is not None and stable.ready_replicas == stable.replicas > 0

    await world.until(ready)
    await world.settle()


async def dataset(world: World, request: str = "now", **more: Any) -> None:
    """A run is asked for; its dataset is there, and its version waits for what comes next. `more`: of the report."""
    await world.annotate("run", request)
    await world.settle()
    await world.finish("curate", curated(**more))
    await world.settle()


async def run(world: World, letter: str = "e") -> None:
    """A run is asked for; its version is trained, proven and accepted."""
    await dataset(world, letter)
    await world.finish("train", trained(letter))
    await world.settle()
    await world.finish("evaluate", evaluated())


async def champion(world: World, name: str) -> None:
    """The version takes all traffic, and the old arm is gone."""

    async def alone() -> bool:
        return list(await world.deployments()) == [f"{name}-arm"]

    await world.until(alone, tick=0.5)
    await resting(world)


async def forward(world: World) -> None:
    """One run, from the annotation to the champion."""
    await serving(world)
    await run(world)
    await champion(world, "assistant-1")


TRAINING_RUNTIME = {
    "apiVersion": "trainer.kubeflow.org/v1alpha1",
    "kind": "ClusterTrainingRuntime",
    "metadata": {"name": "ratchet"},
}


async def finish_nodes(world: World, *ends: tuple[int, JSON | None]) -> None:
    """The pods of the present TrainJob end with these exit codes and reports, node 0 last."""
    pods: list[Pod] = []

    async def made() -> bool:
        found = await world.pods(**{"batch.kubernetes.io/job-completion-index": "0"})
        pods[:] = [pod for pod in found if pod.status.phase not in ("Succeeded", "Failed")]
        return bool(pods)

    await world.until(made)
    leader = pods[0].metadata.name
    for index, (code, report) in reversed(list(enumerate(ends))):
        message = StageReport.model_validate(report).encode().decode() if report is not None else ""
        await world.pod_status(leader.replace("-node-0-0-", f"-node-0-{index}-"), terminated("node", code, message))


async def by_train_job(world: World) -> None:
    """A training on two nodes: one is lost, the next attempt ends well, and what was left of both is removed."""
    await world.raw.request("post", resource("ClusterTrainingRuntime").path(""), dict(TRAINING_RUNTIME))
    await serving(world, training={"launcher": "TrainJob", "nodes": 2})
    await dataset(world)
    await finish_nodes(world, (int(ExitCode.PREEMPTED), None), (int(ExitCode.TRY_AGAIN), None))
    await world.settle()
    world.clock.advance(15)
    await world.settle()
    await finish_nodes(world, (0, trained()), (0, None))
    await world.settle()
    await world.finish("evaluate", evaluated())
    await champion(world, "assistant-1")
    assert sorted(await train_jobs(world)) == ["assistant-1-train-0", "assistant-1-train-1"]
    world.clock.advance(86_400)
    await world.settle()
    assert await train_jobs(world) == []


async def train_jobs(world: World) -> list[str]:
    """Names of those that are there."""
    try:
        return [one.metadata.name for one in await world.kube.select(TrainJob, world.namespace)]
    except NotFound:
        return []  # Kubeflow Trainer is not installed


def with_holdout() -> JSON:
    """An evaluation with a suite that is opened last."""
    evaluation: JSON = cycle_manifest("")["spec"]["evaluation"]
    return evaluation | {"suites": [*evaluation["suites"], evaluation["suites"][0] | {"name": "vault", "sealed": True}]}


async def unsealed(world: World) -> None:
    """A version passes the open suites, then the sealed one, and becomes champion."""
    await serving(world, evaluation=with_holdout())
    await run(world)
    await world.settle()
    await world.finish("evaluate", evaluated(name="vault", asks="0123456789ab"))
    await champion(world, "assistant-1")


async def back(world: World) -> None:
    """A hand-applied version that passes its gate and does harm."""
    await serving(world)
    await world.apply(version_manifest(world.namespace, "bad"))
    await world.settle()
    await world.finish("evaluate", evaluated())
    await harmed(world)


def rollout(**more: Any) -> JSON:
    """Quick steps, judged by series that are not the gateway's."""
    return cycle_manifest("")["spec"]["rollout"] | {"metrics": METRICS} | more


async def routed(world: World, neighbours: Neighbours | None = None) -> Neighbours:
    """The base model serves behind an HTTPRoute."""
    neighbours = neighbours or Neighbours(world)
    world.neighbours = [neighbours]
    await world.apply(route_manifest(world.namespace))
    await serving(world, serving=by_route(), rollout=rollout())

    async def whole() -> bool:
        stable = (await world.cycle()).status.serving.stable
        return stable is not None and stable.observed_weight == 100

    await world.until(whole)
    return neighbours


async def counted(world: World) -> Neighbours:
    """The base model serves with four pods behind one Service."""
    neighbours = Neighbours(world)
    world.neighbours = [neighbours]
    await serving(world, serving={"runtime": "transformers", "router": "replicas", "replicas": 4}, rollout=rollout())

    async def whole() -> bool:
        stable = (await world.cycle()).status.serving.stable
        return stable is not None and stable.observed_weight == 100

    await world.until(whole)
    return neighbours


async def proven(world: World, name: str, letter: str = "b") -> None:
    """A hand-applied version passes its gate."""
    await world.apply(version_manifest(world.namespace, name, letter))
    await world.settle()
    await world.finish("evaluate", evaluated())


async def forward_by_route(world: World) -> None:
    """A version becomes champion by the weights of an HTTPRoute."""
    await routed(world)
    await proven(world, "good")
    await champion(world, "good")


async def back_by_route(world: World) -> None:
    """A version does harm behind an HTTPRoute."""
    await routed(world)
    await proven(world, "bad")
    await harmed(world)


async def forward_by_replicas(world: World) -> None:
    """A version becomes champion by numbers of pods."""
    await counted(world)
    await proven(world, "good")
    await champion(world, "good")


async def back_by_replicas(world: World) -> None:
    """A version does harm behind the Service that it shares."""
    await counted(world)
    await proven(world, "bad")
    await harmed(world)


WORKLOAD = "chat"


def workload_manifest(namespace: str, **spec: Any) -> JSON:
    """A Deployment that a person keeps in Git."""
    server = {
        "name": "server",
        "image": "example.com/server:1",
        "args": ["--model", "$(RATCHET_MODEL_DIR)/base", "--served-model-name", "$(RATCHET_BASE_NAME)"],
        "env": [{"name": "THREADS", "value": "2"}],
        "ports": [{"name": "http", "containerPort": 8000}],
        "volumeMounts": [{"name": "cache", "mountPath": "/cache"}],
    }
    pod = {"containers": [server], "volumes": [{"name": "cache", "emptyDir": {}}]}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": WORKLOAD, "namespace": namespace, "labels": {"team": "chat"}},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"app": WORKLOAD}},
            "template": {"metadata": {"labels": {"app": WORKLOAD, "team": "chat"}}, "spec": pod},
            **spec,
        },
    }


async def settled_in_place(world: World, version: str) -> None:
    """The Deployment serves the version, alone."""

    async def home() -> bool:
        stable = (await world.cycle()).status.serving.stable
        mine = stable is not None and (stable.version, stable.deployment) == (version, WORKLOAD)
        return mine and list(await world.deployments()) == [WORKLOAD]

    await world.until(home, tick=0.5)
    await resting(world)


def placed(bake: str = "2s", **serving_: Any) -> JSON:
    """Spec of a cycle that serves in people's Deployment."""
    quick = cycle_manifest("")["spec"]["rollout"] | {"bake": bake}
    return {"serving": {"workload": {"name": WORKLOAD}} | serving_, "rollout": quick}


LONG = "300s"
"""A bake that no busy machine lives through before the Deployment is rolled."""


async def in_place(world: World, bake: str = "2s", **serving_: Any) -> None:
    """The base model serves in a Deployment that was there before."""
    await world.apply(workload_manifest(world.namespace))
    await serving(world, **placed(bake, **serving_))
    await settled_in_place(world, "assistant-0")


async def forward_in_place(world: World) -> None:
    """A version becomes champion in people's Deployment."""
    await in_place(world)
    await proven(world, "good")
    await settled_in_place(world, "good")


async def back_in_place(world: World) -> None:
    """A version does harm beside people's Deployment."""
    await in_place(world)
    await proven(world, "bad")
    world.prometheus.bad["bad"] = 200.0
    await sent_back(world)


async def back_from_the_bake_in_place(world: World) -> None:
    """A version does harm when people's Deployment serves it already."""
    await in_place(world, LONG)
    await proven(world, "bad")
    await rolled(world, "bad")
    world.prometheus.bad["bad"] = 200.0
    await sent_back(world)


async def rolled(world: World, version: str) -> None:
    """It bakes, and the Deployment has been rolled to it."""

    async def there() -> bool:
        candidate = (await world.cycle()).status.serving.candidate
        return candidate is not None and (candidate.version, candidate.deployment) == (version, WORKLOAD)

    await world.until(there, tick=0.1)


async def sent_back(world: World) -> None:
    """The version `bad` is rejected, and the Deployment serves the base model alone."""

    async def rejected() -> bool:
        return (await world.version("bad")).status.phase == "Rejected"

    await world.until(rejected, tick=0.5)
    await settled_in_place(world, "assistant-0")


async def harmed(world: World) -> None:
    """The version `bad` fails its check, and is gone."""
    world.prometheus.bad["bad"] = 200.0

    async def rejected() -> bool:
        gone = list(await world.deployments()) == ["assistant-0-arm"]
        return gone and (await world.version("bad")).status.phase == "Rejected"

    await world.until(rejected, tick=0.5)
    await resting(world)


async def deleted_in_the_canary(world: World) -> None:
    """Somebody deletes the candidate's Deployment, and the pods of the new one never become ready."""
    await serving(world)
    if isinstance(world.raw, FakeApi):
        world.raw.now = world.clock
    await proven(world, "other")

    async def begun() -> bool:
        found = (await world.cycle()).status.rollout
        return found is not None and found.phase == "Canary"

    await world.until(begun, tick=0.5)
    await world.remove("Deployment", "other-arm")

    async def over() -> bool:
        found = (await world.cycle()).status.rollout
        return found is not None and found.phase == "Done" and list(await world.deployments()) == ["assistant-0-arm"]

    while not await over():
        world.clock.advance(1)
        await world.step()
    await resting(world)


async def resting(world: World) -> None:
    """Until neither the operator nor its neighbours have anything to do."""
    await world.settle()
    writes = -1
    while writes != len(world.transport.writes):
        writes = len(world.transport.writes)
        await world.kubelet()
        await world.settle()


async def there_and_back(world: World) -> None:
    """A person names the base model again: it returns without gate and steps."""
    await forward(world)
    await world.edit({"serving": {"version": "assistant-0"}})
    await champion(world, "assistant-0")


EXPORT: JSON = {
    "formats": ["gguf-q8_0"],
    "license": "Apache-2.0",
    "hub": {"repository": "acme/assistant", "tokenSecret": {"name": "storage"}},
    "oci": {"repository": "registry.example.com/models/assistant", "credentialsSecret": {"name": "storage"}},
}


async def forward_and_exported(world: World) -> None:
    """A champion is exported; its first attempt finds a registry that is down."""
    await serving(world, export=EXPORT)
    await run(world)
    await champion(world, "assistant-1")
    down = {"stage": "export", "outcome": "Failed", "reason": "InfrastructureError", "message": "the registry is down"}
    await world.finish("export", down, 75)
    await world.settle()

    async def again() -> bool:
        return "assistant-1-export-1" in await world.jobs()

    await world.until(again, tick=4)
    await world.finish("export", exported())
    await world.settle()


def _test(**settings: Any) -> dict[str, Any]:
    """A rollout by an A/B test, quick like the manifest's own."""
    metrics = [{"name": "errors", "preset": "errors", "minSamples": 20}]
    quick = {"interval": "1s", "bake": "2s", "scaleDownDelay": "1s", "metrics": metrics}
    return quick | {"strategy": "abTest", "abTest": {"minSamples": 20, "maxDuration": "4s"} | settings}


async def _tested(world: World, outcome: str, /, **settings: Any) -> None:
    """A version that a person applies is tested against the base model, and comes to its end."""
    await serving(world, rollout=_test(**settings))
    world.prometheus.bad["assistant-0"] = 200.0
    await world.apply(version_manifest(world.namespace, "other"))
    await world.settle()
    await world.finish("evaluate", evaluated())

    async def ended() -> bool:
        history = (await world.cycle()).status.history
        return len(await world.deployments()) == 1 and [entry.outcome for entry in history] == [outcome]

    await world.until(ended, tick=0.5)
    await world.settle()


async def tested_better(world: World) -> None:
    """The base model's thumbs are down half of the time, the candidate's never."""
    await _tested(world, "Promoted")


async def tested_worse(world: World) -> None:
    """Half of the base model's conversations are resolved, none of the candidate's."""
    query = 'x{version="{{ version }}"}'
    await _tested(world, "RolledBack", outcome={"good": query, "all": query})


async def tested_nothing(world: World) -> None:
    """The time is over before there are outcomes enough."""
    await _tested(world, "Returned", minSamples=1_000_000)


async def ending(world: World) -> dict[str, Any]:
    """Everything that should not depend on how often the operator died."""
    status = (await world.cycle()).status
    made = sorted(path for method, path in world.transport.writes if method == "post" and path.endswith("/jobs"))
    shop = world.shop
    return {
        "pulls": shop and sorted((b[:-9], [p.state for p in pulls]) for b, pulls in shop.forge.pulls.items()),
        "branches": shop and sorted(branch[:-9] for branch in shop.repository.branches() if branch != "main"),
        "proposal": status.promotion and (status.promotion.kind, status.promotion.version, status.promotion.state),
        "phase": status.phase,
        "stable": status.serving.stable and (status.serving.stable.version, status.serving.stable.weight),
        "candidate": status.serving.candidate,
        "retired": status.serving.retired,
        "rejected": [(entry.version, entry.reason) for entry in status.rejected],
        "lastGood": [entry.version for entry in status.last_good],
        "history": [(entry.version, entry.run, entry.outcome) for entry in status.history],
        "run": status.run and (status.run.number, status.run.outcome, status.run.version),
        "versions": {name: (v.status.phase, v.status.outcome) for name, v in (await world.versions()).items()},
        "jobs": sorted(await world.jobs()),
        "train jobs": sorted(await train_jobs(world)),
        "attempts": [
            (name, stage.stage, stage.attempts.total)
            for name, v in (await world.versions()).items()
            for stage in v.status.stages
        ],
        "exports": [
            (name, v.status.export.work.attempts.total, v.status.export.work.reason, v.status.export.result)
            for name, v in (await world.versions()).items()
            if v.status.export is not None
        ],
        "deployments": sorted(await world.deployments()),
        "some job was made": bool(made),
        "where it serves": status.serving.stable and status.serving.stable.deployment,
        "templates": {name: d.spec.template for name, d in (await world.deployments()).items()},
        "services": await services(world),
        "weights": [route.weights(0) for route in await Neighbours(world).routes()],
    }


async def services(world: World) -> dict[str, str | None]:
    """Service -> version that it selects."""
    found = await world.kube.select(Service, world.namespace)
    return {service.metadata.name: service.spec.selector.get(VERSION_LABEL) for service in found}


async def proposed(world: World) -> None:
    """promotion.mode Git: accepted, proposed, merged, rolled out, does harm, the way back proposed and merged."""
    await world.shop.open()
    await run(world)
    await world.settle()
    await world.shop.settled("assistant-1")
    world.prometheus.bad["assistant-1"] = 300.0

    async def rejected() -> bool:
        gone = list(await world.deployments()) == ["assistant-0-arm"]
        return gone and (await world.version("assistant-1")).status.phase == "Rejected"

    await world.until(rejected, tick=0.5)
    await world.settle()
    await world.shop.settled("assistant-0")
    await world.settle()


class Receiver:
    """Takes notices, but fails at the first attempt at each third one."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.taken: list[JSON] = []
        self._failed: set[str] = set()

    async def send(self, letter: Letter) -> None:
        event = json.loads(letter.body)
        if event["id"] not in self._failed and len({one["id"] for one in self.taken}) % 3 == 1:
            self._failed.add(event["id"])
            raise Undelivered("the receiver answers 500")
        self.taken.append(event)
        self._world.transport.outside("a notice")

    def events(self) -> list[str]:
        """What it was told, each notice once."""
        return [event["type"].rpartition(".")[2] for event in {one["id"]: one for one in self.taken}.values()]


TOLD = ["BakeStarted", "CanaryStarted", "GateAccepted", "Promoted", "RunStarted", "StepAdvanced"]
"""Held is left out: whether a step waits for evidence depends on how long the operator was away."""


async def notified(world: World) -> None:
    """One run, from the annotation to the champion, with everything told to a webhook that fails now and then."""
    receiver = Receiver(world)
    world.sender = receiver
    world.restart()
    sink = {"name": "ops", "url": "https://hooks.example.com/ratchet", "events": TOLD}
    await serving(world, notifications=[sink])
    await run(world)
    await champion(world, "assistant-1")

    async def told() -> bool:
        return (await world.cycle()).status.notifications is None

    await world.until(told, tick=2.0)
    await world.settle()
    assert sorted(receiver.events()) == TOLD, "each once, none lost"
    for event in receiver.taken:
        same = [other for other in receiver.taken if other["id"] == event["id"]]
        assert all(other == event for other in same), "a repeated notice is the same to the letter"
