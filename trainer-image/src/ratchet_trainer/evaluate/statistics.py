"""Paired statistics of two models over the same cases.

Room: trainer. Pure; little more than the standard library, so that whoever doubts a number can read how it came about.

Cases of one cluster (session, template) rise and fall together, so with clusters the cluster is what is drawn: the
test flips the signs of whole clusters, the bootstrap draws whole clusters, and the score interval counts as many cases
as there would be of independent ones (design effect). `benchmarks/gate` holds it all against simulated gates.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

RESAMPLES = 10_000
"""Of the bootstrap, at least; for a small error rate as many as leave TAIL of them beyond the bound."""
TAIL = 20
MOST_RESAMPLES = 1_000_000
CORRECTION = 0.25
"""Cases by which the score interval is corrected for continuity. Without it the error of a bound for "95 %" is up to
6 %; with it at most 4.9 %, by exact summation for 30 to 300 cases (tests/trainer/test_statistics.py)."""
SPARSE = 8
"""Clusters that differ; with fewer the design effect is not estimated but taken as the largest."""
EXACT_POWER = 400
"""Cases up to which power is summed exactly."""
MOST_SAMPLES = 16
"""Largest number of equal parts of a point that scores are told apart by (the answers that a case's score averages)."""
_DRAWN_AT_ONCE = 2_000_000
"""Clusters that the bootstrap draws at a time: bounds its memory."""


@dataclass(frozen=True)
class Paired:
    """Candidate against champion over n cases."""

    cases: int
    champion: float
    """Mean score."""
    candidate: float
    """Mean score."""
    lower_bound: float
    """One-sided lower confidence bound of candidate - champion."""
    p_value: float
    """One-sided: how likely a candidate that is not better looks at least so good."""
    better: int
    """Cases with a higher score for the candidate."""
    worse: int
    """Cases with a lower one."""
    clusters: int
    """Groups of cases that were drawn together; as many as cases when each stands for itself."""
    design_effect: float = 1.0
    """Variance over what it would be without clusters; cases / design_effect independent ones say as much."""

    @property
    def difference(self) -> float:
        """candidate - champion."""
        return self.candidate - self.champion


def compare(
    champion: Sequence[float],
    candidate: Sequence[float],
    confidence: float,
    seed: int = 0,
    clusters: Sequence[Hashable | None] = (),
) -> Paired:
    """Paired comparison of scores in [0, 1], case by case.

    Cases that are won, lost or alike: exact McNemar test and score interval. Scores in between (several answers to a
    case averaged): the stricter of the paired bootstrap and, respectively, sign flips and the score interval.
    `clusters`: for each case the cluster that it belongs to, None if it stands for itself; empty: all do. Raises
    ValueError for no cases, unequal lengths, scores outside [0, 1] or a confidence outside [0.5, 1).
    """
    if len(champion) != len(candidate) or not champion or len(clusters) not in (0, len(champion)):
        raise ValueError("both sides need a score for every case, and there must be at least one case")
    if not all(0 <= score <= 1 for score in (*champion, *candidate)):
        raise ValueError("scores must be between 0 and 1")
    if not 0.5 <= confidence < 1:
        raise ValueError("confidence must be at least 0.5 and below 1")
    n = len(champion)
    differences = [b - a for a, b in zip(champion, candidate, strict=True)]
    better, worse = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    groups = _groups(differences, clusters)
    effect = 1.0
    if not all(difference in (-1, 0, 1) for difference in differences):
        effect = design_effect(groups) if len(groups) < n else 1.0
        lower, p_value = _graded(groups, effect, confidence, seed)
    elif len(groups) == n:
        lower, p_value = lower_bound(better, worse, n, confidence), mcnemar(better, worse)
    else:
        effect = design_effect(groups)
        p_value = sign_flip([round(math.fsum(group)) for group in groups])
        lower = _clustered_lower(better, worse, groups, effect, confidence)
        # Bound and test never disagree the wrong way: above zero only if the test says so too.
        lower = lower if p_value < 1 - confidence else min(lower, 0.0)
    mean, other = math.fsum(champion) / n, math.fsum(candidate) / n
    return Paired(n, mean, other, lower, p_value, better, worse, len(groups), effect)


def _graded(groups: Sequence[Sequence[float]], effect: float, confidence: float, seed: int) -> tuple[float, float]:
    """(lower bound, p) for differences of any size.

    The bootstrap alone errs too often for few cases, and calls a loss impossible that none of them happened to show.
    So its bound is capped by Tango's for as many whole cases as were gained and lost in parts, scaled by how much less
    than whole ones they vary (a dispersion, as in quasi-likelihood: Wedderburn 1974, Biometrika 61:439-447); and its p
    by that of the sign flips, which is exact.
    """
    drawn, p_value = bootstrap(groups, confidence, seed)
    differences = [difference for group in groups for difference in group]
    gained = math.fsum(d for d in differences if d > 0)
    lost = -math.fsum(d for d in differences if d < 0)
    if sum(any(group) for group in groups) >= SPARSE:
        effect *= math.fsum(d * d for d in differences) / (gained + lost)
    capped = -1.0
    if len(groups) > 1:
        quantile = student_quantile(confidence, len(groups) - 1)
        capped = _tango_lower(gained / effect, lost / effect, len(differences) / effect, quantile, CORRECTION)
    p_value = max(p_value, _graded_sign_flip(groups))
    lower = min(drawn, capped)
    return (lower if p_value < 1 - confidence else min(lower, 0.0)), p_value


def _graded_sign_flip(groups: Sequence[Sequence[float]]) -> float:
    """`sign_flip` in the smallest equal parts that all differences are multiples of; rounded towards no proof when
    there are none."""
    sums = [math.fsum(group) for group in groups]
    for parts in range(1, MOST_SAMPLES + 1):
        if all(abs(value * parts - round(value * parts)) < 1e-9 * parts for value in sums):
            return sign_flip([round(value * parts) for value in sums])
    return sign_flip([math.floor(value * 1000) for value in sums])


def _groups(differences: Sequence[float], clusters: Sequence[Hashable | None]) -> list[list[float]]:
    """The differences by cluster, in the order of the clusters' first cases."""
    if not clusters:
        return [[difference] for difference in differences]
    found: dict[object, list[float]] = {}
    for index, (difference, name) in enumerate(zip(differences, clusters, strict=True)):
        found.setdefault((index,) if name is None else name, []).append(difference)
    return list(found.values())


def sign_flip(sums: Sequence[int]) -> float:
    """Exact one-sided randomisation test: how often random signs of the clusters' sums give at least their total.

    Fisher 1935 (The Design of Experiments, section 21), for whole clusters; with clusters of one it is McNemar's test.
    """
    ways = {0: 1}
    for value in filter(None, sums):
        following: dict[int, int] = {}
        for total, count in ways.items():
            for after in (total + value, total - value):
                following[after] = following.get(after, 0) + count
        ways = following
    observed = sum(sums)
    return sum(count for total, count in ways.items() if total >= observed) / (1 << sum(map(bool, sums)))


def design_effect(groups: Sequence[Sequence[float]]) -> float:
    """Variance of the mean difference with clusters over that without (Rao and Scott 1992, Biometrics 48:577-585),
    between 1 and that of clusters whose cases are all alike, sum of squared sizes / cases.

    With fewer than SPARSE clusters that differ the variance cannot be told from the sample: then it is the largest.
    """
    sizes = [len(group) for group in groups]
    n, count = sum(sizes), len(groups)
    largest = sum(size * size for size in sizes) / n
    if sum(any(group) for group in groups) < SPARSE or count < 2:
        return largest
    mean = math.fsum(value for group in groups for value in group) / n
    within = math.fsum((value - mean) ** 2 for group in groups for value in group)
    between = math.fsum((math.fsum(group) - len(group) * mean) ** 2 for group in groups) * count / (count - 1)
    return min(largest, max(1.0, between / within)) if within > 0 else largest


def _clustered_lower(
    better: int, worse: int, groups: Sequence[Sequence[float]], effect: float, confidence: float
) -> float:
    """Tango's bound for as many cases as the design effect leaves, with Student's quantile for the clusters' number."""
    if len(groups) < 2:
        return -1.0  # one cluster says nothing about another
    n = sum(map(len, groups))
    quantile = student_quantile(confidence, len(groups) - 1)
    return _tango_lower(better / effect, worse / effect, n / effect, quantile, CORRECTION)


def student_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t, by its expansion about the normal one (Abramowitz and Stegun 1964, 26.7.5); exact for 1
    and 2 degrees of freedom, where the expansion is not."""
    if degrees == 1:
        return math.tan(math.pi * (probability - 0.5))
    if degrees == 2:
        return (2 * probability - 1) / math.sqrt(2 * probability * (1 - probability))
    z, v = NormalDist().inv_cdf(probability), float(degrees)
    return z + (
        (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * v**4)
    )


def power(cases: int, gain: float, discordant: float, confidence: float) -> float:
    """Chance that McNemar's exact test proves a gain when a share `discordant` of the cases changes: summed over all
    numbers of discordant pairs up to EXACT_POWER cases, by Connor's normal approximation beyond."""
    discordant = min(1.0, max(discordant, gain))
    if discordant <= 0:
        return 0.0
    if cases > EXACT_POWER:
        z = NormalDist().inv_cdf(confidence)
        spread = math.sqrt(max(1e-12, discordant - gain**2))
        return NormalDist().cdf((gain * math.sqrt(cases) - z * math.sqrt(discordant)) / spread)
    share = (discordant + gain) / (2 * discordant)
    total, critical = 0.0, 0
    for pairs in range(cases + 1):
        # One pair more moves the critical number by at most one.
        critical = max(critical, (pairs + 1) // 2)
        while critical <= pairs and _binomial_tail(critical, pairs) >= 1 - confidence:
            critical += 1
        if critical <= pairs:
            total += _probability(pairs, cases, discordant) * _tail(critical, pairs, share)
    return total


def _probability(successes: int, trials: int, probability: float) -> float:
    return max(0.0, _tail(successes, trials, probability) - _tail(successes + 1, trials, probability))


def mcnemar(better: int, worse: int) -> float:
    """Exact one-sided McNemar test: P(X >= better), X ~ Binomial(better + worse, 1/2).

    McNemar 1947, Psychometrika 12:153-157; the exact form is the sign test on the discordant pairs.
    """
    return _binomial_tail(better, better + worse)


def _binomial_tail(successes: int, trials: int) -> float:
    """P(X >= successes) for X ~ Binomial(trials, 1/2), exactly, in integers."""
    # Each coefficient from the one before it: no large factorials for many cases.
    coefficient = math.comb(trials, successes) if successes <= trials else 0
    total = 0
    for k in range(successes, trials + 1):
        total += coefficient
        coefficient = coefficient * (trials - k) // (k + 1)
    return total / (1 << trials)


def lower_bound(better: int, worse: int, cases: int, confidence: float) -> float:
    """One-sided lower bound of the difference of two paired proportions, (better - worse) / cases in the sample.

    Tango's score interval (Tango 1998, Statistics in Medicine 17:891-908), which keeps its coverage for few cases and
    for none that differ: no discordant pair among 30 cases does not prove a loss of less than 8 points. It is corrected
    for continuity by CORRECTION, so that its error stays within what is promised at every point. Above zero it
    is capped by the exact conditional bound (Clopper and Pearson 1934, on the discordant pairs), but not below zero, so
    that bound and exact test never disagree: it is above zero if and only if the one-sided McNemar p is below
    1 - confidence.
    """
    tango = _tango_lower(better, worse, cases, NormalDist().inv_cdf(confidence), CORRECTION)
    if tango <= 0:
        return tango
    discordant = better + worse
    share = _clopper_pearson_lower(better, discordant, 1 - confidence)
    return min(tango, max(0.0, (2 * share - 1) * discordant / cases))


def tango_lower(better: int, worse: int, cases: int, confidence: float) -> float:
    """The smallest difference that the score test does not reject at `confidence`, by bisection.

    Score statistic (Tango 1998, equation 2): z(d) = (b - c - n d) / sqrt(n (2 q + d (1 - d))) where b and c are the
    discordant counts and q, the probability of "only the champion passes" under the difference d, is the larger root
    of 2n q^2 + ((2n - b + c) d - b - c) q - c d (1 - d) = 0.
    """
    return _tango_lower(better, worse, cases, NormalDist().inv_cdf(confidence))


def _tango_lower(better: float, worse: float, cases: float, z: float, correction: float = 0.0) -> float:
    low, high = -1.0, (better - worse) / cases
    for _ in range(100):
        middle = (low + high) / 2
        if _tango_score(better, worse, cases, middle, correction) >= z:
            low = middle
        else:
            high = middle
    return low


def _tango_score(better: float, worse: float, cases: float, difference: float, correction: float) -> float:
    b = (2 * cases - better + worse) * difference - better - worse
    c = -worse * difference * (1 - difference)
    q = (math.sqrt(max(0.0, b * b - 8 * cases * c)) - b) / (4 * cases)
    variance = cases * (2 * q + difference * (1 - difference))
    above = better - worse - cases * difference - correction
    if variance <= 0:
        return math.inf if above > 0 else 0.0
    return above / math.sqrt(variance)


def _clopper_pearson_lower(successes: int, trials: int, alpha: float) -> float:
    """The probability at which P(X >= successes) is alpha, by bisection."""
    if successes == 0:
        return 0.0
    low, high = 0.0, successes / trials
    for _ in range(100):
        middle = (low + high) / 2
        if _tail(successes, trials, middle) < alpha:
            low = middle
        else:
            high = middle
    return low


def _tail(successes: int, trials: int, probability: float) -> float:
    """P(X >= successes) for X ~ Binomial(trials, probability), in logarithms: counts may be large."""
    if probability <= 0:
        return 0.0 if successes else 1.0
    if probability >= 1:
        return 1.0
    p, q = math.log(probability), math.log1p(-probability)
    whole = math.lgamma(trials + 1)
    return math.fsum(
        math.exp(whole - math.lgamma(k + 1) - math.lgamma(trials - k + 1) + k * p + (trials - k) * q)
        for k in range(successes, trials + 1)
    )


def bootstrap(groups: Sequence[Sequence[float]], confidence: float, seed: int = 0) -> tuple[float, float]:
    """(lower bound, p) of the mean of paired differences, by the percentile bootstrap of whole clusters (Efron and
    Tibshirani 1993, chapter 13; Davison and Hinkley 1997, section 3.8), seeded. p is the share of resampled means that
    are not above zero, the sample itself counted as one (Davison and Hinkley, section 4.2). The bound is the mean's own
    when all differences are equal.
    """
    sums = np.array([math.fsum(group) for group in groups])
    sizes = np.array([len(group) for group in groups])
    generator = np.random.default_rng(seed)
    resamples = min(MOST_RESAMPLES, max(RESAMPLES, math.ceil(TAIL / (1 - confidence))))
    means = np.empty(0)
    while len(means) < resamples:
        rows = min(resamples - len(means), max(1, _DRAWN_AT_ONCE // len(groups)))
        drawn = generator.integers(len(groups), size=(rows, len(groups)))
        means = np.append(means, sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    means.sort()
    # What only rounding lifts above zero is not above zero.
    p_value = (int((means <= 1e-12).sum()) + 1) / (resamples + 1)
    return float(means[int((1 - confidence) * resamples)]), p_value
