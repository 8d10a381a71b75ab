"""How much error rate a target suite has left for the next version that is judged by it.

Room: operator/domain. Pure.

Whoever tries often enough passes any test once. So the k-th version that is judged by the same cases gets only a part
of alpha = 1 - confidence: alpha / (k (k + 1)), a series whose sum is alpha, and on top of it the whole rate of the
version before it if that one was proven better. This is the online fallback procedure (Tian and Ramdas 2021,
"Online control of the familywise error rate", Statistical Methods in Medical Research 30:976-993): the chance that any
of all these versions is wrongly taken for better stays at or below alpha, however their results depend on each other.

The level is decided here and nowhere else. It is handed to the evaluate stage, which reports its bound and power at
that level, and comes back with the report. When other versions were judged in the meantime it is another one by then,
and the report is made anew.
"""

from collections.abc import Iterable, Sequence
from decimal import ROUND_DOWN, Decimal

from ratchet_api.evaluation import EvaluationPolicy
from ratchet_api.stage import Level, Levels
from ratchet_api.version import Look, ModelVersion, SuiteResult

_PLACES = Decimal("0.000000000001")


def level(alpha: Decimal, earlier: Iterable[Look]) -> Level:
    """The next level after `earlier` looks at the same cases; only the last one of them matters."""
    last = max(earlier, key=lambda look: look.number, default=None)
    number = 1 if last is None else last.number + 1
    share = alpha / (number * (number + 1))
    back = last.alpha if last is not None and last.proven else Decimal(0)
    return Level(number=number, alpha=min(alpha, share + back).quantize(_PLACES, rounding=ROUND_DOWN))


def levels(policy: EvaluationPolicy, name: str, cycle: Iterable[ModelVersion]) -> Levels:
    """What the version of that name may spend. `cycle`: the cycle's versions, with what they spent.

    A version that is evaluated again, against another champion, goes on with its own look: only the last of its
    evaluations is acted on. Once another version has looked at the cases since, it is a new look, because what the
    first one won was handed on to that version.
    """
    alpha = 1 - policy.confidence
    last: dict[str, tuple[Look, bool]] = {}
    for version in cycle:
        for look in version.status.looks:
            if look.digest not in last or look.number > last[look.digest][0].number:
                last[look.digest] = look, version.metadata.name == name
    known = {
        digest: Level(number=look.number, alpha=look.alpha) if own else level(alpha, [look])
        for digest, (look, own) in last.items()
    }
    return Levels(fresh=level(alpha, []), known=known)


def reported(result: SuiteResult) -> Level | None:
    """The level that a report speaks of; None for what is no target, or does not say."""
    if result.role != "target" or result.look is None or result.alpha is None:
        return None
    return Level(number=result.look, alpha=result.alpha)


def overtaken(results: Sequence[SuiteResult], given: Levels) -> bool:
    """Whether a report speaks of levels that are no longer those that its cases have left."""
    return any(
        found is not None and result.digest is not None and found != given.of(result.digest)
        for result in results
        for found in [reported(result)]
    )


def proven(result: SuiteResult, found: Level) -> bool:
    """Whether a target is better, for the error rate that is left."""
    return result.lower_bound > 0 and result.p_value < found.alpha


def spent(results: Sequence[SuiteResult], before: Sequence[Look]) -> list[Look]:
    """A version's looks after this report; of the same cases only the last one is kept."""
    new = [
        Look(
            suite=result.name,
            digest=result.digest,
            number=found.number,
            alpha=found.alpha,
            proven=proven(result, found),
        )
        for result in results
        for found in [reported(result)]
        if found is not None and result.digest is not None
    ]
    digests = {look.digest for look in new}
    return [*(look for look in before if look.digest not in digests), *new][-12:]
