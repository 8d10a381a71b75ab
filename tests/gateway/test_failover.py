"""Pods that die, drain or vanish: who answers instead, and who must not."""

import asyncio
from typing import Any

import pytest
from aiohttp import web
from yarl import URL

from ratchet_gateway.routes import Arm, Cycle, Pod, Storage, Table
from ratchet_gateway.settings import Limits

from .support import FakeArm, MakeArm, MakeFront, drop_connection, eventually, table_of


async def refuse(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return web.json_response({"error": {"message": "draining"}}, status=503)


async def drop(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    drop_connection(request)
    await asyncio.Event().wait()
    raise AssertionError


async def begin_and_drop(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    return await drop(request, body)


async def pods(make_arm: MakeArm, count: int, name: str = "assistant-1") -> list[FakeArm]:
    return [await make_arm(name, f"pod {index}") for index in range(count)]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_dead_pod_is_not_noticed_by_anybody(make_arm: MakeArm, make_front: MakeFront, stream: bool) -> None:
    dead, alive = await pods(make_arm, 2)
    # Passed over for longer than any busy machine needs for ten answers.
    front = await make_front(table_of([dead, alive]), limits=Limits(suspect_seconds=600))
    await dead.stop()
    statuses = {(await front.ask(stream=stream)).status for _ in range(10)}
    assert statuses == {200}
    assert len(alive.requests) == 10
    assert await front.metric("ratchet_gateway_retries_total", "assistant-1") == 1, "then it is passed over for a while"


@pytest.mark.parametrize("behaviour", [refuse, drop, begin_and_drop])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_pod_that_goes_down_is_replaced_before_the_first_byte(
    make_arm: MakeArm, make_front: MakeFront, behaviour: Any, stream: bool
) -> None:
    bad, good = await pods(make_arm, 2)
    bad.behaviour = behaviour
    front = await make_front(table_of([bad, good]))
    # Which of two idle pods is asked is chance: so many requests never miss one of them.
    responses = [await front.ask(stream=stream) for _ in range(64)]
    assert {response.status for response in responses} == {200}
    assert all([b"pod" in await response.read() for response in responses])
    assert len(good.requests) == 64
    assert bad.requests, "it was tried"


async def test_a_deadly_request_kills_no_more_than_two(make_arm: MakeArm, make_front: MakeFront) -> None:
    arms = await pods(make_arm, 4)
    for arm in arms:
        arm.behaviour = drop
    front = await make_front(table_of(arms))
    assert (await front.ask()).status == 502
    assert sum(len(arm.requests) for arm in arms) == 2


async def test_an_overloaded_arm_is_asked_no_more_than_twice(make_arm: MakeArm, make_front: MakeFront) -> None:
    arms = await pods(make_arm, 4)
    for arm in arms:
        arm.behaviour = refuse
    front = await make_front(table_of(arms))
    assert (await front.ask()).status == 503
    assert sum(len(arm.requests) for arm in arms) == 2


async def test_an_error_of_a_model_is_not_covered_up(make_arm: MakeArm, make_front: MakeFront) -> None:
    """A candidate's failures have to be seen by the analysis."""

    async def fail(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"error": {"message": "boom"}}, status=500)

    stable, candidates = await make_arm("assistant-1"), await pods(make_arm, 2, "assistant-2")
    for arm in candidates:
        arm.behaviour = fail
    front = await make_front(table_of([stable], candidates, 100))
    assert (await front.ask()).status == 500
    assert stable.requests == []
    assert await front.metric("ratchet_gateway_requests_total", "assistant-2", code="500") == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("how", ["no pod", "crashed", "crashes"])
async def test_sessions_of_a_dead_candidate_fall_back_to_stable(
    make_arm: MakeArm, make_front: MakeFront, how: str, stream: bool
) -> None:
    stable, candidate = await make_arm("assistant-1"), await make_arm("assistant-2")
    table = table_of([stable], [] if how == "no pod" else [candidate], 100)
    front = await make_front(table)
    if how == "crashed":
        await candidate.stop()
    elif how == "crashes":

        async def crash(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
            site = next(iter(candidate._runner.sites)) if candidate._runner else None
            if site is not None:
                await site.stop()
            return await drop(request, body)

        candidate.behaviour = crash
    for session in ("s1", "s2", "s3"):
        response = await front.ask(session=session, stream=stream)
        assert response.status == 200
        assert response.headers["x-ratchet-version"] == "assistant-1", "the header tells the truth"
    assert await front.metric("ratchet_gateway_fallbacks_total", "assistant-2") == 3
    assert await front.metric("ratchet_gateway_requests_total", "assistant-1", code="200") == 3
    records = await front.recorded()
    assert {(record.version, record.arm) for record in records} == {("assistant-1", "stable")}


async def test_a_pin_is_never_replaced(make_arm: MakeArm, make_front: MakeFront) -> None:
    stable, candidate = await make_arm("assistant-1"), await make_arm("assistant-2")
    front = await make_front(table_of([stable], [candidate], 100))
    await candidate.stop()
    response = await front.ask("assistant@assistant-2")
    assert response.status == 503
    assert response.headers["retry-after"]
    assert stable.requests == []


async def test_stable_is_never_replaced_by_the_candidate(make_arm: MakeArm, make_front: MakeFront) -> None:
    candidate = await make_arm("assistant-2")
    front = await make_front(table_of([], [candidate], 0))
    response = await front.ask()
    assert response.status == 503
    assert (await response.json())["error"]["code"] == "no_ready_pod"
    assert response.headers["retry-after"]
    assert candidate.requests == []
    assert await front.metric("ratchet_gateway_requests_total", "assistant-1", code="503") == 1


async def test_a_candidate_of_weight_0_gets_nobody(make_arm: MakeArm, make_front: MakeFront) -> None:
    stable, candidate = await make_arm("assistant-1"), await make_arm("assistant-2")
    front = await make_front(table_of([stable], [candidate], 0))
    for index in range(50):
        await front.ask(session=f"s{index}")
    assert (len(stable.requests), len(candidate.requests)) == (50, 0)


async def test_a_cycle_without_an_arm_says_so(make_front: MakeFront) -> None:
    cycle = Cycle("default", "assistant", Storage("s3://bucket"))
    front = await make_front(Table({("default", "assistant"): cycle}))
    response = await front.ask()
    assert response.status == 503
    assert "serves nothing yet" in (await response.json())["error"]["message"]


async def test_a_pod_that_nobody_answers_for_costs_the_connect_timeout_once(
    make_arm: MakeArm, make_front: MakeFront
) -> None:
    """192.0.2.0/24 is reserved for documentation: packets to it vanish, or are refused by the network."""
    good = await make_arm("assistant-1")
    lost = Pod("lost", URL("http://192.0.2.1:8000/v1/chat/completions"))
    busy = good.pod()
    busy.inflight = 1  # so that the lost one is tried first
    cycle = Cycle("default", "assistant", Storage("s3://bucket"), Arm("assistant-1", "assistant-1", 100, (lost, busy)))
    front = await make_front(Table({("default", "assistant"): cycle}), limits=Limits(connect_seconds=0.3))
    assert (await front.ask()).status == 200
    assert lost.suspect_until > 0


async def test_the_least_busy_pod_gets_the_next_request(make_arm: MakeArm, make_front: MakeFront) -> None:
    first, second = await pods(make_arm, 2)
    release = asyncio.Event()

    async def wait(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await release.wait()
        return web.json_response({"choices": [{"message": {"role": "assistant", "content": "late"}}]})

    first.behaviour = second.behaviour = wait
    front = await make_front(table_of([first, second]))
    asking = [asyncio.create_task(front.ask()) for _ in range(10)]
    await eventually(lambda: len(first.requests) + len(second.requests) == 10, "ten requests")
    assert (len(first.requests), len(second.requests)) == (5, 5)
    release.set()
    await asyncio.gather(*asking)
    pods_left = front.gateway.routes.table.resolve("assistant").cycle.arms[0].pods
    assert [pod.inflight for pod in pods_left] == [0, 0]
