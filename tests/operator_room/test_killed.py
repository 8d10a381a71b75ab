"""The operator dies between any two writes, and the next one brings the same story to the same end.

On the real API server no process gets more than one write done; on the fake one, which tells a story in a blink, it
dies once after each write there is, and now and then before or after any.
"""

import json
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from operator_fake import FakeApi
from operator_shop import on_disk
from operator_stories import (
    back,
    back_by_replicas,
    back_by_route,
    back_from_the_bake_in_place,
    back_in_place,
    by_train_job,
    deleted_in_the_canary,
    ending,
    forward,
    forward_and_exported,
    forward_by_replicas,
    forward_by_route,
    forward_in_place,
    notified,
    proposed,
    tested_better,
    tested_nothing,
    tested_worse,
    there_and_back,
    unsealed,
)
from operator_world import Killed, World

Story = Callable[[World], Awaitable[None]]
Kill = Callable[[World], None]
STORIES = [
    forward,
    back,
    there_and_back,
    forward_by_route,
    back_by_route,
    forward_by_replicas,
    back_by_replicas,
    forward_in_place,
    back_in_place,
    back_from_the_bake_in_place,
    tested_better,
    tested_worse,
    tested_nothing,
    deleted_in_the_canary,
    proposed,
    unsealed,
    notified,
    forward_and_exported,
    by_train_job,
]


async def told(world: World, story: Story, kill: Kill = lambda world: None) -> dict[str, Any]:
    """How the story ends; no Job is ever made twice."""
    if story is proposed:
        with TemporaryDirectory() as folder:
            on_disk(world, Path(folder) / "models.git")
            return await _told(world, story, kill)
    return await _told(world, story, kill)


async def _told(world: World, story: Story, kill: Kill) -> dict[str, Any]:
    kill(world)
    await story(world)
    made = [path for method, path in world.transport.done if method == "post" and path.endswith("/jobs")]
    finished = await ending(world)
    assert len(made) == len(finished["jobs"]), f"Jobs made: {len(made)}, there: {finished['jobs']}"
    handed = [path for method, path in world.transport.done if method == "post" and path.endswith("/trainjobs")]
    assert len(handed) == (2 if story is by_train_job else 0), "each attempt's TrainJob is made once"
    pulls = [what for method, what in world.transport.done if (method, what) == ("git", "the pull request")]
    pushes = [what for method, what in world.transport.done if (method, what) == ("git", "the push")]
    assert (len(pulls), len(pushes)) == ((2, 2) if story is proposed else (0, 0)), "each proposal is made once"
    return finished


def never_more_than_one_write(world: World) -> None:
    def kill(write: int, method: str, path: str) -> None:
        raise Killed(f"after {method} {path}")

    world.transport.after = kill


def by_chance(seed: int) -> Kill:
    chance = random.Random(seed)

    def prepare(world: World) -> None:
        def kill(write: int, method: str, path: str) -> None:
            if chance.random() < 0.25:
                raise Killed(f"{method} {path}")

        world.transport.before = world.transport.after = kill

    return prepare


def after(number: int) -> Kill:
    def prepare(world: World) -> None:
        def kill(write: int, method: str, path: str) -> None:
            if write == number:
                raise Killed(f"after {method} {path}")

        world.transport.after = kill

    return prepare


@pytest.mark.parametrize("story", STORIES)
async def test_killed_once_after_every_write_there_is(story: Story) -> None:
    """After one write is before the next one."""
    whole = World(FakeApi(), "default")
    expected = await told(whole, story)
    assert len(whole.transport.writes) > 20
    for number in range(len(whole.transport.writes)):
        finished = await told(World(FakeApi(), "default"), story, after(number))
        assert finished == expected, f"killed after write {number}, {whole.transport.writes[number]}"


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("story", STORIES)
async def test_killed_by_chance(story: Story, seed: int) -> None:
    expected = await told(World(FakeApi(), "default"), story)
    assert await told(World(FakeApi(), "default"), story, by_chance(seed)) == expected


@pytest.mark.apiserver
@pytest.mark.slow
@pytest.mark.parametrize("story", [forward, back])
async def test_never_more_than_one_write_on_the_real_one(world: World, story: Story) -> None:
    expected = await told(World(FakeApi(), "default"), story)
    assert await told(world, story, never_more_than_one_write) == expected


def children(api: FakeApi) -> set[str]:
    """Jobs and Deployments of ours that exist."""
    kinds = ("/jobs", "/deployments")
    return {
        name
        for (collection, name), found in api.objects.items()
        if collection.endswith(kinds) and found["metadata"].get("ownerReferences")
    }


@pytest.mark.parametrize("story", STORIES)
async def test_a_child_is_named_before_it_is_made(story: Story) -> None:
    """Whoever takes over at any moment finds every child in the status of its owner."""
    api = FakeApi()
    known: set[str] = set()

    def watch(world: World) -> None:
        def look(number: int, method: str, path: str) -> None:
            made = children(api) - known
            known.update(made)
            written = json.dumps([found["status"] for found in api.objects.values() if "status" in found])
            assert all(f'"{name}"' in written for name in made), f"{made} by {method} {path}: no status names it"

        world.transport.after = look

    await told(World(api, "default"), story, watch)
    assert known, "the story makes something"
