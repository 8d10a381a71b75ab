"""Paired statistics of two models over the same cases.

Room: trainer. Pure; the standard library only, so that whoever doubts a number can read how it came about.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

RESAMPLES = 10_000


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

    @property
    def difference(self) -> float:
        """candidate - champion."""
        return self.candidate - self.champion


def compare(champion: Sequence[float], candidate: Sequence[float], confidence: float, seed: int = 0) -> Paired:
    """Paired comparison of scores in [0, 1], case by case.

    Pass/fail scores: exact McNemar test and score interval; others: paired bootstrap. Raises ValueError for no cases,
    unequal lengths, scores outside [0, 1] or a confidence outside [0.5, 1).
    """
    if len(champion) != len(candidate) or not champion:
        raise ValueError("both sides need a score for every case, and there must be at least one case")
    if not all(0 <= score <= 1 for score in (*champion, *candidate)):
        raise ValueError("scores must be between 0 and 1")
    if not 0.5 <= confidence < 1:
        raise ValueError("confidence must be at least 0.5 and below 1")
    n = len(champion)
    better = sum(b > a for a, b in zip(champion, candidate, strict=True))
    worse = sum(b < a for a, b in zip(champion, candidate, strict=True))
    if all(score in (0, 1) for score in (*champion, *candidate)):
        lower, p_value = lower_bound(better, worse, n, confidence), mcnemar(better, worse)
    else:
        differences = [b - a for a, b in zip(champion, candidate, strict=True)]
        lower, p_value = bootstrap(differences, confidence, seed)
    return Paired(n, math.fsum(champion) / n, math.fsum(candidate) / n, lower, p_value, better, worse)


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
    for none that differ: no discordant pair among 30 cases does not prove a loss of less than 8 points. Above zero it
    is capped by the exact conditional bound (Clopper and Pearson 1934, on the discordant pairs), but not below zero, so
    that bound and exact test never disagree: it is above zero if and only if the one-sided McNemar p is below
    1 - confidence.
    """
    tango = tango_lower(better, worse, cases, confidence)
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
    z = NormalDist().inv_cdf(confidence)
    low, high = -1.0, (better - worse) / cases
    for _ in range(100):
        middle = (low + high) / 2
        if _tango_score(better, worse, cases, middle) >= z:
            low = middle
        else:
            high = middle
    return low


def _tango_score(better: int, worse: int, cases: int, difference: float) -> float:
    b = (2 * cases - better + worse) * difference - better - worse
    c = -worse * difference * (1 - difference)
    q = (math.sqrt(max(0.0, b * b - 8 * cases * c)) - b) / (4 * cases)
    variance = cases * (2 * q + difference * (1 - difference))
    above = better - worse - cases * difference
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


def bootstrap(differences: Sequence[float], confidence: float, seed: int = 0) -> tuple[float, float]:
    """(lower bound, p) of the mean of paired differences, by the percentile bootstrap (Efron and Tibshirani 1993,
    chapter 13), seeded. p is the share of resampled means that are not above zero, the sample itself counted as one
    (Davison and Hinkley 1997, section 4.2). The bound is the mean's own when all differences are equal.
    """
    n = len(differences)
    generator = random.Random(seed)
    means = sorted(math.fsum(generator.choices(differences, k=n)) / n for _ in range(RESAMPLES))
    at_or_below = sum(mean <= 0 for mean in means)
    p_value = (at_or_below + 1) / (RESAMPLES + 1)
    return means[int((1 - confidence) * RESAMPLES)], p_value
