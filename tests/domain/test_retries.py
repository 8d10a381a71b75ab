"""Failure classes, attempts and smaller batches."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratchet_api.reasons import Reason
from ratchet_api.training import Recipe
from ratchet_api.version import Attempts
from ratchet_operator.domain.retries import (
    FailureClass,
    GiveUp,
    Retry,
    classify,
    next_attempt,
    shrink,
    shrink_batch,
)


@pytest.mark.parametrize(
    ("code", "facts", "failure"),
    [
        pytest.param(64, {}, "User", id="EX_USAGE"),
        pytest.param(65, {}, "Data", id="EX_DATAERR"),
        pytest.param(70, {}, "Bug", id="EX_SOFTWARE"),
        pytest.param(75, {}, "Infrastructure", id="EX_TEMPFAIL"),
        pytest.param(137, {}, "OutOfMemory", id="SIGKILL"),
        pytest.param(143, {}, "Preempted", id="SIGTERM"),
        pytest.param(1, {}, "Bug", id="an exception that nobody foresaw"),
        pytest.param(139, {}, "Bug", id="a crash of the interpreter"),
        pytest.param(0, {}, "Bug", id="done, but without a report"),
        pytest.param(None, {}, "Infrastructure", id="pod or Job gone"),
        pytest.param(1, {"oom_killed": True}, "OutOfMemory", id="OOMKilled goes before the code"),
        pytest.param(137, {"disruption": True}, "Preempted", id="evicted by SIGKILL"),
        pytest.param(143, {"deadline": True}, "Deadline", id="deadline is a SIGTERM too"),
        pytest.param(None, {"disruption": True}, "Preempted", id="evicted and gone"),
    ],
)
def test_classify(code: int | None, facts: dict[str, bool], failure: str) -> None:
    assert classify(code, **facts) == failure


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        ("User", Reason.USER_ERROR),
        ("Data", Reason.DATA_ERROR),
        ("Bug", Reason.INTERNAL_ERROR),
        ("Deadline", Reason.DEADLINE_EXCEEDED),
    ],
)
def test_not_retried(failure: str, reason: Reason) -> None:
    given_up = next_attempt(Attempts(), FailureClass(failure))
    assert isinstance(given_up, GiveUp)
    assert given_up.reason is reason


def test_infrastructure_is_retried_three_times_ever_slower() -> None:
    attempts, delays = Attempts(preempted=5, out_of_memory=1), []
    while isinstance(retry := next_attempt(attempts, FailureClass.INFRASTRUCTURE), Retry):
        attempts, delays = retry.attempts, [*delays, retry.delay]
    assert delays == [timedelta(seconds=s) for s in (10, 40, 160)]
    assert attempts == Attempts(infrastructure=3, preempted=5, out_of_memory=1)
    assert retry == GiveUp(
        Reason.INFRASTRUCTURE_ERROR, "storage, node or network failed 4 times, 3 retries are used up"
    )


def test_out_of_memory_is_retried_once_at_once() -> None:
    retry = next_attempt(Attempts(), FailureClass.OUT_OF_MEMORY)
    assert retry == Retry(Attempts(out_of_memory=1), timedelta(0))
    again = next_attempt(retry.attempts, FailureClass.OUT_OF_MEMORY)
    assert isinstance(again, GiveUp)
    assert again.reason is Reason.OUT_OF_MEMORY


def test_out_of_memory_with_nothing_left_to_halve_gives_up() -> None:
    given_up = next_attempt(Attempts(), FailureClass.OUT_OF_MEMORY, shrinkable=False)
    assert isinstance(given_up, GiveUp)
    assert "raise resources.limits.memory" in given_up.message


def test_preemption_is_free_but_no_hot_loop() -> None:
    attempts = Attempts(infrastructure=3, out_of_memory=1)
    delays = []
    for _ in range(200):
        retry = next_attempt(attempts, FailureClass.PREEMPTED)
        assert isinstance(retry, Retry)
        attempts, delays = retry.attempts, [*delays, retry.delay]
    assert delays[:4] == [timedelta(seconds=s) for s in (1, 2, 4, 8)]
    assert max(delays) == timedelta(minutes=5)


@given(
    st.builds(
        Attempts,
        infrastructure=st.integers(0, 5000),
        out_of_memory=st.integers(0, 5000),
        preempted=st.integers(0, 5000),
    ),
    st.sampled_from(FailureClass),
)
def test_a_retry_has_another_number(attempts: Attempts, failure: FailureClass) -> None:
    """The attempt's number is part of the Job's name."""
    following = next_attempt(attempts, failure)
    if isinstance(following, Retry):
        assert following.attempts.total == attempts.total + 1
        assert timedelta(0) <= following.delay <= timedelta(minutes=5)


def batch(micro: int, accumulation: int) -> Recipe:
    """Settings with this batch."""
    return Recipe(micro_batch=micro, accumulation=accumulation)


@pytest.mark.parametrize(
    ("before", "times", "expected"),
    [
        pytest.param((2, 4), 1, (1, 8), id="the default"),
        pytest.param((8, 1), 1, (4, 2), id="half and double"),
        pytest.param((8, 1), 3, (1, 8), id="three times"),
        pytest.param((8, 1), 0, (8, 1), id="not at all"),
        pytest.param((3, 4), 1, (1, 12), id="an odd size keeps its examples per step"),
        pytest.param((5, 4), 1, (2, 10), id="another odd one"),
        pytest.param((1, 4), 1, None, id="nothing left to halve"),
        pytest.param((2, 4), 2, None, id="nor after the first time"),
        pytest.param((2, 1024), 1, None, id="accumulation is bounded"),
    ],
)
def test_shrink(before: tuple[int, int], times: int, expected: tuple[int, int] | None) -> None:
    got = shrink(batch(*before), times)
    assert (None if got is None else (got.micro_batch, got.accumulation)) == expected


@given(st.integers(1, 1024), st.integers(1, 1024), st.integers(1, 4))
def test_shrink_keeps_the_recipe(micro: int, accumulation: int, times: int) -> None:
    before = batch(micro, accumulation)
    after = shrink(before, times)
    if after is None:
        return
    assert after.micro_batch * after.accumulation == micro * accumulation
    assert after.micro_batch <= micro // 2
    unchanged: dict[str, Any] = {"micro_batch": micro, "accumulation": accumulation}
    assert after.model_copy(update=unchanged) == before
    assert Recipe.model_validate(after.dump()) == after


@pytest.mark.parametrize(("size", "times", "expected"), [(32, 1, 16), (1, 1, None), (3, 1, 1), (8, 3, 1), (8, 4, None)])
def test_shrink_batch(size: int, times: int, expected: int | None) -> None:
    assert shrink_batch(size, times) == expected
