"""The fast way through the usual lines: it takes none that the model refuses, and reads what the model reads."""

import json
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ratchet_trainer.curate import plain, read
from ratchet_trainer.curate.examples import Example, example_of
from ratchet_trainer.curate.plain import PlainFeedback, PlainInteraction
from ratchet_trainer.curate.read import Line
from ratchet_trainer.curate.readers import Entry
from ratchet_trainer.curate.verdicts import Verdicts

INTERACTION: dict[str, Any] = {
    "kind": "interaction", "id": "r", "session": "s", "namespace": "n", "cycle": "c", "version": "v", "arm": "stable",
    "time": "2026-11-20T10:00:00.123456Z", "principal": "p", "messages": [{"role": "user", "content": "q"}],
    "parameters": {"temperature": 0.5}, "answer": {"role": "assistant", "content": "a"}, "finish_reason": "stop",
    "status": 200, "usage": {"prompt_tokens": 1}, "stream": False, "duration": 1.5, "time_to_first_token": 0.1,
}  # fmt: skip
FEEDBACK: dict[str, Any] = {
    "kind": "feedback", "id": "f", "response_id": "r", "namespace": "n", "cycle": "c", "version": "v", "session": "s",
    "time": "2026-11-20T10:00:00Z", "value": "up", "comment": "", "correction": " better ",
}  # fmt: skip
TIMES = (
    "2026-11-20T10:00:00Z", "2026-11-20T10:00:00.1234567Z", "2026-11-20T10:00:00+05:30", "2026-11-20 10:00:00Z",
    "2026-11-20t10:00:00z", "2026-11-20T24:00:00Z", "2026-11-20T23:59:60Z", "9999-12-31T23:59:59-12:00",
    "0001-01-01T00:00:00+12:00",
    "2026-11-20T10:00:00", "2026-11-20T10:00Z", "2026-11-20", "20261120T100000Z", "1763632800", "2026-02-30T00:00:00Z",
    "2026-11-20T10:00:00,5Z", "2026-11-20T10:00:00-00:00", "2026-11-20T10:00:00.Z", "2026-11-20T10:00:00.9999999Z",
)  # fmt: skip
ODD: tuple[Any, ...] = (
    None, 0, 1, 200, 200.0, 500, -1, 10**30, 1.5, True, False, "", "x", "200", "\ud83d\ude00 é", "stop", "length", "up",
    "down", "pinned", "cancelled", "tool_calls", [], ["x"], {}, {"a": [1]}, *TIMES,
    [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "system", "content": ""}],
    [{"role": "user", "content": [{"type": "text", "text": "q"}]}], [{"role": "tool", "content": "q"}],
    [{"role": "user"}],
    [{"role": "user", "content": "q", "name": "n"}], {"role": "assistant", "content": None}, {"content": " a "},
    {"role": "assistant", "content": "", "tool_calls": [{}]}, {"role": "user", "content": "a"},
    {"role": "assistant", "content": "a", "tool_calls": None, "refusal": None}, {"content": "a", "tool_calls": []},
    {"role": "assistant", "content": "a", "new": 1},
)  # fmt: skip


def same(line: bytes) -> bool:
    """Whether the fast way takes a line; checks that it is then read as the model reads it."""
    fast = plain.parse(line)
    if fast is None:
        return False
    slow = read.parse(Line(1, line))
    assert not isinstance(slow, str), (slow, line)
    if isinstance(fast, PlainInteraction):
        names = "id session namespace cycle version arm time principal parameters finish_reason status usage stream"
        verdict = None
        assert example_of(Entry(fast), fast, verdict, str) == example_of(Entry(slow), slow, verdict, str)  # type: ignore[arg-type]
    else:
        assert isinstance(fast, PlainFeedback)
        names = "id response_id namespace cycle version time value session comment correction"
    for name in names.split():
        assert getattr(fast, name) == getattr(slow, name), name
    return True


def test_what_the_gateway_writes_goes_the_fast_way() -> None:
    assert same(json.dumps(INTERACTION).encode())
    assert same(json.dumps(FEEDBACK).encode())
    assert same(json.dumps(INTERACTION | {"answer": None, "status": 500}).encode())
    found = plain.parse(json.dumps(INTERACTION).encode())
    assert isinstance(found, PlainInteraction)
    example = example_of(Entry(found), found, None, str)
    assert isinstance(example, Example)
    assert (example.answer, example.own, example.prompt) == ("a", True, "q")


@pytest.mark.parametrize("time", TIMES)
def test_times_are_those_of_the_model(time: str) -> None:
    same(json.dumps(INTERACTION | {"time": time}).encode())
    same(json.dumps(FEEDBACK | {"time": time}).encode())


@pytest.mark.parametrize("base", [INTERACTION, FEEDBACK], ids=["interaction", "feedback"])
def test_no_odd_value_is_taken_for_another(base: dict[str, Any]) -> None:
    for name in [*base, "unknown"]:
        same(json.dumps({key: value for key, value in base.items() if key != name}).encode())
        for value in ODD:
            same(json.dumps(base | {name: value}).encode())
            same(json.dumps(base | {name: value}, ensure_ascii=False).encode("utf-8", "surrogatepass"))


@settings(max_examples=300)
@given(st.sampled_from([INTERACTION, FEEDBACK]), st.integers(0, 10_000), st.sampled_from(
    [b'"', b"\\", b"\xff", b"\\ud800", b"{", b"}", b",", b"\x00", b"1e999", b"NaN", b" ", b'"kind":"feedback",',
     b"\xef\xbb\xbf", b'"id":"other",', b"-0", b"00", b'"content":"z",']
), st.integers(0, 6))  # fmt: skip
def test_no_damage_is_overlooked(base: dict[str, Any], at: int, junk: bytes, cut: int) -> None:
    line = json.dumps(base).encode()
    at %= len(line) + 1
    same(line[:at] + junk + line[at + cut :])
    same(line[:at] + line[at + cut :])


def test_feedback_of_either_form_is_joined() -> None:
    said = plain.parse(json.dumps(FEEDBACK).encode())
    asked = plain.parse(json.dumps(INTERACTION).encode())
    assert isinstance(said, PlainFeedback)
    assert isinstance(asked, PlainInteraction)
    verdicts = Verdicts()
    verdicts.add(said)
    verdict = verdicts.of(asked, timedelta(days=1))
    assert verdict is not None
    assert (verdict.correction, verdict.time) == ("better", said.time)


PIECES = (
    json.dumps(INTERACTION), json.dumps(FEEDBACK), json.dumps(INTERACTION, separators=(",", ":")),
    json.dumps(INTERACTION | {"duration": 1.23456789}), json.dumps(FEEDBACK | {"comment": "\u00e9 and 'kind'"}),
    json.dumps(FEEDBACK | {"comment": 'a "kind" one'}), json.dumps(FEEDBACK | {"comment": "C:\\users"}),
    json.dumps(FEEDBACK).replace('"kind"', '"\\u006bind"'), json.dumps(INTERACTION).replace('"kind"', '"\\u006Bind"'),
    json.dumps(INTERACTION | {"usage": {"kind": "x"}}), json.dumps(FEEDBACK | {"time": "2026-11-20T10:00:00.1234567Z"}),
    json.dumps(INTERACTION).replace('{"kind"', '{"kind": "feedback", "kind"'), json.dumps(INTERACTION | {"new": 1}),
    "{}", "", " ", "7", "{", "}", '{"a": {}', '{"kind": 1}', json.dumps(INTERACTION)[:-1], "\r", ",", "\xa0", '"kind"',
)  # fmt: skip


@settings(max_examples=1000)
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=5), st.sampled_from(["\n", "\n", "\n", "", " ", "\r\n"]))
def test_lines_read_together_are_those_read_one_by_one(pieces: list[str], between: str) -> None:
    content = between.join(pieces).encode()
    found = plain.records_of(content)
    alone = [plain.parse(line) for line in content.split(b"\n")]
    if found is not None:
        assert found == alone
        assert plain.feedback_of(content) == [one for one in found if isinstance(one, PlainFeedback)]
    spoken = plain.feedback_of(content)
    if spoken is not None and None not in alone:
        assert spoken == [one for one in alone if isinstance(one, PlainFeedback)]


def test_the_usual_lines_are_read_together() -> None:
    content = "\n".join(PIECES[:4]).encode()
    assert len(plain.records_of(content) or []) == 4
    assert len(plain.feedback_of(content) or []) == 1
    assert plain.records_of(PIECES[0].encode()) == [plain.parse(PIECES[0].encode())]
