"""An arm: the Deployment that serves one version, and the input of its fetch init container.

Room: operator, manifests. Pure.

The fetch container (trainer image) puts base model and adapter, verified against their digests, into an emptyDir; the
runtime's server starts only then, and serves the version under the version's name.
"""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from ratchet_api.cycle import ImprovementCycle
from ratchet_api.data import AdapterRef
from ratchet_api.names import (
    ARM,
    ARM_LABEL,
    ARM_PORT,
    CYCLE_KIND,
    CYCLE_LABEL,
    GROUP,
    MODEL_DIR,
    STAGE_FILE,
    TERMINATION_LOG,
    VERSION_LABEL,
    child_name,
)
from ratchet_api.serving import Serving
from ratchet_api.stage import FetchInput, StageIdentity
from ratchet_operator.manifests import pods
from ratchet_operator.manifests.pods import JSON
from ratchet_operator.manifests.stages import input_config_map

SERVER = "server"
FETCH = "fetch"
MANIFEST_ANNOTATION = f"{GROUP}/manifest"
"""On an arm's Deployment: hash of what was applied, so that an unchanged one is not written again."""
INPUT_ANNOTATION = f"{GROUP}/fetch-input"
"""On an arm's Deployment: name of the ConfigMap to remove together with it."""
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM takes for --max-lora-rank."""
PROBE_SECONDS = 2
DRAIN_SECONDS = 5
"""Between the pod's leaving the gateway's table and the server's SIGTERM."""
GRACE_SECONDS = 120
"""For the longest answers that are under way."""


@dataclass(frozen=True)
class ArmRequest:
    """Everything that an arm is made from."""

    cycle: ImprovementCycle
    version: str
    adapter: AdapterRef | None
    """None: the bare base model."""
    lora_rank: int
    """Rank of the adapter, or an upper bound of it."""
    trainer_image: str
    vllm_image: str
    replicas: int | None
    """Pods; None: somebody else scales it."""

    @property
    def served_names(self) -> list[str]:
        """What the server calls the model: its version; where no gateway translates it, the cycle's name as well."""
        cycle = self.cycle
        return [self.version, *([] if cycle.spec.serving.router == "gateway" else [cycle.metadata.name])]

    @property
    def deployment(self) -> str:
        """Name of the Deployment."""
        return deployment_name(self.version)

    @property
    def fetch_input(self) -> FetchInput:
        """What the fetch container is told."""
        return FetchInput(
            identity=StageIdentity(**pods.identity(self.cycle), version=self.version),
            base_model=self.cycle.spec.base_model,
            adapter=self.adapter,
        )

    @property
    def config_map(self) -> str:
        """Name of the fetch input's ConfigMap: another input is another ConfigMap, for it is immutable."""
        content = self.fetch_input.model_dump_json(by_alias=True)
        return child_name(self.version, FETCH, hashlib.sha256(content.encode()).hexdigest()[:8])


def deployment_name(version: str) -> str:
    """Name of a version's Deployment."""
    return child_name(version, ARM)


def selector(cycle: str, version: str) -> dict[str, str]:
    """Labels by which the arm's pods are found."""
    return {CYCLE_LABEL: cycle, VERSION_LABEL: version, ARM_LABEL: "true"}


def _metadata(request: ArmRequest, name: str) -> JSON:
    meta = request.cycle.metadata
    return {
        "name": name,
        "namespace": meta.namespace,
        "labels": pods.labels(meta.name, version=request.version, arm="true"),
        "ownerReferences": pods.owner(CYCLE_KIND, meta.name, meta.uid),
    }


def fetch_config_map(request: ArmRequest) -> JSON:
    """The fetch container's input."""
    return input_config_map(_metadata(request, request.config_map), request.fetch_input)


def deployment(request: ArmRequest) -> JSON:
    """The arm's Deployment, stamped with the hash of itself."""
    serving, meta = request.cycle.spec.serving, request.cycle.metadata
    labels = selector(meta.name, request.version)
    manifest: JSON = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(request, request.deployment),
        "spec": {
            **({} if request.replicas is None else {"replicas": request.replicas}),
            "revisionHistoryLimit": 1,
            "progressDeadlineSeconds": _seconds(request.cycle.spec.rollout.progress_deadline),
            # A changed serving block never takes the arm's last ready pod away.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {
                    "labels": pods.pod_labels(pods.labels(meta.name) | labels, serving.pod),
                    "annotations": pods.scrape_annotations(ARM_PORT, serving.pod),
                },
                "spec": _pod(request),
            },
        },
    }
    text = json.dumps(manifest, sort_keys=True)
    manifest["metadata"]["annotations"] = {
        INPUT_ANNOTATION: request.config_map,
        MANIFEST_ANNOTATION: hashlib.sha256(text.encode()).hexdigest()[:16],
    }
    return manifest


def disruption_budget(request: ArmRequest) -> JSON | None:
    """Drains take the pods of an arm one by one; None for a single pod, which a budget could only nail to its node."""
    if request.cycle.spec.serving.replicas < 2:
        return None
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _metadata(request, request.deployment),
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": selector(request.cycle.metadata.name, request.version)},
        },
    }


def _pod(request: ArmRequest) -> JSON:
    serving = request.cycle.spec.serving
    spec = pods.pod_spec(serving.pod)
    spec["terminationGracePeriodSeconds"] = GRACE_SECONDS
    spec["volumes"] = [
        pods.scratch_volume(),
        {"name": "model", "emptyDir": {}},
        pods.config_volume("stage", request.config_map),
    ]
    fetch = _fetch(request)
    pods.add_claim(spec, fetch, request.cycle.spec.base_model)
    spec["initContainers"] = [fetch]
    server = RUNTIMES[serving.runtime](request, spec)
    server["args"] += serving.extra_args
    server["resources"] = pods.resources(serving.resources)
    server["ports"] = [{"name": "http", "containerPort": ARM_PORT}]
    server["volumeMounts"].append(pods.mount("model", MODEL_DIR))
    server["lifecycle"] = {"preStop": {"exec": {"command": ["sleep", str(DRAIN_SECONDS)]}}}
    server |= _probes(request.cycle.spec.rollout.progress_deadline)
    spec["containers"] = [server]
    return spec


def _fetch(request: ArmRequest) -> JSON:
    args = ["--input", STAGE_FILE, "--report", TERMINATION_LOG, "--output", MODEL_DIR]
    fetch = pods.container(FETCH, request.trainer_image, ["python", "-m", "ratchet_trainer", "fetch"], args)
    fetch["envFrom"] = pods.storage_environment(request.cycle.spec.storage)
    fetch["volumeMounts"] += [pods.mount("stage", pods.STAGE_DIR), {"name": "model", "mountPath": MODEL_DIR}]
    return fetch


def _transformers(request: ArmRequest, spec: JSON) -> JSON:
    serving = request.cycle.spec.serving
    args = ["--host", "$(POD_IP)", "--port", str(ARM_PORT), "--model-dir", MODEL_DIR]
    args += ["--served-model-name", *request.served_names, *_max_model_len(serving)]
    image = serving.image or request.trainer_image
    return pods.container(SERVER, image, ["python", "-m", "ratchet_trainer", "serve"], args)


def _vllm(request: ArmRequest, spec: JSON) -> JSON:
    serving = request.cycle.spec.serving
    args = [f"{MODEL_DIR}/base", "--host", "$(POD_IP)", "--port", str(ARM_PORT), *_max_model_len(serving)]
    if request.adapter is None:
        args += ["--served-model-name", *request.served_names]
    else:
        # The base has to have a name too; it is not the version's, so that nobody is answered by it in error.
        args += ["--served-model-name", child_name(request.version, "base"), "--enable-lora"]
        args += ["--lora-modules", *(f"{name}={MODEL_DIR}/adapter" for name in request.served_names)]
        args += ["--max-lora-rank", str(_max_lora_rank(request.lora_rank))]
    server = pods.container(SERVER, serving.image or request.vllm_image, ["vllm", "serve"], args)
    server["env"] += [
        {"name": "HF_HUB_OFFLINE", "value": "1"},
        {"name": "VLLM_NO_USAGE_STATS", "value": "1"},
        # Whatever the image says: nobody who reaches the port puts another adapter behind the version's name.
        {"name": "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "value": "0"},
    ]
    # Tensor-parallel workers talk through shared memory, of which a container has 64 MiB unless told otherwise.
    spec["volumes"].append({"name": "shm", "emptyDir": {"medium": "Memory"}})
    server["volumeMounts"].append({"name": "shm", "mountPath": "/dev/shm"})
    return server


RUNTIMES: dict[str, Callable[[ArmRequest, JSON], JSON]] = {"vllm": _vllm, "transformers": _transformers}


def _max_lora_rank(rank: int) -> int:
    return next(value for value in LORA_RANKS if value >= rank)


def _max_model_len(serving: Serving) -> list[str]:
    return [] if serving.max_model_len is None else ["--max-model-len", str(serving.max_model_len)]


def _probes(progress_deadline: timedelta) -> JSON:
    tries = max(30, math.ceil(_seconds(progress_deadline) / PROBE_SECONDS))
    return {
        "startupProbe": _probe(PROBE_SECONDS, timeout=5, failures=tries),
        "readinessProbe": _probe(PROBE_SECONDS, timeout=10, failures=3),
        # Slow is for the analysis to judge; only a server that is gone for good is restarted.
        "livenessProbe": _probe(10, timeout=20, failures=6),
    }


def _probe(period: int, timeout: int, failures: int) -> JSON:
    return {
        "httpGet": {"path": "/health", "port": "http"},
        "periodSeconds": period,
        "timeoutSeconds": timeout,
        "failureThreshold": failures,
    }


def _seconds(value: timedelta) -> int:
    return max(1, math.ceil(value.total_seconds()))
