"""A stage's Job and the immutable ConfigMap that tells it what to do.

Room: operator, manifests. Pure.

Retries are the operator's (they belong to the owner and survive their Jobs), so the Job itself never retries: its
podFailurePolicy only makes the reason of its end readable. Several workers of one stage are an Indexed Job, of which a
pod that has to give way to others is made again.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel

from ratchet_api.cycle import ImprovementCycle
from ratchet_api.data import Anchors, BaseModelRef
from ratchet_api.evaluation import Suite
from ratchet_api.export import Export
from ratchet_api.judge import KEY_ENV
from ratchet_api.names import (
    ANCHORS_FILE,
    METRICS_PORT,
    REGISTRY_DIR,
    SCRATCH_DIR,
    STAGE_FILE,
    SUITES_DIR,
    TERMINATION_LOG,
    child_name,
)
from ratchet_api.stage import CurateInput, EvaluateInput, ExitCode, ExportInput, TrainInput
from ratchet_api.tracking import CREDENTIAL_KEYS, Mlflow
from ratchet_api.training import StageJob
from ratchet_operator.manifests import pods
from ratchet_operator.manifests.pods import JSON

CONTAINER = "stage"
ANCHORS_DIR = ANCHORS_FILE.rpartition("/")[0]
GRACE_SECONDS = 30
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
"""How Kueue knows the LocalQueue of a Job (kueue.sigs.k8s.io/docs/tasks/run/jobs)."""


@dataclass(frozen=True)
class Owner:
    """The object that a stage works for: a cycle (curate) or a version (train, evaluate, export)."""

    kind: str
    name: str
    uid: str


@dataclass(frozen=True)
class StageRequest:
    """Everything that a stage's Job is made from."""

    cycle: ImprovementCycle
    owner: Owner
    input: CurateInput | TrainInput | EvaluateInput | ExportInput
    job: StageJob
    image: str
    base_model: BaseModelRef | None = None
    """None: the stage needs no model."""
    suites: Sequence[Suite] = ()
    anchors: Anchors | None = None
    launcher: Literal["Job", "TrainJob"] = "Job"
    """What it is handed to; see manifests.trainjobs for the other one."""
    input_uid: str | None = None
    """uid of its ConfigMap, once that is there."""

    @property
    def name(self) -> str:
        """Name of Job and ConfigMap: the same for the same attempt, always."""
        if self.launcher == "Job":
            return job_name(self.input)
        name = job_name(self.input, TRAIN_JOB_NAME)
        return name if name[0].isalpha() else child_name("run", name, limit=TRAIN_JOB_NAME)


TRAIN_JOB_NAME = 46
"""Longest name of a TrainJob of 64 nodes: its pods are called `<name>-node-0-<two digits>-<five letters>`. It begins
with a letter (RFC 1035)."""


def job_name(work: CurateInput | TrainInput | EvaluateInput | ExportInput, limit: int = 63) -> str:
    """`<version>-<stage>-<attempt>`, for curate `<cycle>-<run>-curate-<attempt>`."""
    who = work.identity
    if work.stage == "curate":
        return child_name(who.cycle, str(who.run), work.stage, str(who.attempt), limit=limit)
    return child_name(who.version, work.stage, str(who.attempt), limit=limit)


def metadata(request: StageRequest) -> JSON:
    """Of a Job or TrainJob. Its ConfigMap alone owns it: a request to make it that comes when the attempt is over, and
    the ConfigMap with it, makes what the garbage collector takes at once."""
    assert request.input_uid is not None, "the ConfigMap is made first"
    return _metadata(request, pods.input_owner(request.name, request.input_uid))


def _metadata(request: StageRequest, owners: list[JSON]) -> JSON:
    namespace = request.input.identity.namespace
    return {"name": request.name, "namespace": namespace, "labels": labels(request), "ownerReferences": owners}


def labels(request: StageRequest) -> dict[str, str]:
    """Of all that is made for an attempt, its pods included."""
    who = request.input.identity
    run = "" if who.run is None else str(who.run)
    return pods.labels(who.cycle, version=who.version, stage=request.input.stage, run=run)


def config_map(request: StageRequest) -> JSON:
    """The stage's input."""
    owner = request.owner
    return input_config_map(_metadata(request, pods.owner(owner.kind, owner.name, owner.uid)), request.input)


def input_config_map(metadata: JSON, work: BaseModel) -> JSON:
    """An immutable ConfigMap with the input of a stage or of a fetch."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "immutable": True,
        "data": {STAGE_FILE.rpartition("/")[2]: work.model_dump_json(by_alias=True)},
    }


def job(request: StageRequest) -> JSON:
    """The stage's Job; suspended when it has to wait in a queue."""
    overrides = request.job.pod
    queue = request.job.queue_name
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": queued(metadata(request), queue),
        "spec": {
            **({} if queue is None else {"suspend": True}),
            "backoffLimit": 0,
            "activeDeadlineSeconds": max(1, math.ceil(request.job.deadline.total_seconds())),
            "ttlSecondsAfterFinished": math.ceil(request.job.ttl.total_seconds()),
            **_workers(request),
            "template": {
                "metadata": {
                    "labels": pods.pod_labels(labels(request), overrides),
                    "annotations": pods.scrape_annotations(METRICS_PORT, overrides),
                },
                "spec": pod(request),
            },
        },
    }


def queued(metadata: JSON, queue: str | None) -> JSON:
    """With the label of the queue to wait in, if there is one."""
    return metadata if queue is None else metadata | {"labels": {**metadata["labels"], QUEUE_LABEL: queue}}


def _workers(request: StageRequest) -> JSON:
    """How many pods there are, and what becomes of the Job when one of them fails."""
    count = request.input.curation.parallelism if isinstance(request.input, CurateInput) else 1
    if count == 1:
        return {"podFailurePolicy": {"rules": _failure_rules("FailJob")}}
    # The others go on while the pod of an index that had to give way is made again.
    shared = {"completionMode": "Indexed", "completions": count, "parallelism": count}
    return shared | {"podFailurePolicy": {"rules": _failure_rules("Ignore")}}


def _failure_rules(disrupted: Literal["FailJob", "Ignore"]) -> list[JSON]:
    final = [int(ExitCode.USER_ERROR), int(ExitCode.DATA_ERROR), int(ExitCode.BUG)]
    return [
        {"action": disrupted, "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {
            "action": "FailJob",
            "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": final},
        },
    ]


def pod(request: StageRequest) -> JSON:
    """Spec of the stage's pod."""
    spec = pods.pod_spec(request.job.pod)
    spec["restartPolicy"] = "Never"
    spec["terminationGracePeriodSeconds"] = GRACE_SECONDS
    spec["volumes"] = [pods.scratch_volume(), pods.config_volume("stage", request.name)]
    main = pods.container(CONTAINER, request.image, ["python", "-m", "ratchet_trainer", request.input.stage], _args())
    main["envFrom"] = pods.storage_environment(request.cycle.spec.storage)
    main["volumeMounts"].append(pods.mount("stage", pods.STAGE_DIR))
    main["ports"] = [{"name": "metrics", "containerPort": METRICS_PORT}]
    main["resources"] = pods.resources(request.job.resources)
    if any(suite.cases.config_map is not None or suite.cases.task is not None for suite in request.suites):
        spec["volumes"].append(_suites_volume(request.suites))
        main["volumeMounts"].append(pods.mount("suites", SUITES_DIR))
        main["args"] += ["--suites", SUITES_DIR]
    if request.anchors is not None:
        spec["volumes"].append(_anchors_volume(request.anchors))
        main["volumeMounts"].append(pods.mount("anchors", ANCHORS_DIR))
        main["args"] += ["--anchors", ANCHORS_FILE]
    if isinstance(request.input, EvaluateInput):
        _add_judge(main, request.input)
    if isinstance(request.input, TrainInput) and request.cycle.spec.tracking is not None:
        main["env"] += _tracking(request.cycle.spec.tracking.mlflow)
    if isinstance(request.job, Export):
        _add_uploads(spec, main, request.job)
    if request.base_model is not None:
        pods.add_claim(spec, main, request.base_model)
    spec["containers"] = [main]
    return spec


def _add_judge(main: JSON, work: EvaluateInput) -> None:
    """The judge's key into the environment."""
    judge = work.policy.judge
    if judge is not None and judge.credentials_secret is not None:
        reference = {"name": judge.credentials_secret.name, "key": KEY_ENV}
        main["env"].append({"name": KEY_ENV, "valueFrom": {"secretKeyRef": reference}})


def _tracking(mlflow: Mlflow) -> list[JSON]:
    """What MLflow's own client takes from the environment."""
    found: list[JSON] = [{"name": "MLFLOW_TRACKING_URI", "value": mlflow.url}]
    if mlflow.credentials_secret is not None:
        for key in CREDENTIAL_KEYS:
            reference = {"name": mlflow.credentials_secret.name, "key": key, "optional": True}
            found.append({"name": key, "valueFrom": {"secretKeyRef": reference}})
    return found


def _add_uploads(spec: JSON, main: JSON, export: Export) -> None:
    """The hub's token into the environment, the registry's login into a file where its clients look for it."""
    if export.hub is not None:
        reference = {"name": export.hub.token_secret.name, "key": "HF_TOKEN"}
        main["env"].append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": reference}})
    if export.oci is not None and export.oci.credentials_secret is not None:
        item = {"key": ".dockerconfigjson", "path": "config.json"}
        secret = {"secretName": export.oci.credentials_secret.name, "items": [item]}
        spec["volumes"].append({"name": "registry", "secret": secret})
        main["volumeMounts"].append(pods.mount("registry", REGISTRY_DIR))
        main["env"].append({"name": "DOCKER_CONFIG", "value": REGISTRY_DIR})


def _args() -> list[str]:
    return [
        "--input", STAGE_FILE,
        "--report", TERMINATION_LOG,
        "--scratch", SCRATCH_DIR,
        "--metrics-address", pods.metrics_address(),
    ]  # fmt: skip


def _suites_volume(suites: Sequence[Suite]) -> JSON:
    keys = [(f"{suite.name}.jsonl", suite.cases.config_map) for suite in suites]
    keys += [(f"{suite.name}.yaml", suite.cases.task) for suite in suites]
    sources = [
        {"configMap": {"name": key.name, "items": [{"key": key.key, "path": path}]}}
        for path, key in keys
        if key is not None
    ]
    return {"name": "suites", "projected": {"sources": sources}}


def _anchors_volume(anchors: Anchors) -> JSON:
    item = {"key": anchors.config_map.key, "path": ANCHORS_FILE.rpartition("/")[2]}
    return {"name": "anchors", "configMap": {"name": anchors.config_map.name, "items": [item]}}
