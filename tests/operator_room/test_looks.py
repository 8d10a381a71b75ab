"""Error rate that is spent over versions, and a hold-out that stays sealed until a version has passed all else."""

import json
from datetime import timedelta
from typing import Any

from operator_stories import champion, serving, unsealed, with_holdout
from operator_world import World, digest, evaluated, failed, version_manifest

from ratchet_api.version import ModelVersion
from ratchet_operator.reconcile import version as versions


async def judged(world: World, name: str, letter: str, **numbers: Any) -> ModelVersion:
    """A hand-applied version, after its evaluation."""
    await world.apply(version_manifest(world.namespace, name, letter))
    await world.settle()
    await world.finish("evaluate", evaluated(**numbers), version=name)
    await world.settle()
    return await world.version(name)


async def told(world: World, job: str) -> Any:
    path = f"/api/v1/namespaces/{world.namespace}/configmaps/{job}"
    return json.loads((await world.raw.request("get", path))["data"]["stage.json"])


async def test_every_version_that_is_judged_by_the_same_cases_needs_a_smaller_p(fake_world: World) -> None:
    world = fake_world
    await serving(world)
    first = await judged(world, "first", "1", p="0.03")
    assert first.status.phase == "Rejected", "half of the error rate is kept for later versions"
    second = await judged(world, "second", "2", p="0.02")
    assert second.status.phase == "Rejected", "0.02 would have been enough for the first one"
    (look,) = second.status.looks
    assert (look.number, str(look.alpha), look.proven) == (2, "0.008333333333", False)
    condition = next(c for c in second.status.conditions if c.type == "Accepted")
    assert "look 2 at these cases: p below 0.0083" in condition.message
    fresh = await judged(world, "fresh", "3", p="0.02", asks="ffffffffffff")
    assert fresh.status.looks[0].number == 1
    assert next(c.status for c in fresh.status.conditions if c.type == "Accepted") == "True"


async def test_a_proof_gives_its_error_rate_back(fake_world: World) -> None:
    world = fake_world
    await serving(world)
    assert (await judged(world, "first", "1", p="0.02")).status.looks[0].proven
    second = await judged(world, "second", "2", p="0.03")
    assert (str(second.status.looks[0].alpha), second.status.looks[0].proven) == ("0.033333333333", True)


async def test_two_evaluations_that_end_together_are_two_looks(fake_world: World) -> None:
    """Whose report comes second speaks of an error rate that is no longer left: it is made anew."""
    world = fake_world
    await serving(world)
    for name, letter in (("first", "1"), ("second", "2")):
        await world.apply(version_manifest(world.namespace, name, letter))
    await world.settle()
    for name in ("first", "second"):
        assert (await told(world, f"{name}-evaluate-0"))["levels"] == {
            "fresh": {"number": 1, "alpha": "0.025000000000"}, "known": {},
        }  # fmt: skip
        await world.finish("evaluate", evaluated(worse=30), version=name)
    await world.settle()
    jobs = await world.jobs()
    first, behind = sorted(("first", "second"), key=lambda name: f"{name}-evaluate-1" in jobs)
    assert [look.number for look in (await world.version(first)).status.looks] == [1]
    assert (await world.version(behind)).status.looks == []
    levels = (await told(world, f"{behind}-evaluate-1"))["levels"]
    assert levels["known"] == {"a1b2c3d4e5f6": {"number": 2, "alpha": "0.008333333333"}}
    await world.finish("evaluate", evaluated(worse=30), version=behind)
    await world.settle()
    (look,) = (await world.version(behind)).status.looks
    assert (look.number, str(look.alpha)) == (2, "0.008333333333")
    assert f"{behind}-evaluate-2" not in await world.jobs()


async def test_an_attempt_that_is_tried_again_is_the_same_look(fake_world: World) -> None:
    world = fake_world
    await serving(world)
    await judged(world, "first", "1", better=0, worse=30)
    await world.apply(version_manifest(world.namespace, "second", "2"))
    await world.settle()
    await world.finish("evaluate", failed("evaluate", "InfrastructureError"), code=75, version="second")
    await world.settle()
    world.clock.ahead += timedelta(hours=1)
    await world.settle()
    both = [(await told(world, f"second-evaluate-{attempt}"))["levels"] for attempt in (0, 1)]
    assert both[0] == both[1]
    assert both[0]["known"]["a1b2c3d4e5f6"]["number"] == 2


async def test_a_repetition_against_another_champion_is_the_same_look(fake_world: World) -> None:
    world = fake_world
    await serving(world)
    await judged(world, "first", "1")
    before = (await judged(world, "second", "2")).status.looks
    assert [look.number for look in before] == [2]
    await champion(world, "first")
    again = await told(world, "second-evaluate-1")
    assert again["champion_version"] == "first"
    assert again["levels"]["known"]["a1b2c3d4e5f6"] == {"number": 2, "alpha": str(before[0].alpha)}
    await world.finish("evaluate", evaluated(p="0.02"), version="second")
    await world.settle()
    second = await world.version("second")
    assert second.status.looks == before
    assert {c.type: c.status for c in second.status.conditions}["Accepted"] == "True"


async def test_the_sealed_suite_is_asked_last_and_only_of_who_passed_the_others(fake_world: World) -> None:
    world = fake_world
    await serving(world, evaluation=with_holdout())
    worse = await judged(world, "worse", "1", better=0, worse=30)
    assert worse.status.phase == "Rejected"
    assert "worse-evaluate-1" not in await world.jobs()
    assert [look.suite for look in worse.status.looks] == ["house"], "the hold-out is as fresh as before"

    fine = await judged(world, "fine", "2")
    assert fine.status.phase == "Evaluating"
    assert {c.type: c.status for c in fine.status.conditions}.get("Accepted") != "True"
    assert [s["name"] for s in (await told(world, "fine-evaluate-0"))["policy"]["suites"]] == ["house"]
    assert [s["name"] for s in (await told(world, "fine-evaluate-1"))["policy"]["suites"]] == ["vault"]
    await world.finish("evaluate", evaluated(name="vault", better=1, worse=20, asks="0123456789ab"), version="fine")
    await world.settle()
    fine = await world.version("fine")
    assert fine.status.phase == "Rejected"
    assert fine.status.evaluation is not None
    assert [suite.name for suite in fine.status.evaluation.suites] == ["house", "vault"]
    assert {look.suite: look.number for look in fine.status.looks} == {"house": 2, "vault": 1}
    assert fine.status.artifacts.report is not None
    assert fine.status.artifacts.sealed_report is not None


async def test_a_version_that_passes_the_sealed_suite_too_is_promoted(fake_world: World) -> None:
    await unsealed(fake_world)
    version = await fake_world.version("assistant-1")
    assert version.status.phase == "Serving"
    assert version.digest == digest("e")


async def test_a_proof_against_a_champion_that_serves_no_more_is_never_written_down(fake_world: World) -> None:
    """Not for a moment: who came next would take the undecided version for a rejected one."""
    world = fake_world
    await serving(world)
    for name, letter in (("first", "b"), ("second", "c")):
        await world.apply(version_manifest(world.namespace, name, letter))
    await world.settle()
    await world.finish("evaluate", evaluated(), version="first")
    await champion(world, "first")
    await world.finish("evaluate", evaluated(asks="0123456789ab"), version="second")
    await versions.reconcile(world.context, world.namespace, "second")
    second = await world.version("second")
    assert second.status.evaluation is None
    (entry,) = second.status.stages
    assert (entry.finished_at, entry.attempts.repeated) == (None, 1)
    await world.settle()
    await world.finish("evaluate", evaluated(asks="0123456789ab"), version="second")
    await champion(world, "second")
