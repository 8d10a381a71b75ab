"""What the pods of stages and arms have in common: security, storage credentials, the base model's volume, overrides.

Room: operator, manifests. Pure.

Every path that is mounted is also passed as an argument or in the environment: product code takes paths from there
only, so that a node without mounts can rewrite them.
"""

from typing import Any

from ratchet_api.cycle import ImprovementCycle
from ratchet_api.data import BaseModelRef, Storage
from ratchet_api.names import CYCLE_LABEL, GROUP, GROUP_VERSION, MANAGED_BY, METRICS_PORT, SCRATCH_DIR, STAGE_FILE
from ratchet_api.pods import PodOverrides, Resources

JSON = dict[str, Any]

STAGE_DIR = STAGE_FILE.rpartition("/")[0]
CLAIM_DIR = "/var/lib/ratchet/claim"
USER = 65532
"""The user of the images; also given to images that would run as root."""


def owner(kind: str, name: str, uid: str) -> list[JSON]:
    """ownerReferences of a child: it goes when its owner goes."""
    return [{"apiVersion": GROUP_VERSION, "kind": kind, "name": name, "uid": uid, "controller": True}]


def input_owner(name: str, uid: str) -> list[JSON]:
    """The same of what a ConfigMap tells what to do."""
    return [{"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": uid, "controller": True}]


def labels(cycle: str, **others: str) -> dict[str, str]:
    """Labels of a child; `others` by their last part: version="a-1" -> ratchet.dev/version."""
    own = {CYCLE_LABEL: cycle} | {f"{GROUP}/{key}": value for key, value in others.items() if value}
    return {"app.kubernetes.io/name": "ratchet"} | MANAGED_BY | own


def pod_labels(own: dict[str, str], overrides: PodOverrides) -> dict[str, str]:
    """The person's labels below ours."""
    return {k: v for k, v in overrides.labels.items() if not k.startswith(f"{GROUP}/")} | own


def scrape_annotations(port: int, overrides: PodOverrides) -> dict[str, str]:
    """The person's annotations, and the three by which Prometheus finds the pod."""
    return overrides.annotations | {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(port),
        "prometheus.io/path": "/metrics",
    }


def pod_spec(overrides: PodOverrides) -> JSON:
    """Everything of a restricted pod but its containers and volumes."""
    spec: JSON = {
        # Nothing in these pods talks to Kubernetes.
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    if overrides.service_account_name:
        spec["serviceAccountName"] = overrides.service_account_name
        # Named for workload identity, which comes as a projected token of the cloud's own webhook.
    if overrides.node_selector:
        spec["nodeSelector"] = dict(overrides.node_selector)
    if overrides.tolerations:
        spec["tolerations"] = [toleration.dump() for toleration in overrides.tolerations]
    if overrides.priority_class_name:
        spec["priorityClassName"] = overrides.priority_class_name
    if overrides.runtime_class_name:
        spec["runtimeClassName"] = overrides.runtime_class_name
    if overrides.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in overrides.image_pull_secrets]
    return spec


def container(name: str, image: str, command: list[str], args: list[str]) -> JSON:
    """A restricted container that knows its pod's IP and may write to its scratch folder only."""
    return {
        "name": name,
        "image": image,
        "command": command,
        "args": args,
        "env": environment(),
        "volumeMounts": [{"name": "scratch", "mountPath": SCRATCH_DIR}],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePolicy": "File",
    }


def environment() -> list[JSON]:
    """POD_IP, and every cache and home folder of the libraries inside the scratch folder."""
    return [
        {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "HOME", "value": SCRATCH_DIR},
        {"name": "TMPDIR", "value": SCRATCH_DIR},
        {"name": "HF_HOME", "value": f"{SCRATCH_DIR}/huggingface"},
        # Libraries ask for a user name, and this user has no entry in the image's password file.
        {"name": "USER", "value": "ratchet"},
    ]


def resources(asked: Resources) -> JSON:
    """A container's resources block; empty when nothing was asked for."""
    block: JSON = {}
    if asked.requests:
        block["requests"] = dict(asked.requests)
    if asked.limits:
        block["limits"] = dict(asked.limits)
    return block


def scratch_volume() -> JSON:
    """The folder that a container may write to."""
    return {"name": "scratch", "emptyDir": {}}


def config_volume(name: str, config_map: str) -> JSON:
    """A ConfigMap as a folder."""
    return {"name": name, "configMap": {"name": config_map}}


def mount(name: str, path: str) -> JSON:
    """A read-only mount."""
    return {"name": name, "mountPath": path, "readOnly": True}


def storage_environment(storage: Storage) -> list[JSON]:
    """envFrom of a container that reads or writes object storage."""
    secret = storage.credentials_secret
    return [] if secret is None else [{"secretRef": {"name": secret.name}}]


def claim(base_model: BaseModelRef) -> str | None:
    """Name of the PersistentVolumeClaim that a `pvc://claim/path` model lies in."""
    if not base_model.uri.startswith("pvc://"):
        return None
    return base_model.uri.removeprefix("pvc://").partition("/")[0]


def add_claim(spec: JSON, target: JSON, base_model: BaseModelRef) -> None:
    """Mounts the base model's claim, if it lies in one, and tells the container where."""
    name = claim(base_model)
    if name is None:
        return
    spec["volumes"].append({"name": "claim", "persistentVolumeClaim": {"claimName": name, "readOnly": True}})
    target["volumeMounts"].append(mount("claim", CLAIM_DIR))
    target["args"] += ["--pvc-root", CLAIM_DIR]


def metrics_address() -> str:
    """Where a stage's metrics answer."""
    return f"$(POD_IP):{METRICS_PORT}"


def identity(cycle: ImprovementCycle) -> JSON:
    """The part of a StageIdentity that the cycle's spec gives."""
    storage = cycle.spec.storage
    return {
        "namespace": cycle.metadata.namespace,
        "cycle": cycle.metadata.name,
        "storage_uri": storage.uri,
        "storage_endpoint": storage.endpoint,
        "storage_region": storage.region,
    }
