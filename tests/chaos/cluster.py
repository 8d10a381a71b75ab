"""A cluster in virtual time: an API server in a dict, its controllers and a kubelet, each of which takes its time.

What is a blink in `operator_fake` has a length here, so that an operator can die, or somebody else can act, in the
middle of it: Jobs have no pod at first, arms become ready later, orphans keep their names until they are collected.
"""

import asyncio
import hashlib
import itertools
import json
import marshal
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from operator_fake import differ, keyed, without

from ratchet_operator.clients.transport import JSON, AlreadyExists, NotFound
from ratchet_operator.errors import Conflict

EPOCH = datetime(2026, 1, 5, 12, 0, 0, tzinfo=UTC)
Where = tuple[str, str]
NAMESPACE = "default"
TEMPLATE_LABEL = "pod-template-hash"


def plural_path(kind: str, namespace: str = NAMESPACE) -> str:
    """Collection of a kind."""
    from ratchet_operator.clients.kube import RESOURCES

    return RESOURCES[kind].path(namespace)


def copy(value: Any) -> Any:
    """A copy of JSON, ten times as fast as deepcopy."""
    return marshal.loads(marshal.dumps(value))


class Clock:
    """Virtual time as a datetime."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def __call__(self) -> datetime:
        return EPOCH + timedelta(seconds=self._loop.time())

    def text(self) -> str:
        """Whole seconds, as Kubernetes writes them."""
        return self().isoformat(timespec="seconds").replace("+00:00", "Z")


Change = Callable[[str, "str", JSON | None, JSON | None], None]
"""(who, kind, before, after) of every change that took effect."""


class Server:
    """The API server: resource versions, selectors, generations, preconditions, merge patch, simple apply."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.collections: dict[str, dict[str, JSON]] = {}
        self.uids: dict[str, Where] = {}
        self.listeners: list[Change] = []
        self._applied: dict[Where, dict[str, JSON]] = {}
        """What each manager has applied to a Deployment, so that what it leaves out next time is taken out."""
        self._numbers = itertools.count(1)

    def request(
        self,
        who: str,
        method: str,
        path: str,
        body: JSON | None = None,
        query: Mapping[str, str] | None = None,
        content_type: str | None = None,
    ) -> JSON:
        """One request that takes effect now."""
        collection, name, part = split(path)
        things = self.collections.setdefault(collection, {})
        body = copy(body)
        if method == "get" and not name:
            return {"items": [copy(found) for found in self._select(things, query or {})]}
        if method == "post":
            return self._create(who, collection, body)
        applied = method == "patch" and content_type == "application/apply-patch+yaml"
        if applied and body["kind"] == "Deployment":
            return self._apply(who, collection, body, query or {})
        if applied and name not in things:
            return self._create(who, collection, body)
        if name not in things:
            raise NotFound(path)
        if method == "get":
            return copy(things[name])
        if method == "delete":
            self.delete(who, collection, name, (body or {}).get("preconditions") or {})
            return {}
        if applied and body["kind"] == "Service":
            # An atomic map: applied whole.
            body["spec"]["selector"] = dict.fromkeys(things[name]["spec"]["selector"]) | body["spec"]["selector"]
        return self._change(who, collection, name, body, part, replace=method == "put")

    def _apply(self, who: str, collection: str, body: JSON, query: Mapping[str, str]) -> JSON:
        """Server-side apply with managers."""
        name, manager = body["metadata"]["name"], query.get("fieldManager", who)
        present = self.collections.setdefault(collection, {}).get(name)
        uid = body["metadata"].pop("uid", None)
        if uid is not None and (present is None or present["metadata"]["uid"] != uid):
            raise Conflict(f"{collection}/{name}: uid mismatch")
        managers = self._applied.setdefault((collection, name), {})
        others = [theirs for other, theirs in managers.items() if other != manager]
        for other, theirs in managers.items():
            field = differ(theirs, body) if other != manager else None
            if field is not None and query.get("force") == "false" and differ(present, body) is not None:
                raise Conflict(f'Apply failed with 1 conflict: conflict with "{other}": {field}')
        before, managers[manager] = managers.get(manager, {}), copy(body)
        if present is None:
            return self._create(who, collection, body)
        new = keyed(without(copy(present), before, [body, *others]), body)
        return self._store(who, collection, name, new)

    def all(self, kind: str) -> list[JSON]:
        """Objects of a kind, not to be changed."""
        return list(self.collections.get(plural_path(kind), {}).values())

    def find(self, kind: str, name: str) -> JSON | None:
        """An object, not to be changed."""
        return self.collections.get(plural_path(kind), {}).get(name)

    def status(self, who: str, kind: str, name: str, status: JSON) -> None:
        """A controller's or kubelet's word, if the object is still there."""
        if self.find(kind, name) is not None:
            self._change(who, plural_path(kind), name, {"status": status}, "status", replace=True)

    def delete(self, who: str, collection: str, name: str, preconditions: Mapping[str, str] | None = None) -> None:
        """Gone at once; what it owns is collected by and by."""
        meta = self.collections[collection][name]["metadata"]
        for key, value in (preconditions or {}).items():
            if meta[key] != value:
                raise Conflict(f"precondition failed: {key} is {meta[key]}, not {value}")
        gone = self.collections[collection].pop(name)
        self._applied.pop((collection, name), None)
        self.uids.pop(meta["uid"], None)
        self._tell(who, gone["kind"], gone, None)

    def _select(self, things: Mapping[str, JSON], query: Mapping[str, str]) -> list[JSON]:
        """By `key=value`, or `key` for any value."""
        labels = [pair.partition("=") for pair in query.get("labelSelector", "").split(",") if pair]
        fields = [pair.split("=", 1) for pair in query.get("fieldSelector", "").split(",") if pair]
        found = [t for t in things.values() if all(_labelled(t, *label) for label in labels)]
        return [f for f in found if all(_field(f, k) == v for k, v in fields)]

    def _create(self, who: str, collection: str, body: JSON) -> JSON:
        meta = body["metadata"]
        things = self.collections.setdefault(collection, {})
        if meta["name"] in things:
            raise AlreadyExists(f"{collection}/{meta['name']}")
        body.pop("status", None)
        meta |= {"uid": f"uid-{next(self._numbers)}", "generation": 1, "creationTimestamp": self.clock.text()}
        meta["resourceVersion"] = str(next(self._numbers))
        things[meta["name"]] = body
        self.uids[meta["uid"]] = (collection, meta["name"])
        self._tell(who, body["kind"], None, body)
        return copy(body)

    def _change(self, who: str, collection: str, name: str, body: JSON, part: str, replace: bool) -> JSON:
        old = self.collections[collection][name]
        expected = (body.get("metadata") or {}).get("resourceVersion")
        if expected is not None and expected != old["metadata"]["resourceVersion"]:
            raise Conflict(f"{collection}/{name} has changed")
        new = dict(old)
        if part == "status":
            new["status"] = body["status"] if replace else merged(old.get("status") or {}, body["status"])
        elif replace:
            new = body | {"metadata": old["metadata"] | body["metadata"]}
        else:
            new = merged(old, body)
        return self._store(who, collection, name, new)

    def _store(self, who: str, collection: str, name: str, new: JSON) -> JSON:
        old = self.collections[collection][name]
        generation = old["metadata"]["generation"] + (new.get("spec") != old.get("spec"))
        new["metadata"] = new["metadata"] | {"generation": generation}
        if new == old:
            return copy(old)
        new["metadata"] = new["metadata"] | {"resourceVersion": str(next(self._numbers))}
        self.collections[collection][name] = new
        self._tell(who, new["kind"], old, new)
        return copy(new)

    def _tell(self, who: str, kind: str, old: JSON | None, new: JSON | None) -> None:
        for listener in self.listeners:
            listener(who, kind, old, new)


def _labelled(thing: JSON, key: str, equals: str, value: str) -> bool:
    there = thing["metadata"].get("labels") or {}
    return there.get(key) == value if equals else key in there


def split(path: str) -> tuple[str, str, str]:
    """(collection, name, part) of a request's path."""
    pieces = path.strip("/").split("/")
    start = pieces.index("namespaces") + 3
    rest = [*pieces[start:], "", ""]
    return "/" + "/".join(pieces[:start]), rest[0], rest[1]


def _field(thing: JSON, dotted: str) -> str:
    value: Any = thing
    for key in dotted.split("."):
        value = value.get(key, {})
    return str(value)


def merged(old: Any, new: Any) -> Any:
    """JSON merge patch (RFC 7396)."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    both = {key: merged(old.get(key), value) for key, value in new.items() if value is not None}
    return {key: value for key, value in old.items() if key not in new} | both


Delay = Callable[[str], float]
"""How long a controller takes for a kind of work, in seconds."""
Ending = Callable[[JSON], tuple[int, str, JSON]]
"""(exit code, termination message, further status) of a stage's pod."""


class Controllers:
    """Jobs get pods, Deployments get pods, pods run, orphans are collected: each a while after its cause."""

    def __init__(self, server: Server, delay: Delay, ending: Ending) -> None:
        self._server = server
        self._delay = delay
        self._ending = ending
        self._loop = asyncio.get_running_loop()
        self._names = itertools.count(1)
        server.listeners.append(self._changed)

    def _later(self, work: str, act: Callable[..., None], *arguments: Any) -> None:
        self._loop.call_later(self._delay(work), act, *arguments)

    def _changed(self, who: str, kind: str, old: JSON | None, new: JSON | None) -> None:
        thing = new or old
        assert thing is not None
        name, uid = thing["metadata"]["name"], thing["metadata"]["uid"]
        if new is None:
            self._later("collect", self._collect, uid)
            if kind == "Pod":
                owner = thing["metadata"]["ownerReferences"][0]
                if owner["kind"] == "Deployment":
                    self._later("scale", self._scale, owner["uid"])
        elif kind == "Pod" and old is not None and ready(new) and not ready(old):
            owner = self._by_uid(new["metadata"]["ownerReferences"][0]["uid"])
            if owner is not None and any(_template(pod) != _template(new) for pod in self.pods(uid_of(owner))):
                self._later("scale", self._scale, uid_of(owner))
        elif kind == "Job" and old is None:
            self._later("pod", self._job_pod, uid)
        elif kind == "Deployment" and (old is None or old["spec"] != new["spec"]):
            self._later("scale", self._scale, uid)
        elif kind == "Pod" and old is None:
            self._later("start", self._start, name, uid)
        if old is None and self._orphan(thing):
            # Made for an owner that is gone by now: the collector finds it all the same.
            self._later("collect", self._collect_orphan, kind, name, uid)

    def _orphan(self, thing: JSON) -> bool:
        owners = thing["metadata"].get("ownerReferences") or []
        return bool(owners) and all(owner["uid"] not in self._server.uids for owner in owners)

    def _collect_orphan(self, kind: str, name: str, uid: str) -> None:
        if uid in self._server.uids:
            self._server.delete("collector", plural_path(kind), name)

    def _collect(self, uid: str) -> None:
        for collection, things in self._server.collections.items():
            for name, thing in list(things.items()):
                if any(owner["uid"] == uid for owner in thing["metadata"].get("ownerReferences") or []):
                    self._server.delete("collector", collection, name)

    def _by_uid(self, uid: str) -> JSON | None:
        where = self._server.uids.get(uid)
        return None if where is None else self._server.collections[where[0]][where[1]]

    def pods(self, uid: str) -> list[JSON]:
        """Pods of an owner."""
        return [p for p in self._server.all("Pod") if p["metadata"]["ownerReferences"][0]["uid"] == uid]

    def _job_pod(self, uid: str) -> None:
        job = self._by_uid(uid)
        if job is not None and not self.pods(uid) and not job.get("status"):
            self._pod(job, {"batch.kubernetes.io/job-name": job["metadata"]["name"]})

    def _scale(self, uid: str) -> None:
        """As many pods of the present template as it wants; those of earlier ones go once these are ready."""
        deployment = self._by_uid(uid)
        if deployment is None:
            return
        wanted, template = deployment["spec"].get("replicas", 1), deployment["spec"]["template"]
        digest = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:10]
        there = self.pods(uid)
        new = [pod for pod in there if _template(pod) == digest]
        gone = new[wanted:]
        if sum(ready(pod) for pod in new) >= wanted:
            gone += [pod for pod in there if pod not in new]
        for pod in gone:
            self._server.delete("deployments", plural_path("Pod"), pod["metadata"]["name"])
        for _ in range(len(new), wanted):
            self._pod(deployment, {TEMPLATE_LABEL: digest})

    def _pod(self, owner: JSON, further: JSON) -> None:
        meta, number = owner["metadata"], next(self._names)
        labels = owner["spec"]["template"]["metadata"]["labels"] | further
        reference = {"kind": owner["kind"], "name": meta["name"], "uid": meta["uid"]}
        named = {"name": f"{meta['name']}-{number}", "namespace": NAMESPACE, "labels": labels}
        volumes = owner["spec"]["template"]["spec"].get("volumes") or []
        mounted = [volume["configMap"]["name"] for volume in volumes if "configMap" in volume]
        pod = {"kind": "Pod", "metadata": named | {"ownerReferences": [reference]}, "spec": {"configMaps": mounted}}
        self._server.request("controllers", "post", plural_path("Pod"), pod)

    def _start(self, name: str, uid: str) -> None:
        pod = self._server.find("Pod", name)
        if pod is None or pod["metadata"]["uid"] != uid:
            return
        if any(self._server.find("ConfigMap", volume) is None for volume in pod["spec"]["configMaps"]):
            self._loop.call_later(5.0, self._start, name, uid)
            return
        self._server.status("kubelet", "Pod", name, running(self._server.clock.text(), f"10.0.0.{uid[4:]}"))
        if pod["metadata"]["ownerReferences"][0]["kind"] == "Job":
            self._later("work", self._finish, name, uid)

    def _finish(self, name: str, uid: str) -> None:
        pod = self._server.find("Pod", name)
        if pod is None or pod["metadata"]["uid"] != uid:
            return
        code, message, further = self._ending(pod)
        self.end(pod, code, message, further)

    def end(self, pod: JSON, code: int, message: str, further: JSON) -> None:
        """The stage's container ends so, and its Job notices a while later."""
        phase = "Succeeded" if code == 0 else "Failed"
        now = self._server.clock.text()
        end = {"exitCode": code, "reason": "Completed" if code == 0 else "Error", "message": message}
        state = {"terminated": end | {"startedAt": now, "finishedAt": now}}
        status = {"phase": phase, "containerStatuses": [{"name": "stage", "ready": False, "state": state}]}
        self._server.status("kubelet", "Pod", pod["metadata"]["name"], status | further)
        self._later("job", self._finish_job, pod["metadata"]["ownerReferences"][0]["uid"], phase)

    def _finish_job(self, uid: str, phase: str) -> None:
        job = self._by_uid(uid)
        if job is not None:
            kind = "Complete" if phase == "Succeeded" else "Failed"
            status = {"conditions": [{"type": kind, "status": "True"}]}
            self._server.status("jobs", "Job", job["metadata"]["name"], status)


def running(now: str, address: str) -> JSON:
    """Status of a pod that runs and is ready."""
    types = ("PodScheduled", "Initialized", "ContainersReady", "Ready")
    return {
        "phase": "Running",
        "podIP": address,
        "conditions": [{"type": kind, "status": "True", "lastTransitionTime": now} for kind in types],
        "containerStatuses": [{"name": "server", "ready": True, "state": {"running": {"startedAt": now}}}],
    }


def uid_of(thing: JSON) -> str:
    """Its uid."""
    return str(thing["metadata"]["uid"])


def _template(pod: JSON) -> str:
    return str(pod["metadata"]["labels"].get(TEMPLATE_LABEL, ""))


def ready(pod: JSON) -> bool:
    """Whether a kubelet says so."""
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
