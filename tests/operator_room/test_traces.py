"""What the operator leaves on people's objects: their status, and nothing else, whatever has happened with them.

And what others make of each status that it writes on the way: Argo CD's health, Flux' checks and kstatus.
"""

from collections.abc import Mapping
from typing import Any

import pytest
from operator_stories import back, champion, forward, run, serving, there_and_back
from operator_world import Counting, World, digest, evaluated, resource, version_manifest
from tests.integrations.cel import by_kstatus
from tests.integrations.test_argocd import enabled, health
from tests.integrations.test_flux import conditions, judged

from ratchet_api.names import FIELD_MANAGER
from ratchet_operator.clients.transport import JSON

STORIES = [forward, back, there_and_back]
BELONGS_TO_THE_SERVER = {"managedFields", "resourceVersion", "generation"}


async def raw(world: World, kind: str, name: str) -> JSON:
    found: JSON = await world.raw.request("get", resource(kind).path(world.namespace, name))
    return found


def of_people(document: JSON) -> dict[str, Any]:
    """Everything but the status and what the API server keeps itself."""
    metadata = {key: value for key, value in document["metadata"].items() if key not in BELONGS_TO_THE_SERVER}
    return {"metadata": metadata, "spec": document["spec"]}


def traces(document: JSON) -> list[Mapping[str, Any]]:
    """What our manager owns outside of the status."""
    ours = [entry for entry in document["metadata"]["managedFields"] if entry["manager"] == FIELD_MANAGER]
    assert ours, "the status is ours"
    return [entry for entry in ours if entry.get("subresource") != "status" or set(entry["fieldsV1"]) != {"f:status"}]


async def the_whole_story(world: World) -> dict[tuple[str, str], dict[str, Any]]:
    """A run that is promoted after an approval, a hand-applied version that does harm, a return to the base: what
    people have written of each of their objects by then."""
    approvals = {"promotion": {"mode": "Approval", "before": ["Canary"]}}
    await serving(world, **approvals)
    await run(world)
    await world.settle()
    body = {"metadata": {"annotations": {"ratchet.dev/approve-canary": digest("e")}}}
    path = resource("ModelVersion").path(world.namespace, "assistant-1")
    await world.raw.request("patch", path, body, content_type="application/merge-patch+json")
    await champion(world, "assistant-1")

    manifest = version_manifest(world.namespace, "bad")
    manifest["metadata"] |= {
        "labels": {"team": "models"},
        "annotations": {"example.com/note": "by hand", "ratchet.dev/approve-canary": digest("b")},
    }
    await world.apply(manifest)
    written = {("ModelVersion", "bad"): of_people(await raw(world, "ModelVersion", "bad"))}
    await world.settle()
    await world.finish("evaluate", evaluated(), version="bad")
    world.prometheus.bad["bad"] = 200.0

    async def rejected() -> bool:
        return (await world.version("bad")).status.outcome == "RolledBack"

    await world.until(rejected, tick=0.5)
    await champion(world, "assistant-1")
    await world.edit({"serving": {"version": "assistant-0"}})
    written["ImprovementCycle", "assistant"] = of_people(await raw(world, "ImprovementCycle", "assistant"))
    await champion(world, "assistant-0")
    return written


def assert_only_status_was_written(world: World) -> None:
    """Of cycles and versions: the status; versions of runs are made, and never changed afterwards."""
    for method, path in world.transport.writes:
        if "/ratchet.dev/" in path and not path.endswith("/status"):
            assert (method, path.rsplit("/", 1)[1]) == ("post", "modelversions"), f"{method} {path}"


@pytest.mark.apiserver
@pytest.mark.slow
async def test_a_whole_story_leaves_no_trace_on_people_s_objects(world: World) -> None:
    written = await the_whole_story(world)
    for (kind, name), before in written.items():
        after = await raw(world, kind, name)
        assert of_people(after) == before
        assert traces(after) == []
        assert not {"finalizers", "ownerReferences"} & after["metadata"].keys()
    assert_only_status_was_written(world)
    assert {version.status.phase for version in (await world.versions()).values()} == {
        "Serving", "Superseded", "Rejected",
    }  # fmt: skip


@pytest.mark.parametrize("story", STORIES)
async def test_stories_write_nothing_but_status(fake_world: World, story: Any) -> None:
    await story(fake_world)
    assert any(path.endswith("/improvementcycles/assistant/status") for _, path in fake_world.transport.writes)
    assert_only_status_was_written(fake_world)


class Watching(Counting):
    """A transport that keeps each cycle and version as it is after a write of its status."""

    def __init__(self, inner: Any, seen: list[JSON]) -> None:
        super().__init__(inner)
        self.seen = seen

    async def request(self, method: str, path: str, *rest: Any, **more: Any) -> JSON:
        answer = await super().request(method, path, *rest, **more)
        if method == "put" and path.endswith("/status"):
            self.seen.append(await self._inner.request("get", path.removesuffix("/status")))
        return answer


@pytest.mark.parametrize("story", [*STORIES, the_whole_story])
async def test_every_status_on_the_way_can_be_judged(fake_world: World, story: Any) -> None:
    """No script fails, no expression errs, and the three judges do not contradict each other."""
    world, seen = fake_world, list[JSON]()
    world.transport = Watching(world.raw, seen)
    world.restart()
    await story(world)
    told = set()
    for found in seen:
        state, plain, expressed = health(found), by_kstatus(found), judged(found)
        said = conditions(found)
        assert not (said.get("Reconciling") == said.get("Stalled") == "True")
        assert (plain == "Failed") == (expressed == "Failed") == (said.get("Stalled") == "True")
        assert state["status"] != "Healthy" or said["Ready"] == "True"
        assert state["status"] != "Degraded" or expressed != "Current"
        assert state["message"]
        enabled(found)
        told.add((found["kind"], state["status"], expressed))
    assert len(seen) > 15
    assert {status for _, status, _ in told} >= {"Progressing", "Healthy"}
