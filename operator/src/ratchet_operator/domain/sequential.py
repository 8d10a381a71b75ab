"""Anytime-valid interval for the difference of two proportions.

Room: operator/domain. Pure.

A rollout is looked at every interval, so an ordinary confidence interval would sooner or later "prove" harm where
there is none. A confidence sequence holds at all looks at once. Ours has two parts:

* the statistic is the profile log-likelihood ratio of the two binomials at a given difference d, with the nuisance
  parameter at its constrained maximum (Miettinen & Nurminen 1985, doi:10.1002/sim.4780040211, who invert the score
  statistic at the same maximum). It needs no estimate of the variance, so zero counts, tiny shares and very unequal
  arms are harmless;
* the boundary is the one-sided normal mixture (Robbins 1970; Howard, Ramdas, McAuliffe & Sekhon 2021,
  doi:10.1214/20-AOS1991), which by the time-uniform central limit theorem holds for such a statistic at all looks
  (Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas 2024, "Time-uniform central limit theory and asymptotic confidence
  sequences", Annals of Statistics).

The error of the difference is a Brownian motion in the time 1/(1/n + 1/n_stable), however the traffic was split and
also when stable's counts stand still (a bake judged against kept figures), so one boundary serves every phase.
The coverage is asymptotic in theory; tests/domain/test_sequential.py measures it by simulation from 20 events an arm.
A regression that begins late is thinned out by all the good events before it, so a second, short-sighted interval
looks at the last events only (`recent_difference`): it is not valid at all looks at once, but so wide that this is
harmless.
Both assume that events are independent; feedback of few, very busy sessions makes them too short.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

ALPHA = 0.05
"""Chance that one end of the interval is ever wrong, over all looks of a step."""
RECENT_ALPHA = 1e-4
"""Chance that one end of a recent window's interval is wrong at one look. Windows overlap, so that the looks of half an
hour are worth some dozens of independent ones; and a false alarm takes an end that is wrong by the margin besides."""
_OPTIMUM = 7.0
"""Information, in units of the mixture's own, at which the boundary is lowest for ALPHA (2.78 standard errors)."""
_TINY = 1e-300
_BISECTIONS = 48


@dataclass(frozen=True)
class Interval:
    """Confidence sequence of p_candidate - p_stable at one look."""

    difference: float
    """Point estimate."""
    lower: float
    """One-sided lower end, in [-1, 1]."""
    upper: float
    """One-sided upper end, in [-1, 1]."""


def difference(
    bad: float, n: float, bad_stable: float, n_stable: float, tuned_for: float = 140.0, alpha: float = ALPHA
) -> Interval:
    """Interval for the candidate's share of bad events minus stable's; each end holds at every look with 1 - alpha.

    Counts need not be whole: Prometheus' increase() extrapolates. `tuned_for`: harmonic size 1/(1/n + 1/n_stable) at
    which the interval is shortest relative to a fixed-size one; it must not depend on the data.
    Raises ValueError unless 0 <= bad <= n and n > 0 in both arms.
    """
    if not (tuned_for > 0 and 0 < alpha < 0.5):
        raise ValueError("tuned_for must be above 0, and alpha between 0 and 0.5")
    _check((bad, n), (bad_stable, n_stable))
    limit = _boundary(_OPTIMUM / (tuned_for * (1 / n + 1 / n_stable)), alpha)
    return _interval(bad, n, bad_stable, n_stable, limit)


def recent_difference(
    bad: float, n: float, bad_stable: float, n_stable: float, alpha: float = RECENT_ALPHA
) -> Interval:
    """The same for events of a window that slides along: an interval of one look (Wilks' theorem for the profile
    likelihood ratio), each end of which is wrong with chance alpha. Raises ValueError like `difference`."""
    if not 0 < alpha < 0.5:
        raise ValueError("alpha must be between 0 and 0.5")
    _check((bad, n), (bad_stable, n_stable))
    return _interval(bad, n, bad_stable, n_stable, NormalDist().inv_cdf(1 - alpha) ** 2 / 2)


def _check(*arms: tuple[float, float]) -> None:
    for b, size in arms:
        if not (math.isfinite(b) and math.isfinite(size) and 0 <= b <= size and size > 0):
            raise ValueError(f"{b} bad events of {size}: counts must satisfy 0 <= bad <= all, with all above 0")


def _interval(bad: float, n: float, bad_stable: float, n_stable: float, limit: float) -> Interval:
    estimate = bad / n - bad_stable / n_stable

    def outside(d: float) -> bool:
        return _log_ratio(bad, n, bad_stable, n_stable, d) > limit

    return Interval(estimate, _edge(outside, estimate, -1.0), _edge(outside, estimate, 1.0))


def _boundary(information: float, alpha: float) -> float:
    """Largest log-likelihood ratio that is still inside: half the squared number of standard errors."""
    return (1 + 1 / information) * math.log1p(math.sqrt(1 + information) / (2 * alpha))


def _log_ratio(bad: float, n: float, bad_stable: float, n_stable: float, d: float) -> float:
    """log L(free) - log L(best point with p - p_stable = d), the nuisance found by bisection of the concave profile."""
    low, high = max(0.0, -d), min(1.0, 1.0 - d)
    for _ in range(_BISECTIONS):
        p = (low + high) / 2
        q = p + d
        slope = bad_stable / max(p, _TINY) - (n_stable - bad_stable) / max(1 - p, _TINY)
        slope += bad / max(q, _TINY) - (n - bad) / max(1 - q, _TINY)
        if slope > 0:
            low = p
        else:
            high = p
    p = (low + high) / 2
    free = _log_likelihood(bad, n, bad / n) + _log_likelihood(bad_stable, n_stable, bad_stable / n_stable)
    return free - _log_likelihood(bad, n, p + d) - _log_likelihood(bad_stable, n_stable, p)


def _log_likelihood(bad: float, n: float, p: float) -> float:
    ones = bad * math.log(max(p, _TINY)) if bad > 0 else 0.0
    zeros = (n - bad) * math.log(max(1 - p, _TINY)) if n > bad else 0.0
    return ones + zeros


def _edge(outside: Callable[[float], bool], inner: float, outer: float) -> float:
    """The point between `inner` (inside) and `outer` where `outside` begins; `outer` itself when it never does."""
    if not outside(outer + (inner - outer) * 1e-9):
        return outer
    for _ in range(_BISECTIONS):
        middle = (inner + outer) / 2
        if outside(middle):
            outer = middle
        else:
            inner = middle
        if abs(outer - inner) < 1e-7:
            break
    return (inner + outer) / 2
