"""Splits: backend weights and numbers of pods, as tables and as properties."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratchet_operator.domain.routing import (
    BackendSeen,
    Pods,
    RouteSeen,
    ServiceSeen,
    Wanted,
    achievable,
    percent,
    plan_route,
    replicas_in_force,
    scale,
    select,
    split,
)

VERSIONS = ("old", "new", "next")
weights = st.integers(0, 100)
totals = st.integers(2, 60)


@pytest.mark.parametrize(
    ("total", "weight", "expected"),
    [
        (4, 0, (4, 1)),
        (4, 5, (3, 1)),
        (4, 25, (3, 1)),
        (4, 50, (2, 2)),
        (4, 99, (1, 3)),
        (4, 100, (1, 4)),
        (10, 25, (8, 2)),
        (10, 26, (7, 3)),
        (2, 1, (1, 1)),
        (20, 5, (19, 1)),
    ],
)
def test_split(total: int, weight: int, expected: tuple[int, int]) -> None:
    assert split(total, weight) == expected


@given(totals, st.integers(1, 99))
def test_a_split_adds_up_leaves_both_a_pod_and_is_the_nearest(total: int, weight: int) -> None:
    stable, candidate = split(total, weight)
    assert stable + candidate == total
    assert stable >= 1
    assert candidate >= 1
    error = abs(Fraction(candidate, total) - Fraction(weight, 100))
    assert all(error <= abs(Fraction(other, total) - Fraction(weight, 100)) for other in range(1, total))
    assert achievable(total, weight) == Fraction(candidate, total)


@given(totals, weights, weights)
def test_a_higher_weight_never_means_fewer_pods(total: int, one: int, other: int) -> None:
    low, high = sorted((one, other))
    assert split(total, low)[1] <= split(total, high)[1]
    assert split(total, low)[0] >= split(total, high)[0]
    assert achievable(total, low) <= achievable(total, high)


@given(totals, st.integers(1, 5), st.integers(1, 100), st.data())
def test_pods_move_to_the_split_and_nobody_is_missed_on_the_way(
    total: int, surge: int, weight: int, data: st.DataObject
) -> None:
    """From a candidate's first pod, one kubelet event at a time, in any order: at least `total` ready pods from the
    first moment on, at most `surge` beyond them, never none of stable, and the share only rises."""
    stable, candidate, share = Pods(total, total), Pods(1, 1), Fraction(0)
    for _ in range(4 * total + 10):
        numbers = scale(total, surge, weight, stable, candidate)
        assert sum(numbers) <= max(total + surge, stable.wanted + candidate.wanted)
        assert min(numbers) >= 1
        # Deployments take pods away at once; those that are asked for become ready when they like.
        stable = Pods(numbers[0], min(stable.ready, numbers[0]))
        ready = data.draw(st.integers(min(candidate.ready, numbers[1]), numbers[1]))
        candidate = Pods(numbers[1], ready)
        assert stable.ready + candidate.ready >= total
        now = Fraction(candidate.ready, stable.ready + candidate.ready)
        assert now >= share
        assert weight == 100 or now <= max(achievable(total, weight), Fraction(1, total + 1))
        share = now
        if candidate.ready == candidate.wanted and scale(total, surge, weight, stable, candidate) == numbers:
            break
    for _ in range(4 * total + 10):
        numbers = scale(total, surge, weight, stable, candidate)
        stable, candidate = Pods(numbers[0], numbers[0]), Pods(numbers[1], numbers[1])
    assert numbers == split(total, weight), "it arrives"


@given(totals, st.integers(1, 5), st.integers(0, 60), st.integers(0, 60))
def test_without_weight_stable_gets_all_of_its_pods_at_once(total: int, surge: int, own: int, other: int) -> None:
    assert scale(total, surge, 0, Pods(own, own), Pods(other, other)) == (total, 1)


@given(totals, weights, st.dictionaries(st.sampled_from(VERSIONS), st.integers(0, 9)), st.sampled_from(VERSIONS))
def test_in_force_means_the_share_that_is_achievable(
    total: int, weight: int, endpoints: dict[str, int], selects: str
) -> None:
    wanted = Wanted("old", "new", weight)
    for chosen in (selects, None):
        seen = ServiceSeen(chosen, True, endpoints)
        if replicas_in_force(wanted, total, seen):
            assert seen.share("new") == achievable(total, weight)


def test_the_shared_service_is_the_candidate_s_alone_only_when_it_can_carry_all() -> None:
    wanted = Wanted("old", "new", 100)
    assert select(wanted, 4, ServiceSeen(None, True, {"old": 1, "new": 3})) is None
    assert select(wanted, 4, ServiceSeen(None, True, {"old": 1, "new": 4})) == "new"
    assert select(wanted, 4, ServiceSeen("new", True, {"new": 3})) == "new", "a pod lost later changes nothing"
    assert select(Wanted("old", "new", 0), 4, ServiceSeen(None, True, {"old": 1, "new": 3})) == "old"
    assert select(Wanted("old", None, 0), 4, ServiceSeen("new", True, {"new": 3})) == "old"


# HTTPRoute

backends = st.builds(
    BackendSeen,
    selects=st.sampled_from((*VERSIONS, None)),
    weight=st.integers(0, 1000),
    ready=st.booleans(),
)
wants = st.builds(
    Wanted, stable=st.just("new"), candidate=st.sampled_from(("next", None)), weight=weights
).map(lambda w: w if w.candidate is not None else Wanted(w.stable, None, 0))  # fmt: skip


@given(wants, backends, backends, st.booleans())
def test_one_step_of_a_route_is_safe(
    wanted: Wanted, stable: BackendSeen, candidate: BackendSeen, in_force: bool
) -> None:
    seen = RouteSeen(stable, candidate, in_force)
    plan = plan_route(wanted, seen)
    if plan.weights is not None:
        assert sum(plan.weights) == 100
        assert min(plan.weights) >= 0
    # A Service that has weight keeps its version, unless nothing would be lost by the change.
    if candidate.weight > 0 and candidate.selects is not None:
        assert plan.candidate == candidate.selects
    if plan.stable != stable.selects and stable.selects is not None and stable.weight > 0:
        assert candidate.selects != wanted.stable or candidate.weight == 0
    # Weight only comes to a Service that has the wanted version's endpoints.
    if plan.weights is not None and plan.weights[1] > candidate.weight and plan.weights != (0, 100):
        assert candidate.ready
        assert candidate.selects == (wanted.candidate or wanted.stable)
    # A version that is neither champion nor candidate is given nothing.
    if plan.weights is not None and plan.weights[1] > 0:
        assert plan.candidate in (wanted.stable, wanted.candidate)


@given(wants, backends, backends)
def test_steps_of_a_route_arrive(wanted: Wanted, stable: BackendSeen, candidate: BackendSeen) -> None:
    """With a gateway that takes every weight, and endpoints that follow the selectors, from any state at all."""
    for _ in range(8):
        seen = RouteSeen(
            BackendSeen(stable.selects, stable.weight, stable.selects in ("new", "next")),
            BackendSeen(candidate.selects, candidate.weight, candidate.selects in ("new", "next")),
            True,
        )
        plan = plan_route(wanted, seen)
        numbers = plan.weights or (stable.weight, candidate.weight)
        following = BackendSeen(plan.stable, numbers[0], True), BackendSeen(plan.candidate, numbers[1], True)
        if plan.weights is None and (following[0].selects, following[1].selects) == (stable.selects, candidate.selects):
            break
        stable, candidate = following
    else:
        raise AssertionError(f"no end: {plan}")
    seen = RouteSeen(stable, candidate, True)
    assert seen.share("new" if wanted.candidate is None else "next") == (
        Fraction(wanted.weight, 100) if wanted.candidate is not None else 1
    )
    if wanted.candidate is None:
        assert (stable.selects, candidate.selects) == ("new", "new")


def test_a_promotion_step_by_step() -> None:
    """The champion's traffic stays on the candidate's Service until the stable one has the champion's endpoints."""
    wanted = Wanted("new", None, 0)
    carried = BackendSeen("new", 100, True)
    first = plan_route(wanted, RouteSeen(BackendSeen("old", 0, True), carried, True))
    assert (first.stable, first.candidate, first.weights) == ("new", "new", None)
    second = plan_route(wanted, RouteSeen(BackendSeen("new", 0, False), carried, True))
    assert second.weights is None
    third = plan_route(wanted, RouteSeen(BackendSeen("new", 0, True), carried, True))
    assert third.weights == (100, 0)


def test_weights_reset_just_after_a_promotion() -> None:
    """Git said 100 to 0 while the stable Service still selects the old champion: that one first, its selector later."""
    wanted = Wanted("new", None, 0)
    reset = RouteSeen(BackendSeen("old", 100, True), BackendSeen("new", 0, True), True)
    assert plan_route(wanted, reset).stable == "new", "nothing of the champion is lost by it"
    half = RouteSeen(BackendSeen("old", 50, True), BackendSeen("new", 50, True), True)
    assert plan_route(wanted, half) == plan_route(wanted, half)
    assert (plan_route(wanted, half).stable, plan_route(wanted, half).weights) == ("old", (0, 100))


def test_whole_percent_never_claims_all_or_nothing() -> None:
    assert [percent(Fraction(n, 1000)) for n in (0, 1, 250, 999, 1000)] == [0, 1, 25, 99, 100]
    assert percent(None) is None
