"""The process's edges: readiness, metrics, routes, draining, the command line."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from ratchet_api import metrics as names
from ratchet_gateway.__main__ import parser, settings_of
from ratchet_gateway.routes import Table
from ratchet_gateway.service import Service

from .support import PATIENCE, MakeArm, MakeFront, MemoryStore, eventually, table_of


async def test_routes_and_weights_follow_the_table(make_arm: MakeArm, make_front: MakeFront) -> None:
    stable, candidate = await make_arm("assistant-1"), await make_arm("assistant-2")
    front = await make_front(table_of([stable], [candidate], 25))

    async def routes() -> Any:
        async with front.http.get("/routes") as response:
            return await response.json()

    assert await routes() == {"cycles": {"default/assistant": {"assistant-1": 75, "assistant-2": 25}}}
    assert await front.metric(names.WEIGHT, "assistant-1") == 75
    assert await front.metric(names.WEIGHT, "assistant-2") == 25
    front.gateway.publish(table_of([stable]))
    assert await routes() == {"cycles": {"default/assistant": {"assistant-1": 100}}}
    assert await front.metric(names.WEIGHT, "assistant-2") == 0, "the series of an arm that is gone says 0"
    front.gateway.publish(Table())
    assert await routes() == {"cycles": {}}
    assert await front.metric(names.WEIGHT, "assistant-1") == 0


async def test_every_series_of_an_arm_exists_from_the_start(make_arm: MakeArm, make_front: MakeFront) -> None:
    """Else increase() would not see the first event."""
    front = await make_front(table_of([await make_arm("assistant-1")], [], 5))
    extra = {
        names.REQUESTS: {"code": "500"}, names.TOKENS: {"type": "completion"}, names.FINISH: {"reason": "stop"},
        names.FEEDBACK: {"value": "down"}, names.INTERACTIONS: {"state": "dropped"},
    }  # fmt: skip
    for name, labels in extra.items():
        assert await front.metric(name, "assistant-2", **labels) == 0
    for name in (names.DURATION, names.TIME_TO_FIRST_TOKEN, names.INTER_TOKEN):
        assert await front.metric(f"{name}_count", "assistant-2") == 0


async def test_tokens_and_reasons_are_counted(make_arm: MakeArm, make_front: MakeFront) -> None:
    front = await make_front(table_of([await make_arm("assistant-1", "a b c")]))
    await front.ask()
    await front.ask(stream=True)
    assert await front.metric(names.TOKENS, "assistant-1", type="prompt") == 14
    assert await front.metric(names.TOKENS, "assistant-1", type="completion") == 6
    assert await front.metric(names.FINISH, "assistant-1", reason="stop") == 2
    assert await front.metric(names.REQUESTS, "assistant-1", code="200") == 2
    assert await front.metric(f"{names.DURATION}_count", "assistant-1") == 2


async def test_an_invented_finish_reason_makes_no_series(make_arm: MakeArm, make_front: MakeFront) -> None:
    arm = await make_arm("assistant-1")

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        choice = {"message": {"role": "assistant", "content": "x"}, "finish_reason": f"because-{len(arm.requests)}"}
        return web.json_response({"choices": [choice]})

    arm.behaviour = behave
    front = await make_front(table_of([arm]))
    for _ in range(3):
        await front.ask()
    assert await front.metric(names.FINISH, "assistant-1", reason="other") == 3


async def test_refused_requests_are_counted(make_front: MakeFront) -> None:
    front = await make_front(Table())
    await front.ask()
    assert (await front.metrics())['ratchet_gateway_refused_total{code="404"}'] == 1


async def test_readiness(make_arm: MakeArm, make_front: MakeFront) -> None:
    front = await make_front(table_of([await make_arm("assistant-1")]))

    async def get(path: str) -> tuple[int, str]:
        async with front.http.get(path) as response:
            return response.status, await response.text()

    assert await get("/healthz") == (200, "ok\n")
    assert await get("/readyz") == (200, "ok\n")
    front.gateway.readiness.synced = False
    assert (await get("/readyz"))[0] == 503
    assert "first list" in (await get("/readyz"))[1]
    assert (await get("/healthz"))[0] == 200, "a gateway without an API server must not be restarted"


async def test_draining_ends_what_has_begun_and_uploads_it(make_arm: MakeArm, make_front: MakeFront) -> None:
    arm = await make_arm("assistant-1")
    begun, release = asyncio.Event(), asyncio.Event()

    async def wait(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        begun.set()
        await release.wait()
        return web.json_response({"choices": [{"message": {"role": "assistant", "content": "late"}}]})

    arm.behaviour = wait
    front = await make_front(table_of([arm]))
    asking = asyncio.create_task(front.ask())
    await asyncio.wait_for(begun.wait(), PATIENCE)
    stopping = asyncio.create_task(front.service.stop(drain_seconds=0.0))
    await eventually(lambda: front.gateway.readiness.draining, "the drain")
    assert not stopping.done()
    release.set()
    assert (await asking).status == 200
    await asyncio.wait_for(stopping, PATIENCE)
    assert len(front.store.interactions()) == 1
    await front.http.close()
    await front.openai.close()


async def test_while_draining_it_answers_but_is_not_ready(make_arm: MakeArm, make_front: MakeFront) -> None:
    front = await make_front(table_of([await make_arm("assistant-1")]))
    front.gateway.readiness.draining = True
    response = await front.ask()
    assert response.status == 200
    assert response.headers["connection"] == "close", "clients come back to another replica"
    async with front.http.get("/readyz") as ready:
        assert ready.status == 503


async def test_an_answer_that_outlasts_the_grace_is_broken_off_and_recorded(
    make_arm: MakeArm, make_front: MakeFront
) -> None:
    arm = await make_arm("assistant-1")
    begun = asyncio.Event()

    async def hang(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    arm.behaviour = hang
    front = await make_front(table_of([arm]))
    front.service.settings = replace(front.service.settings, grace_seconds=0.1)
    asking = asyncio.create_task(front.ask())
    await asyncio.wait_for(begun.wait(), PATIENCE)
    await asyncio.wait_for(front.service.stop(drain_seconds=0.0), PATIENCE)
    with pytest.raises(Exception, match="disconnected"):
        await asking
    [record] = front.store.interactions()
    assert record.finish_reason == "cancelled"
    await front.http.close()
    await front.openai.close()


async def test_a_source_that_ends_ends_the_process(make_front: MakeFront, tmp_path: Path) -> None:
    front = await make_front(Table())

    class Broken:
        synced = True

        async def run(self) -> None:
            raise RuntimeError("no credentials")

    spool = replace(front.service.settings.spool, folder=tmp_path / "other")
    settings = replace(front.service.settings, spool=spool)
    service = Service(settings, MemoryStore(), lambda publish, metrics: Broken())
    await service.start()
    with pytest.raises(RuntimeError, match="no credentials"):
        await service.wait(asyncio.Event().wait())
    await service.stop(drain_seconds=0.0)


def test_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = parser().parse_args(
        ["--host=10.0.0.1", "--spool", "folder", "--namespace", "a", "--namespace", "b", "--spool-limit-mib", "5"]
    )
    settings = settings_of(arguments, "pod-1")
    assert settings.namespaces == ("a", "b")
    assert settings.spool.limit_bytes == 5 * 2**20
    assert (settings.host, settings.port, settings.spool.writer) == ("10.0.0.1", 8080, "pod-1")
    for bad in (["--spool-limit-mib", "0"], ["--segment-seconds", "-1"], ["--port", "x"]):
        with pytest.raises(SystemExit) as caught:
            parser().parse_args(["--host=x", "--spool=y", *bad])
        assert caught.value.code == 2
        assert bad[0] in capsys.readouterr().err
