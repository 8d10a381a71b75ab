"""Counts, shares and windows."""

import math
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ratchet_cli.people.tally import Exchange, Failed, Tally, percentile

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def exchange(
    second: float = 0, version: str = "a-0", up: bool = True, seconds: float = 1.0, corrected: bool = False
) -> Exchange:
    return Exchange(
        at=NOW + timedelta(seconds=second), session="s", kind="house", prompt="?", answer="!", version=version,
        good=up, up=up, corrected=corrected, seconds=seconds, stream=False,
    )  # fmt: skip


def tally(*exchanges: Exchange) -> Tally:
    made = Tally(window=timedelta(seconds=10))
    for one in exchanges:
        made.sent()
        made.answered(one)
    return made


def test_shares_are_counted_for_each_version() -> None:
    made = tally(exchange(up=True), exchange(up=False), exchange(up=False, corrected=True), exchange(version="a-1"))
    seen = made.snapshot(NOW)
    assert (seen.sent, seen.answered, seen.failed, seen.under_way, seen.corrected) == (4, 4, 0, 0, 1)
    assert seen.versions["a-0"].up_share == pytest.approx(1 / 3)
    assert seen.versions["a-1"].up_share == 1


def test_the_window_forgets_and_the_totals_do_not() -> None:
    made = tally(exchange(0, up=False, seconds=9), exchange(8, up=True, seconds=2))
    seen = made.snapshot(NOW + timedelta(seconds=12)).versions["a-0"]
    assert (seen.up, seen.down, seen.recent_up, seen.recent_down) == (1, 1, 1, 0)
    assert (seen.up_share, seen.recent_up_share, seen.p50, seen.p95) == (0.5, 1.0, 2, 2)


def test_the_window_forgets_what_ended_late_but_was_asked_early() -> None:
    made = tally(exchange(8), exchange(0))
    assert made.snapshot(NOW + timedelta(seconds=12)).versions["a-0"].recent_up == 1


def test_no_verdicts_have_no_share() -> None:
    made = tally(exchange(0))
    late = made.snapshot(NOW + timedelta(minutes=1)).versions["a-0"]
    assert math.isnan(late.recent_up_share)
    assert math.isnan(late.p95)


def test_a_failure_is_kept_with_its_reason_and_is_no_longer_under_way() -> None:
    made = tally()
    made.sent()
    made.sent()
    made.failed(Failed(NOW, "HTTP 503: no arm is ready", "a-1"))
    seen = made.snapshot(NOW)
    assert (seen.sent, seen.failed, seen.under_way) == (2, 1, 1)
    assert [(f.reason, f.version) for f in made.failures()] == [("HTTP 503: no arm is ready", "a-1")]


@settings(deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 1))
def test_a_percentile_is_one_of_the_values_with_that_share_at_or_below_it(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert found in values
    at_or_below = sum(v <= found for v in values)
    assert at_or_below >= share * len(values) - 1e-9
    assert sum(v < found for v in values) <= max(0, math.ceil(share * len(values)) - 1)
