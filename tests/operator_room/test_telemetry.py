"""A run as a trace: what a collector really gets over HTTP, after a crash and after an outage, too."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from aiohttp import web
from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1 import trace_pb2
from operator_fake import FakeApi
from operator_stories import back, forward
from operator_world import SETTINGS, World

from ratchet_api.cycle import ImprovementCycle
from ratchet_api.version import ModelVersion
from ratchet_operator.application import Application
from ratchet_operator.clients.otlp import Collector
from ratchet_operator.domain import traces
from ratchet_operator.errors import NotLeading
from ratchet_operator.reconcile import cycle as cycles
from ratchet_operator.reconcile import tracing
from ratchet_operator.reconcile.tracing import Tracer
from ratchet_operator.settings import Address, Otlp

Spans = dict[str, trace_pb2.Span]


class Backend:
    """A collector: decodes what it gets as the protocol's own messages, strictly."""

    def __init__(self) -> None:
        self.spans: list[trace_pb2.Span] = []
        self.headers: list[dict[str, str]] = []
        self.resource: dict[str, str] = {}
        self.answers: list[int] = []
        """Of the next requests; afterwards 200."""
        self.asked = 0
        self.url = ""

    async def take(self, request: web.Request) -> web.Response:
        self.asked += 1
        if self.answers:
            return web.Response(status=self.answers.pop(0), text="not now")
        self.headers.append(dict(request.headers))
        body = json.loads(await request.read(), object_hook=_as_protobuf_has_bytes)
        told = json_format.ParseDict(body, ExportTraceServiceRequest())
        for resource in told.resource_spans:
            self.resource = {one.key: one.value.string_value for one in resource.resource.attributes}
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]
        return web.json_response({})

    def by_name(self) -> Spans:
        """The last one told of each."""
        return {span.name: span for span in self.spans}


def _as_protobuf_has_bytes(found: dict[str, Any]) -> dict[str, Any]:
    """OTLP's JSON has ids in hexadecimal digits, protobuf's in base64."""
    for key in ("traceId", "spanId", "parentSpanId"):
        if key in found:
            found[key] = base64.b64encode(bytes.fromhex(found[key])).decode()
    return found


@pytest.fixture
async def backend() -> AsyncIterator[Backend]:
    made = Backend()
    app = web.Application()
    app.router.add_post("/otlp/v1/traces", made.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    made.url = f"http://{host}:{port}/otlp"
    yield made
    await runner.cleanup()


@pytest.fixture
async def collector(backend: Backend) -> AsyncIterator[Collector]:
    made = Collector(backend.url, {"api-key": "k"}, {"service.name": "ratchet-operator"})
    yield made
    await made.close()


def attributes(span: trace_pb2.Span) -> dict[str, Any]:
    return {one.key: getattr(one.value, str(one.value.WhichOneof("value"))) for one in span.attributes}


async def told(world: World, collector: Collector) -> None:
    """What a process that starts now tells of the cycle."""
    tracer = Tracer(collector)
    key = (world.namespace, "assistant")
    cycle = await world.kube.get(ImprovementCycle, *key)
    assert cycle is not None
    versions = await world.kube.select(ModelVersion, world.namespace)
    tracer.note(key, traces.ended(cycle.metadata, cycle.status, versions, world.clock()))
    await tracer.idle()


async def test_a_run_is_one_trace(backend: Backend, collector: Collector) -> None:
    world = World(FakeApi(), "default")
    await forward(world)
    await told(world, collector)
    spans = backend.by_name()
    assert set(spans) == {"run", "curate", "train", "evaluate", "rollout"}
    root = spans.pop("run")
    assert root.parent_span_id == b""
    assert {span.parent_span_id for span in spans.values()} == {root.span_id}
    assert {span.trace_id for span in spans.values()} == {root.trace_id}
    assert len({span.span_id for span in spans.values()}) == 4
    for span in spans.values():
        assert root.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= root.end_time_unix_nano
        assert span.status.code == trace_pb2.Status.STATUS_CODE_UNSET
    order = [spans[name].end_time_unix_nano for name in ("curate", "train", "evaluate", "rollout")]
    assert order == sorted(order)
    assert attributes(root)["ratchet.run"] == 1
    assert attributes(root)["ratchet.outcome"] == "Promoted"
    assert attributes(spans["rollout"])["ratchet.version"] == "assistant-1"
    assert attributes(spans["train"])["k8s.job.name"].startswith("assistant-1-train")
    assert "Promoted" in {event.name for event in spans["rollout"].events}
    assert backend.headers[0]["api-key"] == "k"
    assert backend.resource["service.name"] == "ratchet-operator"


async def test_a_rollback_says_which_check_decided(backend: Backend, collector: Collector) -> None:
    world = World(FakeApi(), "default")
    await back(world)
    await told(world, collector)
    spans = backend.by_name()
    rollout = spans["rollout"]
    assert rollout.parent_span_id == b"", "nobody ran anything: the version was a person's"
    assert spans["evaluate"].parent_span_id == rollout.span_id
    assert rollout.status.code == trace_pb2.Status.STATUS_CODE_ERROR
    assert rollout.status.message
    said = attributes(rollout)
    assert said["ratchet.outcome"] == "RolledBack"
    assert said["ratchet.check"]
    assert said["ratchet.check.measured"]
    assert "weight 0 in force" in {event.name for event in rollout.events}


async def test_another_process_tells_the_same_spans(backend: Backend, collector: Collector) -> None:
    world = World(FakeApi(), "default")
    await forward(world)
    await told(world, collector)
    await told(world, collector)
    half = len(backend.spans) // 2
    assert backend.spans[:half] == backend.spans[half:]


async def test_the_passes_tell_each_span_once(backend: Backend, collector: Collector) -> None:
    world = World(FakeApi(), "default")
    world.tracer = Tracer(collector)
    world.restart()
    await forward(world)
    await world.settle()
    await world.tracer.idle()
    names = [span.name for span in backend.spans]
    assert sorted(names) == sorted(set(names)) == ["curate", "evaluate", "rollout", "run", "train"]


async def test_the_operator_tells_the_collector_that_it_is_given(backend: Backend) -> None:
    world = World(FakeApi(), "default")
    await forward(world)
    anywhere, otlp = Address("127.0.0.1", 0), Otlp(backend.url, {"api-key": "k"})
    settings = replace(SETTINGS, otlp=otlp, health=anywhere, metrics=anywhere)
    async with Application(settings, world.transport) as operator:
        context = replace(operator.context, now=world.clock, gateway=world.gateway, arms=world.arms)
        await cycles.reconcile(context, world.namespace, "assistant")
        assert context.tracer is not None
        await context.tracer.idle()
    assert {span.name for span in backend.spans} == {"run", "curate", "train", "evaluate", "rollout"}
    assert backend.resource == {"service.name": "ratchet-operator", "service.instance.id": "ratchet-operator"}
    assert backend.headers[0]["api-key"] == "k"


async def test_an_outage_loses_nothing(
    backend: Backend, collector: Collector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracing, "FIRST_BACKOFF", 0.01)
    backend.answers = [503, 503, 429]
    world = World(FakeApi(), "default")
    await forward(world)
    with caplog.at_level("INFO"):
        await told(world, collector)
    assert backend.asked == 4
    assert len(backend.spans) == 5
    said = [record.message for record in caplog.records if record.name == tracing.__name__]
    assert said == ["spans cannot be exported and wait: it answers 503: not now", "spans are exported again"]


async def test_what_is_refused_is_given_up(backend: Backend, collector: Collector) -> None:
    backend.answers = [400]
    world = World(FakeApi(), "default")
    await forward(world)
    await told(world, collector)
    assert (backend.asked, backend.spans) == (1, [])


async def test_a_silent_collector_holds_up_no_pass() -> None:
    class Silent:
        def __init__(self) -> None:
            self.asked = asyncio.Event()

        async def export(self, spans: object) -> None:
            self.asked.set()
            await asyncio.Event().wait()

    silent = Silent()
    world = World(FakeApi(), "default")
    world.tracer = Tracer(silent)
    world.restart()
    await forward(world)
    await asyncio.wait_for(silent.asked.wait(), 10)
    await world.tracer.close()


async def test_who_does_not_lead_says_nothing(backend: Backend, collector: Collector) -> None:
    def guard() -> None:
        raise NotLeading("no more")

    world = World(FakeApi(), "default")
    world.tracer = Tracer(collector, guard)
    world.restart()
    await forward(world)
    await world.tracer.idle()
    assert backend.asked == 0


async def test_what_ended_long_ago_is_not_told_again() -> None:
    world = World(FakeApi(), "default")
    await forward(world)
    cycle = await world.kube.get(ImprovementCycle, world.namespace, "assistant")
    assert cycle is not None
    versions = await world.kube.select(ModelVersion, world.namespace)
    late = world.clock() + traces.OLDEST + timedelta(hours=1)
    assert traces.ended(cycle.metadata, cycle.status, versions, late) == ()
