"""Events at least once: what is to be said is written with the decision that it speaks of, and posted afterwards.

Room: operator, reconcile. A process that dies between the two leaves the words in the status, where the next one finds
them. An event's name is a hash of what it says, so saying it again is harmless.

Words of one status write share their time. Before the next ones are written, those before them are posted, or take the
new time; so a new process, which knows of nothing that was said, needs to look at the latest ones only.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from ratchet_api.announcements import ANNOUNCEMENTS_LIMIT, Announcement
from ratchet_api.reasons import Reason
from ratchet_operator.clients.events import Subject
from ratchet_operator.reconcile.context import Context

STILL_NEWS = timedelta(minutes=10)
"""How old a word may be that is said again by a process that does not know whether it was said: long enough for any
restart, and no more, so that a restart does not repeat the past of thousands of objects."""
ASK_AGAIN = 5.0
"""Seconds until an event that could not be posted is tried again."""
_LONGEST = 1024

News = tuple[bool, Reason, str]
"""(whether it is a warning, reason, sentence)."""


def announced(
    before: Sequence[Announcement], unsaid: Sequence[Announcement], news: Iterable[News], now: datetime
) -> list[Announcement]:
    """The status' announcements with the news; the very same list without any."""
    fresh = [
        Announcement(type="Warning" if warning else "Normal", reason=str(reason), message=text[:_LONGEST], at=now)
        for warning, reason, text in news
    ]
    if not fresh:
        return list(before)
    late = [word.model_copy(update={"at": now}) for word in unsaid]
    return [*(word for word in before if word not in unsaid), *late, *fresh][-ANNOUNCEMENTS_LIMIT:]


async def announce(ctx: Context, subject: Subject, words: Sequence[Announcement], now: datetime) -> list[Announcement]:
    """Post what this process has not posted yet; returns what could not be posted."""
    uid = subject.meta.uid
    said = ctx.said.pop(uid, None)
    latest = max((word.at for word in words), default=None)
    recent = [word for word in words if now - word.at <= STILL_NEWS]
    if said is None:
        recent = [word for word in recent if word.at == latest]
    unsaid = [word for word in recent if said is None or word not in said]
    failed = [
        word
        for word in unsaid
        if not await ctx.events.post(subject, word.type, Reason(word.reason), word.message, word.at)
    ]
    if recent:
        ctx.said[uid] = frozenset(word for word in words if word not in failed)
    return failed
