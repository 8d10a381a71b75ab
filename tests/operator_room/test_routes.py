"""serving.router httpRoute: weights of a route that is somebody else's, without a moment in which nobody answers."""

from collections.abc import Awaitable, Callable

import pytest
from operator_fake import FakeApi
from operator_neighbours import ROUTE, route_manifest
from operator_stories import (
    back_by_route,
    champion,
    forward_by_route,
    harmed,
    proven,
    resting,
    routed,
    services,
)
from operator_world import World, resource

from ratchet_api.conditions import find
from ratchet_api.names import VERSION_LABEL
from ratchet_api.reasons import ConditionType, Reason
from ratchet_operator.clients.objects import Pod
from ratchet_operator.clients.traffic import HTTPRoute, Service
from ratchet_operator.clients.transport import JSON
from ratchet_operator.reconcile.announcing import STILL_NEWS


async def at(world: World, weight: int) -> None:
    """The candidate really gets that share."""

    async def there() -> bool:
        candidate = (await world.cycle()).status.serving.candidate
        return candidate is not None and candidate.observed_weight == weight

    await world.until(there, tick=0.5)


async def stalled(world: World, reason: Reason) -> str:
    """The cycle is Stalled by that; the message."""
    said = ""

    async def it_is() -> bool:
        nonlocal said
        found = find((await world.cycle()).status.conditions, ConditionType.STALLED)
        said = found.message if found is not None else ""
        return found is not None and found.status == "True" and found.reason == reason

    await world.until(it_is, tick=0.5)
    return said


async def going(world: World) -> None:
    """Not Stalled."""

    async def it_is() -> bool:
        found = find((await world.cycle()).status.conditions, ConditionType.STALLED)
        return found is not None and found.status == "False"

    await world.until(it_is, tick=0.5)


def watched(world: World) -> list[str]:
    """After every write: versions that get traffic by the route and have no ready pod. Fills while stories go on."""
    seen: list[str] = []
    api = world.raw
    assert isinstance(api, FakeApi)

    def of(plural: str) -> list[JSON]:
        return [thing for (place, _), thing in api.objects.items() if place.endswith(f"/{plural}")]

    def look(number: int, method: str, path: str) -> None:
        pods = [Pod.model_validate(pod) for pod in of("pods")]
        ready = {pod.metadata.labels.get(VERSION_LABEL) for pod in pods if pod.ready}
        if not ready - {None}:
            return  # the very first bringing up
        selects = {s["metadata"]["name"]: s["spec"]["selector"].get(VERSION_LABEL) for s in of("services")}
        for route in map(HTTPRoute.model_validate, of("httproutes")):
            weights = route.weights(0)
            if sum(weights.values()) == 0:
                seen.append(f"write {number}: no weight at all")
            for name, weight in weights.items():
                if weight and selects.get(name) not in ready:
                    seen.append(f"write {number} {method} {path}: {weight} to {name}, {selects.get(name)}, not ready")

    world.transport.after = look
    return seen


@pytest.mark.parametrize("story", [forward_by_route, back_by_route])
async def test_no_share_goes_to_pods_that_are_not_there(
    fake_world: World, story: Callable[[World], Awaitable[None]]
) -> None:
    lost = watched(fake_world)
    await story(fake_world)
    assert lost == []
    name = "good" if story is forward_by_route else "assistant-0"
    assert await services(fake_world) == {"assistant-stable": name, "assistant-candidate": name}, "any weights reach it"


async def test_the_weights_follow_the_steps_and_come_home(fake_world: World) -> None:
    neighbours = await routed(fake_world)
    await proven(fake_world, "good")
    await champion(fake_world, "good")
    steps = [weights for weights in neighbours.acknowledged if sum(weights) == 100]
    assert steps == [(75, 25), (0, 100), (100, 0)]
    history = (await fake_world.cycle()).status.history
    assert [entry.outcome for entry in history] == ["Promoted"]


async def test_a_second_version_follows_the_first(fake_world: World) -> None:
    """The Services change their roles' versions once more."""
    lost = watched(fake_world)
    await routed(fake_world)
    for letter, name in (("b", "first"), ("c", "second")):
        fake_world.prometheus.bad.clear()
        await proven(fake_world, name, letter)
        await champion(fake_world, name)
    assert lost == []
    assert set((await services(fake_world)).values()) == {"second"}


async def test_nothing_but_the_weights_is_written(fake_world: World) -> None:
    await routed(fake_world)
    before = await raw_route(fake_world)
    await proven(fake_world, "good")
    await at(fake_world, 25)
    after = await raw_route(fake_world)
    backends = after["spec"]["rules"][0]["backendRefs"]
    assert [backend["weight"] for backend in backends] == [75, 25]
    for backend, weight in zip(backends, (1, 0), strict=True):
        backend["weight"] = weight
    assert after["spec"] == before["spec"]
    assert after["metadata"].get("annotations") == before["metadata"].get("annotations")


async def raw_route(world: World) -> JSON:
    return await world.raw.request("get", resource("HTTPRoute").path(world.namespace, ROUTE))


async def test_weights_that_somebody_resets_are_set_back_and_it_is_said(fake_world: World) -> None:
    neighbours = await routed(fake_world)
    await proven(fake_world, "good")
    await at(fake_world, 25)
    await fake_world.apply(route_manifest(fake_world.namespace, (1, 0)))
    await neighbours()
    await fake_world.step()
    assert await neighbours.weights() == (75, 25)
    events = [thing for thing in objects(fake_world, "events") if thing["reason"] == Reason.ROUTE_RESET]
    assert len(events) == 1
    assert "are set back to 75 and 25" in events[0]["note"]
    await at(fake_world, 25)


async def test_a_reset_is_answered_once_a_pass_and_not_in_a_loop(fake_world: World) -> None:
    """Somebody who never gives in costs one write each time that he writes, and nothing at rest."""
    neighbours = await routed(fake_world)
    await proven(fake_world, "good")
    await at(fake_world, 25)
    for _ in range(5):
        await fake_world.apply(route_manifest(fake_world.namespace, (1, 0)))
        await neighbours()
        before = len(fake_world.transport.writes)
        await fake_world.settle()
        written = fake_world.transport.writes[before:]
        assert len([path for _, path in written if path.endswith(f"/httproutes/{ROUTE}")]) == 1
        await neighbours()
    await champion(fake_world, "good")


async def test_equal_shares_in_other_numbers_are_left_alone(fake_world: World) -> None:
    neighbours = await routed(fake_world)
    before = len(fake_world.transport.writes)
    await fake_world.apply(route_manifest(fake_world.namespace, (1000, 0)))
    await resting(fake_world)
    assert not any("/httproutes/" in path for _, path in fake_world.transport.writes[before:])
    assert await neighbours.weights() == (1000, 0)


def objects(world: World, plural: str) -> list[JSON]:
    api = world.raw
    assert isinstance(api, FakeApi)
    return [thing for (place, _), thing in api.objects.items() if place.endswith(f"/{plural}")]


async def test_a_route_that_is_not_there_stalls_until_it_is(fake_world: World) -> None:
    await routed(fake_world)
    await fake_world.remove("HTTPRoute", ROUTE)
    assert "apply it, or correct serving.httpRoute.name" in await stalled(fake_world, Reason.MISSING_ROUTE)
    await fake_world.apply(route_manifest(fake_world.namespace))
    await going(fake_world)


async def test_a_route_deleted_in_the_canary_holds_it_and_a_rollback_ends_when_it_is_back(fake_world: World) -> None:
    await routed(fake_world)
    await proven(fake_world, "bad")
    await at(fake_world, 25)
    await fake_world.remove("HTTPRoute", ROUTE)
    await stalled(fake_world, Reason.MISSING_ROUTE)
    rollout = (await fake_world.cycle()).status.rollout
    assert rollout is not None
    assert (rollout.phase, rollout.weight) == ("Canary", 25)
    assert rollout.unconfirmed_since is not None
    await fake_world.apply(route_manifest(fake_world.namespace, (1, 1)))
    await harmed(fake_world)


@pytest.mark.parametrize(
    ("rules", "target", "reason", "words"),
    [
        (lambda rule: [rule, rule], {}, Reason.MISSING_ROUTE, "has 2 rules"),
        (lambda rule: [rule], {"rule": "7"}, Reason.MISSING_ROUTE, "has no rule 7"),
        (lambda rule: [rule], {"rule": "chat"}, Reason.MISSING_ROUTE, "has no rule chat"),
        (
            lambda rule: [rule | {"backendRefs": rule["backendRefs"][:1]}],
            {},
            Reason.MISSING_ROUTE,
            "no backendRef to Service assistant-candidate",
        ),
        (
            lambda rule: [rule | {"backendRefs": [*rule["backendRefs"], {"name": "old", "port": 80, "weight": 5}]}],
            {},
            Reason.FOREIGN_OWNER,
            "sends traffic to old too",
        ),
    ],
)
async def test_a_rule_that_cannot_be_weighed(
    fake_world: World, rules: Callable[[JSON], list[JSON]], target: dict[str, str], reason: Reason, words: str
) -> None:
    await routed(fake_world)
    rule = route_manifest("")["spec"]["rules"][0]
    await fake_world.edit({"serving": {"httpRoute": {"name": ROUTE, **target}}})
    await fake_world.apply(route_manifest(fake_world.namespace, rules=rules(rule)))
    assert words in await stalled(fake_world, reason)


async def test_a_rule_by_name_or_index(fake_world: World) -> None:
    neighbours = await routed(fake_world)
    rule = route_manifest("")["spec"]["rules"][0]
    other = {"backendRefs": [{"name": "docs", "port": 80}]}
    await fake_world.apply(route_manifest(fake_world.namespace, rules=[other, rule | {"name": "chat"}]))
    for number, name in enumerate(("chat", "1")):
        await fake_world.edit({"serving": {"httpRoute": {"name": ROUTE, "rule": name}}})
        await fake_world.apply(service("docs"))
        await going(fake_world)
        await resting(fake_world)
        stable = (await fake_world.cycle()).status.serving.stable
        assert stable is not None
        assert stable.observed_weight == 100, number
    assert (await neighbours.route()).weights(0) == {"docs": 1}


def service(name: str, **spec: object) -> JSON:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"ports": [{"port": 8000}], **spec},
    }


async def test_a_parent_that_refuses(fake_world: World) -> None:
    neighbours = await routed(fake_world)
    neighbours.accepts = False
    await fake_world.apply(route_manifest(fake_world.namespace, (2, 0)))
    said = await stalled(fake_world, Reason.ROUTE_NOT_ACCEPTED)
    assert "Gateway gate says Accepted=False (Refused)" in said
    neighbours.accepts = True
    await going(fake_world)


async def test_a_weight_counts_only_once_every_parent_has_accepted_it(fake_world: World) -> None:
    neighbours = await routed(fake_world)
    neighbours.silent = True
    await proven(fake_world, "good")

    async def asked() -> bool:
        return await neighbours.weights() == (75, 25)

    await fake_world.until(asked, tick=0.5)
    await resting(fake_world)
    cycle = await fake_world.cycle()
    assert cycle.status.rollout is not None
    assert cycle.status.rollout.unconfirmed_since is not None
    assert cycle.status.serving.candidate is not None
    assert cycle.status.serving.candidate.observed_weight is None
    found = find(cycle.status.conditions, ConditionType.RECONCILING)
    assert found is not None
    assert "Gateway gate has not accepted the present weights yet" in found.message
    neighbours.silent = False
    await at(fake_world, 25)


async def test_a_route_that_another_controller_makes(fake_world: World) -> None:
    await routed(fake_world)
    manifest = route_manifest(fake_world.namespace)
    owner = {"apiVersion": "flagger.app/v1beta1", "kind": "Canary", "name": "chat", "uid": "u", "controller": True}
    manifest["metadata"]["ownerReferences"] = [owner]
    await fake_world.apply(manifest)
    assert "is made by Canary chat" in await stalled(fake_world, Reason.FOREIGN_OWNER)


async def test_people_s_own_services_keep_everything_but_the_selector(fake_world: World) -> None:
    """Made before, with an annotation for a cloud's load balancer and no selector."""
    mine = service("assistant-stable")
    mine["metadata"]["annotations"] = {"cloud": "special"}
    await fake_world.apply(mine)
    await routed(fake_world)
    found = next(thing for thing in objects(fake_world, "services") if thing["metadata"]["name"] == "assistant-stable")
    assert found["metadata"]["annotations"] == {"cloud": "special"}
    assert "ownerReferences" not in found["metadata"]
    assert found["spec"]["ports"] == [{"port": 8000}]
    assert found["spec"]["selector"][VERSION_LABEL] == "assistant-0"


async def test_no_write_at_rest(fake_world: World) -> None:
    await forward_by_route(fake_world)
    before = len(fake_world.transport.writes)
    fake_world.clock.advance(STILL_NEWS.total_seconds())
    for _ in range(5):
        fake_world.clock.advance(60)
        await resting(fake_world)
        fake_world.restart()
    assert fake_world.transport.writes[before:] == []
    assert {s.metadata.name for s in await fake_world.kube.select(Service, "default")} == {
        "assistant-stable",
        "assistant-candidate",
    }
