"""What is missing is said with its fix, waited for without haste, and gone on with when it is there."""

import json

import pytest
from operator_stories import dataset, serving
from operator_world import World, curated, cycle_manifest, evaluated, failed, terminated, trained, version_manifest

from ratchet_api.conditions import Condition, find
from ratchet_api.reasons import ConditionType
from ratchet_operator.reconcile import cycle as cycles


async def stalled(world: World, version: str = "") -> tuple[str, str, str]:
    """(status, reason, message) of Stalled."""
    status = (await world.version(version)).status if version else (await world.cycle()).status
    found = find(status.conditions, ConditionType.STALLED)
    assert found is not None
    return found.status, found.reason, found.message


def condition(conditions: list[Condition], kind: ConditionType) -> Condition:
    found = find(conditions, kind)
    assert found is not None
    return found


async def test_first_words(fake_world: World) -> None:
    world = fake_world
    await world.apply(cycle_manifest(world.namespace))
    assert await cycles.reconcile(world.context, world.namespace, "assistant") == 0.0
    assert len(world.transport.writes) == 1
    status = (await world.cycle()).status
    assert status.observed_generation == 1
    assert condition(status.conditions, ConditionType.RECONCILING).status == "True"


async def test_a_missing_secret(fake_world: World) -> None:
    world = fake_world
    await world.suites("house.jsonl")
    await world.apply(cycle_manifest(world.namespace))
    await world.settle()
    state, reason, message = await stalled(world)
    assert (state, reason) == ("True", "MissingSecret")
    assert "storage.credentialsSecret" in message
    assert "create it with the keys AWS_ACCESS_KEY_ID" in message
    assert await world.deployments() == {}
    delay = await cycles.reconcile(world.context, world.namespace, "assistant")
    assert delay is not None
    assert delay >= 1, "no hot loop"
    world.clock.advance(60)
    slower = await cycles.reconcile(world.context, world.namespace, "assistant")
    assert slower is not None
    assert slower > delay

    await world.secret()
    await world.settle()
    assert (await stalled(world))[0] == "False"
    assert list(await world.deployments()) == ["assistant-0-arm"]


@pytest.mark.parametrize("keys", [(), ("other.jsonl",)], ids=["no ConfigMap", "no key"])
async def test_missing_suites(fake_world: World, keys: tuple[str, ...]) -> None:
    world = fake_world
    await world.storage()
    await world.apply(cycle_manifest(world.namespace))
    await world.settle()
    await world.kube.delete("ConfigMap", world.namespace, "suites")
    if keys:
        await world.suites(*keys)
    await world.annotate("run", "now")
    await world.apply(version_manifest(world.namespace, "mine"))
    await world.settle()
    for version in ("", "mine"):
        state, reason, message = await stalled(world, version)
        assert (state, reason) == ("True", "MissingConfigMap")
        assert "evaluation.suites[house].cases" in message
    assert await world.jobs() == {}
    await world.suites("house.jsonl")
    await world.settle()
    assert sorted(await world.jobs()) == ["assistant-1-curate-0", "mine-evaluate-0"]


@pytest.mark.parametrize(
    ("cases", "words"),
    [
        ("\n \n", "has no cases: write one JSON object a line"),
        ('{"id": "a"}\n\n{"id": "a"}', "line 3: the id 'a' is that of line 1; give each case its own"),
        ('{"id": "a"}\noops', "line 2 is no JSON"),
        ("[" * 100_000, "line 1 is no JSON"),
        ("[1]", "line 1 is no JSON object"),
    ],
)
async def test_suites_that_nothing_could_be_judged_by(fake_world: World, cases: str, words: str) -> None:
    """Said before any Job is made, not after a training."""
    world = fake_world
    await world.storage()
    await world.suites("house.jsonl", cases=cases)
    await world.apply(cycle_manifest(world.namespace))
    await world.settle()
    await world.annotate("run", "now")
    recipe = version_manifest(world.namespace, "recipe")
    recipe["spec"] = {
        "cycle": "assistant", "dataset": {"uri": "s3://ratchet/assistant/datasets/d", "digest": "sha256:" + "d" * 64}
    }  # fmt: skip
    await world.apply(recipe)
    await world.settle()
    for version in ("", "recipe"):
        state, reason, message = await stalled(world, version)
        assert (state, reason) == ("True", "InvalidSpec")
        assert f"evaluation.suites[house].cases: ConfigMap suites, key house.jsonl: {words}" in message
    assert await world.jobs() == {}
    await world.suites("house.jsonl", cases='{"id": "a"}\n{"id": "b"}')
    await world.settle()
    assert sorted(await world.jobs()) == ["assistant-1-curate-0", "recipe-train-0"]


async def test_a_task_of_the_harness_is_looked_for_and_its_documents_have_ids_of_their_own(fake_world: World) -> None:
    world = fake_world
    await world.storage()
    await world.suites("house.jsonl", cases='{"id": "a"}\n{"id": "a"}')
    manifest = cycle_manifest(world.namespace)
    (suite,) = manifest["spec"]["evaluation"]["suites"]
    suite |= {"scorer": "lmEval", "cases": suite["cases"] | {"task": {"name": "suites", "key": "house.yaml"}}}
    await world.apply(manifest)
    await world.settle()
    await world.annotate("run", "now")
    await world.settle()
    state, reason, message = await stalled(world, "")
    assert (state, reason) == ("True", "MissingConfigMap")
    assert "evaluation.suites[house].cases.task" in message
    await world.suites("house.jsonl", "house.yaml", cases='{"id": "a"}\n{"id": "a"}')
    await world.settle()
    assert list(await world.jobs()) == ["assistant-1-curate-0"]


async def test_a_missing_bucket_is_waited_for_and_costs_no_attempt(fake_world: World) -> None:
    world = fake_world
    await serving(world)
    await world.annotate("run", "now")
    await world.settle()
    for _ in range(5):
        await world.finish("curate", failed("curate", "MissingBucket", "create the bucket ratchet"), code=64)
        await world.settle()
        assert await stalled(world) == ("True", "MissingBucket", "create the bucket ratchet")
        world.clock.advance(300)
        await world.settle()
    assert "assistant-1-curate-5" in await world.jobs()
    await world.finish("curate", curated())
    await world.settle()
    run = (await world.cycle()).status.run
    assert run is not None
    assert run.version == "assistant-1"
    assert (await stalled(world))[0] == "False"


async def test_a_missing_base_model_is_said_by_the_arm(fake_world: World) -> None:
    world = fake_world
    await world.storage()
    await world.apply(cycle_manifest(world.namespace))
    await world.settle()
    pod = (await world.pods())[0].metadata.name
    report = failed("fetch", "MissingBaseModel", "there is no manifest.json below s3://models/base: put it there")
    await world.pod_status(pod, fetching(report, 64))
    await world.settle()
    assert await stalled(world) == ("True", "MissingBaseModel", f"pod {pod}: {report['message']}")


def fetching(report: dict[str, object], code: int) -> dict[str, object]:
    """Status of an arm's pod whose fetch container has failed and is tried again."""
    ended = terminated("fetch", code, json.dumps(report))["containerStatuses"][0]
    ended["lastState"] = ended.pop("state")
    ended["state"] = {"waiting": {"reason": "CrashLoopBackOff"}}
    return {"phase": "Pending", "initContainerStatuses": [ended]}


async def test_a_changed_byte_is_refused_and_rolled_back(fake_world: World) -> None:
    world = fake_world
    await serving(world)
    await world.apply(version_manifest(world.namespace, "forged"))
    await world.settle()
    await world.finish("evaluate", evaluated())
    await world.settle()
    pod = (await world.pods(**{"ratchet.dev/version": "forged", "ratchet.dev/arm": "true"}))[0].metadata.name
    report = failed("fetch", "DigestMismatch", "adapter_model.safetensors is not what its digest says")
    await world.pod_status(pod, fetching(report, 65))
    await world.settle()
    version = await world.version("forged")
    assert version.status.phase == "Rejected"
    said = condition(version.status.conditions, ConditionType.REJECTED)
    assert said.reason == "DigestMismatch"
    assert "adapter_model.safetensors is not what its digest says" in said.message
    rollout = (await world.cycle()).status.rollout
    assert rollout is not None
    assert rollout.weight == 0
    assert rollout.step == -1, "it never got a session"


async def test_a_crash_rolls_back_at_once(fake_world: World) -> None:
    world = fake_world
    await serving(world)
    await world.apply(version_manifest(world.namespace, "fragile"))
    await world.settle()
    await world.finish("evaluate", evaluated())

    async def canary() -> bool:
        return (await world.version("fragile")).status.phase == "Canary"

    await world.until(canary, tick=0.5)
    pod = (await world.pods(**{"ratchet.dev/version": "fragile", "ratchet.dev/arm": "true"}))[0].metadata.name
    status = terminated("server", 137, reason="OOMKilled")
    status["containerStatuses"][0]["restartCount"] = 1
    await world.pod_status(pod, status | {"phase": "Running"})
    await world.step()
    decision = (await world.cycle()).status.rollout
    assert decision is not None
    assert decision.decision is not None
    assert decision.decision.reason == "ArmFailed"
    assert "ran out of memory" in decision.decision.message
    serving_status = (await world.cycle()).status.serving
    assert serving_status.stable is not None
    assert serving_status.stable.weight == 100, "weight is taken back in the same pass"


async def test_a_version_without_its_cycle(fake_world: World) -> None:
    world = fake_world
    await world.apply(version_manifest(world.namespace, "lost", cycle="nowhere"))
    await world.settle()
    state, reason, message = await stalled(world, "lost")
    assert (state, reason) == ("True", "MissingCycle")
    assert "there is no ImprovementCycle nowhere" in message


async def test_an_unknown_time_zone_stalls_runs_but_not_serving(fake_world: World) -> None:
    world = fake_world
    await world.storage()
    trigger = {"schedule": "0 2 * * 1", "timeZone": "Mars/Olympus"}
    await world.apply(cycle_manifest(world.namespace, trigger=trigger))
    for _ in range(3):
        await world.settle()
        await world.kubelet()
    state, reason, message = await stalled(world)
    assert (state, reason) == ("True", "InvalidSpec")
    assert "Mars/Olympus" in message
    assert condition((await world.cycle()).status.conditions, ConditionType.READY).status == "True"


async def test_an_unreadable_spec(fake_world: World) -> None:
    world = fake_world
    manifest = cycle_manifest(world.namespace)
    manifest["spec"]["unknownField"] = 1
    await world.apply(manifest)
    assert await cycles.reconcile(world.context, world.namespace, "assistant") is None
    found = world.raw.objects[
        (f"/apis/ratchet.dev/v1alpha1/namespaces/{world.namespace}/improvementcycles", "assistant")
    ]  # type: ignore[attr-defined]
    said = {c["type"]: c for c in found["status"]["conditions"]}
    assert said["Stalled"]["status"] == "True"
    assert said["Stalled"]["reason"] == "InvalidSpec"
    assert "unknownField" in said["Stalled"]["message"]


@pytest.mark.apiserver
async def test_a_gpu_that_nobody_has(world: World) -> None:
    await serving(world, training={"resources": {"limits": {"nvidia.com/gpu": "1"}}})
    await dataset(world)
    await world.stage_pod("train")

    async def said() -> bool:
        version = condition((await world.version("assistant-1")).status.conditions, ConditionType.RECONCILING)
        cycle = condition((await world.cycle()).status.conditions, ConditionType.RECONCILING)
        return version.reason == "Unschedulable" and cycle.reason == "Unschedulable"

    await world.until(said, tick=2)
    words = condition((await world.cycle()).status.conditions, ConditionType.RECONCILING).message
    assert words.startswith("assistant-1: no node takes pod assistant-1-train-0")
    await world.finish("train", trained())
    await world.settle()
    assert (await world.version("assistant-1")).status.phase == "Evaluating"


@pytest.mark.apiserver
async def test_what_the_api_server_refuses_to_make_is_said(world: World) -> None:
    await world.storage()
    pod = {"nodeSelector": {"not a label!": "x"}}
    await world.apply(cycle_manifest(world.namespace, serving={"runtime": "transformers", "pod": pod}))

    async def refused() -> bool:
        return (await world.cycle()).status.phase == "Stalled"

    await world.until(refused)
    state, reason, message = await stalled(world)
    assert (state, reason) == ("True", "InvalidSpec")
    assert "not a label!" in message
    await world.edit({"serving": {"pod": {"nodeSelector": None}}})

    async def served() -> bool:
        return "assistant-0-arm" in await world.deployments() and (await stalled(world))[0] == "False"

    await world.until(served)


@pytest.mark.apiserver
async def test_a_quota_that_lets_no_pod_be_made_is_said(world: World) -> None:
    await world.storage()
    meta = {"name": "none", "namespace": world.namespace}
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": meta, "spec": {"hard": {"pods": "0"}}}
    path = f"/api/v1/namespaces/{world.namespace}/resourcequotas"
    await world.raw.request("post", path, quota)
    await world.apply(cycle_manifest(world.namespace))

    async def said() -> bool:
        status = (await world.cycle()).status
        found = find(status.conditions, ConditionType.RECONCILING)
        return found is not None and "exceeded quota: none" in found.message

    await world.until(said)
    await world.apply(version_manifest(world.namespace, "mine"))

    async def says_so_too() -> bool:
        found = find((await world.version("mine")).status.conditions, ConditionType.RECONCILING)
        return found is not None and "Job mine-evaluate-0 has no pod yet" in found.message

    await world.until(says_so_too, tick=2)


async def test_a_champion_that_a_person_deleted_serves_on(fake_world: World) -> None:
    world = fake_world
    await serving(world)
    await world.apply(version_manifest(world.namespace, "mine"))
    await world.settle()
    await world.finish("evaluate", evaluated())

    async def alone() -> bool:
        return list(await world.deployments()) == ["mine-arm"]

    await world.until(alone, tick=0.5)
    await world.remove("ModelVersion", "mine")
    await world.settle()
    assert list(await world.deployments()) == ["mine-arm"]
    conditions = (await world.cycle()).status.conditions
    assert condition(conditions, ConditionType.READY).status == "True"
    assert "was deleted: its arm serves on" in condition(conditions, ConditionType.RECONCILING).message
    await world.remove("Deployment", "mine-arm")
    await world.settle()
    assert (await stalled(world))[1] == "MissingAdapter"
    await world.apply(version_manifest(world.namespace, "mine"))
    await world.settle()
    assert list(await world.deployments()) == ["mine-arm"], "the same weights may serve again"


async def test_a_judge_that_cannot_be_asked(fake_world: World) -> None:
    """Said before a training: a version that nothing could judge is not worth one."""
    world = fake_world
    await world.storage()
    await world.suites("house.jsonl")
    suite = {
        "name": "tone", "role": "target", "scorer": "judge",
        "cases": {"storage": {"uri": "s3://ratchet/suites/tone.jsonl", "digest": "sha256:" + "e" * 64}},
    }  # fmt: skip
    judge = {"url": "https://judge.example.com/v1", "model": "assistant-0", "credentialsSecret": {"name": "judge"}}
    await world.apply(cycle_manifest(world.namespace, evaluation={"suites": [suite], "judge": judge}))
    await world.settle()
    await world.apply(version_manifest(world.namespace, "mine"))
    await world.settle()
    state, reason, message = await stalled(world, "mine")
    assert (state, reason) == ("True", "InvalidSpec")
    assert "evaluation.judge.model: assistant-0 is the version assistant-0, which is under test" in message
    other = judge | {"model": "judge-70b"}
    await world.apply(cycle_manifest(world.namespace, evaluation={"suites": [suite], "judge": other}))
    await world.settle()
    state, reason, message = await stalled(world, "mine")
    assert (state, reason) == ("True", "MissingJudgeSecret")
    assert "create it with the key OPENAI_API_KEY" in message
    assert await world.jobs() == {}
    meta = {"namespace": world.namespace, "name": "judge"}
    await world.apply({"apiVersion": "v1", "kind": "Secret", "metadata": meta})
    await world.settle()
    assert sorted(await world.jobs()) == ["mine-evaluate-0"]
