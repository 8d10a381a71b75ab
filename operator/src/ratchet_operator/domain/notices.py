"""Which transitions the receivers in spec.notifications have to be told, and what is still owed to whom.

Room: operator/domain. Pure. A notice is decided on by comparing the status that was read with the one about to be
written, and is written with it: no crash can come between a transition and its notice.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from ratchet_api.conditions import find
from ratchet_api.cycle import Check, ImprovementCycle, ImprovementCycleStatus, RolloutStatus
from ratchet_api.notifications import OUTBOX_LIMIT, CycleEvent, Notice, Notification, NotificationsStatus, SinkTrouble
from ratchet_api.reasons import ConditionType, Reason
from ratchet_api.version import ModelVersion
from ratchet_operator.domain import approval, proposal, versions

GIVE_UP = timedelta(hours=24)
"""Age at which a notice that could not be delivered is dropped."""
_GATE = (Reason.NOT_BETTER, Reason.GUARDRAIL_LOST, Reason.SAFETY_LOST, Reason.SLICE_LOST, Reason.UNDERPOWERED)
_LONGEST = 1024

Settled = Mapping[tuple[str, str], str]
"""(notice id, receiver) -> empty when it was delivered, else why it never will be."""


@dataclass(frozen=True)
class Decision:
    """What status.notifications is to be, and what is to be said about receivers."""

    status: NotificationsStatus | None
    warnings: tuple[str, ...] = ()


def decide(
    before: ImprovementCycle,
    after: ImprovementCycleStatus,
    found: Sequence[ModelVersion],
    settled: Settled,
    troubles: Mapping[str, str],
    now: datetime,
) -> Decision:
    """`before`: the cycle as it was read; `after`: its status to be; `troubles`: receiver -> what is wrong now."""
    sinks = {sink.name: sink for sink in before.spec.notifications}
    old = before.status.notifications or NotificationsStatus()
    if not sinks:
        return Decision(None)
    awaited = _awaited(before, after, found)
    fresh = [*transitions(before.status, after, before.metadata.uid, now)]
    fresh += [
        _notice(before.metadata.uid, "AwaitingApproval", now, **fields)
        for mark, fields in awaited.items()
        if mark not in old.awaiting
    ]
    warnings: list[str] = []
    outbox = [*_kept(old.outbox, sinks, settled, now, warnings), *_addressed(fresh, sinks)]
    for notice in outbox[:-OUTBOX_LIMIT]:
        warnings += [_lost(name, notice, f"more than {OUTBOX_LIMIT} wait") for name in notice.pending]
    outbox = outbox[-OUTBOX_LIMIT:]
    failing = _failing(old, outbox, settled, troubles, now)
    known = {trouble.name for trouble in old.failing}
    warnings += [
        f"notifications[{trouble.name}]: {trouble.message}; tried again for {_hours(GIVE_UP)}"
        for trouble in failing
        if trouble.name not in known
    ]
    status = NotificationsStatus(outbox=outbox, failing=failing, awaiting=sorted(awaited)[:16])
    return Decision(status if status != NotificationsStatus() else None, tuple(warnings))


def _hours(span: timedelta) -> str:
    return f"{span.total_seconds() / 3600:.0f} h"


def _lost(name: str, notice: Notice, why: str) -> str:
    return f"notifications[{name}]: the notice {notice.event} is given up: {why}"


def _kept(
    outbox: Iterable[Notice], sinks: Mapping[str, Notification], settled: Settled, now: datetime, warnings: list[str]
) -> Iterator[Notice]:
    for notice in outbox:
        pending = []
        for name in notice.pending:
            why = settled.get((notice.id, name))
            if why is None and name in sinks and now - notice.at > GIVE_UP:
                why = f"not delivered within {_hours(GIVE_UP)}"
            if why:
                warnings.append(_lost(name, notice, why))
            elif why is None and name in sinks:
                pending.append(name)
        if pending:
            yield notice if pending == notice.pending else notice.model_copy(update={"pending": pending})


def _addressed(fresh: Iterable[Notice], sinks: Mapping[str, Notification]) -> Iterator[Notice]:
    for notice in fresh:
        pending = [name for name, sink in sinks.items() if notice.event in sink.events]
        if pending:
            yield notice.model_copy(update={"pending": pending})


def _failing(
    old: NotificationsStatus, outbox: Sequence[Notice], settled: Settled, troubles: Mapping[str, str], now: datetime
) -> list[SinkTrouble]:
    owed = {name for notice in outbox for name in notice.pending}
    taken = {name for (_, name), why in settled.items() if not why}
    kept = {trouble.name: trouble for trouble in old.failing if trouble.name in owed and trouble.name not in taken}
    for name, message in troubles.items():
        if name in owed:
            since = kept[name].since if name in kept else now
            kept[name] = SinkTrouble(name=name, since=since, message=message[:_LONGEST])
    return [kept[name] for name in sorted(kept)]


# What has happened


def _notice(uid: str, event: CycleEvent, at: datetime, **fields: Any) -> Notice:
    told = (uid, event, fields.get("version", ""), fields.get("run"), fields.get("step"), fields.get("message"), at)
    fields["message"] = str(fields.get("message", ""))[:_LONGEST]
    return Notice(
        id=hashlib.sha256("/".join(map(str, told)).encode()).hexdigest()[:32],
        event=event,
        at=at,
        **{key: value for key, value in fields.items() if value is not None},
    )


def transitions(
    before: ImprovementCycleStatus, after: ImprovementCycleStatus, uid: str, now: datetime
) -> Iterator[Notice]:
    """All that happened between two statuses but approvals; `uid`: the cycle's."""
    for event, at, fields in [
        *_of_run(before, after, now),
        *_of_gate(before, after, now),
        *_of_proposal(before, after, now),
        *_of_rollout(before, after, now),
        *_of_stalling(before, after, now),
    ]:
        yield _notice(uid, event, at, **fields)


_Told = tuple[CycleEvent, datetime, dict[str, Any]]


def _of_run(before: ImprovementCycleStatus, after: ImprovementCycleStatus, now: datetime) -> Iterator[_Told]:
    new, old = after.run, before.run
    if new is None:
        return
    if old is None or old.number != new.number:
        yield "RunStarted", new.started_at, {"run": new.number, "message": f"run {new.number} starts"}
        old = None
    ended = new.outcome is not None and (old is None or old.outcome is None)
    fields = {"run": new.number, "version": new.version, "message": f"run {new.number}: {new.message}"}
    if ended and new.outcome == "Skipped":
        yield "RunSkipped", new.finished_at or now, fields | {"reason": str(Reason.SKIPPED)}
    elif ended and new.outcome == "Failed":
        why = new.curate.reason if new.curate is not None and new.version is None else ""
        yield "RunFailed", new.finished_at or now, fields | {"reason": why}
    elif ended and new.outcome == "Returned" and (after.rollout is None or after.rollout.version != new.version):
        yield "Returned", new.finished_at or now, fields | {"reason": str(Reason.APPROVAL_EXPIRED)}


def _of_gate(before: ImprovementCycleStatus, after: ImprovementCycleStatus, now: datetime) -> Iterator[_Told]:
    new, old = after.run, before.run
    passed = new is not None and (new.stage == "RollingOut" or new.outcome == "Accepted")
    already = old is not None and new is not None and old.number == new.number
    if new is not None and passed and not (already and old is not None and old.stage in ("RollingOut", "Done")):
        text = f"run {new.number}: {new.version} passed its gate"
        yield (
            "GateAccepted", now,
            {"run": new.number, "version": new.version, "reason": str(Reason.ACCEPTED), "message": text},
        )  # fmt: skip
    known = {(entry.digest, entry.at) for entry in before.rejected}
    for entry in after.rejected:
        if (entry.digest, entry.at) not in known and entry.reason in _GATE and now - entry.at <= GIVE_UP:
            fields = {"version": entry.version, "digest": entry.digest, "reason": entry.reason}
            yield "GateRejected", entry.at, fields | {"message": f"{entry.version} was rejected: {entry.message}"}


def _of_proposal(before: ImprovementCycleStatus, after: ImprovementCycleStatus, now: datetime) -> Iterator[_Told]:
    new, old = after.promotion, before.promotion
    if new is None or (old is not None and (old.branch, old.state) == (new.branch, new.state)):
        return
    fields = {"version": new.version, "url": new.pull_request, "message": proposal.words(new)}
    if new.state in ("Pushed", "Open"):
        yield "ProposalOpened", now, fields | {"reason": str(Reason.PROPOSED)}
    elif new.state == "Closed":
        yield "ProposalClosed", now, fields | {"reason": str(Reason.PULL_REQUEST_CLOSED)}


def _of_rollout(before: ImprovementCycleStatus, after: ImprovementCycleStatus, now: datetime) -> Iterator[_Told]:
    new, old = after.rollout, before.rollout
    if new is None:
        return
    if old is not None and (old.version, old.started_at) != (new.version, new.started_at):
        old = None
    fields = {"version": new.version, "digest": new.digest, "weight": new.weight}
    name = new.version
    if new.phase == "Canary" and (old is None or old.phase == "Starting"):
        text = f"the canary of {name} begins at {new.weight} %"
        yield "CanaryStarted", now, fields | {"step": new.step, "reason": str(Reason.CANARY), "message": text}
    elif old is not None and old.phase == new.phase == "Canary" and new.step > old.step:
        text = f"{name} goes on to {new.weight} %: {new.summary}"
        yield "StepAdvanced", now, fields | {"step": new.step, "reason": str(Reason.CANARY), "message": text}
    if new.phase == "Baking" and (old is None or old.phase != "Baking"):
        yield "BakeStarted", now, fields | {"reason": str(Reason.BAKING), "message": f"{name} takes all sessions"}
    if new.held_since is not None and (old is None or old.held_since is None):
        text = f"{name} is held at {new.weight} %: {_unknown(new)}"
        yield "Held", new.held_since, fields | {"reason": str(Reason.HELD), "message": text}
    decision = new.decision
    if decision is not None and (old is None or old.decision is None):
        words = {"reason": decision.reason, "message": f"{name}: {decision.message}"}
        check = next((check for check in new.checks if check.name == decision.check), None)
        yield decision.outcome, decision.at, fields | words | _measured(check)


def _unknown(rollout: RolloutStatus) -> str:
    said = [check.message or check.reason for check in rollout.checks if check.verdict == "Unknown"]
    return "; ".join(said) or rollout.summary or "not enough evidence"


def _measured(check: Check | None) -> dict[str, Any]:
    if check is None:
        return {}
    return {
        "check": check.name,
        "measured": check.candidate,
        "limit": check.limit,
        "lower": check.lower,
        "upper": check.upper,
        "samples": check.candidate_samples,
    }


def _of_stalling(before: ImprovementCycleStatus, after: ImprovementCycleStatus, now: datetime) -> Iterator[_Told]:
    old, new = find(before.conditions, ConditionType.STALLED), find(after.conditions, ConditionType.STALLED)
    was = old.reason if old is not None and old.status == "True" else ""
    if new is not None and new.status == "True" and new.reason != was:
        yield "Stalled", now, {"reason": new.reason, "message": new.message}
    elif was and old is not None and (new is None or new.status != "True"):
        yield "Recovered", now, {"reason": was, "message": f"no longer stalled: {old.message}"}


def _awaited(
    cycle: ImprovementCycle, after: ImprovementCycleStatus, found: Sequence[ModelVersion]
) -> dict[str, dict[str, Any]]:
    """Mark -> fields, of every approval that is waited for now."""
    awaited: dict[str, dict[str, Any]] = {}
    for version in found:
        words = [c.message for c in version.status.conditions if _waits(c.reason, c.status)]
        digest, rollout = versions.digest(version), after.rollout
        if rollout is not None and rollout.awaiting_since is not None and versions.is_of(rollout, version):
            wanted = approval.awaited(cycle.spec.promotion, "Promotion", version, digest)
            words += [] if wanted is None or rollout.phase == "Done" else [wanted.remark.message]
        for text in words:
            mark = hashlib.sha256(f"{version.metadata.uid}/{text}".encode()).hexdigest()[:16]
            awaited[mark] = {
                "version": version.metadata.name,
                "digest": digest,
                "run": version.spec.run,
                "reason": str(Reason.AWAITING_APPROVAL),
                "message": text,
            }
    return awaited


def _waits(reason: str, status: str) -> bool:
    return reason == Reason.AWAITING_APPROVAL and status == "True"
