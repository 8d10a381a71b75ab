"""promotion.mode Git in a cycle's pass: what is proposed, what has come of it, and the next visit to Git.

Room: operator, reconcile. The decisions are domain.proposal's. A pass only ever starts a visit and takes its finding:
a Git server that hangs holds up nobody, and no trouble with it touches what serves.
"""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Protocol

from ratchet_api.cycle import ImprovementCycle, ImprovementCycleStatus
from ratchet_api.promotion import Proposal
from ratchet_api.reasons import Reason
from ratchet_api.version import ModelVersion
from ratchet_operator.clients.git.proposer import Errand
from ratchet_operator.clients.git.trouble import Trouble
from ratchet_operator.domain import evidence, proposal
from ratchet_operator.domain.phases import Remark
from ratchet_operator.reconcile.context import Context

RESTING = ("Merged", "Arrived", "Withdrawn")
"""Nothing is to be asked of Git."""


class Pass(Protocol):
    """What is needed of a CyclePass."""

    ctx: Context
    now: datetime
    status: ImprovementCycleStatus
    versions: list[ModelVersion]
    stalled: list[Remark]
    waiting: list[Remark]
    wake: list[datetime | float | None]

    @property
    def cycle(self) -> ImprovementCycle: ...

    def update(self, **fields: object) -> None: ...

    def tell(self, warning: bool, reason: Reason, message: str) -> None: ...


def advance(this: Pass) -> None:
    """Decide, and enter what the last visit has found."""
    meta, before = this.cycle.metadata, this.status.promotion
    after = proposal.decide(this.cycle, this.versions, this.now)
    finding = this.ctx.desk.take((meta.namespace, meta.name))
    if after is not None and finding is not None and _is_about(finding.proposal, after):
        if isinstance(finding.seen, Trouble):
            said = finding.seen
            after = proposal.with_trouble(after, said.reason, said.message, meta.generation, this.now)
        else:
            after = proposal.with_seen(after, finding.seen, meta.generation)
    if after is not before:
        this.update(promotion=after)
        _tell(this, before, after)
    stalled, waiting = proposal.remark(this.cycle)
    _say(this, stalled, waiting)


def _is_about(then: Proposal, now: Proposal) -> bool:
    return (then.branch, then.state, then.replaces) == (now.branch, now.state, now.replaces)


def _tell(this: Pass, before: Proposal | None, after: Proposal | None) -> None:
    """Events: a new state, a new trouble."""
    if after is None:
        return
    same = before is not None and before.branch == after.branch
    if after.reason and not (same and before is not None and before.reason == after.reason):
        this.tell(True, Reason(after.reason), after.message)
    elif not same or (before is not None and before.state != after.state):
        match after.state:
            case "Pushed" | "Open" | "Withdrawn":
                this.tell(False, Reason.PROPOSED, proposal.words(after))
            case "Merged" | "Arrived":
                this.tell(False, Reason.MERGED, proposal.words(after))
            case "Closed":
                this.tell(True, Reason.PULL_REQUEST_CLOSED, proposal.words(after))
            case "Pending" | "Withdrawing":
                pass


def _say(this: Pass, stalled: Remark | None, waiting: Remark | None) -> None:
    """Into the conditions. After a rollback the cycle is stalled anyway: how far the way back is belongs there."""
    said = stalled or waiting
    for number, remark in enumerate(this.stalled):
        if said is not None and remark.reason is Reason.ROLLED_BACK_PENDING_GIT:
            this.stalled[number] = replace(remark, message=f"{remark.message}; {said.message}")
            return
    if stalled is not None:
        this.stalled.append(stalled)
    if waiting is not None:
        this.waiting.append(waiting)


def act(this: Pass) -> None:
    """Start the next visit if it is due, else see to it that the pass after next does."""
    cycle, found = this.cycle, this.status.promotion
    git, key = cycle.spec.promotion.git, (cycle.metadata.namespace, cycle.metadata.name)
    if found is None or git is None or found.state in RESTING or this.ctx.desk.busy(key):
        return
    begun = this.ctx.desk.begun(key)
    due = this.now if begun is None else begun + _delay(this, found, cycle.metadata.generation)
    if due > this.now:
        this.wake.append(due)
        return
    about = found.version if found.kind == "Promote" else found.replaces
    version = next((v for v in this.versions if v.metadata.name == about), None)
    errand = Errand(
        git=git,
        namespace=key[0],
        cycle=key[1],
        proposal=found,
        title=evidence.title(cycle, found),
        body=evidence.body(cycle, found, version),
        commit_message=evidence.commit_message(cycle, found, version),
    )
    this.ctx.desk.start(key, errand, this.now)


def _delay(this: Pass, found: Proposal, generation: int) -> timedelta:
    """Since the beginning of the last visit. A failing one is repeated ever more slowly, unless a person has changed
    the cycle meanwhile."""
    pace = this.ctx.settings.pace
    if found.generation != generation:
        return timedelta(0)
    if found.failed_since is not None:
        age = (this.now - found.failed_since).total_seconds()
        return timedelta(seconds=min(pace.forge_last, max(pace.forge_first, age / 4)))
    return timedelta(seconds=0.0 if found.state in ("Pending", "Withdrawing") else pace.forge)
