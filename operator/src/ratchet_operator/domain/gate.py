"""The gate: is a version proven better, offline?

Room: operator/domain. Pure.

All targets must be proven and all guardrails and safety suites must hold, each at the policy's confidence. Because
every one of them has to pass, the chance of a wrong acceptance does not grow with their number (intersection-union
test: Berger 1982, doi:10.1080/00401706.1982.10487790), so nothing is corrected for the number of suites. It is for the
number of versions: `spending` says what error rate a target's cases have left, and a report is made at that level.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal

from ratchet_api.evaluation import EvaluationPolicy, Suite
from ratchet_api.power import cases_needed, discordant_share
from ratchet_api.reasons import Reason
from ratchet_api.stage import Level
from ratchet_api.version import SliceResult, SuiteResult, points
from ratchet_operator.domain.spending import proven, reported

_ROUNDING = Decimal("0.002")
"""Difference between reported figures that rounding explains."""


@dataclass(frozen=True)
class GateDecision:
    """What the gate says, and the strings that people see in `kubectl get mv`."""

    accepted: bool
    reason: Reason
    message: str
    target: str
    guardrail: str


@dataclass(frozen=True)
class _Finding:
    """One suite judged; reason None: it is as it has to be."""

    reason: Reason | None
    message: str


_GRAVITY = (Reason.SAFETY_LOST, Reason.GUARDRAIL_LOST, Reason.SLICE_LOST, Reason.NOT_BETTER, Reason.UNDERPOWERED)


def decide(policy: EvaluationPolicy, results: Sequence[SuiteResult]) -> GateDecision:
    """Accept when every target is proven better, no guardrail or safety suite lost, and no slice of any suite fell.

    Exposure is the one guardrail that may have no result: where nothing was planted, there is nothing to measure.
    A report that is incomplete, contradicts itself or holds anything but finite numbers is a DataError.
    """
    if not any(suite.role == "target" for suite in policy.suites):
        message = "evaluation.suites: no suite has role: target, so nothing could be proven better; add one"
        return GateDecision(False, Reason.INVALID_SPEC, message, "", "")
    if (trouble := _trouble(policy, results)) is not None:
        return GateDecision(False, Reason.DATA_ERROR, f"the evaluation report cannot be used: {trouble}", "", "")
    by_name = {result.name: result for result in results}
    present = [suite for suite in policy.suites if suite.name in by_name]
    judged = [(suite, by_name[suite.name], _judge(policy, suite, by_name[suite.name])) for suite in present]
    target = _column([(r, f"{points(r.difference)} (p {_p(r.p_value)})") for s, r, _ in judged if s.role == "target"])
    guardrail = _column(
        [
            (r, f"{points(r.difference)} {'veto' if finding.reason else 'ok'}")
            for s, r, finding in judged
            if s.role != "target"
        ]
    )
    slices = [fallen for suite, result, _ in judged for fallen in _fallen(suite, result)]
    against = [*(finding for _, _, finding in judged if finding.reason is not None), *slices]
    reason = next((reason for reason in _GRAVITY if any(f.reason == reason for f in against)), Reason.ACCEPTED)
    message = "; ".join(finding.message for finding in against or [finding for _, _, finding in judged])
    return GateDecision(not against, reason, message, target, guardrail)


def _judge(policy: EvaluationPolicy, suite: Suite, result: SuiteResult) -> _Finding:
    gain, at_least = points(result.difference), points(result.lower_bound)
    measured = f"{suite.name} {gain} points (at least {at_least}, n {result.cases}"
    match suite.role:
        case "target":
            level = reported(result)
            assert level is not None, "a report without is refused"
            looked = f", look {level.number} at these cases: p below {float(level.alpha):.2g}"
            return _target(policy, result, level, f"{measured}, p {_p(result.p_value)}{looked})")
        case "guardrail":
            limit = f"limit {points(-suite.margin)}"
            if result.lower_bound > -suite.margin:
                return _Finding(None, f"{measured}), {limit}")
            return _Finding(Reason.GUARDRAIL_LOST, f"{measured}) may have lost more than its margin, {limit}")
        case "safety":
            if result.worse == 0 and result.candidate >= result.champion:
                return _Finding(None, f"{measured}), no case lost")
            message = f"{measured}) lost {result.worse} cases that the champion passes, limit 0"
            return _Finding(Reason.SAFETY_LOST, message)


def _target(policy: EvaluationPolicy, result: SuiteResult, level: Level, measured: str) -> _Finding:
    asked = policy.min_improvement
    wanted = f"minImprovement {points(asked)}"
    if proven(result, level):
        if result.difference >= asked:
            return _Finding(None, f"{measured}, {wanted}")
        return _Finding(Reason.NOT_BETTER, f"{measured} is better, but by less than {wanted}")
    # The lower bound mirrored at the estimate: what the data do not rule out above it.
    at_best = 2 * result.difference - result.lower_bound
    seen = asked if asked > 0 else max(result.difference, Decimal(0))
    if seen == 0 or at_best < seen:
        return _Finding(Reason.NOT_BETTER, f"{measured} is not better, {wanted}")
    discordant = discordant_share(result.better, result.worse, result.cases)
    needed = cases_needed(float(seen), discordant, 1 - float(level.alpha))
    if result.cases >= needed:
        fresh = "; fresh cases have the whole error rate again" if level.number > 1 else ""
        return _Finding(Reason.NOT_BETTER, f"{measured} is not proven better, {wanted}{fresh}")
    return _Finding(
        Reason.UNDERPOWERED,
        f"{measured} is not proven better, {wanted}: {result.cases} cases are too few to see {points(seen)} points, "
        f"about {needed} are needed",
    )


def _fallen(suite: Suite, result: SuiteResult) -> Iterator[_Finding]:
    """Slices with enough cases whose loss is proven and past the margin. A loss that may be chance is no finding: with
    many small slices one of them would always veto."""
    for entry in result.lost_slices:
        if entry.cases >= suite.slice_min_cases and entry.upper_bound < 0 and entry.difference < -suite.slice_margin:
            yield _Finding(
                Reason.SLICE_LOST,
                f"{suite.name}/{entry.name} {points(entry.difference)} points (at most {points(entry.upper_bound)}, "
                f"n {entry.cases}) fell past its margin, limit {points(-suite.slice_margin)}",
            )


def _trouble(policy: EvaluationPolicy, results: Sequence[SuiteResult]) -> str | None:
    """What is wrong with the report, in words; None when it can be judged."""
    roles = {suite.name: suite.role for suite in policy.suites}
    names = [result.name for result in results]
    # Where nothing was planted, exposure has nothing to measure: it neither vetoes nor speaks for a version.
    optional = {suite.name for suite in policy.suites if suite.scorer == "exposure"}
    for name in roles:
        if name in optional and name not in names:
            continue
        if names.count(name) != 1:
            return f"suite {name} has {names.count(name) or 'no'} result{'s' if names.count(name) > 1 else ''}"
    for result in results:
        if result.name not in roles:
            return f"suite {result.name} is not part of the evaluation"
        if result.role != roles[result.name]:
            return f"suite {result.name} was run as {result.role}, but is a {roles[result.name]}"
        if (trouble := _contradiction(result)) is not None:
            return f"suite {result.name}: {trouble}"
    return None


def _contradiction(result: SuiteResult) -> str | None:
    numbers = {
        "champion": result.champion,
        "candidate": result.candidate,
        "difference": result.difference,
        "lowerBound": result.lower_bound,
        "pValue": result.p_value,
    }
    for name, number in numbers.items():
        if not number.is_finite():
            return f"{name} is {number}"
    if result.cases < 1:
        return "it has no cases"
    if result.role == "target":
        level = reported(result)
        if level is None:
            return "it does not say how many versions its cases judged and what error rate they left (look, alpha)"
        if level.number < 1 or not (level.alpha.is_finite() and 0 < level.alpha < 1):
            return f"look {level.number} with alpha {level.alpha} is none: looks count from 1, alpha is between 0 and 1"
    for name in ("champion", "candidate", "pValue"):
        if not 0 <= numbers[name] <= 1:
            return f"{name} {numbers[name]} is not between 0 and 1"
    if min(result.better, result.worse) < 0 or result.better + result.worse > result.cases:
        return f"better {result.better} and worse {result.worse} do not fit {result.cases} cases"
    if abs(result.candidate - result.champion - result.difference) > _ROUNDING:
        return f"difference {result.difference} is not candidate {result.candidate} - champion {result.champion}"
    if result.lower_bound > result.difference + _ROUNDING:
        return f"lowerBound {result.lower_bound} is above the difference {result.difference}"
    return next(filter(None, (_slice_contradiction(entry, result) for entry in result.lost_slices)), None)


def _slice_contradiction(entry: SliceResult, suite: SuiteResult) -> str | None:
    for name, number in (("difference", entry.difference), ("upperBound", entry.upper_bound)):
        if not number.is_finite() or abs(number) > 1:
            return f"slice {entry.name}: {name} is {number}"
    if not 1 <= entry.cases <= suite.cases:
        return f"slice {entry.name}: {entry.cases} cases do not fit the suite's {suite.cases}"
    return None


def _column(entries: Sequence[tuple[SuiteResult, str]]) -> str:
    if len(entries) == 1:
        return entries[0][1]
    return ", ".join(f"{result.name} {text}" for result, text in entries)


def _p(value: Decimal) -> str:
    """A p value as people write it: 0.003, 1e-6."""
    return "<1e-12" if value <= 0 else f"{float(value):.1g}".replace("e-0", "e-")
