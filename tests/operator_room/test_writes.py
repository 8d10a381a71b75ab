"""What a change costs the API server: all writes of the operator are counted, of statuses, children and events."""

import inspect
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import pairwise

import pytest
from operator_stories import forward, serving
from operator_world import World, version_manifest

from ratchet_api.names import CYCLE_KIND, VERSION_KIND
from ratchet_operator.clients.kube import Kube
from ratchet_operator.clients.transport import JSON
from ratchet_operator.errors import NotLeading

MOST = 3
"""Writes a transition."""
State = tuple[object, ...]


def state(body: JSON) -> State:
    """What a person would call another state: phase, stage, step, weight."""
    status = body.get("status") or {}
    run, rollout = status.get("run") or {}, status.get("rollout") or {}
    stages = tuple((one["stage"], one.get("job"), "finishedAt" in one) for one in status.get("stages") or ())
    step = (rollout.get("phase"), rollout.get("step"), rollout.get("weight"))
    return (status.get("phase"), run.get("stage"), run.get("outcome"), *step, *stages)


class Journal:
    """Writes in their order, and the states that they led to."""

    def __init__(self, world: World) -> None:
        self._objects = world.raw.objects  # type: ignore[attr-defined]
        self._states: dict[tuple[str, str], State] = {}
        self.writes: list[str] = []
        self.transitions: list[tuple[int, str, State]] = []
        """(number of the write that made it so, object, state); an object's first status is none."""
        world.transport.after = self._after

    def _after(self, number: int, method: str, path: str) -> None:
        for (_, name), body in self._objects.items():
            if body["kind"] not in (CYCLE_KIND, VERSION_KIND):
                continue
            now, before = state(body), self._states.get((body["kind"], name))
            self._states[body["kind"], name] = now
            if before is not None and now != before:
                self.transitions.append((number, name, now))
        self.writes.append(f"{method} {path}")


async def test_a_transition_takes_few_writes(fake_world: World) -> None:
    """From the cycle's creation to the champion of its first run."""
    journal = Journal(fake_world)
    await forward(fake_world)
    assert len(journal.transitions) > 15, "the story has its stages and steps"
    assert len(journal.writes) <= MOST * len(journal.transitions), Counter(journal.writes)


async def test_a_step_of_a_rollout_takes_few_writes(fake_world: World) -> None:
    """Decision, event, what the gateways say; and no more until the next transition of cycle or version."""
    journal = Journal(fake_world)
    await forward(fake_world)
    last = (len(journal.writes), "", ())
    steps = 0
    for (number, name, now), (following, _, _) in pairwise([*journal.transitions, last]):
        if name == "assistant" and now[3] in ("Canary", "Baking"):
            steps += 1
            assert following - number <= MOST, journal.writes[number:following]
    assert steps >= 3


READS = {"exists", "get", "pages", "secret_data", "select"}
LEASES = {"create_lease", "replace_lease"}
"""Written by those who want to lead."""


async def test_who_does_not_lead_writes_nothing(fake_world: World) -> None:
    """Every way to write there is; a new one has to be named here."""

    def refuses() -> None:
        raise NotLeading("another one leads")

    world = fake_world
    await serving(world)
    await world.apply(version_manifest(world.namespace, "mine"))
    await world.settle()
    cycle, version = await world.cycle(), await world.version("mine")
    arm = (await world.deployments())["assistant-0-arm"].metadata
    kube, meta = Kube(world.transport, refuses), {"namespace": world.namespace, "name": "new"}
    ways: dict[str, Callable[[], Awaitable[object]]] = {
        "apply": lambda: kube.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta}),
        "create": lambda: kube.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta}),
        "create_event": lambda: kube.create_event({"apiVersion": "v1", "kind": "Event", "metadata": meta}),
        "delete": lambda: kube.delete("Deployment", world.namespace, arm.name),
        "delete_child": lambda: kube.delete_child("Deployment", world.namespace, arm.name, cycle.metadata.uid),
        "write_conditions": lambda: kube.write_conditions("ImprovementCycle", cycle.metadata, []),
        "write_cycle_status": lambda: kube.write_cycle_status(cycle, cycle.status),
        "write_version_status": lambda: kube.write_version_status(version, version.status),
        "write_route_rules": lambda: kube.write_route_rules(cycle.metadata, []),
    }
    public = {name for name, one in inspect.getmembers(Kube, inspect.isfunction) if _asks(name, one)}
    assert public == READS | LEASES | ways.keys()
    before = list(world.transport.writes)
    for name, way in ways.items():
        with pytest.raises(NotLeading):
            await way()
        assert world.transport.writes == before, name


def _asks(name: str, method: object) -> bool:
    return not name.startswith("_") and (inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method))
