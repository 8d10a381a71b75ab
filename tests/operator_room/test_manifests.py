"""Manifests against golden files, and against the real API server in a restricted namespace.

`UPDATE_GOLDEN=1 pytest tests/operator_room/test_manifests.py` writes the golden files anew: read the difference.
"""

import os
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from operator_world import World, cycle_manifest, digest

from ratchet_api.cycle import ImprovementCycle
from ratchet_api.data import AdapterRef, DatasetRef
from ratchet_api.names import MODEL_DIR, SCRATCH_DIR, TERMINATION_LOG
from ratchet_api.stage import CurateInput, EvaluateInput, Level, Levels, StageIdentity, TrainInput
from ratchet_operator.manifests import arms, pods, stages, versions
from ratchet_operator.manifests.arms import ArmRequest
from ratchet_operator.manifests.stages import Owner, StageRequest

GOLDEN = Path(__file__).parent / "golden"
TRAINER, VLLM = "ratchet/trainer:test", "vllm/vllm-openai:test"
ADAPTER = AdapterRef(uri="s3://ratchet/assistant/versions/assistant-1/0/adapter", digest=digest("b"))
DATASET = DatasetRef(uri="s3://ratchet/assistant/datasets/d", digest=digest("d"))
OVERRIDES = {
    "nodeSelector": {"accelerator": "l4"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "annotations": {"example.com/team": "assistants"},
    "labels": {"team": "assistants", "ratchet.dev/cycle": "somebody-elses"},
    "serviceAccountName": "assistant",
    "priorityClassName": "low",
    "runtimeClassName": "nvidia",
    "imagePullSecrets": ["registry"],
}
GPU = {"requests": {"cpu": "2", "memory": "8Gi"}, "limits": {"nvidia.com/gpu": "1"}}


def cycle(**spec: Any) -> ImprovementCycle:
    manifest = cycle_manifest("default", **spec)
    manifest["metadata"] |= {"uid": "11111111-2222-3333-4444-555555555555", "generation": 1}
    return ImprovementCycle.model_validate(manifest)


def plain() -> ImprovementCycle:
    """Nothing but what a cycle has to say."""
    return cycle()


def rich() -> ImprovementCycle:
    """Everything that a person may say of pods."""
    suites = [
        {"name": "house", "role": "target", "cases": {"configMap": {"name": "suites", "key": "house.jsonl"}}},
        {"name": "general", "role": "guardrail", "cases": {"configMap": {"name": "suites", "key": "general.jsonl"}}},
        {
            "name": "tone",
            "role": "guardrail",
            "scorer": "judge",
            "cases": {"storage": {"uri": "s3://ratchet/suites/tone.jsonl", "digest": "sha256:" + "e" * 64}},
        },
        {
            "name": "exam",
            "role": "guardrail",
            "scorer": "lmEval",
            "cases": {
                "storage": {"uri": "s3://ratchet/suites/exam.jsonl", "digest": "sha256:" + "e" * 64},
                "task": {"name": "suites", "key": "exam.yaml"},
            },
        },
    ]
    judge = {"url": "https://judge.example.com/v1", "model": "judge-70b", "credentialsSecret": {"name": "judge"}}
    job = {"resources": GPU, "pod": OVERRIDES, "deadline": "2h", "ttl": "10m"}
    return cycle(
        baseModel={"uri": "pvc://models/smollm2"},
        storage={"uri": "s3://ratchet/assistant", "endpoint": "https://s3.example.com", "region": "eu-west-1"},
        curation={"anchors": {"configMap": {"name": "anchors", "key": "anchors.jsonl"}}},
        curateJob=job,
        training=job,
        evaluation={"suites": suites, "judge": judge} | job,
        serving={
            "runtime": "vllm",
            "replicas": 2,
            "resources": GPU,
            "pod": OVERRIDES,
            "maxModelLen": 4096,
            "extraArgs": ["--gpu-memory-utilization", "0.85"],
        },
    )


def stage_request(of: ImprovementCycle, stage: str) -> StageRequest:
    who = {**pods.identity(of), "run": 1}
    version = Owner("ModelVersion", "assistant-1", "66666666-7777-8888-9999-000000000000")
    spec = of.spec
    match stage:
        case "curate":
            work = CurateInput(
                identity=StageIdentity(**who),
                until=datetime(2026, 11, 22, 2, tzinfo=UTC),
                sessions=spec.sessions,
                curation=spec.curation,
                min_examples=spec.trigger.min_examples,
                suites=spec.evaluation.suites,
            )
            owner = Owner("ImprovementCycle", "assistant", of.metadata.uid)
            return StageRequest(
                of, owner, work, spec.curate_job, TRAINER, suites=work.suites, anchors=spec.curation.anchors
            )
        case "train":
            training = TrainInput(
                identity=StageIdentity(**who, version="assistant-1", attempt=2),
                base_model=spec.base_model,
                dataset=DATASET,
                hyperparameters=spec.training.recipe,
            )
            return StageRequest(of, version, training, spec.training, TRAINER, spec.base_model)
        case _:
            evaluation = EvaluateInput(
                identity=StageIdentity(**who, version="assistant-1"),
                base_model=spec.base_model,
                candidate=ADAPTER,
                champion=None,
                champion_version="assistant-0",
                policy=spec.evaluation.policy(),
                levels=Levels(fresh=Level(number=1, alpha=Decimal("0.025"))),
                batch_size=spec.evaluation.batch_size,
            )
            return StageRequest(
                of, version, evaluation, spec.evaluation, TRAINER, spec.base_model, spec.evaluation.suites
            )


def arm_request(of: ImprovementCycle, adapter: AdapterRef | None) -> ArmRequest:
    return ArmRequest(
        of, "assistant-0" if adapter is None else "assistant-1", adapter, 8, TRAINER, VLLM, of.spec.serving.replicas
    )


def arm(of: ImprovementCycle, adapter: AdapterRef | None) -> list[dict[str, Any]]:
    request = arm_request(of, adapter)
    budget = arms.disruption_budget(request)
    return [arms.fetch_config_map(request), arms.deployment(request), *([budget] if budget else [])]


def stage(of: ImprovementCycle, name: str) -> list[dict[str, Any]]:
    request = replace(stage_request(of, name), input_uid="uid-of-its-input")
    return [stages.config_map(request), stages.job(request)]


def sharded() -> ImprovementCycle:
    return cycle(curation={"parallelism": 4})


CASES: dict[str, list[dict[str, Any]]] = {
    "curate": stage(plain(), "curate"),
    "curate-rich": stage(rich(), "curate"),
    "curate-by-workers": stage(sharded(), "curate"),
    "train": stage(plain(), "train"),
    "train-rich": stage(rich(), "train"),
    "evaluate": stage(plain(), "evaluate"),
    "evaluate-rich": stage(rich(), "evaluate"),
    "arm-transformers-base": arm(plain(), None),
    "arm-transformers": arm(plain(), ADAPTER),
    "arm-vllm-base": arm(rich(), None),
    "arm-vllm": arm(rich(), ADAPTER),
    "versions": [versions.root(plain()), versions.of_run(plain(), "assistant-1", 1, DATASET, "assistant-0")],
}


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    written = yaml.safe_dump_all(CASES[name], sort_keys=False, width=120)
    file = GOLDEN / f"{name}.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.mkdir(exist_ok=True)
        file.write_text(written)
    assert yaml.safe_load_all(written) is not None
    assert written == file.read_text()


def test_no_golden_file_is_left_over() -> None:
    assert {file.stem for file in GOLDEN.glob("*.yaml")} == set(CASES)


PODS = {
    name: thing["spec"]["template"]["spec"]
    for name, things in CASES.items()
    for thing in things
    if thing["kind"] in ("Job", "Deployment")
}


@pytest.mark.parametrize("name", PODS)
def test_every_path_that_is_mounted_is_passed_on(name: str) -> None:
    """A node without mounts rewrites paths in command, arguments and environment, and only there."""
    spec = PODS[name]
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        words = [*container["command"], *container["args"], *(e.get("value", "") for e in container["env"])]
        for mounted in container["volumeMounts"]:
            path = mounted["mountPath"]
            if path == "/dev/shm":
                continue
            assert any(path in word for word in words), f"{container['name']} mounts {path}, but is never told of it"


@pytest.mark.parametrize("name", PODS)
def test_nothing_listens_for_the_whole_world(name: str) -> None:
    assert "0.0.0.0" not in str(PODS[name])


@pytest.mark.parametrize("name", [name for name in PODS if not name.startswith("arm")])
def test_a_stage_reports_by_its_termination_message(name: str) -> None:
    args = PODS[name]["containers"][0]["args"]
    assert args[args.index("--report") + 1] == TERMINATION_LOG
    assert args[args.index("--scratch") + 1] == SCRATCH_DIR


def test_a_changed_storage_is_another_config_map() -> None:
    """The input's ConfigMap is immutable."""
    before = arm_request(plain(), ADAPTER).config_map
    after = arm_request(cycle(storage={"uri": "s3://ratchet/elsewhere"}), ADAPTER).config_map
    assert before != after
    assert arm_request(plain(), ADAPTER).config_map == before


def test_the_stamp_changes_with_the_manifest() -> None:
    stamps = {
        arms.deployment(arm_request(of, adapter))["metadata"]["annotations"][arms.MANIFEST_ANNOTATION]
        for of, adapter in ((plain(), None), (plain(), ADAPTER), (rich(), ADAPTER), (plain(), ADAPTER))
    }
    assert len(stamps) == 3


def test_a_person_cannot_replace_our_labels() -> None:
    _, job = stage(rich(), "train")
    labels = job["spec"]["template"]["metadata"]["labels"]
    assert labels["ratchet.dev/cycle"] == "assistant"
    assert labels["team"] == "assistants"


def test_long_names_stay_labels() -> None:
    of = cycle()
    long = of.model_copy(update={"metadata": of.metadata.model_copy(update={"name": "a" * 50})})
    request = stage_request(long, "curate")
    assert len(request.name) <= 63
    assert len(arms.deployment_name("b" * 50)) <= 63
    assert len(ArmRequest(long, "b" * 50, ADAPTER, 8, TRAINER, VLLM, 1).config_map) <= 63


@pytest.mark.parametrize(("rank", "flag"), [(1, "8"), (8, "8"), (9, "16"), (64, "64"), (300, "320"), (512, "512")])
def test_vllm_takes_a_few_ranks_only(rank: int, flag: str) -> None:
    request = ArmRequest(rich(), "assistant-1", ADAPTER, rank, TRAINER, VLLM, 1)
    args = arms.deployment(request)["spec"]["template"]["spec"]["containers"][0]["args"]
    assert args[args.index("--max-lora-rank") + 1] == flag
    assert f"assistant-1={MODEL_DIR}/adapter" in args


@pytest.mark.parametrize(
    ("runtime", "adapter", "expected"),
    [
        ("transformers", ADAPTER, ["--served-model-name", "assistant-1", "assistant"]),
        ("vllm", None, ["--served-model-name", "assistant-1", "assistant"]),
        (
            "vllm",
            ADAPTER,
            ["--lora-modules", f"assistant-1={MODEL_DIR}/adapter", f"assistant={MODEL_DIR}/adapter"],
        ),
    ],
)
def test_past_the_gateway_people_ask_for_the_cycle(
    runtime: str, adapter: AdapterRef | None, expected: list[str]
) -> None:
    """Nobody translates the name for them."""
    of = cycle(serving={"runtime": runtime, "router": "httpRoute", "httpRoute": {"name": "chat"}})
    manifest = arms.deployment(ArmRequest(of, "assistant-1", adapter, 8, TRAINER, VLLM, 1))
    args = manifest["spec"]["template"]["spec"]["containers"][0]["args"]
    at = args.index(expected[0])
    assert args[at : at + 3] == expected


@pytest.mark.apiserver
async def test_the_real_api_server_takes_all_of_them_in_a_restricted_namespace(world: World) -> None:
    """Strict: no unknown field, no warning of the restricted Pod Security Standard, which would refuse the pods."""
    enforce = {"pod-security.kubernetes.io/enforce": "restricted"}
    path = f"/api/v1/namespaces/{world.namespace}"
    body = {"metadata": {"labels": enforce}}
    await world.raw.request("patch", path, body, content_type="application/merge-patch+json")
    for things in CASES.values():
        for thing in things:
            here = thing | {"metadata": thing["metadata"] | {"namespace": world.namespace}}
            await world.raw.request("post", place(here), here, {"dryRun": "All", "fieldValidation": "Strict"})
            template = thing["spec"]["template"] if thing["kind"] in ("Job", "Deployment") else None
            if template is not None:
                pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": world.namespace}}
                # These two have to exist before a pod may name them.
                spec = {k: v for k, v in template["spec"].items() if k not in ("priorityClassName", "runtimeClassName")}
                spec.pop("serviceAccountName", None)
                await world.raw.request(
                    "post", place(pod), pod | {"spec": spec}, {"dryRun": "All", "fieldValidation": "Strict"}
                )


def place(thing: dict[str, Any]) -> str:
    group = thing["apiVersion"]
    root = "api" if "/" not in group else "apis"
    plurals = {"ModelVersion": "modelversions", "PodDisruptionBudget": "poddisruptionbudgets"}
    plural = plurals.get(thing["kind"], thing["kind"].lower() + "s")
    return f"/{root}/{group}/namespaces/{thing['metadata']['namespace']}/{plural}"
