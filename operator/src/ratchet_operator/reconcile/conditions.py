"""What reconcilers of both kinds say in the same way: first words, unreadable objects, being stalled.

Room: operator, reconcile.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Literal

from pydantic import ValidationError

from ratchet_api.base import ObjectMeta
from ratchet_api.conditions import Condition, find, is_true, merged
from ratchet_api.names import CYCLE_KIND
from ratchet_api.reasons import ConditionType, Reason
from ratchet_operator.clients.events import Subject
from ratchet_operator.errors import InvalidObject, Stalling
from ratchet_operator.reconcile.context import Context


def first(generation: int, now: datetime, message: str) -> list[Condition]:
    """The first words on a new object: without them kstatus would take it for finished."""
    conditions = merged([], ConditionType.RECONCILING, True, Reason.PENDING, message, generation, now)
    return merged(conditions, ConditionType.READY, False, Reason.PENDING, message, generation, now)


async def unreadable(ctx: Context, kind: Literal["ImprovementCycle", "ModelVersion"], error: InvalidObject) -> None:
    """Say in the object's conditions that it cannot be read; only a change of it can help."""
    now, meta = ctx.now(), error.meta
    try:
        before = [Condition.model_validate(condition) for condition in error.conditions]
    except ValidationError:
        before = []
    text = f"{error.message}: correct the field, or apply the object again"
    after = merged(before, ConditionType.STALLED, True, Reason.INVALID_SPEC, text, meta.generation, now)
    after = merged(after, ConditionType.RECONCILING, False, Reason.INVALID_SPEC, text, meta.generation, now)
    if kind != CYCLE_KIND:
        # A cycle's arms go on serving whatever its spec looks like now.
        after = merged(after, ConditionType.READY, False, Reason.INVALID_SPEC, text, meta.generation, now)
    if after != before:
        await ctx.kube.write_conditions(kind, meta, [condition.dump() for condition in after])
        await ctx.events.post(Subject(kind, meta), "Warning", Reason.INVALID_SPEC, text, now)


@asynccontextmanager
async def said_if_refused(
    ctx: Context, kind: Literal["ImprovementCycle", "ModelVersion"], meta: ObjectMeta, before: Sequence[Condition]
) -> AsyncIterator[None]:
    """Around a status write: one that the API server refuses is a bug of ours, and must not be a silent one."""
    try:
        yield
    except Stalling as error:
        now = ctx.now()
        text = f"the status could not be written, which is a bug: {error.message}"
        after = merged(before, ConditionType.STALLED, True, Reason.INTERNAL_ERROR, text, meta.generation, now)
        if after != list(before):
            await ctx.kube.write_conditions(kind, meta, [condition.dump() for condition in after])
        raise


def newly_stalled(before: Sequence[Condition], after: Sequence[Condition]) -> Condition | None:
    """The Stalled condition, when it is new or has another reason than before."""
    new, old = find(after, ConditionType.STALLED), find(before, ConditionType.STALLED)
    if new is None or new.status != "True":
        return None
    return new if old is None or (old.status, old.reason) != (new.status, new.reason) else None


def stalled_delay(ctx: Context, conditions: Sequence[Condition], now: datetime) -> float | None:
    """How soon to look again at something that is missing: a quarter of the time it has been missing for, in bounds."""
    found = find(conditions, ConditionType.STALLED)
    if found is None or not is_true(conditions, ConditionType.STALLED):
        return None
    pace = ctx.settings.pace
    age: timedelta = now - found.last_transition_time
    return min(pace.stalled_last, max(pace.stalled_first, age.total_seconds() / 4))
