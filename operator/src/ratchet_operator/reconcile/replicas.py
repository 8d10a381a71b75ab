"""serving.router: replicas. One Service over both arms; the split is how many pods each has.

Room: operator, reconcile. The arithmetic is domain.routing's.
"""

from collections.abc import Mapping

from ratchet_api.cycle import Arm, ImprovementCycle, ImprovementCycleStatus, ServingStatus
from ratchet_api.reasons import Reason
from ratchet_operator.domain import routing
from ratchet_operator.domain.phases import Remark
from ratchet_operator.domain.routing import Pods, ServiceSeen
from ratchet_operator.reconcile import services
from ratchet_operator.reconcile.arms import Fleet
from ratchet_operator.reconcile.context import Context
from ratchet_operator.reconcile.routers import Traffic, versions, wanted


class ReplicaRouter:
    """Numbers of pods."""

    def __init__(self, ctx: Context, cycle: ImprovementCycle, fleet: Fleet) -> None:
        self._ctx = ctx
        self._cycle = cycle
        self._fleet = fleet
        self._service: services.SeenService

    @property
    def pace(self) -> float:
        """Services are not watched."""
        return self._ctx.settings.pace.routes

    @property
    def _total(self) -> int:
        return self._cycle.spec.serving.replicas

    def goal(self, arm: Arm) -> int:
        """What the split comes to, once it is reached."""
        asked = wanted(self._cycle.status.serving)
        if asked is None or asked.candidate is None:
            return self._total
        stable, candidate = routing.split(self._total, asked.weight)
        return candidate if arm.version == asked.candidate else stable

    def sized(self, serving: ServingStatus, ready: Mapping[str, int]) -> ServingStatus:
        """The next step towards the split."""
        stable, candidate = serving.stable, serving.candidate
        if stable is None:
            return serving
        if candidate is None:
            return serving.model_copy(update={"stable": stable.model_copy(update={"replicas": self._total})})
        surge = self._cycle.spec.serving.max_surge
        ours, theirs = (Pods(arm.replicas, ready.get(arm.version, 0)) for arm in (stable, candidate))
        numbers = routing.scale(self._total, surge, candidate.weight, ours, theirs)
        stable = stable.model_copy(update={"replicas": numbers[0]})
        return serving.model_copy(
            update={"stable": stable, "candidate": candidate.model_copy(update={"replicas": numbers[1]})}
        )

    async def observe(self) -> Traffic:
        """The Service's selector and its ready endpoints."""
        cycle, serving = self._cycle, self._cycle.status.serving
        name = cycle.spec.serving.shared_service(cycle.metadata.name)
        self._service = await services.see(self._ctx, cycle, self._fleet, name)
        asked, seen = wanted(serving), self._seen()
        if asked is None:
            return Traffic(stalled=self._service.stalled)
        in_force = self._service.stalled is None and routing.replicas_in_force(asked, self._total, seen)
        waiting = None
        if not in_force and self._service.stalled is None:
            counts = " and ".join(f"{seen.endpoints.get(v, 0)} of {v}" for v in versions(serving))
            waiting = Remark(Reason.PENDING, f"Service {name} has {counts} as ready endpoints, on its way to the split")
        shares = {version: routing.percent(seen.share(version)) for version in versions(serving)}
        return Traffic(asked.weight if in_force else None, shares, self._service.stalled, waiting)

    def _seen(self) -> ServiceSeen:
        return ServiceSeen(self._service.selects, self._service.service is not None, self._service.endpoints)

    async def act(self, status: ImprovementCycleStatus) -> None:
        """The Service's selector; numbers of pods are in the arms' Deployments."""
        asked = wanted(status.serving)
        if asked is not None:
            version = routing.select(asked, self._total, self._seen())
            await services.point(self._ctx, self._cycle, self._service, version)
