"""Streams: whatever way the bytes are cut, the client and the record get the same."""

from collections import deque
from itertools import pairwise

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ratchet_gateway.answer import Stream, readable_error
from ratchet_gateway.errors import ArmFailed

from .support import chunks

words = st.lists(st.text(st.characters(exclude_categories=("Z", "C")), min_size=1, max_size=12), max_size=12)

cuts_ = st.lists(st.integers(0, 10_000), max_size=20)


def stream(*, include_usage: bool = False) -> Stream:
    return Stream("chatcmpl-1", "assistant", include_usage, max_line=10_000)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


@given(cuts_, st.integers(min_value=1, max_value=3))
def test_a_line_over_the_limit_is_refused_however_it_is_cut(cuts: list[int], lines: int) -> None:
    data = b"".join(chunks("x" * 20_000, "arm")) * lines
    fed = stream()
    with pytest.raises(ArmFailed, match="a line of more than 10000 bytes"):
        deque((fed.feed(piece, 0.0) for piece in pieces(data, cuts)), maxlen=0)


@given(words, cuts_, st.booleans(), st.booleans(), st.sampled_from([b"\n", b"\r\n"]))
@example(["a"], [], True, True, b"\r\n")
def test_cuts_do_not_matter(text: list[str], cuts: list[int], usage: bool, wanted: bool, end: bytes) -> None:
    data = b"".join(chunks(" ".join(text), "arm", usage=usage)).replace(b"\n", end)
    whole, cut = stream(include_usage=wanted), stream(include_usage=wanted)
    expected = whole.feed(data, 1.0)
    assert b"".join(cut.feed(piece, 1.0) for piece in pieces(data, cuts)) == expected
    assert cut.close() == whole.close()
    assert cut.done
    assert cut.complete

    events = [orjson.loads(event.removeprefix(b"data: ")) for event in expected.split(b"\n\n") if event]
    assert {event["id"] for event in events} == {"chatcmpl-1"}
    assert {event["model"] for event in events} == {"assistant"}
    assert any(event.get("usage") for event in events) == (usage and wanted)
    content = "".join(c["delta"].get("content", "") for event in events for c in event["choices"])
    message = cut.answer.message
    assert message is not None
    assert message["content"] == content == "".join(word + " " for word in text)
    assert (cut.answer.usage is not None) == usage


def test_times_are_those_of_content() -> None:
    events = chunks("one two three four", "arm")
    s = stream()
    s.feed(events[0], 1.0)
    assert s.answer.first_content is None, "the role is no content"
    s.feed(events[1], 2.0)
    assert s.answer.first_content == 2.0
    s.feed(events[2], 2.5)
    s.feed(events[3] + events[4], 3.5)
    s.feed(b"".join(events[5:]), 9.0)
    assert s.gaps == [0.5, 0.5, 0.5], "two chunks that came together share a second"


def test_comments_pass_and_unknown_fields_do_not() -> None:
    assert stream().feed(b": ping\n\nevent: x\nid: 1\nretry: 5\n\n", 0.0) == b": ping\n\n"


def test_several_choices() -> None:
    s = stream()
    for index, content in ((0, "a"), (1, "x"), (0, "b")):
        s.feed(b"data: " + orjson.dumps({"choices": [{"index": index, "delta": {"content": content}}]}) + b"\n\n", 0.0)
    assert s.close().message == {"role": "assistant", "content": "ab"}, "the record holds the first"


def test_reasoning_counts_as_content() -> None:
    s = stream()
    for part in ("let me ", "think"):
        chunk = {"choices": [{"index": 0, "delta": {"reasoning_content": part}}]}
        s.feed(b"data: " + orjson.dumps(chunk) + b"\n\n", 4.0)
    assert s.answer.first_content == 4.0
    assert s.close().message == {"role": "assistant", "content": "", "reasoning_content": "let me think"}


@pytest.mark.parametrize(
    "data", [b"data: {\n", b"data: 5\n", b"data: \xff\n", b'data: {"choices": [5]}\n', b"x" * 10_001]
)
def test_no_event_stream(data: bytes) -> None:
    with pytest.raises(ArmFailed):
        stream().feed(data, 0.0)


@given(st.binary(max_size=300))
def test_hostile_bytes_end_in_arm_failed_or_pass(data: bytes) -> None:
    s = stream()
    try:
        s.feed(b"data: " + data + b"\n", 0.0)
    except ArmFailed:
        return
    s.close()


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["choices", "delta", "index", "content", "tool_calls", "function", "usage", "error", "role"]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=20,
    )
)
def test_json_of_any_shape_ends_in_arm_failed_or_passes(value: object) -> None:
    s = stream()
    try:
        s.feed(b"data: " + orjson.dumps({"choices": [value]}) + b"\ndata: " + orjson.dumps(value) + b"\n", 0.0)
    except ArmFailed:
        return
    s.close()


def test_an_end_without_done_is_complete_if_there_was_a_reason() -> None:
    s = stream()
    events = chunks("one", "arm", usage=False)
    s.feed(b"".join(events[:-2]), 0.0)
    assert not s.complete
    s.feed(events[-2], 0.0)
    assert s.complete


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": {"message": "arm-1 is full"}}', "assistant is full"),
        (b'{"error": "arm-1 is full"}', "assistant is full"),
        (b'{"object": "error", "message": "m"}', "m"),
        (b'{"detail": "d"}', "d"),
        (b'{"detail": [{"loc": 1}]}', None),
        (b"[]", None),
        (b"<html>", None),
    ],
)
def test_messages_of_errors(body: bytes, message: str | None) -> None:
    assert readable_error(body, "arm-1", "assistant") == message
