"""When the next run starts.

Room: operator/domain. Pure.
"""

from datetime import datetime

from ratchet_api.cycle import Trigger


def next_run(trigger: Trigger, after: datetime, not_before: datetime | None = None) -> datetime | None:
    """First scheduled time later than `after` and not earlier than `not_before`; None without a schedule.

    Raises ValueError (a sentence) for an unknown time zone or a schedule that never comes.
    """
    raise NotImplementedError


def due(trigger: Trigger, last: datetime, now: datetime, rejected_at: datetime | None = None) -> bool:
    """Whether a scheduled run should start now.

    `last`: start of the last run, or the cycle's creation. Times missed meanwhile count once. `rejected_at`: the last
    rejection, from which trigger.cooldown counts.
    """
    raise NotImplementedError
