"""Formats of others: each one's documented examples become the same canonical records, plain or packed; whatever is
hostile is refused by name, in bounded memory."""

import gzip
import json
import random
import tracemalloc
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ratchet_api.data import Curation, Source
from ratchet_api.erasures import Erased
from ratchet_api.records import Feedback, Interaction
from ratchet_trainer.chat import Message
from ratchet_trainer.curate import readers, values
from ratchet_trainer.curate.pipeline import Counts, SessionFile, Settings, examples_of
from ratchet_trainer.curate.readers import READERS, Entry, Owner

FORMATS = Path(__file__).parent / "formats"
UNTIL = datetime(2026, 11, 20, tzinfo=UTC)
OWNER = Owner("default", "assistant")
MIB = 1 << 20


def settings_of(**curation: Any) -> Settings:
    return Settings(Curation(**curation), "default", "assistant", UNTIL - timedelta(days=28), UNTIL, timedelta(days=7))


def source(**fields: Any) -> Source:
    return Source(uri="s3://bucket/x", **fields)


def curated(*files: Path, run: Settings | None = None, **fields: Any) -> tuple[dict[str, int], list[tuple[str, ...]]]:
    """Reasons of all drops, and what is learnt: the turns of each example, its origin last."""
    named = [SessionFile(path.name, path, source(**fields)) for path in files]
    counts = Counts()
    examples = list(examples_of(run or settings_of(), named, lambda *_: None, counts))
    step = counts.funnel["reading"]
    assert step.read == step.kept + step.dropped.total()
    learnt = [(*(turn.content for turn in example.context), example.answer, example.origin) for example in examples]
    return dict(step.dropped + counts.funnel.dropped), learnt


GOLDEN: dict[str, tuple[dict[str, int], list[tuple[str, ...]]]] = {
    "interactions.jsonl": (
        {"belowThreshold": 2},
        [
            ("How do I list pods?", "kubectl get pods", "answer"),
            ("How do I list nodes?", "kubectl get nodes", "correction"),
        ],
    ),
    "messages.jsonl": (
        {"unsupported": 1},
        [
            ("Be brief.", "What's the capital of France?", "Paris", "Can you be more sarcastic?",
             "Paris, as if everyone doesn't know that already.", "demonstration"),
            ("Who wrote Hamlet?", "William Shakespeare.", "demonstration"),
        ],
    ),
    "sharegpt.json": (
        {"unsupported": 1},
        [("You greet.", 'Say "hi", and [this] {that} \\ ', "hi", "Again?", "hi again", "demonstration")],
    ),
    "alpaca.json": (
        {},
        [
            ("You translate.", "Translate: yes", "ja", "Translate to German.\nGood morning", "Guten Morgen",
             "demonstration"),
            ("Name a colour.", "Blue", "demonstration"),
        ],
    ),
    "litellm.json": ({"belowThreshold": 1}, []),
    "langfuse.jsonl": (
        {"ignored": 2, "feedback": 2, "belowThreshold": 1}, [("What is a pod?", "The smallest unit.", "answer")],
    ),
    "langfuse_api.json": ({}, [("What is a job?", "Work that ends.", "answer")]),
}  # fmt: skip


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize("name", GOLDEN)
def test_each_format_is_recognised_and_read(tmp_path: Path, name: str, packing: str) -> None:
    content = (FORMATS / name).read_bytes()
    path = tmp_path / f"{name}{packing}"
    path.write_bytes({"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[packing](content))
    assert curated(path) == GOLDEN[name]


@pytest.mark.parametrize("name", GOLDEN)
def test_a_whole_file_and_lines_are_the_same(tmp_path: Path, name: str) -> None:
    """A JSON array, the same indented, objects one after the other, and JSON lines hold the same."""
    text = (FORMATS / name).read_text()
    rows = [json.loads(line) for line in text.splitlines()] if name.endswith("jsonl") else json.loads(text)
    rows = rows if isinstance(rows, list) else [rows]
    forms = {
        "lines.jsonl": "\n".join(map(json.dumps, rows)), "array.json": json.dumps(rows),
        "indented.json": json.dumps(rows, indent=2), "array.jsonl": json.dumps(rows),
        "windows.json": "\ufeff" + json.dumps(rows, indent=1).replace("\n", "\r\n"),
        "following.json": "\n".join(json.dumps(row, indent=2) for row in rows),
    }  # fmt: skip
    for form, content in forms.items():
        (tmp_path / form).write_text(content)
        assert curated(tmp_path / form) == GOLDEN[name], form


def test_every_format_has_a_golden_file() -> None:
    found = {readers.reader_of(FORMATS / name, "auto", MIB).name for name in GOLDEN}  # type: ignore[union-attr]
    assert found == {reader.name for reader in READERS} - {"ratchet"}


def test_weights_of_a_demonstration_are_its_own() -> None:
    named = [SessionFile("m", FORMATS / "messages.jsonl", source())]
    examples = list(examples_of(settings_of(), named, lambda *_: None, Counts()))
    sarcastic = next(example for example in examples if len(example.context) > 1)
    assert [(m.role, m.weight) for m in sarcastic.messages()] == [
        ("system", None), ("user", None), ("assistant", 0), ("user", None), ("assistant", None),
    ]  # fmt: skip
    (greeting,) = examples_of(
        settings_of(), [SessionFile("s", FORMATS / "sharegpt.json", source())], lambda *_: None, Counts()
    )
    assert Message(role="assistant", content="hi") in greeting.messages(), "all turns of a demonstration are learnt"


def test_feedback_on_an_imported_answer_comes_from_anywhere(tmp_path: Path) -> None:
    """A record of our own judges LiteLLM's answer, by its own id or by that of the model's server."""
    for judged in ("chatcmpl-litellm-1", "chatcmpl-upstream-1"):
        verdict = Feedback(id="f", response_id=judged, namespace="n", cycle="c", version="", time=UNTIL - timedelta(1),
                           value="up")  # fmt: skip
        (tmp_path / "feedback.jsonl").write_text(verdict.model_dump_json() + "\n")
        assert curated(tmp_path / "feedback.jsonl", FORMATS / "litellm.json") == (
            {"feedback": 1}, [("Which port does etcd use?", "2379", "answer")],
        )  # fmt: skip


def test_who_vouches_for_a_file_makes_silence_good() -> None:
    assert curated(FORMATS / "interactions.jsonl", verdict="good")[0] == {"belowThreshold": 1}
    assert curated(FORMATS / "alpaca.json", verdict="recorded") == ({"belowThreshold": 2}, [])
    assert curated(FORMATS / "langfuse.jsonl", score="latency")[0] == {"ignored": 3, "feedback": 1, "belowThreshold": 2}


def test_a_format_that_a_file_does_not_have_is_named() -> None:
    assert curated(FORMATS / "alpaca.json", format="sharegpt") == ({"schema": 2}, [])


def test_the_window_holds_for_what_bears_a_time(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        "".join(
            json.dumps({"timestamp": when, "user": f"q {when}", "assistant": "a", "metadata": {"success": True}}) + "\n"
            for when in ("2026-09-01T00:00:00Z", "2026-11-19T00:00:00Z", "9999-12-31T23:59:59-05:00",
                         "0001-01-01T00:00:00+14:00", 1e18, "tomorrow", True, None)
        )
    )  # fmt: skip
    dropped, learnt = curated(tmp_path / "a.jsonl")
    assert [turns[0] for turns in learnt] == ["q 2026-11-19T00:00:00Z", "q None"]
    assert dropped == {"outsideWindow": 1, "schema": 5}, "neither year 0 nor year 10000 is one in UTC"


def test_who_withdrew_is_not_learnt_from() -> None:
    run = settings_of()
    gone = Settings(**{**run.__dict__, "erased": Erased(sessions=frozenset({"s1"}))})
    assert curated(FORMATS / "interactions.jsonl", run=gone)[0] == {"belowThreshold": 2, "erased": 1}


HOSTILE = {
    "oversized": b'{"user": "' + b"x" * (50 * MIB) + b'", "assistant": ""}',
    "malformed": b"[" * 200_000,
    "duplicateKeys": b'{"user": "a", "user": "b", "assistant": "c"}',
    "schema": b'{"user": 1, "assistant": null}',
}


@pytest.mark.parametrize("problem", HOSTILE)
def test_hostile_lines_are_refused_by_name(tmp_path: Path, problem: str) -> None:
    good = json.dumps({"user": "Who?", "assistant": "Me", "metadata": {"success": True}}).encode()
    path = tmp_path / "a.jsonl"
    path.write_bytes(good + b"\n" + HOSTILE[problem] + b"\n" + good + b"\n")
    assert curated(path) == ({problem: 1}, [("Who?", "Me", "answer")] * 2)


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe", b'{"user": "\\ud800", "assistant": "x"}', b'{"user": "a"', b'{"a":' * 5000 + b"1" + b"}" * 5000,
     b'{"user": ' + b"1" * 10_000 + b"}"],
    ids=["utf8", "surrogate", "cut", "deep", "number"],
)  # fmt: skip
def test_what_is_no_json_is_malformed(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"user": "Who?", "assistant": "Me"}\n' + content + b"\n")
    assert curated(path)[0] == {"malformed": 1, "belowThreshold": 1}


def test_junk_between_elements_is_counted_and_survived(tmp_path: Path) -> None:
    row = '{"user": "Who?", "assistant": "Me", "metadata": {"success": true}}'
    path = tmp_path / "a.json"
    path.write_text(f"[{row}, 7, {row}, [1, 2], {row}, {row[:20]}")
    assert curated(path)[0] == {"malformed": 1, "schema": 1, "truncated": 1}


@pytest.mark.parametrize("suffix", [".json.gz", ".json.zst", ".jsonl.gz"])
@pytest.mark.parametrize("filler", [b"\n", b"[", b'{"user": "', b"x"], ids=["lines", "brackets", "string", "junk"])
def test_a_bomb_takes_no_memory(tmp_path: Path, suffix: str, filler: bytes) -> None:
    """64 MiB that unpack from a few KiB."""
    path = tmp_path / f"a{suffix}"
    block = filler * (MIB // len(filler))
    row = b'{"user": "Who?", "assistant": "Me"}\n'
    if suffix.endswith("zst"):
        packer = zstandard.ZstdCompressor().compressobj()
        path.write_bytes(b"".join([packer.compress(row), *(packer.compress(block) for _ in range(64)), packer.flush()]))
    else:
        with gzip.open(path, "wb") as sink:
            sink.write(row)
            for _ in range(64):
                sink.write(block)
    tracemalloc.start()
    try:
        dropped, _ = curated(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 48 * MIB
    assert set(dropped) <= {"belowThreshold", "expansion", "oversized", "malformed", "truncated", "unrecognised"}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=400), suffix=st.sampled_from(readers.SUFFIXES))
def test_any_bytes_are_survived(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    curated(path)


Json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = (
    "kind", "user", "assistant", "metadata", "timestamp", "messages", "conversations", "instruction", "input", "output",
    "history", "system", "call_type", "startTime", "response", "id", "trace_id", "type", "scores", "name", "value",
    "success", "role", "content", "from", "choices", "message", "weight",
)  # fmt: skip
Values = (
    Json
    | st.sampled_from(["user", "assistant", "interaction", "gpt", "GENERATION"])
    | st.lists(st.dictionaries(st.sampled_from(KEYS), Json, max_size=4), max_size=3)
)
Objects = st.dictionaries(st.sampled_from(KEYS), Values, max_size=8)


@settings(max_examples=150, deadline=None)
@given(value=Objects)
def test_no_object_breaks_a_reader(value: dict[str, Any]) -> None:
    for reader in READERS:
        reader.recognises(value)
        entry = readers.base.read_entry(reader, value, "digest", OWNER)
        assert isinstance(entry, Entry | str | None)
        if isinstance(entry, Entry):
            assert isinstance(entry.record, Interaction | Feedback)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.dictionaries(st.text(max_size=4), Json, max_size=3), max_size=6),
    indent=st.sampled_from([None, 1]),
    whole=st.booleans(),
)
def test_elements_are_those_of_the_array(
    tmp_path: Path, rows: list[dict[str, Any]], indent: int | None, whole: bool
) -> None:
    """The splitter finds exactly the elements, wherever the pieces of the file end."""
    path = tmp_path / "a.json"
    text = json.dumps(rows, indent=indent) if whole else "\n".join(json.dumps(row, indent=indent) for row in rows)
    path.write_text(text)
    content = path.read_bytes()
    expected = [(number, row) for number, row in enumerate(rows, start=1)]
    for size in (1, 3, 7, len(content) or 1):
        splitter = values._Splitter(MIB)
        pieces = [content[i : i + size] for i in range(0, len(content), size)]
        lines = [line for piece in pieces for line in splitter.feed(piece)] + list(splitter.end(None))
        assert [(line.number, json.loads(line.content)) for line in lines] == expected


def test_the_order_of_the_listing_does_not_matter(tmp_path: Path) -> None:
    files = [FORMATS / name for name in GOLDEN]
    first = curated(*files)
    for seed in range(3):
        shuffled = random.Random(seed).sample(files, len(files))
        assert curated(*shuffled) == first
