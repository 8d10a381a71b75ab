"""Waiting: progress lines, deadlines, impossible ends."""

import io
import threading
from typing import Any, cast

import pytest
from tests.cli.builders import arm, at, condition, rollout, version, view

from ratchet_cli.demo.cluster import Cluster, View
from ratchet_cli.demo.errors import CameOutOtherwise, WaitExpired
from ratchet_cli.demo.screen import Screen, clock
from ratchet_cli.demo.watching import Progress, Waiter, ended_badly, rollout_progress, version_progress


class FakeCluster:
    """The part of Cluster that a Waiter uses."""

    def __init__(self) -> None:
        self.view = View()
        self.changed = threading.Condition()

    def show(self, seen: View) -> None:
        with self.changed:
            self.view = seen
            self.changed.notify_all()

    def diagnosis(self, namespaces: list[str]) -> str:
        return f"everything about {', '.join(namespaces)}"


@pytest.fixture
def screen() -> Screen:
    return Screen(io.StringIO())


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
def waiter(cluster: FakeCluster, screen: Screen) -> Waiter:
    return Waiter(cast(Cluster, cluster), screen, ["default"])


def printed(screen: Screen) -> str:
    stream = cast(Any, screen)._console.file
    return cast(io.StringIO, stream).getvalue()


def test_it_returns_the_view_that_was_waited_for(waiter: Waiter, cluster: FakeCluster) -> None:
    wanted = view(version("v"))
    threading.Timer(0.05, cluster.show, [wanted]).start()
    assert waiter.until("v", lambda seen: "v" in seen.versions, timeout=30) is wanted


def test_it_says_what_is_known_when_the_time_is_over(waiter: Waiter) -> None:
    with pytest.raises(WaitExpired, match=r"the dataset did not come within 0 s") as caught:
        waiter.until("the dataset", lambda seen: False, timeout=0.05)
    assert caught.value.known == "everything about default"


def test_it_does_not_wait_for_what_cannot_come(waiter: Waiter, cluster: FakeCluster) -> None:
    cluster.show(view(version("v", phase="Failed", conditions=[condition("Stalled", "DataError", "no rows")])))
    with pytest.raises(CameOutOtherwise, match="v is Failed: no rows") as caught:
        waiter.until("v serves", lambda seen: False, 600, impossible=lambda seen: ended_badly(seen, "v"))
    assert caught.value.known


def test_a_new_stage_is_printed_at_once_and_moving_numbers_are_not(
    waiter: Waiter, cluster: FakeCluster, screen: Screen
) -> None:
    lines = [Progress("training", "step 1"), Progress("training", "step 2"), Progress("evaluating")]
    views = [view(version(f"v{i}")) for i in range(len(lines))]

    def progress(seen: View) -> Progress | None:
        for i, each in enumerate(views):
            if seen is each:
                if i + 1 < len(views):
                    threading.Timer(0.02, cluster.show, [views[i + 1]]).start()
                return lines[i]
        return None

    cluster.show(views[0])
    waiter.until("the end", lambda seen: seen is views[-1], 30, progress)
    assert "training: step 1" in printed(screen)
    assert "step 2" not in printed(screen)
    assert "evaluating" in printed(screen)


def test_progress_of_a_training_carries_its_numbers() -> None:
    training = {"step": 12, "steps": 108, "loss": "1.2345", "tokensPerSecond": 310, "etaSeconds": 90}
    told = version_progress(view(version("v", phase="Training", training=training)), "v")
    assert str(told) == "v Training: step 12/108, loss 1.234, 310 tokens/s, 90 s left"


def test_progress_of_a_rollout_carries_measured_and_limit() -> None:
    check = {"name": "feedback", "verdict": "Pass", "message": "feedback: 10 % vs 20 %, limit +5", "measuredAt": at(0)}
    serving = {"stable": arm("assistant-0", 100), "candidate": arm("v", 25)}
    seen = view(serving=serving, rollout=rollout("v", "Canary", checks=[check]))
    told = rollout_progress(seen, "v")
    assert str(told) == "v Canary at 25 %: feedback: 10 % vs 20 %, limit +5"
    assert rollout_progress(seen, "another") is None


def test_nothing_is_told_of_what_is_not_there() -> None:
    assert version_progress(View(), "v") is None
    assert rollout_progress(View(), "v") is None
    assert ended_badly(View(), "v") is None


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.9, "0:59"), (61, "1:01"), (3600, "60:00")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_a_piped_screen_has_no_escape_sequences(screen: Screen) -> None:
    screen.heading("Step 1: begin [not markup]")
    screen.good("fine")
    screen.bad("not fine")
    text = printed(screen)
    assert "\x1b" not in text
    assert "Step 1: begin [not markup]" in text
