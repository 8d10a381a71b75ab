"""serving.router replicas, and arms that an autoscaler scales."""

from collections.abc import Awaitable, Callable

import pytest
from operator_fake import FakeApi
from operator_stories import back_by_replicas, counted, forward_by_replicas, harmed, proven, resting, serving
from operator_world import World

from ratchet_api.conditions import find
from ratchet_api.names import ARM_LABEL, VERSION_LABEL
from ratchet_api.reasons import ConditionType, Reason
from ratchet_operator.clients.objects import Pod
from ratchet_operator.clients.transport import JSON
from ratchet_operator.reconcile.announcing import STILL_NEWS

TOTAL = 4
SURGE = 1


def objects(world: World, plural: str) -> list[JSON]:
    api = world.raw
    assert isinstance(api, FakeApi)
    return [thing for (place, _), thing in api.objects.items() if place.endswith(f"/{plural}")]


def watched(world: World) -> tuple[list[str], list[int]]:
    """After every write: (what went wrong, pods of all arms in service)."""
    wrong: list[str] = []
    counts: list[int] = []
    served = False

    def look(number: int, method: str, path: str) -> None:
        nonlocal served
        arms = [Pod.model_validate(pod) for pod in objects(world, "pods")]
        arms = [pod for pod in arms if ARM_LABEL in pod.metadata.labels]
        selectors = [thing["spec"]["selector"] for thing in objects(world, "services")]
        answering = [
            pod
            for pod in arms
            for selector in selectors
            if pod.ready and selector.items() <= pod.metadata.labels.items()
        ]
        served = served or len(answering) == TOTAL
        if served and not answering:
            wrong.append(f"write {number} {method} {path}: nobody answers")
        former = any(thing["metadata"]["name"] == "assistant-0-arm" for thing in objects(world, "deployments"))
        stable = [pod for pod in arms if pod.ready and pod.metadata.labels[VERSION_LABEL] == "assistant-0"]
        if served and former and not stable:
            wrong.append(f"write {number} {method} {path}: stable has no ready pod")
        counts.append(len(arms))

    world.transport.after = look
    return wrong, counts


async def at(world: World, weight: int) -> None:
    async def there() -> bool:
        rollout = (await world.cycle()).status.rollout
        return rollout is not None and rollout.weight == weight and rollout.unconfirmed_since is None

    await world.until(there, tick=0.5)


async def stalled(world: World, reason: Reason) -> str:
    said = ""

    async def it_is() -> bool:
        nonlocal said
        found = find((await world.cycle()).status.conditions, ConditionType.STALLED)
        said = found.message if found is not None else ""
        return found is not None and found.status == "True" and found.reason == reason

    await world.until(it_is, tick=0.5)
    return said


async def test_the_share_is_the_ratio_of_ready_pods(fake_world: World) -> None:
    """10 % of four pods is one of four: status says 25, and goes on."""
    await counted(fake_world)
    steps = [{"weight": weight, "minTime": "0s"} for weight in (10, 50, 100)]
    await fake_world.edit({"rollout": {"steps": steps, "bake": "60s"}})
    await proven(fake_world, "good")
    real = []
    for weight in (10, 50, 100):
        await at(fake_world, weight)
        serving = (await fake_world.cycle()).status.serving
        assert serving.stable is not None
        assert serving.candidate is not None
        deployments = await fake_world.deployments()
        real.append(
            (
                serving.candidate.observed_weight,
                serving.stable.observed_weight,
                deployments["assistant-0-arm"].spec.replicas,
                deployments["good-arm"].spec.replicas,
            )
        )
    assert real == [(25, 75, 3, 1), (50, 50, 2, 2), (100, 0, 1, 4)]


@pytest.mark.parametrize("story", [forward_by_replicas, back_by_replicas])
async def test_somebody_answers_all_the_time(fake_world: World, story: Callable[[World], Awaitable[None]]) -> None:
    wrong, counts = watched(fake_world)
    await story(fake_world)
    assert wrong == []
    if story is forward_by_replicas:
        assert max(counts) == TOTAL + SURGE
    arms = await fake_world.deployments()
    assert [found.spec.replicas for found in arms.values()] == [TOTAL]


async def test_back_to_all_of_stable_s_pods(fake_world: World) -> None:
    await counted(fake_world)
    await proven(fake_world, "bad")
    await at(fake_world, 25)
    await harmed(fake_world)
    stable = (await fake_world.cycle()).status.serving.stable
    assert stable is not None
    assert (stable.version, stable.replicas, stable.ready_replicas, stable.observed_weight) == (
        "assistant-0",
        TOTAL,
        TOTAL,
        100,
    )


async def test_no_write_at_rest(fake_world: World) -> None:
    await forward_by_replicas(fake_world)
    before = len(fake_world.transport.writes)
    fake_world.clock.advance(STILL_NEWS.total_seconds())
    for _ in range(5):
        fake_world.clock.advance(60)
        await resting(fake_world)
        fake_world.restart()
    assert fake_world.transport.writes[before:] == []


def autoscaler(name: str, deployment: str) -> JSON:
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": deployment},
            "minReplicas": 1,
            "maxReplicas": 9,
        },
    }


async def test_an_autoscaler_is_refused_where_numbers_of_pods_are_the_split(fake_world: World) -> None:
    await counted(fake_world)
    await fake_world.apply(autoscaler("busy", "assistant-0-arm"))
    said = await stalled(fake_world, Reason.SCALER_CONFLICT)
    assert "HorizontalPodAutoscaler busy scales assistant-0-arm" in said
    await fake_world.remove("HorizontalPodAutoscaler", "busy")
    await proven(fake_world, "good")
    await at(fake_world, 25)


async def test_two_autoscalers_of_one_arm(fake_world: World) -> None:
    await serving(fake_world)
    await fake_world.apply(autoscaler("busy", "assistant-0-arm"))
    await fake_world.apply(autoscaler("lazy", "assistant-0-arm"))
    assert "busy and lazy both scale assistant-0-arm" in await stalled(fake_world, Reason.SCALER_CONFLICT)


async def test_an_arm_that_an_autoscaler_scales_is_left_to_it(fake_world: World) -> None:
    await serving(fake_world)
    await fake_world.apply(autoscaler("busy", "assistant-0-arm"))
    await resting(fake_world)
    path = "/apis/apps/v1/namespaces/default/deployments/assistant-0-arm"
    body = {"spec": {"replicas": 3}}
    await fake_world.raw.request("patch", path, body, content_type="application/merge-patch+json")
    await resting(fake_world)
    assert (await fake_world.deployments())["assistant-0-arm"].spec.replicas == 3
    stable = (await fake_world.cycle()).status.serving.stable
    assert stable is not None
    assert (stable.replicas, stable.ready_replicas) == (3, 3)
    await fake_world.remove("HorizontalPodAutoscaler", "busy")
    await resting(fake_world)
    assert (await fake_world.deployments())["assistant-0-arm"].spec.replicas == 1, "ours again"
