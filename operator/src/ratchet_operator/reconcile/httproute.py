"""serving.router: httpRoute. Two Services by role, and the weights of a route that is somebody else's.

Room: operator, reconcile. The steps are domain.routing's.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ratchet_api.cycle import Arm, ImprovementCycle, ImprovementCycleStatus, ServingStatus
from ratchet_api.names import FIELD_MANAGER
from ratchet_api.reasons import Reason
from ratchet_operator.clients.traffic import HTTPRoute, ParentRef
from ratchet_operator.domain import routing
from ratchet_operator.domain.phases import Remark
from ratchet_operator.domain.routing import BackendSeen, RouteSeen
from ratchet_operator.reconcile import services
from ratchet_operator.reconcile.arms import Fleet
from ratchet_operator.reconcile.context import Context
from ratchet_operator.reconcile.routers import Traffic, uniform, versions, wanted
from ratchet_operator.reconcile.services import SeenService


@dataclass(frozen=True)
class _Rule:
    """The rule whose weights are ours to set."""

    route: HTTPRoute
    index: int
    weights: Mapping[str, int]


class HttpRouteRouter:
    """Weights in an HTTPRoute."""

    def __init__(self, ctx: Context, cycle: ImprovementCycle, fleet: Fleet) -> None:
        self._ctx = ctx
        self._cycle = cycle
        self._fleet = fleet
        self._rule: _Rule | None = None
        self._stable: SeenService
        self._candidate: SeenService
        self._seen: RouteSeen

    @property
    def pace(self) -> float:
        """Routes are not watched: their kind may not even be installed."""
        return self._ctx.settings.pace.routes

    def goal(self, arm: Arm) -> int:
        """All of them."""
        return self._cycle.spec.serving.replicas

    def sized(self, serving: ServingStatus, ready: Mapping[str, int]) -> ServingStatus:
        """All of them."""
        return uniform(serving, self._cycle.spec.serving.replicas)

    async def observe(self) -> Traffic:
        """The route, its Services and their endpoints."""
        cycle, meta = self._cycle, self._cycle.metadata
        serving = cycle.spec.serving
        assert serving.http_route is not None, "the CRD's rules ask for it"
        route = await self._ctx.kube.get(HTTPRoute, meta.namespace, serving.http_route.name)
        self._stable = await services.see(self._ctx, cycle, self._fleet, serving.stable_service(meta.name))
        self._candidate = await services.see(self._ctx, cycle, self._fleet, serving.candidate_service(meta.name))
        found = self._find(route)
        stalled, waiting = self._stable.stalled or self._candidate.stalled, None
        if isinstance(found, Remark):
            stalled = stalled or found
        else:
            self._rule = found
            refused, waiting = _accepted(found.route)
            # The very first refusals may be about the Services that this pass is going to make.
            if self._stable.service is not None and self._candidate.service is not None:
                stalled = stalled or refused
            else:
                waiting = waiting or refused
        self._seen = RouteSeen(
            self._backend(self._stable), self._backend(self._candidate), in_force=stalled is None and waiting is None
        )
        return self._traffic(stalled, waiting)

    def _traffic(self, stalled: Remark | None, waiting: Remark | None) -> Traffic:
        serving = self._cycle.status.serving
        shares = {name: self._seen.share(name) for name in versions(serving)}
        share = shares.get(serving.candidate.version) if serving.candidate is not None else None
        asked = int(share * 100) if share is not None and (share * 100).denominator == 1 else None
        real = {name: routing.percent(share) for name, share in shares.items()}
        return Traffic(asked, real, stalled, waiting, self._reset(serving))

    def _backend(self, seen: SeenService) -> BackendSeen:
        weight = self._rule.weights.get(seen.name, 0) if self._rule is not None else 0
        selects = seen.selects
        return BackendSeen(selects, weight, selects is not None and seen.endpoints[selects] > 0)

    def _find(self, route: HTTPRoute | None) -> _Rule | Remark:
        """The rule, or what is wrong with the route."""
        name, number, namespace = self._names()
        if route is None or route.metadata.deletion_timestamp is not None:
            text = f"there is no HTTPRoute {name} in namespace {namespace} (or the Gateway API is not installed)"
            return Remark(Reason.MISSING_ROUTE, f"{text}: apply it, or correct serving.httpRoute.name")
        owner = next((o for o in route.metadata.owner_references if o.controller), None)
        if owner is not None:
            text = f"HTTPRoute {name} is made by {owner.kind} {owner.name}, which writes its weights as well"
            return Remark(Reason.FOREIGN_OWNER, f"{text}: name a route of your own in serving.httpRoute.name")
        index = route.rule(number)
        if index is None:
            rules = len(route.spec.rules)
            what = f"has {rules} rules" if number is None else f"has no rule {number}"
            fix = "write the rule's name, or its index from 0, in serving.httpRoute.rule"
            return Remark(Reason.MISSING_ROUTE, f"HTTPRoute {name} {what}: {fix}")
        weights = route.weights(index)
        ours = {self._stable.name, self._candidate.name}
        if missing := sorted(ours - set(weights)):
            text = f"rule {index} of HTTPRoute {name} has no backendRef to Service {' and '.join(missing)}"
            return Remark(Reason.MISSING_ROUTE, f"{text}: add it, with weight 0 for the candidate's")
        if others := sorted(other for other, weight in weights.items() if weight and other not in ours):
            text = f"rule {index} of HTTPRoute {name} sends traffic to {others[0]} too, so no share would be true"
            return Remark(Reason.FOREIGN_OWNER, f"{text}: give it weight 0, or a rule of its own")
        return _Rule(route, index, weights)

    def _names(self) -> tuple[str, str | None, str]:
        target = self._cycle.spec.serving.http_route
        assert target is not None
        return target.name, target.rule, self._cycle.metadata.namespace

    def _reset(self, serving: ServingStatus) -> Remark | None:
        """Weights that were in force as asked for, and are others now though nobody asked."""
        asked = wanted(serving)
        if self._rule is None or asked is None or not _confirmed(serving):
            return None
        planned = routing.plan_route(asked, self._seen)
        if planned.weights is None:
            return None
        writers = [m for m in self._rule.route.metadata.managers("spec", "rules") if m != FIELD_MANAGER]
        stable, candidate = self._seen.stable.weight, self._seen.candidate.weight
        text = (
            f"{writers[-1] if writers else 'somebody'} changed the weights of HTTPRoute "
            f"{self._rule.route.metadata.name} to {stable} and {candidate}; they are set back to {planned.weights[0]} "
            f"and {planned.weights[1]}: let that tool ignore the weights (docs/routing.md)"
        )
        return Remark(Reason.ROUTE_RESET, text)

    async def act(self, status: ImprovementCycleStatus) -> None:
        """Services first: a route may only name what is there."""
        asked = wanted(status.serving)
        if asked is None:
            return
        planned = routing.plan_route(asked, self._seen)
        await services.point(self._ctx, self._cycle, self._stable, planned.stable)
        await services.point(self._ctx, self._cycle, self._candidate, planned.candidate)
        if self._rule is not None and planned.weights is not None:
            route, index = self._rule.route, self._rule.index
            weights = dict(zip((self._stable.name, self._candidate.name), planned.weights, strict=True))
            await self._ctx.kube.write_route_rules(route.metadata, route.weighed(index, weights))


def _confirmed(serving: ServingStatus) -> bool:
    """Whether the last pass saw in force what was asked for."""
    arms = [arm for arm in (serving.stable, serving.candidate) if arm is not None]
    return bool(arms) and all(arm.observed_weight == arm.weight for arm in arms)


def _accepted(route: HTTPRoute) -> tuple[Remark | None, Remark | None]:
    """(a parent's refusal, what has not been said yet) about the route as it is now."""
    name, generation = route.metadata.name, route.metadata.generation
    waiting: Remark | None = None
    if not route.spec.parent_refs:
        text = f"HTTPRoute {name} has no parentRefs, so no gateway takes it: name one"
        return Remark(Reason.ROUTE_NOT_ACCEPTED, text), None
    for parent in route.spec.parent_refs:
        said = route.said(parent)
        if not said:
            waiting = waiting or _not_yet(name, parent)
        for entry in said:
            for kind in ("Accepted", "ResolvedRefs"):
                condition = entry.condition(kind)
                if condition is None or condition.observed_generation < generation:
                    waiting = waiting or _not_yet(name, parent)
                elif condition.status != "True":
                    text = (
                        f"HTTPRoute {name}: {parent.kind} {parent.name} says {kind}={condition.status} "
                        f"({condition.reason}): {condition.message or 'no message'}; put that right"
                    )
                    return Remark(Reason.ROUTE_NOT_ACCEPTED, text), None
    return None, waiting


def _not_yet(name: str, parent: ParentRef) -> Remark:
    text = f"HTTPRoute {name}: {parent.kind} {parent.name} has not accepted the present weights yet"
    return Remark(Reason.PENDING, text)
