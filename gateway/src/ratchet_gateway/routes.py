"""The routing table and every choice that is made with it: model name, arm, pod.

Room: gateway. Pure apart from the load counters that a `Pod` carries; touches nothing.

The table itself is immutable: the watcher publishes a new one at each change, and a request works on the one that it
began with. `Pod` objects live on from table to table, because their load does.
"""

import hashlib
import random
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from yarl import URL

from ratchet_gateway.errors import BadRequest, UnknownModel

ArmChoice = Literal["stable", "candidate", "pinned"]
CycleKey = tuple[str, str]
"""(namespace, name) of a cycle."""


@dataclass(slots=True, eq=False)
class Pod:
    """One ready pod of an arm, and how busy this gateway keeps it."""

    name: str
    chat_url: URL
    """Where its server takes chat completions."""
    inflight: int = 0
    """Requests of this gateway that it is answering now."""
    suspect_until: float = 0.0
    """Monotonic time until which it is passed over, having been unreachable."""


def chat_url(address: str, port: int) -> URL:
    """The chat completions of the server at an IP address."""
    return URL.build(scheme="http", host=address, port=port, path="/v1/chat/completions")


@dataclass(frozen=True, slots=True)
class Arm:
    """What serves one version."""

    version: str
    model_name: str
    """What its server calls the model."""
    weight: int
    """Percent of the sessions."""
    pods: tuple[Pod, ...] = ()
    """Its ready pods."""


@dataclass(frozen=True, slots=True)
class Storage:
    """Where a cycle's records go."""

    uri: str
    endpoint: str | None = None
    region: str = "us-east-1"


@dataclass(frozen=True, slots=True)
class Cycle:
    """One cycle as the gateway sees it."""

    namespace: str
    name: str
    storage: Storage
    stable: Arm | None = None
    candidate: Arm | None = None
    former: tuple[str, ...] = ()
    """Versions that served once, newest last: feedback on their answers may still come."""

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The arms that there are, stable first."""
        return tuple(arm for arm in (self.stable, self.candidate) if arm is not None)

    def weights(self) -> dict[str, int]:
        """Version -> percent of the sessions that it gets."""
        shares: dict[str, int] = {}
        candidate = 0 if self.candidate is None else self.candidate.weight
        if self.stable is not None:
            shares[self.stable.version] = 100 - candidate
        if self.candidate is not None:
            shares[self.candidate.version] = candidate
        return shares


@dataclass(frozen=True, slots=True)
class Target:
    """What a model name means."""

    cycle: Cycle
    pin: str | None = None
    """The version asked for by name, if any."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The arm of one request and why."""

    arm: Arm
    how: ArmChoice


@dataclass(frozen=True, slots=True)
class Table:
    """All cycles."""

    cycles: Mapping[CycleKey, Cycle] = field(default_factory=dict)

    def resolve(self, model: str) -> Target:
        """`assistant`, `assistant@assistant-7`, `namespace/assistant` or `namespace/assistant@assistant-7`.

        Raises UnknownModel with the names that exist; BadRequest when a bare name fits cycles of several namespaces.
        """
        name, _, pin = model.partition("@")
        namespace, slash, bare = name.rpartition("/")
        if slash:
            found = [c for c in (self.cycles.get((namespace, bare)),) if c is not None]
        else:
            found = [c for (_, n), c in self.cycles.items() if n == name]
        if len(found) > 1:
            names = ", ".join(sorted(f"{c.namespace}/{c.name}" for c in found))
            raise BadRequest(f"model {model!r} is in several namespaces: write one of {names}", param="model")
        if not found or ("@" in model and pin not in {arm.version for arm in found[0].arms}):
            known = ", ".join(self.models()) or "none yet"
            raise UnknownModel(f"model {model!r} does not exist; models that exist: {known}")
        return Target(found[0], pin or None)

    def models(self) -> list[str]:
        """Every model name that `resolve` takes, shortest form first: cycles, then pins."""
        bare = [name for _, name in self.cycles]
        names: list[str] = []
        for (namespace, name), cycle in sorted(self.cycles.items()):
            short = name if bare.count(name) == 1 else f"{namespace}/{name}"
            names.append(short)
            names += [f"{short}@{arm.version}" for arm in cycle.arms]
        return names

    def weights(self) -> dict[str, dict[str, int]]:
        """`namespace/cycle` -> version -> percent, as `GET /routes` shows it."""
        return {f"{namespace}/{name}": cycle.weights() for (namespace, name), cycle in sorted(self.cycles.items())}


def takes_candidate(session: str, version: str, weight: int) -> bool:
    """Whether a session belongs to the candidate: hash(session, version) in [0, 100) < weight.

    It depends on nothing else, so every gateway decides alike, a conversation keeps its arm, and a higher weight only
    adds sessions. The version is hashed too, so that it is not always the same people who meet a candidate first.
    """
    point = int.from_bytes(hashlib.blake2b(f"{version}\n{session}".encode(), digest_size=8).digest(), "big")
    return point * 100 < weight << 64


def choose_arm(target: Target, session: str) -> Choice | None:
    """The arm of a session; None when the cycle serves nothing yet."""
    cycle = target.cycle
    if target.pin is not None:
        return next((Choice(arm, "pinned") for arm in cycle.arms if arm.version == target.pin), None)
    candidate = cycle.candidate
    if candidate is not None and takes_candidate(session, candidate.version, candidate.weight):
        return Choice(candidate, "candidate")
    return None if cycle.stable is None else Choice(cycle.stable, "stable")


def fallback(cycle: Cycle, choice: Choice) -> Choice | None:
    """Where a session goes when no pod of its arm can be reached: from the candidate to stable, else nowhere.

    A pin is a wish for one version, and stable is never replaced by an unproven candidate.
    """
    if choice.how != "candidate" or cycle.stable is None:
        return None
    return Choice(cycle.stable, "stable")


def pick_pod(pods: Iterable[Pod], now: float, tried: Collection[Pod] = (), *, suspects: bool = False) -> Pod | None:
    """The least busy pod that was not tried yet; among equals one at random. `suspects` allows those passed over."""
    best: list[Pod] = []
    for pod in pods:
        if pod in tried or (pod.suspect_until > now and not suspects):
            continue
        if not best or pod.inflight < best[0].inflight:
            best = [pod]
        elif pod.inflight == best[0].inflight:
            best.append(pod)
    if len(best) > 1:
        return random.choice(best)
    return best[0] if best else None
