"""When the next run starts.

Room: operator/domain. Pure: the schedule's clock times come from cronsim and the zone's rules, `now` from the caller.
"""

from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from ratchet_api.cycle import Trigger

_UTC_NAMES = frozenset({"UTC", "Etc/UTC", "Etc/Zulu", "Zulu", "Etc/UCT", "UCT", "Etc/Universal", "Universal"})
"""Known without a time zone database, which small images may lack."""


def next_run(trigger: Trigger, after: datetime, not_before: datetime | None = None) -> datetime | None:
    """First scheduled time (UTC) later than `after` and not earlier than `not_before`; None without a schedule.

    Across a change of the clocks it does what Debian's cron does: a time that is skipped comes right after the gap,
    one that comes twice counts once. Raises ValueError (a sentence) for an unknown time zone or a schedule that never
    comes.
    """
    if trigger.schedule is None:
        return None
    zone = _zone(trigger.time_zone)
    if not_before is not None:
        after = max(after, not_before - timedelta(microseconds=1))
    try:
        for time in CronSim(trigger.schedule, after.astimezone(zone)):
            start = time.astimezone(UTC)
            # A time inside the repeated hour may be reckoned from its first pass, before `after`.
            if start > after:
                return start
    except CronSimError as error:
        raise ValueError(
            f'trigger.schedule: "{trigger.schedule}" is no schedule ({error}): write five cron fields, '
            'such as "0 2 * * 1" for Mondays at two'
        ) from error
    raise ValueError(
        f'trigger.schedule: "{trigger.schedule}" never comes: write a day that its month has, such as "0 2 28 2 *"'
    )


def due(trigger: Trigger, last: datetime, now: datetime, rejected_at: datetime | None = None) -> bool:
    """Whether a scheduled run should start now.

    `last`: start of the last run, or the cycle's creation. Times missed meanwhile count once. `rejected_at`: the last
    rejection; scheduled times within trigger.cooldown of it are passed over. Raises ValueError as next_run does.
    """
    coming = next_run(trigger, last, None if rejected_at is None else rejected_at + trigger.cooldown)
    return coming is not None and coming <= now


def _zone(name: str) -> tzinfo:
    if name in _UTC_NAMES:
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(
            f'trigger.timeZone: "{name}" is no time zone: write an IANA name, such as "Etc/UTC" or "Europe/Berlin"'
        ) from error
