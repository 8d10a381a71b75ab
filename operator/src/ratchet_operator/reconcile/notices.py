"""Notices in a cycle's pass: what is owed goes into the status, and is sent once that is written.

Room: operator, reconcile. The decisions are domain.notices'. A pass only ever starts a delivery: a receiver that hangs
holds up nobody.
"""

from datetime import datetime
from typing import Protocol

from ratchet_api.cycle import ImprovementCycle, ImprovementCycleStatus
from ratchet_api.reasons import Reason
from ratchet_api.version import ModelVersion
from ratchet_operator.domain import notices
from ratchet_operator.reconcile.context import Context


class Pass(Protocol):
    """What is needed of a CyclePass."""

    ctx: Context
    now: datetime
    before: ImprovementCycle
    status: ImprovementCycleStatus
    versions: list[ModelVersion]
    wake: list[datetime | float | None]

    def update(self, **fields: object) -> None: ...

    def tell(self, warning: bool, reason: Reason, message: str) -> None: ...


def advance(this: Pass) -> None:
    """Strike off what was delivered, and enter what this pass has decided; after everything else was."""
    meta, owed = this.before.metadata, this.before.status.notifications
    key = (meta.namespace, meta.name)
    settled = this.ctx.courier.settled(key, meta.uid, owed.outbox if owed is not None else ())
    troubles = this.ctx.courier.troubles(key, meta.uid)
    decision = notices.decide(this.before, this.status, this.versions, settled, troubles, this.now)
    if decision.status != owed:
        this.update(notifications=decision.status)
    for text in decision.warnings:
        this.tell(True, Reason.NOTIFICATION_FAILED, text)


def act(this: Pass) -> None:
    """Send what is due."""
    owed, meta = this.status.notifications, this.before.metadata
    if owed is None or not owed.outbox:
        return
    sinks = this.before.spec.notifications
    this.wake.append(this.ctx.courier.deliver((meta.namespace, meta.name), meta, sinks, owed.outbox, this.now))
    this.wake.append(max(owed.outbox[0].at + notices.GIVE_UP, this.now))
