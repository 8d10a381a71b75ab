"""export: a Job of its own beside everything else, what is said of it, and what it never touches."""

from typing import Any

import pytest
from operator_fake import FakeApi
from operator_stories import EXPORT, champion, proven, run, serving
from operator_world import World, digest, exported, failed, resource, terminated

from ratchet_api.conditions import find
from ratchet_api.reasons import ConditionType, Reason
from ratchet_api.stage import STAGE_INPUT, ExportInput
from ratchet_api.version import ExportStatus
from ratchet_operator.clients.transport import JSON
from ratchet_operator.errors import Stalling

PLAIN: JSON = {"formats": ["safetensors", "gguf-q4_k_m"]}


async def ask(world: World, version: str, word: str) -> None:
    """`ratchet export VERSION`."""
    body = {"metadata": {"annotations": {"ratchet.dev/export": word}}}
    path = resource("ModelVersion").path(world.namespace, version)
    await world.raw.request("patch", path, body, content_type="application/merge-patch+json")
    await world.settle()


async def said(world: World, version: str = "assistant-1") -> tuple[str, str, str] | None:
    found = find((await world.version(version)).status.conditions, ConditionType.EXPORTED)
    return None if found is None else (found.status, found.reason, found.message)


async def status(world: World, version: str = "assistant-1") -> ExportStatus:
    found = (await world.version(version)).status.export
    assert found is not None
    return found


async def exports(world: World) -> list[str]:
    return sorted(name for name in await world.jobs() if "-export-" in name)


async def raw(world: World, kind: str, name: str) -> JSON:
    return await world.raw.request("get", resource(kind).path(world.namespace, name))


async def test_the_champion_is_exported_with_all_that_its_card_says(fake_world: World) -> None:
    world = fake_world
    await serving(world, export=EXPORT | {"resources": {"limits": {"memory": "16Gi"}}, "deadline": "2h"})
    await run(world)
    await world.settle()
    assert await exports(world) == []
    await champion(world, "assistant-1")
    assert await exports(world) == ["assistant-1-export-0"]
    assert await said(world) == ("False", "Exporting", "Job assistant-1-export-0 runs")

    config = await raw(world, "ConfigMap", "assistant-1-export-0")
    work = STAGE_INPUT.validate_json(config["data"]["stage.json"])
    assert isinstance(work, ExportInput)
    assert (work.adapter.digest, work.dataset_digest) == (digest("e"), digest("d"))
    assert (work.champion, [suite.name for suite in work.suites]) == ("assistant-0", ["house"])
    assert work.hub is not None
    assert work.hub.private
    job = await raw(world, "Job", "assistant-1-export-0")
    assert job["spec"]["activeDeadlineSeconds"] == 7200
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert container["command"][-1] == "export"
    assert container["resources"] == {"limits": {"memory": "16Gi"}}
    env = {entry["name"]: entry for entry in container["env"]}
    assert env["HF_TOKEN"]["valueFrom"] == {"secretKeyRef": {"name": "storage", "key": "HF_TOKEN"}}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert env["DOCKER_CONFIG"]["value"] == mounts["registry"]

    await world.finish("export", exported())
    await world.settle()
    state, reason, message = await said(world) or ("", "", "")
    assert (state, reason) == ("True", "Succeeded")
    assert message == "gguf-q8_0 (5.0 MB); hub acme/assistant@444444444444; registry tags assistant-1-gguf-q8_0"
    assert (await status(world)).result is not None
    await world.edit({"export": PLAIN})
    await world.settle()
    assert await exports(world) == ["assistant-1-export-0"], "what is exported is not exported again by itself"


async def test_a_failure_is_said_and_moves_nothing_else(fake_world: World) -> None:
    world = fake_world
    await serving(world, export=PLAIN)
    await run(world)
    await champion(world, "assistant-1")
    before = (await world.version("assistant-1")).status, (await world.cycle()).status
    words = "gguf-q4_k_m: it is another model"
    await world.finish("export", failed("export", "ExportDiffers", words), 65)
    await world.settle()
    assert await said(world) == (
        "False", "ExportDiffers", f"{words} (the data cannot be used, so the stage is not tried again)"
    )  # fmt: skip
    after = (await world.version("assistant-1")).status, (await world.cycle()).status
    assert after[0].phase == before[0].phase == "Serving"
    others = [[c for c in one.conditions if c.type != "Exported"] for one in (before[0], after[0])]
    assert others[0] == others[1]
    assert after[1] == before[1]

    await ask(world, "assistant-1", "again")
    assert await exports(world) == ["assistant-1-export-0", "assistant-1-export-1"]
    await ask(world, "assistant-1", "and again")
    assert await exports(world) == ["assistant-1-export-0", "assistant-1-export-1"], "one at a time"
    await world.finish("export", exported())
    await world.settle()
    assert await exports(world) == [f"assistant-1-export-{attempt}" for attempt in range(3)]
    assert (await status(world)).request == "and again"


@pytest.mark.parametrize(
    ("when", "before", "after"),
    [("Accepted", ["good-export-0"], ["good-export-0"]), ("Promoted", [], ["good-export-0"]), ("Asked", [], [])],
)
async def test_when(fake_world: World, when: str, before: list[str], after: list[str]) -> None:
    world = fake_world
    await serving(world, export=PLAIN | {"when": when})
    await proven(world, "good")
    await world.settle()
    assert await exports(world) == before
    await champion(world, "good")
    assert await exports(world) == after
    assert (await world.cycle()).status.phase == "Idle", "no rollout waits for an export"


async def test_a_person_may_ask_for_what_was_never_promoted(fake_world: World) -> None:
    world = fake_world
    await serving(world, export=PLAIN)
    await ask(world, "assistant-0", "now")
    assert await exports(world) == [], "the bare base model has nothing to export"
    assert await said(world, "assistant-0") is None
    await proven(world, "bad")
    world.prometheus.bad["bad"] = 200.0

    async def rejected() -> bool:
        return (await world.version("bad")).status.phase == "Rejected"

    await world.until(rejected, tick=0.5)
    await world.settle()
    assert await exports(world) == []
    await ask(world, "bad", "now")
    assert await exports(world) == ["bad-export-0"]
    assert (await world.version("bad")).status.phase == "Rejected"


async def test_nothing_is_exported_without_a_policy(fake_world: World) -> None:
    world = fake_world
    await serving(world)
    await run(world)
    await champion(world, "assistant-1")
    await ask(world, "assistant-1", "now")
    assert await exports(world) == []
    assert await said(world) is None


async def test_a_missing_secret_is_named_and_waited_for(fake_world: World) -> None:
    world = fake_world
    await serving(world, export=EXPORT | {"hub": {"repository": "a/b", "tokenSecret": {"name": "hub"}}})
    await run(world)
    await champion(world, "assistant-1")
    state, reason, message = await said(world) or ("", "", "")
    assert (state, reason) == ("False", "MissingSecret")
    assert message.startswith("export.hub.tokenSecret: there is no Secret hub")
    assert (await world.version("assistant-1")).status.phase == "Serving"
    meta = {"namespace": world.namespace, "name": "hub"}
    await world.apply({"apiVersion": "v1", "kind": "Secret", "metadata": meta})
    await world.settle()
    assert await exports(world) == ["assistant-1-export-0"]


async def test_a_suspended_cycle_begins_none(fake_world: World) -> None:
    world = fake_world
    await serving(world)
    await run(world)
    await champion(world, "assistant-1")
    await world.edit({"export": PLAIN, "suspend": True})
    await world.settle()
    assert await exports(world) == []
    await world.edit({"suspend": False})
    await world.settle()
    assert await exports(world) == ["assistant-1-export-0"]


async def test_a_policy_that_is_taken_away_ends_what_waits(fake_world: World) -> None:
    world = fake_world
    await serving(world, export=PLAIN)
    await run(world)
    await champion(world, "assistant-1")
    pod = await world.stage_pod("export")
    await world.edit({"export": None})
    await world.pod_status(pod.metadata.name, terminated("stage", 75))
    await world.settle()
    world.clock.advance(60)
    await world.settle()
    assert await said(world) == ("False", "InvalidSpec", "the cycle names no export any more")
    assert await exports(world) == ["assistant-1-export-0"]


class _Refusing:
    """An API server that takes no export Jobs, as one with a quota does."""

    def __init__(self, inner: FakeApi) -> None:
        self._inner = inner
        self.refuses = True

    async def request(self, method: str, path: str, body: JSON | None = None, *rest: Any, **more: Any) -> JSON:
        name = ((body or {}).get("metadata") or {}).get("name", "")
        if self.refuses and method == "post" and path.endswith("/jobs") and "-export-" in name:
            raise Stalling(Reason.INVALID_SPEC, "exceeded quota: jobs")
        return await self._inner.request(method, path, body, *rest, **more)


async def test_a_refused_job_is_said_of_the_export_alone() -> None:
    api = _Refusing(FakeApi())
    world = World(api, "default")
    await serving(world, export=PLAIN)
    await run(world)

    async def refused() -> bool:
        serves = (await world.version("assistant-1")).status.phase == "Serving"
        return serves and await said(world) == ("False", "InvalidSpec", "exceeded quota: jobs")

    await world.until(refused, tick=0.5)
    version = await world.version("assistant-1")
    stalled = find(version.status.conditions, ConditionType.STALLED)
    assert version.status.phase == "Serving"
    assert stalled is not None
    assert stalled.status == "False"
    api.refuses = False
    await world.settle()
    assert await exports(world) == ["assistant-1-export-0"]
    assert await said(world) == ("False", "Exporting", "Job assistant-1-export-0 runs")
