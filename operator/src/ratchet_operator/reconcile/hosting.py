"""Whose Deployments serve the versions: the port, and arms of our own behind it.

Room: operator, reconcile.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Protocol

from ratchet_api.cycle import Arm, ImprovementCycle, ImprovementCycleStatus, ServingStatus
from ratchet_api.version import ModelVersion
from ratchet_operator.domain import ledger
from ratchet_operator.domain.phases import Remark
from ratchet_operator.reconcile import arms, autoscaling, resets
from ratchet_operator.reconcile.arms import Fleet
from ratchet_operator.reconcile.context import Context


class Hosting(Protocol):
    """One pass's view of the Deployments that serve."""

    scalers: autoscaling.Scalers
    """Who scales what, once observed."""

    async def observe(self) -> Fleet:
        """What is there now. Everything else speaks of this."""
        ...

    def stalled(self, status: ImprovementCycleStatus) -> Remark | None:
        """What a person has to put right."""
        ...

    def resets(self) -> list[Remark]:
        """What somebody did to an arm, and this pass undoes."""
        ...

    def goal(self, arm: Arm, split: int) -> int:
        """Pods that should be ready before an arm counts as whole; `split`: as the router has it."""
        ...

    def sized(self, serving: ServingStatus) -> ServingStatus:
        """With the number of pods of each arm whose number is not the router's to say."""
        ...

    def moved(self, status: ImprovementCycleStatus) -> ImprovementCycleStatus:
        """With each arm in the Deployment where it serves from now on."""
        ...

    def busy(self, status: ImprovementCycleStatus) -> Remark | None:
        """Why no rollout can begin yet, though nothing is wrong."""
        ...

    async def ensure(self, cycle: ImprovementCycle, arm: Arm, version: ModelVersion) -> None:
        """Make what serves an arm so."""
        ...

    async def clear(self, cycle: ImprovementCycle, now: datetime) -> None:
        """Take away what serves nobody any more."""
        ...


def lingering(cycle: ImprovementCycle, now: datetime) -> set[str]:
    """Deployments that are out of service, and kept for their last answers."""
    expired = {arm.deployment for arm in ledger.expired(cycle.status, cycle.spec, now)}
    return {arm.deployment for arm in cycle.status.serving.retired} - expired


async def unwanted(
    ctx: Context, cycle: ImprovementCycle, idle: Callable[[ImprovementCycle], set[str]]
) -> list[str]:  # fmt: skip
    """What may be taken away: `idle`, asked of the cycle as this pass has it and as it is now; nothing once it is gone.

    A newer pass of another operator may have named an arm since this one began. An arm is named before it is made, so
    the status as it is now knows of every Deployment that was listed.
    """
    gone = idle(cycle)
    if not gone:
        return []
    latest = await ctx.kube.get(ImprovementCycle, cycle.metadata.namespace, cycle.metadata.name)
    if latest is None or latest.metadata.uid != cycle.metadata.uid:
        return []
    return sorted(gone & idle(latest))


class Owned:
    """A Deployment of ours for each version."""

    def __init__(self, ctx: Context, cycle: ImprovementCycle) -> None:
        self._ctx = ctx
        self._cycle = cycle
        self._fleet = Fleet({}, [])
        self.scalers: autoscaling.Scalers = {}

    async def observe(self) -> Fleet:
        """All arms."""
        self.scalers = await autoscaling.find(self._ctx, self._cycle.metadata.namespace)
        self._fleet = await arms.fleet(self._ctx, self._cycle)
        return self._fleet

    def stalled(self, status: ImprovementCycleStatus) -> Remark | None:
        """Nothing of it is people's."""
        return None

    def resets(self) -> list[Remark]:
        """A Deployment that was deleted or scaled."""
        scaled = frozenset(self.scalers) if self._cycle.spec.serving.router != "replicas" else frozenset()
        return resets.of(self._cycle, self._fleet.deployments, scaled)

    def goal(self, arm: Arm, split: int) -> int:
        """As many as its autoscaler says, if it has one."""
        present = self._fleet.deployments.get(arm.deployment)
        return present.spec.replicas if present is not None and self._scaled(arm) else split

    def sized(self, serving: ServingStatus) -> ServingStatus:
        """Arms with an autoscaler have what they have."""
        noted = {}
        for role in ("stable", "candidate"):
            arm: Arm | None = getattr(serving, role)
            if arm is not None and self._scaled(arm):
                noted[role] = arm.model_copy(update={"replicas": self.goal(arm, arm.replicas)})
        return serving.model_copy(update=noted)

    def _scaled(self, arm: Arm) -> bool:
        """Whether somebody else says how many pods the arm has."""
        return self._cycle.spec.serving.router != "replicas" and arm.deployment in self.scalers

    def moved(self, status: ImprovementCycleStatus) -> ImprovementCycleStatus:
        """An arm stays where it is."""
        return status

    def busy(self, status: ImprovementCycleStatus) -> Remark | None:
        """Never."""
        return None

    async def ensure(self, cycle: ImprovementCycle, arm: Arm, version: ModelVersion) -> None:
        """Its Deployment."""
        wanted = arms.request(self._ctx, cycle, version, None if self._scaled(arm) else max(1, arm.replicas))
        present = self._fleet.deployments.get(arm.deployment)
        await arms.ensure(self._ctx, wanted, present, whole=arm.ready_replicas >= max(1, arm.replicas))

    async def clear(self, cycle: ImprovementCycle, now: datetime) -> None:
        """Arms that are neither in service nor kept for their last answers."""
        for name in await unwanted(self._ctx, cycle, lambda seen: self._idle(seen, now)):
            await arms.remove(self._ctx, cycle, self._fleet.deployments[name])

    def _idle(self, cycle: ImprovementCycle, now: datetime) -> set[str]:
        """Deployments that a cycle has no use for."""
        serving = cycle.status.serving
        served = {arm.deployment for arm in (serving.stable, serving.candidate) if arm is not None}
        return set(self._fleet.deployments) - served - lingering(cycle, now)
