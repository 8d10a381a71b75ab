"""Arms that do as they are told, a store that can be switched off, and a gateway's clients."""

import asyncio
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson
import zstandard
from aiohttp import web
from openai import AsyncOpenAI
from yarl import URL

from ratchet_api.records import RECORD, Feedback, Interaction
from ratchet_gateway.routes import Arm, Cycle, Pod, Storage, Table
from ratchet_gateway.segments import Destination
from ratchet_gateway.service import Service
from ratchet_gateway.upload import StoreError
from ratchet_local import S3Access

PATIENCE = 60.0
Behaviour = Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]


async def eventually(condition: Callable[[], bool], what: str = "the condition") -> None:
    """Waits until a condition holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE} s in vain for {what}"
        await asyncio.sleep(0.01)


async def becomes(look: Callable[[], Awaitable[Any]], wanted: object) -> None:
    """Looks until it sees what is wanted."""
    deadline, seen = time.monotonic() + PATIENCE, None
    while time.monotonic() < deadline:
        seen = await look()
        if seen == wanted:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"waited {PATIENCE} s in vain for {wanted!r}; the last was {seen!r}")


def completion(text: str, model: str, answer_id: str = "same-for-all") -> dict[str, Any]:
    """A whole chat completion as servers send it."""
    return {
        "id": answer_id,
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": len(text.split()), "total_tokens": 7 + len(text.split())},
    }


def chunks(text: str, model: str, *, usage: bool = True, answer_id: str = "same-for-all") -> list[bytes]:
    """The events of a stream as vLLM sends it: role first, then a chunk a word, the reason, the usage, [DONE]."""

    def event(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        base = {"id": answer_id, "object": "chat.completion.chunk", "created": 1, "model": model, "choices": [choice]}
        return {**base, "usage": None} if usage else base

    events = [event({"role": "assistant", "content": ""})]
    events += [event({"content": word + " "}) for word in text.split()]
    events.append(event({}, "stop"))
    if usage:
        counts = {"prompt_tokens": 7, "completion_tokens": len(text.split()), "total_tokens": 7 + len(text.split())}
        events.append({**event({}), "choices": [], "usage": counts})
    return [b"data: " + orjson.dumps(e) + b"\n\n" for e in events] + [b"data: [DONE]\n\n"]


class FakeArm:
    """One pod of an arm: an HTTP server that knows one model and answers with `text`, or as `behaviour` says."""

    def __init__(self, model_name: str, text: str) -> None:
        self.model_name = model_name
        self.text = text
        self.behaviour: Behaviour | None = None
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.cut = 0
        """Requests whose client went away before the end."""
        self._runner: web.AppRunner | None = None
        self.port = 0

    async def start(self) -> None:
        app = web.Application(client_max_size=2**24)
        app.router.add_post("/v1/chat/completions", self._handle)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            runner, self._runner = self._runner, None
            await runner.cleanup()

    def pod(self) -> Pod:
        return Pod(f"pod-{self.port}", URL(f"http://127.0.0.1:{self.port}/v1/chat/completions"))

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = orjson.loads(await request.read())
        self.requests.append(body)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        try:
            if self.behaviour is not None:
                return await self.behaviour(request, body)
            if body["model"] != self.model_name:
                return web.json_response({"object": "error", "message": f"no model {body['model']}"}, status=404)
            if body.get("stream"):
                return await self.stream(request, chunks(self.text, self.model_name))
            return web.json_response(completion(self.text, self.model_name))
        except (asyncio.CancelledError, ConnectionError):
            self.cut += 1
            raise

    async def stream(self, request: web.Request, events: list[bytes]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        for event in events:
            await response.write(event)
        return response


def drop_connection(request: web.Request) -> None:
    """Cuts the connection without an answer, as a process that is killed does."""
    assert request.transport is not None
    request.transport.abort()


@dataclass
class MemoryStore:
    """Object storage that can be away, for everybody or for one cycle."""

    objects: dict[str, bytes] = field(default_factory=dict)
    away: bool = False
    away_for: str = ""
    attempts: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, destination: Destination, key: str, body: bytes) -> None:
        with self._lock:
            self.attempts += 1
            if self.away or destination.cycle == self.away_for:
                raise StoreError("storage is away")
            self.objects[f"{destination.bucket}/{key}"] = body

    def lines(self) -> list[bytes]:
        """All lines of all objects; while others put some, too."""
        with self._lock:
            bodies = list(self.objects.values())
        return [line for body in bodies for line in zstandard.ZstdDecompressor().decompress(body).splitlines()]

    def records(self) -> list[Interaction | Feedback]:
        """All records, checked against the schema that the curate stage reads with."""
        return [RECORD.validate_json(line) for line in self.lines()]

    def interactions(self) -> list[Interaction]:
        return [record for record in self.records() if isinstance(record, Interaction)]

    def feedback(self) -> list[Feedback]:
        return [record for record in self.records() if isinstance(record, Feedback)]


class Front:
    """A running gateway and its clients."""

    def __init__(self, service: Service, store: MemoryStore) -> None:
        self.service = service
        self.gateway = service.gateway
        self.store = store
        self.url = f"http://127.0.0.1:{service.port}"
        self.http = aiohttp.ClientSession(self.url)
        self.openai = AsyncOpenAI(base_url=f"{self.url}/v1", api_key="secret-key", max_retries=0)

    async def ask(self, model: str = "assistant", session: str | None = None, **more: Any) -> aiohttp.ClientResponse:
        """One request by plain HTTP; the response is read."""
        body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], **more}
        headers = {} if session is None else {"x-session-id": session}
        response = await self.http.post("/v1/chat/completions", json=body, headers=headers)
        await response.read()
        return response

    async def metrics(self) -> dict[str, float]:
        """Series as `name{label="value",...}` -> value."""
        async with self.http.get("/metrics") as response:
            text = await response.text()
        rows = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, value in rows}

    async def metric(self, name: str, version: str, cycle: str = "assistant", **labels: str) -> float:
        """One series of a version in namespace `default`."""
        names = {"cycle_namespace": "default", "cycle": cycle, "version": version, **labels}
        inner = ",".join(f'{key}="{value}"' for key, value in sorted(names.items()))
        return (await self.metrics())[f"{name}{{{inner}}}"]

    async def recorded(self) -> list[Interaction]:
        """Ends the gateway and gives all interactions that reached storage."""
        await self.close()
        return self.store.interactions()

    async def close(self) -> None:
        if not self.http.closed:
            await self.http.close()
            await self.openai.close()
            await self.service.stop(drain_seconds=0.0)


MakeFront = Callable[..., Awaitable[Front]]
MakeArm = Callable[..., Awaitable[FakeArm]]


def table_of(
    stable: list[FakeArm], candidate: list[FakeArm] | None = None, weight: int = 0, name: str = "assistant"
) -> Table:
    """One cycle in namespace `default` with versions `<name>-1` and `<name>-2`."""
    cycle = Cycle(
        "default",
        name,
        Storage("s3://bucket/prefix"),
        stable=Arm(f"{name}-1", f"{name}-1", 100 - weight, tuple(arm.pod() for arm in stable)),
        candidate=None
        if candidate is None
        else Arm(f"{name}-2", f"{name}-2", weight, tuple(arm.pod() for arm in candidate)),
    )
    return Table({(cycle.namespace, cycle.name): cycle})


def read_interactions(access: S3Access, bucket: str) -> list[Interaction]:
    """Every interaction below the cycle's sessions."""
    client = access.client()
    found = []
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix="assistant/sessions/dt="):
        for entry in page.get("Contents", []):
            body = client.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read()
            found += [RECORD.validate_json(row) for row in zstandard.ZstdDecompressor().decompress(body).splitlines()]
    return [record for record in found if isinstance(record, Interaction)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
