"""Routers on the real API server, with the real HTTPRoute: ownership of fields, admission, resource versions."""

import asyncio
import copy

import pytest
from operator_neighbours import ROUTE, by_route, route_manifest
from operator_stories import champion, proven, resting, rollout, routed, services, serving
from operator_world import World, resource

from ratchet_api.conditions import find
from ratchet_api.names import FIELD_MANAGER, VERSION_LABEL
from ratchet_api.reasons import ConditionType, Reason
from ratchet_operator.clients.objects import Deployment
from ratchet_operator.clients.traffic import HTTPRoute, Service
from ratchet_operator.clients.transport import JSON
from ratchet_operator.errors import Conflict
from ratchet_operator.reconcile.autoscaling import HANDOVER

pytestmark = [pytest.mark.apiserver, pytest.mark.usefixtures("gateway_api")]


async def raw(world: World, kind: str, name: str) -> JSON:
    return await world.raw.request("get", resource(kind).path(world.namespace, name))


async def apply_as(world: World, manager: str, manifest: JSON) -> JSON:
    meta = manifest["metadata"]
    path = resource(manifest["kind"]).path(meta["namespace"], meta["name"])
    query = {"fieldManager": manager, "force": "true"}
    return await world.raw.request("patch", path, manifest, query, "application/apply-patch+yaml")


async def at(world: World, weight: int) -> None:
    async def there() -> bool:
        candidate = (await world.cycle()).status.serving.candidate
        return candidate is not None and candidate.observed_weight == weight

    await world.until(there, tick=0.5)


def without_weights(route: JSON) -> JSON:
    spec: JSON = copy.deepcopy(route["spec"])
    for rule in spec["rules"]:
        for backend in rule["backendRefs"]:
            backend.pop("weight", None)
    return spec


async def test_a_version_becomes_champion_and_only_weights_were_written(world: World) -> None:
    """In it, Git's tool applies the route once more; its weights are set back, and it is named."""
    neighbours = await routed(world)
    before = await raw(world, "HTTPRoute", ROUTE)
    await proven(world, "good")
    await at(world, 25)
    await apply_as(world, "argocd-controller", route_manifest(world.namespace))
    await neighbours()
    await world.step()
    assert await neighbours.weights() == (75, 25)
    events = await world.raw.request("get", resource("Event").path(world.namespace))
    notes = [event["note"] for event in events["items"] if event["reason"] == Reason.ROUTE_RESET]
    assert len(notes) == 1
    assert notes[0].startswith(f"argocd-controller changed the weights of HTTPRoute {ROUTE} to 1 and 0; ")
    await champion(world, "good")
    after = await raw(world, "HTTPRoute", ROUTE)
    assert without_weights(after) == without_weights(before)
    assert after["metadata"].get("annotations") == before["metadata"].get("annotations")
    assert "finalizers" not in after["metadata"]
    ours = [entry for entry in after["metadata"]["managedFields"] if entry["manager"] == FIELD_MANAGER]
    assert [entry["fieldsV1"] for entry in ours] == [{"f:spec": {"f:rules": {}}}], "the rules are one field: atomic"
    assert set((await services(world)).values()) == {"good"}
    assert (100, 0) in neighbours.acknowledged


async def test_a_route_that_changed_meanwhile_is_not_overwritten(world: World) -> None:
    await world.apply(route_manifest(world.namespace))
    route = await world.kube.get(HTTPRoute, world.namespace, ROUTE)
    assert route is not None
    await world.apply(route_manifest(world.namespace, hostnames=["other.example.com"]))
    with pytest.raises(Conflict):
        await world.kube.write_route_rules(route.metadata, route.weighed(0, {"assistant-stable": 5}))


async def test_a_service_of_people_s(world: World) -> None:
    """Without a selector it is pointed, by that one field; with their own selector it is not touched, and it is said
    whose it is."""
    theirs = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "assistant-candidate", "namespace": world.namespace},
        "spec": {"selector": {"app": "mine"}, "ports": [{"port": 8000}]},
    }
    mine = copy.deepcopy(theirs) | {"metadata": {"name": "assistant-stable", "namespace": world.namespace}}
    del mine["spec"]["selector"]
    for manifest in (theirs, mine):
        await apply_as(world, "helm", manifest)
    await world.apply(route_manifest(world.namespace))
    await serving(world, serving=by_route(), rollout=rollout())
    found = find((await world.cycle()).status.conditions, ConditionType.STALLED)
    assert found is not None
    assert (found.status, found.reason) == ("True", Reason.FOREIGN_OWNER)
    assert "Service assistant-candidate has a selector that helm wrote" in found.message
    services = {s.metadata.name: s for s in await world.kube.select(Service, world.namespace)}
    assert services["assistant-candidate"].spec.selector == {"app": "mine"}
    pointed = services["assistant-stable"]
    assert pointed.spec.selector[VERSION_LABEL] == "assistant-0"
    assert pointed.metadata.managers("spec", "selector") == [FIELD_MANAGER]
    assert pointed.metadata.managers("spec", "ports") == ["helm"]
    # People give way: it goes on by itself.
    del theirs["spec"]["selector"]  # type: ignore[attr-defined]
    await apply_as(world, "helm", theirs)

    async def going() -> bool:
        found = find((await world.cycle()).status.conditions, ConditionType.STALLED)
        return found is not None and found.status == "False"

    await world.until(going)


async def test_an_autoscaler_takes_over_and_gives_back_without_a_gap(world: World) -> None:
    await serving(world, serving={"runtime": "transformers", "replicas": 3})
    name = "assistant-0-arm"
    scaler = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "busy", "namespace": world.namespace},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "minReplicas": 2,
            "maxReplicas": 9,
        },
    }
    await world.apply(scaler)
    await resting(world)
    arm = await world.kube.get(Deployment, world.namespace, name)
    assert arm is not None
    assert arm.spec.replicas == 3, "not one, which it is when its last manager lets go"
    assert arm.metadata.managers("spec", "replicas") == [HANDOVER]
    scale = resource("Deployment").path(world.namespace, name, "scale")
    await world.raw.request("patch", scale, {"spec": {"replicas": 5}}, content_type="application/merge-patch+json")
    async with asyncio.timeout(60):
        while (await world.cycle()).status.serving.stable.replicas != 5:  # type: ignore[union-attr]
            await world.kubelet()
            await world.step()
    assert (await world.deployments())[name].spec.replicas == 5
    await world.remove("HorizontalPodAutoscaler", "busy")
    await resting(world)
    assert (await world.deployments())[name].spec.replicas == 3


async def test_numbers_of_pods_on_the_real_one(world: World) -> None:
    from operator_stories import forward_by_replicas

    await forward_by_replicas(world)
    assert {name: d.spec.replicas for name, d in (await world.deployments()).items()} == {"good-arm": 4}
    assert await services(world) == {"assistant": "good"}
