"""promotion.mode Approval: what waits for a person, what their word has to say, what happens without it."""

from decimal import Decimal

import pytest
from operator_stories import champion, dataset, run, serving
from operator_world import World, digest, evaluated, resource, trained, version_manifest

from ratchet_api.conditions import find
from ratchet_api.cycle import ImprovementCycleStatus
from ratchet_api.reasons import ConditionType

DAY = 24 * 3600.0


def by_approval(*gates: str) -> dict[str, object]:
    return {"promotion": {"mode": "Approval", "before": list(gates), "expiry": "1d"}}


async def approve(world: World, version: str, gate: str, digest: str | None) -> None:
    """`kubectl annotate mv`."""
    body = {"metadata": {"annotations": {f"ratchet.dev/approve-{gate}": digest}}}
    path = resource("ModelVersion").path(world.namespace, version)
    await world.raw.request("patch", path, body, content_type="application/merge-patch+json")


async def status(world: World) -> ImprovementCycleStatus:
    return (await world.cycle()).status


async def said(world: World, version: str, kind: ConditionType) -> tuple[str, str]:
    found = find((await world.version(version)).status.conditions, kind)
    assert found is not None
    return found.reason, found.message


async def pass_time(world: World, seconds: float) -> None:
    """Time goes by in steps, as it does for a resync."""
    for _ in range(4):
        world.clock.advance(seconds / 4)
        await world.step()
    await world.settle()


async def until_awaited(world: World) -> None:
    async def awaited() -> bool:
        rollout = (await status(world)).rollout
        return rollout is not None and rollout.awaiting_since is not None

    await world.until(awaited, tick=0.5)


async def test_the_canary_waits_for_the_digest(fake_world: World) -> None:
    world = fake_world
    await serving(world, **by_approval("Canary"))
    await run(world)
    await world.settle()
    reason, message = await said(world, "assistant-1", ConditionType.RECONCILING)
    assert reason == "AwaitingApproval"
    assert f"ratchet.dev/approve-canary={digest('e')}" in message
    assert list(await world.deployments()) == ["assistant-0-arm"]
    await approve(world, "assistant-1", "canary", digest("a"))
    await world.settle()
    _, message = await said(world, "assistant-1", ConditionType.RECONCILING)
    assert f"the approval names {digest('a')}, which is not what waits" in message
    assert list(await world.deployments()) == ["assistant-0-arm"]
    await approve(world, "assistant-1", "canary", digest("e"))
    await champion(world, "assistant-1")


async def test_training_waits_for_the_dataset_s_digest(fake_world: World) -> None:
    world = fake_world
    await serving(world, **by_approval("Training"))
    await dataset(world)
    reason, message = await said(world, "assistant-1", ConditionType.RECONCILING)
    assert reason == "AwaitingApproval"
    assert f"ratchet.dev/approve-training={digest('d')}" in message
    assert "assistant-1-train-0" not in await world.jobs()
    await approve(world, "assistant-1", "training", digest("d"))
    await world.settle()
    await world.finish("train", trained())
    await world.settle()
    await world.finish("evaluate", evaluated())
    await champion(world, "assistant-1")


async def test_all_traffic_waits_and_checks_go_on(fake_world: World) -> None:
    world = fake_world
    await serving(world, **by_approval("Promotion"))
    await run(world)
    await until_awaited(world)
    for _ in range(20):
        world.clock.advance(1)
        await world.step()
    now = await status(world)
    assert now.rollout is not None
    assert (now.rollout.phase, now.rollout.weight) == ("Canary", 25)
    found = find(now.conditions, ConditionType.PROGRESSING)
    assert found is not None
    assert found.reason == "AwaitingApproval"
    assert f"ratchet.dev/approve-promotion={digest('e')}" in found.message
    assert await said(world, "assistant-1", ConditionType.RECONCILING) == ("AwaitingApproval", found.message)
    await approve(world, "assistant-1", "promotion", digest("e"))
    await champion(world, "assistant-1")
    ended = (await status(world)).rollout
    assert ended is not None
    assert ended.awaiting_since is None


async def test_harm_rolls_back_while_a_person_thinks(fake_world: World) -> None:
    world = fake_world
    await serving(world, **by_approval("Promotion"))
    await run(world)
    await until_awaited(world)
    world.prometheus.bad["assistant-1"] = 300.0
    await champion(world, "assistant-0")
    assert [entry.reason for entry in (await status(world)).rejected] == ["CheckFailed"]


async def test_nobody_approves_all_traffic(fake_world: World) -> None:
    world = fake_world
    await serving(world, **by_approval("Promotion"))
    await run(world)
    await until_awaited(world)
    for _ in range(4):
        world.clock.advance(DAY / 3)
        await world.step()
    await champion(world, "assistant-0")
    now = await status(world)
    assert now.rejected == []
    assert now.run is not None
    assert now.run.outcome == "Returned"
    assert now.rollout is not None
    assert now.rollout.decision is not None
    assert now.rollout.decision.reason == "ApprovalExpired"


async def test_nobody_approves_the_canary(fake_world: World) -> None:
    """The run ends, so that the next one can start; a late approval still counts."""
    world = fake_world
    await serving(world, **by_approval("Canary"))
    await run(world)
    await world.settle()
    await pass_time(world, DAY + 60)
    now = await status(world)
    assert now.run is not None
    assert now.run.outcome == "Returned"
    assert "nobody approved within 1d" in now.run.message
    assert (await said(world, "assistant-1", ConditionType.STALLED))[0] == "ApprovalExpired"
    await approve(world, "assistant-1", "canary", digest("e"))
    await champion(world, "assistant-1")


async def test_nobody_approves_the_training(fake_world: World) -> None:
    world = fake_world
    await serving(world, **by_approval("Training"))
    await dataset(world)
    await pass_time(world, DAY + 60)
    now = await status(world)
    assert now.run is not None
    assert now.run.outcome == "Failed"
    version = await world.version("assistant-1")
    assert version.status.phase == "Failed"
    assert "assistant-1-train-0" not in await world.jobs()


async def test_nothing_is_written_while_a_person_is_awaited(fake_world: World) -> None:
    world = fake_world
    await serving(world, **by_approval("Canary"))
    await run(world)
    await world.settle()
    before = len(world.transport.writes)
    for _ in range(10):
        world.clock.advance(30)
        await world.step()
    assert len(world.transport.writes) == before


@pytest.mark.parametrize("gates", [("Training",), ("Canary",), ("Promotion",), ("Training", "Canary", "Promotion")])
async def test_a_return_needs_no_approval_but_that_of_whoever_named_it(
    fake_world: World, gates: tuple[str, ...]
) -> None:
    world = fake_world
    await serving(world)
    await run(world)
    await champion(world, "assistant-1")
    await world.edit(by_approval(*gates) | {"serving": {"version": "assistant-0"}})
    await champion(world, "assistant-0")


async def test_a_hand_applied_adapter_waits_at_the_canary_alone(fake_world: World) -> None:
    world = fake_world
    await serving(world, **by_approval("Training", "Canary"))
    await world.apply(version_manifest(world.namespace, "mine"))
    await world.settle()
    await world.finish("evaluate", evaluated())
    await world.settle()
    assert (await said(world, "mine", ConditionType.RECONCILING))[0] == "AwaitingApproval"
    await approve(world, "mine", "canary", digest("b"))
    await champion(world, "mine")


async def test_the_cost_of_a_training_is_said_before_a_person_lets_it_begin(fake_world: World) -> None:
    world = fake_world
    price = {"perGpuHour": "2.50", "currency": "EUR"}
    await serving(world, training={"preset": "medium", "price": price}, **by_approval("Training"))
    await dataset(world, examples=100_000)
    training = (await world.version("assistant-1")).status.training
    assert training is not None
    assert training.estimate is not None
    assert (training.estimate.gpus, training.estimate.currency) == (1, "EUR")
    assert training.estimate.gpu_hours > 1
    assert list(await world.jobs()) == ["assistant-1-curate-0"]
    reason, message = await said(world, "assistant-1", ConditionType.RECONCILING)
    assert reason == "AwaitingApproval"
    assert (
        f"before it is trained (about {training.estimate.gpu_hours} GPU-hours, {training.estimate.cost} EUR" in message
    )

    await approve(world, "assistant-1", "training", digest("d"))
    await world.settle()
    job = await world.raw.request("get", f"/apis/batch/v1/namespaces/{world.namespace}/jobs/assistant-1-train-0")
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "1"}
    await world.finish("train", trained())
    await world.settle()
    after = (await world.version("assistant-1")).status.training
    assert after is not None
    assert (after.estimate, after.loss) == (training.estimate, Decimal("0.31"))
