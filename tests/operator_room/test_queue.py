"""The work queue: once, one at a time, not too early, later after failures."""

import asyncio

import pytest

from ratchet_operator.queue import FIRST_BACKOFF, LAST_BACKOFF, Key, WorkQueue

A, B = Key("ImprovementCycle", "default", "a"), Key("ModelVersion", "default", "b")


async def test_a_key_waits_once() -> None:
    queue = WorkQueue()
    for _ in range(5):
        queue.add(A)
    assert await queue.take() == A
    queue.done(A)
    assert queue.idle


async def test_a_key_is_worked_on_by_one_at_a_time_and_once_more_afterwards() -> None:
    queue = WorkQueue()
    queue.add(A)
    assert await queue.take() == A
    queue.add(A)
    queue.add(A)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.take(), 0.05)
    queue.done(A)
    assert await asyncio.wait_for(queue.take(), 5) == A
    queue.done(A)
    assert queue.idle


async def test_keys_do_not_wait_for_each_other() -> None:
    queue = WorkQueue()
    queue.add(A)
    queue.add(B)
    assert {await queue.take(), await queue.take()} == {A, B}


async def test_the_earliest_appointment_counts() -> None:
    queue = WorkQueue()
    loop = asyncio.get_running_loop()
    queue.add_after(A, 3600)
    queue.add_after(A, 0.05)
    queue.add_after(A, 1800)
    begun = loop.time()
    assert await asyncio.wait_for(queue.take(), 30) == A
    assert loop.time() - begun >= 0.04


async def test_a_pass_forgets_older_appointments() -> None:
    counts: list[tuple[int, int]] = []
    queue = WorkQueue(lambda waiting, delayed: counts.append((waiting, delayed)))
    queue.add_after(A, 3600)
    queue.add(A)
    assert counts[-1] == (1, 1)
    assert await queue.take() == A
    assert counts[-1] == (0, 0)


async def test_failures_come_back_later_and_later_until_one_succeeds() -> None:
    queue = WorkQueue()
    delays = [queue.add_backoff(A) for _ in range(12)]
    assert delays[0] == FIRST_BACKOFF
    assert delays == sorted(delays)
    assert delays[-1] == LAST_BACKOFF
    assert queue.add_backoff(B) == FIRST_BACKOFF, "each key has its own count"
    queue.succeeded(A)
    assert queue.add_backoff(A) == FIRST_BACKOFF
    queue.clear()


async def test_the_age_of_the_longest_pass_is_known() -> None:
    queue = WorkQueue()
    assert queue.oldest() == 0
    queue.add(A)
    await queue.take()
    await asyncio.sleep(0.02)
    assert queue.oldest() >= 0.01
    queue.done(A)
    assert queue.oldest() == 0
