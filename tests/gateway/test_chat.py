"""What a client sees: whole answers, streams, names, headers, errors; and what is recorded of it."""

import asyncio
import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import openai
import orjson
import pytest
from aiohttp import web

from ratchet_gateway.settings import Limits
from ratchet_gateway.spool import Spool

from .support import FakeArm, MakeArm, MakeFront, chunks, completion, drop_connection, eventually, table_of

HELLO = [{"role": "user", "content": "Hello"}]


async def test_whole_answer_by_the_stock_client(make_arm: MakeArm, make_front: MakeFront) -> None:
    arm = await make_arm("assistant-1", "Good morning")
    front = await make_front(table_of([arm]))
    raw = await front.openai.chat.completions.with_raw_response.create(
        model="assistant", messages=HELLO, temperature=0.5, extra_headers={"x-session-id": "s1"}
    )
    answer = raw.parse()
    assert answer.choices[0].message.content == "Good morning"
    assert answer.model == "assistant"
    assert answer.id.startswith("chatcmpl-")
    assert raw.headers["x-ratchet-version"] == "assistant-1"
    assert raw.headers["x-session-id"] == "s1"
    assert arm.requests[0] == {"model": "assistant-1", "messages": HELLO, "temperature": 0.5}
    assert f"chatcmpl-{arm.headers[0]['x-request-id']}" == answer.id

    [record] = await front.recorded()
    assert record.id == answer.id
    assert (record.namespace, record.cycle, record.version) == ("default", "assistant", "assistant-1")
    assert record.arm == "stable"
    assert record.messages == HELLO
    assert record.parameters == {"temperature": 0.5}
    assert record.answer == {"role": "assistant", "content": "Good morning"}
    assert (record.finish_reason, record.status, record.stream) == ("stop", 200, False)
    assert record.usage == {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    assert record.session == "s1"
    assert record.principal == hashlib.sha256(b"secret-key").hexdigest()
    assert record.duration > 0
    assert record.time_to_first_token is None


async def test_streamed_answer_by_the_stock_client(make_arm: MakeArm, make_front: MakeFront) -> None:
    arm = await make_arm("assistant-1", "one two three")
    front = await make_front(table_of([arm]))
    stream = await front.openai.chat.completions.create(model="assistant", messages=HELLO, stream=True)
    events = [event async for event in stream]
    assert "".join(e.choices[0].delta.content or "" for e in events) == "one two three "
    assert {e.model for e in events} == {"assistant"}
    assert len({e.id for e in events}) == 1
    assert all(e.usage is None for e in events), "the token counts were not asked for"
    assert arm.requests[0]["stream_options"] == {"include_usage": True}

    assert await front.metric("ratchet_gateway_time_to_first_token_seconds_count", "assistant-1") == 1
    assert await front.metric("ratchet_gateway_inter_token_seconds_count", "assistant-1") == 2
    [record] = await front.recorded()
    assert record.id == events[0].id
    assert record.answer == {"role": "assistant", "content": "one two three "}
    assert record.usage is not None
    assert record.usage["completion_tokens"] == 3
    assert record.stream
    assert record.time_to_first_token is not None
    assert 0 < record.time_to_first_token <= record.duration


async def test_stream_gives_the_usage_that_was_asked_for(make_arm: MakeArm, make_front: MakeFront) -> None:
    front = await make_front(table_of([await make_arm("assistant-1", "one two")]))
    stream = await front.openai.chat.completions.create(
        model="assistant", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    last = [event async for event in stream][-1]
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 2


async def test_chunks_are_passed_on_as_they_come(make_arm: MakeArm, make_front: MakeFront) -> None:
    """A token that is there is seen before the next one is made."""
    arm = await make_arm("assistant-1")
    seen = asyncio.Event()

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        first, *rest = chunks("one two", "assistant-1")
        await response.write(first + rest[0])
        await asyncio.wait_for(seen.wait(), 60)
        for event in rest[1:]:
            await response.write(event)
        return response

    arm.behaviour = behave
    front = await make_front(table_of([arm]))
    stream = await front.openai.chat.completions.create(model="assistant", messages=HELLO, stream=True)
    words = []
    async for event in stream:
        words.append(event.choices[0].delta.content)
        if event.choices[0].delta.content:
            seen.set()
    assert [word for word in words if word] == ["one ", "two "]


@contextmanager
def held_flushes(spool: Spool) -> Iterator[asyncio.Event]:
    """The spool writes nothing until the event is set, or the block is left."""
    flush, held = spool._flush, asyncio.Event()

    async def slow() -> None:
        await held.wait()
        await flush()

    spool._flush = slow  # type: ignore[method-assign]
    try:
        yield held
    finally:
        held.set()


async def test_the_record_is_durable_before_done_is_sent(make_arm: MakeArm, make_front: MakeFront) -> None:
    front = await make_front(table_of([await make_arm("assistant-1", "one two")]))
    body = {"model": "assistant", "messages": HELLO, "stream": True}
    asking = front.http.post("/v1/chat/completions", json=body)
    with held_flushes(front.gateway.spool) as held:
        response = await asking
        got = b""
        while b'"finish_reason":"stop"' not in got:
            got += await response.content.readany()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(response.content.readany(), 0.3)
        held.set()
        assert await response.content.read() == b"data: [DONE]\n\n"


async def test_the_record_is_durable_before_a_whole_answer_is_sent(make_arm: MakeArm, make_front: MakeFront) -> None:
    front = await make_front(table_of([await make_arm("assistant-1")]))
    with held_flushes(front.gateway.spool):
        asking = asyncio.create_task(front.ask())
        await eventually(lambda: bool(front.gateway.spool._pending), "the record")
        assert not (await asyncio.wait({asking}, timeout=0.3))[0]
    assert (await asking).status == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_ids_never_repeat(make_arm: MakeArm, make_front: MakeFront, stream: bool) -> None:
    """The fake server gives every answer the same id."""
    front = await make_front(table_of([await make_arm("assistant-1")]))
    for _ in range(5):
        await front.ask(stream=stream)
    ids = [record.id for record in await front.recorded()]
    assert len(set(ids)) == 5


async def test_sessions_come_from_header_user_metadata_or_are_new(make_arm: MakeArm, make_front: MakeFront) -> None:
    front = await make_front(table_of([await make_arm("assistant-1")]))
    metadata = {"session_id": "from-metadata"}
    both = await front.ask(session="from-header", user="from-user", metadata=metadata)
    assert both.headers["x-session-id"] == "from-header"
    assert (await front.ask(user="from-user", metadata=metadata)).headers["x-session-id"] == "from-user"
    assert (await front.ask(metadata=metadata)).headers["x-session-id"] == "from-metadata"
    new = {(await front.ask()).headers["x-session-id"] for _ in range(3)}
    assert len(new) == 3
    assert (await front.ask(user="Jörg\r\nx-evil: 1")).headers["x-session-id"] == "J%C3%B6rg%0D%0Ax-evil: 1"


async def test_models_are_listed_with_pins(make_arm: MakeArm, make_front: MakeFront) -> None:
    front = await make_front(table_of([await make_arm("assistant-1")], [await make_arm("assistant-2")], 5))
    names = [model.id async for model in await front.openai.models.list()]
    assert names == ["assistant", "assistant@assistant-1", "assistant@assistant-2"]
    assert (await front.openai.models.retrieve("assistant@assistant-2")).id == "assistant@assistant-2"
    with pytest.raises(openai.NotFoundError):
        await front.openai.models.retrieve("nobody")


async def test_pin_reaches_its_version_whatever_the_weight(make_arm: MakeArm, make_front: MakeFront) -> None:
    front = await make_front(table_of([await make_arm("assistant-1")], [await make_arm("assistant-2")], 0))
    for version in ("assistant-1", "assistant-2"):
        response = await front.ask(f"assistant@{version}")
        assert response.headers["x-ratchet-version"] == version
        assert (await response.json())["model"] == f"assistant@{version}"
    assert {record.arm for record in await front.recorded()} == {"pinned"}


async def test_unknown_model_names_what_exists(make_arm: MakeArm, make_front: MakeFront) -> None:
    front = await make_front(table_of([await make_arm("assistant-1")]))
    for model in ("nobody", "assistant@assistant-9", "elsewhere/assistant", "assistant@"):
        with pytest.raises(openai.NotFoundError, match=r"assistant, assistant@assistant-1") as caught:
            await front.openai.chat.completions.create(model=model, messages=HELLO)
        assert caught.value.code == "model_not_found"


BAD = {
    "empty": (b"", "body is empty"),
    "not json": (b"{", "not JSON"),
    "not utf-8": (b'{"model": "\xff"}', "not JSON"),
    "a list": (b"[]", "JSON list: send an object"),
    "a number": (b"5", "JSON number: send an object"),
    "too deep": (b"[" * 100_000, "not JSON"),
    "no model": (b"{}", "model is missing"),
    "model is no string": (b'{"model": 5}', "model is missing"),
    "no messages": (b'{"model": "assistant"}', "messages must be a list"),
    "no message": (b'{"model": "assistant", "messages": []}', "messages must be a list"),
    "message is text": (b'{"model": "assistant", "messages": ["hi"]}', r"messages\[0\] is a string"),
    "no role": (b'{"model": "assistant", "messages": [{"content": "hi"}]}', r"messages\[0\].role is missing"),
    "stream is text": (b'{"model": "assistant", "messages": [{"role": "user"}], "stream": "y"}', "stream is a string"),
    "options without stream": (
        b'{"model": "assistant", "messages": [{"role": "user"}], "stream_options": {}}', "needs stream: true",
    ),
    "user is a number": (b'{"model": "assistant", "messages": [{"role": "user"}], "user": 5}', "user is a number"),
    "endless user": (
        b'{"model": "assistant", "messages": [{"role": "user"}], "user": "' + b"u" * 600 + b'"}', "1 to 512 characters",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
async def test_bad_bodies_get_a_sentence(make_arm: MakeArm, make_front: MakeFront, name: str) -> None:
    body, sentence = BAD[name]
    front = await make_front(table_of([await make_arm("assistant-1")]))
    async with front.http.post("/v1/chat/completions", data=body) as response:
        error = (await response.json())["error"]
        assert response.status == 400
        assert error["type"] == "invalid_request_error"
        with pytest.raises(AssertionError, match=sentence):
            raise AssertionError(error["message"])
    assert await front.recorded() == []


async def test_a_body_over_the_limit_is_refused(make_arm: MakeArm, make_front: MakeFront) -> None:
    arm = await make_arm("assistant-1")
    front = await make_front(table_of([arm]))
    huge = orjson.dumps({"model": "assistant", "messages": [{"role": "user", "content": "x" * 8_000_000}]})
    async with front.http.post("/v1/chat/completions", data=io.BytesIO(huge)) as response:
        assert response.status == 413
        assert "4194304 bytes" in (await response.json())["error"]["message"]
    assert arm.requests == []


async def test_unknown_paths_and_methods_get_an_error_object(make_arm: MakeArm, make_front: MakeFront) -> None:
    front = await make_front(table_of([await make_arm("assistant-1")]))
    for method, path in (("GET", "/v1/embeddings"), ("GET", "/v1/chat/completions"), ("DELETE", "/routes")):
        async with front.http.request(method, path) as response:
            assert response.status == 404
            assert (await response.json())["error"]["code"] == "unknown_url"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("status", "seen"), [(400, 400), (422, 422), (429, 429), (500, 500), (503, 503), (404, 502), (401, 502), (302, 502)]
)
async def test_errors_of_an_arm(make_arm: MakeArm, make_front: MakeFront, status: int, seen: int, stream: bool) -> None:
    arm = await make_arm("assistant-1")

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        error = {"error": {"message": "assistant-1 says no", "type": "x"}}
        return web.json_response(error, status=status, headers={"retry-after": "7"})

    arm.behaviour = behave
    front = await make_front(table_of([arm]))
    response = await front.ask(stream=stream)
    assert response.status == seen
    assert "says no" in (await response.json())["error"]["message"]
    if status == 429:
        assert response.headers["retry-after"] == "7"
        assert (await response.json())["error"]["message"] == "assistant says no"
    assert response.headers["x-ratchet-version"] == "assistant-1"
    assert await front.metric("ratchet_gateway_requests_total", "assistant-1", code=str(seen)) == 1
    assert await front.metric("ratchet_gateway_request_duration_seconds_count", "assistant-1") == 0
    [record] = await front.recorded()
    assert (record.status, record.answer) == (seen, None)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"choices": []}', b'{"choices": [{"message": 5}]}'])
async def test_an_answer_that_is_none(make_arm: MakeArm, make_front: MakeFront, body: bytes) -> None:
    arm = await make_arm("assistant-1")

    async def behave(request: web.Request, asked: dict[str, Any]) -> web.StreamResponse:
        return web.Response(body=body, content_type="application/json")

    arm.behaviour = behave
    front = await make_front(table_of([arm]))
    response = await front.ask()
    assert response.status == 502
    assert (await response.json())["error"]["code"] == "bad_upstream_answer"


def broken_after(events: int) -> Any:
    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for event in chunks("one two three", "assistant-1")[:events]:
            await response.write(event)
        drop_connection(request)
        return response

    return behave


async def test_a_stream_that_breaks_off_is_an_error_to_everybody(make_arm: MakeArm, make_front: MakeFront) -> None:
    arm = await make_arm("assistant-1")
    arm.behaviour = broken_after(3)
    front = await make_front(table_of([arm]))
    words = []
    stream = await front.openai.chat.completions.create(model="assistant", messages=HELLO, stream=True)

    async def read() -> None:
        async for event in stream:
            words.append(event.choices[0].delta.content)

    with pytest.raises(openai.APIError, match="broke off"):
        await read()
    assert words == ["", "one ", "two "]
    assert await front.metric("ratchet_gateway_requests_total", "assistant-1", code="502") == 1
    [record] = await front.recorded()
    assert (record.status, record.finish_reason) == (502, "error")
    assert record.answer == {"role": "assistant", "content": "one two "}


async def test_an_error_inside_a_stream(make_arm: MakeArm, make_front: MakeFront) -> None:
    arm = await make_arm("assistant-1")

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        head = chunks("one", "assistant-1")[:2]
        error = b'data: {"error": {"message": "out of memory"}}\n\n'
        return await arm.stream(request, [*head, error, b"data: [DONE]\n\n"])

    arm.behaviour = behave
    front = await make_front(table_of([arm]))
    stream = await front.openai.chat.completions.create(model="assistant", messages=HELLO, stream=True)
    with pytest.raises(openai.APIError, match="out of memory"):
        async for _ in stream:
            pass
    assert await front.metric("ratchet_gateway_requests_total", "assistant-1", code="502") == 1


async def test_a_silent_arm_is_a_timeout(make_arm: MakeArm, make_front: MakeFront) -> None:
    arm = await make_arm("assistant-1")

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    arm.behaviour = behave
    front = await make_front(table_of([arm]), limits=Limits(idle_seconds=0.2))
    response = await front.ask()
    assert response.status == 504
    assert await front.metric("ratchet_gateway_requests_total", "assistant-1", code="504") == 1
    await eventually(lambda: arm.cut == 1, "the arm to notice")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_stops_the_arm(make_arm: MakeArm, make_front: MakeFront, stream: bool) -> None:
    arm = await make_arm("assistant-1")
    begun = asyncio.Event()

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if stream:
            response = web.StreamResponse(headers={"content-type": "text/event-stream"})
            await response.prepare(request)
            for event in chunks("one two three", "assistant-1")[:3]:
                await response.write(event)
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    arm.behaviour = behave
    front = await make_front(table_of([arm]))
    async with aiohttp.ClientSession(front.url) as http:
        body = {"model": "assistant", "messages": HELLO, "stream": stream}
        asking = asyncio.create_task(http.post("/v1/chat/completions", json=body))
        await asyncio.wait_for(begun.wait(), 60)
        if stream:
            response = await asking
            assert b"two" in await _until(response, b"two")
            response.close()
        else:
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
    await eventually(lambda: arm.cut == 1, "the arm to be told")
    await eventually(lambda: front.gateway.inflight == 0, "the handler to end")
    assert await front.metric("ratchet_gateway_requests_total", "assistant-1", code="499") == 1
    [record] = await front.recorded()
    assert (record.status, record.finish_reason) == (499, "cancelled")
    assert record.answer == ({"role": "assistant", "content": "one two "} if stream else None)


async def _until(response: aiohttp.ClientResponse, what: bytes) -> bytes:
    got = b""
    while what not in got:
        got += await response.content.readany()
    return got


async def test_a_client_that_does_not_read_is_cut_off(make_arm: MakeArm, make_front: MakeFront) -> None:
    arm = await make_arm("assistant-1")

    async def endless(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        event = chunks("x" * 100_000, "assistant-1")[1]
        while True:
            await response.write(event)

    arm.behaviour = endless
    front = await make_front(table_of([arm]), limits=Limits(request_seconds=1.0))
    _, writer = await asyncio.open_connection("127.0.0.1", front.service.port, limit=1024)
    body = orjson.dumps({"model": "assistant", "messages": HELLO, "stream": True})
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await eventually(lambda: arm.cut == 1, "the arm to be told")
    await eventually(lambda: front.gateway.inflight == 0, "the handler to end")
    writer.transport.abort()
    [record] = await front.recorded()
    assert (record.status, record.finish_reason) == (499, "cancelled")


async def test_a_body_that_does_not_come_is_not_waited_for(make_arm: MakeArm, make_front: MakeFront) -> None:
    front = await make_front(table_of([await make_arm("assistant-1")]), limits=Limits(body_seconds=0.2))
    reader, writer = await asyncio.open_connection("127.0.0.1", front.service.port)
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
    assert b"408" in await asyncio.wait_for(reader.readline(), 60)
    writer.close()
    await writer.wait_closed()


async def test_tool_calls_are_put_together(make_arm: MakeArm, make_front: MakeFront) -> None:
    arm = await make_arm("assistant-1")
    parts = [
        {"tool_calls": [{"index": 0, "id": "call-1", "type": "function", "function": {"name": "add"}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a": '}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]},
    ]

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        events = [{"id": "x", "model": "m", "choices": [{"index": 0, "delta": delta}]} for delta in parts]
        events.append({"id": "x", "model": "m", "choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
        return await arm.stream(request, [b"data: " + orjson.dumps(e) + b"\r\n\r\n" for e in events])

    arm.behaviour = behave
    front = await make_front(table_of([arm]))
    await front.ask(stream=True)
    [record] = await front.recorded()
    assert record.finish_reason == "tool_calls"
    assert record.answer is not None
    assert record.answer["tool_calls"] == [
        {"type": "function", "id": "call-1", "function": {"name": "add", "arguments": '{"a": 1}'}}
    ]


async def test_nothing_of_the_client_but_the_question_reaches_an_arm(make_arm: MakeArm, make_front: MakeFront) -> None:
    arm = await make_arm("assistant-1")
    front = await make_front(table_of([arm]))
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    headers = {"authorization": "Bearer key", "cookie": "a=b", "x-session-id": "s", "traceparent": trace}
    body = {"model": "assistant", "messages": HELLO}
    async with front.http.post("/v1/chat/completions", json=body, headers=headers) as response:
        assert response.status == 200
    assert arm.headers[0]["traceparent"] == trace
    assert not arm.headers[0].keys() & {"authorization", "cookie", "x-session-id"}


async def test_a_body_of_megabytes_reaches_the_arm_whole(make_arm: MakeArm, make_front: MakeFront) -> None:
    arm = await make_arm("assistant-1")
    front = await make_front(table_of([arm]))
    body = {"model": "assistant", "messages": [{"role": "user", "content": "é" * 1_900_000}]}
    async with front.http.post("/v1/chat/completions", data=io.BytesIO(orjson.dumps(body))) as response:
        assert response.status == 200
    assert arm.requests[0]["messages"] == body["messages"]


async def test_large_answers_and_many_at_once(make_arm: MakeArm, make_front: MakeFront) -> None:
    arm = await make_arm("assistant-1", "word " * 20_000)
    front = await make_front(table_of([arm]))
    responses = await asyncio.gather(*(front.ask(stream=index % 2 == 0) for index in range(20)))
    assert {response.status for response in responses} == {200}
    records = await front.recorded()
    assert len(records) == 20
    assert {len(record.answer["content"].split()) for record in records if record.answer} == {20_000}


async def test_an_answer_over_the_limit_is_refused(make_arm: MakeArm, make_front: MakeFront) -> None:
    arm = await make_arm("assistant-1", "x" * 100_000)
    front = await make_front(table_of([arm]), limits=Limits(answer_bytes=10_000))
    assert (await front.ask()).status == 502
    response = await front.ask(stream=True)
    assert b"more than 10000 bytes" in await response.read()


async def test_the_whole_record_of_a_failed_fake_is_not_hidden(make_arm: MakeArm, make_front: MakeFront) -> None:
    """The helpers themselves: a fake arm answers only to its own model's name."""
    arm: FakeArm = await make_arm("assistant-1")
    async with aiohttp.ClientSession() as http:
        url = f"http://127.0.0.1:{arm.port}/v1/chat/completions"
        async with http.post(url, json={"model": "other", "messages": HELLO}) as response:
            assert response.status == 404
        async with http.post(url, json={"model": "assistant-1", "messages": HELLO}) as response:
            assert await response.json() == completion("I am assistant-1", "assistant-1")
