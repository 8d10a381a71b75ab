"""Events are posted at least once, and not again by who knows that they were."""

from dataclasses import replace
from datetime import datetime
from typing import cast

from operator_world import World

from ratchet_api.base import ObjectMeta
from ratchet_api.reasons import Reason
from ratchet_operator.clients.events import Events, Subject
from ratchet_operator.reconcile.announcing import announce, announced


class Recorder:
    """Takes the place of Events."""

    def __init__(self) -> None:
        self.deaf = False
        self.asked: list[str] = []

    async def post(self, subject: Subject, kind: str, reason: Reason, message: str, at: datetime) -> bool:
        self.asked.append(message)
        return not self.deaf


async def test_what_could_not_be_posted_is_posted_later(fake_world: World) -> None:
    events, now = Recorder(), fake_world.clock()
    ctx = replace(fake_world.context, events=cast(Events, events))
    subject = Subject("ImprovementCycle", ObjectMeta(name="assistant", namespace="default", uid="u"))
    words = announced([], [], [(False, Reason.PROMOTED, "one"), (True, Reason.PENDING, "two")], now)
    events.deaf = True
    assert await announce(ctx, subject, words, now) == words
    assert await announce(ctx, subject, words, now) == words
    events.deaf = False
    assert await announce(ctx, subject, words, now) == []
    assert events.asked == ["one", "two"] * 3
    assert await announce(ctx, subject, words, now) == []
    assert events.asked == ["one", "two"] * 3, "they were said"
