"""Who else takes part in a story: endpoint slices, the controller of a Gateway API, a Git repository and its forge.

Each takes its time; what goes wrong between an operator and Git or the forge is drawn by the seed, too.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from cluster import NAMESPACE, Delay, Server, plural_path, ready, uid_of
from faults import CLIENT_SECONDS, Link
from operator_forges import MemoryForge
from operator_shop import PATH, OnDisk, on_disk

from ratchet_api.names import VERSION_LABEL
from ratchet_api.reasons import Reason
from ratchet_operator.clients.git.credentials import Credentials
from ratchet_operator.clients.git.forge import AlreadyThere, Pull
from ratchet_operator.clients.git.proposer import Proposer
from ratchet_operator.clients.git.remote import Heads, Moved, NewCommit, Snapshot
from ratchet_operator.clients.git.trouble import Trouble
from ratchet_operator.clients.traffic import HTTPRoute
from ratchet_operator.clients.transport import JSON

if TYPE_CHECKING:
    from simulation import Simulation

T = TypeVar("T")


class Endpoints:
    """The endpoint slice controller."""

    def __init__(self, server: Server, delay: Delay) -> None:
        self._server = server
        self._delay = delay
        server.listeners.append(self._changed)

    def _changed(self, who: str, kind: str, old: JSON | None, new: JSON | None) -> None:
        if kind not in ("Service", "Pod"):
            return
        for service in self._server.all("Service"):
            name = service["metadata"]["name"]
            asyncio.get_running_loop().call_later(self._delay("endpoints"), self._write, name)

    def _write(self, name: str) -> None:
        service = self._server.find("Service", name)
        if service is None:
            return
        selector = service["spec"].get("selector") or {}
        found = [p for p in self._server.all("Pod") if selector and selector.items() <= p["metadata"]["labels"].items()]
        endpoints = [
            {
                "addresses": [f"10.0.0.{number}"],
                "conditions": {"ready": ready(pod)},
                "targetRef": {"kind": "Pod", "name": pod["metadata"]["name"], "namespace": NAMESPACE},
            }
            for number, pod in enumerate(found, start=1)
        ]
        owner = {"apiVersion": "v1", "kind": "Service", "name": name, "uid": uid_of(service)}
        labels = {"kubernetes.io/service-name": name}
        body = {
            "kind": "EndpointSlice",
            "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels, "ownerReferences": [owner]},
            "endpoints": endpoints,
        }
        path = plural_path("EndpointSlice")
        if self._server.find("EndpointSlice", name) is None:
            self._server.request("endpoints", "post", path, body)
        else:
            patch = {"endpoints": endpoints}
            self._server.request("endpoints", "patch", f"{path}/{name}", patch, {}, "application/merge-patch+json")

    def reached(self, service: str) -> list[JSON]:
        """Pods that a Service sends requests to now."""
        found = self._server.find("EndpointSlice", service) or {"endpoints": []}
        names = {one["targetRef"]["name"] for one in found["endpoints"] if one["conditions"]["ready"]}
        return [pod for pod in self._server.all("Pod") if pod["metadata"]["name"] in names]


class Gate:
    """The controller of a Gateway: takes a route a while after it was changed."""

    def __init__(self, server: Server, delay: Delay) -> None:
        self._server = server
        self._delay = delay
        self.weights: dict[str, dict[str, int]] = {}
        """Route -> weights by Service that are in force."""
        server.listeners.append(self._changed)

    def _changed(self, who: str, kind: str, old: JSON | None, new: JSON | None) -> None:
        if kind == "HTTPRoute" or (kind == "Service" and old is None):
            for route in self._server.all("HTTPRoute"):
                name = route["metadata"]["name"]
                asyncio.get_running_loop().call_later(self._delay("gate"), self._take, name)

    def _take(self, name: str) -> None:
        raw = self._server.find("HTTPRoute", name)
        if raw is None:
            return
        route = HTTPRoute.model_validate(raw)
        weights = route.weights(0)
        resolved = all(self._server.find("Service", service) is not None for service in weights)
        if resolved:
            self.weights[name] = weights
        conditions = [
            {
                "type": kind,
                "status": str(good),
                "reason": kind if good else "Refused",
                "observedGeneration": raw["metadata"]["generation"],
            }
            for kind, good in {"Accepted": True, "ResolvedRefs": resolved}.items()
        ]
        parents = [
            {"parentRef": {"name": ref.name}, "controllerName": "example.com/gate", "conditions": conditions}
            for ref in route.spec.parent_refs
        ]
        self._server.status("gate", "HTTPRoute", name, {"parents": parents})


class Threads(ThreadPoolExecutor):
    """Threads in virtual time: the work is done a while later, all at once."""

    def __init__(self, simulation: "Simulation") -> None:
        super().__init__(max_workers=1)
        self._simulation = simulation

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> "Future[T]":
        future: Future[T] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001 - it is raised again where it is awaited
                future.set_exception(error)

        asyncio.get_running_loop().call_later(self._simulation.dice.between(0.05, 1.0), work)
        return future


class Repository:
    """A repository on disk with its forge, and the people who merge."""

    def __init__(self, simulation: "Simulation") -> None:
        self._simulation = simulation
        self._folder = TemporaryDirectory()
        self.bare = Path(self._folder.name) / "models.git"
        world: Any = SimpleNamespace(transport=SimpleNamespace(outside=self._happened), restart=lambda: None)
        self._shop = on_disk(world, self.bare)
        self.forge: MemoryForge = self._shop.forge
        self.spec: dict[str, Any] = self._shop.spec()

    def close(self) -> None:
        """Remove it."""
        self._folder.cleanup()

    def _happened(self, what: str) -> None:
        for branch, pulls in self.forge.pulls.items():
            if len(pulls) > 1:
                self._simulation.fail(f"{branch} has {len(pulls)} pull requests")

    def merge(self, branch: str) -> None:
        """What a person does."""
        self._shop.repository.merge(branch)
        self.forge.set(branch, "Merged")

    def pointer(self) -> str:
        """What the target branch says."""
        found = yaml.safe_load(self._shop.repository.show("main", PATH))["spec"]["serving"]["version"]
        return str(found)

    def branches(self) -> list[str]:
        """All but the target."""
        return sorted(branch for branch in self._shop.repository.branches() if branch != "main")

    def proposer(self, link: Link, guard: Callable[[], None]) -> Proposer:
        """One process' way to it."""
        forge = Wire(link, self.forge)

        def remotes(url: str, credentials: Credentials) -> OnDisk:
            return Wired(link, self.bare, credentials)

        return Proposer(guard, lambda session, git, credentials: forge, remotes)


@dataclass
class Wire:
    """A Forge behind a network that loses requests and answers."""

    link: Link
    forge: MemoryForge

    async def find_pull(self, branch: str, base: str) -> Pull | None:
        return await self._look("find", lambda: _run(self.forge.find_pull(branch, base)))

    async def pull_state(self, number: int) -> Pull | None:
        return await self._look("state", lambda: _run(self.forge.pull_state(number)))

    async def open_pull(self, branch: str, base: str, title: str, body: str, labels: list[str]) -> Pull:
        return await self._write("open", lambda: _run(self.forge.open_pull(branch, base, title, body, labels)))

    async def label(self, number: int, labels: list[str]) -> None:
        await self._write("label", lambda: _run(self.forge.label(number, labels)))

    async def close_pull(self, number: int, comment: str) -> None:
        await self._write("close", lambda: _run(self.forge.close_pull(number, comment)))

    async def _look(self, what: str, act: Callable[[], T]) -> T:
        fault = await self.link.pause("look", f"forge {what}")
        await self.link.fails(fault, _silent)
        return act()

    async def _write(self, what: str, act: Callable[[], T]) -> T:
        fault = await self.link.pause("tell", f"forge {what}")
        if fault == "late":
            self.link.later(act, AlreadyThere)
        await self.link.fails(fault, _silent)
        answer = act()
        await self.link.fails_after(fault, _silent)
        return answer


class Wired(OnDisk):
    """A repository behind a network that loses requests and answers."""

    def __init__(self, link: Link, repository: Path, credentials: Credentials) -> None:
        super().__init__(repository, credentials, lambda what: None)
        self._link = link

    def heads(self, target: str, ours: str) -> Heads:
        return self._look("heads", lambda: super(Wired, self).heads(target, ours))

    def fetch(self, *commits: str) -> Snapshot:
        return self._look("fetch", lambda: super(Wired, self).fetch(*commits))

    def push(self, branch: str, expected: str | None, new: NewCommit) -> None:
        fault = self._link.at_once("tell", "git push")

        def act() -> None:
            super(Wired, self).push(branch, expected, new)

        if fault == "late":
            self._link.later(act, Moved)
        if fault in ("broken", "lost request", "throttled", "late"):
            raise _silent("git push")
        act()
        if fault == "kill after":
            self._link.kill()
        if fault in ("broken after", "lost answer"):
            raise _silent("git push")

    def _look(self, what: str, act: Callable[[], T]) -> T:
        if self._link.at_once("look", f"git {what}") is not None:
            raise _silent(f"git {what}")
        return act()


def _silent(what: str) -> Trouble:
    return Trouble(Reason.FORGE_UNAVAILABLE, f"{what}: no answer within {CLIENT_SECONDS:.0f} s")


def _run(coroutine: Any) -> Any:
    """A coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits")


def versions_of(pods: list[JSON]) -> set[str]:
    """Versions that pods serve."""
    return {pod["metadata"]["labels"].get(VERSION_LABEL, "") for pod in pods}
