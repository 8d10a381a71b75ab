"""The rollout's state machine: Starting, Canary steps, Baking, RollingBack, Done.

Room: operator/domain. Pure.

    Starting     the candidate arm comes up, weight 0; stable is looked at once, for a bake without steps before it
    Canary       the steps; a step begins to count when its weight is confirmed to be in force
    Baking       weight 100, stable still warm; only the end of the bake changes the champion
    RollingBack  the decision is written; weight 0 as soon as stable can take it, until that is confirmed
    Done         terminal

Rules in every phase but the last two: abort, a pointer that names another version, a failing arm, an arm that does not
list its model and an arm that is not ready in time roll back at once; so does a check that failed more often than its
limit. Weight rises, and a bake ends well, only in a pass that brings fresh measurements of which none fails. A
measurement that could not be made (NoData, QueryError, Stale, ManySeries) blocks both; one with too few samples does
not, if the check has passed before (in this step, for a rise; in this rollout, for the end of the bake).
The bake goes on while its evidence leans to harm that is not proven (domain.bake).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

from ratchet_api.cycle import Check, RolloutDecision, RolloutOutcome, RolloutStatus
from ratchet_api.reasons import Reason
from ratchet_api.rollout import Metric, Rollout
from ratchet_operator.domain import ab_test, bake, glance, split
from ratchet_operator.domain.analysis import fold
from ratchet_operator.domain.approval import Awaited
from ratchet_operator.domain.wording import long, sentence, summary

SECOND = timedelta(seconds=1)
"""Kubernetes' timestamps are whole seconds."""
ASK_AGAIN = timedelta(seconds=2)
"""How soon the gateways and the arms are asked again while something is awaited."""
UNREADY_TOLERANCE = timedelta(seconds=30)
"""How long a candidate that was ready may have no ready pod at all without having crashed, for example because its
node was lost. With some of its pods ready it may take rollout.progressDeadline."""


@dataclass(frozen=True)
class ArmObservation:
    """What is seen of one arm."""

    exists: bool
    replicas: int
    """Pods wanted."""
    ready: int
    """Pods ready."""
    serves_model: bool | None
    """Whether the ready pods list the version's model; None: not asked, or no answer."""
    failure: str | None = None
    """A sentence when pods crash, run out of memory or refuse their adapter: rolls back at once."""
    failure_reason: Reason = Reason.ARM_FAILED
    """ARM_FAILED, or what is known better, e.g. DIGEST_MISMATCH."""
    waiting: str | None = None
    """A sentence when pods cannot start through no fault of the version (unschedulable, image or base model missing):
    at the deadline the rollout is then Returned, not RolledBack."""
    made_at: datetime | None = None
    """When its Deployment was made, in whole seconds."""

    @property
    def answers(self) -> bool:
        """Whether people's requests get an answer from it."""
        return self.exists and self.ready > 0 and self.serves_model is not False

    @property
    def whole(self) -> bool:
        """Whether every pod wanted is ready, and none is known not to list the model."""
        return self.answers and self.ready >= self.replicas

    @property
    def proven(self) -> bool:
        """Whether every pod wanted is ready and lists the model: what traffic has to wait for."""
        return self.whole and self.serves_model is True


@dataclass(frozen=True)
class RolloutObservation:
    """Everything that `advance` looks at besides status and spec."""

    stable: ArmObservation
    candidate: ArmObservation
    observed_weight: int | None
    """Percent that is in force for the candidate, in the terms of `status.weight` (0 if nobody knows it); None: not
    confirmed by all gateways, the route's parents or the Service's endpoints."""
    checks: tuple[Check, ...] | None = None
    """Fresh judgements when a measurement was due, else None."""
    glances: tuple[Check, ...] = ()
    """Judgements between two measurements, of which only a Fail counts (see domain.glance)."""
    outcome: Check | None = None
    """With `checks`, during an A/B test: a fresh look at its outcome (domain.ab_test)."""
    abort: bool = False
    unwanted: str | None = None
    """A sentence when serving.version names another version by now: back to stable, without blame."""
    suspended: bool = False
    approval: Awaited | None = None
    """What a person has not approved, and has to before the candidate gets all of the traffic."""


@dataclass(frozen=True)
class Event:
    """A Kubernetes event to be posted after the status is written."""

    type: Literal["Normal", "Warning"]
    reason: Reason
    message: str


@dataclass(frozen=True)
class Move:
    """What to do: write `status` first, then ask for `weight`."""

    status: RolloutStatus
    weight: int
    events: tuple[Event, ...] = ()
    stalled: tuple[Reason, str] | None = None
    wake_at: datetime | None = None


def begin(version: str, digest: str, known_good: bool, now: datetime) -> RolloutStatus:
    """A rollout that starts now. `digest` is empty for the bare base model."""
    return RolloutStatus(
        version=version, digest=digest, phase="Starting", started_at=now, step_since=now, known_good=known_good
    )


def measurement_due(status: RolloutStatus, spec: Rollout, now: datetime) -> bool:
    """Whether the metrics should be looked at in this pass (queries.plan -> analysis.judge -> observation.checks)."""
    if status.phase in ("RollingBack", "Done") or status.unconfirmed_since is not None:
        return False
    # A last look in the future means that the clock went back; waiting for it to pass could take for ever.
    return status.measured_at is None or not now - spec.interval < status.measured_at <= now


def advance(status: RolloutStatus, spec: Rollout, seen: RolloutObservation, now: datetime) -> Move:
    """The next move. Total over every status; Done absorbs; calling it again with the same input is harmless."""
    match status.phase:
        case "Done":
            return Move(status, status.weight)
        case "RollingBack":
            return _rolling_back(status, seen, now)
        case "Starting" | "Canary" | "Baking":
            return _forward(status, spec, seen, now)


def _forward(status: RolloutStatus, spec: Rollout, seen: RolloutObservation, now: datetime) -> Move:
    status = _readiness(status, seen.candidate, now)
    if decision := _hard_trigger(status, spec, seen, now):
        return _roll_back(status, decision, seen, now)
    if status.phase == "Starting":
        return _starting(status, spec, seen, now)
    in_force = status.unconfirmed_since is None
    status = _confirmed(status, seen.observed_weight, now)
    fresh = in_force and status.unconfirmed_since is None and _is_fresh(status, seen.checks)
    previous = status.measured_at
    if fresh and seen.checks is not None:
        status = _measured(status, spec, seen.checks)
        status = ab_test.measured(status, spec, seen.outcome, seen.suspended, now)
    elif in_force and status.unconfirmed_since is None:
        status = _glanced(status, spec, seen.glances)
    if decision := _check_failed(status, spec, now) or ab_test.decision(status, spec, now):
        return _roll_back(status, decision, seen, now)
    status, events = _hold(status, spec, now)
    events += _failed_looks(status, spec, seen.checks if fresh else seen.glances)
    if decision := _hold_expired(status, spec, now) or _approval_expired(status, seen, now):
        return _roll_back(status, decision, seen, now)
    if fresh and (harm := bake.proven_worse(status, spec, _checks(status, spec), now)):
        return _roll_back(status, _decision("RolledBack", Reason.CHECK_FAILED, harm[1], now, harm[0]), seen, now)
    if fresh and not seen.suspended and seen.candidate.whole:
        if status.phase == "Canary" and _may_rise(status, spec, now):
            if waits := _awaits_approval(status, spec, seen, events, now):
                return waits
            return _next_step(status, spec, events, now)
        if status.phase == "Baking" and bake.may_end(status, spec, _checks(status, spec), now):
            return _promote(status, spec, events, now)
    if fresh and status.phase == "Baking" and (why := bake.goes_on(status, spec, _checks(status, spec), previous, now)):
        events += (Event("Normal", Reason.BAKING, why),)
    return Move(status, status.weight, events, wake_at=_wake_at(status, spec, now))


# Starting and the steps


def _starting(status: RolloutStatus, spec: Rollout, seen: RolloutObservation, now: datetime) -> Move:
    if _is_fresh(status, seen.checks) and seen.checks is not None:
        # Only stable's figures are of interest: the candidate has had no traffic, so nothing passes, fails or waits.
        checks = [_blank(check) for check in _measured(status, spec, seen.checks).checks]
        status = status.model_copy(update={"checks": checks, "measured_at": seen.checks[0].measured_at})
    if decision := _approval_expired(status, seen, now):
        return _roll_back(status, decision, seen, now)
    if seen.candidate.proven and not seen.suspended and status.measured_at is not None:
        if waits := _awaits_approval(status, spec, seen, (), now):
            return waits
        return _next_step(status, spec, (), now)
    return Move(status, status.weight, wake_at=_wake_at(status, spec, now))


def _next_step(status: RolloutStatus, spec: Rollout, events: tuple[Event, ...], now: datetime) -> Move:
    following = split.following(status, spec)
    step, weight = following or (status.step, 100)
    baking = following is None
    moved = weight != status.weight or status.phase == "Starting"
    known = (ab_test.evidence(status), sentence(status.checks)) if status.phase == "Canary" else ()
    evidence = "; ".join(filter(None, known))
    status = status.model_copy(
        update={
            "phase": "Baking" if baking else "Canary",
            "step": step,
            "weight": weight,
            "step_since": now,
            "unconfirmed_since": now if moved else None,
            "awaiting_since": None,
            "measured_at": now,
            "checks": [_blank(check) for check in status.checks],
        }
    )
    status = status.model_copy(update={"summary": summary(status.checks, spec.metrics)})
    words = f"bakes at 100 % for {long(spec.bake)}" if baking else f"takes {weight} % of the sessions"
    message = f"{status.version} {words}" + (f": {evidence}" if evidence else "")
    return Move(status, weight, (*events, Event("Normal", _phase_reason(status), message)), None, now + ASK_AGAIN)


def _awaits_approval(
    status: RolloutStatus, spec: Rollout, seen: RolloutObservation, events: tuple[Event, ...], now: datetime
) -> Move | None:
    """The move that waits for a person, when the next one would give the candidate everything. A version that served
    before returns on the word of whoever named it."""
    _, following = split.following(status, spec) or (0, 100)
    if seen.approval is None or status.known_good or following < 100 or status.weight == 100:
        return None
    if status.awaiting_since is None:
        events = (*events, Event("Normal", Reason.AWAITING_APPROVAL, seen.approval.remark.message))
    status = status.model_copy(update={"awaiting_since": status.awaiting_since or now})
    return Move(status, status.weight, events, wake_at=_wake_at(status, spec, now))


def _approval_expired(status: RolloutStatus, seen: RolloutObservation, now: datetime) -> RolloutDecision | None:
    if status.awaiting_since is None or seen.approval is None or status.weight == 100:
        return None
    expired = seen.approval.expired(status.awaiting_since, now)
    return None if expired is None else _decision("Returned", expired.reason, expired.message, now)


def _blank(check: Check) -> Check:
    """A check at the begin of a step: nothing measured, stable's last figures and the last Pass remembered."""
    return Check(
        name=check.name,
        verdict="Unknown",
        reason="NoData",
        message=f"{check.name}: not measured yet in this step",
        passed_at=check.passed_at,
        reference=check.reference,
        carried=check.reference,
        measured_at=check.measured_at,
    )


def _confirmed(status: RolloutStatus, observed: int | None, now: datetime) -> RolloutStatus:
    """Notes whether the weight asked for is in force; the first time that it is, the step begins to count."""
    if observed != status.weight:
        return status.model_copy(update={"unconfirmed_since": status.unconfirmed_since or now})
    if status.unconfirmed_since is None:
        return status
    first = status.unconfirmed_since <= status.step_since
    update: dict[str, object] = {"unconfirmed_since": None}
    if first:
        update |= {"step_since": now, "measured_at": now}
    return status.model_copy(update=update)


def _is_fresh(status: RolloutStatus, checks: Sequence[Check] | None) -> bool:
    """A look is known by its time: one that has been counted is not counted again."""
    return bool(checks) and checks is not None and checks[0].measured_at != status.measured_at


def _measured(status: RolloutStatus, spec: Rollout, checks: Sequence[Check]) -> RolloutStatus:
    previous = {check.name: check for check in status.checks}
    names = {metric.name for metric in spec.metrics}
    folded = [fold(previous.get(check.name), check) for check in checks if check.name in names]
    return status.model_copy(
        update={"checks": folded, "measured_at": checks[0].measured_at, "summary": summary(folded, spec.metrics)}
    )


def _glanced(status: RolloutStatus, spec: Rollout, glances: Sequence[Check]) -> RolloutStatus:
    seen = glance.folded(status, glances)
    return seen if seen is status else seen.model_copy(update={"summary": summary(seen.checks, spec.metrics)})


def _may_rise(status: RolloutStatus, spec: Rollout, now: datetime) -> bool:
    waited = now - status.step_since >= split.min_time(status, spec) and ab_test.lets_go_on(status, spec)
    return waited and all(
        check is not None and (check.verdict == "Pass" or (check.reason == "TooFewSamples" and check.passes > 0))
        for check in _checks(status, spec)
    )


def _deciding(spec: Rollout) -> list[Metric]:
    return [metric for metric in spec.metrics if not metric.dry_run]


def _checks(status: RolloutStatus, spec: Rollout) -> list[Check | None]:
    found = {check.name: check for check in status.checks}
    return [found.get(metric.name) for metric in _deciding(spec)]


def _promote(status: RolloutStatus, spec: Rollout, events: tuple[Event, ...], now: datetime) -> Move:
    message = f"{status.version} is champion: {sentence(status.checks)}{bake.unproven(_checks(status, spec))}"
    decision = RolloutDecision(outcome="Promoted", reason=Reason.PROMOTED, message=message, at=now)
    status = status.model_copy(update={"phase": "Done", "decision": decision})
    return Move(status, status.weight, (*events, Event("Normal", Reason.PROMOTED, message)))


# What sends a rollout back


def _readiness(status: RolloutStatus, arm: ArmObservation, now: datetime) -> RolloutStatus:
    since = None if arm.whole or status.phase == "Starting" else status.unready_since or now
    return status if since == status.unready_since else status.model_copy(update={"unready_since": since})


def _decision(
    outcome: RolloutOutcome, reason: Reason, message: str, now: datetime, check: Check | None = None
) -> RolloutDecision:
    return RolloutDecision(
        outcome=outcome,
        reason=reason,
        message=message,
        at=now,
        check="" if check is None else check.name,
        regression_seen_at=None if check is None else check.first_failed_at,
    )


def _hard_trigger(
    status: RolloutStatus, spec: Rollout, seen: RolloutObservation, now: datetime
) -> RolloutDecision | None:
    arm = seen.candidate
    if seen.abort:
        return _decision("RolledBack", Reason.ABORTED, f"a person asked for the rollback of {status.version}", now)
    if seen.unwanted is not None:
        return _decision("Returned", Reason.POINTER_MOVED, seen.unwanted, now)
    if arm.failure is not None:
        return _decision("RolledBack", arm.failure_reason, arm.failure, now)
    if arm.exists and arm.ready > 0 and arm.serves_model is False:
        message = f"the ready pods of {status.version} do not list its model"
        return _decision("RolledBack", Reason.ADAPTER_NOT_SERVED, message, now)
    since = status.started_at if status.phase == "Starting" else status.unready_since
    if since is None or (arm.proven if status.phase == "Starting" else arm.whole):
        return None
    limit = spec.progress_deadline
    if status.phase != "Starting" and not arm.answers:
        limit = min(limit, UNREADY_TOLERANCE)
    if now - since <= limit:
        return None
    message = (
        f"{arm.ready} of {arm.replicas} pods of {status.version} ready"
        f"{', but they do not say which models they serve,' if arm.whole else ''} after {long(now - since)}, "
        f"limit {long(limit)}"
    )
    if arm.waiting is not None:
        return _decision("Returned", Reason.ARM_NOT_READY, f"{message}: {arm.waiting}", now)
    if _was_deleted(status, arm):
        return _decision("Returned", Reason.ARM_NOT_READY, f"{message}: its Deployment was deleted by somebody", now)
    return _decision("RolledBack", Reason.ARM_NOT_READY, message, now)


def _was_deleted(status: RolloutStatus, arm: ArmObservation) -> bool:
    """Whether the pods are missing because somebody took away their Deployment, which has been made again since."""
    if status.phase == "Starting" or status.unready_since is None:
        return False
    return not arm.exists or (arm.made_at is not None and arm.made_at > status.unready_since - SECOND)


def _failed_looks(status: RolloutStatus, spec: Rollout, seen: Sequence[Check] | None) -> tuple[Event, ...]:
    limits = {metric.name: _failure_limit(metric, spec) for metric in _deciding(spec)}
    failing = {check.name for check in seen or () if check.verdict == "Fail"}
    failed = [c for c in status.checks if c.name in failing and c.name in limits]
    counts = [f"(failed {c.failures}, tolerated {limits[c.name]} in a step)" for c in failed]
    return tuple(
        Event("Warning", Reason.CHECK_FAILED, f"{c.message} {count}") for c, count in zip(failed, counts, strict=True)
    )


def _check_failed(status: RolloutStatus, spec: Rollout, now: datetime) -> RolloutDecision | None:
    for metric, check in zip(_deciding(spec), _checks(status, spec), strict=True):
        limit = _failure_limit(metric, spec)
        if check is not None and check.verdict == "Fail" and check.failures > limit:
            times = "" if check.failures == 1 else f" (measurement {check.failures} that failed in this step)"
            return _decision("RolledBack", Reason.CHECK_FAILED, check.message + times, now, check)
    return None


def _failure_limit(metric: Metric, spec: Rollout) -> int:
    return spec.failure_limit if metric.failure_limit is None else metric.failure_limit


def _hold_reason(status: RolloutStatus, spec: Rollout, now: datetime) -> str | None:
    """Why the evidence is missing, in words; None when it is not, or not for long enough to speak of a hold."""
    if status.phase not in ("Canary", "Baking"):
        return None
    patience = spec.interval * (spec.unknown_limit + 1)
    if status.unconfirmed_since is not None and now - status.unconfirmed_since > patience:
        return f"weight {status.weight} is not confirmed to be in force since {long(now - status.unconfirmed_since)}"
    found = [check for check in _checks(status, spec) if check is not None]
    blind = [check for check in found if check.unknowns > spec.unknown_limit and _waits(status, spec, check)]
    said = [f"{c.message} ({c.unknowns} times in a row)" for c in blind]
    return "; ".join(filter(None, [ab_test.blind(status, spec), *said])) or None


def _waits(status: RolloutStatus, spec: Rollout, check: Check) -> bool:
    """Whether the phase waits for this check: too few samples of one that has passed are waited for by none. An A/B
    test that has no answer yet waits for samples anyway, and has an end of its own."""
    passed = check.passes > 0 if status.phase == "Canary" else check.passed_at is not None
    passed = passed or ab_test.undecided(status, spec)
    return not (passed and check.reason == "TooFewSamples")


def _hold(status: RolloutStatus, spec: Rollout, now: datetime) -> tuple[RolloutStatus, tuple[Event, ...]]:
    reason = _hold_reason(status, spec, now)
    if (reason is None) == (status.held_since is None):
        return status, ()
    if reason is not None:
        event = Event("Warning", Reason.HELD, f"{status.version} stays at {status.weight} %: {reason}")
        return status.model_copy(update={"held_since": now}), (event,)
    event = Event("Normal", _phase_reason(status), f"{status.version} goes on at {status.weight} %: evidence is back")
    return status.model_copy(update={"held_since": None}), (event,)


def _phase_reason(status: RolloutStatus) -> Reason:
    return Reason.BAKING if status.phase == "Baking" else Reason.CANARY


def _hold_expired(status: RolloutStatus, spec: Rollout, now: datetime) -> RolloutDecision | None:
    if status.held_since is None or now - status.held_since <= spec.max_hold:
        return None
    reason = _hold_reason(status, spec, now)
    message = f"held for {long(now - status.held_since)}, limit {long(spec.max_hold)}: {reason}"
    return _decision("Returned", Reason.HOLD_EXPIRED, message, now)


def _roll_back(status: RolloutStatus, decision: RolloutDecision, seen: RolloutObservation, now: datetime) -> Move:
    """The decision is in the same status as the weight, so nothing can act on one without the other."""
    decided = status.model_copy(update={"phase": "RollingBack", "decision": decision})
    move = _rolling_back(decided, seen, now)
    kind = "back to stable" if decision.outcome == "Returned" else "rolled back"
    event = Event("Warning", Reason(decision.reason), f"{status.version} {kind}: {decision.message}")
    return replace(move, events=(event, *move.events))


def _rolling_back(status: RolloutStatus, seen: RolloutObservation, now: datetime) -> Move:
    # One ready pod of stable is enough: a crowded good version is better than a bad one, and none at all is neither.
    if status.weight > 0 and not seen.stable.answers and seen.candidate.answers:
        message = f"stable has no ready pod, so {status.version} keeps {status.weight} % until it has one"
        return Move(status, status.weight, (), (Reason.STABLE_NOT_READY, message), now + ASK_AGAIN)
    status = status.model_copy(update={"weight": 0})
    if seen.observed_weight != 0:
        return Move(status, 0, wake_at=now + ASK_AGAIN)
    return Move(status.model_copy(update={"phase": "Done", "weight_zero_at": status.weight_zero_at or now}), 0)


def _wake_at(status: RolloutStatus, spec: Rollout, now: datetime) -> datetime:
    """When something may change by time alone: the earliest due time that is still to come."""
    times = [now + spec.interval]
    if status.measured_at is not None:
        times.append(status.measured_at + spec.interval)
    if status.phase == "Starting":
        times += [now + ASK_AGAIN, status.started_at + spec.progress_deadline]
    if status.unconfirmed_since is not None:
        times.append(now + ASK_AGAIN)
    elif status.phase != "Starting":
        times.append(now + glance.spacing(spec))
    if status.unready_since is not None:
        times += [status.unready_since + UNREADY_TOLERANCE, status.unready_since + spec.progress_deadline]
    if status.held_since is not None:
        times.append(status.held_since + spec.max_hold)
    # A spec may say "0s" for the interval.
    return min((time for time in times if time > now), default=now + ASK_AGAIN)
