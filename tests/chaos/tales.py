"""The stories that are told under all faults: what people do, and how each must end."""

from collections.abc import Mapping
from typing import Any

from cluster import NAMESPACE, plural_path
from operator_world import curated, cycle_manifest, digest, evaluated, trained, version_manifest
from simulation import Simulation, Story

from ratchet_operator.clients.transport import JSON


class People:
    """Hands and eyes of whoever works with the cluster; never disturbed."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.server = simulation.server

    def apply(self, manifest: JSON) -> None:
        """`kubectl apply`."""
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        path = f"{plural_path(kind)}/{name}"
        self.server.request("person", "patch", path, manifest, {}, "application/apply-patch+yaml")

    def patch(self, kind: str, name: str, body: JSON) -> None:
        """`kubectl patch`."""
        path = f"{plural_path(kind)}/{name}"
        self.server.request("person", "patch", path, body, {}, "application/merge-patch+json")

    def edit(self, **spec: Any) -> None:
        """`kubectl edit cycle`."""
        self.patch("ImprovementCycle", "assistant", {"spec": spec})

    def annotate(self, key: str, value: str, kind: str = "ImprovementCycle", name: str = "assistant") -> None:
        """`kubectl annotate`."""
        self.patch(kind, name, {"metadata": {"annotations": {f"ratchet.dev/{key}": value}}})

    def remove(self, kind: str, name: str) -> None:
        """`kubectl delete`."""
        self.server.delete("person", plural_path(kind), name)

    @property
    def status(self) -> JSON:
        """Of the cycle."""
        cycle = self.server.find("ImprovementCycle", "assistant")
        return (cycle or {}).get("status") or {}

    def version(self, name: str) -> JSON:
        """Status of a version."""
        return (self.server.find("ModelVersion", name) or {}).get("status") or {}

    def reason(self, name: str, kind: str) -> str:
        """Reason of a version's condition that is True."""
        found = [c for c in self.version(name).get("conditions") or [] if c["type"] == kind and c["status"] == "True"]
        return found[0]["reason"] if found else ""

    def arms(self) -> set[str]:
        """Deployments."""
        return {d["metadata"]["name"] for d in self.server.all("Deployment")}

    async def storage(self) -> None:
        """What the cycle names."""
        meta = {"namespace": NAMESPACE, "name": "storage"}
        self.apply({"apiVersion": "v1", "kind": "Secret", "metadata": meta})
        meta = {"namespace": NAMESPACE, "name": "suites"}
        self.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"house.jsonl": "{}"}})

    async def serving(self, **spec: Any) -> None:
        """The base model serves."""
        await self.storage()
        self.apply(cycle_manifest(NAMESPACE, **spec))
        await self.until(lambda: bool(self.status.get("lastGood")), "the base model serves")

    async def champion(self, name: str) -> None:
        """The version takes all traffic, and the old arm is gone."""

        def alone() -> bool:
            stable = (self.status.get("serving") or {}).get("stable") or {}
            return stable.get("version") == name and self.arms() == {f"{name}-arm"}

        await self.until(alone, f"{name} is champion")

    async def rejected(self, name: str) -> None:
        """The version is not wanted any more."""
        await self.until(lambda: self.version(name).get("phase") == "Rejected", f"{name} is rejected")

    async def until(self, what: Any, words: str) -> None:
        """Look until it is so."""
        await self.simulation.until(what, words)

    def phase(self) -> str:
        """Of the rollout."""
        return str((self.status.get("rollout") or {}).get("phase") or "")


class Tale(Story):
    """Defaults of all stories."""

    gate: Mapping[str, int] = {}
    """Version -> cases that the candidate alone passes; 30 unless told."""

    def report(self, stage: str, version: str) -> JSON:
        """All goes well."""
        if stage == "curate":
            return curated()
        if stage == "train":
            return trained("e" if version.endswith("1") else "f")
        return evaluated(better=self.gate.get(version, 30))

    async def people(self, simulation: Simulation) -> None:
        """What people do."""
        await self.tell(People(simulation))

    async def tell(self, people: People) -> None:
        """What people do."""
        raise NotImplementedError

    def ending(self, simulation: Simulation) -> dict[str, Any]:
        """What serves, what is remembered, what was decided; not how often something was tried."""
        people = People(simulation)
        status = people.status
        serving, rollout, run = status["serving"], status.get("rollout"), status.get("run")
        return {
            "phase": status["phase"],
            "stable": (serving["stable"]["version"], serving["stable"]["weight"]),
            "candidate": serving.get("candidate"),
            "retired": serving.get("retired") or [],
            "rejected": [(r["version"], r["reason"]) for r in status.get("rejected") or []],
            "lastGood": [g["version"] for g in status.get("lastGood") or []],
            "history": [(h["version"], h.get("run"), h["outcome"]) for h in status.get("history") or []],
            "run": run and (run["number"], run.get("outcome"), run.get("version")),
            "rollout": rollout and (rollout["version"], rollout["phase"], rollout["decision"]["reason"]),
            "conditions": [(c["type"], c["status"], c["reason"]) for c in status["conditions"]],
            "versions": {
                v["metadata"]["name"]: (
                    v["status"]["phase"],
                    v["status"].get("outcome"),
                    [(c["type"], c["status"], c["reason"]) for c in v["status"]["conditions"]],
                )
                for v in simulation.server.all("ModelVersion")
            },
            "arms": people.arms(),
        }


class Forward(Tale):
    """A run is asked for; its version is trained, proven, rolled out and becomes champion."""

    name = "forward"

    async def tell(self, people: People) -> None:
        await people.serving(rollout=cycle_manifest(NAMESPACE)["spec"]["rollout"] | {"scaleDownDelay": "20s"})
        people.annotate("run", "a")
        await people.champion("assistant-1")


class Back(Tale):
    """A hand-applied version passes its gate and does harm."""

    name = "back"
    bad = {"bad": 200.0}  # noqa: RUF012

    async def tell(self, people: People) -> None:
        await people.serving(rollout=cycle_manifest(NAMESPACE)["spec"]["rollout"] | {"scaleDownDelay": "20s"})
        people.apply(version_manifest(NAMESPACE, "bad"))
        await people.rejected("bad")
        await people.champion("assistant-0")


class ThereAndBack(Tale):
    """A person names the base model again: it returns without gate and steps."""

    name = "there and back"
    returns = True

    async def tell(self, people: People) -> None:
        await people.serving()
        people.annotate("run", "a")
        await people.champion("assistant-1")
        people.edit(serving={"version": "assistant-0"})
        await people.champion("assistant-0")


class BackAndForth(Tale):
    """The pointer moves back to the old champion while its arm is about to be taken away."""

    name = "back and forth"
    returns = True

    async def tell(self, people: People) -> None:
        await people.serving()
        people.apply(version_manifest(NAMESPACE, "hand"))
        await people.until(lambda: people.status["serving"]["stable"]["version"] == "hand", "hand is champion")
        people.edit(serving={"version": "assistant-0"})
        await people.until(lambda: people.status["serving"]["stable"]["version"] == "assistant-0", "back")
        people.edit(serving={"version": "hand"})
        await people.champion("hand")


class Rejected(Tale):
    """A rejected digest is applied under another name, and tried once more on a person's word."""

    name = "rejected"
    bad = {"bad": 200.0}  # noqa: RUF012

    async def tell(self, people: People) -> None:
        await people.serving()
        people.apply(version_manifest(NAMESPACE, "bad"))
        await people.rejected("bad")
        people.apply(version_manifest(NAMESPACE, "again"))
        await people.until(lambda: people.reason("again", "Rejected") == "AlreadyRejected", "again is known")
        people.edit(rollout={"retryDigests": [digest("b")]})
        await people.champion("again")


class Gate(Tale):
    """The first run's version is not better; the second one's is."""

    name = "gate"
    gate = {"assistant-1": 0}  # noqa: RUF012

    async def tell(self, people: People) -> None:
        await people.serving()
        people.annotate("run", "a")
        await people.until(lambda: (people.status.get("run") or {}).get("outcome") == "GateRejected", "not better")
        people.annotate("run", "b")
        await people.champion("assistant-2")


class Queue(Tale):
    """Two versions are accepted; the second is proven anew against the first, which serves by then."""

    name = "queue"

    async def tell(self, people: People) -> None:
        await people.serving()
        people.apply(version_manifest(NAMESPACE, "one", "b"))
        await people.until(lambda: bool(people.reason("one", "Accepted")), "one is accepted")
        people.apply(version_manifest(NAMESPACE, "two", "c"))
        await people.champion("two")


class Deleted(Tale):
    """A version is deleted in its canary: whoever deletes it does not want it to serve."""

    name = "deleted"

    async def tell(self, people: People) -> None:
        steps = [{"weight": 25, "minTime": "20s"}, {"weight": 100, "minTime": "0s"}]
        rollout = cycle_manifest(NAMESPACE)["spec"]["rollout"] | {"steps": steps}
        await people.serving(rollout=rollout)
        people.apply(version_manifest(NAMESPACE, "gone"))
        await people.until(lambda: people.phase() == "Canary", "the canary")
        people.remove("ModelVersion", "gone")
        await people.until(lambda: people.phase() == "Done", "taken back")
        await people.champion("assistant-0")


class Approved(Tale):
    """A person approves the canary, and then the last step."""

    name = "approved"

    async def tell(self, people: People) -> None:
        promotion = {"mode": "Approval", "before": ["Canary", "Promotion"], "expiry": "1d"}
        await people.serving(promotion=promotion)
        people.apply(version_manifest(NAMESPACE, "hand"))
        await people.until(lambda: people.reason("hand", "Reconciling") == "AwaitingApproval", "asked for the canary")
        people.annotate("approve-canary", digest("b"), "ModelVersion", "hand")
        await people.until(lambda: bool((people.status.get("rollout") or {}).get("awaitingSince")), "asked again")
        people.annotate("approve-promotion", digest("b"), "ModelVersion", "hand")
        await people.champion("hand")


class Reborn(Tale):
    """The cycle is deleted while it trains, and applied again before its children are collected."""

    name = "reborn"

    async def tell(self, people: People) -> None:
        await people.serving()
        people.annotate("run", "a")
        await people.until(lambda: bool(people.version("assistant-1").get("stages")), "it trains")
        people.remove("ImprovementCycle", "assistant")
        people.apply(cycle_manifest(NAMESPACE))
        await people.until(lambda: not people.version("assistant-1"), "the version of the first one is collected")
        people.annotate("run", "b")
        await people.champion("assistant-1")


class Suspended(Tale):
    """Suspended in the canary, and resumed."""

    name = "suspended"

    async def tell(self, people: People) -> None:
        await people.serving()
        people.annotate("run", "a")
        await people.until(lambda: people.phase() == "Canary", "the canary")
        people.edit(suspend=True)
        await people.simulation.until(lambda: people.status["phase"] in ("Suspended", "Canary", "Held"), "said")
        people.edit(suspend=False)
        await people.champion("assistant-1")


class Moved(Tale):
    """The pointer moves away from a version in its canary: it goes back without blame, and may come again."""

    name = "moved"
    returns = True

    async def tell(self, people: People) -> None:
        steps = [{"weight": 25, "minTime": "20s"}, {"weight": 100, "minTime": "0s"}]
        rollout = cycle_manifest(NAMESPACE)["spec"]["rollout"] | {"steps": steps}
        await people.serving(rollout=rollout)
        people.apply(version_manifest(NAMESPACE, "hand"))
        await people.until(lambda: people.phase() == "Canary", "the canary")
        people.edit(serving={"version": "assistant-0"})
        await people.until(lambda: people.phase() == "Done", "taken back")
        people.edit(serving={"version": "hand"})
        await people.champion("hand")
