"""What people and the world do to a rollout, each with its decided end; docs/faults.md has the table."""

import pytest
from operator_fake import FakeApi
from operator_stories import champion, deleted_in_the_canary, proven, rollout, run, serving
from operator_world import World

from ratchet_api.conditions import find
from ratchet_api.cycle import RolloutStatus
from ratchet_api.names import ARM_LABEL
from ratchet_api.reasons import ConditionType, Reason
from ratchet_operator.clients.objects import Deployment
from ratchet_operator.clients.prometheus import parsed
from ratchet_operator.clients.transport import JSON
from ratchet_operator.domain.analysis import ArmReadings
from ratchet_operator.domain.queries import ArmQueries
from ratchet_operator.manifests.arms import INPUT_ANNOTATION


async def going_on(world: World) -> RolloutStatus:
    found = (await world.cycle()).status.rollout
    assert found is not None
    return found


async def canary(world: World) -> None:
    """The candidate has its first share."""

    async def begun() -> bool:
        found = (await world.cycle()).status.rollout
        return found is not None and found.phase == "Canary"

    await world.until(begun, tick=0.5)


async def events(world: World, reason: Reason) -> list[str]:
    found = await world.raw.request("get", f"/apis/events.k8s.io/v1/namespaces/{world.namespace}/events")
    return [thing["note"] for thing in found["items"] if thing["reason"] == reason]


async def test_a_deleted_stable_arm_is_made_again(fake_world: World) -> None:
    world = fake_world
    await serving(world)
    before = (await world.deployments())["assistant-0-arm"]
    await world.remove("Deployment", "assistant-0-arm")
    await world.step()
    after = (await world.deployments())["assistant-0-arm"]
    assert after.metadata.uid != before.metadata.uid, "in the same pass"
    (note,) = await events(world, Reason.ARM_RESET)
    assert note.startswith("Deployment assistant-0-arm, which serves assistant-0, was deleted; it is made again")
    found = find((await world.cycle()).status.conditions, ConditionType.READY)
    assert found is not None
    assert found.status == "False"
    await world.settle()
    assert len(await events(world, Reason.ARM_RESET)) == 1, "said once"

    async def ready() -> bool:
        found = find((await world.cycle()).status.conditions, ConditionType.READY)
        return found is not None and found.status == "True"

    await world.until(ready)


async def test_an_arm_that_is_wanted_again_amid_its_removal_is_whole_again(fake_world: World) -> None:
    """The removal takes input and budget first; one that breaks off there leaves a Deployment whose pods cannot
    start."""
    world = fake_world
    serving_spec = {"runtime": "transformers", "replicas": 2}
    await serving(world, serving=serving_spec)
    arm = (await world.deployments())["assistant-0-arm"]
    names = {"ConfigMap": arm.metadata.annotations[INPUT_ANNOTATION], "PodDisruptionBudget": "assistant-0-arm"}
    for kind, name in names.items():
        await world.remove(kind, name)
    await world.settle()
    assert not any([await world.kube.exists(kind, world.namespace, name) for kind, name in names.items()]), (
        "nobody looks after it while all of its pods are ready"
    )
    for pod in await world.pods(**{ARM_LABEL: "true"}):
        await world.pod_status(pod.metadata.name, {"phase": "Pending", "conditions": [], "containerStatuses": []})

    async def whole() -> bool:
        return all([await world.kube.exists(kind, world.namespace, name) for kind, name in names.items()])

    for _ in range(5):
        await world.step()
    assert await whole()


async def test_a_deleted_candidate_arm_that_is_back_in_time_goes_on(fake_world: World) -> None:
    world = fake_world
    await serving(world)
    await run(world)
    await canary(world)
    await world.remove("Deployment", "assistant-1-arm")
    await world.step()
    assert sorted(await world.deployments()) == ["assistant-0-arm", "assistant-1-arm"]
    await champion(world, "assistant-1")
    assert (await world.cycle()).status.rejected == []


async def test_a_deleted_candidate_arm_that_stays_away_blames_nobody(fake_world: World) -> None:
    world = fake_world
    await deleted_in_the_canary(world)
    status = (await world.cycle()).status
    assert status.rollout is not None
    assert status.rollout.decision is not None
    assert (status.rollout.decision.outcome, status.rollout.decision.reason) == ("Returned", Reason.ARM_NOT_READY)
    assert status.rollout.decision.message.endswith("its Deployment was deleted by somebody")
    assert status.rejected == []
    assert status.serving.stable is not None
    assert (status.serving.stable.version, status.serving.stable.weight) == ("assistant-0", 100)


def scaled(world: World, name: str, replicas: int, manager: str) -> None:
    """What the API server keeps of `kubectl scale`."""
    assert isinstance(world.raw, FakeApi)
    found = world.raw.objects[f"/apis/apps/v1/namespaces/{world.namespace}/deployments", name]
    found["spec"]["replicas"] = replicas
    entry = {
        "manager": manager,
        "operation": "Update",
        "subresource": "scale",
        "fieldsV1": {"f:spec": {"f:replicas": {}}},
    }
    found["metadata"]["managedFields"] = [entry]


@pytest.mark.parametrize("replicas", [0, 5])
async def test_a_hand_scaled_arm_is_set_back(fake_world: World, replicas: int) -> None:
    world = fake_world
    await serving(world, serving={"runtime": "transformers", "replicas": 2})
    scaled(world, "assistant-0-arm", replicas, "kubectl")
    await world.step()
    assert (await world.deployments())["assistant-0-arm"].spec.replicas == 2
    (note,) = await events(world, Reason.ARM_RESET)
    assert note == (
        f"kubectl scaled Deployment assistant-0-arm to {replicas}; it is set back to 2: change serving.replicas, or "
        "give it a HorizontalPodAutoscaler"
    )


async def test_a_person_s_own_number_is_no_reset(fake_world: World) -> None:
    world = fake_world
    await serving(world)
    await world.edit({"serving": {"replicas": 3}})
    await world.settle()
    assert (await world.deployments())["assistant-0-arm"].spec.replicas == 3
    assert await events(world, Reason.ARM_RESET) == []


@pytest.mark.apiserver
async def test_kubectl_scale_on_the_real_one(world: World) -> None:
    await serving(world)
    path = f"/apis/apps/v1/namespaces/{world.namespace}/deployments/assistant-0-arm"
    await world.raw.request(
        "patch",
        f"{path}/scale",
        {"spec": {"replicas": 4}},
        {"fieldManager": "kubectl"},
        "application/merge-patch+json",
    )
    await world.settle()
    found = await world.kube.get(Deployment, world.namespace, "assistant-0-arm")
    assert found is not None
    assert found.spec.replicas == 1
    assert len([note for note in await events(world, Reason.ARM_RESET) if note.startswith("kubectl scaled")]) == 1
    await world.remove("Deployment", "assistant-0-arm")
    await world.settle()
    assert list(await world.deployments()) == ["assistant-0-arm"]
    assert len([note for note in await events(world, Reason.ARM_RESET) if "was deleted" in note]) == 1


CUSTOM = {
    "name": "own",
    "kind": "proportion",
    "bad": 'sum(bad{version="{{ version }}"})',
    "all": 'sum(all{version="{{ version }}"})',
    "minSamples": 20,
}


def answers(values: list[str]) -> JSON:
    """Prometheus' answer to a query, as it comes over the wire."""
    return {"status": "success", "data": {"resultType": "vector", "result": [{"value": [1, v]} for v in values]}}


class Answering:
    """A Prometheus that answers every query with the same, as the operator's client reads it."""

    def __init__(self, values: list[str]) -> None:
        self.values = values

    async def arm(self, queries: ArmQueries) -> ArmReadings:
        found = parsed(200, answers(self.values))
        return ArmReadings(bad=found, all=found)

    async def number(self, query: str) -> float | None:
        return None


@pytest.mark.parametrize(
    ("values", "reason", "words"),
    [(["1", "2"], "ManySeries", "2 series"), ([], "NoData", "no ")],
    ids=["many series", "never any data"],
)
async def test_a_query_that_gives_no_number_holds_and_then_returns(
    fake_world: World, values: list[str], reason: str, words: str
) -> None:
    """The weight never rises, nothing is blamed, and what to correct is said."""
    world = fake_world
    await serving(world, rollout=rollout(metrics=[CUSTOM], unknownLimit=2, maxHold="30s"))
    world.prometheus = Answering(values)  # type: ignore[assignment]
    world.restart()
    await proven(world, "other")

    async def held() -> bool:
        found = (await world.cycle()).status.rollout
        return found is not None and found.held_since is not None

    await world.until(held, tick=0.5)
    found = await going_on(world)
    assert (found.phase, found.weight) == ("Canary", 25)
    (check,) = found.checks
    assert (check.verdict, check.reason) == ("Unknown", reason)
    assert words in check.message
    (note,) = await events(world, Reason.HELD)
    assert "own" in note
    assert words in note
    progress = find((await world.cycle()).status.conditions, ConditionType.PROGRESSING)
    assert progress is not None
    assert (progress.status, progress.reason) == ("False", Reason.HELD)

    async def returned() -> bool:
        found = (await world.cycle()).status.rollout
        return found is not None and found.phase == "Done"

    await world.until(returned, tick=1)
    found = await going_on(world)
    assert found.decision is not None
    assert (found.decision.outcome, found.decision.reason) == ("Returned", Reason.HOLD_EXPIRED)
    assert (await world.cycle()).status.rejected == []
    assert (await world.version("other")).status.phase != "Rejected"
