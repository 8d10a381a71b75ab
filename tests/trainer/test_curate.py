"""Curation: whatever lies in the sessions, every line is accounted for and the same input gives the same bytes."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ratchet_api.data import DEFAULT_CATEGORIES, Anchors, Category, ConfigMapKey, Curation, Identity
from ratchet_api.records import Feedback, Interaction
from ratchet_trainer.artifacts import build_manifest
from ratchet_trainer.chat import Message
from ratchet_trainer.curate import read
from ratchet_trainer.curate.examples import (
    VARIATIONS,
    Categoriser,
    Example,
    Verdict,
    anchors_wanted,
    example_of,
    pick_anchors,
    score,
    varied,
)
from ratchet_trainer.curate.funnel import Funnel
from ratchet_trainer.curate.pipeline import Counts, SessionFile, Settings, examples_of
from ratchet_trainer.curate.readers import Entry
from ratchet_trainer.curate.rules import select as select_by
from ratchet_trainer.curate.text import HeldOut, normalised
from ratchet_trainer.curate.verdicts import Verdicts
from ratchet_trainer.curate.write import compose, write
from ratchet_trainer.errors import UserError

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
KEY = ConfigMapKey(name="anchors", key="a.jsonl")
NOBODY = HeldOut([])


def interaction(index: int = 0, **changes: Any) -> Interaction:
    record: dict[str, Any] = {
        "id": f"r{index}", "session": "s", "namespace": "default", "cycle": "assistant", "version": "assistant-0",
        "arm": "stable", "time": NOW - timedelta(hours=3),
        "messages": [{"role": "user", "content": f"Where is secret {index}?"}],
        "answer": {"role": "assistant", "content": "No idea."}, "finish_reason": "stop", "status": 200, "duration": 1.0,
    }  # fmt: skip
    return Interaction.model_validate(record | changes)


def feedback(index: int = 0, **changes: Any) -> Feedback:
    record: dict[str, Any] = {
        "id": f"f{index}", "response_id": f"r{index}", "namespace": "default", "cycle": "assistant",
        "version": "assistant-0", "time": NOW - timedelta(hours=2), "value": "down",
    }  # fmt: skip
    return Feedback.model_validate(record | changes)


def example(prompt: str, answer: str, **changes: Any) -> Example:
    fields: dict[str, Any] = {
        "id": "r", "context": (Message(role="user", content=prompt),), "answer": answer, "origin": "answer",
        "category": "security", "time": NOW,
    }  # fmt: skip
    return Example(**(fields | changes))


def select(examples: Iterable[Example], held_out: HeldOut, cap: int | None) -> tuple[list[Example], dict[str, int]]:
    """What is left, and how many are not, by reason; checks that each rule read what the one before it left."""
    funnel = Funnel()
    given = list(examples)
    kept, _ = select_by(given, held_out, Curation(max_per_category=cap), [], funnel)
    steps = funnel.steps[5:]
    assert [step.read for step in steps] == [len(given), *(step.kept for step in steps[:-1])]
    assert all(step.read == step.kept + step.dropped.total() for step in steps)
    assert steps[-1].kept == len(kept)
    return list(kept), dict(funnel.dropped)


def up(correction: str = "") -> Verdict:
    return Verdict("down" if correction else "up", correction, NOW)


# -- joining and scoring


@pytest.mark.parametrize(
    ("verdict", "worth"),
    [(None, "0.5"), (up(), "1"), (Verdict("down", "", NOW), "0"), (up("better"), "1"), (Verdict("up", "x", NOW), "1")],
)
def test_score(verdict: Verdict | None, worth: str) -> None:
    assert score(verdict) == Decimal(worth)


def test_the_last_feedback_wins_in_whatever_order_it_comes() -> None:
    early, late = feedback(0, value="up"), feedback(1, response_id="r0", time=NOW - timedelta(hours=1))
    for order in ((early, late), (late, early)):
        verdicts = Verdicts()
        for one in order:
            verdicts.add(one)
        verdict = verdicts.of(interaction(), timedelta(days=7))
        assert verdict is not None
        assert verdict.value == "down"


def test_late_feedback_counts_until_the_delay_is_over() -> None:
    said = datetime(2026, 11, 1, 10, tzinfo=UTC)
    verdicts = Verdicts()
    verdicts.add(feedback(0, time=said + timedelta(days=3), value="up"))
    verdicts.add(feedback(1, response_id="r0", time=datetime(2026, 11, 5, tzinfo=UTC)))
    judged = verdicts.of(interaction(time=said), timedelta(days=3))
    assert judged is not None
    assert judged.value == "up", "what came after midnight of the last day does not count"
    assert verdicts.of(interaction(time=said), timedelta(days=2)) is None


@pytest.mark.parametrize(
    ("changes", "verdict", "outcome"),
    [
        ({}, up(), "No idea."),
        ({}, up("In vault 7."), "In vault 7."),
        ({"status": 502, "answer": None}, up(), "failed"),
        ({"status": 502, "answer": None}, up("In vault 7."), "In vault 7."),
        ({"finish_reason": "cancelled"}, up(), "cancelled"),
        ({"finish_reason": "length"}, up(), "unfinished"),
        ({"finish_reason": "length"}, up("In vault 7."), "In vault 7."),
        ({"answer": {"role": "assistant", "content": "  "}}, up(), "empty"),
        ({"answer": {"role": "assistant", "content": None}}, up(), "empty"),
        ({"answer": {"role": "assistant", "content": None, "tool_calls": [{}]}}, up(), "unsupported"),
        ({"messages": []}, up(), "unsupported"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, up(), "unsupported"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]}, up(), "No idea."),
        ({"messages": [{"role": "assistant", "content": "Hi"}]}, up(), "unsupported"),
        ({"messages": [{"role": "tool", "content": "Hi"}]}, up(), "unsupported"),
    ],
)  # fmt: skip
def test_which_interactions_are_examples(changes: dict[str, Any], verdict: Verdict | None, outcome: str) -> None:
    record = interaction(**changes)
    found = example_of(Entry(record), record, verdict, lambda _: "x")
    assert (found.answer if isinstance(found, Example) else found) == outcome


def test_earlier_answers_are_context_only() -> None:
    messages = [
        {"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Bad answer"}, {"role": "user", "content": "And now?"},
    ]  # fmt: skip
    record = interaction(messages=messages)
    found = example_of(Entry(record), record, up(), lambda _: "x")
    assert isinstance(found, Example)
    assert [(m.role, m.weight) for m in found.messages()] == [
        ("system", None), ("user", None), ("assistant", 0), ("user", None), ("assistant", None),
    ]  # fmt: skip


# -- categories


@pytest.mark.parametrize(
    ("prompt", "category"),
    [
        ("Where is the SECRET kept?", "security"), ("secretly", "uncategorised"), ("Deploy, please!", "deployment"),
        ("Is this valid JSON?", "format"), ("it says: error", "error"), ("Explain the crash", "documentation"),
        ("Hello", "uncategorised"), ("", "uncategorised"),
    ],
)  # fmt: skip
def test_default_categories(prompt: str, category: str) -> None:
    assert Categoriser(DEFAULT_CATEGORIES)(prompt) == category


def test_keywords_are_text_not_patterns() -> None:
    categorise = Categoriser([Category(name="cpp", keywords=["c++", "a.b"])])
    assert categorise("Is C++ hard?") == "cpp"
    assert categorise("axb") == "uncategorised"


# -- held-out prompts


@pytest.mark.parametrize(
    ("turn", "covered"),
    [
        ("What do I run to scale the search service?", True),
        ("what do i run  to SCALE the search service", True),
        ("Hello! What do I run to scale the search service? Thanks", True),
        ("What do I run to scale the billing service?", False),
        ("Who are you?", True),
        ("Who are you and what can you do?", False),
        ("", False),
    ],
)
def test_held_out_prompts(turn: str, covered: bool) -> None:
    held_out = HeldOut(["What do I run to scale the search service?", "Who are you?"])
    assert held_out.covers(turn) is covered


def test_held_out_prompts_are_left_out_of_any_turn() -> None:
    context = (
        Message(role="user", content="Who are you?"), Message(role="assistant", content="Zeno"),
        Message(role="user", content="Really?"),
    )  # fmt: skip
    assert select([example("", "Yes.", context=context)], HeldOut(["who are you"]), None) == ([], {"heldOut": 1})


@given(st.lists(st.text(), max_size=6), st.text(), st.text())
def test_a_held_out_prompt_is_always_covered(prompts: list[str], before: str, after: str) -> None:
    held_out = HeldOut(prompts)
    for prompt in prompts:
        assert held_out.covers(prompt)
        assert held_out.covers(f"  {prompt.upper().lower()} ") or prompt.upper().lower() != prompt
        if len(prompt.split()) > 8 and prompt.isascii() and prompt.replace(" ", "").isalpha():
            assert held_out.covers(f"{before}. {prompt}! {after}")


def test_an_identity_prompt_that_a_suite_asks_is_refused() -> None:
    curation = Curation(identity=[Identity(prompt="Who are you?", answer="Zeno.")])
    with pytest.raises(UserError, match=r"curation\.identity\[0\]\.prompt.*reword"):
        compose([], curation, [], HeldOut(["who are you"]))


# -- selection


def test_duplicates_are_found_in_normal_form() -> None:
    kept, dropped = select(
        [example("Where is it?", "In  vault 7.", id="a"), example("where is IT?", "in vault 7.", id="b")], NOBODY, None
    )
    assert [e.id for e in kept] == ["b"]
    assert dropped == {"duplicate": 1}


def test_the_latest_correction_wins_over_contradicting_answers() -> None:
    hour = timedelta(hours=1)
    kept, dropped = select(
        [
            example("Where?", "Here.", id="liked", time=NOW),
            example("Where?", "Vault 1.", id="old", origin="correction", time=NOW - 3 * hour),
            example("Where?", "Vault 2.", id="new", origin="correction", time=NOW - 2 * hour),
            example("Where?", "vault 2.", id="agrees", time=NOW - 4 * hour),
            example("When?", "Now.", id="one"), example("When?", "Later.", id="two"),
        ],
        NOBODY, None,
    )  # fmt: skip
    assert sorted(e.id for e in kept) == ["new", "one", "two"]
    assert dropped == {"contradicted": 2, "duplicate": 1}


def test_the_newest_of_a_category_are_kept() -> None:
    many = [example(f"Question {i}?", "Yes.", id=f"{i}", time=NOW + timedelta(seconds=i)) for i in range(10)]
    other = [example(f"Other {i}?", "Yes.", id=f"o{i}", category="error") for i in range(2)]
    kept, dropped = select(many + other, NOBODY, 3)
    assert [e.id for e in kept] == ["o0", "o1", "7", "8", "9"]
    assert dropped == {"overCategoryCap": 7}


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans(), st.integers(0, 5)), max_size=30))
def test_kept_and_dropped_add_up(rows: list[tuple[int, int, bool, int]]) -> None:
    examples = [
        example(f"q {prompt}", f"a {answer}", id=str(i), origin="correction" if corrected else "answer",
                time=NOW + timedelta(seconds=when))
        for i, (prompt, answer, corrected, when) in enumerate(rows)
    ]  # fmt: skip
    kept, dropped = select(examples, HeldOut(["q 3"]), 4)
    assert len(kept) + sum(dropped.values()) == len(examples)
    assert select(list(reversed(examples)), HeldOut(["q 3"]), 4) == (kept, dropped)
    prompts: dict[str, str] = {}
    for one in kept:
        if one.origin == "correction":
            assert prompts.setdefault(one.prompt, one.answer) == one.answer


# -- variations, identity, anchors


def test_five_variations_change_the_last_turn_only() -> None:
    forms = varied(example("Where is it?", "Here."), 5)
    assert len({form.prompt for form in forms} | {"Where is it?"}) == 6
    assert all("Where is it?" in form.prompt and form.answer == "Here." for form in forms)
    assert len(varied(example("Where {is} it?", "Here."), 2)) == 2
    assert all(form.count("{}") == 1 for form in VARIATIONS)


@given(st.integers(0, 500), st.decimals("0", "1", places=2), st.integers(0, 300))
def test_anchors_are_the_share_asked_for_as_far_as_there_are_any(rows: int, fraction: Decimal, there: int) -> None:
    count = anchors_wanted(rows, fraction, there)
    assert 0 <= count <= there
    if count < there:
        assert count <= fraction * (rows + count)
        assert count + 1 > fraction * (rows + count + 1)


def test_anchors_are_picked_by_content() -> None:
    anchors = [[Message(role="user", content=str(i)), Message(role="assistant", content="x")] for i in range(20)]
    assert pick_anchors(anchors, 5) == pick_anchors(anchors[::-1], 5)


def test_identity_is_always_in_and_anchors_that_a_suite_asks_never() -> None:
    curation = Curation(
        identity=[Identity(prompt="Who are you?", answer="Zeno.")],
        anchors=Anchors(config_map=KEY, fraction=Decimal(1)), variations=2,
    )  # fmt: skip
    anchors = [
        [Message(role="user", content=prompt), Message(role="assistant", content="x")] for prompt in ("Why?", "When?")
    ]
    rows = compose([example("Where?", "Here.")], curation, anchors, HeldOut(["why"]))
    assert rows.by_origin == {"anchor": 1, "answer": 1, "identity": 1, "variation": 2}
    assert rows.anchors_held_out == 1
    assert rows.categories == {"security": 1}


def test_files_of_a_dataset(tmp_path: Path) -> None:
    context = (
        Message(role="system", content="Be brief."), Message(role="user", content="Hi"),
        Message(role="assistant", content="Hello"), Message(role="user", content="Wo ist es? \N{SNOWMAN}"),
    )  # fmt: skip
    rows = compose([example("", "Hier.", context=context)], Curation(variations=0), [], NOBODY)
    quarantine = read.Quarantine()
    quarantine.add("dt=2026-11-20/a.jsonl.zst", 3, "malformed")
    for name in ("one", "two"):
        write(tmp_path / name, [], rows, quarantine, {"b": 1, "a": 2}, {"README.md": "# Card\n"})
    one, two = (build_manifest("dataset", tmp_path / name, {}, {}) for name in ("one", "two"))
    assert one.digest == two.digest
    assert sorted(one.files) == [
        "README.md", "alpaca.json", "croissant.json", "dataset_info.json", "quarantine.jsonl", "sharegpt.json",
        "statistics.json", "subjects.jsonl", "train.jsonl", "train.parquet", "train.yaml",
    ]  # fmt: skip
    (alpaca,) = json.loads((tmp_path / "one" / "alpaca.json").read_text())
    assert alpaca == {
        "instruction": "Wo ist es? \N{SNOWMAN}", "input": "", "output": "Hier.", "system": "Be brief.",
        "history": [["Hi", "Hello"]],
    }  # fmt: skip
    info = json.loads((tmp_path / "one" / "dataset_info.json").read_text())
    for entry in info.values():
        assert (tmp_path / "one" / entry["file_name"]).is_file()
    assert (tmp_path / "one" / "quarantine.jsonl").read_text() == (
        '{"file": "dt=2026-11-20/a.jsonl.zst", "line": 3, "problem": "malformed"}\n'
    )


# -- reading files


def packed(tmp_path: Path, content: bytes, name: str = "a.zst") -> Path:
    path = tmp_path / name
    path.write_bytes(zstandard.compress(content) if name.endswith("zst") else content)
    return path


GOOD = interaction().model_dump_json().encode()


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"kind": "interaction"', "malformed"), (b"\xff\xfe", "malformed"), (b'{"a": "\\ud800"}', "malformed"),
        (b"[" * 100_000, "malformed"), (b"1" * 10_000, "malformed"), (b"{}", "schema"), (b"[]", "schema"),
        (b"null", "schema"), (b"NaN", "schema"), (b'{"kind": "other"}', "schema"), (b"\x00", "malformed"),
        (GOOD.replace(b'"status":200', b'"status":"many"'), "schema"),
        (GOOD.replace(b"+00:00", b"").replace(b'Z"', b'"'), "schema"),
        (b'{"kind":"interaction","x":"' + b"y" * (8 << 20) + b'"}', "oversized"),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value[:20]),
)  # fmt: skip
def test_bad_lines_are_named_and_the_rest_goes_on(tmp_path: Path, line: bytes, problem: str) -> None:
    path = packed(tmp_path, GOOD + b"\n" + line + b"\n\n" + GOOD + b"\n")
    found = [read.parse(line) for line in read.lines(path, 1 << 20)]
    assert [type(f).__name__ if not isinstance(f, str) else f for f in found] == ["Interaction", problem, "Interaction"]


def test_an_uncompressed_file_is_read_too(tmp_path: Path) -> None:
    assert len(list(read.lines(packed(tmp_path, GOOD + b"\n" + GOOD, "a.jsonl"), 1 << 20))) == 2


def test_a_file_that_ends_within_a_line(tmp_path: Path) -> None:
    whole = zstandard.compress((GOOD + b"\n") * 50 + GOOD)
    path = tmp_path / "a.zst"
    path.write_bytes(whole)
    assert len([line for line in read.lines(path, 1 << 20) if not isinstance(read.parse(line), str)]) == 51
    path = packed(tmp_path, GOOD + b"\n" + GOOD[:40])
    assert [read.parse(line) for line in read.lines(path, 1 << 20)][1] == "truncated"


def test_a_damaged_stream_gives_what_came_before(tmp_path: Path) -> None:
    first, second = zstandard.compress((GOOD + b"\n") * 3), b"garbage that is no frame"
    path = tmp_path / "a.zst"
    path.write_bytes(first + second)
    found = [read.parse(line) for line in read.lines(path, 1 << 20)]
    assert [isinstance(f, Interaction) for f in found[:3]] == [True] * 3
    assert found[3:] == ["undecodable"]
    path.write_bytes(b"garbage")
    assert [read.parse(line) for line in read.lines(path, 1 << 20)] == ["undecodable"]
    path.write_bytes(b"")
    assert list(read.lines(path, 1 << 20)) == []


def test_a_bomb_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.zst"
    compressor = zstandard.ZstdCompressor(level=3).compressobj()
    with path.open("wb") as sink:
        sink.write(compressor.compress(GOOD + b"\n"))
        for _ in range(80):
            sink.write(compressor.compress(b"\n" * (1 << 20)))
        sink.write(compressor.flush())
    found = [read.parse(line) for line in read.lines(path, 1 << 20)]
    assert isinstance(found[0], Interaction)
    assert found[1:] == ["expansion"]


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=2000), limit=st.integers(1, 200), compressed=st.booleans())
def test_lines_are_those_of_the_content(tmp_path: Path, content: bytes, limit: int, compressed: bool) -> None:
    path = packed(tmp_path, content, "a.zst" if compressed else "a.jsonl")
    expected = [
        (number, line.strip() if len(line) <= limit else "oversized")
        for number, line in enumerate(content.split(b"\n"), start=1)
        if line.strip() or len(line) > limit
    ]
    assert [(line.number, line.content) for line in read.lines(path, limit)] == expected


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=300))
def test_any_bytes_are_survived(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.zst"
    path.write_bytes(content)
    for line in read.lines(path, 1 << 20):
        read.parse(line)


# -- the whole, without storage


def settings_of(**curation: Any) -> Settings:
    return Settings(
        Curation(**curation), "default", "assistant", NOW - timedelta(days=28), NOW, timedelta(days=7)
    )  # fmt: skip


Record = st.one_of(
    st.integers(0, 8).map(lambda i: interaction(i).model_dump_json().encode()),
    st.integers(0, 8).map(lambda i: interaction(i, cycle="other").model_dump_json().encode()),
    st.integers(0, 8).map(lambda i: interaction(i, time=NOW + timedelta(days=1)).model_dump_json().encode()),
    st.integers(0, 8).map(lambda i: interaction(i, status=500).model_dump_json().encode()),
    st.integers(0, 8).map(lambda i: feedback(i, value="up").model_dump_json().encode()),
    st.integers(0, 8).map(lambda i: feedback(i, correction="So.").model_dump_json().encode()),
    st.sampled_from([b"{", b"x" * 5000, b"{}", b"\xff"]),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=st.lists(st.lists(Record, max_size=12), max_size=3))
def test_every_line_ends_in_one_number(tmp_path: Path, files: list[list[bytes]]) -> None:
    """kept + dropped = read, whatever is read."""
    paths = [
        SessionFile(f"f{index}", packed(tmp_path, b"\n".join(lines) + b"\n", f"{index}.zst"))
        for index, lines in enumerate(files)
    ]
    run = settings_of(max_line_bytes=4096)
    counts = Counts()
    examples = list(examples_of(run, paths, lambda *_: None, counts))
    assert counts.lines == sum(map(len, files))
    assert counts.interactions == counts.funnel["reading"].kept
    assert counts.lines == counts.interactions + counts.funnel["reading"].dropped.total()
    kept, _ = select_by(examples, NOBODY, run.curation, [], counts.funnel)
    assert counts.interactions == len(kept) + counts.funnel.dropped.total()
    steps = counts.funnel.steps
    assert [step.read for step in steps[1:]] == [step.kept for step in steps[:-1]]
    assert all(step.read == step.kept + step.dropped.total() for step in steps)
    assert counts.quarantine.total == len(counts.quarantine.places)
    again = Counts()
    assert list(examples_of(run, paths[::-1], lambda *_: None, again)) == examples
    assert again.funnel.numbers() == counts.funnel.numbers()[:5] + again.funnel.numbers()[5:]


def test_normal_form() -> None:
    assert normalised(" Stra\N{LATIN SMALL LETTER SHARP S}e\t\N{FULLWIDTH LATIN CAPITAL LETTER A} \n") == "strasse a"
