"""The spine on the real API server: a cycle comes up, a run goes all the way, a bad version comes back."""

import pytest
from operator_world import World, curated, cycle_manifest, evaluated, trained, version_manifest

pytestmark = pytest.mark.apiserver


async def serving(world: World) -> None:
    """The base model serves."""
    await world.storage()
    await world.apply(cycle_manifest(world.namespace))

    async def ready() -> bool:
        cycle = await world.cycle()
        return cycle.status.serving.stable is not None and cycle.status.serving.stable.ready_replicas == 1

    await world.until(ready)


async def test_the_base_model_comes_up(world: World) -> None:
    await serving(world)
    await world.settle()
    cycle = await world.cycle()
    assert cycle.status.serving.stable is not None
    assert cycle.status.serving.stable.version == "assistant-0"
    assert [(c.type, c.status) for c in cycle.status.conditions] == [
        ("Ready", "True"),
        ("Reconciling", "False"),
        ("RolloutProgressing", "False"),
        ("Stalled", "False"),
    ]
    root = await world.version("assistant-0")
    assert root.status.phase == "Serving"
    assert list(await world.deployments()) == ["assistant-0-arm"]


async def test_a_run_goes_all_the_way(world: World) -> None:
    await serving(world)
    await world.kubectl("annotate", "cycle", "assistant", "ratchet.dev/run=first")
    await world.settle()
    await world.finish("curate", curated())
    await world.settle()
    await world.finish("train", trained())
    await world.settle()
    await world.finish("evaluate", evaluated())

    async def promoted() -> bool:
        cycle = await world.cycle()
        return cycle.status.serving.stable is not None and cycle.status.serving.stable.version == "assistant-1"

    await world.until(promoted, tick=0.5)

    async def alone() -> bool:
        return list(await world.deployments()) == ["assistant-1-arm"]

    await world.until(alone, tick=0.5)
    await world.settle()
    cycle = await world.cycle()
    assert cycle.status.run is not None
    assert cycle.status.run.outcome == "Promoted"
    versions = await world.versions()
    assert {name: version.status.phase for name, version in versions.items()} == {
        "assistant-0": "Superseded",
        "assistant-1": "Serving",
    }


async def test_a_bad_version_comes_back(world: World) -> None:
    await serving(world)
    await world.apply(version_manifest(world.namespace, "bad"))
    await world.settle()
    await world.finish("evaluate", evaluated())
    world.prometheus.bad["bad"] = 200.0

    async def rejected() -> bool:
        return (await world.version("bad")).status.phase == "Rejected"

    await world.until(rejected, tick=0.5)

    async def alone() -> bool:
        return list(await world.deployments()) == ["assistant-0-arm"]

    await world.until(alone, tick=0.5)
    cycle = await world.cycle()
    assert [entry.version for entry in cycle.status.rejected] == ["bad"]
    assert cycle.status.rollout is not None
    assert cycle.status.rollout.decision is not None
    assert cycle.status.rollout.decision.check == "errors"
