"""A metric that is only tried out is measured and shown, and decides nothing."""

import pytest
from pydantic import ValidationError

from ratchet_api.rollout import Metric, Rollout
from ratchet_operator.domain.wording import summary

from .support import FEEDBACK, P95, after, baking, canary, fails, look, outcome, passes, policy, reference, unknown

TRIED = P95.model_copy(update={"dry_run": True})
SPEC = policy(metrics=[FEEDBACK, TRIED])


def test_its_failures_are_shown_and_roll_nothing_back() -> None:
    status = canary()
    for seconds in (10, 20, 30):
        move = look(status, SPEC, seconds, passes(after(seconds)), fails(after(seconds), "p95"))
        assert outcome(move) is None
        assert move.events == ()
        status = move.status
    assert status.checks[1].failures == 3
    assert status.summary == "feedback ok, p95 fail (3) (dry run)"


def test_a_rise_does_not_wait_for_it() -> None:
    move = look(canary(), SPEC, 60, passes(after(60), reference=reference()), unknown(after(60), name="p95"))
    assert move.weight == 50


def test_the_bake_does_not_wait_for_it() -> None:
    move = look(baking(), SPEC, 300, passes(after(300)), unknown(after(300), name="p95"))
    assert outcome(move) == ("Promoted", "Promoted")


def test_its_silence_holds_nothing() -> None:
    status = canary()
    for number in range(1, 8):
        seconds = 5 * number
        status = look(status, SPEC, seconds, passes(after(seconds)), unknown(after(seconds), name="p95")).status
    assert status.held_since is None


def test_without_it_the_same_evidence_decides() -> None:
    spec = policy(metrics=[FEEDBACK, P95])
    move = look(canary(), spec, 10, passes(after(10)), fails(after(10), "p95"))
    assert outcome(move) == ("RolledBack", "CheckFailed")


def test_its_word_in_the_column() -> None:
    assert summary([], [TRIED]) == "p95 wait (dry run)"


def test_json_name() -> None:
    assert Rollout.model_validate({"metrics": [{"name": "a", "preset": "errors", "dryRun": True}]}).metrics[0].dry_run
    with pytest.raises(ValidationError):
        Metric.model_validate({"name": "a", "preset": "errors", "dry_run": "maybe"})
