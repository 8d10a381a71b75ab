"""Anytime-valid interval for the difference of two proportions.

Room: operator/domain. Pure.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """Confidence sequence of p_candidate - p_stable at one look."""

    difference: float
    lower: float
    upper: float


def difference(bad: float, n: float, bad_stable: float, n_stable: float, alpha: float = 0.05) -> Interval:
    """Each end holds at every look at once with probability 1 - alpha."""
    raise NotImplementedError
