"""Names that several rooms must agree on: API group, labels, annotations, paths, child names.

Room: api. Pure; touches nothing.
"""

import hashlib

GROUP = "ratchet.dev"
API_VERSION = "v1alpha1"
GROUP_VERSION = f"{GROUP}/{API_VERSION}"
CYCLE_KIND, CYCLE_PLURAL = "ImprovementCycle", "improvementcycles"
VERSION_KIND, VERSION_PLURAL = "ModelVersion", "modelversions"
FIELD_MANAGER = "ratchet-operator"

CYCLE_LABEL = f"{GROUP}/cycle"
VERSION_LABEL = f"{GROUP}/version"
STAGE_LABEL = f"{GROUP}/stage"
ARM_LABEL = f"{GROUP}/arm"
RUN_LABEL = f"{GROUP}/run"
COMPANION_LABEL = f"{GROUP}/companion"
"""On pods that serve a version beside the Deployment that serving.workload names."""
MANAGED_BY = {"app.kubernetes.io/managed-by": "ratchet"}
GATEWAY_LABELS = {"app.kubernetes.io/name": "ratchet", "app.kubernetes.io/component": "gateway"}

# What a person asks for by `kubectl annotate`; the operator only ever reads these.
RUN_ANNOTATION = f"{GROUP}/run"
"""On a cycle: any new value starts one run now (status.run.request remembers the last one taken)."""
ABORT_ANNOTATION = f"{GROUP}/abort"
"""On a cycle: the name of the candidate version to roll back now."""

EXPORT_ANNOTATION = f"{GROUP}/export"
"""On a version: any new value asks for one export now (status.export.request remembers the last one taken)."""


def approval_annotation(gate: str) -> str:
    """On a version: the digest that a person approves at a gate of the cycle's promotion."""
    return f"{GROUP}/approve-{gate.lower()}"


def approval_command(gate: str, version: str, digest: str) -> str:
    """What a person types to approve a version at a gate."""
    return f"kubectl annotate mv {version} --overwrite {approval_annotation(gate)}={digest}"


STAGE_FILE = "/etc/ratchet/stage/stage.json"
SUITES_DIR = "/etc/ratchet/suites"
"""Each suite that lives in a ConfigMap is mounted as `<suite name>.jsonl` below this folder."""
ANCHORS_FILE = "/etc/ratchet/anchors/anchors.jsonl"
REGISTRY_DIR = "/etc/ratchet/registry"
"""The registry's login, as `config.json`."""
TERMINATION_LOG = "/dev/termination-log"
MODEL_DIR = "/var/lib/ratchet/model"
"""emptyDir of an arm's pod: `base/` and `adapter/` are put there by the fetch init container."""
SCRATCH_DIR = "/var/lib/ratchet/scratch"

ARM = "arm"
"""Last part of the name of a version's Deployment."""

GATEWAY_PORT = 8080
ARM_PORT = 8000
METRICS_PORT = 9090


def child_name(*parts: str, limit: int = 63) -> str:
    """A deterministic DNS label of at most `limit` characters; long ones keep a head and 8 hex digits of their hash."""
    name = "-".join(part for part in parts if part).lower()
    if len(name) <= limit:
        return name
    return f"{name[: limit - 9].rstrip('-')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def version_name(cycle: str, number: int) -> str:
    """The name of the version that run `number` of a cycle makes; number 0 is the bare base model."""
    return child_name(cycle, str(number))
