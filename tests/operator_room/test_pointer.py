"""serving.version: what it lets through, what it takes back, what it is not obeyed in."""

from operator_stories import champion, forward, run, serving
from operator_world import World, digest, evaluated, version_manifest

from ratchet_api.conditions import find
from ratchet_api.cycle import ImprovementCycleStatus
from ratchet_api.reasons import ConditionType


async def status(world: World) -> ImprovementCycleStatus:
    return (await world.cycle()).status


async def stalled(world: World) -> tuple[str, str] | None:
    """Reason and sentence of the cycle's Stalled, if it is."""
    found = find((await status(world)).conditions, ConditionType.STALLED)
    return (found.reason, found.message) if found is not None and found.status == "True" else None


async def point(world: World, version: str | None) -> None:
    await world.edit({"serving": {"version": version}})


async def until_canary(world: World, name: str) -> None:
    async def canary() -> bool:
        rollout = (await status(world)).rollout
        return rollout is not None and rollout.version == name and rollout.phase == "Canary"

    await world.until(canary, tick=0.5)


async def test_an_accepted_version_waits_until_it_is_named(fake_world: World) -> None:
    world = fake_world
    await serving(world, serving={"runtime": "transformers", "version": "assistant-0"})
    await run(world)
    await world.settle()
    ended = (await status(world)).run
    assert ended is not None
    assert (ended.outcome, ended.version) == ("Accepted", "assistant-1")
    version = await world.version("assistant-1")
    said = find(version.status.conditions, ConditionType.RECONCILING)
    assert said is not None
    assert said.reason == "AwaitingPointer"
    assert "write assistant-1 there" in said.message
    assert list(await world.deployments()) == ["assistant-0-arm"]
    await point(world, "assistant-1")
    await champion(world, "assistant-1")
    assert [(e.version, e.outcome) for e in (await status(world)).history] == [
        ("assistant-1", "Accepted"),
        ("assistant-1", "Promoted"),
    ]
    assert await stalled(world) is None


async def test_back_to_the_base_and_forward_again_without_jobs(fake_world: World) -> None:
    """A person's rollback: no training, no gate, no steps; the bake is still on."""
    world = fake_world
    await forward(world)
    jobs = await world.jobs()
    for name in ("assistant-0", "assistant-1", "assistant-0"):
        await point(world, name)
        await champion(world, name)
        after = await status(world)
        assert after.rollout is not None
        assert after.rollout.known_good
        assert after.rollout.decision is not None
        assert after.rollout.decision.outcome == "Promoted"
        assert after.phase == "Idle"
    assert await world.jobs() == jobs
    assert (await world.version("assistant-1")).status.phase == "Superseded"
    assert (await world.version("assistant-0")).status.phase == "Serving"


async def test_a_return_that_does_harm_is_taken_back(fake_world: World) -> None:
    world = fake_world
    await forward(world)
    await point(world, "assistant-0")
    world.prometheus.bad["assistant-0"] = 200.0

    async def refused() -> bool:
        found = await stalled(world)
        return found is not None and found[0] == "RolledBackPendingGit"

    await world.until(refused, tick=0.5)
    await world.settle()
    after = await status(world)
    assert after.serving.stable is not None
    assert (after.serving.stable.version, after.serving.stable.weight) == ("assistant-1", 100)
    assert after.serving.candidate is None
    # A word from a person is a change of the cycle.
    world.prometheus.bad.clear()
    await point(world, "assistant-1")
    await world.settle()
    assert await stalled(world) is None
    await point(world, "assistant-0")
    await champion(world, "assistant-0")


async def test_a_name_that_nobody_has(fake_world: World) -> None:
    world = fake_world
    await serving(world, serving={"runtime": "transformers", "version": "mine"})
    found = await stalled(world)
    assert found == (
        "MissingVersion",
        "serving.version: there is no ModelVersion mine of this cycle: apply it, or write another name",
    )
    await world.apply(version_manifest(world.namespace, "mine"))
    await world.settle()
    assert await stalled(world) is None, "it is being evaluated"
    await world.finish("evaluate", evaluated())
    await champion(world, "mine")


async def test_a_rolled_back_version_is_not_obeyed_until_the_pointer_changes(fake_world: World) -> None:
    world = fake_world
    await serving(world, serving={"runtime": "transformers", "version": "bad"})
    await world.apply(version_manifest(world.namespace, "bad"))
    await world.settle()
    await world.finish("evaluate", evaluated())
    await until_canary(world, "bad")
    world.prometheus.bad["bad"] = 200.0
    await champion(world, "assistant-0")
    found = await stalled(world)
    assert found is not None
    assert found[0] == "RolledBackPendingGit"
    assert "write assistant-0, which serves" in found[1]
    world.prometheus.bad.clear()
    # What a GitOps tool does: the same pointer and the same version again.
    await point(world, "bad")
    await world.remove("ModelVersion", "bad")
    await world.apply(version_manifest(world.namespace, "bad"))
    for _ in range(5):
        world.clock.advance(60)
        await world.step()
    assert list(await world.deployments()) == ["assistant-0-arm"]
    assert await stalled(world) is not None
    await point(world, "assistant-0")
    await world.settle()
    assert await stalled(world) is None
    assert (await status(world)).phase == "Idle"


async def test_a_pointer_that_moves_takes_the_candidate_back_without_blame(fake_world: World) -> None:
    world = fake_world
    await serving(world)
    await run(world)
    await until_canary(world, "assistant-1")
    await point(world, "assistant-0")
    await champion(world, "assistant-0")
    after = await status(world)
    assert after.rejected == []
    assert after.rollout is not None
    assert after.rollout.decision is not None
    assert (after.rollout.decision.outcome, after.rollout.decision.reason) == ("Returned", "PointerMoved")
    assert after.run is not None
    assert after.run.outcome == "Returned"
    await point(world, "assistant-1")
    await champion(world, "assistant-1")


async def test_a_version_that_the_gate_refused_is_not_rolled_out(fake_world: World) -> None:
    world = fake_world
    await serving(world, serving={"runtime": "transformers", "version": "mine"})
    await world.apply(version_manifest(world.namespace, "mine"))
    await world.settle()
    await world.finish("evaluate", evaluated(better=0, worse=30))
    await world.settle()
    found = await stalled(world)
    assert found is not None
    assert found[0] == "NotBetter"
    assert list(await world.deployments()) == ["assistant-0-arm"]
    assert [entry.digest for entry in (await status(world)).rejected] == [digest("b")]


async def test_nothing_is_written_while_the_pointer_waits(fake_world: World) -> None:
    world = fake_world
    await serving(world, serving={"runtime": "transformers", "version": "nobody"})
    await world.settle()
    before = len(world.transport.writes)
    for _ in range(10):
        world.clock.advance(30)
        await world.step()
    assert len(world.transport.writes) == before
