"""serving.version, the pointer that a person or Git holds: which version may have the next rollout.

Room: operator/domain. Pure. Without a pointer every accepted version gets its rollout, the oldest acceptance first.
With one, only the version that it names does, and what is on its way for another one goes back without blame. A
version that served well before returns without gate and steps; one that was rejected is not obeyed until the pointer
says something else, however often it is applied.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ratchet_api.cycle import ImprovementCycle
from ratchet_api.reasons import Reason
from ratchet_api.version import ModelVersion
from ratchet_operator.domain import ledger, versions
from ratchet_operator.domain.phases import Remark
from ratchet_operator.domain.versions import Standing


@dataclass(frozen=True)
class Pointer:
    """What the pointer asks for now. All empty: nothing is to be done."""

    wanted: ModelVersion | None = None
    """The version whose rollout may begin."""
    stalled: Remark | None = None
    """Why it cannot be followed before a person changes something."""
    waiting: Remark | None = None
    """Why it cannot be followed yet."""


def follow(cycle: ImprovementCycle, found: Sequence[ModelVersion]) -> Pointer:
    """What to do for a cycle that has a champion and no rollout going on."""
    name, stable = cycle.spec.serving.version, cycle.status.serving.stable
    if name is None:
        return Pointer(wanted=next(iter(versions.candidates(found, cycle)), None))
    if stable is not None and stable.version == name:
        return Pointer()
    version = next((v for v in found if v.metadata.name == name and v.metadata.deletion_timestamp is None), None)
    if version is None:
        text = f"there is no ModelVersion {name} of this cycle: apply it, or write another name"
        return _stalled(Reason.MISSING_VERSION, text)
    now = versions.standing(version, cycle)
    return _refusal(cycle, version, now) or _progress(cycle, version, now)


def elsewhere(cycle: ImprovementCycle, version: str) -> str | None:
    """A sentence when the pointer names another version than this one, else None."""
    name = cycle.spec.serving.version
    return None if name in (None, version) else f"serving.version names {name}"


def _refusal(cycle: ImprovementCycle, version: ModelVersion, now: Standing) -> Pointer | None:
    name, last = version.metadata.name, cycle.status.rollout
    edited = last is None or not versions.is_of(last, version) or cycle.metadata.generation > last.generation
    decision = None if last is None or edited else last.decision
    if decision is not None and decision.outcome == "Returned":
        text = f"{name} was taken back ({decision.message}): change the cycle to try it again, or name another version"
        return _stalled(Reason(decision.reason), text)
    # The bare base model has no digest that could be remembered as rejected: only its last rollout speaks against it.
    rejected = now.rejected if not now.root or decision is not None else None
    known = ledger.is_rejected(cycle.status, cycle.spec, versions.digest(version))
    if rejected is None and known is not None:
        rejected = Remark(Reason.ALREADY_REJECTED, f"as {known.version}: {known.message}")
    if rejected is not None:
        reason = Reason.ROLLED_BACK_PENDING_GIT if now.outcome == "RolledBack" else rejected.reason
        champion = cycle.status.serving.stable
        instead = "" if champion is None else f": write {champion.version}, which serves, or another version"
        return _stalled(reason, f"{name} is rejected ({rejected.message}){instead}")
    if now.failed is not None:
        return _stalled(now.failed.reason, f"{name} failed ({now.failed.message}): name another version")
    return None


def _progress(cycle: ImprovementCycle, version: ModelVersion, now: Standing) -> Pointer:
    if versions.served_well(version, cycle):
        return Pointer(wanted=version)
    if now.accepted is True and versions.recorded_as_accepted(version):
        needed = versions.canary_approval(version, cycle)
        return Pointer(wanted=version) if needed is None else Pointer(waiting=needed.remark)
    return Pointer(waiting=Remark(Reason.PENDING, f"serving.version: {version.metadata.name} is not accepted yet"))


def _stalled(reason: Reason, text: str) -> Pointer:
    return Pointer(stalled=Remark(reason, f"serving.version: {text}"))
