"""Who splits the traffic: what is in force, and what makes it so. The port, and the gateway behind it.

Room: operator, reconcile.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ratchet_api.cycle import Arm, ImprovementCycle, ImprovementCycleStatus, ServingStatus
from ratchet_operator.clients.gateway import weight_in_force
from ratchet_operator.domain.phases import Remark
from ratchet_operator.domain.routing import Wanted
from ratchet_operator.reconcile.arms import Fleet
from ratchet_operator.reconcile.context import Context


@dataclass(frozen=True)
class Traffic:
    """What a router has in force."""

    in_force: int | None = None
    """Percent for the candidate in the terms in which it was asked for (0 when it is unknown there); None: not sure."""
    shares: Mapping[str, int | None] = field(default_factory=dict)
    """Version -> percent of the traffic that it really gets."""
    stalled: Remark | None = None
    """What a person has to put right before the split can be made."""
    waiting: Remark | None = None
    """What others still have to do before it is in force."""
    reset: Remark | None = None
    """Somebody else changed the split."""


class Router(Protocol):
    """One pass's view of a way to split."""

    async def observe(self) -> Traffic:
        """What is in force now."""
        ...

    def goal(self, arm: Arm) -> int:
        """Pods that should be ready before an arm of status.serving counts as whole."""
        ...

    def sized(self, serving: ServingStatus, ready: Mapping[str, int]) -> ServingStatus:
        """With the pods that each arm is to have next; `ready`: version -> ready pods."""
        ...

    async def act(self, status: ImprovementCycleStatus) -> None:
        """One step towards the split that the status asks for. To be repeated."""
        ...

    @property
    def pace(self) -> float | None:
        """Seconds until it should be looked at again though nothing happens."""
        ...


def wanted(serving: ServingStatus) -> Wanted | None:
    """The split that status.serving asks for; None before there is a champion."""
    stable, candidate = serving.stable, serving.candidate
    if stable is None:
        return None
    if candidate is None:
        return Wanted(stable.version, None, 0)
    return Wanted(stable.version, candidate.version, candidate.weight)


def versions(serving: ServingStatus) -> list[str]:
    """Versions of the arms in service."""
    return [arm.version for arm in (serving.stable, serving.candidate) if arm is not None]


def uniform(serving: ServingStatus, replicas: int) -> ServingStatus:
    """With as many pods for each arm."""
    update = {"replicas": replicas}
    stable = serving.stable and serving.stable.model_copy(update=update)
    candidate = serving.candidate and serving.candidate.model_copy(update=update)
    return serving.model_copy(update={"stable": stable, "candidate": candidate})


class GatewayRouter:
    """Ratchet's own gateways: they follow status.serving by themselves, so there is nothing to do but to ask them."""

    pace = None

    def __init__(self, ctx: Context, cycle: ImprovementCycle, fleet: Fleet) -> None:
        self._ctx = ctx
        self._cycle = cycle

    async def observe(self) -> Traffic:
        """What all gateways say."""
        meta, serving = self._cycle.metadata, self._cycle.status.serving
        routes = await self._ctx.gateway.routes()
        shares = {name: weight_in_force(routes, f"{meta.namespace}/{meta.name}", name) for name in versions(serving)}
        return Traffic(shares.get(serving.candidate.version) if serving.candidate is not None else None, shares)

    def goal(self, arm: Arm) -> int:
        """All of them."""
        return self._cycle.spec.serving.replicas

    def sized(self, serving: ServingStatus, ready: Mapping[str, int]) -> ServingStatus:
        """All of them."""
        return uniform(serving, self._cycle.spec.serving.replicas)

    async def act(self, status: ImprovementCycleStatus) -> None:
        """Nothing: what the gateways follow is written already."""
