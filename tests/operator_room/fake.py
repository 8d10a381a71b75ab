"""An API server in a dict, with the controllers that the operator's stories need. For what only it can do quickly.

It knows resource versions (409), owners (garbage collection), selectors, server-side apply in its simplest form, Jobs
that make a pod, and Deployments that make pods. What is right is proven on the real one; see test_spine.
"""

import copy
import hashlib
import itertools
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from ratchet_operator.clients.transport import JSON, AlreadyExists, NotFound
from ratchet_operator.errors import Conflict

Where = tuple[str, str]


class FakeApi:
    """A Transport."""

    def __init__(self) -> None:
        self.objects: dict[Where, JSON] = {}
        """(collection path, name) -> object."""
        self.now = lambda: datetime.now(UTC)
        self._numbers = itertools.count(1)
        self._applied: dict[tuple[Where, str], JSON] = {}
        """What each manager has applied to a Deployment, so that what it leaves out next time is taken out."""

    async def request(
        self,
        method: str,
        path: str,
        body: JSON | None = None,
        query: Mapping[str, str] | None = None,
        content_type: str | None = None,
        accept: str | None = None,
    ) -> JSON:
        collection, name, part = _split(path)
        where = (collection, name)
        body = copy.deepcopy(body)
        if method == "get" and not name:
            return {"items": [copy.deepcopy(found) for found in self._select(collection, query or {})]}
        if method == "post":
            assert body is not None
            return self._create(collection, body)
        if content_type == "application/apply-patch+yaml" and body is not None and body["kind"] == "Deployment":
            return self._apply(where, body, query or {})
        if method == "patch" and content_type == "application/apply-patch+yaml" and where not in self.objects:
            assert body is not None
            return self._create(collection, body)
        if where not in self.objects:
            raise NotFound(path)
        if method == "get":
            return copy.deepcopy(self.objects[where])
        if method == "delete":
            self._delete(where)
            return {}
        assert body is not None
        if content_type == "application/apply-patch+yaml" and body["kind"] == "Service":
            self.objects[where]["spec"].pop("selector", None)  # an atomic map: applied whole
        return self._change(where, body, part, replace=method == "put")

    def _apply(self, where: Where, body: JSON, query: Mapping[str, str]) -> JSON:
        manager = query["fieldManager"]
        before = self._applied.get((where, manager), {})
        present = self.objects.get(where)
        uid = body["metadata"].pop("uid", None)
        if uid is not None and (present is None or present["metadata"]["uid"] != uid):
            raise Conflict(f"{where}: uid mismatch")
        for (place, other), theirs in self._applied.items():
            field = differ(theirs, body) if place == where and other != manager else None
            if field is not None and query["force"] == "false" and differ(present, body) is not None:
                raise Conflict(f'Apply failed with 1 conflict: conflict with "{other}": {field}')
        self._applied[where, manager] = copy.deepcopy(body)
        if present is None:
            return self._create(where[0], body)
        others = [b for (place, m), b in self._applied.items() if place == where and m != manager]
        wanted = keyed(without(copy.deepcopy(present), before, [body, *others]), body)
        wanted["metadata"]["generation"] = present["metadata"]["generation"] + (wanted["spec"] != present["spec"])
        if wanted == present:
            return copy.deepcopy(present)
        wanted["metadata"]["resourceVersion"] = str(next(self._numbers))
        self.objects[where] = wanted
        self._control(where)
        return copy.deepcopy(wanted)

    def _select(self, collection: str, query: Mapping[str, str]) -> list[JSON]:
        labels = [pair.split("=", 1) for pair in query.get("labelSelector", "").split(",") if pair]
        fields = [pair.split("=", 1) for pair in query.get("fieldSelector", "").split(",") if pair]
        found = [thing for (place, _), thing in self.objects.items() if place == collection]
        found = [f for f in found if all((f["metadata"].get("labels") or {}).get(k) == v for k, v in labels)]
        return [f for f in found if all(_field(f, k) == v for k, v in fields)]

    def _create(self, collection: str, body: JSON) -> JSON:
        meta = body["metadata"]
        where = (collection, meta["name"])
        if where in self.objects:
            raise AlreadyExists(f"{collection}/{meta['name']}")
        now = self.now().isoformat(timespec="seconds").replace("+00:00", "Z")
        body.pop("status", None)
        meta |= {"uid": f"uid-{next(self._numbers)}", "generation": 1, "creationTimestamp": now}
        meta["resourceVersion"] = str(next(self._numbers))
        self.objects[where] = body
        self._control(where)
        return copy.deepcopy(body)

    def _change(self, where: Where, body: JSON, part: str, replace: bool) -> JSON:
        old = self.objects[where]
        expected = (body.get("metadata") or {}).get("resourceVersion")
        if expected is not None and expected != old["metadata"]["resourceVersion"]:
            raise Conflict(f"{where} has changed")
        new = copy.deepcopy(old)
        if part == "status":
            new["status"] = body["status"] if replace else _merged(new.get("status") or {}, body["status"])
        else:
            new = _merged(new, body)
            new["metadata"]["generation"] = old["metadata"]["generation"] + (new.get("spec") != old.get("spec"))
        if new == old:
            return copy.deepcopy(old)
        new["metadata"]["resourceVersion"] = str(next(self._numbers))
        self.objects[where] = new
        self._control(where)
        return copy.deepcopy(new)

    def _delete(self, where: Where) -> None:
        gone = self.objects.pop(where, None)
        if gone is None:
            return
        uid = gone["metadata"]["uid"]
        for other, thing in list(self.objects.items()):
            if any(owner["uid"] == uid for owner in thing["metadata"].get("ownerReferences") or []):
                self._delete(other)

    # Controllers

    def _control(self, where: Where) -> None:
        thing = self.objects[where]
        match thing["kind"]:
            case "TrainJob" if not any(self._children(thing)) and not thing["spec"].get("suspend"):
                self._nodes(thing)
            case "Job" if not any(self._children(thing)):
                self._pod(thing, f"{thing['metadata']['name']}-pod")
            case "Deployment":
                self._scale(thing)
            case "Pod":
                self._finish(thing)

    def _children(self, owner: JSON) -> list[JSON]:
        uid = owner["metadata"]["uid"]
        pods = [thing for thing in self.objects.values() if thing["kind"] == "Pod"]
        return [p for p in pods if any(o["uid"] == uid for o in p["metadata"]["ownerReferences"])]

    def _pod(self, owner: JSON, name: str, digest: str = "") -> None:
        meta, template = owner["metadata"], owner["spec"]["template"]["metadata"]
        labels = dict(template["labels"])
        if digest:
            labels["pod-template-hash"] = digest
        if owner["kind"] == "Job":
            labels["batch.kubernetes.io/job-name"] = meta["name"]
        reference = {"kind": owner["kind"], "name": meta["name"], "uid": meta["uid"]}
        pod = {
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": meta["namespace"],
                "labels": labels,
                "ownerReferences": [reference],
            },
        }
        self._create(f"/api/v1/namespaces/{meta['namespace']}/pods", pod)

    def _nodes(self, train_job: JSON) -> None:
        """What Kubeflow Trainer and JobSet make of it: a pod a node, with the labels of both and of the patch."""
        meta, spec = train_job["metadata"], train_job["spec"]
        (job,) = spec["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
        template = job["template"]["spec"]["template"]["metadata"]
        for index in range(spec["trainer"]["numNodes"]):
            labels = {
                "jobset.sigs.k8s.io/jobset-name": meta["name"],
                "batch.kubernetes.io/job-completion-index": str(index),
            }
            pod = {
                "kind": "Pod",
                "metadata": {
                    "name": f"{meta['name']}-node-0-{index}-abcde",
                    "namespace": meta["namespace"],
                    "labels": template["labels"] | labels,
                    "ownerReferences": [{"kind": "TrainJob", "name": meta["name"], "uid": meta["uid"]}],
                },
            }
            self._create(f"/api/v1/namespaces/{meta['namespace']}/pods", pod)

    def _scale(self, deployment: JSON) -> None:
        """As many pods of the present template as it wants; those of earlier ones go once these are ready."""
        wanted, template = deployment["spec"].get("replicas", 1), deployment["spec"]["template"]
        digest = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:10]
        pods = self._children(deployment)
        new = [pod for pod in pods if pod["metadata"]["labels"]["pod-template-hash"] == digest]
        for _ in range(len(new), wanted):
            self._pod(deployment, f"{deployment['metadata']['name']}-{next(self._numbers)}", digest)
        gone = new[wanted:]
        if sum(_ready(pod) for pod in new) >= wanted:
            gone += [pod for pod in pods if pod not in new]
        for pod in gone:
            self._delete((f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods", pod["metadata"]["name"]))

    def _finish(self, pod: JSON) -> None:
        phase = (pod.get("status") or {}).get("phase")
        owner = pod["metadata"]["ownerReferences"][0]
        if owner["kind"] == "Deployment":
            for thing in [t for t in self.objects.values() if t["metadata"]["uid"] == owner["uid"] and _ready(pod)]:
                self._scale(thing)
        if owner["kind"] not in ("Job", "TrainJob") or phase not in ("Succeeded", "Failed"):
            return
        for where, thing in self.objects.items():
            if thing["metadata"]["uid"] == owner["uid"]:
                phases = [(pod.get("status") or {}).get("phase") for pod in self._children(thing)]
                if phase == "Succeeded" and set(phases) != {"Succeeded"}:
                    return
                kind = "Complete" if phase == "Succeeded" else "Failed"
                self.objects[where] = thing | {"status": {"conditions": [{"type": kind, "status": "True"}]}}
                return


def _split(path: str) -> tuple[str, str, str]:
    pieces = path.strip("/").split("/")
    start = pieces.index("namespaces") + 3 if "namespaces" in pieces else 4
    collection, rest = "/" + "/".join(pieces[:start]), [*pieces[start:], "", ""]
    return collection, rest[0], rest[1]


def _field(thing: JSON, dotted: str) -> str:
    value: Any = thing
    for key in dotted.split("."):
        value = value.get(key, {})
    return str(value)


def _merged(old: Any, new: Any) -> Any:
    """JSON merge patch (RFC 7396)."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    both = {key: _merged(old.get(key), value) for key, value in new.items() if value is not None}
    return {key: value for key, value in old.items() if key not in new} | both


_KEYS = dict.fromkeys(("containers", "initContainers", "volumes", "env"), "name") | {"volumeMounts": "mountPath"}


def _entries(value: Any, field: str) -> JSON | None:
    """A map, or a list with keys as one; None for everything else."""
    if isinstance(value, dict):
        return value
    if isinstance(value, list) and field in _KEYS:
        return {entry[_KEYS[field]]: entry for entry in value}
    return None


def _like(value: Any, entries: JSON) -> Any:
    return list(entries.values()) if isinstance(value, list) else entries


def keyed(old: Any, new: Any, field: str = "") -> Any:
    """Server-side apply: maps by their keys, and the lists that have some; everything else whole."""
    before, after = _entries(old, field), _entries(new, field)
    if before is None or after is None:
        return new
    return _like(old, before | {key: keyed(before.get(key), value, str(key)) for key, value in after.items()})


def without(old: Any, mine: Any, others: list[Any], field: str = "") -> Any:
    """Without what `mine` has and nobody else."""
    before, gone = _entries(old, field), _entries(mine, field)
    if before is None or gone is None:
        return old
    kept = {}
    for key, value in before.items():
        holders = [there[key] for other in others if (there := _entries(other, field)) is not None and key in there]
        if key not in gone or (holders and _entries(value, str(key)) is None):
            kept[key] = value
        elif holders:
            kept[key] = without(value, gone[key], holders, str(key))
    return _like(old, kept)


def differ(theirs: Any, mine: Any, field: str = "", path: str = "") -> str | None:
    """The first field that both say something else about."""
    before, after = _entries(theirs, field), _entries(mine, field)
    if before is None or after is None:
        return None if theirs == mine else path
    found = (differ(before[k], v, str(k), f"{path}.{k}") for k, v in after.items() if k in before)
    return next((where for where in found if where is not None), None)


def _ready(pod: JSON) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
