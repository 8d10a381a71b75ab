"""What a cycle's status remembers when a rollout begins or ends: arms, rejections, champions, history.

Room: operator/domain. Pure transitions of ImprovementCycleStatus; each is harmless when repeated.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import TypeVar

from ratchet_api.cycle import (
    Arm,
    Good,
    HistoryEntry,
    ImprovementCycleSpec,
    ImprovementCycleStatus,
    Rejected,
    RetiredArm,
    RolloutDecision,
    RolloutStatus,
    RunOutcome,
)

_T = TypeVar("_T")
REJECTED_LIMIT = 256
"""Entries kept in status.rejected, as its schema allows."""


def started(status: ImprovementCycleStatus, arm: Arm, rollout: RolloutStatus) -> ImprovementCycleStatus:
    """The candidate's arm (weight 0) and its rollout are there; a retired arm of the same version is taken back."""
    serving = status.serving.model_copy(
        update={"candidate": arm, "retired": [r for r in status.serving.retired if r.deployment != arm.deployment]}
    )
    return status.model_copy(update={"serving": serving, "rollout": rollout})


def ended(
    status: ImprovementCycleStatus, spec: ImprovementCycleSpec, now: datetime, run: int | None = None
) -> ImprovementCycleStatus:
    """Settles a rollout that is Done, by its decision: promoted, rolled_back or returned. Else `status` itself."""
    rollout = status.rollout
    if rollout is None or rollout.phase != "Done" or rollout.decision is None:
        return status
    match rollout.decision.outcome:
        case "Promoted":
            return promoted(status, spec, now, run)
        case "RolledBack":
            return rolled_back(status, spec, now, run)
        case "Returned":
            return returned(status, spec, now, run)


def promoted(
    status: ImprovementCycleStatus, spec: ImprovementCycleSpec, now: datetime, run: int | None = None
) -> ImprovementCycleStatus:
    """Candidate becomes stable; the old stable arm retires; lastGood and history grow."""
    found = _open_decision(status)
    candidate = status.serving.candidate
    if found is None or candidate is None or candidate.version != found[0].version:
        return status
    rollout, decision = found
    stable = candidate.model_copy(update={"weight": 100})
    serving = status.serving.model_copy(
        update={
            "stable": stable,
            "candidate": None,
            "retired": _retired(status, status.serving.stable, stable.deployment, now),
        }
    )
    good = Good(version=rollout.version, digest=rollout.digest, at=decision.at)
    champions = [g for g in status.last_good if g.version != rollout.version]
    status = status.model_copy(update={"serving": serving, "last_good": _last([*champions, good], spec.history_limit)})
    status = _noted(status, spec, rollout.version, "Promoted", decision.message, decision.at, run)
    return _settled(status, rollout)


def rolled_back(
    status: ImprovementCycleStatus, spec: ImprovementCycleSpec, now: datetime, run: int | None = None
) -> ImprovementCycleStatus:
    """Candidate retires; its digest is rejected; history grows. The bare base model has no digest to reject."""
    found = _open_decision(status)
    if found is None:
        return status
    rollout, decision = found
    status = _without_candidate(status, rollout.version, now)
    if rollout.digest:
        status = _rejected(
            status, spec, rollout.version, rollout.digest, decision.reason, decision.message, decision.at
        )
    status = _noted(status, spec, rollout.version, "RolledBack", decision.message, decision.at, run)
    return _settled(status, rollout)


def returned(
    status: ImprovementCycleStatus, spec: ImprovementCycleSpec, now: datetime, run: int | None = None
) -> ImprovementCycleStatus:
    """Candidate retires without blame; history grows."""
    found = _open_decision(status)
    if found is None:
        return status
    rollout, decision = found
    status = _without_candidate(status, rollout.version, now)
    status = _noted(status, spec, rollout.version, "Returned", decision.message, decision.at, run)
    return _settled(status, rollout)


def gate_rejected(
    status: ImprovementCycleStatus,
    spec: ImprovementCycleSpec,
    version: str,
    digest: str,
    reason: str,
    message: str,
    now: datetime,
    run: int | None = None,
) -> ImprovementCycleStatus:
    """The gate's rejection of a version, remembered by digest; history grows."""
    if any(r.digest == digest and r.version == version for r in status.rejected):
        return status
    status = _rejected(status, spec, version, digest, reason, message, now)
    return _noted(status, spec, version, "GateRejected", message, now, run)


def remembered(
    status: ImprovementCycleStatus,
    spec: ImprovementCycleSpec,
    version: str,
    digest: str,
    reason: str,
    message: str,
    at: datetime,
) -> ImprovementCycleStatus:
    """A rejection that the version itself remembers and the cycle has lost; no news, so history stays as it is."""
    return _rejected(status, spec, version, digest, reason, message, at)


def is_rejected(status: ImprovementCycleStatus, spec: ImprovementCycleSpec, digest: str) -> Rejected | None:
    """The standing rejection of a digest; None when there is none or a person named it in rollout.retryDigests.

    A person's word is good for one more try: once that is rejected as well, the digest has to be taken out of the list
    and named again.
    """
    found = next((r for r in reversed(status.rejected) if r.digest == digest), None)
    if found is None or (digest in spec.rollout.retry_digests and not found.retried):
        return None
    return found


def refreshed(status: ImprovementCycleStatus, spec: ImprovementCycleSpec) -> ImprovementCycleStatus:
    """Re-arms used-up words of rollout.retryDigests that a person has taken out of the list."""
    named = set(spec.rollout.retry_digests)
    if not any(r.retried and r.digest not in named for r in status.rejected):
        return status
    rejected = [r if r.digest in named else r.model_copy(update={"retried": False}) for r in status.rejected]
    return status.model_copy(update={"rejected": rejected})


def is_known_good(status: ImprovementCycleStatus, digest: str) -> bool:
    """Whether a version with this digest served everybody and stood its bake, and was not rejected since.

    The bare base model (empty digest) always is: it is what every cycle begins with.
    """
    good = max((g.at for g in status.last_good if g.digest == digest), default=None)
    bad = max((r.at for r in status.rejected if r.digest == digest), default=None)
    if not digest:
        return True
    return good is not None and (bad is None or good > bad)


def expired(status: ImprovementCycleStatus, spec: ImprovementCycleSpec, now: datetime) -> list[RetiredArm]:
    """Retired arms whose scaleDownDelay is over and that no arm in service uses."""
    used = _in_service(status)
    delay = spec.rollout.scale_down_delay
    return [r for r in status.serving.retired if now - r.since >= delay and r.deployment not in used]


def removed(status: ImprovementCycleStatus, deployment: str) -> ImprovementCycleStatus:
    """Without that retired arm, once its Deployment is gone."""
    retired = [r for r in status.serving.retired if r.deployment != deployment]
    return status.model_copy(update={"serving": status.serving.model_copy(update={"retired": retired})})


def _open_decision(status: ImprovementCycleStatus) -> tuple[RolloutStatus, RolloutDecision] | None:
    """The rollout and its decision, unless it is still going on or is settled already."""
    rollout = status.rollout
    if rollout is None or rollout.phase != "Done" or rollout.decision is None or rollout.settled:
        return None
    return rollout, rollout.decision


def _settled(status: ImprovementCycleStatus, rollout: RolloutStatus) -> ImprovementCycleStatus:
    return status.model_copy(update={"rollout": rollout.model_copy(update={"settled": True})})


def _without_candidate(status: ImprovementCycleStatus, version: str, now: datetime) -> ImprovementCycleStatus:
    candidate = status.serving.candidate
    if candidate is None or candidate.version != version:
        return status
    stable = status.serving.stable
    retired = _retired(status, candidate, None if stable is None else stable.deployment, now)
    serving = status.serving.model_copy(update={"candidate": None, "retired": retired})
    return status.model_copy(update={"serving": serving})


def _retired(status: ImprovementCycleStatus, arm: Arm | None, kept: str | None, now: datetime) -> list[RetiredArm]:
    """The retired arms with `arm` among them, but never the Deployment that stays in service."""
    named = {kept, None if arm is None else arm.deployment}
    others = [r for r in status.serving.retired if r.deployment not in named]
    if arm is None or arm.deployment == kept:
        return others
    return _last([*others, RetiredArm(version=arm.version, deployment=arm.deployment, since=now)], 32)


def _in_service(status: ImprovementCycleStatus) -> set[str]:
    return {arm.deployment for arm in (status.serving.stable, status.serving.candidate) if arm is not None}


def _rejected(
    status: ImprovementCycleStatus,
    spec: ImprovementCycleSpec,
    version: str,
    digest: str,
    reason: str,
    message: str,
    at: datetime,
) -> ImprovementCycleStatus:
    entry = Rejected(
        digest=digest,
        version=version,
        reason=reason,
        message=message,
        at=at,
        retried=digest in spec.rollout.retry_digests,
    )
    others = [r for r in status.rejected if r.digest != digest]
    return status.model_copy(update={"rejected": _last([*others, entry], REJECTED_LIMIT)})


def _noted(
    status: ImprovementCycleStatus,
    spec: ImprovementCycleSpec,
    version: str,
    outcome: RunOutcome,
    message: str,
    at: datetime,
    run: int | None,
) -> ImprovementCycleStatus:
    entry = HistoryEntry(version=version, run=run, outcome=outcome, message=message, at=at)
    return status.model_copy(update={"history": _last([*status.history, entry], spec.history_limit)})


def _last(entries: Iterable[_T], limit: int) -> list[_T]:
    return list(entries)[-limit:]
