"""How the operator behaves among others: at rest, beside people, with the API server's moods."""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest
from operator_stories import back, champion, dataset, ending, forward, run, serving
from operator_world import Counting, World, curated, cycle_manifest, evaluated, trained, version_manifest

from ratchet_api.names import FIELD_MANAGER
from ratchet_api.reasons import Reason
from ratchet_operator.clients.transport import JSON, AlreadyExists
from ratchet_operator.errors import Conflict, NotLeading, Stalling, Unavailable, Waiting
from ratchet_operator.reconcile import cycle as cycles
from ratchet_operator.reconcile.announcing import STILL_NEWS


async def quiet(world: World) -> None:
    """Ten minutes in which nothing happens: not one write."""
    await world.settle()
    before = len(world.transport.writes)
    # Until then a new process repeats the last words, which the API server has already.
    world.clock.advance(STILL_NEWS.total_seconds())
    for _ in range(10):
        world.clock.advance(60)
        await world.step()
        world.restart()
    assert world.transport.writes[before:] == []


@pytest.mark.apiserver
async def test_no_write_at_rest(world: World) -> None:
    await forward(world)
    await quiet(world)


async def test_no_write_at_rest_after_a_rollback(fake_world: World) -> None:
    await back(fake_world)
    await quiet(fake_world)


async def test_no_write_at_rest_with_a_schedule(fake_world: World) -> None:
    await serving(fake_world, trigger={"schedule": "0 2 29 2 *"})
    assert (await fake_world.cycle()).status.next_run_time is not None
    await quiet(fake_world)


@pytest.mark.apiserver
async def test_people_s_objects_carry_no_trace_but_status(world: World) -> None:
    await serving(world)
    await world.apply(version_manifest(world.namespace, "mine"))
    await world.settle()
    for plural, name in (("improvementcycles", "assistant"), ("modelversions", "mine")):
        path = f"/apis/ratchet.dev/v1alpha1/namespaces/{world.namespace}/{plural}/{name}"
        raw = await world.raw.request("get", path)
        meta = raw["metadata"]
        assert "finalizers" not in meta
        assert not meta.get("annotations")
        ours = [entry for entry in meta["managedFields"] if entry["manager"] == FIELD_MANAGER]
        assert ours
        for entry in ours:
            assert entry.get("subresource") == "status"
            assert set(entry["fieldsV1"]) == {"f:status"}


@pytest.mark.apiserver
async def test_children_go_with_their_cycle_and_a_person_s_version_stays(world: World) -> None:
    await serving(world)
    await world.apply(version_manifest(world.namespace, "mine"))
    await world.annotate("run", "now")
    await world.settle()
    assert sorted(await world.jobs()) == ["assistant-1-curate-0", "mine-evaluate-0"]
    await world.remove("ImprovementCycle", "assistant")

    async def collected() -> bool:
        gone = not await world.deployments() and "assistant-1-curate-0" not in await world.jobs()
        return gone and list(await world.versions()) == ["mine"]

    await until(collected)
    assert "mine-evaluate-0" in await world.jobs(), "its Job belongs to it"


async def until(what: Callable[[], Awaitable[bool]]) -> None:
    """Wait for controllers that are not ours; no passes of the operator."""
    async with asyncio.timeout(90):
        while not await what():  # noqa: ASYNC110 - the API server is asked, it tells nobody
            await asyncio.sleep(0.1)


@pytest.mark.apiserver
async def test_a_conflict_is_read_again_and_nothing_is_lost(world: World) -> None:
    """A person edits the spec between our read and our write."""
    await serving(world)
    await world.annotate("run", "now")
    edited = []

    class Meddling(Counting):
        async def request(self, method: str, path: str, *rest: object, **more: object) -> JSON:
            if method == "put" and path.endswith("/status") and not edited:
                edited.append(path)
                await world.edit({"historyLimit": 5})
            return await super().request(method, path, *rest, **more)  # type: ignore[arg-type]

    world.transport = Meddling(world.raw)
    world.restart()
    with pytest.raises(Conflict):
        await cycles.reconcile(world.context, world.namespace, "assistant")
    await world.settle()
    cycle = await world.cycle()
    assert cycle.spec.history_limit == 5
    assert cycle.status.observed_generation == cycle.metadata.generation
    assert cycle.status.run is not None
    assert list(await world.jobs()) == ["assistant-1-curate-0"]


@pytest.mark.apiserver
async def test_a_status_cannot_be_written_past_its_subresource(world: World) -> None:
    manifest = cycle_manifest(world.namespace)
    manifest["status"] = {"phase": "Mine"}
    await world.apply(manifest)
    assert (await world.cycle()).status.phase != "Mine"


async def test_a_foreign_child_of_our_name_is_not_adopted(fake_world: World) -> None:
    """A version deleted and applied again under its name, while the Job of the first one is still being collected."""
    world = fake_world
    await serving(world)
    await world.apply(version_manifest(world.namespace, "mine"))
    await world.settle()
    jobs = f"/apis/batch/v1/namespaces/{world.namespace}/jobs"
    old = await world.raw.request("get", f"{jobs}/mine-evaluate-0")
    await world.remove("ModelVersion", "mine")
    assert await world.jobs() == {}
    old["metadata"]["ownerReferences"][0]["uid"] = "of-another-time"
    await world.raw.request("post", jobs, old)
    await world.apply(version_manifest(world.namespace, "mine"))
    for _ in ("its name is written", "its name was written"):
        with pytest.raises(Waiting, match="earlier owner"):
            await world.settle()
    assert [stage.job_uid for stage in (await world.version("mine")).status.stages] == [None]
    await world.remove("Job", "mine-evaluate-0")
    await world.settle()
    mine = (await world.jobs())["mine-evaluate-0"]
    (stage,) = (await world.version("mine")).status.stages
    assert stage.input_uid is not None
    assert mine.metadata.owned_by(stage.input_uid)


@pytest.mark.parametrize("error", [Unavailable, Conflict, NotLeading])
async def test_every_request_may_fail_once(fake_world: World, error: type[Exception]) -> None:
    """Every other write to each place fails: refused, timed out, or not ours to make any more."""
    expected = World(type(fake_world.raw)(), "default")
    await forward(expected)
    tried: Counter[str] = Counter()

    def fail(number: int, method: str, path: str) -> None:
        tried[path] += 1
        if tried[path] % 2:
            raise error(f"{method} {path}")

    world = fake_world
    world.transport.before = fail
    world.tolerated = (error,)
    await forward(world)
    ended = await ending(world)
    assert ended == await ending(expected)


async def test_a_write_that_was_done_but_not_answered(fake_world: World) -> None:
    """The connection breaks after the API server has done it."""
    world = fake_world
    tried: Counter[str] = Counter()

    def fail(number: int, method: str, path: str) -> None:
        tried[path] += 1
        if tried[path] % 2:
            raise Unavailable(f"{method} {path}: the answer got lost")

    world.transport.after = fail
    world.tolerated = (Unavailable, AlreadyExists)
    await forward(world)
    assert (await world.cycle()).status.phase == "Idle"
    assert len(await world.jobs()) == 3


async def test_prometheus_down_holds_and_then_goes_on(fake_world: World) -> None:
    """No data never promotes and never rolls back."""
    world = fake_world
    await serving(world)
    world.prometheus.down = True
    await run(world)

    async def held() -> bool:
        rollout = (await world.cycle()).status.rollout
        return rollout is not None and rollout.held_since is not None

    # Without a first look at stable there is not even a first step; what is held is what has begun.
    world.prometheus.down = False

    async def canary() -> bool:
        rollout = (await world.cycle()).status.rollout
        return rollout is not None and rollout.phase == "Canary"

    await world.until(canary, tick=0.5)
    world.prometheus.down = True
    await world.until(held, tick=1)
    status = (await world.cycle()).status
    assert status.rollout is not None
    assert status.rollout.weight == 25
    assert status.phase == "Held"
    world.prometheus.down = False
    await champion(world, "assistant-1")


async def test_a_silent_gateway_moves_nothing(fake_world: World) -> None:
    world = fake_world
    await serving(world)
    await run(world)

    async def canary() -> bool:
        rollout = (await world.cycle()).status.rollout
        return rollout is not None and rollout.phase == "Canary"

    await world.until(canary, tick=0.5)
    world.gateway.silent = True
    world.prometheus.bad["assistant-1"] = 300.0
    for _ in range(20):
        world.clock.advance(1)
        await world.step()
    rollout = (await world.cycle()).status.rollout
    assert rollout is not None
    assert (rollout.phase, rollout.weight, rollout.decision) == ("Canary", 25, None)


async def test_a_lost_status_does_not_lose_the_champion(fake_world: World) -> None:
    """`kubectl replace` of a whole object, a restored backup: what serves is asked of the versions."""
    world = fake_world
    await forward(world)
    before = await world.deployments()
    path = f"/apis/ratchet.dev/v1alpha1/namespaces/{world.namespace}/improvementcycles/assistant/status"
    await world.raw.request("put", path, {"status": {}})
    await world.settle()
    status = (await world.cycle()).status
    assert status.serving.stable is not None
    assert status.serving.stable.version == "assistant-1"
    assert await world.deployments() == before


async def test_a_lost_status_does_not_forget_rejections(fake_world: World) -> None:
    world = fake_world
    await back(world)
    path = f"/apis/ratchet.dev/v1alpha1/namespaces/{world.namespace}/improvementcycles/assistant/status"
    await world.raw.request("put", path, {"status": {}})
    await world.settle()
    assert [(entry.version, entry.reason) for entry in (await world.cycle()).status.rejected] == [
        ("bad", "CheckFailed")
    ]


async def test_suspend_stops_what_has_not_begun(fake_world: World) -> None:
    world = fake_world
    await serving(world, suspend=True)
    await world.annotate("run", "now")
    await world.apply(version_manifest(world.namespace, "mine"))
    await world.settle()
    assert await world.jobs() == {}
    assert (await world.cycle()).status.phase == "Suspended"
    await world.edit({"suspend": False})
    await world.settle()
    assert sorted(await world.jobs()) == ["assistant-1-curate-0", "mine-evaluate-0"]


async def test_a_person_s_abort(fake_world: World) -> None:
    world = fake_world
    await serving(world)
    await run(world)

    async def canary() -> bool:
        rollout = (await world.cycle()).status.rollout
        return rollout is not None and rollout.phase == "Canary"

    await world.until(canary, tick=0.5)
    await world.annotate("abort", "assistant-1")
    await champion(world, "assistant-0")
    status = (await world.cycle()).status
    assert status.run is not None
    assert status.run.outcome == "RolledBack"
    assert [entry.reason for entry in status.rejected] == ["Aborted"]


async def test_a_rejected_digest_is_not_tried_again_until_a_person_says_so(fake_world: World) -> None:
    world = fake_world
    await back(world)
    await world.apply(version_manifest(world.namespace, "again"))
    await world.settle()
    again = await world.version("again")
    assert again.status.phase == "Rejected"
    assert {c.type: c.reason for c in again.status.conditions}["Rejected"] == "AlreadyRejected"
    assert "again-evaluate-0" not in await world.jobs()
    # Deleted and applied again, as a GitOps tool would: the same.
    await world.remove("ModelVersion", "bad")
    await world.apply(version_manifest(world.namespace, "bad"))
    await world.settle()
    assert (await world.version("bad")).status.phase == "Rejected"
    assert await world.jobs() == {}
    assert again.digest is not None
    await world.edit({"rollout": {"retryDigests": [again.digest]}})
    await world.remove("ModelVersion", "bad")
    world.prometheus.bad.clear()
    await world.settle()
    await world.finish("evaluate", evaluated())
    await champion(world, "again")
    assert (await world.version("again")).status.phase == "Serving"


async def test_a_return_to_a_known_good_version(fake_world: World) -> None:
    """No Job, no steps, but a bake."""
    world = fake_world
    await forward(world)
    await run(world, letter="c")
    await champion(world, "assistant-2")
    jobs = await world.jobs()
    await world.apply(version_manifest(world.namespace, "back-to-one", letter="e"))
    await world.settle()
    await champion(world, "back-to-one")
    assert await world.jobs() == jobs
    status = (await world.cycle()).status
    assert status.rollout is not None
    assert status.rollout.known_good


async def test_gate_rejection(fake_world: World) -> None:
    world = fake_world
    await serving(world)
    await dataset(world)
    await world.finish("train", trained())
    await world.settle()
    await world.finish("evaluate", evaluated(better=0, worse=30))
    await world.settle()
    status = (await world.cycle()).status
    assert status.run is not None
    assert status.run.outcome == "GateRejected"
    assert len(status.rejected) == 1
    assert len(status.history) == 1
    assert list(await world.deployments()) == ["assistant-0-arm"], "it never gets an arm"
    assert (await world.version("assistant-1")).status.phase == "Rejected"


async def test_skipped_for_too_few_examples(fake_world: World) -> None:
    world = fake_world
    await serving(world)
    await world.annotate("run", "now")
    await world.settle()
    report = curated(examples=3) | {"outcome": "Skipped", "reason": "Skipped", "message": "3 examples, wanted 20"}
    await world.finish("curate", report)
    await world.settle()
    status = (await world.cycle()).status
    assert status.run is not None
    assert (status.run.outcome, status.run.message) == ("Skipped", "3 examples, wanted 20")
    assert list(await world.versions()) == ["assistant-0"]
    await world.settle()
    assert [entry.outcome for entry in (await world.cycle()).status.history] == ["Skipped"]


async def test_the_dataset_is_told_which_model_is_trained(fake_world: World) -> None:
    world = fake_world
    await serving(world)
    await world.annotate("run", "now")
    await world.settle()
    path = f"/api/v1/namespaces/{world.namespace}/configmaps/assistant-1-curate-0"
    told = json.loads((await world.raw.request("get", path))["data"]["stage.json"])
    assert told["base_model"] == (await world.cycle()).spec.base_model.dump() | {"digest": None}


async def test_out_of_memory_is_tried_once_more_smaller(fake_world: World) -> None:
    world = fake_world
    await serving(world)
    await dataset(world)
    await world.finish("train", None, code=137, reason="OOMKilled")
    for _ in range(3):
        world.clock.advance(600)
        await world.settle()
    path = f"/api/v1/namespaces/{world.namespace}/configmaps/assistant-1-train-1"
    told = json.loads((await world.raw.request("get", path))["data"]["stage.json"])
    assert told["hyperparameters"]["microBatch"] == 1
    assert told["hyperparameters"]["accumulation"] == 8
    await world.finish("train", None, code=137, reason="OOMKilled")
    await world.settle()
    assert (await world.version("assistant-1")).status.phase == "Failed"
    run_status = (await world.cycle()).status.run
    assert run_status is not None
    assert run_status.outcome == "Failed"


async def test_a_finished_stage_is_not_redone_when_its_job_is_cleaned_up(fake_world: World) -> None:
    world = fake_world
    await serving(world)
    await dataset(world)
    await world.finish("train", trained())
    await world.settle()
    for job in ("assistant-1-curate-0", "assistant-1-train-0"):
        await world.remove("Job", job)
    await world.settle()
    assert list(await world.jobs()) == ["assistant-1-evaluate-0"]


async def test_a_job_that_vanishes_unfinished_counts_as_infrastructure(fake_world: World) -> None:
    world = fake_world
    await serving(world)
    await world.annotate("run", "now")
    await world.settle()
    for attempt in range(3):
        assert list(await world.jobs()) == [f"assistant-1-curate-{attempt}"]
        await world.remove("Job", f"assistant-1-curate-{attempt}")
        await world.settle()
        world.clock.advance(3600)
        await world.settle()
    await world.remove("Job", "assistant-1-curate-3")
    await world.settle()
    run_status = (await world.cycle()).status.run
    assert run_status is not None
    assert run_status.outcome == "Failed"
    assert "was deleted before it had ended" in run_status.message


async def test_a_proof_against_a_former_champion_is_repeated(fake_world: World) -> None:
    """Two versions are proven against the base; once the first one serves, the second has to beat that one."""
    world = fake_world
    await serving(world)
    for name, letter in (("first", "b"), ("second", "c")):
        await world.apply(version_manifest(world.namespace, name, letter=letter))
    await world.settle()
    await world.finish("evaluate", evaluated(), version="first")
    await world.settle()
    await world.finish("evaluate", evaluated(asks="0123456789ab"), version="second")
    await world.settle()
    assert {c.type: c.status for c in (await world.version("second")).status.conditions}["Accepted"] == "True"
    await champion(world, "first")
    second = await world.version("second")
    assert second.status.phase == "Evaluating"
    assert second.status.evaluation is not None
    assert second.status.evaluation.champion == "first"
    assert "second-evaluate-1" in await world.jobs()
    path = f"/api/v1/namespaces/{world.namespace}/configmaps/second-evaluate-1"
    told = json.loads((await world.raw.request("get", path))["data"]["stage.json"])
    assert told["champion_version"] == "first"
    await world.finish("evaluate", evaluated(better=1, worse=20), version="second")
    await world.settle()
    assert (await world.version("second")).status.phase == "Rejected"
    assert list(await world.deployments()) == ["first-arm"]


async def test_a_status_that_is_refused_is_said(fake_world: World) -> None:
    world = fake_world
    await serving(world)

    def refuse(number: int, method: str, path: str) -> None:
        if method == "put" and path.endswith("improvementcycles/assistant/status"):
            raise Stalling(Reason.INVALID_SPEC, "status.phase: too long")

    world.transport.before = refuse
    await world.annotate("run", "now")
    with pytest.raises(Stalling):
        await cycles.reconcile(world.context, world.namespace, "assistant")
    said = {c.type: c for c in (await world.cycle()).status.conditions}["Stalled"]
    assert (said.status, said.reason) == ("True", "InternalError")
    assert "status.phase: too long" in said.message


async def test_other_weights_under_the_champion_s_name_are_not_served(fake_world: World) -> None:
    """A spec is immutable, but an object can be deleted and applied again: no way around the gate."""
    world = fake_world
    await serving(world)
    await world.apply(version_manifest(world.namespace, "mine"))
    await world.settle()
    await world.finish("evaluate", evaluated())
    await champion(world, "mine")
    before = await world.raw.request("get", f"/apis/apps/v1/namespaces/{world.namespace}/deployments/mine-arm")
    await world.remove("ModelVersion", "mine")
    await world.settle()
    assert list(await world.deployments()) == ["mine-arm"], "what serves goes on serving"
    await world.apply(version_manifest(world.namespace, "mine", letter="c"))
    await world.settle()
    assert await world.raw.request("get", f"/apis/apps/v1/namespaces/{world.namespace}/deployments/mine-arm") == before
    said = {c.type: c for c in (await world.version("mine")).status.conditions}["Stalled"]
    assert (said.status, said.reason) == ("True", "InvalidSpec")
    assert "apply this one under a new name" in said.message


async def test_a_rollout_waits_until_the_last_one_s_version_shows_its_outcome(fake_world: World) -> None:
    """Else the cycle would forget, for the next rollout, what the version has not yet been told."""
    world = fake_world
    await serving(world)
    for name, letter in (("bad", "b"), ("other", "c")):
        await world.apply(version_manifest(world.namespace, name, letter))
        await world.settle()
        await world.finish("evaluate", evaluated(), version=name)
        await world.settle()
    world.prometheus.bad["bad"] = 200.0

    async def under_way(name: str) -> bool:
        rollout = (await world.cycle()).status.rollout
        return rollout is not None and rollout.version == name and rollout.phase != "Done"

    await world.until(lambda: under_way("bad"), tick=0.5)
    for _ in range(60):  # nobody looks at the versions meanwhile
        world.clock.advance(0.5)
        await world.kubelet()
        await cycles.reconcile(world.context, world.namespace, "assistant")
    rollout = (await world.cycle()).status.rollout
    assert rollout is not None
    assert (rollout.version, rollout.phase) == ("bad", "Done")
    assert (await world.version("bad")).status.outcome is None
    await world.until(lambda: under_way("other"), tick=0.5)
    assert (await world.version("bad")).status.outcome == "RolledBack"
    await champion(world, "other")
