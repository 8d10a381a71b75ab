"""Serving in place: a Deployment that people own, and companions of it."""

from typing import Any

import pytest
from operator_stories import (
    LONG,
    WORKLOAD,
    back_from_the_bake_in_place,
    back_in_place,
    forward_in_place,
    in_place,
    proven,
    resting,
    rolled,
    sent_back,
    settled_in_place,
    workload_manifest,
)
from operator_world import World, cycle_manifest, resource

from ratchet_api.conditions import find
from ratchet_api.cycle import ImprovementCycle
from ratchet_api.names import ARM_LABEL, COMPANION_LABEL, CYCLE_LABEL, VERSION_LABEL
from ratchet_api.reasons import ConditionType, Reason
from ratchet_operator.clients.transport import JSON
from ratchet_operator.manifests.workload import INPUT_ANNOTATION
from ratchet_operator.reconcile import cycle as cycles


async def raw(world: World, name: str = WORKLOAD) -> JSON:
    return await world.raw.request("get", resource("Deployment").path(world.namespace, name))


async def version_of(world: World, name: str = WORKLOAD) -> str | None:
    found: str | None = (await raw(world, name))["spec"]["template"]["metadata"]["labels"].get(VERSION_LABEL)
    return found


async def companions(world: World) -> dict[str, str]:
    """Version -> name of its companion."""
    found = await world.deployments()
    return {d.metadata.labels[VERSION_LABEL]: name for name, d in found.items() if name != WORKLOAD}


async def candidate_at(world: World, weight: int) -> None:
    async def there() -> bool:
        candidate = (await world.cycle()).status.serving.candidate
        return candidate is not None and candidate.weight == weight

    await world.until(there, tick=0.5)


async def stalled(world: World, reason: Reason) -> str:
    """The sentence, once the cycle is stalled for that reason."""

    async def said() -> bool:
        found = find((await world.cycle()).status.conditions, ConditionType.STALLED)
        return found is not None and (found.status, found.reason) == ("True", reason)

    await world.until(said, tick=0.5)
    found = find((await world.cycle()).status.conditions, ConditionType.STALLED)
    assert found is not None
    return found.message


async def scale(world: World, replicas: int) -> None:
    path = resource("Deployment").path(world.namespace, WORKLOAD)
    await world.raw.request(
        "patch", path, {"spec": {"replicas": replicas}}, content_type="application/merge-patch+json"
    )


def answered(world: World, objects: dict[Any, JSON]) -> list[str]:
    """Whenever, after a write, one who has traffic has fewer than two ready pods, once the champion has had them."""
    lapses: list[str] = []
    begun: list[bool] = []

    def look(number: int, method: str, path: str) -> None:
        ready: dict[str, int] = {}
        for thing in objects.values():
            up = any(c["type"] == "Ready" for c in (thing.get("status") or {}).get("conditions") or [])
            if thing["kind"] == "Pod" and up and ARM_LABEL in thing["metadata"]["labels"]:
                version = thing["metadata"]["labels"][VERSION_LABEL]
                ready[version] = ready.get(version, 0) + 1
        for thing in objects.values():
            if thing["kind"] != "ImprovementCycle":
                continue
            serving = ImprovementCycle.model_validate(thing).status.serving
            arms = [arm for arm in (serving.stable, serving.candidate) if arm is not None and arm.weight > 0]
            if arms and ready.get(arms[0].version, 0) >= 2:
                begun.append(True)
            lapses.extend(
                f"{number} {method} {path}: {arm.version} has {arm.weight} % and {ready.get(arm.version, 0)} pods"
                for arm in arms
                if begun and ready.get(arm.version, 0) < 2
            )

    world.transport.after = look
    return lapses


@pytest.mark.parametrize("story", [forward_in_place, back_in_place, back_from_the_bake_in_place])
async def test_people_are_answered_all_the_while(fake_world: World, story: Any) -> None:
    lapses = answered(fake_world, fake_world.raw.objects)  # type: ignore[attr-defined]
    await story(fake_world)
    assert not lapses
    assert await companions(fake_world) == {}


async def test_only_what_names_the_version_is_written(fake_world: World) -> None:
    await in_place(fake_world)
    found = await raw(fake_world)
    theirs = workload_manifest(fake_world.namespace)
    assert found["metadata"]["labels"] == {"team": "chat", CYCLE_LABEL: "assistant"}
    assert "ownerReferences" not in found["metadata"]
    assert not found["metadata"].get("annotations")
    template, before = found["spec"]["template"], theirs["spec"]["template"]
    assert {k: v for k, v in found["spec"].items() if k != "template"} == {
        k: v for k, v in theirs["spec"].items() if k != "template"
    }
    ours = {CYCLE_LABEL: "assistant", VERSION_LABEL: "assistant-0", ARM_LABEL: "true"}
    assert template["metadata"]["labels"] == before["metadata"]["labels"] | ours
    assert set(template["metadata"]["annotations"]) == {INPUT_ANNOTATION}
    [server], [was] = template["spec"]["containers"], before["spec"]["containers"]
    assert server["env"][:1] == was["env"]
    assert {entry["name"]: entry["value"] for entry in server["env"][1:]} == {
        "RATCHET_VERSION": "assistant-0",
        "RATCHET_MODEL_DIR": "/var/lib/ratchet/model",
        "RATCHET_BASE_NAME": "assistant-0",
        "RATCHET_LORA_MODULES": "",
    }
    changed = ("env", "volumeMounts")
    assert {k: v for k, v in server.items() if k not in changed} == {k: v for k, v in was.items() if k not in changed}
    assert [container["name"] for container in template["spec"]["initContainers"]] == ["ratchet-fetch"]


async def test_the_candidate_runs_beside_it(fake_world: World) -> None:
    world = fake_world
    await in_place(world)
    before = await raw(world)
    await proven(world, "good")
    await candidate_at(world, 25)
    assert await raw(world) == before, "not touched in the canary"
    assert await companions(world) == {"good": "chat-ratchet-good"}
    companion = await raw(world, "chat-ratchet-good")
    assert companion["spec"]["replicas"] == 2
    assert companion["metadata"]["ownerReferences"][0]["kind"] == "ImprovementCycle"
    labels = companion["spec"]["template"]["metadata"]["labels"]
    assert "app" not in labels, "neither people's Services nor their Deployment find its pods"
    assert labels["team"] == "chat"
    assert companion["spec"]["selector"]["matchLabels"].items() <= labels.items()
    [server] = companion["spec"]["template"]["spec"]["containers"]
    env = {entry["name"]: entry["value"] for entry in server["env"]}
    assert env["RATCHET_LORA_MODULES"] == "good=/var/lib/ratchet/model/adapter"
    assert (env["RATCHET_BASE_NAME"], env["THREADS"]) == ("good-base", "2")
    assert server["lifecycle"]["preStop"] == {"sleep": {"seconds": 5}}


async def test_the_champion_is_warm_beside_it_in_the_bake(fake_world: World) -> None:
    world = fake_world
    await in_place(world, LONG)
    await proven(world, "good")
    await rolled(world, "good")
    assert await version_of(world) == "good"
    await resting(world)
    assert await companions(world) == {"assistant-0": "chat-ratchet-assistant-0"}
    serving_ = (await world.cycle()).status.serving
    assert serving_.stable is not None
    assert (serving_.stable.version, serving_.stable.ready_replicas) == ("assistant-0", 2)
    # Harm now: traffic goes back at once, and only then is the Deployment rolled back under it.
    world.prometheus.bad["bad"] = 0.0
    world.prometheus.bad["good"] = 200.0
    zero: list[str | None] = []

    async def gone() -> bool:
        status = (await world.cycle()).status
        if status.rollout is not None and status.rollout.phase == "RollingBack" and status.rollout.weight == 0:
            zero.append(await version_of(world))
        return status.rollout is not None and status.rollout.phase == "Done"

    await world.until(gone, tick=0.5)
    assert set(zero) == {"good"}
    await settled_in_place(world, "assistant-0")


async def test_no_room_for_a_third_set_of_pods(fake_world: World) -> None:
    """The champion stays warm where it is, and the Deployment is rolled after the bake, its successor beside it."""
    world = fake_world
    await in_place(world)
    kubelet = world.pod_status

    async def full(name: str, status: JSON) -> None:
        if not name.startswith("chat-ratchet-assistant-0"):
            await kubelet(name, status)

    world.pod_status = full  # type: ignore[method-assign]
    await proven(world, "good")

    async def promoted() -> bool:
        status = (await world.cycle()).status
        if status.rollout is not None and status.rollout.phase in ("Canary", "Baking"):
            assert await version_of(world) == "assistant-0"
        return status.serving.stable is not None and status.serving.stable.version == "good"

    await world.until(promoted, tick=0.5)
    await settled_in_place(world, "good")
    assert await version_of(world) == "good"


async def test_a_deployment_that_cannot_serve_a_named_version_is_not_touched(fake_world: World) -> None:
    world = fake_world
    world.arms.lost.add("assistant-0")
    await world.apply(workload_manifest(world.namespace))
    await world.storage()
    await world.apply(cycle_manifest(world.namespace, serving={"workload": {"name": WORKLOAD}}))
    before = await raw(world)
    said = await stalled(world, Reason.ADAPTER_NOT_SERVED)
    assert "$(RATCHET_LORA_MODULES)" in said
    assert await raw(world) == before
    world.arms.lost.clear()
    await settled_in_place(world, "assistant-0")


async def test_an_image_that_cannot_serve_adapters(fake_world: World) -> None:
    """The candidate goes back before it has had anybody, and people's Deployment is as it was."""
    world = fake_world
    await in_place(world)
    before = await raw(world)
    world.arms.lost.add("bad")
    await proven(world, "bad")
    await sent_back(world)
    decision = (await world.cycle()).status.rollout
    assert decision is not None
    assert decision.decision is not None
    assert decision.decision.reason == Reason.ADAPTER_NOT_SERVED
    assert await raw(world) == before


async def test_it_is_deleted_and_applied_again(fake_world: World) -> None:
    world = fake_world
    await in_place(world)
    await world.remove("Deployment", WORKLOAD)
    assert "Deployment chat does not exist" in await stalled(world, Reason.MISSING_WORKLOAD)
    await world.apply(workload_manifest(world.namespace))
    await settled_in_place(world, "assistant-0")
    assert await version_of(world) == "assistant-0"


async def test_it_is_scaled_to_nothing(fake_world: World) -> None:
    """Whoever does so does not want it to run elsewhere, nor anything to be rolled out."""
    world = fake_world
    await in_place(world)
    await scale(world, 0)
    assert "scaled to 0" in await stalled(world, Reason.SCALED_TO_ZERO)
    await proven(world, "good")
    await resting(world)
    assert await companions(world) == {}
    assert (await world.cycle()).status.rollout is None
    await scale(world, 3)
    await settled_in_place(world, "good")
    assert (await raw(world))["spec"]["replicas"] == 3


async def test_it_is_scaled_to_nothing_from_the_beginning(fake_world: World) -> None:
    world = fake_world
    await world.apply(workload_manifest(world.namespace, replicas=0))
    await world.storage()
    await world.apply(cycle_manifest(world.namespace, serving={"workload": {"name": WORKLOAD}}))
    await stalled(world, Reason.SCALED_TO_ZERO)
    assert await companions(world) == {}
    await scale(world, 1)
    await settled_in_place(world, "assistant-0")


@pytest.mark.parametrize(
    ("container", "words"),
    [("engine", "has no engine; write one of: server, proxy"), (None, "has several; write one of: server, proxy")],
)
async def test_the_container_is_not_there(fake_world: World, container: str | None, words: str) -> None:
    world = fake_world
    manifest = workload_manifest(world.namespace)
    manifest["spec"]["template"]["spec"]["containers"].append({"name": "proxy", "image": "example.com/proxy:1"})
    await world.apply(manifest)
    await world.storage()
    workload = {"name": WORKLOAD} | ({} if container is None else {"container": container})
    await world.apply(cycle_manifest(world.namespace, serving={"workload": workload}))
    assert words in await stalled(world, Reason.MISSING_WORKLOAD)
    await world.edit({"serving": {"workload": {"container": "server"}}})
    await settled_in_place(world, "assistant-0")


async def test_it_shrinks_while_its_companion_has_the_traffic(fake_world: World) -> None:
    """As an autoscaler has it: the companion keeps what it has, and follows upwards."""
    world = fake_world
    await in_place(world)
    await proven(world, "good")
    await candidate_at(world, 25)
    await scale(world, 4)
    await resting(world)
    assert (await raw(world, "chat-ratchet-good"))["spec"]["replicas"] == 4
    await scale(world, 1)
    await resting(world)
    assert (await raw(world, "chat-ratchet-good"))["spec"]["replicas"] == 4
    assert (await raw(world))["spec"]["replicas"] == 1
    await settled_in_place(world, "good")
    assert (await raw(world))["spec"]["replicas"] == 1


async def test_what_others_take_out_is_put_back(fake_world: World) -> None:
    """`kubectl replace` from Git: at once, for the champion has been proven here before."""
    world = fake_world
    await in_place(world)
    objects = world.raw.objects  # type: ignore[attr-defined]
    [where] = [where for where, thing in objects.items() if thing["kind"] == "Deployment"]
    objects[where]["spec"]["template"] = workload_manifest(world.namespace)["spec"]["template"]
    await world.step()
    assert await version_of(world) == "assistant-0"
    assert await companions(world) == {}


async def test_the_cycle_s_end(fake_world: World) -> None:
    """It serves on what it serves; with keepServing: false it is again what it was before Ratchet came."""
    world = fake_world
    await in_place(world)
    await proven(world, "good")
    await settled_in_place(world, "good")
    before = await raw(world)
    await world.remove("ImprovementCycle", "assistant")
    await cycles.reconcile(world.context, world.namespace, "assistant")
    assert await raw(world) == before


async def test_the_cycle_s_end_with_everything_given_back(fake_world: World) -> None:
    world = fake_world
    await in_place(world, keepServing=False)
    await proven(world, "good")
    await candidate_at(world, 25)
    await world.remove("ImprovementCycle", "assistant")
    assert await companions(world) == {}
    # An operator that was not there when the cycle went.
    world.restart()
    await cycles.reconcile(world.context, world.namespace, "assistant")
    found, theirs = await raw(world), workload_manifest(world.namespace)
    assert found["spec"] == theirs["spec"]
    assert found["metadata"]["labels"] == theirs["metadata"]["labels"]
    assert not found["metadata"].get("annotations")


async def test_keep_serving_is_changed(fake_world: World) -> None:
    world = fake_world
    await in_place(world, keepServing=False)
    await world.edit({"serving": {"keepServing": True}})
    await resting(world)
    before = await raw(world)
    assert not before["metadata"].get("annotations")
    await world.remove("ImprovementCycle", "assistant")
    await cycles.reconcile(world.context, world.namespace, "assistant")
    assert await raw(world) == before


async def test_pods_are_counted_apart(fake_world: World) -> None:
    """Companions are told from people's pods of the same version."""
    world = fake_world
    await in_place(world)
    await proven(world, "good")
    await candidate_at(world, 25)
    pods = await world.pods(**{ARM_LABEL: "true", VERSION_LABEL: "good"})
    assert {COMPANION_LABEL in pod.metadata.labels for pod in pods} == {True}
    pods = await world.pods(**{ARM_LABEL: "true", VERSION_LABEL: "assistant-0"})
    assert {COMPANION_LABEL in pod.metadata.labels for pod in pods} == {False}


async def test_two_cycles_and_one_deployment(fake_world: World) -> None:
    world = fake_world
    await in_place(world)
    await world.apply(cycle_manifest(world.namespace, name="other", serving={"workload": {"name": WORKLOAD}}))
    for _ in range(20):
        world.clock.advance(0.5)
        await world.kubelet()
        await world.step()
    found = find((await world.cycle("other")).status.conditions, ConditionType.STALLED)
    assert found is not None
    assert (found.status, found.reason) == ("True", Reason.FOREIGN_OWNER)
    assert "ratchet-operator-assistant says otherwise about" in found.message
    assert await version_of(world) == "assistant-0"
    await serving_on(world)


async def serving_on(world: World) -> None:
    stable = (await world.cycle()).status.serving.stable
    assert stable is not None
    assert (stable.deployment, stable.ready_replicas) == (WORKLOAD, 2)
