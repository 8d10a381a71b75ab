"""Collecting at a cycle's gateway: it records by itself, and the way to it leads through the API server."""

import asyncio
import io
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import WSMsgType, web
from tests.gateway.conftest import make_arm, make_front
from tests.gateway.support import Front, MakeArm, MakeFront, table_of

from ratchet_cli.main import main

__all__ = ["make_arm", "make_front"]


async def run(monkeypatch: pytest.MonkeyPatch, typed: str, *words: str) -> int:
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    monkeypatch.setenv("OPENAI_API_KEY", "ada")
    return await asyncio.to_thread(main, words)


@pytest.fixture
async def front(make_front: MakeFront, make_arm: MakeArm) -> Front:
    """A gateway with two versions of one cycle."""
    stable, candidate = await make_arm("assistant-1", "I am one"), await make_arm("assistant-2", "I am two")
    return await make_front(table_of([stable], [candidate], 0))


async def test_a_chat_with_the_gateway(
    front: Front, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = "Who are you?\nn\nI am three.\nReally?\ny\n"
    assert await run(monkeypatch, typed, "chat", "assistant", "--url", front.url) == 0
    said = capsys.readouterr().out
    assert "recorded by the gateway" in said
    assert "assistant-1> I am one" in said
    assert "2 answers: 2 judged, 1 helpful, 1 corrected" in said
    assert await run(
        monkeypatch, "Who?\ny\n", "chat", "assistant", "--url", front.url, "-n", "default", "--version", "assistant-2"
    ) == 0  # fmt: skip
    assert "assistant-2> I am two" in capsys.readouterr().out
    asked = await front.recorded()
    assert [record.version for record in asked] == ["assistant-1", "assistant-1", "assistant-2"]
    assert asked[0].session == asked[1].session != asked[2].session
    assert asked[1].messages[1]["content"] == "I am three."
    verdicts = {record.response_id: record for record in front.store.feedback()}
    assert [verdicts[record.id].value for record in asked] == ["down", "up", "up"]
    assert verdicts[asked[0].id].correction == "I am three."
    assert len({record.principal for record in asked}) == 1


async def test_tasks_at_the_gateway(
    front: Front, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = '[{id: one, prompt: "Who?", expect: {all: [one]}}, {id: two, prompt: "Who?", expect: {all: [two]}}]'
    assert await run(monkeypatch, tasks, "tasks", "run", "-", "assistant", "--url", front.url, "-o", "json") == 1
    outcomes = json.loads(capsys.readouterr().out)["outcomes"]
    assert [(one["success"], one["version"], one["recorded"]) for one in outcomes] == [
        (True, "assistant-1", True), (False, "assistant-1", True),
    ]  # fmt: skip
    await front.close()
    assert [(one.value, one.comment) for one in front.store.feedback()] == [
        ("up", "task one"), ("down", "task two: lacks 'two'"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["ghost"], "serves no ghost: it has assistant, assistant@assistant-1, assistant@assistant-2"),
        (["assistant", "--version", "assistant-9"], "serves no assistant@assistant-9"),
        (["assistant", "--out", "x"], "is a gateway and records by itself: leave it out"),
    ],
)
async def test_what_a_gateway_has_not(
    front: Front, words: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await run(monkeypatch, "", "chat", *words, "--url", front.url) == 2
    assert told in capsys.readouterr().err


@asynccontextmanager
async def api_server(front: Front, pod_ip: str, ready: bool = True) -> AsyncIterator[str]:
    """As much of an API server as leads to a gateway's pod: it knows a cycle and a pod, and forwards to its port by the
    protocol of the kubelet's websockets (channel 0 data, 1 errors, each begun by the port's number)."""
    port = int(front.url.rpartition(":")[2])

    async def cycle(request: web.Request) -> web.Response:
        if request.match_info["name"] != "assistant":
            return web.json_response({"kind": "Status", "message": "not found", "code": 404}, status=404)
        return web.json_response({"metadata": {"name": "assistant", "namespace": "default"}})

    async def pods(request: web.Request) -> web.Response:
        conditions = [{"type": "Ready", "status": str(ready)}]
        pod = {
            "metadata": {"name": "gateway-0", "namespace": "ratchet-system"},
            "status": {"podIP": pod_ip, "conditions": conditions},
        }
        return web.json_response({"kind": "PodList", "apiVersion": "v1", "items": [pod]})

    async def forward(request: web.Request) -> web.WebSocketResponse:
        assert request.query["ports"] == "8080"
        socket = web.WebSocketResponse(protocols=["v4.channel.k8s.io"])
        await socket.prepare(request)
        for channel in (b"\0", b"\1"):
            await socket.send_bytes(channel + (8080).to_bytes(2, "little"))
        reader, writer = await asyncio.open_connection("127.0.0.1", port)

        async def back() -> None:
            while data := await reader.read(65536):
                await socket.send_bytes(b"\0" + data)
            await socket.close()

        task = asyncio.create_task(back())
        async for message in socket:
            assert message.type == WSMsgType.BINARY
            writer.write(message.data[1:])
        writer.close()
        task.cancel()
        return socket

    app = web.Application()
    app.router.add_get("/apis/ratchet.dev/v1alpha1/namespaces/default/improvementcycles/{name}", cycle)
    app.router.add_get("/api/v1/pods", pods)
    app.router.add_get("/api/v1/namespaces/ratchet-system/pods/gateway-0/portforward", forward)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def kubeconfig(path: Path, server: str) -> str:
    content: dict[str, Any] = {
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": server}}], "users": [{"name": "c", "user": {"token": "t"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c", "namespace": "default"}}],
    }  # fmt: skip
    path.write_text(yaml.safe_dump(content))
    return str(path)


async def test_the_way_through_the_api_server(
    front: Front, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with api_server(front, "10.1.2.3") as server:
        config = kubeconfig(tmp_path / "config", server)
        typed = "Who are you?\ny\n" * 3
        assert await run(monkeypatch, typed, "chat", "assistant", "--kubeconfig", config) == 0
        assert "3 answers: 3 judged, 3 helpful" in capsys.readouterr().out
        assert await run(monkeypatch, "", "chat", "ghost", "--kubeconfig", config) == 4
        assert "ghost" in capsys.readouterr().err
    assert len(await front.recorded()) == 3


async def test_no_gateway_is_ready(
    front: Front, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with api_server(front, "10.1.2.3", ready=False) as server:
        config = kubeconfig(tmp_path / "config", server)
        assert await run(monkeypatch, "", "chat", "assistant", "--kubeconfig", config) == 5
        assert f"no gateway is ready: `ratchet doctor --kubeconfig {config}` says why" in capsys.readouterr().err
