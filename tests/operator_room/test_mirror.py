"""What a cycle at rest costs: passes that look at what the watches brought, and act on nothing but the API server."""

import copy
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from operator_stories import forward
from operator_world import World, cycle_manifest, resource

from ratchet_api.names import CYCLE_KIND, VERSION_KIND
from ratchet_operator.application import Application
from ratchet_operator.clients.mirror import MIRRORED, Looking, Mirror, Unsettled
from ratchet_operator.clients.transport import JSON, Transport
from ratchet_operator.index import Index, rests
from ratchet_operator.queue import Key

PATH = "/apis/ratchet.dev/v1alpha1/namespaces/default/"


class Logged:
    """A Transport that notes every request."""

    def __init__(self, inner: Transport) -> None:
        self._inner = inner
        self.requests: Counter[str] = Counter()

    async def request(
        self,
        method: str,
        path: str,
        body: JSON | None = None,
        query: Mapping[str, str] | None = None,
        content_type: str | None = None,
        accept: str | None = None,
    ) -> JSON:
        self.requests[f"{method} {path}"] += 1
        return await self._inner.request(method, path, body, query, content_type, accept)


def version(name: str, revision: int, phase: str = "Serving", cycle: str = "assistant") -> JSON:
    meta = {"name": name, "namespace": "default", "resourceVersion": str(revision), "generation": 1}
    status = {"phase": phase, "observedGeneration": 1, "conditions": [{"type": "Ready"}]}
    return {"metadata": meta, "spec": {"cycle": cycle}, "status": status}


def operator(world: World, transport: Logged) -> Application:
    """An operator process without its sockets, in the world's place."""
    world.transport = transport  # type: ignore[assignment]
    world.restart()
    made = Application(world.context.settings, transport)
    made.context = world.context
    return made


async def listed(world: World, application: Application) -> None:
    """What the first list brings."""
    for kind in MIRRORED:
        raw = await world.raw.request("get", resource(kind).path(world.namespace))
        for body in raw["items"]:
            application.seen(kind, body)
    application.synced = True


async def passes(application: Application) -> None:
    for key in application.index.known():
        await application.process(key)


def crowd(world: World, number: int) -> None:
    """Other cycles at rest, each as the first one is."""
    objects = world.raw.objects  # type: ignore[attr-defined]
    for (place, name), body in list(objects.items()):
        for other in range(number):
            if body["kind"] in MIRRORED:
                twin = renamed(body, f"twin{other}")
                twin["metadata"]["uid"] += f"-{other}"
                objects[place, twin["metadata"]["name"]] = twin
            elif name == "assistant":
                objects[place, f"twin{other}"] = renamed(body, f"twin{other}")


def renamed(value: Any, name: str) -> Any:
    if isinstance(value, dict):
        return {key: renamed(inner, name) for key, inner in value.items()}
    if isinstance(value, list):
        return [renamed(inner, name) for inner in value]
    return value.replace("assistant", name) if isinstance(value, str) else copy.copy(value)


async def test_a_pass_at_rest_asks_the_api_server_nothing(fake_world: World) -> None:
    await forward(fake_world)
    logged = Logged(fake_world.raw)
    application = operator(fake_world, logged)
    await listed(fake_world, application)
    await passes(application)  # a new process says its last words again
    logged.requests.clear()
    await passes(application)
    assert not logged.requests


async def test_a_pass_costs_the_same_among_many(fake_world: World) -> None:
    """Live passes, too: as many requests with thirty other cycles as with none."""
    await forward(fake_world)
    found = []
    for others in (0, 30):
        crowd(fake_world, others)
        logged = Logged(fake_world.raw)
        application = operator(fake_world, logged)
        await application.process(Key(CYCLE_KIND, "default", "assistant"))
        logged.requests.clear()
        await application.process(Key(CYCLE_KIND, "default", "assistant"))
        found.append(sum(logged.requests.values()))
    assert found[0] == found[1] > 0, "nothing was listed, so nothing is known, and the API server is asked"


async def test_what_a_look_finds_is_done_by_a_pass_that_reads_anew(fake_world: World) -> None:
    world = fake_world
    await forward(world)
    logged = Logged(world.raw)
    application = operator(world, logged)
    await listed(world, application)
    await passes(application)
    await world.apply(cycle_manifest(world.namespace, serving={"runtime": "transformers", "replicas": 2}))
    body = await world.raw.request("get", f"{PATH}improvementcycles/assistant")
    application.seen(CYCLE_KIND, body)
    await application.process(Key(CYCLE_KIND, "default", "assistant"))
    assert (await world.deployments())["assistant-1-arm"].spec.replicas == 2


async def test_a_mirror_that_is_late_makes_no_write_of_its_own(fake_world: World) -> None:
    """It does not know of the arm yet; the API server does."""
    world = fake_world
    await forward(world)
    logged = Logged(world.raw)
    application = operator(world, logged)
    for kind in (VERSION_KIND, CYCLE_KIND):
        for body in (await world.raw.request("get", resource(kind).path(world.namespace)))["items"]:
            application.seen(kind, body)
    application.synced = True
    await passes(application)
    logged.requests.clear()
    await passes(application)
    assert logged.requests, "a look without the arm is no end of it"
    assert not [one for one in logged.requests if not one.startswith("get")]


def test_only_news_is_told() -> None:
    mirror = Mirror()
    assert mirror.note(VERSION_KIND, version("a", 5))
    assert not mirror.note(VERSION_KIND, version("a", 5)), "the same"
    assert not mirror.note(VERSION_KIND, version("a", 4, "Canary")), "older"
    assert not mirror.forget(VERSION_KIND, version("a", 4)), "an earlier one of its name was deleted"
    found = mirror.get(VERSION_KIND, "default", "a")
    assert found is not None
    assert found["status"]["phase"] == "Serving"
    assert mirror.note(VERSION_KIND, version("a", 6, cycle="other"))
    assert mirror.select(VERSION_KIND, "default", "assistant") == []
    assert mirror.forget(VERSION_KIND, version("a", 7))
    assert mirror.get(VERSION_KIND, "default", "a") is None
    assert not mirror.known(VERSION_KIND)


async def test_a_look_answers_what_it_can_and_never_writes(fake_world: World) -> None:
    mirror, logged = Mirror(), Logged(fake_world.raw)
    looking = Looking(mirror, logged)
    mirror.note(VERSION_KIND, version("a", 1))
    mirror.note(VERSION_KIND, version("b", 2, cycle="other"))
    found = await looking.request("get", f"{PATH}modelversions", query={"fieldSelector": "spec.cycle=assistant"})
    assert [one["metadata"]["name"] for one in found["items"]] == ["a"]
    assert not logged.requests
    assert (await looking.request("get", "/api/v1/namespaces/gateway/pods"))["items"] == []
    assert logged.requests == {"get /api/v1/namespaces/gateway/pods": 1}, "not all of them are watched"
    with pytest.raises(Unsettled):
        await looking.request("put", f"{PATH}modelversions/a/status", {})


def test_an_event_is_told_to_those_it_concerns() -> None:
    index, owner = Index(), Key(CYCLE_KIND, "default", "assistant")
    a, b = (Key(VERSION_KIND, "default", name) for name in "ab")
    assert index.note(a, version("a", 1)) == [a, owner]
    index.note(b, version("b", 2, "Superseded"))
    assert index.note(owner, {"status": {}}) == [owner, a], "b has ended"
    assert set(index.note(owner, {"status": {"rollout": {"version": "b"}}})) == {owner, a, b}
    assert index.forget(a) == [owner]
    assert list(index.known()) == [owner, b]
    assert index.forget(owner) == [b]


def test_rest() -> None:
    assert rests(VERSION_KIND, version("a", 1))
    assert not rests(VERSION_KIND, version("a", 1, "Training"))
    changed = version("a", 1)
    changed["metadata"]["generation"] = 2
    assert not rests(VERSION_KIND, changed)
    cycle = version("assistant", 1)
    cycle["status"]["serving"] = {"stable": {"version": "a"}}
    assert rests(CYCLE_KIND, cycle)
    for more in ({"rollout": {"phase": "Canary"}}, {"run": {"number": 1}}, {"serving": {"candidate": {}}}):
        busy = copy.deepcopy(cycle)
        busy["status"] |= more
        assert not rests(CYCLE_KIND, busy), more
