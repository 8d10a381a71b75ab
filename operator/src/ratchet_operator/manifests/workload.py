"""Serving in place: the fields of people's Deployment that name a version, and the companion cloned from it.

Room: operator, manifests. Pure.

Server-side apply owns fields, and a list as a whole unless the API gives it keys. `args` has none, so the version is
named by what has: labels, annotations, env, initContainers and volumes (by name), and volumeMounts (by path).
People's own arguments refer to the env by `$(RATCHET_...)`, which Kubernetes expands. What the fetch container is
told lies in an annotation of the pod template and is mounted by the downward API, so that there is no other object
whose end could keep people's pods from starting.
"""

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ratchet_api.cycle import ImprovementCycle
from ratchet_api.data import AdapterRef
from ratchet_api.names import (
    ARM_LABEL,
    COMPANION_LABEL,
    CYCLE_KIND,
    CYCLE_LABEL,
    FIELD_MANAGER,
    GROUP,
    MODEL_DIR,
    STAGE_FILE,
    TERMINATION_LOG,
    VERSION_LABEL,
    child_name,
)
from ratchet_api.stage import FetchInput, StageIdentity
from ratchet_operator.manifests import pods
from ratchet_operator.manifests.arms import DRAIN_SECONDS, MANIFEST_ANNOTATION, selector
from ratchet_operator.manifests.pods import JSON

DEFAULT_GRACE_SECONDS = 30
"""Kubernetes' own."""
FETCH = "ratchet-fetch"
PREFIX = "ratchet-"
"""Of the names of everything that is added to people's pods."""
INPUT_ANNOTATION = f"{GROUP}/fetch"
"""On a pod template: the fetch container's input."""
RESTORE_ANNOTATION = f"{GROUP}/restore"
"""On people's Deployment, with keepServing: false: when the cycle is gone, nothing else says what its end is to do."""
_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "volumeMounts": "mountPath",
}
"""Lists with keys that we have entries in, and their keys (k8s.io/api, x-kubernetes-list-map-keys)."""


@dataclass(frozen=True)
class Named:
    """A version, and the Deployment that is to serve it."""

    cycle: ImprovementCycle
    version: str
    adapter: AdapterRef | None
    """None: the bare base model."""
    container: str
    """The container that serves the model."""
    trainer_image: str

    @property
    def workload(self) -> str:
        """Name of people's Deployment."""
        return workload_name(self.cycle)

    @property
    def fetch_input(self) -> FetchInput:
        """What the fetch container is told."""
        return FetchInput(
            identity=StageIdentity(**pods.identity(self.cycle), version=self.version),
            base_model=self.cycle.spec.base_model,
            adapter=self.adapter,
        )


def workload_name(cycle: ImprovementCycle) -> str:
    """Name of the Deployment that a cycle serves in place."""
    workload = cycle.spec.serving.workload
    assert workload is not None, "only asked for when there is one"
    return workload.name


def companion_name(workload: str, version: str) -> str:
    """Name of the Deployment that serves a version beside people's."""
    return child_name(workload, "ratchet", version)


def manager(cycle: str) -> str:
    """Field manager on people's Deployment: one a cycle, so that two cycles with one Deployment are a conflict."""
    return f"{FIELD_MANAGER}-{cycle}"


def fields(named: Named, uid: str) -> JSON:
    """All that is applied to people's Deployment. `uid`: of the one that was seen, so that no other is ever touched."""
    cycle = named.cycle.metadata.name
    restore = {} if named.cycle.spec.serving.keep_serving else {"annotations": {RESTORE_ANNOTATION: "true"}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _identity(named.cycle, uid) | {"labels": {CYCLE_LABEL: cycle}} | restore,
        "spec": {"template": _template(named)},
    }


def released(namespace: str, name: str, uid: str) -> JSON:
    """Nothing at all: applied, everything that was ours is taken out of people's Deployment."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace, "uid": uid},
    }


def holds(labels: Mapping[str, str], annotations: Mapping[str, str], template: JSON, wanted: JSON) -> bool:
    """Whether a Deployment with these labels, annotations and pod template has all of `fields`. Another fetch image
    alone, as after an upgrade of the operator, is no reason to roll people's pods."""
    wanted = copy.deepcopy(wanted)
    for container in wanted["spec"]["template"]["spec"]["initContainers"]:
        container.pop("image")
    asked = (wanted["metadata"].get("annotations") or {}).get(RESTORE_ANNOTATION)
    return (
        annotations.get(RESTORE_ANNOTATION) == asked
        and _within(wanted["metadata"]["labels"], labels)
        and _within(wanted["spec"]["template"], template)
    )


def companion(named: Named, template: JSON, hidden: set[str], replicas: int) -> JSON:
    """The Deployment beside people's, stamped with the hash of itself.

    `template`: of people's Deployment. `hidden`: labels that it is selected by; the companion's pods have none of
    them, so that neither it nor people's Services find these pods.
    """
    meta = named.cycle.metadata
    labels = selector(meta.name, named.version) | {COMPANION_LABEL: "true"}
    pod = _overlaid(_stripped(template), _template(named))
    pod["metadata"]["labels"] = {k: v for k, v in pod["metadata"]["labels"].items() if k not in hidden} | labels
    _drained(pod["spec"], named.container)
    manifest: JSON = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": companion_name(named.workload, named.version),
            "namespace": meta.namespace,
            "labels": pods.labels(meta.name, version=named.version, arm="true"),
            "ownerReferences": pods.owner(CYCLE_KIND, meta.name, meta.uid),
        },
        "spec": {
            "replicas": replicas,
            "revisionHistoryLimit": 1,
            # A change of people's template never takes the companion's last ready pod away.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "selector": {"matchLabels": labels},
            "template": pod,
        },
    }
    text = json.dumps(manifest, sort_keys=True)
    manifest["metadata"]["annotations"] = {MANIFEST_ANNOTATION: hashlib.sha256(text.encode()).hexdigest()[:16]}
    return manifest


def _drained(spec: JSON, container: str) -> None:
    """Between the pod's leaving the gateway's table and SIGTERM there is time, unless people have said how it ends."""
    server = next(entry for entry in spec["containers"] if entry["name"] == container)
    if spec.get("terminationGracePeriodSeconds", DEFAULT_GRACE_SECONDS) > DRAIN_SECONDS:
        server.setdefault("lifecycle", {}).setdefault("preStop", {"sleep": {"seconds": DRAIN_SECONDS}})


def _identity(cycle: ImprovementCycle, uid: str) -> JSON:
    return {"name": workload_name(cycle), "namespace": cycle.metadata.namespace, "uid": uid}


def _template(named: Named) -> JSON:
    cycle = named.cycle.metadata.name
    text = json.dumps(named.fetch_input.model_dump(mode="json", by_alias=True), sort_keys=True)
    spec: JSON = {
        "volumes": [pods.scratch_volume(), {"name": "model", "emptyDir": {}}, _input_volume()],
        "initContainers": [],
        "containers": [
            {
                "name": named.container,
                "env": _environment(named),
                "volumeMounts": [{"name": f"{PREFIX}model", "mountPath": MODEL_DIR, "readOnly": True}],
            }
        ],
    }
    spec["initContainers"].append(_fetch(named, spec))
    for volume in spec["volumes"]:
        volume["name"] = f"{PREFIX}{volume['name']}"
    return {
        "metadata": {
            "labels": {CYCLE_LABEL: cycle, VERSION_LABEL: named.version, ARM_LABEL: "true"},
            "annotations": {INPUT_ANNOTATION: text},
        },
        "spec": spec,
    }


def _input_volume() -> JSON:
    path = {"path": STAGE_FILE.rpartition("/")[2]}
    field = {"fieldRef": {"apiVersion": "v1", "fieldPath": f"metadata.annotations['{INPUT_ANNOTATION}']"}}
    return {"name": "stage", "downwardAPI": {"items": [path | field]}}


def _environment(named: Named) -> list[JSON]:
    """What people's arguments may refer to. An empty --lora-modules names none (vLLM, LoRAParserAction)."""
    adapter = named.adapter is not None
    values = {
        "RATCHET_VERSION": named.version,
        "RATCHET_MODEL_DIR": MODEL_DIR,
        # With an adapter the base has to have a name of its own, so that nobody is answered by it in error.
        "RATCHET_BASE_NAME": child_name(named.version, "base") if adapter else named.version,
        "RATCHET_LORA_MODULES": f"{named.version}={MODEL_DIR}/adapter" if adapter else "",
    }
    return [{"name": name, "value": value} for name, value in values.items()]


def _fetch(named: Named, spec: JSON) -> JSON:
    args = ["--input", STAGE_FILE, "--report", TERMINATION_LOG, "--output", MODEL_DIR]
    fetch = pods.container(FETCH, named.trainer_image, ["python", "-m", "ratchet_trainer", "fetch"], args)
    fetch["envFrom"] = pods.storage_environment(named.cycle.spec.storage)
    fetch["volumeMounts"] += [pods.mount("stage", pods.STAGE_DIR), {"name": "model", "mountPath": MODEL_DIR}]
    pods.add_claim(spec, fetch, named.cycle.spec.base_model)
    for mount in fetch["volumeMounts"]:
        mount["name"] = f"{PREFIX}{mount['name']}"
    return fetch


def _stripped(value: Any) -> Any:
    """Without nulls, as a live object has a few and an apply must not."""
    if isinstance(value, dict):
        return {key: _stripped(item) for key, item in value.items() if item is not None}
    return [_stripped(item) for item in value] if isinstance(value, list) else value


def _overlaid(below: Any, above: Any, field: str = "") -> Any:
    """Both, `above` where they differ. What is ours comes last and whole, so that a clone is the same before and after
    people's Deployment has it too."""
    if isinstance(below, dict) and isinstance(above, dict):
        return below | {key: _overlaid(below.get(key), value, key) for key, value in above.items()}
    if isinstance(below, list) and isinstance(above, list) and field in _KEYS:
        key = _KEYS[field]
        ours = {entry[key]: entry for entry in above}
        if field == "containers":
            return [_overlaid(entry, ours.get(entry[key], {})) for entry in below]
        return [entry for entry in below if entry[key] not in ours] + copy.deepcopy(above)
    return copy.deepcopy(above)


def _within(wanted: Any, present: Any, field: str = "") -> bool:
    """Whether everything that is wanted is there. Kubernetes leaves out empty strings, lists and maps."""
    if wanted in ("", [], {}) and not present:
        return True
    if isinstance(wanted, dict):
        return isinstance(present, dict) and all(_within(v, present.get(k), k) for k, v in wanted.items())
    if isinstance(wanted, list) and field in _KEYS:
        there = {entry.get(_KEYS[field]): entry for entry in present or []}
        return all(_within(entry, there.get(entry[_KEYS[field]])) for entry in wanted)
    return bool(wanted == present)
