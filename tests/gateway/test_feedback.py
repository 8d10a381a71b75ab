"""Verdicts: which version they count for, once; and what is recorded of them."""

from pathlib import Path
from typing import Any

import pytest

from ratchet_gateway.answers import AnswerIndex, new_id, version_tag

from .support import Front, MakeArm, MakeFront, MemoryStore, table_of


async def judge(front: Front, **body: Any) -> tuple[int, dict[str, Any]]:
    async with front.http.post("/v1/feedback", json=body) as response:
        return response.status, await response.json()


async def answered(front: Front, model: str = "assistant") -> str:
    answer_id: str = (await (await front.ask(model, session="s1")).json())["id"]
    return answer_id


async def test_a_verdict_counts_for_the_version_that_answered(make_arm: MakeArm, make_front: MakeFront) -> None:
    front = await make_front(table_of([await make_arm("assistant-1")], [await make_arm("assistant-2")], 0))
    ids = [await answered(front, f"assistant@{version}") for version in ("assistant-1", "assistant-2")]
    status, body = await judge(front, response_id=ids[1], value="down", comment="wrong", correction="right")
    assert status == 200
    assert (body["version"], body["value"], body["response_id"]) == ("assistant-2", "down", ids[1])
    assert await front.metric("ratchet_gateway_feedback_total", "assistant-2", value="down") == 1
    assert await front.metric("ratchet_gateway_feedback_total", "assistant-1", value="down") == 0
    await front.close()
    [record] = front.store.feedback()
    assert (record.version, record.session, record.value) == ("assistant-2", "s1", "down")
    assert (record.comment, record.correction) == ("wrong", "right")
    assert (record.namespace, record.cycle, record.response_id) == ("default", "assistant", ids[1])


async def test_only_the_first_verdict_counts_but_all_are_recorded(make_arm: MakeArm, make_front: MakeFront) -> None:
    front = await make_front(table_of([await make_arm("assistant-1")]))
    answer = await answered(front)
    for value in ("up", "down", "up"):
        assert (await judge(front, response_id=answer, value=value))[0] == 200
    assert await front.metric("ratchet_gateway_feedback_total", "assistant-1", value="up") == 1
    assert await front.metric("ratchet_gateway_feedback_total", "assistant-1", value="down") == 0
    await front.close()
    assert sorted(record.value for record in front.store.feedback()) == ["down", "up", "up"]


async def test_answers_and_verdicts_are_known_after_a_restart(
    make_arm: MakeArm, make_front: MakeFront, tmp_path: Path
) -> None:
    arm, store, folder = await make_arm("assistant-1"), MemoryStore(), tmp_path / "kept"
    front = await make_front(table_of([arm]), store=store, folder=folder)
    judged, fresh = await answered(front), await answered(front)
    await judge(front, response_id=judged, value="up")
    await front.close()
    front = await make_front(table_of([arm]), store=store, folder=folder)
    await judge(front, response_id=judged, value="up")
    await judge(front, response_id=fresh, value="down")
    assert await front.metric("ratchet_gateway_feedback_total", "assistant-1", value="up") == 0, "counted before"
    assert await front.metric("ratchet_gateway_feedback_total", "assistant-1", value="down") == 1
    await front.close()
    assert {record.session for record in store.feedback()} == {"s1"}


async def test_an_answer_of_another_gateway_counts(make_arm: MakeArm, make_front: MakeFront) -> None:
    """Its id says which version it was, so replicas need not share anything."""
    arm = await make_arm("assistant-1")
    one, other = await make_front(table_of([arm])), await make_front(table_of([arm]))
    status, body = await judge(other, response_id=await answered(one), value="down")
    assert (status, body["version"]) == (200, "assistant-1")
    assert await other.metric("ratchet_gateway_feedback_total", "assistant-1", value="down") == 1


async def test_an_unknown_answer_is_recorded_and_counted_for_nobody(make_arm: MakeArm, make_front: MakeFront) -> None:
    front = await make_front(table_of([await make_arm("assistant-1")]))
    status, body = await judge(front, response_id="chatcmpl-of-somebody-else", value="up")
    assert (status, body["version"]) == (202, "")
    assert await front.metric("ratchet_gateway_feedback_total", "assistant-1", value="up") == 0
    await front.close()
    [record] = front.store.feedback()
    assert (record.version, record.cycle) == ("", "assistant")


async def test_an_unknown_answer_needs_a_cycle_when_there_are_several(make_arm: MakeArm, make_front: MakeFront) -> None:
    both = table_of([await make_arm("assistant-1")])
    other = table_of([await make_arm("other-1")], name="other")
    front = await make_front(type(both)({**both.cycles, **other.cycles}))
    status, body = await judge(front, response_id="x", value="up")
    assert status == 404
    assert "add model" in body["error"]["message"]
    assert (await judge(front, response_id="x", value="up", model="other"))[0] == 202
    await front.close()
    assert [record.cycle for record in front.store.feedback()] == ["other"]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({}, "response_id is missing"),
        ({"response_id": "x"}, 'value must be "up" or "down"'),
        ({"response_id": "x", "value": "thumbs_up"}, 'value must be "up" or "down"'),
        ({"response_id": 5, "value": "up"}, "response_id must be a string"),
        ({"response_id": "x" * 300, "value": "up"}, "at most 256"),
        ({"response_id": "x", "value": "up", "comment": 1}, "comment must be a string"),
        ({"response_id": "x", "value": "up", "score": 1}, "score is not a field"),
    ],
)
async def test_bad_feedback_gets_a_sentence(
    make_arm: MakeArm, make_front: MakeFront, body: dict[str, Any], sentence: str
) -> None:
    front = await make_front(table_of([await make_arm("assistant-1")]))
    status, answer = await judge(front, **body)
    assert status == 400
    assert sentence in answer["error"]["message"]


def test_the_index_forgets_the_oldest_and_bounds_its_files(tmp_path: Path) -> None:
    key = ("default", "assistant", "assistant-1")
    index = AnswerIndex(tmp_path, 10)
    ids = [new_id(version_tag(key)) for _ in range(100)]
    for number, answer_id in enumerate(ids):
        index.add(answer_id, key, f"s{number}")
    assert index.find(ids[0]) is None
    assert index.version_of(ids[0]) == key, "the version is in the id"
    newest = index.find(ids[-1])
    assert newest is not None
    assert newest.session == "s99"
    assert sum(len(path.read_bytes().splitlines()) for path in tmp_path.iterdir()) <= 10
    index.close()
    again = AnswerIndex(tmp_path, 10)
    assert again.find(ids[-1]) == newest
    again.close()


def test_a_torn_last_line_is_no_trouble(tmp_path: Path) -> None:
    key = ("default", "assistant", "assistant-1")
    index = AnswerIndex(tmp_path, 10)
    index.add("one", key, "s")
    index.close()
    with (tmp_path / "0.jsonl").open("ab") as file:
        file.write(b'{"id": "two", "ke')
    again = AnswerIndex(tmp_path, 10)
    assert again.find("one") is not None
    assert again.find("two") is None
    again.add("three", key, "s")
    again.close()
    last = AnswerIndex(tmp_path, 10)
    assert last.find("three") is not None, "what comes after the torn line is read"
    last.close()
