"""What people see: phase and conditions of a cycle and of a version, from facts.

Room: operator/domain. Pure. Ready, Reconciling and Stalled are only ever summarised here, in the sense of kstatus:
Reconciling and Stalled are there when something is unusual, and an object that came to a bad end is Stalled, because
nothing moves until a person comes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from ratchet_api.conditions import Condition, merged
from ratchet_api.cycle import RolloutStatus, RunStatus
from ratchet_api.names import approval_command
from ratchet_api.reasons import ConditionType, Reason
from ratchet_api.version import VersionPhase


@dataclass(frozen=True)
class Remark:
    """A reason and its sentence."""

    reason: Reason
    message: str


@dataclass(frozen=True)
class CycleFacts:
    """All that a cycle's phase and conditions depend on."""

    suspended: bool
    champion: str | None
    """Version of the stable arm."""
    ready: int
    """Stable pods that are ready and list their model."""
    replicas: int
    """Stable pods wanted."""
    run: RunStatus | None = None
    rollout: RolloutStatus | None = None
    stalled: Remark | None = None
    """Nothing moves until a person, or what is missing, comes."""
    waiting: Remark | None = None
    """Said in Reconciling while work goes on, e.g. Unschedulable."""


@dataclass(frozen=True)
class VersionFacts:
    """All that a version's phase and conditions depend on."""

    root: bool = False
    """The bare base model."""
    trained: Remark | None = None
    """Set once its adapter exists."""
    evaluated: Remark | None = None
    """Set once its report exists."""
    gate: Remark | None = None
    """The gate's decision, once made."""
    accepted: bool | None = None
    """Which way it went."""
    stage: Literal["train", "evaluate"] | None = None
    """The stage that runs or is to run now."""
    failed: Remark | None = None
    """Failed for good."""
    rejected: Remark | None = None
    """Rejected by gate or rollout, or a digest that was."""
    returned: Remark | None = None
    """Its rollout was Returned without blame: it is not tried again by itself."""
    place: Literal["Candidate", "Canary", "Baking", "Serving", "Superseded"] | None = None
    """Its place in the cycle's serving and rollout; Candidate: its arm is coming up."""
    stalled: Remark | None = None
    """Nothing moves until a person, or what is missing, comes."""
    waiting: Remark | None = None
    """Said in Reconciling while work goes on, e.g. Unschedulable or a retry's reason."""


_REASONS = {str(reason): reason for reason in Reason}
_RUN_REASONS = {"Curating": Reason.CURATING, "Training": Reason.TRAINING, "Evaluating": Reason.EVALUATING}


def rollout_goes_on(rollout: RolloutStatus | None) -> bool:
    """Whether there is a rollout that has not ended."""
    return rollout is not None and rollout.phase != "Done"


def cycle_phase(facts: CycleFacts) -> str:
    """One word for the PHASE column."""
    rollout = facts.rollout
    if facts.ready == 0 and facts.run is None and rollout is None:
        return "Stalled" if facts.stalled is not None else "Initializing"
    if rollout is not None and rollout_goes_on(rollout):
        return "Held" if rollout.held_since is not None and rollout.phase != "RollingBack" else rollout.phase
    if facts.stalled is not None:
        return "Stalled"
    if facts.suspended:
        return "Suspended"
    if facts.run is not None and facts.run.stage in _RUN_REASONS:
        return facts.run.stage
    return "Degraded" if facts.ready == 0 else "Idle"


def cycle_conditions(
    previous: Sequence[Condition], facts: CycleFacts, generation: int, now: datetime
) -> list[Condition]:
    """Ready, Reconciling, Stalled and RolloutProgressing."""
    ready, remark = _cycle_ready(facts)
    work = _cycle_work(facts)
    progressing, progress = _progress(facts)
    idle = facts.stalled or Remark(Reason.SUSPENDED if facts.suspended else Reason.IDLE, _resting(facts))
    entries = [
        (ConditionType.READY, ready, remark),
        (ConditionType.RECONCILING, work is not None, work or idle),
        (ConditionType.STALLED, facts.stalled is not None, facts.stalled or Remark(remark.reason, "")),
        (ConditionType.PROGRESSING, progressing, progress),
    ]
    return _merged(previous, entries, generation, now)


def _cycle_ready(facts: CycleFacts) -> tuple[bool, Remark]:
    pods = f"{facts.ready} of {facts.replicas} pods ready"
    if facts.champion is None:
        return False, Remark(Reason.INITIALIZING, "the base model is being brought up")
    if facts.ready == 0:
        first = facts.run is None and facts.rollout is None
        reason = Reason.INITIALIZING if first else Reason.STABLE_DEGRADED
        return False, Remark(reason, f"{facts.champion} does not answer: {pods}")
    if facts.ready < facts.replicas:
        return True, Remark(Reason.STABLE_DEGRADED, f"{facts.champion} serves with {pods}")
    return True, Remark(
        Reason.IDLE if not rollout_goes_on(facts.rollout) else _rollout_reason(facts.rollout),
        f"{facts.champion} serves, {pods}",
    )


def _cycle_work(facts: CycleFacts) -> Remark | None:
    """What the operator works at; None when nothing moves."""
    if facts.stalled is not None:
        return None
    if facts.waiting is not None:
        return facts.waiting
    ready, remark = _cycle_ready(facts)
    if not ready:
        return remark
    rollout, run = facts.rollout, facts.run
    if rollout is not None and rollout_goes_on(rollout) and (rollout.phase == "RollingBack" or not facts.suspended):
        return Remark(_rollout_reason(rollout), f"{rollout.version} is on its way: {_where(rollout)}")
    if run is not None and run.stage in _RUN_REASONS and not facts.suspended:
        return Remark(_RUN_REASONS[run.stage], f"run {run.number} is {run.stage.lower()}")
    return None


def _resting(facts: CycleFacts) -> str:
    if facts.suspended:
        return "spec.suspend is true: nothing starts and nothing advances"
    return f"{facts.champion} serves; waiting for the next run"


def _progress(facts: CycleFacts) -> tuple[bool, Remark]:
    rollout = facts.rollout
    if rollout is None:
        return False, Remark(Reason.IDLE, "no rollout so far")
    if rollout.phase in ("RollingBack", "Done") and rollout.decision is not None:
        words = f"{rollout.version}: {rollout.decision.message}"
        if rollout.phase == "RollingBack":
            words += "; waiting until it is confirmed to get nothing"
        return False, Remark(_reason(rollout.decision.reason), words)
    if facts.suspended:
        return False, Remark(Reason.SUSPENDED, f"{rollout.version} stays at {rollout.weight} %: spec.suspend is true")
    if rollout.held_since is not None:
        return False, Remark(Reason.HELD, f"{rollout.version} stays at {rollout.weight} %: {_missing(rollout)}")
    if rollout.awaiting_since is not None:
        command = approval_command("Promotion", rollout.version, rollout.digest)
        text = f"{rollout.version} stays at {rollout.weight} % until a person approves: {command}"
        return False, Remark(Reason.AWAITING_APPROVAL, text)
    return rollout.phase != "Done", Remark(_rollout_reason(rollout), f"{rollout.version}: {_where(rollout)}")


def _missing(rollout: RolloutStatus) -> str:
    if rollout.unconfirmed_since is not None:
        return "the weight is not confirmed to be in force"
    return "; ".join(check.message for check in rollout.checks if check.verdict == "Unknown")


def _where(rollout: RolloutStatus) -> str:
    if rollout.phase == "Starting":
        return "its arm is coming up"
    words = f"{'baking, ' if rollout.phase == 'Baking' else ''}{rollout.weight} % of the sessions"
    return f"{words}: {rollout.summary}" if rollout.summary else words


def _rollout_reason(rollout: RolloutStatus | None) -> Reason:
    if rollout is None:
        return Reason.IDLE
    if rollout.decision is not None:
        return _reason(rollout.decision.reason)
    return Reason.BAKING if rollout.phase == "Baking" else Reason.CANARY


def _reason(text: str) -> Reason:
    """A reason read from a status, which a newer operator may have written."""
    return _REASONS.get(text, Reason.CHECK_FAILED)


def version_phase(facts: VersionFacts) -> VersionPhase:
    """One word for the PHASE column."""
    match facts.place:
        case "Serving" | "Canary" | "Baking":
            return facts.place
        case "Candidate":
            return "Accepted"
        case "Superseded" | None:
            pass
    if facts.rejected is not None:
        return "Rejected"
    if facts.failed is not None:
        return "Failed"
    if facts.place == "Superseded":
        return "Superseded"
    if facts.accepted or facts.root:
        return "Accepted"
    match facts.stage:
        case "train":
            return "Training"
        case "evaluate":
            return "Evaluating"
        case None:
            return "Pending"


_PHASE_REASONS: dict[VersionPhase, Remark] = {
    "Pending": Remark(Reason.PENDING, "waiting for an earlier step"),
    "Training": Remark(Reason.TRAINING, "the adapter is being trained"),
    "Evaluating": Remark(Reason.EVALUATING, "champion and candidate answer the suites"),
    "Accepted": Remark(Reason.PENDING, "accepted; waiting for its rollout"),
    "Canary": Remark(Reason.CANARY, "takes a share of the sessions"),
    "Baking": Remark(Reason.BAKING, "takes all sessions; the previous arm is still warm"),
    "Serving": Remark(Reason.PROMOTED, "is the champion"),
    "Superseded": Remark(Reason.SUPERSEDED, "a newer champion serves"),
    "Rejected": Remark(Reason.CHECK_FAILED, "will not be tried again"),
    "Failed": Remark(Reason.INTERNAL_ERROR, "failed"),
}


def version_conditions(
    previous: Sequence[Condition], facts: VersionFacts, generation: int, now: datetime
) -> list[Condition]:
    """Ready, Reconciling, Stalled, Trained, Evaluated, Accepted, Serving and Rejected; Trained and Evaluated are left
    out of the bare base model, which never is."""
    phase = version_phase(facts)
    state = _PHASE_REASONS[phase]
    end = _bad_end(facts, phase)
    ready = phase in ("Serving", "Superseded")
    stalled = end or facts.stalled
    working = not ready and stalled is None
    pending = Remark(Reason.PENDING, "")
    entries = [
        (ConditionType.READY, ready, stalled if stalled is not None and not ready else state),
        (ConditionType.RECONCILING, working, (facts.waiting or state) if working else stalled or state),
        (ConditionType.STALLED, stalled is not None and not ready, stalled or Remark(state.reason, "")),
        (ConditionType.SERVING, phase == "Serving", state if ready else pending),
        (ConditionType.REJECTED, phase == "Rejected", facts.rejected or pending),
        (ConditionType.ACCEPTED, *_gate(facts)),
    ]
    if not facts.root:
        entries += [
            (ConditionType.TRAINED, facts.trained is not None, facts.trained or _unmade(facts, state)),
            (ConditionType.EVALUATED, facts.evaluated is not None, facts.evaluated or _unmade(facts, state)),
        ]
    return _merged(previous, entries, generation, now)


def _bad_end(facts: VersionFacts, phase: VersionPhase) -> Remark | None:
    match phase:
        case "Rejected":
            return facts.rejected
        case "Failed":
            return facts.failed
        case "Accepted" if facts.place is None:
            return facts.returned
        case _:
            return None


def _gate(facts: VersionFacts) -> tuple[bool, Remark]:
    if facts.root:
        return True, Remark(Reason.ROOT, "the bare base model needs no gate")
    return facts.accepted is True, facts.gate or facts.rejected or facts.failed or Remark(Reason.PENDING, "")


def _unmade(facts: VersionFacts, state: Remark) -> Remark:
    """Why there is no adapter or report yet."""
    return facts.failed or facts.rejected or facts.stalled or facts.waiting or state


def _merged(
    previous: Sequence[Condition],
    entries: Sequence[tuple[ConditionType, bool, Remark]],
    generation: int,
    now: datetime,
) -> list[Condition]:
    conditions = list(previous)
    for kind, holds, remark in entries:
        conditions = merged(conditions, kind, holds, remark.reason, remark.message, generation, now)
    return conditions
