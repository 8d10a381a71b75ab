"""Looks between two measurements: harm counts at once, and nothing else counts."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratchet_api.cycle import Check
from ratchet_api.reasons import Reason
from ratchet_operator.domain import glance, rollout

from .support import FEEDBACK, NOW, P95, after, baking, canary, fails, look, outcome, passes, policy, seen, unknown

SPACING = 2.0
"""Seconds between two glances of the policy, which has an interval of 10 s."""


def due(status: Any, seconds: float, **changes: Any) -> list[str]:
    return [metric.name for metric in glance.due(status, policy(metrics=[FEEDBACK, P95], **changes), after(seconds))]


@pytest.mark.parametrize(
    ("status", "seconds", "expected"),
    [
        (canary(), SPACING, ["feedback"]),
        (baking(), SPACING, ["feedback"]),
        (canary(checks=[fails(NOW)]), SPACING - 0.1, []),
        (canary(checks=[fails(NOW)]), SPACING, ["feedback"]),
        # The clock went back: waiting for the last look to pass could take for ever.
        (canary(checks=[fails(after(3600))]), SPACING, ["feedback"]),
        (canary(unconfirmed_since=NOW), SPACING, []),
        (canary(phase="Starting"), SPACING, []),
        (canary(phase="RollingBack"), SPACING, []),
        (canary(phase="Done"), SPACING, []),
    ],
)
def test_proportions_are_glanced_at_while_sessions_are_judged(status: Any, seconds: float, expected: list[str]) -> None:
    assert due(status, seconds) == expected


def test_a_dry_run_is_not_glanced_at() -> None:
    dry = FEEDBACK.model_copy(update={"dry_run": True})
    assert glance.due(canary(), policy(metrics=[dry, P95]), after(60)) == ()


@pytest.mark.parametrize(("interval", "expected"), [(0, 2), (4, 2), (10, 2), (60, 12)])
def test_five_in_an_interval_but_not_more_often_than_prometheus_knows_more(interval: int, expected: int) -> None:
    assert glance.spacing(policy(interval=timedelta(seconds=interval))) == timedelta(seconds=expected)


def test_proven_harm_does_not_wait_for_the_measurement() -> None:
    move = look(canary(), policy(), SPACING, glances=(fails(after(SPACING)),))
    assert outcome(move) == ("RolledBack", Reason.CHECK_FAILED)
    assert move.weight == 0
    assert move.status.decision is not None
    assert move.status.decision.regression_seen_at == after(SPACING)


def test_tolerated_failures_are_counted_and_said() -> None:
    spec, status = policy(failure_limit=2), canary(checks=[passes(NOW)])
    for number in (1, 2):
        at = number * SPACING
        move = look(status, spec, at, glances=(fails(after(at)),))
        status = move.status
        assert (outcome(move), status.checks[0].failures, status.summary) == (None, number, f"feedback fail ({number})")
        assert [event.reason for event in move.events] == [Reason.CHECK_FAILED]
        assert look(status, spec, at, glances=(fails(after(at)),)).status == status
    assert outcome(look(status, spec, 6, glances=(fails(after(6)),))) == ("RolledBack", Reason.CHECK_FAILED)


def test_the_measurement_is_due_as_before() -> None:
    move = look(canary(), policy(failure_limit=2), SPACING, glances=(fails(after(SPACING)),))
    assert move.status.measured_at == NOW
    assert move.wake_at == after(2 * SPACING)
    assert not rollout.measurement_due(move.status, policy(), after(9))
    assert rollout.measurement_due(move.status, policy(), after(10))


@given(
    seconds=st.integers(0, 4000),
    verdicts=st.lists(st.sampled_from([passes, unknown]), min_size=1, max_size=2),
    status=st.sampled_from([canary(), canary(50, checks=[passes(NOW)]), baking(), baking(checks=[fails(NOW)])]),
)
def test_without_harm_a_glance_leaves_no_trace(seconds: int, verdicts: list[Any], status: Any) -> None:
    glances: tuple[Check, ...] = tuple(make(after(seconds)) for make in verdicts)
    spec = policy(failure_limit=1)
    without = rollout.advance(status, spec, seen(status.weight), after(seconds))
    assert rollout.advance(status, spec, seen(status.weight, glances=glances), after(seconds)) == without


def test_not_before_the_weight_is_in_force() -> None:
    move = rollout.advance(canary(), policy(), seen(0, glances=(fails(after(SPACING)),)), after(SPACING))
    assert outcome(move) is None
    assert move.status.checks == []
