"""When runs start: zones, changes of the clocks, missed times, cooldown."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratchet_api.cycle import Trigger
from ratchet_operator.domain.schedule import due, next_run


def at(text: str) -> datetime:
    """A time in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def trigger(schedule: str | None = "0 2 * * 1", zone: str = "Etc/UTC", cooldown: int = 0) -> Trigger:
    """A schedule; cooldown in hours."""
    return Trigger(schedule=schedule, time_zone=zone, cooldown=timedelta(hours=cooldown))


@pytest.mark.parametrize(
    ("schedule", "zone", "after", "expected"),
    [
        pytest.param("0 2 * * 1", "Etc/UTC", "2026-11-22T12:00", "2026-11-23T02:00", id="Mondays at two"),
        pytest.param("0 2 * * 1", "Etc/UTC", "2026-11-23T02:00", "2026-11-30T02:00", id="later, not at"),
        pytest.param("0 2 * * MON", "Europe/Berlin", "2026-11-22T12:00", "2026-11-23T01:00", id="Berlin in winter"),
        pytest.param("0 2 * * 1", "Europe/Berlin", "2026-07-01T12:00", "2026-07-06T00:00", id="Berlin in summer"),
        pytest.param("30 2 * * *", "Europe/Berlin", "2026-03-29T00:00", "2026-03-29T01:00", id="the skipped hour"),
        pytest.param("30 2 * * *", "Europe/Berlin", "2026-10-25T00:00", "2026-10-25T00:30", id="the doubled hour once"),
        pytest.param("30 2 * * *", "Europe/Berlin", "2026-10-25T00:45", "2026-10-26T01:30", id="not a second time"),
        pytest.param("*/15 * * * *", "Asia/Kathmandu", "2026-11-22T12:01", "2026-11-22T12:15", id="a zone of 5:45"),
        pytest.param("0 0 29 2 *", "Etc/UTC", "2026-11-22T12:00", "2028-02-29T00:00", id="the next leap day"),
        pytest.param("0 0 1 1 *", "Etc/UTC", "2026-12-31T23:59:59", "2027-01-01T00:00", id="new year"),
    ],
)
def test_next_run(schedule: str, zone: str, after: str, expected: str) -> None:
    assert next_run(trigger(schedule, zone), at(after)) == at(expected)


def test_without_a_schedule_only_people_start_runs() -> None:
    assert next_run(trigger(None), at("2026-11-22T12:00")) is None
    assert not due(trigger(None), at("2000-01-01T00:00"), at("2026-11-22T12:00"))


@pytest.mark.parametrize("zone", ["Mars/Olympus", "Europe/", "../etc/passwd", "Berlin"])
def test_an_unknown_zone_is_a_sentence(zone: str) -> None:
    bad = Trigger.model_construct(schedule="0 2 * * 1", time_zone=zone, cooldown=timedelta(0))
    with pytest.raises(ValueError, match=r'trigger\.timeZone: ".*" is no time zone: write an IANA name'):
        next_run(bad, at("2026-11-22T12:00"))


@pytest.mark.parametrize("schedule", ["0 0 30 2 *", "0 0 31 4,6 *"])
def test_a_schedule_that_never_comes_is_a_sentence(schedule: str) -> None:
    with pytest.raises(ValueError, match=r"trigger\.schedule: "):
        next_run(trigger(schedule), at("2026-11-22T12:00"))


@pytest.mark.parametrize("schedule", ["5-1 * * * *", "61 * * * *", "* * * *", ""])
def test_what_is_no_schedule_is_a_sentence(schedule: str) -> None:
    bad = Trigger.model_construct(schedule=schedule, time_zone="Etc/UTC", cooldown=timedelta(0))
    with pytest.raises(ValueError, match="write five cron fields"):
        next_run(bad, at("2026-11-22T12:00"))


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        pytest.param("2026-11-23T01:59:59", False, id="a second too early"),
        pytest.param("2026-11-23T02:00", True, id="on time"),
        pytest.param("2026-12-24T00:00", True, id="missed for weeks: once, and now"),
    ],
)
def test_due(now: str, expected: bool) -> None:
    assert due(trigger(), at("2026-11-22T12:00"), at(now)) is expected


def test_missed_times_count_once() -> None:
    late = at("2026-12-24T00:00")
    assert due(trigger(), at("2026-11-22T12:00"), late)
    assert not due(trigger(), late, late + timedelta(hours=1))


@pytest.mark.parametrize(
    ("rejected", "now", "expected"),
    [
        pytest.param("2026-11-23T00:00", "2026-11-23T02:00", False, id="within the cooldown"),
        pytest.param("2026-11-23T00:00", "2026-11-29T00:00", False, id="passed over, not put off"),
        pytest.param("2026-11-23T00:00", "2026-11-30T02:00", True, id="the time after it"),
        pytest.param("2026-11-01T00:00", "2026-11-23T02:00", True, id="long ago"),
        pytest.param("2026-11-22T02:00", "2026-11-23T02:00", True, id="just over"),
    ],
)
def test_cooldown_after_a_rejection(rejected: str, now: str, expected: bool) -> None:
    assert due(trigger(cooldown=24), at("2026-11-22T12:00"), at(now), at(rejected)) is expected


@given(
    st.datetimes(datetime(2020, 1, 1), datetime(2035, 1, 1), timezones=st.just(UTC)),
    st.sampled_from(["0 2 * * 1", "*/7 * * * *", "30 2 * * *", "15 1-3 25 10 *", "0 */3 1,15 * FRI"]),
    st.sampled_from(["Etc/UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"]),
)
def test_the_next_run_is_always_later(after: datetime, schedule: str, zone: str) -> None:
    first = next_run(trigger(schedule, zone), after)
    assert first is not None
    assert first > after
    assert first.utcoffset() == timedelta(0)
    assert due(trigger(schedule, zone), after, first)
    assert not due(trigger(schedule, zone), after, first - timedelta(seconds=1))
