"""How a split that is asked for becomes backend weights or numbers of pods, and what share each version really has.

Room: operator/domain. Pure. One call is one step: it looks at what is there and names what should be next, never two
things of which the second is only safe once the first is in force. Repeated until nothing changes, it arrives.

With an HTTPRoute there are two Services, named by role. At rest both select the champion, so that any weights that
somebody writes reach it. Invariants, whatever is seen:

- a Service that has weight never changes the version that it selects, unless it selects one that is not served at all;
- after a promotion the champion's traffic comes through the candidate's Service until the stable one has its endpoints.

With replicas there is one Service over both arms, which selects one of them at 0 and 100 percent. Pods of the two grow
and shrink towards the split so that, once all are ready, no fewer than `serving.replicas` answer and no more than
maxSurge are there beyond them. A candidate without traffic has one pod, and so has stable in the bake: never none.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Wanted:
    """The split that status.serving asks for."""

    stable: str
    """Version of the champion."""
    candidate: str | None
    """Version of the candidate, if there is one."""
    weight: int
    """Percent for the candidate."""


# HTTPRoute


@dataclass(frozen=True)
class BackendSeen:
    """One of the two Services behind the route's rule."""

    selects: str | None
    """Version that its selector names; None when there is no Service, or one without a selector."""
    weight: int
    """Its weight in the rule; 0 when the rule does not exist."""
    ready: bool
    """Whether it has a ready endpoint of that version."""


@dataclass(frozen=True)
class RouteSeen:
    """The route and its Services."""

    stable: BackendSeen
    candidate: BackendSeen
    in_force: bool
    """Whether every parent of the route has accepted these very weights."""

    @property
    def total(self) -> int:
        """Sum of both weights."""
        return self.stable.weight + self.candidate.weight

    def share(self, version: str) -> Fraction | None:
        """Share of the traffic that a version gets; None when it is not known or there is no traffic."""
        if not self.in_force or self.total == 0:
            return None
        got = sum(b.weight for b in (self.stable, self.candidate) if b.selects == version)
        return Fraction(got, self.total)


@dataclass(frozen=True)
class RoutePlan:
    """What the Services should select and the rule should weigh, next."""

    stable: str
    """Version for the stable Service."""
    candidate: str
    """Version for the candidate's."""
    weights: tuple[int, int] | None
    """(stable, candidate) weights to write; None: they stay as they are."""


def plan_route(wanted: Wanted, seen: RouteSeen) -> RoutePlan:
    """The next step towards the split."""
    stable, candidate = seen.stable, seen.candidate
    selected = candidate.selects or wanted.candidate or wanted.stable
    if stable.selects != wanted.stable:
        if stable.selects is not None and candidate.selects == wanted.stable and candidate.weight > 0:
            return _hand_over(wanted.stable, stable.selects, seen)
        # Nothing that the route reaches serves the champion, so there is nothing to wait for.
        return RoutePlan(wanted.stable, selected, None)
    if candidate.selects == wanted.stable and candidate.weight > 0 and not stable.ready:
        return RoutePlan(wanted.stable, wanted.stable, None)
    aim = wanted.candidate or wanted.stable
    if selected != aim:
        if candidate.weight > 0:
            return RoutePlan(wanted.stable, selected, (100, 0))
        return RoutePlan(wanted.stable, aim if seen.in_force else selected, None)
    if wanted.weight > 0 and not candidate.ready:
        return RoutePlan(wanted.stable, selected, None)
    return RoutePlan(wanted.stable, selected, _changed(wanted.weight, seen))


def _hand_over(champion: str, former: str, seen: RouteSeen) -> RoutePlan:
    """Promoted: the candidate's Service carries the traffic until the stable one selects the champion too."""
    if seen.stable.weight > 0:
        return RoutePlan(former, champion, (0, 100))
    return RoutePlan(champion if seen.in_force else former, champion, None)


def _changed(weight: int, seen: RouteSeen) -> tuple[int, int] | None:
    """The weights to write; None when those that are there mean the same."""
    if seen.total > 0 and seen.candidate.weight * (100 - weight) == seen.stable.weight * weight:
        return None
    return 100 - weight, weight


# Replicas


def split(total: int, weight: int) -> tuple[int, int]:
    """(stable, candidate) pods for a candidate that is to get `weight` percent, of `total` >= 2 pods.

    Rounded to the nearest share that there is, and to the lower one of two equally near; both have one pod at least.
    """
    if weight <= 0:
        return total, 1
    if weight >= 100:
        return 1, total
    nearest = -(-(2 * total * weight - 100) // 200)
    candidate = min(max(nearest, 1), total - 1)
    return total - candidate, candidate


def achievable(total: int, weight: int) -> Fraction:
    """Share of the traffic that a candidate gets when `weight` percent are asked for."""
    if weight <= 0 or weight >= 100:
        return Fraction(min(max(weight, 0), 100), 100)
    return Fraction(split(total, weight)[1], total)


@dataclass(frozen=True)
class Pods:
    """One arm's pods."""

    wanted: int
    """Asked for so far."""
    ready: int
    """Ready."""


def scale(total: int, surge: int, weight: int, stable: Pods, candidate: Pods) -> tuple[int, int]:
    """(stable, candidate) pods to ask for next, on the way to `split`.

    Without weight for the candidate, all of stable's pods are asked for at once: it is its traffic already.
    """
    aim_stable, aim_candidate = split(total, weight)
    if weight <= 0:
        return aim_stable, aim_candidate
    following = _toward(aim_candidate, max(1, candidate.wanted), stable, total, surge)
    other = Pods(following, min(candidate.ready, following))
    return _toward(aim_stable, max(1, stable.wanted), other, total, surge), following


def _toward(aim: int, own: int, other: Pods, total: int, surge: int) -> int:
    if own < aim:
        return max(own, min(aim, total + surge - other.wanted))
    return min(own, max(aim, total - other.ready))


@dataclass(frozen=True)
class ServiceSeen:
    """The Service over both arms."""

    selects: str | None
    """Version that its selector names; None: both arms, or there is no Service."""
    exists: bool
    endpoints: Mapping[str, int]
    """Version -> ready endpoints."""

    def share(self, version: str) -> Fraction | None:
        """Share of the ready endpoints; None when there are none."""
        every = sum(self.endpoints.values())
        return Fraction(self.endpoints.get(version, 0), every) if every else None


def select(wanted: Wanted, total: int, seen: ServiceSeen) -> str | None:
    """Version that the shared Service has to select next; None: both arms."""
    if wanted.candidate is None or wanted.weight <= 0:
        return wanted.stable
    if wanted.weight < 100:
        return None
    if seen.selects == wanted.candidate or seen.endpoints.get(wanted.candidate, 0) >= total:
        return wanted.candidate
    return None


def replicas_in_force(wanted: Wanted, total: int, seen: ServiceSeen) -> bool:
    """Whether the ready endpoints are what the split comes to."""
    if wanted.candidate is None or wanted.weight <= 0:
        return seen.selects == wanted.stable and set(_some(seen)) == {wanted.stable}
    if wanted.weight >= 100:
        return seen.selects == wanted.candidate and set(_some(seen)) == {wanted.candidate}
    stable, candidate = split(total, wanted.weight)
    return seen.selects is None and _some(seen) == {wanted.stable: stable, wanted.candidate: candidate}


def _some(seen: ServiceSeen) -> dict[str, int]:
    return {version: count for version, count in seen.endpoints.items() if count}


def percent(share: Fraction | None) -> int | None:
    """A share in whole percent, but never all or nothing when it is not."""
    if share is None:
        return None
    rounded = round(share * 100)
    return rounded if share in (0, 1) else min(max(rounded, 1), 99)
