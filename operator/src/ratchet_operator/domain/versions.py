"""Where a version stands, from its own status and its cycle's: what was decided, what is next.

Room: operator/domain. Pure. A version's own conditions are its memory; its cycle's status says what serves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from ratchet_api.conditions import Condition, find
from ratchet_api.cycle import (
    Arm,
    ImprovementCycle,
    ImprovementCycleStatus,
    Rejected,
    RolloutDecision,
    RolloutStatus,
)
from ratchet_api.names import version_name
from ratchet_api.reasons import ConditionType, Reason
from ratchet_api.version import ModelVersion, StageStatus
from ratchet_operator.domain import ledger
from ratchet_operator.domain.approval import Awaited, awaited
from ratchet_operator.domain.phases import Remark
from ratchet_operator.domain.run import RunVersion

Place = Literal["Candidate", "Canary", "Baking", "Serving", "Superseded"]
Next = Literal["train", "evaluate"]


@dataclass(frozen=True)
class Standing:
    """What has been decided about a version so far."""

    root: bool
    """The bare base model."""
    trained: Remark | None = None
    evaluated: Remark | None = None
    gate: Remark | None = None
    accepted: bool | None = None
    rejected: Remark | None = None
    failed: Remark | None = None
    outcome: Literal["Promoted", "RolledBack", "Returned"] | None = None
    """How its rollout ended, or is ending."""
    returned: Remark | None = None
    """Why its rollout ended without blame."""
    place: Place | None = None
    next: Next | None = None
    """The stage to do now; None: nothing is left to do, or it is somebody else's turn."""


def is_root(version: ModelVersion) -> bool:
    """Whether it is the bare base model."""
    return version.spec.run == 0 and version.spec.dataset is None and version.spec.adapter is None


def digest(version: ModelVersion) -> str:
    """Digest of its adapter; empty for the bare base model, and before it is trained."""
    return version.digest or ""


def stage(version: ModelVersion, name: str) -> StageStatus | None:
    """Status of one stage."""
    return next((entry for entry in version.status.stages if entry.stage == name), None)


def remark(conditions: Sequence[Condition], kind: ConditionType) -> Remark | None:
    """Reason and message of a condition."""
    found = find(conditions, kind)
    if found is None:
        return None
    try:
        return Remark(Reason(found.reason), found.message)
    except ValueError:
        return Remark(Reason.PENDING, found.message)


def failure(version: ModelVersion) -> Remark | None:
    """Why a stage of it failed for good."""
    for entry in version.status.stages:
        if entry.finished_at is not None and entry.reason:
            return Remark(_reason(entry.reason), f"{entry.stage}: {entry.message}")
    return None


def _reason(text: str) -> Reason:
    try:
        return Reason(text)
    except ValueError:
        return Reason.INTERNAL_ERROR


def standing(version: ModelVersion, cycle: ImprovementCycle) -> Standing:
    """Everything that is known of a version now."""
    root = is_root(version)
    decision = own_decision(version, cycle.status)
    # A version that returns has more than one rollout: the cycle's word is the latest.
    outcome = decision.outcome if decision is not None else version.status.outcome
    trained = _trained(version, root)
    gate, accepted = (None, None) if outdated(version, cycle.status) else _gate(version, cycle.status, root)
    rejected = _rejected(version, cycle, accepted, gate, decision)
    failed = failure(version)
    following: Next | None = None
    if rejected is None and failed is None and accepted is None:
        following = "train" if trained is None else "evaluate"
    return Standing(
        root=root,
        trained=trained,
        evaluated=_evaluated(version),
        gate=gate,
        accepted=accepted,
        rejected=rejected,
        failed=failed,
        outcome=outcome,
        returned=_returned(version, outcome, decision),
        place=place(version, cycle.status),
        next=following,
    )


def outdated(version: ModelVersion, cycle: ImprovementCycleStatus) -> bool:
    """Whether it was proven against a champion that serves no more, before it had its rollout: a proof to repeat.

    A version whose champion a person named is proven against that one, whoever serves.
    """
    evaluation, done, stable = version.status.evaluation, stage(version, "evaluate"), cycle.serving.stable
    if evaluation is None or done is None or done.finished_at is None or done.reason or stable is None:
        return False
    found = find(version.status.conditions, ConditionType.ACCEPTED)
    if found is None or found.status != "True" or version.spec.champion is not None:
        return False
    if version.status.outcome is not None or place(version, cycle) is not None or own_decision(version, cycle):
        return False
    return evaluation.champion != stable.version


def _trained(version: ModelVersion, root: bool) -> Remark | None:
    if root:
        return Remark(Reason.ROOT, "the bare base model needs no adapter")
    if version.spec.adapter is not None:
        return Remark(Reason.SUCCEEDED, f"came with a finished adapter, {version.spec.adapter.digest}")
    made = version.status.artifacts.adapter
    return None if made is None else Remark(Reason.SUCCEEDED, f"adapter {made.digest}")


def _evaluated(version: ModelVersion) -> Remark | None:
    made = version.status.artifacts.report
    return None if made is None else Remark(Reason.SUCCEEDED, f"report {made.digest}")


def _gate(version: ModelVersion, cycle: ImprovementCycleStatus, root: bool) -> tuple[Remark | None, bool | None]:
    """The gate's decision is made once, at the end of the evaluation: afterwards the condition is its memory."""
    found, done = find(version.status.conditions, ConditionType.ACCEPTED), stage(version, "evaluate")
    decided = done is not None and done.finished_at is not None and not done.reason
    if found is not None and (decided or found.reason in (Reason.ROOT, Reason.RETURNED)):
        return remark(version.status.conditions, ConditionType.ACCEPTED), found.status == "True"
    if root:
        return Remark(Reason.ROOT, "the bare base model: what everything is compared with"), True
    if version.digest is not None and ledger.is_known_good(cycle, version.digest):
        return Remark(Reason.RETURNED, "this adapter served well before: no gate and no steps, but a bake"), True
    return None, None


def _rejected(
    version: ModelVersion,
    cycle: ImprovementCycle,
    accepted: bool | None,
    gate: Remark | None,
    decision: RolloutDecision | None,
) -> Remark | None:
    before = find(version.status.conditions, ConditionType.REJECTED)
    if before is not None and before.status == "True" and before.reason != Reason.ALREADY_REJECTED:
        return remark(version.status.conditions, ConditionType.REJECTED)
    if decision is not None and decision.outcome == "RolledBack":
        return Remark(_reason(decision.reason), decision.message)
    if accepted is False:
        return gate
    if version.status.outcome is not None or place(version, cycle.status) is not None or not version.digest:
        return None
    entry = ledger.is_rejected(cycle.status, cycle.spec, version.digest)
    if entry is None:
        return None
    return Remark(
        Reason.ALREADY_REJECTED,
        f"this adapter was rejected as {entry.version} ({entry.reason}: {entry.message}); "
        f"to try it again, add {version.digest} to the cycle's rollout.retryDigests",
    )


def _returned(version: ModelVersion, outcome: str | None, decision: RolloutDecision | None) -> Remark | None:
    if outcome != "Returned":
        return None
    if decision is not None:
        return Remark(_reason(decision.reason), decision.message)
    return remark(version.status.conditions, ConditionType.STALLED) or Remark(Reason.HOLD_EXPIRED, "")


def own_decision(version: ModelVersion, cycle: ImprovementCycleStatus) -> RolloutDecision | None:
    """How the rollout of this very object ended or is ending; an earlier object of its name is another version."""
    rollout = cycle.rollout
    if rollout is None or rollout.decision is None or not is_of(rollout, version):
        return None
    if rollout.decision.outcome == "RolledBack" or rollout.phase == "Done":
        return rollout.decision
    return None


def is_of(rollout: RolloutStatus, version: ModelVersion) -> bool:
    """Whether it is this very object's rollout; one without a uid was begun by an operator that noted none."""
    return rollout.version == version.metadata.name and rollout.uid in ("", version.metadata.uid)


def is_served_by(arm: Arm, version: ModelVersion) -> bool:
    """Whether the arm serves this version's weights, and not those of an earlier object of its name."""
    return arm.version == version.metadata.name and arm.digest == digest(version)


def place(version: ModelVersion, cycle: ImprovementCycleStatus) -> Place | None:
    """Its place in what serves."""
    memory, known = find(version.status.conditions, ConditionType.SERVING), cycle.last_good
    if cycle.serving.stable is None:
        # A cycle that knows of no champion has lost its status, and asks its versions for it.
        return "Serving" if memory is not None and memory.status == "True" else None
    if is_served_by(cycle.serving.stable, version):
        return "Serving"
    rollout = cycle.rollout
    if rollout is not None and is_of(rollout, version) and rollout.phase in ("Starting", "Canary", "Baking"):
        places: dict[str, Place] = {"Starting": "Candidate", "Canary": "Canary", "Baking": "Baking"}
        return places[rollout.phase]
    served = memory is not None and (memory.status == "True" or memory.reason == Reason.SUPERSEDED)
    # A champion may come and go between two looks at its version, which then has no memory of it.
    served = served or any(good.version == version.metadata.name and good.digest == digest(version) for good in known)
    return "Superseded" if version.status.outcome == "Promoted" or served else None


def ready_for_rollout(version: ModelVersion, cycle: ImprovementCycle) -> bool:
    """Whether the cycle may begin its rollout."""
    if version.metadata.deletion_timestamp is not None or version.status.outcome is not None:
        return False
    if version.metadata.name == version_name(cycle.metadata.name, 0):
        return False
    stable = cycle.status.serving.stable
    if stable is None or stable.version == version.metadata.name:
        return False
    now = standing(version, cycle)
    return (
        recorded_as_accepted(version)
        and now.accepted is True
        and canary_approval(version, cycle) is None
        and now.rejected is None
        and now.failed is None
        and now.place is None
        and now.outcome is None
    )


def served_well(version: ModelVersion, cycle: ImprovementCycle) -> bool:
    """Whether it is known from having served: it returns without a gate, steps and approvals."""
    return is_root(version) or bool(version.digest and ledger.is_known_good(cycle.status, version.digest))


def canary_approval(version: ModelVersion, cycle: ImprovementCycle) -> Awaited | None:
    """The approval that an accepted version still needs for its rollout. One that served well before needs none."""
    if served_well(version, cycle):
        return None
    return awaited(cycle.spec.promotion, "Canary", version, digest(version))


def accepted_since(version: ModelVersion) -> datetime | None:
    """Since when its status says that it is accepted; None when it does not."""
    recorded = find(version.status.conditions, ConditionType.ACCEPTED)
    return recorded.last_transition_time if recorded is not None and recorded.status == "True" else None


def recorded_as_accepted(version: ModelVersion) -> bool:
    """Whether its own status says that it is accepted: nothing is rolled out on a decision that is not written."""
    return accepted_since(version) is not None


def candidates(versions: Sequence[ModelVersion], cycle: ImprovementCycle) -> list[ModelVersion]:
    """Versions that wait for their rollout, the oldest acceptance first."""
    waiting = [version for version in versions if ready_for_rollout(version, cycle)]
    return sorted(waiting, key=_accepted_at)


def _accepted_at(version: ModelVersion) -> tuple[str, str]:
    found = find(version.status.conditions, ConditionType.ACCEPTED)
    return (found.last_transition_time.isoformat() if found is not None else "", version.metadata.name)


def acknowledged(versions: Sequence[ModelVersion], cycle: ImprovementCycleStatus) -> bool:
    """Whether the last rollout's version shows its outcome itself, so that the cycle may forget it."""
    rollout = cycle.rollout
    if rollout is None or rollout.decision is None:
        return True
    version = next((v for v in versions if v.metadata.name == rollout.version), None)
    if version is None or own_decision(version, cycle) is None:
        return True
    return version.status.outcome == rollout.decision.outcome


def rejections(versions: Sequence[ModelVersion], cycle: ImprovementCycle) -> list[Rejected]:
    """What rejected versions say of their digests and the cycle does not remember yet, the oldest first.

    The gate's decisions come to the cycle this way; the rollout's do so only when the cycle's status was lost. An
    underpowered evaluation proves nothing against an adapter, so its digest may be tried again.
    """
    rollout = cycle.status.rollout
    going_on = rollout.version if rollout is not None and rollout.phase != "Done" else ""
    found = [entry for entry in map(_rejection, versions) if entry is not None and entry.version != going_on]
    latest = {entry.digest: entry for entry in cycle.status.rejected}
    news = []
    for entry in sorted(found, key=lambda one: one.at):
        known = latest.get(entry.digest)
        if known is None or (known.version != entry.version and known.at < entry.at):
            latest[entry.digest] = entry
            news.append(entry)
    return news


def _rejection(version: ModelVersion) -> Rejected | None:
    said = find(version.status.conditions, ConditionType.REJECTED)
    if said is None or said.status != "True" or not version.digest:
        return None
    if said.reason in (Reason.ALREADY_REJECTED, Reason.UNDERPOWERED):
        return None
    return Rejected(
        digest=version.digest,
        version=version.metadata.name,
        reason=said.reason,
        message=said.message,
        at=said.last_transition_time,
    )


def of_run(version: ModelVersion, cycle: ImprovementCycle, at: datetime) -> RunVersion:
    """What the run looks at."""
    now, rollout = standing(version, cycle), cycle.status.rollout
    needed, since = canary_approval(version, cycle), accepted_since(version)
    expired = needed.expired(since, at) if needed is not None and since is not None else None
    on_its_way = rollout is not None and is_of(rollout, version) and rollout.phase != "Done"
    return RunVersion(
        uid=version.metadata.uid,
        trained=now.trained is not None,
        accepted=bool(now.accepted),
        rejected=now.rejected,
        failed=now.failed,
        in_rollout=now.outcome is not None,
        unapproved=None if on_its_way else expired,
        awaits_pointer=cycle.spec.serving.version not in (None, version.metadata.name) and not on_its_way,
    )
