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
_FINE = 1e-8


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

    def excess(d: float) -> tuple[float, float]:
        # The root of the ratio is almost a straight line in d.
        ratio, slope = _log_ratio(bad, n, bad_stable, n_stable, d)
        root = math.sqrt(max(_TINY, ratio))
        return root - math.sqrt(limit), slope / (2 * root)

    share = (bad + bad_stable + 1) / (n + n_stable + 2)
    reach = 1.1 * math.sqrt(2 * limit * share * (1 - share) * (1 / n + 1 / n_stable))
    return Interval(estimate, _edge(excess, estimate, -1.0, reach), _edge(excess, estimate, 1.0, reach))


def _boundary(information: float, alpha: float) -> float:
    """Largest log-likelihood ratio that is still inside: half the squared number of standard errors."""
    return (1 + 1 / information) * math.log1p(math.sqrt(1 + information) / (2 * alpha))


def _log_ratio(bad: float, n: float, bad_stable: float, n_stable: float, d: float) -> tuple[float, float]:
    """log L(free) - log L(best point with p - p_stable = d), and its derivative in d: by the envelope theorem the slope
    of one arm's own likelihood, of the one whose slope is less steep there and so better known."""
    p = _nuisance(bad, n, bad_stable, n_stable, d)
    q = p + d
    slope = -_slope(bad, n, q) if n_stable * q * (1 - q) > n * p * (1 - p) else _slope(bad_stable, n_stable, p)
    return _loss(bad, n, q) + _loss(bad_stable, n_stable, p), slope


def _slope(bad: float, n: float, p: float) -> float:
    """Derivative of an arm's log-likelihood."""
    return bad / max(p, _TINY) - (n - bad) / max(1 - p, _TINY)


def _nuisance(bad: float, n: float, bad_stable: float, n_stable: float, d: float) -> float:
    """Stable's share that is most likely when the difference is d: the root of the likelihood's cubic between its
    poles (Miettinen & Nurminen 1985, appendix I; the trigonometric form), mended where it cancels."""
    low, high = max(0.0, -d), min(1.0, 1.0 - d)
    cube = n + n_stable
    square = (n + 2 * n_stable) * d - cube - (bad + bad_stable)
    line = (n_stable * d - cube - 2 * bad_stable) * d + bad + bad_stable
    constant = bad_stable * d * (1 - d)
    shift = square / (3 * cube)
    q = shift**3 - square * line / (6 * cube * cube) + constant / (2 * cube)
    spread = shift * shift - line / (3 * cube)
    root = math.copysign(math.sqrt(spread), q) if spread > 0 else 0.0
    if root == 0:
        p = -shift
    else:
        angle = math.acos(max(-1.0, min(1.0, q / root**3)))
        p = 2 * root * math.cos((math.pi + angle) / 3) - shift
    return _polished(bad, n, bad_stable, n_stable, d, min(high, max(low, p)), low, high)


def _polished(
    bad: float, n: float, bad_stable: float, n_stable: float, d: float, p: float, low: float, high: float
) -> float:
    """`p` after Newton's steps on the concave profile's slope, which change it only where the closed form cancels."""
    for _ in range(_BISECTIONS):
        q = p + d
        slope = _slope(bad_stable, n_stable, p) + _slope(bad, n, q)
        bend = bad_stable / max(p * p, _TINY) + (n_stable - bad_stable) / max((1 - p) ** 2, _TINY)
        bend += bad / max(q * q, _TINY) + (n - bad) / max((1 - q) ** 2, _TINY)
        if slope > 0:
            low = p
        else:
            high = p
        step = slope / bend if bend > 0 else 0.0
        following = p + step
        if not low <= following <= high:
            following = (low + high) / 2
        if abs(following - p) < 1e-9 * (following + 1e-3):
            return following
        p = following
    return p


def _loss(bad: float, n: float, p: float) -> float:
    """By how much an arm's log-likelihood is smaller at p than at its best, bad / n."""
    ones = bad * math.log(bad / n / max(p, _TINY)) if bad > 0 else 0.0
    zeros = (n - bad) * math.log((n - bad) / n / max(1 - p, _TINY)) if n > bad else 0.0
    return ones + zeros


def _edge(excess: Callable[[float], tuple[float, float]], inner: float, outer: float, reach: float) -> float:
    """The point between `inner` (excess below 0) and `outer` where it becomes 0; `outer` itself when it never does.
    `excess` gives value and derivative. `reach`: about how far from `inner` it is.

    Newton's steps, kept between the points that are known to be inside and outside; every fifth halves that bracket,
    whatever the curve.
    """
    below, above = inner, outer + (inner - outer) * 1e-9
    bounded = False
    d = inner + math.copysign(min(abs(above - inner), reach), outer - inner)
    for turn in range(5 * _BISECTIONS):
        value, slope = excess(d)
        if value <= 0 and d == above:
            return outer
        step = value / slope if slope else math.inf
        # At a pole a step is short, however far it is to the edge.
        if (abs(value) < 1e-3 and min(abs(value), abs(step)) < _FINE) or abs(above - below) < _FINE:
            return d
        if value > 0:
            above, bounded = d, True
        else:
            below = d
        if turn % 5 < 4 and min(below, above) < d - step < max(below, above):
            d -= step
        else:
            # The far end's ratio is only looked at when the way leads there.
            d = (below + above) / 2 if bounded else above
    return d
