"""Approvals: whether a person has let a version go on, and what is said while they have not.

Room: operator/domain. Pure. An approval names the digest of what it approves, so that it speaks of these bytes and no
others: one that names another digest is none. A late one still counts; only nothing waits for it any more.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from ratchet_api.base import format_duration
from ratchet_api.names import approval_annotation, approval_command
from ratchet_api.promotion import Gate, Promotion
from ratchet_api.reasons import Reason
from ratchet_api.version import ModelVersion
from ratchet_operator.domain import estimate
from ratchet_operator.domain.phases import Remark


@dataclass(frozen=True)
class Awaited:
    """An approval that is not there."""

    remark: Remark
    """What to type."""
    expiry: timedelta
    """How long it is waited for."""

    def expired(self, since: datetime, now: datetime) -> Remark | None:
        """What is said when it has been waited for too long, else None."""
        if now - since <= self.expiry:
            return None
        text = f"nobody approved within {format_duration(self.expiry)}: {self.remark.message}"
        return Remark(Reason.APPROVAL_EXPIRED, text)


def awaited(promotion: Promotion, gate: Gate, version: ModelVersion, digest: str) -> Awaited | None:
    """The approval that the version needs at a gate and has not got; None when it may go on."""
    if promotion.mode != "Approval" or gate not in promotion.before:
        return None
    name = version.metadata.name
    given = version.metadata.annotations.get(approval_annotation(gate), "").strip()
    if given == digest:
        return None
    wrong = f"the approval names {given}, which is not what waits; " if given else ""
    seen = version.status.training
    said = seen.estimate if gate == "Training" and seen is not None else None
    cost = f" ({estimate.words(said)})" if said is not None else ""
    text = f"{name} waits for a person before {_WHAT[gate]}{cost}: {wrong}{approval_command(gate, name, digest)}"
    return Awaited(Remark(Reason.AWAITING_APPROVAL, text), promotion.expiry)


_WHAT: dict[Gate, str] = {"Training": "it is trained", "Canary": "its canary", "Promotion": "it gets all sessions"}
