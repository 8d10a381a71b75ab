"""How much error rate a target suite has left for the next version that is judged by it.

Room: operator/domain. Pure.

Whoever tries often enough passes any test once. So the k-th version that is judged by the same cases gets only a part
of alpha = 1 - confidence: alpha / (k (k + 1)), a series whose sum is alpha, and on top of it the whole rate of the
version before it if that one was proven better. This is the online fallback procedure (Tian and Ramdas 2021,
"Online control of the familywise error rate", Statistical Methods in Medical Research 30:976-993): the chance that any
of all these versions is wrongly taken for better stays at or below alpha, however their results depend on each other.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_DOWN, Decimal

from ratchet_api.evaluation import EvaluationPolicy
from ratchet_api.version import Look, ModelVersion, SuiteResult

_PLACES = Decimal("0.000000000001")


@dataclass(frozen=True)
class Level:
    """What the next look at a suite may cost."""

    number: int
    """The look's, from 1."""
    alpha: Decimal
    """Its error rate."""


def level(alpha: Decimal, earlier: Iterable[Look]) -> Level:
    """The next level after `earlier` looks at the same cases; only the last one of them matters."""
    last = max(earlier, key=lambda look: look.number, default=None)
    number = 1 if last is None else last.number + 1
    share = alpha / (number * (number + 1))
    back = last.alpha if last is not None and last.proven else Decimal(0)
    return Level(number, min(alpha, share + back).quantize(_PLACES, rounding=ROUND_DOWN))


def levels(policy: EvaluationPolicy, results: Sequence[SuiteResult], cycle: Iterable[ModelVersion]) -> dict[str, Level]:
    """By name, the levels of the targets in a report. `cycle`: the cycle's versions, with what they spent."""
    looks = [look for version in cycle for look in version.status.looks]
    return {
        result.name: level(1 - policy.confidence, [look for look in looks if look.digest == result.digest])
        for result in results
        if result.role == "target" and result.digest is not None
    }


def proven(result: SuiteResult, found: Level) -> bool:
    """Whether a target is better, for the error rate that is left."""
    return result.lower_bound > 0 and result.p_value < found.alpha


def spent(results: Sequence[SuiteResult], given: Mapping[str, Level], before: Sequence[Look]) -> list[Look]:
    """A version's looks after this report; of the same cases only the last one is kept."""
    new = [
        Look(
            suite=result.name,
            digest=result.digest,
            number=given[result.name].number,
            alpha=given[result.name].alpha,
            proven=proven(result, given[result.name]),
        )
        for result in results
        if result.name in given and result.digest is not None
    ]
    digests = {look.digest for look in new}
    return [*(look for look in before if look.digest not in digests), *new][-12:]
