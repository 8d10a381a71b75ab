"""Properties of the rollout's machine, over statuses that can and that cannot be reached."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from ratchet_api.cycle import Check, Reference, RolloutStatus
from ratchet_api.reasons import Reason
from ratchet_api.rollout import Metric, Rollout, Step
from ratchet_operator.domain import rollout
from ratchet_operator.domain.rollout import ArmObservation, Move, RolloutObservation

from .support import DIGEST, FEEDBACK, NOW, P95, after, arm, canary, passes, policy, seen

seconds = st.sampled_from([-4000, -1, 0, 10, 60, 70, 300, 4000]) | st.integers(-4000, 4000)
times = seconds.map(after)
maybe = st.none() | times
weights = st.sampled_from([0, 5, 37, 50, 100])
# Random statuses mostly end in a hard trigger; so that rises and promotions are seen as well, good news is more common.
verdicts = st.sampled_from(["Pass", "Pass", "Pass", "Fail", "Unknown"])
seldom = st.sampled_from([False, False, False, False, False, True])
tame = st.sampled_from([True, True, False])
reasons = st.sampled_from(["NoData", "TooFewSamples", "QueryError", "Stale", "ManySeries"])
references = st.none() | st.builds(Reference, value=st.just("0.2"), samples=st.just(400), at=times)


@st.composite
def checks(draw: st.DrawFn, name: str, at: datetime | None = None) -> Check:
    """One metric's state, as a status may hold it or (with `at`) as a look gives it."""
    verdict = draw(verdicts)
    fresh: dict[str, Any] = (
        {}
        if at is not None
        else {
            "passes": draw(st.integers(0, 4)),
            "failures": draw(st.integers(0, 4)),
            "unknowns": draw(st.integers(0, 9)),
            "passed_at": draw(maybe),
            "first_failed_at": draw(maybe),
            "reference": draw(references),
        }
    )
    return Check(
        name=name,
        verdict=verdict,
        reason=draw(reasons) if verdict == "Unknown" else "",
        message=f"{name}: {verdict}",
        measured_at=at or draw(times),
        **fresh,
    )


@st.composite
def statuses(draw: st.DrawFn) -> RolloutStatus:
    """Anything that a status may hold, sense or nonsense."""
    phase = draw(st.sampled_from(["Starting", "Canary", "Baking", "RollingBack", "Done"]))
    decided = draw(st.booleans()) if phase in ("RollingBack", "Done") else False
    decision = {"outcome": "RolledBack", "reason": "CheckFailed", "message": "x", "at": NOW}
    return RolloutStatus.model_validate(
        {
            "version": "assistant-7",
            "digest": DIGEST,
            "phase": phase,
            "step": draw(st.integers(-1, 9)),
            "weight": draw(weights),
            "started_at": draw(times),
            "step_since": draw(times),
            "unconfirmed_since": draw(seldom.flatmap(lambda yes: times if yes else st.none())),
            "unready_since": draw(maybe),
            "held_since": draw(seldom.flatmap(lambda yes: times if yes else st.none())),
            "known_good": draw(st.booleans()),
            "checks": [draw(checks(name)) for name in draw(st.sets(st.sampled_from(["feedback", "p95", "gone"])))],
            "measured_at": draw(maybe),
            "decision": decision if decided else None,
            "weight_zero_at": draw(maybe) if phase == "Done" else None,
        }
    )


@st.composite
def specs(draw: st.DrawFn) -> Rollout:
    """Policies, also such as the API server would refuse (weights that do not rise or do not end at 100)."""
    steps = draw(st.lists(st.integers(1, 100), min_size=1, max_size=4))
    metrics: list[Metric] = draw(st.sampled_from([[FEEDBACK], [FEEDBACK, P95]]))
    short = st.integers(0, 900).map(lambda s: timedelta(seconds=s))
    return policy(
        steps=[Step(weight=w, min_time=draw(short)) for w in steps],
        metrics=metrics,
        interval=draw(short),
        window=timedelta(minutes=5),
        failure_limit=draw(st.integers(0, 3)),
        unknown_limit=draw(st.integers(0, 5)),
        max_hold=draw(short),
        progress_deadline=draw(short),
        bake=draw(short),
    )


healthy = st.just(arm())
arms = (
    healthy
    | healthy
    | st.builds(
        ArmObservation,
        exists=st.booleans(),
        replicas=st.integers(0, 3),
        ready=st.integers(0, 3),
        serves_model=st.sampled_from([True, False, None]),
        failure=st.none() | st.just("crash loop"),
        waiting=st.none() | st.just("unschedulable"),
    )
)


@st.composite
def observations(draw: st.DrawFn, at: datetime | None = None) -> RolloutObservation:
    """Anything that may be seen."""
    look = at or draw(times)
    found = draw(tame)
    return RolloutObservation(
        stable=draw(arms),
        candidate=draw(arms),
        observed_weight=draw(st.none() | weights),
        checks=tuple(draw(checks(name, look)) for name in ("feedback", "p95")) if found else None,
        abort=draw(seldom),
        suspended=draw(seldom),
    )


@st.composite
def situations(draw: st.DrawFn) -> tuple[RolloutStatus, Rollout, RolloutObservation, datetime]:
    """A status, a policy, what is seen and when; most often the weight asked for is in force."""
    status, observation = draw(statuses()), draw(observations())
    if draw(tame):
        observation = replace(observation, observed_weight=status.weight)
    return status, draw(specs()), observation, draw(times)


def in_any_situation(
    test: Callable[[RolloutStatus, Rollout, RolloutObservation, datetime], None],
) -> Callable[[], None]:
    """Runs the test in many situations."""

    @settings(max_examples=150)
    @given(situations())
    def run(situation: tuple[RolloutStatus, Rollout, RolloutObservation, datetime]) -> None:
        test(*situation)

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@in_any_situation
def test_advance_is_total(status: RolloutStatus, spec: Rollout, seen: RolloutObservation, now: datetime) -> None:
    move = rollout.advance(status, spec, seen, now)
    assert move.weight == move.status.weight
    assert 0 <= move.weight <= 100
    assert (move.wake_at is None) == (move.status.phase == "Done")
    assert move.wake_at is None or move.wake_at > now
    assert RolloutStatus.model_validate(move.status.dump()) == move.status
    assert isinstance(rollout.measurement_due(status, spec, now), bool)


@given(statuses().filter(lambda s: s.phase == "Done"), specs(), observations(), times)
def test_done_absorbs(status: RolloutStatus, spec: Rollout, seen: RolloutObservation, now: datetime) -> None:
    assert rollout.advance(status, spec, seen, now) == Move(status, status.weight)
    assert not rollout.measurement_due(status, spec, now)


@in_any_situation
def test_what_has_to_be_true_for_more_weight(
    status: RolloutStatus, spec: Rollout, seen: RolloutObservation, now: datetime
) -> None:
    move = rollout.advance(status, spec, seen, now)
    if move.weight <= status.weight or status.phase == "Starting":
        return
    assert status.phase == "Canary"
    assert seen.checks is not None
    fresh = {check.name: check for check in seen.checks}
    before = {check.name: check for check in status.checks}
    for metric in spec.metrics:
        last = fresh[metric.name]
        passed = metric.name in before and before[metric.name].passes > 0
        assert last.verdict == "Pass" or (last.reason == "TooFewSamples" and passed)
    assert not seen.suspended
    assert not seen.abort
    assert seen.observed_weight == status.weight
    assert seen.candidate.ready >= seen.candidate.replicas
    assert now >= status.step_since


@in_any_situation
def test_what_has_to_be_true_to_be_champion(
    status: RolloutStatus, spec: Rollout, seen: RolloutObservation, now: datetime
) -> None:
    move = rollout.advance(status, spec, seen, now)
    if status.phase == "Done" or move.status.decision is None or move.status.decision.outcome != "Promoted":
        return
    assert status.phase == "Baking"
    assert move.status.phase == "Done"
    assert now - status.step_since >= spec.bake
    assert seen.checks is not None
    before = {check.name: check for check in status.checks}
    for check in seen.checks:
        if check.name in {metric.name for metric in spec.metrics}:
            earlier = check.name in before and before[check.name].passed_at is not None
            assert check.verdict == "Pass" or (check.reason == "TooFewSamples" and earlier)
    assert not seen.suspended
    assert not seen.abort


@in_any_situation
def test_what_has_to_be_true_for_blame(
    status: RolloutStatus, spec: Rollout, seen: RolloutObservation, now: datetime
) -> None:
    move = rollout.advance(status, spec, seen, now)
    if status.phase in ("RollingBack", "Done") or move.status.decision is None:
        return
    decision = move.status.decision
    if decision.outcome != "RolledBack":
        return
    failing = {check.name for check in (*status.checks, *(seen.checks or ())) if check.verdict == "Fail"}
    match decision.reason:
        case Reason.ABORTED:
            assert seen.abort
        case Reason.CHECK_FAILED:
            assert decision.check in failing
            assert decision.regression_seen_at is None or decision.message
        case Reason.ARM_FAILED | Reason.ADAPTER_NOT_SERVED | Reason.ARM_NOT_READY:
            assert seen.candidate.failure or seen.candidate.serves_model is not True or not seen.candidate.whole
        case other:
            raise AssertionError(other)


@in_any_situation
def test_a_rollback_never_raises_the_weight_and_never_makes_an_outage(
    status: RolloutStatus, spec: Rollout, seen: RolloutObservation, now: datetime
) -> None:
    move = rollout.advance(status, spec, seen, now)
    if move.status.phase != "RollingBack":
        return
    assert move.weight <= status.weight
    if move.weight == 0 and status.weight > 0:
        assert seen.stable.answers or not seen.candidate.answers
    if move.weight > 0:
        assert move.stalled is not None


@in_any_situation
def test_a_decision_is_written_before_or_with_the_weight(
    status: RolloutStatus, spec: Rollout, seen: RolloutObservation, now: datetime
) -> None:
    move = rollout.advance(status, spec, seen, now)
    if move.weight < status.weight and status.phase != "RollingBack":
        assert move.status.decision is not None
        assert move.events


@given(statuses(), specs(), st.data(), seconds)
def test_the_same_pass_again_decides_nothing_more(
    status: RolloutStatus, spec: Rollout, data: st.DataObject, at: int
) -> None:
    """A crash after the write: the pass runs again on the written status with what it saw."""
    now = after(at)
    seen = data.draw(observations(now))
    once = rollout.advance(status, spec, seen, now)
    twice = rollout.advance(once.status, spec, seen, now)
    assert twice.weight <= once.weight or status.phase == "RollingBack"
    counted = {check.name: (check.passes, check.failures) for check in once.status.checks}
    if once.status.measured_at == now:
        assert {check.name: (check.passes, check.failures) for check in twice.status.checks} == counted
    if once.status.decision is not None:
        assert twice.status.decision == once.status.decision
    if seen.observed_weight is None or seen.observed_weight != once.weight:
        assert twice.status.model_copy(update={"held_since": None, "phase": "Done"}) == once.status.model_copy(
            update={"held_since": None, "phase": "Done"}
        ) or (twice.status.decision is not None and once.status.decision is None)
    assert rollout.advance(twice.status, spec, seen, now).weight <= twice.weight


@given(
    st.lists(st.tuples(reasons, st.booleans(), st.none() | st.just(True)), max_size=60),
    st.booleans(),
    st.sampled_from(["Canary", "Baking"]),
)
@example([("TooFewSamples", True, True)] * 60, False, "Baking")
def test_only_unknowns_neither_promote_nor_blame(
    looks: list[tuple[str, bool, bool | None]], known_good: bool, phase: str
) -> None:
    spec = policy()
    status = canary(5 if phase == "Canary" else 100, phase=phase, known_good=known_good)
    for i, (reason, confirmed, measured) in enumerate(looks, 1):
        now = after(12 * i)
        found = [Check(name="feedback", verdict="Unknown", reason=reason, measured_at=now)] if measured else []
        move = rollout.advance(status, spec, seen(status.weight if confirmed else None, *found), now)
        assert move.weight <= status.weight
        status = move.status
        assert status.decision is None or status.decision.outcome == "Returned"


@given(st.data())
def test_the_weight_of_every_history_is_explained(data: st.DataObject) -> None:
    """Histories from the begin: the weight rises only along the steps, after a Pass in each, and falls only to 0."""
    spec = policy(failure_limit=1)
    status = rollout.begin("assistant-7", DIGEST, False, NOW)
    passed_in_step = False
    for i in range(1, data.draw(st.integers(1, 40))):
        now = after(i * data.draw(st.integers(1, 90)))
        confirmed = data.draw(st.booleans())
        verdict = data.draw(st.sampled_from(["Pass", "Pass", "Unknown", "Fail", None]))
        found = [] if verdict is None else [Check(name="feedback", verdict=verdict, measured_at=now)]
        candidate = arm(data.draw(st.sampled_from([1, 1, 1, 0])))
        before = status
        counts = before.unconfirmed_since is None and confirmed and now != before.measured_at
        move = rollout.advance(
            status, spec, seen(status.weight if confirmed else None, *found, candidate=candidate), now
        )
        status = move.status
        passed_in_step = passed_in_step or (verdict == "Pass" and counts)
        if status.weight > before.weight:
            assert before.phase == "Starting" or passed_in_step
            assert status.weight in [step.weight for step in spec.steps]
            passed_in_step = False
        if status.weight < before.weight:
            assert status.weight == 0
            assert status.decision is not None
        if status.phase == "Done":
            break


def test_the_strategies_reach_every_end() -> None:
    """The properties above are not vacuous: rises, promotions and rollbacks do occur under their conditions."""
    rise = rollout.advance(canary(), policy(), seen(5, passes(after(60))), after(60))
    assert rise.weight > 5
    bake = canary(100, phase="Baking", checks=[passes(NOW, passes=1, passed_at=NOW)])
    end = rollout.advance(bake, policy(), seen(100, passes(after(300))), after(300))
    assert end.status.decision is not None
    assert end.status.decision.outcome == "Promoted"
