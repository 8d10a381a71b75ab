"""Answers of Prometheus, the gateway and the arms, as they come over the wire: also the odd ones."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio.client import Configuration
from operator_fake import FakeApi

from ratchet_api.names import GATEWAY_LABELS
from ratchet_api.reasons import Reason
from ratchet_operator.clients.arms import Arms, Server
from ratchet_operator.clients.gateway import Gateway, Routes, weight_in_force
from ratchet_operator.clients.http import Http
from ratchet_operator.clients.kube import Kube
from ratchet_operator.clients.prometheus import Prometheus, parsed
from ratchet_operator.clients.transport import AlreadyExists, Api, NotFound, translated
from ratchet_operator.domain.analysis import NoSample, Sample
from ratchet_operator.domain.queries import ArmQueries
from ratchet_operator.errors import Conflict, Forbidden, Stalling, Unavailable

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Serve = Callable[..., Awaitable[int]]


@pytest.fixture
async def http() -> AsyncIterator[Http]:
    session = Http()
    yield session
    await session.close()


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Serve a path on 127.0.0.1, and others by POST; gives the port."""
    runners: list[web.AppRunner] = []

    async def start(path: str, handler: Handler, *posts: tuple[str, Handler]) -> int:
        app = web.Application()
        app.router.add_get(path, handler)
        for other, answer in posts:
            app.router.add_post(other, answer)
        runner = web.AppRunner(app)
        await runner.setup()
        runners.append(runner)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server = site._server
        assert isinstance(server, asyncio.Server)
        return int(server.sockets[0].getsockname()[1])

    yield start
    for runner in runners:
        await runner.cleanup()


def vector(*values: str) -> dict[str, object]:
    return {"status": "success", "data": {"resultType": "vector", "result": [{"value": [1, v]} for v in values]}}


def scalar(value: str) -> dict[str, object]:
    return {"status": "success", "data": {"resultType": "scalar", "result": [1, value]}}


@pytest.mark.parametrize(
    ("body", "reading"),
    [
        (vector("41.5"), Sample(41.5)),
        (vector("0"), Sample(0.0)),
        (scalar("3"), Sample(3.0)),
        (vector(), "NoData"),
        (vector("NaN"), "NoData"),
        (vector("+Inf"), "NoData"),
        (vector("1", "2"), "ManySeries"),
        (vector("x"), "QueryError"),
        ({"status": "success", "data": {"resultType": "matrix", "result": []}}, "QueryError"),
        ({"status": "error", "error": "bad_data: parse error"}, "QueryError"),
        ([], "QueryError"),
        (None, "QueryError"),
        ({"status": "success"}, "QueryError"),
        ({"status": "success", "data": {"resultType": "vector", "result": [{}]}}, "QueryError"),
    ],
)
def test_exactly_one_finite_number(body: object, reading: object) -> None:
    found = parsed(200, body)
    if isinstance(reading, Sample):
        assert found == reading
    else:
        assert isinstance(found, NoSample)
        assert found.reason == reading
        assert found.message


async def test_a_query_over_the_wire(http: Http, serve: Serve) -> None:
    asked: list[str] = []

    async def query(request: web.Request) -> web.Response:
        asked.append(request.query["query"])
        return web.json_response(vector("7"))

    prometheus = Prometheus(http, f"http://127.0.0.1:{await serve('/api/v1/query', query)}")
    readings = await prometheus.arm(ArmQueries(bad='sum(x{version="a"})', all="sum(y)"))
    assert (readings.bad, readings.all, readings.value) == (Sample(7.0), Sample(7.0), None)
    assert sorted(asked) == ['sum(x{version="a"})', "sum(y)"]
    assert await prometheus.number("z") == 7.0


async def test_prometheus_is_away_or_talks_nonsense(http: Http, serve: Serve) -> None:
    away = await Prometheus(http, "http://127.0.0.1:1").reading("up")
    assert isinstance(away, NoSample)
    assert away.reason == "QueryError"

    async def html(request: web.Request) -> web.Response:
        return web.Response(status=502, text="<html>Bad Gateway</html>")

    nonsense = await Prometheus(http, f"http://127.0.0.1:{await serve('/api/v1/query', html)}").reading("up")
    assert isinstance(nonsense, NoSample)
    assert nonsense.reason == "QueryError"


def gateway_pods(api: FakeApi, *ready: bool) -> None:
    for number, state in enumerate(ready):
        api.objects[("/api/v1/namespaces/system/pods", f"gateway-{number}")] = {
            "metadata": {"name": f"gateway-{number}", "labels": dict(GATEWAY_LABELS)},
            "status": {"podIP": "127.0.0.1", "conditions": [{"type": "Ready", "status": "True" if state else "False"}]},
        }


async def test_weights_are_those_of_the_ready_gateways(http: Http, serve: Serve) -> None:
    async def routes(request: web.Request) -> web.Response:
        return web.json_response({"cycles": {"default/assistant": {"a": 75, "b": 25}}, "more": 1})

    api = FakeApi()
    gateway_pods(api, True, False, True)
    gateway = Gateway(http, Kube(api), "system", port=await serve("/routes", routes))
    answers = await gateway.routes()
    assert answers is not None
    assert len(answers) == 2
    assert weight_in_force(answers, "default/assistant", "b") == 25


@pytest.mark.parametrize("body", ["not json", '{"cycles": {"default/assistant": {"a": "many"}}}'])
async def test_a_gateway_that_makes_no_sense_is_not_believed(http: Http, serve: Serve, body: str) -> None:
    async def routes(request: web.Request) -> web.Response:
        return web.Response(text=body, content_type="application/json")

    api = FakeApi()
    gateway_pods(api, True)
    assert await Gateway(http, Kube(api), "system", port=await serve("/routes", routes)).routes() is None


async def test_no_gateway_knows_nothing(http: Http) -> None:
    api = FakeApi()
    assert await Gateway(http, Kube(api), "system").routes() is None
    gateway_pods(api, True)
    assert await Gateway(http, Kube(api), "system", port=1).routes() is None


def routes(*weights: dict[str, int] | None) -> list[Routes]:
    return [Routes(cycles={"n/c": found} if found is not None else {}) for found in weights]


@pytest.mark.parametrize(
    ("answers", "weight"),
    [
        (None, None),
        (routes({"a": 95, "b": 5}), 5),
        (routes({"b": 5}, {"b": 5}), 5),
        (routes({"b": 5}, {"b": 25}), None),
        (routes({"b": 5}, {}), None),
        (routes({}, {}), 0),
        (routes(None), None),
        (routes({"b": 5}, None), None),
        ([], None),
    ],
    ids=["no answer", "one", "agree", "differ", "one knows nothing", "none sends", "no cycle", "half", "nobody"],
)
def test_a_weight_is_in_force_when_all_say_so(answers: list[Routes] | None, weight: int | None) -> None:
    assert weight_in_force(answers, "n/c", "b") == weight


@dataclass
class ModelServer:
    """What a model server says to both questions, and how often it was asked the second one."""

    lists: str = "assistant-1"
    status: int = 200
    said: object = field(default_factory=lambda: {"choices": [{"message": {"content": "H"}}]})
    asked: int = 0

    async def models(self, request: web.Request) -> web.Response:
        if not self.lists:
            return web.Response(status=503)
        return web.json_response({"object": "list", "data": [{"id": self.lists, "object": "model"}]})

    async def chat(self, request: web.Request) -> web.Response:
        body = await request.json()
        assert (body["model"], body["max_tokens"]) == ("assistant-1", 1)
        self.asked += 1
        return web.json_response(self.said, status=self.status)


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        pytest.param(ModelServer(), True, id="lists it and answers"),
        pytest.param(ModelServer(lists="assistant-2"), False, id="lists another one"),
        pytest.param(ModelServer(lists=""), None, id="does not say what it lists"),
        pytest.param(ModelServer(status=404), False, id="lists it and does not know it"),
        pytest.param(ModelServer(status=500), None, id="lists it and fails"),
        pytest.param(ModelServer(said={"choices": []}), None, id="lists it and says nothing"),
        pytest.param(ModelServer(said=["?"]), None, id="lists it and says something else"),
    ],
)
async def test_an_arm_serves_what_it_lists_and_answers_by(
    http: Http, serve: Serve, server: ModelServer, expected: bool | None
) -> None:
    port = await serve("/v1/models", server.models, ("/v1/chat/completions", server.chat))
    assert await Arms(http).serves([Server("127.0.0.1", "uid/0")], port, "assistant-1") is expected


async def test_an_arm_without_pods_or_an_answer_says_nothing(http: Http) -> None:
    assert await Arms(http).serves([], 1, "assistant-1") is None
    assert await Arms(http).serves([Server("127.0.0.1", "uid/0")], 1, "assistant-1") is None


async def test_one_token_is_asked_for_once_after_every_start(http: Http, serve: Serve) -> None:
    server = ModelServer()
    port = await serve("/v1/models", server.models, ("/v1/chat/completions", server.chat))
    arms = Arms(http)
    for start, asked in (("uid/0", 1), ("uid/0", 1), ("uid/1", 2), ("uid/1", 2), ("another/0", 3)):
        assert await arms.serves([Server("127.0.0.1", start)], port, "assistant-1") is True
        assert server.asked == asked
    server.lists = "assistant-2"
    assert await arms.serves([Server("127.0.0.1", "uid/1")], port, "assistant-1") is False


@pytest.mark.parametrize(
    ("method", "status", "kind"),
    [
        ("get", 404, NotFound),
        ("put", 409, Conflict),
        ("post", 409, Conflict),
        ("get", 403, Forbidden),
        ("patch", 422, Stalling),
        ("post", 400, Stalling),
        ("get", 429, Unavailable),
        ("get", 500, Unavailable),
        ("get", 503, Unavailable),
    ],
)
def test_what_a_status_code_means(method: str, status: int, kind: type[Exception]) -> None:
    error = translated(method, "/apis/x", status, "words")
    assert type(error) is kind
    assert "words" in str(error)
    if isinstance(error, Stalling):
        assert error.reason is Reason.INVALID_SPEC


@pytest.mark.parametrize(("reason", "kind"), [("AlreadyExists", AlreadyExists), ("Conflict", Conflict), ("", Conflict)])
async def test_a_create_that_is_refused_is_not_taken_for_done(serve: Serve, reason: str, kind: type[Exception]) -> None:
    """409 means that it is there, or that it is not: counted against a quota at the same moment as another one."""
    words = 'Operation cannot be fulfilled on resourcequotas "pods": the object has been modified'
    status = {"kind": "Status", "status": "Failure", "reason": reason, "message": words, "code": 409}

    async def refuse(request: web.Request) -> web.Response:
        return web.json_response(status, status=409) if reason else web.Response(text="<html>", status=409)

    async def resources(request: web.Request) -> web.Response:
        return web.json_response({"kind": "APIResourceList", "groupVersion": "v1", "resources": []})

    port = await serve("/api/v1", resources, ("/api/v1/namespaces/default/configmaps", refuse))
    api = Api(Configuration(host=f"http://127.0.0.1:{port}"))
    manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": "default", "name": "x"}}
    try:
        if kind is AlreadyExists:
            assert await Kube(api).create(manifest) is False
        else:
            with pytest.raises(Conflict, match="409"):
                await Kube(api).create(manifest)
    finally:
        await api.close()


async def test_a_child_is_deleted_by_its_uid() -> None:
    """Nothing of that name that belongs to somebody else, and nothing that took its place."""
    api = FakeApi()
    where = ("/api/v1/namespaces/default/configmaps", "x")
    owners = [{"kind": "ImprovementCycle", "name": "assistant", "uid": "ours"}]
    asked: list[object] = []

    class Watched(FakeApi):
        async def request(self, method: str, path: str, body: Any = None, *rest: Any, **more: Any) -> Any:
            asked.extend([body["preconditions"]] if method == "delete" else [])
            return await api.request(method, path, body, *rest, **more)

    api.objects[where] = {"kind": "ConfigMap", "metadata": {"name": "x", "uid": "u1", "ownerReferences": owners}}
    kube = Kube(Watched())
    assert await kube.delete_child("ConfigMap", "default", "x", "another's") is False
    assert await kube.delete_child("ConfigMap", "default", "y", "ours") is False
    assert (asked, list(api.objects)) == ([], [where])
    assert await kube.delete_child("ConfigMap", "default", "x", "ours") is True
    assert (asked, list(api.objects)) == ([{"uid": "u1"}], [])


def test_a_namespace_that_ends_or_a_quota_is_no_lack_of_rights() -> None:
    assert isinstance(translated("post", "/x", 403, "exceeded quota: pods"), Stalling)
    assert isinstance(translated("post", "/x", 403, "namespace x is being terminated"), Stalling)
