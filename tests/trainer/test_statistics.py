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
    design_effect,
    lower_bound,
    mcnemar,
    power,
    sign_flip,
    student_quantile,
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


def test_graded_scores_use_the_bootstrap_and_a_cap() -> None:
    generator = random.Random(3)
    champion = [generator.random() * 0.5 for _ in range(60)]
    candidate = [min(1.0, score + generator.gauss(0.1, 0.1)) if score else 0.0 for score in champion]
    candidate = [max(0.0, score) for score in candidate]
    found = compare(champion, candidate, 0.95)
    differences = [b - a for a, b in zip(champion, candidate, strict=True)]
    expected = stats.bootstrap(
        (differences,), lambda x, axis: x.mean(axis=axis), confidence_level=0.9, method="percentile", n_resamples=10_000
    ).confidence_interval.low  # fmt: skip
    assert bootstrap([[difference] for difference in differences], 0.95)[0] == pytest.approx(expected, abs=0.004)
    assert expected - 0.02 < found.lower_bound <= expected + 0.004, "capped, but not by much"
    assert found.p_value < 0.01
    assert compare(champion, candidate, 0.95) == found


def test_bootstrap_of_noise_proves_nothing() -> None:
    generator = random.Random(11)
    false_alarms = sum(
        bootstrap([[generator.gauss(0, 0.2)] for _ in range(40)], 0.95, seed)[0] > 0 for seed in range(40)
    )
    assert false_alarms <= 6


@pytest.mark.parametrize(("n", "margin"), [(30, 0.1), (60, 0.05), (100, 0.1), (150, 0.05), (300, 0.02)])
@pytest.mark.parametrize("more", [0.0, 0.01, 0.1, 0.25])
def test_a_loss_of_the_margin_is_passed_in_at_most_five_of_a_hundred(n: int, margin: float, more: float) -> None:
    """Exact: the probability, over all tables, that a guardrail whose true loss is its margin holds all the same.
    Without the correction for continuity it is up to 6 %."""
    discordant = margin + more
    total = 0.0
    for worse in range(n + 1):
        # The bound rises with every case won: the tables that pass are those from some number of them on.
        low, high = 0, n - worse + 1
        while low < high:
            middle = (low + high) // 2
            if lower_bound(middle, worse, n, 0.95) > -margin:
                high = middle
            else:
                low = middle + 1
        b = stats.binom.sf(low - 1, n - worse, (more / 2) / (1 - (discordant - more / 2)))
        total += stats.binom.pmf(worse, n, discordant - more / 2) * b
    assert total <= 0.05


# -- clusters


@given(st.integers(0, 40), st.integers(0, 40))
def test_flipping_single_cases_is_mcnemar(better: int, worse: int) -> None:
    assert sign_flip([1] * better + [-1] * worse + [0] * 5) == pytest.approx(mcnemar(better, worse), rel=1e-12)


def test_sign_flips_by_hand() -> None:
    assert sign_flip([3, 2, -1]) == 2 / 8, "3+2-1 and 3+2+1, of eight"
    assert sign_flip([]) == 1.0


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_clusters_of_one_change_nothing(pairs: list[tuple[bool, bool]]) -> None:
    champion, candidate = [float(a) for a, _ in pairs], [float(b) for _, b in pairs]
    plain = compare(champion, candidate, 0.95)
    assert compare(champion, candidate, 0.95, clusters=list(range(len(pairs)))) == plain
    assert compare(champion, candidate, 0.95, clusters=[None] * len(pairs)) == plain


def test_copies_of_a_case_prove_nothing_new() -> None:
    """Ten sessions asked ten times each are ten sessions."""
    champion, candidate = [0.0] * 10, [1.0] * 7 + [0.0] * 3
    once = compare(champion, candidate, 0.95)
    tenfold = compare(champion * 10, candidate * 10, 0.95, clusters=[*range(10)] * 10)
    assert (tenfold.cases, tenfold.clusters, tenfold.difference) == (100, 10, once.difference)
    assert tenfold.p_value == once.p_value
    apart = compare(champion * 10, candidate * 10, 0.95)
    assert apart.p_value < 1e-9, "what it looks like without the clusters"
    assert tenfold.lower_bound < apart.lower_bound - 0.2
    lost = compare(candidate * 10, champion * 10, 0.95, clusters=[*range(10)] * 10)
    assert lost.lower_bound < lost.difference


def test_the_design_effect_is_between_its_bounds() -> None:
    alike = [[1.0] * 5, [-1.0] * 5] * 10
    assert design_effect(alike) == pytest.approx(5.0, rel=0.06)
    generator = random.Random(4)
    independent = [[float(generator.choice((-1, 0, 0, 1))) for _ in range(5)] for _ in range(200)]
    assert design_effect(independent) < 1.4
    assert design_effect([[1.0, 0.0]] * 3 + [[0.0] * 2] * 50) == 2.0, "too few differ to tell: the largest"


def test_one_cluster_proves_nothing() -> None:
    found = compare([0.0] * 50, [1.0] * 50, 0.95, clusters=["x"] * 50)
    assert (found.clusters, found.lower_bound, found.p_value) == (1, -1.0, 0.5)


def test_real_scores_are_resampled_as_clusters() -> None:
    generator = random.Random(8)
    effects = [generator.gauss(0.03, 0.2) for _ in range(12)]
    candidate = [min(1.0, max(0.0, 0.5 + effects[index % 12])) for index in range(240)]
    alone = compare([0.5] * 240, candidate, 0.95)
    together = compare([0.5] * 240, candidate, 0.95, clusters=[index % 12 for index in range(240)])
    assert together.lower_bound < alone.lower_bound
    assert together.p_value > alone.p_value


@pytest.mark.parametrize("degrees", [1, 2, 4, 10, 60])
def test_student_quantiles(degrees: int) -> None:
    for probability in (0.9, 0.95, 0.99):
        expected = stats.t.ppf(probability, degrees)
        assert student_quantile(probability, degrees) == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize(("n", "gain", "discordant"), [(60, 0.15, 0.3), (104, 0.1, 0.2), (30, 0.3, 0.3)])
def test_power_is_the_probability_of_a_proof(n: int, gain: float, discordant: float) -> None:
    up, down = (discordant + gain) / 2, (discordant - gain) / 2
    expected = sum(
        stats.multinomial.pmf([b, c, n - b - c], n, [up, down, 1 - discordant])
        for b in range(n + 1) for c in range(n - b + 1) if mcnemar(b, c) < 0.05
    )  # fmt: skip
    assert power(n, gain, discordant, 0.95) == pytest.approx(expected, abs=1e-6)


def test_power_beyond_the_exact_sum_goes_on_smoothly() -> None:
    assert power(401, 0.06, 0.15, 0.95) == pytest.approx(power(400, 0.06, 0.15, 0.95), abs=0.03)
    assert power(100, 0.0, 0.2, 0.95) <= 0.05
    assert power(100, 0.0, 0.0, 0.95) == 0.0
