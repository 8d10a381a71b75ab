"""promotion.mode Git: which change of the pointer is to be proposed now, and what is said about it.

Room: operator/domain. Pure. At most one change is proposed at a time: the way back after a rollback, else the version
that was accepted last. Its branch is named after what it is about, so that whoever looks for it again finds it. What a
person has closed is not proposed again.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from ratchet_api.cycle import ImprovementCycle, RolloutStatus
from ratchet_api.names import child_name
from ratchet_api.promotion import GitPromotion, Proposal, ProposalKind
from ratchet_api.reasons import Reason
from ratchet_api.version import ModelVersion
from ratchet_operator.domain import pointer, versions
from ratchet_operator.domain.phases import Remark

_WAITING = (Reason.FORGE_UNAVAILABLE, Reason.AWAITING_POINTER)
"""What goes by itself, or by what people do anyway."""
ENDED = ("Arrived", "Closed", "Withdrawn")


@dataclass(frozen=True)
class Change:
    """A change of the pointer that the cycle wants."""

    kind: ProposalKind
    version: str
    """What the pointer shall say."""
    replaces: str
    """What it says."""
    about: ModelVersion | None
    """Promote: the version; Revert: the one that was rolled back."""
    branch: str


@dataclass(frozen=True)
class Seen:
    """What Git and the forge say of a proposal; None: as before."""

    state: str
    commit: str = ""
    number: int | None = None
    url: str = ""
    message: str = ""


def decide(cycle: ImprovementCycle, found: Sequence[ModelVersion], now: datetime) -> Proposal | None:
    """What status.promotion is to be now."""
    current, promotion, says = cycle.status.promotion, cycle.spec.promotion, cycle.spec.serving.version
    if promotion.git is None or promotion.mode != "Git" or says is None:
        return None
    if current is not None and current.version == says and current.state not in ENDED:
        arrived = {"state": "Arrived", "reason": "", "message": "", "failed_since": None}
        return current.model_copy(update=arrived)
    rollout = cycle.status.rollout
    if _goes_on(rollout) or not versions.acknowledged(found, cycle.status):
        return current
    return _next(current, wanted(cycle, found), cycle.metadata.generation, now)


def _goes_on(rollout: RolloutStatus | None) -> bool:
    return rollout is not None and rollout.phase != "Done"


def wanted(cycle: ImprovementCycle, found: Sequence[ModelVersion]) -> Change | None:
    """The change of the pointer that a cycle without a rollout wants."""
    git, says, stable = cycle.spec.promotion.git, cycle.spec.serving.version, cycle.status.serving.stable
    if git is None or says is None or stable is None:
        return None
    refused = pointer.follow(cycle, found).stalled
    if refused is not None and refused.reason is Reason.ROLLED_BACK_PENDING_GIT:
        about = next((v for v in found if v.metadata.name == says), None)
        branch = _branch(git, cycle, f"revert-{says}", stable.version, _rejected_at(cycle, about))
        return Change("Revert", stable.version, says, about, branch)
    if cycle.spec.suspend:
        return None
    ready = [v for v in found if v.metadata.name != says and versions.ready_for_rollout(v, cycle)]
    newest = max(ready, key=lambda v: (versions.accepted_since(v), v.metadata.name), default=None)
    if newest is None:
        return None
    name = newest.metadata.name
    return Change("Promote", name, says, newest, _branch(git, cycle, name, versions.digest(newest)))


def _rejected_at(cycle: ImprovementCycle, about: ModelVersion | None) -> str:
    """When it was rolled back: another rollback of the same version is another way back."""
    decision = cycle.status.rollout.decision if cycle.status.rollout is not None else None
    digest = versions.digest(about) if about is not None else ""
    remembered = [entry.at for entry in cycle.status.rejected if digest and entry.digest == digest]
    at = remembered[-1] if remembered else decision.at if decision is not None else None
    return at.isoformat() if at is not None else ""


def _branch(git: GitPromotion, cycle: ImprovementCycle, name: str, *marks: str) -> str:
    meta = cycle.metadata
    told = "\n".join((meta.namespace, meta.name, name, *marks))
    short = hashlib.sha256(told.encode()).hexdigest()[:8]
    prefix = git.branch_prefix if git.branch_prefix.endswith("/") else f"{git.branch_prefix}-"
    return f"{prefix}{child_name(meta.namespace, name)}-{short}"


def _next(current: Proposal | None, change: Change | None, generation: int, now: datetime) -> Proposal | None:
    if current is not None and change is not None and current.branch == change.branch:
        if current.state in ("Withdrawing", "Withdrawn"):
            return _fresh(change, generation, now)
        return (
            current if current.replaces == change.replaces else current.model_copy(update={"replaces": change.replaces})
        )
    if current is None or current.state in ENDED:
        return current if change is None else _fresh(change, generation, now)
    if current.state == "Withdrawing":
        return current
    if current.state == "Merged":
        return current if change is None else _fresh(change, generation, now)
    why = "it is not wanted any more" if change is None else f"{change.version} is proposed instead"
    return current.model_copy(update={"state": "Withdrawing", "reason": "", "message": why, "failed_since": None})


def _fresh(change: Change, generation: int, now: datetime) -> Proposal:
    return Proposal(
        kind=change.kind,
        version=change.version,
        replaces=change.replaces,
        state="Pending",
        branch=change.branch,
        since=now,
        generation=generation,
    )


def with_seen(proposal: Proposal, seen: Seen, generation: int) -> Proposal:
    """The proposal after Git and the forge were asked."""
    return proposal.model_copy(
        update={
            "state": seen.state,
            "commit": seen.commit or proposal.commit,
            "number": seen.number if seen.number is not None else proposal.number,
            "pull_request": seen.url or proposal.pull_request,
            "message": seen.message or (proposal.message if seen.state == "Withdrawn" else ""),
            "reason": "",
            "failed_since": None,
            "generation": generation,
        }
    )


def with_trouble(proposal: Proposal, reason: Reason, message: str, generation: int, now: datetime) -> Proposal:
    """The proposal after an attempt that failed. The same trouble again changes nothing."""
    if proposal.reason == reason and (proposal.message == message or reason is Reason.FORGE_UNAVAILABLE):
        return proposal.model_copy(update={"generation": generation})
    since = proposal.failed_since or now
    return proposal.model_copy(
        update={"reason": str(reason), "message": message, "failed_since": since, "generation": generation}
    )


def remark(cycle: ImprovementCycle) -> tuple[Remark | None, Remark | None]:
    """(stalled, waiting) of the cycle. A promotion that a person has closed is the version's affair alone."""
    found = cycle.status.promotion
    if found is None or found.state in ("Arrived", "Withdrawn"):
        return None, None
    what = f"the pointer's way to {found.version}"
    if found.reason:
        said = Remark(Reason(found.reason), f"{what}: {found.message}")
        return (None, said) if said.reason in _WAITING else (said, None)
    if found.state == "Merged":
        return None, Remark(Reason.MERGED, f"{what} {_place(found)}, and is not applied yet")
    if found.kind == "Revert":
        return None, Remark(Reason.PULL_REQUEST_CLOSED if found.state == "Closed" else Reason.PROPOSED, words(found))
    return None, None


def of_version(cycle: ImprovementCycle, name: str) -> tuple[Remark | None, Remark | None]:
    """(stalled, waiting) of an accepted version that is proposed; both None when it is not the one."""
    found = cycle.status.promotion
    if found is None or found.kind != "Promote" or found.version != name or found.state in ("Arrived", "Withdrawn"):
        return None, None
    if found.state == "Closed":
        return Remark(Reason.PULL_REQUEST_CLOSED, words(found)), None
    if found.reason:
        return None, Remark(Reason(found.reason), found.message)
    return None, Remark(Reason.MERGED if found.state == "Merged" else Reason.AWAITING_POINTER, words(found))


def words(found: Proposal) -> str:
    """One sentence on how far it is."""
    place = _place(found)
    match found.state:
        case "Pending":
            return found.message or f"a change of serving.version to {found.version} is being proposed in Git"
        case "Pushed":
            return f"accept {place}, which moves serving.version to {found.version}"
        case "Open":
            return f"merge {place}, which moves serving.version to {found.version}"
        case "Merged":
            return f"serving.version: {found.version} is merged in Git; waiting until it is applied"
        case "Closed":
            return (
                f"a person closed {place} without merging it: reopen it, or type "
                f"`ratchet promote CYCLE {found.version}`"
            )
        case "Arrived":
            return f"serving.version says {found.version}"
        case "Withdrawing" | "Withdrawn":
            return f"{place} is withdrawn: {found.message}"


def _place(found: Proposal) -> str:
    return f"pull request {found.pull_request}" if found.pull_request else f"branch {found.branch}"
