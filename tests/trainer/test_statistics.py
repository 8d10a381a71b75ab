"""Paired statistics, held against scipy and against what they promise."""

import math
import random
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from ratchet_trainer.evaluate.statistics import (
    bootstrap,
    compare,
    lower_bound,
    mcnemar,
    tango_lower,
)


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_the_exact_sign_test(better: int, worse: int) -> None:
    if better + worse == 0:
        assert mcnemar(better, worse) == 1.0
        return
    expected = stats.binomtest(better, better + worse, 0.5, alternative="greater").pvalue
    assert mcnemar(better, worse) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_stays_exact_for_very_many_cases() -> None:
    assert mcnemar(20_000, 0) == 0.0
    assert mcnemar(5_000, 5_000) == pytest.approx(0.504, abs=0.002)


def _score_statistic(better: int, worse: int, n: int, difference: float) -> float:
    """Tango's statistic with its constrained estimate found numerically instead of by the formula."""

    def log_likelihood(q: float) -> float:
        p = q + difference
        rest = 1 - p - q
        terms = ((better, p), (worse, q), (n - better - worse, rest))
        return sum(count * math.log(max(x, 1e-300)) for count, x in terms if count)

    low, high = max(0.0, -difference), (1 - difference) / 2
    found = optimize.minimize_scalar(lambda q: -log_likelihood(q), bounds=(low, high), method="bounded",
                                     options={"xatol": 1e-12})  # fmt: skip
    q = found.x
    variance = n * (2 * q + difference * (1 - difference))
    return (better - worse - n * difference) / math.sqrt(variance)


@pytest.mark.parametrize(("better", "worse", "n"), [(12, 4, 100), (3, 9, 60), (1, 1, 30), (20, 0, 104), (0, 5, 80)])
def test_tango_bound_is_where_the_score_test_turns(better: int, worse: int, n: int) -> None:
    bound = tango_lower(better, worse, n, 0.95)
    assert _score_statistic(better, worse, n, bound) == pytest.approx(stats.norm.ppf(0.95), abs=1e-3)


def test_tango_bound_without_any_discordant_pair() -> None:
    """The extreme that simple intervals get wrong: solved by hand, the bound is -z^2 / (n + z^2)."""
    z = stats.norm.ppf(0.975)
    assert tango_lower(0, 0, 44, 0.975) == pytest.approx(-(z**2) / (44 + z**2), abs=1e-6)


def test_bound_and_p_value_never_disagree() -> None:
    for n, confidence in ((30, 0.95), (104, 0.95), (104, 0.9), (200, 0.99)):
        for better, worse in product(range(0, min(n, 60) + 1, 1), range(0, 40)):
            if better + worse > n:
                continue
            proven = lower_bound(better, worse, n, confidence) > 0
            p_value = mcnemar(better, worse)
            if not math.isclose(p_value, 1 - confidence, rel_tol=1e-9):
                assert proven == (p_value < 1 - confidence), (better, worse, n, confidence, p_value)


@pytest.mark.parametrize(
    ("p_better", "p_worse"), [(0.05, 0.05), (0.2, 0.1), (0.02, 0.07), (0.0, 0.03), (0.4, 0.4), (0.01, 0.0), (0.1, 0.0)]
)
@pytest.mark.parametrize("n", [20, 60, 104])
def test_bound_covers_the_truth(p_better: float, p_worse: float, n: int) -> None:
    """Exact coverage: the probability, over all tables, that the bound is at or below the true difference."""
    truth, covered = p_better - p_worse, 0.0
    for better in range(n + 1):
        weight = stats.multinomial.pmf(
            [[better, worse, n - better - worse] for worse in range(n - better + 1)], n,
            [p_better, p_worse, 1 - p_better - p_worse],
        )  # fmt: skip
        for worse, chance in enumerate(weight):
            if chance > 1e-7:
                covered += chance * (lower_bound(better, worse, n, 0.95) <= truth + 1e-12)
    # A score interval keeps its level on average, not at every point: Tango 1998, table III, down to about 0.93.
    assert covered >= 0.93


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 100))
def test_bound_moves_the_right_way(better: int, worse: int, equal: int) -> None:
    n = better + worse + equal
    if n == 0:
        return
    bound = lower_bound(better, worse, n, 0.95)
    assert -1 <= bound <= (better - worse) / n
    assert lower_bound(better, worse, n, 0.99) <= bound + 1e-9
    assert lower_bound(better + 1, worse, n + 1, 0.95) >= bound - 1e-9
    assert lower_bound(better, worse + 1, n + 1, 0.95) <= bound + 1e-9


def test_few_cases_prove_no_guardrail() -> None:
    assert lower_bound(0, 0, 30, 0.95) < -0.05 < lower_bound(0, 0, 100, 0.95)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=80))
def test_compare_counts_pairs(pairs: list[tuple[bool, bool]]) -> None:
    champion, candidate = [float(a) for a, _ in pairs], [float(b) for _, b in pairs]
    found = compare(champion, candidate, 0.95)
    assert found.better == sum(b and not a for a, b in pairs)
    assert found.worse == sum(a and not b for a, b in pairs)
    assert found.difference == pytest.approx((found.better - found.worse) / len(pairs))
    assert found.p_value == mcnemar(found.better, found.worse)
    assert found.lower_bound <= found.difference + 1e-9


def test_compare_refuses_what_it_cannot_compare() -> None:
    for champion, candidate, confidence in (
        ([], [], 0.95), ([1.0], [], 0.95), ([1.0], [2.0], 0.95), ([1.0], [math.nan], 0.95), ([1.0], [1.0], 1.0),
    ):  # fmt: skip
        with pytest.raises(ValueError):
            compare(champion, candidate, confidence)


def test_scores_that_are_not_pass_or_fail_use_the_bootstrap() -> None:
    generator = random.Random(3)
    champion = [generator.random() * 0.5 for _ in range(60)]
    candidate = [min(1.0, score + generator.gauss(0.1, 0.1)) if score else 0.0 for score in champion]
    candidate = [max(0.0, score) for score in candidate]
    found = compare(champion, candidate, 0.95)
    differences = [b - a for a, b in zip(champion, candidate, strict=True)]
    expected = stats.bootstrap(
        (differences,), lambda x, axis: x.mean(axis=axis), confidence_level=0.9, method="percentile", n_resamples=10_000
    ).confidence_interval.low  # fmt: skip
    assert found.lower_bound == pytest.approx(expected, abs=0.004)
    assert found.p_value < 0.01
    assert compare(champion, candidate, 0.95) == found


def test_bootstrap_of_noise_proves_nothing() -> None:
    generator = random.Random(11)
    false_alarms = sum(bootstrap([generator.gauss(0, 0.2) for _ in range(40)], 0.95, seed)[0] > 0 for seed in range(40))
    assert false_alarms <= 6
