"""The routing table of a real API server: what the gateway follows, and what it keeps when the server is away."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from ratchet_api.names import ARM_LABEL, CYCLE_LABEL, VERSION_LABEL
from ratchet_gateway.metrics import Metrics
from ratchet_gateway.observe import PodKey, build_table, parse_cycle, parse_pod
from ratchet_gateway.routes import Cycle, Pod, Table
from ratchet_gateway.watch import ClusterRoutes, Expired, Reflector
from ratchet_local import Platform

from .support import eventually

TIME = "2026-11-22T00:00:00.000000Z"


def arm(version: str, weight: int) -> dict[str, Any]:
    return {"version": version, "deployment": f"{version}-arm", "modelName": f"m-{version}", "port": 8000,
            "weight": weight, "since": TIME}  # fmt: skip


def cycle_object(name: str = "assistant", **serving: Any) -> dict[str, Any]:
    suite = {"name": "t", "role": "target", "cases": {"configMap": {"name": "suites", "key": "t.jsonl"}}}
    return {
        "apiVersion": "ratchet.dev/v1alpha1", "kind": "ImprovementCycle", "metadata": {"name": name},
        "spec": {
            "baseModel": {"uri": "s3://models/base"},
            "storage": {"uri": "s3://ratchet/assistant", "endpoint": "http://s3:8333", "region": "eu-west-1"},
            "evaluation": {"suites": [suite]},
        },
        "status": {"serving": serving},
    }  # fmt: skip


def pod_object(version: str, number: int, *, cycle: str = "assistant", arm_label: str = "true") -> dict[str, Any]:
    labels = {CYCLE_LABEL: cycle, VERSION_LABEL: version, ARM_LABEL: arm_label}
    spec = {"containers": [{"name": "server", "image": "server"}], "schedulerName": "nobody"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"{version}-{number}", "labels": labels},
        "spec": spec,
    }


def pod_status(address: str, *, ready: bool = True, phase: str = "Running") -> dict[str, Any]:
    condition = {"type": "Ready", "status": "True" if ready else "False", "lastTransitionTime": "2026-11-22T00:00:00Z"}
    return {"phase": phase, "podIP": address, "podIPs": [{"ip": address}], "conditions": [condition]}


def parsed_pod(version: str, number: int, status: dict[str, Any], **meta: Any) -> Any:
    raw = pod_object(version, number)
    raw["metadata"] |= {"uid": f"{version}-{number}", "namespace": "default", **meta}
    return parse_pod({**raw, "status": status})


# Pure


def test_a_table_of_what_is_ready() -> None:
    cycle = parse_cycle(cycle_object(stable=arm("a-1", 95), candidate=arm("a-2", 5)))
    pods = [
        parsed_pod("a-1", 1, pod_status("10.0.0.1")),
        parsed_pod("a-1", 2, pod_status("10.0.0.2", ready=False)),
        parsed_pod("a-1", 3, pod_status("10.0.0.3", phase="Pending")),
        parsed_pod("a-1", 4, pod_status("10.0.0.4"), deletionTimestamp=TIME),
        parsed_pod("a-1", 5, {}),
        parsed_pod("a-2", 1, pod_status("10.0.1.1")),
        parsed_pod("a-9", 1, pod_status("10.0.9.1")),
        parsed_pod("a-1", 6, pod_status("10.0.0.6"), namespace="elsewhere"),
    ]
    found = build_table([cycle], pods, {}).cycles["default", "assistant"]
    assert [[str(pod.chat_url.host) for pod in a.pods] for a in found.arms] == [["10.0.0.1"], ["10.0.1.1"]]
    assert [(a.version, a.model_name, a.weight) for a in found.arms] == [("a-1", "m-a-1", 95), ("a-2", "m-a-2", 5)]
    assert found.weights() == {"a-1": 95, "a-2": 5}
    assert (found.storage.uri, found.storage.endpoint) == ("s3://ratchet/assistant", "http://s3:8333")


def test_load_counters_live_on_while_the_pod_does() -> None:
    known: dict[PodKey, Pod] = {}
    cycle, pod = parse_cycle(cycle_object(stable=arm("a-1", 100))), parsed_pod("a-1", 1, pod_status("10.0.0.1"))

    def only() -> Pod:
        [found] = build_table([cycle], [pod], known).cycles["default", "assistant"].arms[0].pods
        return found

    only().inflight = 3
    assert only().inflight == 3
    build_table([cycle], [], known)
    assert known == {}
    assert only().inflight == 0


def test_fields_of_a_newer_operator_do_not_stop_routing() -> None:
    raw = cycle_object(stable={**arm("a-1", 100), "colour": "blue"})
    raw["spec"] |= {"novelty": 1}
    raw["spec"]["storage"] |= {"class": "cold"}
    assert build_table([parse_cycle(raw)], [], {}).cycles["default", "assistant"].weights() == {"a-1": 100}


def test_former_versions_are_known_for_late_feedback() -> None:
    raw = cycle_object(stable=arm("a-4", 100), retired=[{"version": "a-3", "deployment": "a-3-arm", "since": TIME}])
    raw["status"] |= {"lastGood": [{"version": "a-1"}, {"version": "a-3"}], "rejected": [{"version": "a-2"}]}
    assert build_table([parse_cycle(raw)], [], {}).cycles["default", "assistant"].former == ("a-2", "a-1", "a-3")


def item(uid: str, name: str = "assistant", **fields: Any) -> dict[str, Any]:
    return {**cycle_object(name), **fields, "metadata": {"name": name, "uid": uid, "resourceVersion": "5"}}


async def _nothing(**options: Any) -> Any:
    raise AssertionError("the API is not asked here")


def test_an_object_that_cannot_be_understood_keeps_its_last_form() -> None:
    changes: list[int] = []
    reflector = Reflector("cycles", _nothing, parse_cycle, lambda: changes.append(1))
    reflector._take({"type": "ADDED", "object": item("u1")})
    reflector._take({"type": "MODIFIED", "object": item("u1", spec={"storage": 5})})
    reflector._take({"type": "ADDED", "object": item("u2", spec={})})
    assert reflector.items["u1"].spec.storage.uri == "s3://ratchet/assistant"
    assert reflector.items.keys() == {"u1"}
    reflector._take({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "9"}}})
    reflector._take({"type": "DELETED", "object": item("u1")})
    assert reflector.items == {}


@pytest.mark.parametrize(
    "event", [{"type": "ERROR", "object": {"code": 410}}, {"kind": "Status", "code": 410, "message": "too old"}]
)
def test_a_version_that_is_too_old_is_listed_anew(event: dict[str, Any]) -> None:
    with pytest.raises(Expired):
        Reflector("cycles", _nothing, parse_cycle, lambda: None)._take(event)


# Against the API server


class Scene:
    """A namespace, and a gateway's view of it."""

    def __init__(self, platform: Platform, namespace: str) -> None:
        self.platform = platform
        self.namespace = namespace
        self.tables: list[Table] = []
        self.metrics = Metrics()
        self.running: asyncio.Task[None] | None = None

    async def kubectl(self, *args: str, input: dict[str, Any] | None = None) -> str:
        text = None if input is None else json.dumps(input)
        return await asyncio.to_thread(self.platform.kubectl, "-n", self.namespace, *args, input=text)

    async def apply(self, thing: dict[str, Any]) -> None:
        await self.kubectl("apply", "-f", "-", input={key: thing[key] for key in thing if key != "status"})

    async def status(self, kind: str, name: str, status: dict[str, Any]) -> None:
        patch = json.dumps({"status": status})
        await self.kubectl("patch", kind, name, "--subresource=status", "--type=merge", "-p", patch)

    @property
    def cycle(self) -> Cycle | None:
        return self.tables[-1].cycles.get((self.namespace, "assistant")) if self.tables else None

    def pods(self, index: int = 0) -> list[str]:
        cycle = self.cycle
        return [] if cycle is None else sorted(str(pod.chat_url.host) for pod in cycle.arms[index].pods)

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        def holds() -> bool:
            assert self.running is not None
            assert not self.running.done(), self.running.exception()
            return condition()

        await eventually(holds, f"{what}; the table is {self.tables[-1:]}")

    @asynccontextmanager
    async def follow(self, *namespaces: str) -> AsyncIterator[ClusterRoutes]:
        routes = ClusterRoutes(namespaces, self.tables.append, self.metrics)
        self.running = asyncio.create_task(routes.run())
        try:
            yield routes
        finally:
            self.running.cancel()
            await asyncio.wait({self.running})


@pytest.fixture
def scene(cluster: Platform, namespace: str, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    return Scene(cluster, namespace)


async def prepare(scene: Scene) -> None:
    await scene.apply(cycle_object())
    await scene.status("cycle", "assistant", {"serving": {"stable": arm("assistant-1", 100)}})
    await scene.apply(pod_object("assistant-1", 1))
    await scene.status("pod", "assistant-1-1", pod_status("127.0.5.1"))


@pytest.mark.apiserver
@pytest.mark.parametrize("everywhere", [True, False])
async def test_the_table_follows_the_cluster(scene: Scene, everywhere: bool) -> None:
    await prepare(scene)
    async with scene.follow(*([] if everywhere else [scene.namespace])) as routes:
        await scene.until(lambda: scene.pods() == ["127.0.5.1"], "the first lists")
        assert routes.synced
        await scene.apply(pod_object("assistant-1", 2))
        await scene.status("pod", "assistant-1-2", pod_status("127.0.5.2"))
        await scene.until(lambda: scene.pods() == ["127.0.5.1", "127.0.5.2"], "a second pod")
        await scene.status("pod", "assistant-1-1", pod_status("127.0.5.1", ready=False))
        await scene.until(lambda: scene.pods() == ["127.0.5.2"], "a pod that is not ready any more")
        await scene.kubectl("delete", "pod", "assistant-1-2", "--grace-period=0", "--force")
        await scene.until(lambda: scene.pods() == [], "a pod that is gone")
        serving = {"stable": arm("assistant-1", 75), "candidate": arm("assistant-2", 25)}
        await scene.status("cycle", "assistant", {"serving": serving})
        await scene.until(
            lambda: scene.cycle is not None and scene.cycle.weights() == {"assistant-1": 75, "assistant-2": 25},
            "a weight",
        )
        await scene.apply(pod_object("assistant-2", 1))
        await scene.apply(pod_object("assistant-2", 2, arm_label="false"))
        for number in (1, 2):
            await scene.status("pod", f"assistant-2-{number}", pod_status(f"127.0.6.{number}"))
        await scene.until(lambda: scene.pods(1) == ["127.0.6.1"], "the candidate's pod, and no pod without the label")
        await scene.kubectl("delete", "cycle", "assistant")
        await scene.until(lambda: scene.cycle is None, "a cycle that is gone")


@pytest.mark.apiserver
async def test_another_namespace_is_not_seen(scene: Scene) -> None:
    await prepare(scene)
    async with scene.follow("kube-public") as routes:
        await scene.until(lambda: routes.synced and bool(scene.tables), "the first lists")
        assert scene.cycle is None


@pytest.mark.apiserver
async def test_watches_that_end_or_expire_are_taken_up_again(scene: Scene) -> None:
    """A watch that ended goes on from where it was; one from before the server's memory begins with a new list."""
    await prepare(scene)
    async with scene.follow(scene.namespace) as routes:
        await scene.until(lambda: scene.pods() == ["127.0.5.1"], "the first lists")
        for reflector in (*routes._cycles, *routes._pods):
            reflector._version = "1"  # compacted long ago, as after a long absence
        await asyncio.to_thread(scene.platform.stop, "kube-apiserver")
        await scene.until(lambda: _up(scene) == 0, "the gateway to notice")
        assert scene.pods() == ["127.0.5.1"], "the last table stays in force"
        await asyncio.to_thread(scene.platform.start, "kube-apiserver")
        await scene.until(lambda: _up(scene) == 2, "the gateway to come back")
        await scene.status("pod", "assistant-1-1", pod_status("127.0.5.9"))
        await scene.until(lambda: scene.pods() == ["127.0.5.9"], "what changed since")


def _up(scene: Scene) -> int:
    samples = [sample for metric in scene.metrics.watch_up.collect() for sample in metric.samples]
    return sum(int(sample.value) for sample in samples)
