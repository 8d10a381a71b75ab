"""What the notebook reads from a sequence of views."""

from datetime import timedelta

import pytest
from tests.cli.builders import NOW, arm, decision, rollout, view

from ratchet_cli.demo.cluster import View
from ratchet_cli.demo.notebook import Notebook, count_within


def after(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)


@pytest.fixture
def notebook() -> Notebook:
    """A rollout that was taken back at 25 %, then one that was promoted."""
    seen = Notebook()
    stable = arm("assistant-0", 100)
    bad = [
        rollout("bad", "Starting"),
        rollout("bad", "Canary"),
        rollout("bad", "RollingBack", decision=decision("RolledBack", 30, check="feedback", seen=24)),
        rollout(
            "bad", "Done", decision=decision("RolledBack", 30, check="feedback", seen=24),
            weightZeroAt=(NOW + after(31.5)).isoformat(),
        ),
    ]  # fmt: skip
    weights = (0, 25, 0, None)
    for second, (status, weight) in enumerate(zip(bad, weights, strict=True)):
        candidate = None if weight is None else arm("bad", weight)
        serving = {"stable": stable} | ({"candidate": candidate} if candidate else {})
        seen.see(view(serving=serving, rollout=status), NOW + after(second * 10))
    good = [(rollout("good", "Canary", began=60), 50), (rollout("good", "Baking", began=60), 100)]
    for second, (status, weight) in enumerate(good):
        serving = {"stable": stable, "candidate": arm("good", weight)}
        seen.see(view(serving=serving, rollout=status), NOW + after(70 + second * 10))
    done = rollout("good", "Done", began=60, decision=decision("Promoted", 110))
    seen.see(view(serving={"stable": arm("good", 100)}, rollout=done), NOW + after(111))
    return seen


def test_weights_are_noted_when_they_change(notebook: Notebook) -> None:
    bad, good = notebook.rollout_of("bad"), notebook.rollout_of("good")
    assert bad is not None
    assert good is not None
    assert [weight for _, weight in bad.weights] == [0, 25, 0]
    assert [weight for _, weight in good.weights] == [50, 100]
    assert (bad.highest_weight, good.highest_weight) == (25, 100)


def test_time_from_regression_to_weight_zero(notebook: Notebook) -> None:
    bad, good = notebook.rollout_of("bad"), notebook.rollout_of("good")
    assert bad is not None
    assert good is not None
    assert bad.seconds_to_zero == pytest.approx(7.5)
    assert good.seconds_to_zero is None


def test_a_version_that_never_had_a_rollout_has_no_record(notebook: Notebook) -> None:
    assert notebook.rollout_of("assistant-disliked") is None


def test_champions_in_order(notebook: Notebook) -> None:
    assert [name for _, name in notebook.champions] == ["assistant-0", "good"]


def test_a_second_rollout_of_the_same_version_is_a_record_of_its_own(notebook: Notebook) -> None:
    again = rollout("bad", "Canary", began=300)
    notebook.see(view(serving={"stable": arm("good", 100)}, rollout=again), NOW + after(301))
    record = notebook.rollout_of("bad")
    assert record is not None
    assert record.last.decision is None
    assert len(notebook.windows(after(0))) == 3


def test_failures_count_only_while_a_rollout_goes_on_or_shortly_after(notebook: Notebook) -> None:
    windows = notebook.windows(after(10))
    moments = {"before": -5, "in the first": 20, "its grace": 41, "between": 55, "in the second": 90, "after": 200}
    inside = {name for name, second in moments.items() if count_within([NOW + after(second)], windows)}
    assert inside == {"in the first", "its grace", "in the second"}


def test_a_rollout_that_goes_on_has_no_end_yet() -> None:
    seen = Notebook()
    seen.see(view(rollout=rollout("bad", "Canary")), NOW)
    assert count_within([NOW + timedelta(days=1)], seen.windows(after(0))) == 1


def test_markers_tell_steps_and_decisions_in_order(notebook: Notebook) -> None:
    told = [(m.version, m.text, m.kind) for m in notebook.markers()]
    assert told == [
        ("bad", "25 %", "step"),
        ("bad", "rolled back: feedback", "bad"),
        ("good", "50 %", "step"),
        ("good", "100 %", "step"),
        ("good", "promoted", "good"),
    ]


def test_a_view_without_a_cycle_is_nothing_to_note() -> None:
    seen = Notebook()
    seen.see(View(), NOW)
    assert not seen.rollouts
    assert not seen.champions
