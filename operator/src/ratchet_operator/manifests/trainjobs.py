"""A train stage as a TrainJob of Kubeflow Trainer (trainer.kubeflow.org/v1alpha1, release 2.3).

Room: operator, manifests. Pure.

Kubeflow Trainer makes the pods from a training runtime and this TrainJob: a JobSet with one Indexed Job `node`, a pod a
node, each with one container `node`, which gets PET_NNODES, PET_NODE_RANK, PET_MASTER_ADDR and PET_MASTER_PORT. What a
TrainJob has no field for (the stage's input, the scratch folder, labels, placement, security) goes into a runtime patch
under a name of ours.
"""

import math

from ratchet_api.names import FIELD_MANAGER, GROUP, METRICS_PORT
from ratchet_api.presets import Training
from ratchet_operator.manifests import pods
from ratchet_operator.manifests.pods import JSON
from ratchet_operator.manifests.stages import StageRequest, labels, metadata, pod, queued

API_VERSION = "trainer.kubeflow.org/v1alpha1"
NODE = "node"
"""What Kubeflow Trainer calls the Job of the nodes and their container."""
OWNER_LABEL = f"{GROUP}/owner"
"""On the pods of a TrainJob: uid of its ConfigMap, because pods are owned by a Job of a JobSet of the TrainJob."""
MANAGER = f"{GROUP}/{FIELD_MANAGER}"
CREDENTIALS = (
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_REGION", "HF_TOKEN",
    "HF_ENDPOINT",
)  # fmt: skip
"""Keys of storage.credentialsSecret that a TrainJob's container gets: it cannot take a Secret as a whole."""


def train_job(request: StageRequest, training: Training) -> JSON:
    """The stage's TrainJob; suspended when it has to wait in a queue."""
    queue, spec = request.job.queue_name, pod(request)
    (main,) = spec["containers"]
    secret = request.cycle.spec.storage.credentials_secret
    runtime = training.runtime_ref
    return {
        "apiVersion": API_VERSION,
        "kind": "TrainJob",
        "metadata": queued(metadata(request), queue),
        "spec": {
            **({} if queue is None else {"suspend": True}),
            "runtimeRef": {"apiGroup": API_VERSION.partition("/")[0], "kind": runtime.kind, "name": runtime.name},
            "activeDeadlineSeconds": max(1, math.ceil(request.job.deadline.total_seconds())),
            "trainer": {
                "image": main["image"],
                "command": main["command"],
                "args": main["args"],
                "env": main["env"] + ([] if secret is None else [_credential(secret.name, key) for key in CREDENTIALS]),
                "numNodes": training.nodes,
                # The stage starts a process for each GPU itself: one is started by Kubeflow Trainer.
                "numProcPerNode": 1,
                **({"resourcesPerNode": main["resources"]} if main["resources"] else {}),
            },
            "runtimePatches": [{"manager": MANAGER, "trainingRuntimeSpec": _patch(request, spec, main)}],
        },
    }


def _credential(secret: str, key: str) -> JSON:
    return {"name": key, "valueFrom": {"secretKeyRef": {"name": secret, "key": key, "optional": True}}}


def _patch(request: StageRequest, spec: JSON, main: JSON) -> JSON:
    """The fields of the pod that a runtime patch may set."""
    overrides = request.job.pod
    said = (
        "nodeSelector", "tolerations", "serviceAccountName", "imagePullSecrets", "securityContext",
        "terminationGracePeriodSeconds",
    )  # fmt: skip
    template = {
        "metadata": {
            "labels": pods.pod_labels(labels(request) | {OWNER_LABEL: str(request.input_uid)}, overrides),
            "annotations": pods.scrape_annotations(METRICS_PORT, overrides),
        },
        "spec": {
            **{field: spec[field] for field in said if field in spec},
            "volumes": spec["volumes"],
            "containers": [
                {"name": NODE, "volumeMounts": main["volumeMounts"], "securityContext": main["securityContext"]}
            ],
        },
    }
    return {"template": {"spec": {"replicatedJobs": [{"name": NODE, "template": {"spec": {"template": template}}}]}}}
