"""An attempt's ConfigMap owns its Job: whatever takes effect too late, no attempt is worked on twice."""

from typing import Any

import pytest
from operator_stories import dataset, serving
from operator_world import Killed, World, resource

from ratchet_api.version import StageStatus
from ratchet_operator.clients.transport import NotFound
from ratchet_operator.errors import Waiting

JSON = dict[str, Any]
FIRST, SECOND = "assistant-1-curate-0", "assistant-1-curate-1"


async def raw(world: World, kind: str, name: str) -> JSON | None:
    try:
        return await world.raw.request("get", resource(kind).path(world.namespace, name))
    except NotFound:
        return None


async def there(world: World, kind: str, name: str) -> JSON:
    found = await raw(world, kind, name)
    assert found is not None, f"{kind} {name}"
    return found


async def again(world: World, thing: JSON) -> None:
    """The request that once made it takes effect once more."""
    meta = {key: thing["metadata"][key] for key in ("name", "namespace", "labels", "ownerReferences")}
    manifest = {"apiVersion": thing["apiVersion"], "kind": "Job", "metadata": meta, "spec": thing["spec"]}
    await world.raw.request("post", resource("Job").path(world.namespace), manifest)


async def curating(world: World) -> StageStatus:
    current = (await world.cycle()).status.run
    assert current is not None
    assert current.curate is not None
    return current.curate


async def test_a_job_that_is_made_after_its_attempt_has_no_owner(fake_world: World) -> None:
    world = fake_world
    await serving(world)
    await world.annotate("run", "now")
    await world.settle()
    job, owner = await there(world, "Job", FIRST), await there(world, "ConfigMap", FIRST)
    assert [one["uid"] for one in job["metadata"]["ownerReferences"]] == [owner["metadata"]["uid"]]
    assert [one["kind"] for one in owner["metadata"]["ownerReferences"]] == ["ImprovementCycle"]
    await world.remove("Job", FIRST)
    await world.settle()
    assert await raw(world, "ConfigMap", FIRST) is None
    await again(world, job)  # of which the garbage collector finds no owner
    world.clock.advance(3600)
    await world.settle()
    status = await curating(world)
    second = await there(world, "ConfigMap", SECOND)
    assert (status.job, status.input_uid) == (SECOND, second["metadata"]["uid"])


@pytest.mark.parametrize("stage", ["curate", "train"])
async def test_a_job_in_the_place_of_one_that_was_taken_away_goes_too(fake_world: World, stage: str) -> None:
    """It came late, but before anybody had noticed."""
    world = fake_world
    await serving(world)
    if stage == "curate":
        await world.annotate("run", "now")
        await world.settle()
    else:
        await dataset(world)
    name = f"assistant-1-{stage}-0"
    job = await there(world, "Job", name)
    await world.remove("Job", name)
    await again(world, job)
    await world.settle()
    assert await raw(world, "Job", name) is None, "with its ConfigMap"
    world.clock.advance(3600)
    await world.settle()
    assert f"assistant-1-{stage}-1" in await world.jobs()


async def test_a_job_that_lost_its_input_before_it_was_made_is_planned_anew(fake_world: World) -> None:
    world = fake_world
    await serving(world)
    await world.annotate("run", "now")

    killed = list[str]()

    def kill(number: int, method: str, path: str) -> None:
        if method == "post" and path.endswith("/jobs"):
            killed.append(path)
            raise Killed(path)

    world.transport.before = kill
    while not killed:
        await world.step()
    status = await curating(world)
    assert (status.job, status.job_uid) == (FIRST, None)
    await world.remove("ConfigMap", FIRST)
    world.transport.before = lambda number, method, path: None
    await world.settle()
    job, owner = await there(world, "Job", FIRST), await there(world, "ConfigMap", FIRST)
    assert job["metadata"]["ownerReferences"][0]["uid"] == owner["metadata"]["uid"] != status.input_uid
    assert (await curating(world)).input_uid == owner["metadata"]["uid"]


async def test_an_input_of_a_pass_that_died_is_not_taken_for_todays(fake_world: World) -> None:
    world = fake_world
    await serving(world)
    cycle = await there(world, "ImprovementCycle", "assistant")
    owner = {"apiVersion": cycle["apiVersion"], "kind": "ImprovementCycle", "name": "assistant"}
    meta = {"name": FIRST, "namespace": world.namespace, "ownerReferences": [owner | {"uid": cycle["metadata"]["uid"]}]}
    old = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"stage.json": "{}"}, "immutable": True}
    await world.raw.request("post", resource("ConfigMap").path(world.namespace), old)
    await world.annotate("run", "now")
    with pytest.raises(Waiting, match="could plan this attempt"):
        await world.settle()
    await world.settle()
    assert '"stage":"curate"' in (await there(world, "ConfigMap", FIRST))["data"]["stage.json"]
    assert FIRST in await world.jobs()


async def test_a_run_takes_the_inputs_of_the_one_before_it_along(fake_world: World) -> None:
    """Until then its Jobs stay, for whoever wants to read what they said."""
    world = fake_world
    await serving(world)
    await world.annotate("run", "one")
    await world.settle()
    await world.remove("Job", FIRST)
    await world.settle()
    world.clock.advance(3600)
    await world.settle()
    report = {"stage": "curate", "outcome": "Skipped", "reason": "Skipped", "message": "a small day"}
    await world.finish("curate", report)
    await world.settle()
    assert SECOND in await world.jobs()
    await world.annotate("run", "two")
    await world.settle()
    assert await raw(world, "ConfigMap", SECOND) is None
    assert list(await world.jobs()) == ["assistant-2-curate-0"]
