"""Leader election: one leads, who stops before another may begin. A clock by hand, a Lease in a dict."""

import asyncio
import contextlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from operator_fake import FakeApi

from ratchet_operator.clients.kube import Kube
from ratchet_operator.clients.objects import Lease
from ratchet_operator.clients.transport import JSON
from ratchet_operator.errors import NotLeading, Unavailable
from ratchet_operator.leader import Leader
from ratchet_operator.settings import Election


@dataclass
class Clock:
    """Monotonic seconds of one process."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


class Moody(FakeApi):
    """An API server that can be away."""

    away = False

    async def request(self, *args: object, **more: object) -> JSON:
        if self.away:
            raise Unavailable("away")
        return await super().request(*args, **more)  # type: ignore[arg-type]


def member(name: str, clock: Clock, later: float = 0.0) -> Leader:
    """`later`: seconds by which its wall clock is ahead."""
    election = Election(namespace="system", identity=name, duration=15, renew_deadline=10, retry=0.005)
    return Leader(election, clock, lambda: datetime.now(UTC) + timedelta(seconds=later))


@contextlib.asynccontextmanager
async def running(leader: Leader, api: FakeApi):  # type: ignore[no-untyped-def]
    task = asyncio.create_task(leader.run(Kube(api)))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def turns(count: int = 10) -> None:
    """So many rounds of every member."""
    for _ in range(count):
        await asyncio.sleep(0.01)


async def until(leader: Leader, acts: bool = True) -> None:
    async with asyncio.timeout(30):
        while leader.acting is not acts:  # noqa: ASYNC110 - the clock is turned by hand
            await asyncio.sleep(0.005)


async def test_without_election_one_acts_at_once() -> None:
    leader = Leader(None)
    told: list[bool] = []
    leader.on_change(told.append)
    await leader.run(Kube(FakeApi()))
    leader.guard()
    await asyncio.wait_for(leader.wait(), 5)
    assert told == [True]


async def test_the_second_waits_until_the_first_is_silent_for_the_whole_duration() -> None:
    api, clock = FakeApi(), Clock()
    first, second = member("first", clock), member("second", clock)
    async with running(first, api):
        await until(first)
        async with running(second, api):
            await turns()
            assert not second.acting
            with pytest.raises(NotLeading):
                second.guard()
    async with running(second, api):
        await turns()
        clock.now += 14
        await turns()
        assert not first.acting, "it has stopped by itself"
        assert not second.acting, "and nobody has begun yet"
        clock.now += 2
        await until(second)
    lease = await Kube(api).get(Lease, "system", "ratchet-operator")
    assert lease is not None
    assert (lease.spec.holder_identity, lease.spec.lease_transitions) == ("second", 1)


async def test_a_leader_that_cannot_renew_stops_before_the_lease_expires() -> None:
    api, clock = Moody(), Clock()
    leader = member("first", clock)
    told: list[bool] = []
    leader.on_change(told.append)
    async with running(leader, api):
        await until(leader)
        api.away = True
        await turns()
        clock.now += 9.9
        assert leader.acting
        clock.now += 0.2
        assert not leader.acting, "without any answer from anybody"
        with pytest.raises(NotLeading):
            leader.guard()
        await turns()
        assert told == [True, False]
        api.away = False
        await until(leader)
        assert told == [True, False, True]


async def test_a_lease_that_was_given_up_is_taken_at_once() -> None:
    api, clock = FakeApi(), Clock()
    first, second = member("first", clock), member("second", clock)
    async with running(first, api):
        await until(first)
    await first.release(Kube(api))
    assert not first.acting
    async with running(second, api):
        await until(second)


@pytest.mark.parametrize(
    ("dead", "later", "there", "taken"),
    [
        pytest.param("pod-a_1", 20, False, True, id="its pod is gone and its time is over"),
        pytest.param("pod-a_1", 20, True, False, id="its pod is there: it may only be slow"),
        pytest.param("pod-a_1", 10, False, False, id="its time is not over"),
        pytest.param("pod-b_1", 0, True, True, id="an earlier process of our own pod"),
        pytest.param("pod-a-1", 20, False, False, id="outside of a pod nobody knows"),
    ],
)
async def test_a_lease_of_the_dead_is_taken_at_once(dead: str, later: float, there: bool, taken: bool) -> None:
    api, clock = FakeApi(), Clock()
    if there:
        meta = {"namespace": "system", "name": dead.partition("_")[0]}
        api.objects["/api/v1/namespaces/system/pods", meta["name"]] = {"kind": "Pod", "metadata": meta | {"uid": "1"}}
    async with running(member(dead, clock), api):
        await turns()
    heir = member("pod-b_7", clock, later)
    async with running(heir, api):
        if taken:
            await until(heir)
        else:
            await turns()
            assert not heir.acting


async def test_a_waiting_worker_goes_on_when_it_may_act() -> None:
    api, clock = FakeApi(), Clock()
    leader = member("first", clock)
    waiting = asyncio.create_task(leader.wait())
    await turns(2)
    assert not waiting.done()
    async with running(leader, api):
        await asyncio.wait_for(waiting, 30)
