"""Stories beyond steps behind our own gateway: A/B tests, other routers, people's Deployment, promotion by Git."""

import base64
from collections.abc import Mapping
from typing import Any

from cluster import NAMESPACE
from operator_neighbours import by_route, route_manifest
from operator_stories import WORKLOAD, placed, rollout, workload_manifest
from operator_world import cycle_manifest, version_manifest
from simulation import Simulation
from surroundings import Repository
from tales import People, Tale

from ratchet_api.names import VERSION_LABEL
from ratchet_operator.clients.transport import JSON


class Tested(Tale):
    """An A/B test: the base model's thumbs are down half of the time, the candidate's never."""

    name = "tested"
    bad = {"assistant-0": 200.0}  # noqa: RUF012
    settings: Mapping[str, Any] = {}
    """Of the test."""
    outcome = "Promoted"

    async def tell(self, people: People) -> None:
        # Longer than everything that can go wrong: an answer depends on outcomes alone.
        test = {"minSamples": 20, "maxDuration": "2h"} | self.settings
        rollout = {k: v for k, v in cycle_manifest(NAMESPACE)["spec"]["rollout"].items() if k != "steps"}
        await people.serving(rollout=rollout | {"strategy": "abTest", "abTest": test})
        people.apply(version_manifest(NAMESPACE, "other"))
        said = {"Promoted": "other", "RolledBack": "assistant-0", "Returned": "assistant-0"}[self.outcome]
        await people.until(lambda: bool(people.status.get("history")), "the test is over")
        await people.champion(said)


class TestedWorse(Tested):
    """Half of the base model's conversations are resolved, none of the candidate's."""

    name = "tested worse"
    settings = {"outcome": dict.fromkeys(("good", "all"), 'x{version="{{ version }}"}')}  # noqa: RUF012
    outcome = "RolledBack"


class TestedNothing(Tested):
    """The time is over before there are outcomes enough."""

    name = "tested nothing"
    settings = {"minSamples": 1_000_000, "maxDuration": "30s"}  # noqa: RUF012
    outcome = "Returned"


class Routed(Tale):
    """A version becomes champion by the weights of an HTTPRoute."""

    name = "routed"

    async def open(self, people: People) -> None:
        """The base model serves behind a route."""
        people.apply(route_manifest(NAMESPACE))
        await people.serving(serving=by_route(), rollout=rollout())

    async def tell(self, people: People) -> None:
        await self.open(people)
        people.apply(version_manifest(NAMESPACE, "hand"))
        await people.champion("hand")

    def ending(self, simulation: Simulation) -> dict[str, Any]:
        services = simulation.server.all("Service")
        selected = {s["metadata"]["name"]: s["spec"]["selector"].get(VERSION_LABEL) for s in services}
        return super().ending(simulation) | {"services": selected, "weights": simulation.gate.weights}


class RoutedBack(Routed):
    """A version does harm behind an HTTPRoute."""

    name = "routed back"
    bad = {"bad": 200.0}  # noqa: RUF012

    async def tell(self, people: People) -> None:
        await self.open(people)
        people.apply(version_manifest(NAMESPACE, "bad"))
        await people.rejected("bad")
        await people.champion("assistant-0")


class Counted(Routed):
    """A version becomes champion by numbers of pods."""

    name = "counted"

    async def open(self, people: People) -> None:
        serving = {"runtime": "transformers", "router": "replicas", "replicas": 4}
        await people.serving(serving=serving, rollout=rollout())


class CountedBack(Counted, RoutedBack):
    """A version does harm behind the Service that it shares."""

    name = "counted back"


class InPlace(Tale):
    """A version becomes champion in a Deployment of people's."""

    name = "in place"
    workload = workload_manifest(NAMESPACE)
    further: Mapping[str, Any] = {}
    """Of serving."""

    async def open(self, people: People) -> None:
        """The base model serves there."""
        people.apply(self.workload)
        spec = placed()
        await people.serving(**spec | {"serving": spec["serving"] | self.further})
        await self.home(people, "assistant-0")

    async def home(self, people: People, version: str) -> None:
        """The Deployment serves the version, alone."""

        def alone() -> bool:
            stable = (people.status.get("serving") or {}).get("stable") or {}
            mine = (stable.get("version"), stable.get("deployment")) == (version, WORKLOAD)
            return mine and people.arms() == {WORKLOAD}

        await people.until(alone, f"{version} serves in place")

    async def tell(self, people: People) -> None:
        await self.open(people)
        people.apply(version_manifest(NAMESPACE, "hand"))
        await self.home(people, "hand")

    def ending(self, simulation: Simulation) -> dict[str, Any]:
        found = simulation.server.find("Deployment", WORKLOAD)
        assert found is not None
        return super().ending(simulation) | {"template": found["spec"]["template"]}


class InPlaceBack(InPlace):
    """A version does harm beside people's Deployment."""

    name = "in place back"
    bad = {"bad": 200.0}  # noqa: RUF012

    async def tell(self, people: People) -> None:
        await self.open(people)
        people.apply(version_manifest(NAMESPACE, "bad"))
        await people.rejected("bad")
        await self.home(people, "assistant-0")


class GivenBack(InPlace):
    """The cycle is deleted, in the midst of a canary: people's Deployment is as it was before."""

    name = "given back"
    further = {"keepServing": False}  # noqa: RUF012

    async def tell(self, people: People) -> None:
        await self.open(people)
        people.apply(version_manifest(NAMESPACE, "hand"))
        await people.until(lambda: people.phase() == "Canary", "the canary")
        people.remove("ImprovementCycle", "assistant")

        def given_back() -> bool:
            found = people.server.find("Deployment", WORKLOAD)
            return found is not None and found["spec"] == self.workload["spec"] and people.arms() == {WORKLOAD}

        await people.until(given_back, "everything is given back")

    def ending(self, simulation: Simulation) -> dict[str, Any]:
        found = simulation.server.find("Deployment", WORKLOAD)
        assert found is not None
        meta = {key: found["metadata"].get(key) or {} for key in ("labels", "annotations")}
        return {"deployment": found["spec"], "arms": People(simulation).arms()} | meta


class Proposed(Tale):
    """promotion.mode Git: a version is accepted, proposed, merged, applied, and becomes champion."""

    name = "proposed"
    git = True

    async def open(self, people: People) -> Repository:
        """The base model serves, and Git says so."""
        repository = people.simulation.repository
        assert repository is not None
        meta = {"namespace": NAMESPACE, "name": "git"}
        data = {key: base64.b64encode(b"robot").decode() for key in ("username", "password")}
        people.apply({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": data})
        await people.serving(**repository.spec)
        return repository

    async def merged(self, people: People, repository: Repository, version: str) -> None:
        """The pull request for a version is opened; a person merges it, and it is applied."""

        def proposed() -> JSON | None:
            found = people.status.get("promotion") or {}
            return found if (found.get("version"), found.get("state")) == (version, "Open") else None

        await people.until(lambda: proposed() is not None, f"{version} is proposed")
        found = proposed()
        assert found is not None
        repository.merge(found["branch"])
        people.edit(serving={"runtime": "transformers", "version": repository.pointer()})

    async def tell(self, people: People) -> None:
        repository = await self.open(people)
        people.annotate("run", "a")
        await self.merged(people, repository, "assistant-1")
        await people.champion("assistant-1")

    def ending(self, simulation: Simulation) -> dict[str, Any]:
        repository, found = simulation.repository, People(simulation).status.get("promotion") or {}
        assert repository is not None
        pulls = sorted((title, body) for title, body in repository.forge.texts.values())
        return super().ending(simulation) | {
            "pulls": [title for title, _ in pulls],
            # The last part of a branch's name is a digest of when it was asked for.
            "branches": [branch.rpartition("-")[0] for branch in repository.branches()],
            "pointer": repository.pointer(),
            "proposal": (found.get("kind"), found.get("version"), found.get("state")),
        }


class ProposedBack(Proposed):
    """What was merged does harm: the way back is proposed, merged and applied."""

    name = "proposed back"
    bad = {"assistant-1": 200.0}  # noqa: RUF012

    async def tell(self, people: People) -> None:
        repository = await self.open(people)
        people.annotate("run", "a")
        await self.merged(people, repository, "assistant-1")
        await people.rejected("assistant-1")
        await self.merged(people, repository, "assistant-0")
        await people.until(lambda: people.status["promotion"]["state"] == "Arrived", "Git agrees")
        await people.champion("assistant-0")
