"""The A/B test of a rollout: at one weight until an outcome says better, not worse or worse, or the time is over.

Room: operator/domain. Pure.

Both ends of domain.sequential's interval hold at all looks at once, so that the test may be looked at every interval
and stops at the first look that proves something (anytime-valid inference: Johari, Koomen, Pekelis & Walsh 2022,
"Always valid inference", Operations Research, doi:10.1287/opre.2021.2135). Each end is wrong with at most
sequential.ALPHA, whenever the test is stopped. What the rules say, in this order, with the interval of
candidate - stable in shares of good outcomes:

    Worse         upper end below 0 (Superior), or below -margin (NonInferior): rolled back
    Better        lower end above 0: promoted
    NotWorse      the time is over, NonInferior, and the lower end is above -margin: promoted
    Inconclusive  the time is over: back to stable, without blame

A look that saw nothing decides nothing. The time being over is an answer only to a look that saw something, or when
none has for rollout.unknownLimit looks in a row.
"""

from datetime import datetime
from decimal import Decimal

from ratchet_api.ab_test import AbTest, AbTestStatus, AbVerdict
from ratchet_api.base import format_duration
from ratchet_api.cycle import Check, RolloutDecision, RolloutStatus
from ratchet_api.reasons import Reason
from ratchet_api.rollout import Metric, Rollout
from ratchet_operator.domain.analysis import ArmReadings, judge, kind_of

OUTCOME = "abTest"
"""Name of the outcome among the metrics; no metric of a person's can have a capital letter."""
_FINEST = 0.005
"""Smallest margin that the interval is tuned for."""


def test_of(spec: Rollout) -> AbTest:
    """The test's settings."""
    return spec.ab_test or AbTest()


def running(status: RolloutStatus, spec: Rollout) -> bool:
    """Whether the split is that of a test which has yet to be left."""
    return spec.strategy == "abTest" and status.phase == "Canary" and status.weight < 100


def undecided(status: RolloutStatus, spec: Rollout) -> bool:
    """Whether the test is still looking for its answer."""
    return running(status, spec) and (status.ab_test is None or status.ab_test.verdict == "Undecided")


def lets_go_on(status: RolloutStatus, spec: Rollout) -> bool:
    """Whether nothing but the checks keeps the candidate from all traffic."""
    seen = status.ab_test
    return not running(status, spec) or (seen is not None and seen.verdict in ("Better", "NotWorse"))


def outcome(spec: Rollout) -> Metric:
    """The outcome as a proportion to be asked for like any metric; `bad` are the events that it counts.

    Raises ValueError (a sentence) when it names no proportion of rollout.metrics.
    """
    wanted = test_of(spec).outcome
    if wanted.good is not None:
        # Inline queries count the good ones, a metric counts the bad ones; see `_looked`.
        return Metric.model_construct(name=OUTCOME, kind="proportion", bad=wanted.good, all=wanted.all)
    if wanted.metric is None:
        return Metric.model_construct(name=OUTCOME, preset="feedback")
    found = next((metric for metric in spec.metrics if metric.name == wanted.metric), None)
    if found is None or kind_of(found) != "proportion":
        raise ValueError(f"rollout.abTest.outcome.metric: {wanted.metric} is no proportion of rollout.metrics")
    return found.model_copy(update={"name": OUTCOME})


def look(spec: Rollout, candidate: ArmReadings, stable: ArmReadings, now: datetime) -> Check:
    """One look at the outcome. Raises ValueError like `outcome`."""
    test = test_of(spec)
    metric = outcome(spec).model_copy(update={"min_samples": test.min_samples, "margin": test.margin})
    # Tightest at the size at which a share of one half is known to within the margin.
    sure = 0.25 * (2.8 / max(_FINEST, float(test.margin))) ** 2
    return judge(metric, candidate, stable, now, tuned_for=max(0.5 * test.min_samples, sure))


def measured(status: RolloutStatus, spec: Rollout, seen: Check | None, suspended: bool, now: datetime) -> RolloutStatus:
    """With a fresh look at the outcome, and with what the rules make of it."""
    if seen is None or not running(status, spec):
        return status
    earlier = status.ab_test
    if earlier is not None and earlier.measured_at == seen.measured_at:
        return status
    fresh = _looked(test_of(spec), seen, earlier)
    over = not suspended and now - status.step_since >= test_of(spec).max_duration
    verdict, words = _verdict(test_of(spec), fresh, over, spec.unknown_limit)
    decided = earlier is not None and earlier.verdict in ("Better", "NotWorse")
    if earlier is not None and decided and verdict != "Worse":
        # A boundary once crossed stays crossed; what is awaited now (a check, a person) is not the outcome.
        kept = {"verdict": earlier.verdict, "rule": earlier.rule, "decided_at": earlier.decided_at}
        return status.model_copy(update={"ab_test": fresh.model_copy(update=kept)})
    ended = {"verdict": verdict, "rule": words, "decided_at": None if verdict == "Undecided" else now}
    return status.model_copy(update={"ab_test": fresh.model_copy(update=ended)})


def decision(status: RolloutStatus, spec: Rollout, now: datetime) -> RolloutDecision | None:
    """What ends the rollout here: Worse and Inconclusive."""
    seen = status.ab_test
    if seen is None or not running(status, spec):
        return None
    if seen.verdict == "Worse":
        return RolloutDecision(
            outcome="RolledBack", reason=Reason.OUTCOME_WORSE, check=OUTCOME, message=_evidence(seen), at=now
        )
    if seen.verdict == "Inconclusive":
        return RolloutDecision(
            outcome="Returned", reason=Reason.INCONCLUSIVE, check=OUTCOME, message=_evidence(seen), at=now
        )
    return None


def blind(status: RolloutStatus, spec: Rollout) -> str | None:
    """A sentence when the outcome could not be looked at for more than rollout.unknownLimit looks in a row."""
    seen = status.ab_test
    if seen is None or not undecided(status, spec) or seen.unknowns <= spec.unknown_limit:
        return None
    return f"{seen.message} ({seen.unknowns} times in a row)"


def evidence(status: RolloutStatus) -> str:
    """The answer with its figures; empty without one."""
    seen = status.ab_test
    return "" if seen is None or not seen.rule else _evidence(seen)


def _evidence(seen: AbTestStatus) -> str:
    return f"{seen.rule}: {seen.message}"


def _looked(test: AbTest, seen: Check, earlier: AbTestStatus | None) -> AbTestStatus:
    if seen.verdict == "Unknown":
        blind = seen.reason != "TooFewSamples"
        return AbTestStatus(
            message=seen.message,
            reason=seen.reason,
            candidate_samples=seen.candidate_samples,
            stable_samples=seen.stable_samples,
            unknowns=(earlier.unknowns if earlier is not None else 0) + 1 if blind else 0,
            measured_at=seen.measured_at,
        )
    ours, theirs, lower, upper = (x or Decimal(0) for x in (seen.candidate, seen.stable, seen.lower, seen.upper))
    if test.outcome.good is None:
        ours, theirs, lower, upper = 1 - ours, 1 - theirs, -upper, -lower
    shares = [f"{100 * x:.1f}" for x in (ours, theirs)]
    gap, low, high = (f"{100 * x:+.1f}" for x in (ours - theirs, lower, upper))
    return AbTestStatus(
        message=f"{_name(test)} {shares[0]} % (n {seen.candidate_samples}) vs {shares[1]} % stable "
        f"(n {seen.stable_samples}): {gap} points [{low}, {high}]",
        candidate=ours,
        stable=theirs,
        difference=ours - theirs,
        lower=lower,
        upper=upper,
        candidate_samples=seen.candidate_samples,
        stable_samples=seen.stable_samples,
        measured_at=seen.measured_at,
    )


def _name(test: AbTest) -> str:
    if test.outcome.good is not None:
        return "good outcomes"
    return "thumbs-up" if test.outcome.metric is None else f"{test.outcome.metric} good"


def _verdict(test: AbTest, seen: AbTestStatus, over: bool, unknown_limit: int) -> tuple[AbVerdict, str]:
    long = format_duration(test.max_duration)
    if seen.lower is None or seen.upper is None:
        saw = seen.reason == "TooFewSamples"
        if over and (saw or seen.unknowns > unknown_limit):
            why = "too few outcomes" if saw else "the outcome cannot be seen"
            return "Inconclusive", f"the test's {long} are over, and {why}"
        return "Undecided", ""
    superior = test.assurance == "Superior"
    margin = Decimal(0) if superior else test.margin
    if seen.upper < -margin:
        return "Worse", "proven worse" + ("" if superior else f" by more than {_points(margin)} points")
    if seen.lower > 0:
        return "Better", "proven better"
    if not over:
        return "Undecided", ""
    if not superior and seen.lower > -margin:
        return "NotWorse", f"the test's {long} are over, and it is proven not worse by {_points(margin)} points"
    wanted = "better" if superior else f"better, or not worse by {_points(margin)} points"
    return "Inconclusive", f"the test's {long} are over, and it is not proven {wanted}"


def _points(margin: Decimal) -> str:
    return f"{float(100 * margin):g}"
