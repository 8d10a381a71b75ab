"""The spine on the real API server: a cycle comes up, a run goes all the way, a bad version comes back."""

import pytest
from operator_stories import back, forward, serving
from operator_world import World

pytestmark = pytest.mark.apiserver


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
    await forward(world)
    cycle = await world.cycle()
    assert cycle.status.run is not None
    assert cycle.status.run.outcome == "Promoted"
    assert cycle.status.serving.stable is not None
    assert cycle.status.serving.stable.version == "assistant-1"
    phases = {name: version.status.phase for name, version in (await world.versions()).items()}
    assert phases == {"assistant-0": "Superseded", "assistant-1": "Serving"}


async def test_a_bad_version_comes_back(world: World) -> None:
    await back(world)
    cycle = await world.cycle()
    assert [entry.version for entry in cycle.status.rejected] == ["bad"]
    assert cycle.status.rollout is not None
    assert cycle.status.rollout.decision is not None
    assert cycle.status.rollout.decision.check == "errors"
