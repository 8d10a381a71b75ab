"""What must hold after every change, whoever made it, and at the end."""

from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from cluster import EPOCH, ready, uid_of
from faults import LATE
from operator_stories import WORKLOAD
from surroundings import versions_of

from ratchet_api.base import parse_duration
from ratchet_api.names import VERSION_LABEL
from ratchet_operator.clients.transport import JSON

if TYPE_CHECKING:
    from simulation import Simulation

PHASES = ("Starting", "Canary", "Baking", "RollingBack", "Done")
PASS_SECONDS = 90.0
"""The longest that a pass can have waited for its requests."""
ENDS = ("Rejected", "Failed")
CLOCKS = timedelta(seconds=4)
"""By which the clocks of two operators may differ, and more."""


class Invariants:
    """Hears every change of the cluster."""

    def __init__(self, simulation: "Simulation") -> None:
        self._simulation = simulation
        self._jobs: dict[str, set[str]] = defaultdict(set)
        self._deleted_jobs: set[str] = set()
        self._whole_at: dict[str, float] = {}
        """Version -> when its arm was last seen whole."""
        self._rollouts: dict[str, set[str]] = defaultdict(set)
        """uid of a version -> the times at which its rollouts began."""
        self._ended: set[tuple[str, str, str]] = set()
        """(reason, about) of decisions that people must be told."""

    def _fail(self, text: str) -> None:
        self._simulation.fail(text)

    @property
    def _now(self) -> float:
        return (self._simulation.clock() - EPOCH).total_seconds()

    def noted(self, job: JSON) -> bool:
        """Whether a status has the Job's uid, so that its loss is noticed as one."""
        uid, server = job["metadata"]["uid"], self._simulation.server
        stages = [s for v in server.all("ModelVersion") for s in (v.get("status") or {}).get("stages") or []]
        runs = [(c.get("status") or {}).get("run") or {} for c in server.all("ImprovementCycle")]
        stages += [run["curate"] for run in runs if run.get("curate")]
        return any(stage.get("jobUid") == uid for stage in stages)

    def changed(self, who: str, kind: str, old: JSON | None, new: JSON | None) -> None:
        """One change."""
        thing = new or old
        assert thing is not None
        if kind == "Pod":
            self._arm(thing)
        elif kind == "Job":
            self._job(who, old, new)
        elif kind == "Deployment":
            self._arm(thing)
            if new is None and who.startswith("operator"):
                self._arm_removed(thing)
            if thing["metadata"]["name"] == WORKLOAD and new is not None:
                self._in_place(who, old, new)
        elif kind == "ImprovementCycle" and new is not None and new.get("status"):
            self._cycle((old or {}).get("status") or {}, new["status"])
        elif kind == "ModelVersion" and old is not None and new is not None and new.get("status"):
            self._version(new["metadata"]["name"], old.get("status") or {}, new["status"])

    # Arms

    def _arm(self, thing: JSON) -> None:
        version = (thing["metadata"].get("labels") or {}).get(VERSION_LABEL)
        if version is not None and self._whole(version):
            self._whole_at[version] = self._now

    def _whole(self, version: str) -> bool:
        """Whether a Deployment of the version has all its pods; by number of pods, when it has any."""
        for deployment in self._simulation.server.all("Deployment"):
            pods = [p for p in self._simulation.controllers.pods(uid_of(deployment)) if ready(p)]
            serving = [p for p in pods if p["metadata"]["labels"].get(VERSION_LABEL) == version]
            wanted = 1 if self._router == "replicas" else deployment["spec"].get("replicas", 1)
            if serving and len(serving) >= wanted:
                return True
        return False

    @property
    def _router(self) -> str:
        cycle = self._simulation.server.find("ImprovementCycle", "assistant") or {"spec": {}}
        return str((cycle["spec"].get("serving") or {}).get("router", "gateway"))

    def _lately_whole(self, version: str) -> bool:
        return self._whole(version) or self._now - self._whole_at.get(version, -1e9) <= PASS_SECONDS

    def _arm_removed(self, deployment: JSON) -> None:
        name, version = deployment["metadata"]["name"], deployment["metadata"]["labels"][VERSION_LABEL]
        living = [uid_of(cycle) for cycle in self._simulation.server.all("ImprovementCycle")]
        if deployment["metadata"]["ownerReferences"][0]["uid"] not in living:
            return
        for sender, share in self._senders(deployment, version):
            self._fail(f"the arm of {version} is removed while {sender} sends it {share} %")
        for cycle in self._simulation.server.all("ImprovementCycle"):
            serving = (cycle.get("status") or {}).get("serving") or {}
            for role in ("stable", "candidate"):
                if (serving.get(role) or {}).get("deployment") == name:
                    self._fail(f"the arm of {version} is removed while it is {role}")
            delay = parse_duration(cycle["spec"]["rollout"]["scaleDownDelay"]) - CLOCKS
            for arm in serving.get("retired") or []:
                kept = self._simulation.clock() - datetime.fromisoformat(arm["since"])
                if arm["deployment"] == name and kept < delay:
                    self._fail(f"the arm of {version} is removed {kept.total_seconds():.0f} s after its last request")

    def _senders(self, deployment: JSON, version: str) -> Iterator[tuple[str, int]]:
        """Who sends requests to its pods now."""
        simulation, uid = self._simulation, uid_of(deployment)
        if self._router == "gateway":
            pods = [p for p in simulation.server.all("Pod") if p["metadata"]["labels"].get(VERSION_LABEL) == version]
            others = [p for p in pods if ready(p) and p["metadata"]["ownerReferences"][0]["uid"] != uid]
            for gateway in simulation.gateways:
                if gateway.weights and gateway.weights.get(version) and not others:
                    yield "a gateway", gateway.weights[version]
            return
        weights = {s["metadata"]["name"]: 100 for s in simulation.server.all("Service")}
        if self._router == "httpRoute":
            weights = next(iter(simulation.gate.weights.values()), {})
        for service, weight in weights.items():
            reached = [p["metadata"]["ownerReferences"][0]["uid"] for p in simulation.endpoints.reached(service)]
            if weight and uid in reached:
                yield f"Service {service}", weight

    def _in_place(self, who: str, old: JSON | None, new: JSON) -> None:
        """People's Deployment: all that is theirs stays, and no version is taken from it that it has to serve."""
        lost = _lost(self._simulation.story.workload, new)
        if lost is not None:
            self._fail(f"{who} changes {lost} of people's Deployment")
        before, after = (_template_version(d) if d is not None else None for d in (old, new))
        if before == after or before is None or who.endswith(LATE):
            return
        for cycle in self._simulation.server.all("ImprovementCycle"):
            for arm in _arms(cycle.get("status") or {}):
                if arm["deployment"] == WORKLOAD and arm["version"] == before:
                    self._fail(f"people's Deployment is rolled from {before} to {after} while {before} serves there")

    # Jobs

    def _job(self, who: str, old: JSON | None, new: JSON | None) -> None:
        thing = new or old
        assert thing is not None
        meta = thing["metadata"]
        if old is None:
            owner, there = meta["ownerReferences"][0], self._simulation.server.all("ConfigMap")
            found = next((one for one in there if one["metadata"]["uid"] == owner["uid"]), None)
            if found is None:
                return  # a request that arrives after its attempt is over: the garbage collector takes the Job at once
            # A cycle that was deleted and applied again may use the names again.
            attempt = f"{found['metadata']['ownerReferences'][0]['uid']}/{meta['name']}"
            self._jobs[attempt].add(meta["uid"])
            if len(self._jobs[attempt]) > 1:
                self._fail(f"Job {meta['name']} was made twice")

    # Status of a cycle

    def _cycle(self, old: JSON, new: JSON) -> None:
        self._weights(old, new)
        self._run(old.get("run"), new.get("run"))
        self._rollout(old.get("rollout"), new.get("rollout"))
        history = [(h["version"], h.get("run"), h["outcome"], h["at"]) for h in new.get("history") or []]
        if len(history) != len(set(history)):
            self._fail(f"history says the same twice: {history}")
        gone = {r["digest"] for r in old.get("rejected") or []} - {r["digest"] for r in new.get("rejected") or []}
        if gone:
            self._fail(f"rejections are forgotten: {gone}")

    def _weights(self, old: JSON, new: JSON) -> None:
        serving = new.get("serving") or {}
        stable, candidate = serving.get("stable"), serving.get("candidate")
        if stable is None:
            if (old.get("serving") or {}).get("stable"):
                self._fail("the cycle has forgotten its champion")
            return
        total = stable["weight"] + (candidate["weight"] if candidate else 0)
        if total != 100:
            self._fail(f"weights sum to {total}: {serving}")
        before = {
            arm["version"]: arm["weight"]
            for arm in ((old.get("serving") or {}).get(role) for role in ("stable", "candidate"))
            if arm
        }
        rising = [
            arm for arm in (stable, candidate) if arm and before and arm["weight"] > before.get(arm["version"], 0)
        ]
        for arm in rising:
            if not self._lately_whole(arm["version"]):
                self._fail(f"weight of {arm['version']} rises to {arm['weight']} without a ready arm")
        standing = {r["digest"]: r for r in new.get("rejected") or [] if not r.get("retried")}
        if candidate and candidate.get("digest") in standing and candidate["digest"] not in self._retry():
            self._fail(f"{candidate['version']} serves, whose digest is rejected")

    def _retry(self) -> list[str]:
        cycle = self._simulation.server.find("ImprovementCycle", "assistant") or {"spec": {}}
        return (cycle["spec"].get("rollout") or {}).get("retryDigests") or []

    def _run(self, old: JSON | None, new: JSON | None) -> None:
        if old is None:
            return
        if new is None or new["number"] < old["number"]:
            self._fail(f"run {old['number']} is lost: {new}")
            return
        if new["number"] > old["number"]:
            if not old.get("finishedAt"):
                self._fail(f"run {old['number']} is lost: run {new['number']} begins before it has ended")
            return
        ended = ("finishedAt", "outcome", "message")
        if old.get("finishedAt") and [old.get(k) for k in ended] != [new.get(k) for k in ended]:
            self._fail(f"run {old['number']} has ended twice: {old} {new}")
        stages = ("Curating", "Training", "Evaluating", "RollingOut", "Done")
        # A proof against a champion that serves no more is repeated.
        repeated = (old["stage"], new["stage"]) == ("RollingOut", "Evaluating")
        if stages.index(new["stage"]) < stages.index(old["stage"]) and not repeated:
            self._fail(f"run {old['number']} goes back from {old['stage']} to {new['stage']}")

    def _rollout(self, old: JSON | None, new: JSON | None) -> None:
        if new is not None and (old is None or old["startedAt"] != new["startedAt"]):
            begun = self._rollouts[new.get("uid") or new["version"]]
            begun.add(new["startedAt"])
            if len(begun) > 1 and not self._simulation.story.returns:
                self._fail(f"a second rollout of {new['version']} begins")
            if old is not None and old["phase"] != "Done":
                self._fail(f"the rollout of {old['version']} is lost: that of {new['version']} begins")
            return
        if old is None:
            return
        if new is None:
            self._fail(f"the rollout of {old['version']} is forgotten")
            return
        if PHASES.index(new["phase"]) < PHASES.index(old["phase"]):
            self._fail(f"the rollout of {old['version']} goes back from {old['phase']} to {new['phase']}")
        if old.get("decision") and old["decision"] != new.get("decision"):
            self._fail(f"the rollout of {old['version']} is decided twice: {old['decision']} {new.get('decision')}")
        if new["phase"] == "Done" and not new.get("decision"):
            self._fail(f"the rollout of {old['version']} has ended without a decision")
        if old["phase"] == "RollingBack" and new["weight"] > old["weight"]:
            self._fail(f"the weight of {old['version']} rises while it is taken back")

    # Status of a version

    def _version(self, name: str, old: JSON, new: JSON) -> None:
        if old.get("outcome") and old["outcome"] != new.get("outcome") and not self._simulation.story.returns:
            self._fail(f"{name}: outcome {old['outcome']} becomes {new.get('outcome')}")
        if old.get("phase") in ENDS and new.get("phase") != old["phase"] and not self._again(old):
            self._fail(f"{name}: {old['phase']} becomes {new.get('phase')}")
        after = {stage["stage"]: stage for stage in new.get("stages") or []}
        for stage in old.get("stages") or []:
            now = after.get(stage["stage"])
            if now is None:
                self._fail(f"{name}: {stage['stage']} is forgotten")
            elif self._attempts(now) < self._attempts(stage):
                self._fail(f"{name}: attempts at {stage['stage']} go back: {stage} {now}")
            elif stage.get("finishedAt") and not now.get("finishedAt") and self._attempts(now) == self._attempts(stage):
                self._fail(f"{name}: {stage['stage']} had ended and goes on")
        before = (old.get("artifacts") or {}).get("adapter")
        if before and before != (new.get("artifacts") or {}).get("adapter"):
            self._fail(f"{name}: another adapter than before")

    def _again(self, old: JSON) -> bool:
        """Whether a person lets it try once more: by the pointer, or because the digest was rejected as another one."""
        known = any(
            c["type"] == "Rejected" and c["status"] == "True" and c["reason"] == "AlreadyRejected"
            for c in old["conditions"]
        )
        return self._simulation.story.returns or (known and bool(self._retry()))

    @staticmethod
    def _attempts(stage: JSON) -> int:
        return sum(value for value in (stage.get("attempts") or {}).values() if isinstance(value, int))

    # The end

    def at_the_end(self) -> None:
        """What people must have been told, and what must not be left over."""
        server = self._simulation.server
        cycle = server.find("ImprovementCycle", "assistant")
        if cycle is None:
            return
        status = cycle["status"]
        weights: dict[str, Any] = {a["version"]: a["weight"] for a in _arms(status)}
        for gateway in self._simulation.gateways:
            if gateway.weights != weights:
                self._fail(f"a gateway has {gateway.weights} in force, not {weights}")
        wanted = {a["deployment"] for a in _arms(status)}
        there = {d["metadata"]["name"] for d in server.all("Deployment")}
        if wanted != there:
            self._fail(f"arms {sorted(there)} are there, {sorted(wanted)} are wanted")
        if self._router != "gateway":
            self._reached({version for version, weight in weights.items() if weight})
        repository = self._simulation.repository
        for branch, pulls in (repository.forge.pulls if repository is not None else {}).items():
            if len(pulls) != 1:
                self._fail(f"{branch} has {len(pulls)} pull requests")
        self._told(cycle)

    def _reached(self, wanted: set[str]) -> None:
        """Whom requests come to without a gateway."""
        simulation = self._simulation
        weights = {s["metadata"]["name"]: 100 for s in simulation.server.all("Service")}
        if self._router == "httpRoute":
            weights = next(iter(simulation.gate.weights.values()), {})
        reached = {name: versions_of(simulation.endpoints.reached(name)) for name, weight in weights.items() if weight}
        if set().union(*reached.values()) != wanted or not all(reached.values()):
            self._fail(f"{reached} are answered, {wanted} should")

    def _told(self, cycle: JSON) -> None:
        said = {(e["regarding"]["name"], e["reason"]) for e in self._simulation.server.all("Event")}
        status, name = cycle["status"], cycle["metadata"]["name"]
        decision = (status.get("rollout") or {}).get("decision")
        if decision and (name, decision["reason"]) not in said:
            self._fail(f"nobody was told: {decision['reason']} {decision['message']}")
        for version in self._simulation.server.all("ModelVersion"):
            rejected = [c for c in version["status"]["conditions"] if c["type"] == "Rejected" and c["status"] == "True"]
            for condition in rejected:
                if (version["metadata"]["name"], condition["reason"]) not in said:
                    self._fail(f"nobody was told: {version['metadata']['name']} {condition['reason']}")


def _arms(status: JSON) -> list[JSON]:
    serving = status.get("serving") or {}
    return [arm for arm in (serving.get("stable"), serving.get("candidate")) if arm]


def _template_version(deployment: JSON) -> str | None:
    found: str | None = deployment["spec"]["template"]["metadata"]["labels"].get(VERSION_LABEL)
    return found


def _lost(theirs: Any, present: Any, path: str = "") -> str | None:
    """The first field of `theirs` that is another one now; entries of lists with names may have got company."""
    if isinstance(theirs, dict) and isinstance(present, dict):
        found = (_lost(value, present.get(key), f"{path}.{key}") for key, value in theirs.items())
        return next((field for field in found if field is not None), None)
    if isinstance(theirs, list) and isinstance(present, list) and all(isinstance(one, dict) for one in theirs):
        named = {one.get("name"): one for one in present}
        found = (_lost(one, named.get(one.get("name")), f"{path}.{one.get('name')}") for one in theirs)
        return next((field for field in found if field is not None), None)
    return None if theirs == present else path
