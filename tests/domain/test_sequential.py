"""The interval of two proportions: arithmetic by tables and properties, coverage and power by simulation."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from ratchet_operator.domain import sequential
from ratchet_operator.domain.sequential import difference, recent_difference


@pytest.mark.parametrize(
    ("counts", "lower", "upper"),
    [
        pytest.param((0, 20, 0, 20), -0.32, 0.32, id="no event in two small arms proves little"),
        pytest.param((0, 20_000, 0, 20_000), -0.0005, 0.0005, id="no event in two large arms proves much"),
        pytest.param((54, 131, 82, 402), 0.079, 0.341, id="twenty points more are seen with 131 events"),
        pytest.param((20, 20, 0, 20), 0.647, 1.0, id="all against none"),
        pytest.param((0, 20, 20, 20), -1.0, -0.647, id="none against all"),
        pytest.param((20, 20, 20, 20), -0.32, 0.32, id="all against all"),
        pytest.param((0.4, 20.3, 1.7, 812.5), -0.010, 0.292, id="extrapolated counts need not be whole"),
        pytest.param((500_000, 1_000_000, 500_000, 1_000_000), -0.0028, 0.0028, id="a million events"),
    ],
)
def test_known_intervals(counts: tuple[float, float, float, float], lower: float, upper: float) -> None:
    interval = difference(*counts)
    assert interval.lower == pytest.approx(lower, abs=0.012 if counts[1] < 200 else 0.001)
    assert interval.upper == pytest.approx(upper, abs=0.012 if counts[1] < 200 else 0.001)


@pytest.mark.parametrize(
    "counts", [(1, 0, 0, 1), (2, 1, 0, 1), (-1, 5, 0, 5), (math.nan, 5, 0, 5), (1, math.inf, 0, 5), (0, 5, 6, 5)]
)
def test_impossible_counts_are_refused(counts: tuple[float, float, float, float]) -> None:
    with pytest.raises(ValueError, match="0 <= bad <= all"):
        difference(*counts)


@pytest.mark.parametrize("settings", [{"tuned_for": 0.0}, {"alpha": 0.0}, {"alpha": 0.5}])
def test_impossible_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="tuned_for must be above 0"):
        difference(1, 10, 1, 10, **settings)


def test_the_recent_interval_is_that_of_one_look() -> None:
    """Two arms of 1000 with half bad: 3.72 standard errors of 0.0224 to each side."""
    interval = recent_difference(500, 1000, 500, 1000)
    assert interval.upper == -interval.lower == pytest.approx(3.72 * 0.02236, abs=0.001)
    assert recent_difference(10, 40, 0, 120).lower == pytest.approx(0.059, abs=0.01)


def test_impossible_recent_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="alpha must be between"):
        recent_difference(1, 10, 1, 10, alpha=0.5)
    with pytest.raises(ValueError, match="0 <= bad <= all"):
        recent_difference(11, 10, 1, 10)


@pytest.mark.parametrize(
    ("share", "margin", "events"),
    [
        pytest.param(0.2, 0.05, 20, id="feedback, 20 events"),
        pytest.param(0.5, 0.05, 100, id="feedback, 100 events"),
        pytest.param(0.01, 0.02, 20, id="rare errors, 20 events"),
    ],
)
def test_equal_arms_fail_no_recent_window(share: float, margin: float, events: int) -> None:
    """3000 windows that do not overlap, which are more than any rollout has."""
    generator = random.Random(events)
    wrong = 0
    for _ in range(3000):
        bad, bad_stable = _binomial(generator, events, share), _binomial(generator, 3 * events, share)
        if bad / events - bad_stable / (3 * events) > margin:
            wrong += recent_difference(bad, events, bad_stable, 3 * events).lower > margin
    assert wrong <= 1


@pytest.mark.parametrize(
    ("counts", "d"),
    [((3, 40, 50, 400), 0.05), ((0, 25, 7, 300), 0.02), ((90, 100, 10, 50), 0.5), ((5, 50, 5, 50), -0.3)],
)
def test_the_profile_is_at_its_maximum(counts: tuple[float, float, float, float], d: float) -> None:
    bad, n, bad_stable, n_stable = counts

    def minus(p: float) -> float:
        q = p + d
        return -(
            bad * math.log(q)
            + (n - bad) * math.log(1 - q)
            + bad_stable * math.log(p)
            + (n_stable - bad_stable) * math.log(1 - p)
        )

    reference = minimize_scalar(minus, bounds=(max(0, -d) + 1e-9, min(1, 1 - d) - 1e-9), method="bounded")
    free = sum(
        x * math.log(x / y)
        for x, y in ((bad, n), (n - bad, n), (bad_stable, n_stable), (n_stable - bad_stable, n_stable))
        if x
    )
    assert sequential._log_ratio(bad, n, bad_stable, n_stable, d)[0] == pytest.approx(free + reference.fun, abs=1e-5)


counts = st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts, counts)
def test_interval_holds_the_estimate_and_is_symmetric(ours: tuple[int, int], theirs: tuple[int, int]) -> None:
    interval = difference(*ours, *theirs)
    assert -1 <= interval.lower <= interval.difference <= interval.upper <= 1
    swapped = difference(*theirs, *ours)
    assert swapped.lower == pytest.approx(-interval.upper, abs=1e-6)
    assert swapped.upper == pytest.approx(-interval.lower, abs=1e-6)


@given(counts, counts)
def test_tenfold_evidence_is_a_shorter_interval(ours: tuple[int, int], theirs: tuple[int, int]) -> None:
    few, many = difference(*ours, *theirs), difference(*(10 * x for x in ours), *(10 * x for x in theirs))
    assert many.upper - many.lower <= few.upper - few.lower + 1e-9


def alarms(
    share: float, excess: float, candidate_share: float, least: int, most: int, paths: int, limit: float | None = None
) -> float:
    """Share of simulated rollouts in which one of 1000 looks "proves" more than the true excess.

    `limit`: a fixed log-likelihood ratio instead of the boundary.
    """
    generator = random.Random(f"{share} {excess} {candidate_share} {least}")
    looks = sorted({round(least * (most / least) ** (i / 999)) for i in range(1000)})
    wrong = 0
    for _ in range(paths):
        n = bad = n_stable = bad_stable = 0
        for size in looks:
            stable_size = max(least, round(size * (1 - candidate_share) / candidate_share))
            bad += _binomial(generator, size - n, share + excess)
            bad_stable += _binomial(generator, stable_size - n_stable, share)
            n, n_stable = size, stable_size
            if bad / n - bad_stable / n_stable <= excess:
                continue
            information = sequential._OPTIMUM / (0.7 * least * (1 / n + 1 / n_stable))
            boundary = sequential._boundary(information, sequential.ALPHA) if limit is None else limit
            if sequential._log_ratio(bad, n, bad_stable, n_stable, excess)[0] > boundary:
                wrong += 1
                break
    return wrong / paths


def _binomial(generator: random.Random, n: int, p: float) -> int:
    if n * min(p, 1 - p) > 400:
        return min(n, max(0, round(generator.gauss(n * p, math.sqrt(n * p * (1 - p))))))
    return sum(generator.random() < p for _ in range(n))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("share", "excess", "candidate_share", "least"),
    [
        pytest.param(0.2, 0.0, 0.5, 20, id="A/A feedback from 20 events"),
        pytest.param(0.2, 0.05, 0.5, 200, id="feedback worse by just the margin"),
        pytest.param(0.002, 0.0, 0.05, 20, id="A/A rare errors in a small canary"),
        pytest.param(0.002, 0.02, 0.5, 200, id="errors worse by just the margin"),
    ],
)
def test_false_alarms_over_1000_looks(share: float, excess: float, candidate_share: float, least: int) -> None:
    assert alarms(share, excess, candidate_share, least, 60 * least, paths=200) <= sequential.ALPHA


def test_the_simulation_would_notice_an_interval_for_one_look() -> None:
    one_look = 1.645**2 / 2
    assert alarms(0.2, 0.0, 0.5, 20, 1200, paths=100, limit=one_look) > 3 * sequential.ALPHA


@pytest.mark.parametrize(
    ("stable_samples", "within"),
    [pytest.param(None, 2500, id="live stable"), pytest.param(4000, 2000, id="kept stable")],
)
def test_twice_the_margin_is_proven_in_time(stable_samples: int | None, within: int) -> None:
    generator = random.Random(8)
    found = 0
    for _ in range(50):
        kept = None if stable_samples is None else _binomial(generator, stable_samples, 0.2)
        n = bad = n_stable = bad_stable = 0
        while n < within:
            bad, n = bad + _binomial(generator, 100, 0.3), n + 100
            if kept is None:
                bad_stable, n_stable = bad_stable + _binomial(generator, 100, 0.2), n_stable + 100
            else:
                bad_stable, n_stable = kept, stable_samples or 0
            if n >= 200 and difference(bad, n, bad_stable, n_stable).lower > 0.05:
                found += 1
                break
    assert found >= 45
