"""training.launcher TrainJob: on Kubeflow Trainer's real CRDs, with its controller's part played by the test."""

import copy
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml
from operator_stories import (
    TRAINING_RUNTIME,
    by_train_job,
    champion,
    dataset,
    finish_nodes,
    serving,
    train_jobs,
)
from operator_world import World, cycle_manifest, evaluated, failed, resource, running, terminated, trained

from ratchet_api.conditions import find
from ratchet_api.cycle import ImprovementCycle
from ratchet_api.data import DatasetRef
from ratchet_api.names import FIELD_MANAGER, GROUP
from ratchet_api.presets import RuntimeRef
from ratchet_api.reasons import ConditionType, Reason
from ratchet_api.stage import ExitCode, StageIdentity, StageReport, TrainInput
from ratchet_api.training import Recipe
from ratchet_api.version import Attempts, StageStatus
from ratchet_operator.clients.objects import Pod, TrainJob
from ratchet_operator.clients.transport import JSON
from ratchet_operator.domain import stages
from ratchet_operator.errors import Forbidden, Stalling
from ratchet_operator.manifests.stages import QUEUE_LABEL, Owner, StageRequest
from ratchet_operator.manifests.trainjobs import OWNER_LABEL, train_job
from ratchet_operator.reconcile import trainjobs

TRAIN = "assistant-1-train-0"
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def request(name: str = "assistant-7", **training: Any) -> StageRequest:
    cycle = ImprovementCycle.model_validate(
        cycle_manifest("default", training={"launcher": "TrainJob", "nodes": 3} | training)
        | {"metadata": {"name": "assistant", "namespace": "default", "uid": "c"}}
    )
    work = TrainInput(
        identity=StageIdentity(
            namespace="default", cycle="assistant", version=name, run=7, attempt=0, storage_uri="s3://ratchet/assistant"
        ),
        base_model=cycle.spec.base_model,
        dataset=DatasetRef(uri="s3://ratchet/assistant/datasets/d", digest="sha256:" + "d" * 64),
        hyperparameters=Recipe(),
    )
    owner = Owner("ModelVersion", name, "uid-7")
    base = cycle.spec.base_model
    job = cycle.spec.training.job
    return StageRequest(cycle, owner, work, job, "trainer:1", base, launcher="TrainJob", input_uid="uid-8")


def made(**training: Any) -> JSON:
    asked = request(**training)
    return train_job(asked, asked.cycle.spec.training)


# The object


def test_what_it_says() -> None:
    pod = {"nodeSelector": {"gpu": "a100"}, "labels": {"team": "ml"}, "imagePullSecrets": ["pull"]}
    limits = {"nvidia.com/gpu": "8"}
    spec = made(deadline="2h", resources={"limits": limits}, pod=pod)["spec"]
    assert spec["runtimeRef"] == {
        "apiGroup": "trainer.kubeflow.org", "kind": "ClusterTrainingRuntime", "name": "ratchet",
    }  # fmt: skip
    assert (spec["activeDeadlineSeconds"], "suspend" in spec) == (7200, False)
    trainer = spec["trainer"]
    assert trainer["command"] == ["python", "-m", "ratchet_trainer", "train"]
    assert trainer["args"][:2] == ["--input", "/etc/ratchet/stage/stage.json"]
    assert (trainer["numNodes"], trainer["numProcPerNode"], trainer["image"]) == (3, 1, "trainer:1")
    assert trainer["resourcesPerNode"] == {"limits": limits}
    by_name = {entry["name"]: entry for entry in trainer["env"]}
    assert by_name["AWS_ACCESS_KEY_ID"]["valueFrom"]["secretKeyRef"] == {
        "name": "storage", "key": "AWS_ACCESS_KEY_ID", "optional": True,
    }  # fmt: skip
    (patch,) = spec["runtimePatches"]
    assert patch["manager"] == f"{GROUP}/{FIELD_MANAGER}"
    (job,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    template = job["template"]["spec"]["template"]
    assert template["metadata"]["labels"]["team"] == "ml"
    assert template["metadata"]["labels"][OWNER_LABEL] == "uid-8"
    assert template["spec"]["nodeSelector"] == {"gpu": "a100"}
    assert template["spec"]["imagePullSecrets"] == [{"name": "pull"}]
    assert template["spec"]["securityContext"]["runAsNonRoot"] is True
    (container,) = template["spec"]["containers"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in template["spec"]["volumes"]} == {"scratch", "stage"}


def test_a_queue_is_kueue_s() -> None:
    found = made(queueName="gpus")
    assert found["spec"]["suspend"] is True
    assert found["metadata"]["labels"][QUEUE_LABEL] == "gpus"


@pytest.mark.parametrize("name", ["assistant-7", "a" * 50, "7-of-9", "4" * 50])
def test_a_name_has_room_for_its_pods(name: str) -> None:
    found = request(name).name
    assert len(f"{found}-node-0-63-abcde") <= 63
    assert found[0].isalpha()
    assert found != request(name + "x").name
    assert found == request(name).name


# What is seen of it


def pod(index: int, code: int | None = None, ended: int = 0, report: JSON | None = None, **state: Any) -> Pod:
    message = StageReport.model_validate(report).encode().decode() if report is not None else ""
    meta = {
        "name": f"{TRAIN}-node-0-{index}-abcde", "namespace": "default", "uid": f"pod-{index}",
        "creationTimestamp": NOW.isoformat(), "labels": {"batch.kubernetes.io/job-completion-index": str(index)},
    }  # fmt: skip
    status: JSON = running("node") if code is None else terminated("node", code, message, **state)
    when = (NOW + timedelta(seconds=ended)).isoformat()
    text = json.dumps(status).replace("the time at which the kubelet writes it", when)
    return Pod.model_validate({"metadata": meta, "status": json.loads(text)})


def trainjob(*conditions: JSON, age: int = 100, suspend: bool = False, **labels: str) -> TrainJob:
    meta = {
        "name": TRAIN, "namespace": "default", "uid": "tj", "labels": labels,
        "creationTimestamp": (NOW - timedelta(seconds=age)).isoformat(),
    }  # fmt: skip
    said = [{"status": "True"} | condition for condition in conditions]
    return TrainJob.model_validate({"metadata": meta, "spec": {"suspend": suspend}, "status": {"conditions": said}})


COMPLETE = {"type": "Complete", "reason": "AllJobsCompleted"}
FAILED = {"type": "Failed", "reason": "FailedJobs", "message": "jobset failed due to one or more job failures"}


def test_the_report_is_node_0_s() -> None:
    pods = [pod(0, 0, report=trained("a")), pod(1, 0, report=trained("b"))]
    for order in (pods, pods[::-1]):
        found = trainjobs.seen(trainjob(COMPLETE), order, NOW)
        assert (found.outcome, found.exit_code, found.pod_gone) == ("Complete", 0, False)
        assert found.report is not None
        assert found.report.artifact is not None
        assert found.report.artifact.digest == "sha256:" + "a" * 64


def test_complete_before_its_pods_are_seen_to_be() -> None:
    assert trainjobs.seen(trainjob(COMPLETE), [pod(0), pod(1, 0)], NOW).outcome == "Running"
    assert trainjobs.seen(trainjob(COMPLETE), [], NOW).pod_gone


@pytest.mark.parametrize("leader", [ExitCode.TRY_AGAIN, ExitCode.PREEMPTED])
def test_the_node_at_fault_is_the_one_that_counts(leader: ExitCode) -> None:
    taken_down = pod(0, leader, report=failed("train", "InfrastructureError", "the ranks lost each other"))
    killed = pod(1, 137, ended=1, reason="OOMKilled")
    found = trainjobs.seen(trainjob(FAILED), [taken_down, killed, pod(2, ExitCode.PREEMPTED)], NOW)
    assert (found.outcome, found.exit_code, found.oom_killed) == ("Failed", 137, True)
    assert found.report is None


def test_of_two_at_fault_the_first_one_counts() -> None:
    pods = [pod(0, 64, 5, failed("train", "UserError", "late")), pod(1, 65, 4, failed("train", "DataError", "early"))]
    found = trainjobs.seen(trainjob(FAILED), pods, NOW)
    assert found.report is not None
    assert found.report.message == "early"


def test_its_deadline_leaves_no_pods() -> None:
    late = {"type": "Failed", "reason": "DeadlineExceeded", "message": "TrainJob exceeded its active deadline"}
    found = trainjobs.seen(trainjob(late), [], NOW)
    move = stages.advance(StageStatus(stage="train", job=TRAIN, launcher="TrainJob", job_uid="tj"), found, NOW)
    assert move.failed is not None
    assert move.failed.reason is Reason.DEADLINE_EXCEEDED
    assert [left.name for left in move.status.left] == [TRAIN]


def test_why_it_does_not_run() -> None:
    said = trainjobs.seen(trainjob(suspend=True, **{QUEUE_LABEL: "gpus"}), [], NOW).waiting
    assert said is not None
    assert "TrainJob assistant-1-train-0 waits in queue gpus" in said.message
    said = trainjobs.seen(trainjob(suspend=True), [], NOW).waiting
    assert said is not None
    assert "`kubectl patch trainjob assistant-1-train-0 --type merge -p" in said.message
    assert trainjobs.seen(trainjob(age=5), [], NOW).waiting is None
    said = trainjobs.seen(trainjob(age=11), [], NOW).waiting
    assert said is not None
    assert "`kubectl describe trainjob assistant-1-train-0` says why" in said.message


def test_only_those_that_have_been_kept_long_enough_go() -> None:
    entry = StageStatus(stage="train")
    for number, age in enumerate((10, 30, 20)):
        ended = stages.LeftTrainJob(name=f"t-{number}", ended_at=NOW - timedelta(minutes=age))
        entry = entry.model_copy(update={"left": [*entry.left, ended]})
    over, due = stages.expired(entry, timedelta(minutes=20), NOW)
    assert (over, due) == (["t-1", "t-2"], NOW + timedelta(minutes=10))
    assert [left.name for left in stages.removed(entry, over).left] == ["t-0"]
    assert stages.expired(stages.removed(entry, ["t-0", "t-1", "t-2"]), timedelta(0), NOW) == ([], None)


# Stories


async def runtime(world: World) -> None:
    """What the chart makes, if it is not there yet."""
    if not await world.kube.exists("ClusterTrainingRuntime", "", "ratchet"):
        await world.raw.request("post", resource("ClusterTrainingRuntime").path(""), copy.deepcopy(TRAINING_RUNTIME))


async def test_a_story_with_a_lost_node(fake_world: World) -> None:
    await by_train_job(fake_world)
    (stage,) = [s for s in (await fake_world.version("assistant-1")).status.stages if s.stage == "train"]
    assert (stage.launcher, stage.attempts, stage.left) == ("TrainJob", Attempts(infrastructure=1), [])


async def stalled(world: World) -> str:
    found = find((await world.version("assistant-1")).status.conditions, ConditionType.STALLED)
    return found.message if found is not None and found.status == "True" else ""


async def test_without_kubeflow_it_says_so_and_goes_on_when_it_comes(fake_world: World) -> None:
    world = fake_world
    await serving(world, training={"launcher": "TrainJob"})
    await dataset(world)
    assert "there is no ClusterTrainingRuntime ratchet; install Kubeflow Trainer" in await stalled(world)
    assert await train_jobs(world) == []
    await runtime(world)
    world.clock.advance(60)
    await world.settle()
    assert await train_jobs(world) == [TRAIN]
    assert await stalled(world) == ""


async def test_without_the_right_it_names_the_chart_s_value(fake_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world = fake_world
    ask = world.raw.request

    async def refuse(method: str, path: str, *rest: Any, **more: Any) -> JSON:
        if "trainingruntimes" in path:
            raise Forbidden(path)
        return await ask(method, path, *rest, **more)

    monkeypatch.setattr(world.raw, "request", refuse)
    await serving(world, training={"launcher": "TrainJob"})
    await dataset(world)
    assert "install the chart with launchers.trainJob.enabled=true" in await stalled(world)


async def test_another_launcher_while_it_runs_changes_nothing(fake_world: World) -> None:
    world = fake_world
    await runtime(world)
    await serving(world, training={"launcher": "TrainJob"})
    await dataset(world)
    await world.edit({"training": {"launcher": "Job"}})
    await world.settle()
    await finish_nodes(world, (0, trained()))
    await world.settle()
    assert (await world.version("assistant-1")).status.artifacts.adapter is not None
    assert TRAIN not in await world.jobs()


async def test_one_that_somebody_deletes_is_an_attempt_lost(fake_world: World) -> None:
    world = fake_world
    await runtime(world)
    await serving(world, training={"launcher": "TrainJob"})
    await dataset(world)
    await world.remove("TrainJob", TRAIN)
    await world.settle()
    (stage,) = [s for s in (await world.version("assistant-1")).status.stages if s.stage == "train"]
    assert stage.attempts == Attempts(infrastructure=1)
    assert "the TrainJob assistant-1-train-0 was deleted before it had ended" in stage.message


# On the real API server


async def node_pod(world: World, index: int) -> str:
    """What Kubeflow Trainer, JobSet and the Job controller make of the TrainJob."""
    raw = await world.raw.request("get", resource("TrainJob").path(world.namespace, TRAIN))
    (job,) = raw["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    template, trainer = job["template"]["spec"]["template"], raw["spec"]["trainer"]
    name = f"{TRAIN}-node-0-{index}-abcde"
    labels = {
        "jobset.sigs.k8s.io/jobset-name": TRAIN,
        "batch.kubernetes.io/job-completion-index": str(index),
    }
    (patched,) = template["spec"]["containers"]
    main = patched | {key: trainer[key] for key in ("image", "command", "args", "env")}
    manifest = {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": world.namespace} | template["metadata"]
        | {"labels": template["metadata"]["labels"] | labels},
        "spec": template["spec"] | {"containers": [main], "restartPolicy": "Never"},
    }  # fmt: skip
    await world.raw.request("post", f"/api/v1/namespaces/{world.namespace}/pods", manifest)
    return name


async def say(world: World, kind: str, reason: str) -> None:
    """What Kubeflow Trainer's controller writes."""
    now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    condition = {"type": kind, "status": "True", "reason": reason, "message": "", "lastTransitionTime": now}
    path = resource("TrainJob").path(world.namespace, TRAIN, "status")
    body = {"status": {"conditions": [condition]}}
    await world.raw.request("patch", path, body, content_type="application/merge-patch+json")


@pytest.mark.apiserver
async def test_on_the_real_definitions(kubeflow: None, world: World, repository: Path) -> None:
    await runtime(world)
    pod_ = {
        "nodeSelector": {"gpu": "a100"}, "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "serviceAccountName": "trainer", "imagePullSecrets": ["pull"], "labels": {"team": "ml"},
        "annotations": {"note": "x"},
    }  # fmt: skip
    limits = {"nvidia.com/gpu": "8", "memory": "64Gi"}
    training = {"launcher": "TrainJob", "nodes": 2, "queueName": "gpus", "pod": pod_, "resources": {"limits": limits}}
    await serving(world, training=training)
    await dataset(world)
    raw = await world.raw.request("get", resource("TrainJob").path(world.namespace, TRAIN))
    asked = train_job_of(raw)
    assert asked["spec"]["trainer"]["resourcesPerNode"]["limits"] == limits, "nothing of it was pruned"
    path = resource("TrainJob").path(world.namespace, TRAIN)
    body = {"spec": {"trainer": {"numNodes": 3}}}
    with pytest.raises(Stalling, match="field is immutable"):
        await world.raw.request("patch", path, body, content_type="application/merge-patch+json")

    async def words() -> str:
        found = find((await world.version("assistant-1")).status.conditions, ConditionType.RECONCILING)
        return found.message if found is not None else ""

    async def queued() -> bool:
        return f"TrainJob {TRAIN} waits in queue gpus" in await words()

    await world.until(queued)
    await world.raw.request("patch", path, {"spec": {"suspend": False}}, content_type="application/merge-patch+json")
    await world.raw.request(
        "post", f"/api/v1/namespaces/{world.namespace}/serviceaccounts", {"metadata": {"name": "trainer"}}
    )
    names = [await node_pod(world, index) for index in range(2)]
    for name in names:
        await world.pod_status(name, running("node"))

    async def runs() -> bool:
        return not await queued()

    await world.until(runs)
    for index, name in enumerate(names):
        message = StageReport.model_validate(trained()).encode().decode() if index == 0 else ""
        await world.pod_status(name, terminated("node", 0, message))
    await say(world, "Complete", "AllJobsCompleted")
    await world.settle()
    await world.finish("evaluate", evaluated())
    await champion(world, "assistant-1")
    world.clock.advance(86_400)
    await world.settle()
    assert await train_jobs(world) == []


def train_job_of(raw: JSON) -> JSON:
    """The object as the API server keeps it holds everything that was asked for."""
    meta = raw["metadata"]
    assert {"kind": "ConfigMap", "name": meta["name"]}.items() <= meta["ownerReferences"][0].items()
    (patch,) = raw["spec"]["runtimePatches"]
    (job,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    template = job["template"]["spec"]["template"]
    assert template["metadata"]["labels"]["team"] == "ml"
    assert template["metadata"]["annotations"]["note"] == "x"
    assert set(template["spec"]) == {
        "nodeSelector", "tolerations", "serviceAccountName", "imagePullSecrets", "securityContext",
        "terminationGracePeriodSeconds", "volumes", "containers",
    }  # fmt: skip
    assert template["spec"]["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True
    return raw


@pytest.mark.apiserver
async def test_the_chart_s_runtime_is_one(kubeflow: None, world: World, repository: Path) -> None:
    values = {"prometheus": {"url": "http://prometheus:9090"}, "launchers": {"trainJob": {"enabled": True}}}
    with helm_python.Chart.load(repository / "charts" / "ratchet") as chart:
        files = chart.render(values, name="ratchet", namespace="ratchet-system")
    found = list(yaml.safe_load_all(files["ratchet/templates/trainjobs.yaml"]))
    (manifest,) = [one for one in found if one["kind"] == "ClusterTrainingRuntime"]
    assert manifest["metadata"]["name"] == RuntimeRef().name
    query = {"dryRun": "All", "fieldValidation": "Strict"}
    manifest["metadata"]["name"] = world.namespace
    await world.raw.request("post", resource("ClusterTrainingRuntime").path(""), manifest, query)
