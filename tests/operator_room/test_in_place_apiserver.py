"""Serving in place on the real API server: who owns which field of people's Deployment before, during and after."""

import copy
from typing import Any

import pytest
from operator_stories import (
    LONG,
    WORKLOAD,
    in_place,
    placed,
    proven,
    rolled,
    sent_back,
    settled_in_place,
    workload_manifest,
)
from operator_world import World, cycle_manifest, resource

from ratchet_api.conditions import find
from ratchet_api.names import ARM_LABEL, CYCLE_LABEL, VERSION_LABEL
from ratchet_api.reasons import ConditionType, Reason
from ratchet_operator.clients.transport import JSON
from ratchet_operator.reconcile import cycle as cycles

pytestmark = pytest.mark.apiserver
MANAGER = "ratchet-operator-assistant"
GIT = "argocd-controller"
CONTAINER = '/f:spec/f:template/f:spec/f:containers/k:{"name":"server"}/f:name'


async def raw(world: World, name: str = WORKLOAD) -> JSON:
    return await world.raw.request("get", resource("Deployment").path(world.namespace, name))


async def apply_as(world: World, manager: str, manifest: JSON) -> JSON:
    meta = manifest["metadata"]
    path = resource(manifest["kind"]).path(meta["namespace"], meta["name"])
    query = {"fieldManager": manager, "force": "true"}
    return await world.raw.request("patch", path, manifest, query, "application/apply-patch+yaml")


def leaves(fields: JSON, path: str = "") -> set[str]:
    """Paths of a managedFields entry."""
    found: set[str] = set()
    for key, value in fields.items():
        inner = {k: v for k, v in value.items() if k != "."}
        found |= leaves(inner, f"{path}/{key}") if inner else {f"{path}/{key}"}
    return found


def owned(deployment: JSON, manager: str) -> set[str]:
    entries = [e for e in deployment["metadata"]["managedFields"] if e["manager"] == manager and "subresource" not in e]
    return set().union(*(leaves(entry["fieldsV1"]) for entry in entries))


async def taken_over(world: World, bake: str = "2s", **serving: Any) -> JSON:
    """Git's Deployment, before Ratchet came; then it serves the base model."""
    await apply_as(world, GIT, workload_manifest(world.namespace))
    before = await raw(world)
    await world.storage()
    await world.apply(cycle_manifest(world.namespace, **placed(bake, **serving)))
    await settled_in_place(world, "assistant-0")
    return before


async def test_git_and_we_own_different_fields_all_the_while(world: World) -> None:
    before = await taken_over(world, LONG)
    theirs = owned(before, GIT)
    adopted = await raw(world)
    assert owned(adopted, GIT) == theirs
    ours = owned(adopted, MANAGER)
    assert ours & theirs == {CONTAINER}, "the key by which its container is found"
    assert all("ratchet" in leaf.lower() for leaf in ours - {CONTAINER}), "every field has our name in its path"
    assert not any("replicas" in leaf or ("image" in leaf and "ratchet-fetch" not in leaf) for leaf in ours)
    assert adopted["metadata"].get("finalizers") is None
    assert adopted["metadata"].get("ownerReferences") is None

    await proven(world, "good")
    await rolled(world, "good")
    # In the bake, Git changes what is its own.
    changed = workload_manifest(world.namespace)
    changed["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"] = "4"
    await apply_as(world, GIT, changed)
    during = await raw(world)
    assert during["spec"]["template"]["metadata"]["labels"][VERSION_LABEL] == "good", "ours is not reverted"
    assert (owned(during, GIT), owned(during, MANAGER)) == (theirs, ours)
    world.clock.advance(300)
    await settled_in_place(world, "good")
    after = await raw(world)
    [server] = after["spec"]["template"]["spec"]["containers"]
    values = {entry["name"]: entry.get("value", "") for entry in server["env"]}
    assert (values["THREADS"], values["RATCHET_VERSION"]) == ("4", "good"), "theirs is not reverted"
    assert (owned(after, GIT), owned(after, MANAGER)) == (theirs, ours)
    assert {e["manager"] for e in after["metadata"]["managedFields"]} <= {GIT, MANAGER, "kube-controller-manager"}
    # Nothing is written at rest, and Git's next sync of the same changes nothing.
    version = after["metadata"]["resourceVersion"]
    await apply_as(world, GIT, changed)
    await world.settle()
    assert (await raw(world))["metadata"]["resourceVersion"] == version


async def test_a_bad_one_goes_back_from_the_bake(world: World) -> None:
    await taken_over(world, LONG)
    before = await raw(world)
    await proven(world, "bad")
    await rolled(world, "bad")
    world.prometheus.bad["bad"] = 200.0
    await sent_back(world)
    after = await raw(world)
    assert after["spec"]["template"] == before["spec"]["template"]


async def test_everything_is_given_back(world: World) -> None:
    before = await taken_over(world, keepServing=False)
    await proven(world, "good")
    await settled_in_place(world, "good")
    await world.remove("ImprovementCycle", "assistant")
    await cycles.reconcile(world.context, world.namespace, "assistant")
    after = await raw(world)
    assert after["spec"] == before["spec"]
    assert after["metadata"]["labels"] == before["metadata"]["labels"]
    assert "ratchet.dev/restore" not in after["metadata"]["annotations"]
    assert owned(after, GIT) == owned(before, GIT)
    assert MANAGER not in {e["manager"] for e in after["metadata"]["managedFields"]}


async def test_it_serves_on_without_its_cycle(world: World) -> None:
    await taken_over(world)
    await proven(world, "good")
    await settled_in_place(world, "good")
    before = await raw(world)
    await world.remove("ImprovementCycle", "assistant")
    await cycles.reconcile(world.context, world.namespace, "assistant")
    after = await raw(world)
    assert after["spec"] == before["spec"]
    # Its pods need nothing that goes with the cycle.
    sources = {key for volume in after["spec"]["template"]["spec"]["volumes"] for key in volume if key != "name"}
    assert sources == {"emptyDir", "downwardAPI"}


async def test_client_side_apply_leaves_ours_alone(world: World) -> None:
    """As `kubectl apply` and Argo CD without server-side apply do it: a strategic merge patch of what Git changed."""
    await taken_over(world)
    patch = {"spec": {"template": {"spec": {"containers": [{"name": "server", "image": "example.com/server:2"}]}}}}
    path = resource("Deployment").path(world.namespace, WORKLOAD)
    query = {"fieldManager": "kubectl-client-side-apply"}
    await world.raw.request("patch", path, patch, query, "application/strategic-merge-patch+json")
    await settled_in_place(world, "assistant-0")
    template = (await raw(world))["spec"]["template"]
    assert template["spec"]["containers"][0]["image"] == "example.com/server:2"
    labels = {CYCLE_LABEL: "assistant", VERSION_LABEL: "assistant-0", ARM_LABEL: "true"}
    assert labels.items() <= template["metadata"]["labels"].items()


async def test_a_field_of_ours_that_git_says_otherwise_about(world: World) -> None:
    """Nothing is forced: it is said who it is, about which field, and it goes on when they give way."""
    manifest = workload_manifest(world.namespace)
    quarrel = copy.deepcopy(manifest)
    quarrel["spec"]["template"]["spec"]["containers"][0]["env"].append({"name": "RATCHET_VERSION", "value": "mine"})
    await apply_as(world, GIT, quarrel)
    await world.storage()
    await world.apply(cycle_manifest(world.namespace, serving={"workload": {"name": WORKLOAD}}))

    async def stalled() -> bool:
        found = find((await world.cycle()).status.conditions, ConditionType.STALLED)
        return found is not None and (found.status, found.reason) == ("True", Reason.FOREIGN_OWNER)

    await world.until(stalled, tick=0.5)
    found = find((await world.cycle()).status.conditions, ConditionType.STALLED)
    assert found is not None
    field = '.spec.template.spec.containers[name="server"].env[name="RATCHET_VERSION"].value'
    assert found.message.startswith(
        f"Deployment {WORKLOAD}: {GIT} says otherwise about {field}, which names the version"
    )
    assert owned(await raw(world), MANAGER) == set()
    await apply_as(world, GIT, manifest)
    await settled_in_place(world, "assistant-0")


async def test_its_autoscaler_is_left_in_peace(world: World) -> None:
    manifest = workload_manifest(world.namespace)
    del manifest["spec"]["replicas"]
    await apply_as(world, GIT, manifest)
    scaler = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": WORKLOAD, "namespace": world.namespace},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": WORKLOAD},
            "minReplicas": 1,
            "maxReplicas": 9,
        },
    }
    await world.apply(scaler)
    scale = resource("Deployment").path(world.namespace, WORKLOAD, "scale")
    await world.raw.request("patch", scale, {"spec": {"replicas": 3}}, content_type="application/merge-patch+json")
    await world.storage()
    await world.apply(cycle_manifest(world.namespace, serving={"workload": {"name": WORKLOAD}}))
    await settled_in_place(world, "assistant-0")
    await proven(world, "good")

    async def canary() -> bool:
        candidate = (await world.cycle()).status.serving.candidate
        return candidate is not None and candidate.weight == 25

    await world.until(canary, tick=0.5)
    assert (await raw(world, "chat-ratchet-good"))["spec"]["replicas"] == 3
    await world.raw.request("patch", scale, {"spec": {"replicas": 2}}, content_type="application/merge-patch+json")
    await settled_in_place(world, "good")
    after = await raw(world)
    assert after["spec"]["replicas"] == 2
    assert not any("replicas" in leaf for leaf in owned(after, MANAGER))


async def test_in_place_is_not_changed_on_the_way(world: World) -> None:
    from ratchet_operator.errors import Stalling

    await in_place(world)
    with pytest.raises(Stalling, match=r"serving\.workload cannot come, go or name another Deployment"):
        await world.edit({"serving": {"workload": {"name": "other"}}})
    with pytest.raises(Stalling, match=r"serving\.workload cannot come, go or name another Deployment"):
        await world.edit({"serving": {"workload": None, "keepServing": None}})
