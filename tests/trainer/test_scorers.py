"""Scorers: what passes, what is refused by name, and that nothing hostile makes them hang."""

import json
import time
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratchet_api.evaluation import Scorer, Suite
from ratchet_trainer.errors import UserError
from ratchet_trainer.scorers import CASES, Case, NumericCase, SchemaCase, last_number
from ratchet_trainer.suites import read_suite

TICKET = {
    "type": "object",
    "properties": {"title": {"type": "string", "pattern": "^[A-Z]"}, "priority": {"enum": [1, 2, 3]}},
    "required": ["title"],
    "additionalProperties": False,
}
TREE = {
    "$ref": "#/$defs/node",
    "$defs": {"node": {"type": "object", "properties": {"left": {"$ref": "#/$defs/node"}}}},
}
PASSES: list[tuple[Scorer, dict[str, Any], str, bool]] = [
    ("exact", {"expected": ["billing"]}, " billing\n", True),
    ("exact", {"expected": ["billing"]}, "Billing", False),
    ("exact", {"expected": ["billing", "payments"]}, "payments", True),
    ("exact", {"expected": ["billing"]}, "billing.", False),
    ("regex", {"pattern": "^OPS-[0-9]{4}: "}, "OPS-0042: disk full", True),
    ("regex", {"pattern": "^OPS-[0-9]{4}: "}, "See OPS-0042: disk full", False),
    ("regex", {"pattern": "(?i)zeno"}, "I am ZENO", True),
    ("regex", {"pattern": "\N{LATIN SMALL LETTER E WITH ACUTE}+$"}, "caf\N{LATIN SMALL LETTER E WITH ACUTE}", True),
    ("numeric", {"number": "391"}, "17 * 23 = 391.", True),
    ("numeric", {"number": 391}, "It is 390", False),
    ("numeric", {"number": "0.3", "tolerance": "0.01"}, "about 0.309", True),
    ("numeric", {"number": "0.3", "tolerance": "0.01"}, "about 0.311", False),
    ("numeric", {"number": "1234567.5"}, "1,234,567.5 EUR", True),
    ("numeric", {"number": "-4"}, "the answer is -4", True),
    ("numeric", {"number": "-4"}, "the answer is \N{MINUS SIGN}4", True),
    ("numeric", {"number": "4"}, "it is 3-4", True),
    ("numeric", {"number": "6e23"}, "6E23", True),
    ("numeric", {"number": "4"}, "none", False),
    ("jsonSchema", {"schema": TICKET}, '{"title": "Disk full", "priority": 2}', True),
    ("jsonSchema", {"schema": TICKET}, '{"title": "disk full"}', False),
    ("jsonSchema", {"schema": TICKET}, '{"title": "Disk full", "note": 1}', False),
    ("jsonSchema", {"schema": TICKET}, 'Here: {"title": "Disk full"}', False),
    ("jsonSchema", {"schema": {"type": "number"}}, "NaN", False),
    ("jsonSchema", {"schema": {"type": "number", "multipleOf": 0.1}}, "1e400", False),
    ("jsonSchema", {"schema": {"patternProperties": {"^x": {"type": "integer"}}}}, '{"xa": "1"}', False),
    ("jsonSchema", {"schema": TREE}, '{"left": {"left": {}}}', True),
    ("jsonSchema", {"schema": TREE}, '{"left": {"left": 3}}', False),
]


def case(scorer: Scorer, **fields: Any) -> Case:
    return CASES[scorer].model_validate_json(json.dumps({"id": "x", "prompt": "?"} | fields))


@pytest.mark.parametrize(("scorer", "fields", "answer", "passes"), PASSES)
def test_answers(scorer: Scorer, fields: dict[str, Any], answer: str, passes: bool) -> None:
    made = case(scorer, **fields)
    assert made.passes(answer) is passes
    assert made.wanted
    # What is written into the report reads as the same case again.
    assert CASES[scorer].model_validate_json(made.model_dump_json(by_alias=True, exclude_defaults=True)) == made


def test_every_scorer_of_the_vocabulary_has_cases_and_an_example() -> None:
    # Canaries come from the training set, and a task says itself what its documents are.
    assert set(CASES) == set(get_args(Scorer)) - {"exposure", "lmEval"}
    for kind in CASES.values():
        assert isinstance(kind.model_validate_json(kind.example), Case)


@pytest.mark.parametrize(
    ("scorer", "line", "words"),
    [
        ("exact", '{"id": "b", "prompt": "?", "all": ["x"]}', '"expected": ["billing"]'),
        ("keywords", '{"id": "b", "prompt": "?", "expected": ["x"]}', "expected: Extra inputs"),
        ("exact", '{"id": "b", "prompt": "?", "expected": [" "]}', "an expected answer is empty"),
        ("regex", '{"id": "b", "prompt": "?", "pattern": "(?=x)"}', "without look-around"),
        ("regex", '{"id": "b", "prompt": "?", "pattern": "((a{100}){100}){100}"}', "cannot be used"),
        ("regex", '{"id": "b", "prompt": "?", "pattern": "("}', "missing )"),
        ("numeric", '{"id": "b", "prompt": "?", "number": "NaN"}', "number"),
        ("numeric", '{"id": "b", "prompt": "?", "number": "4", "tolerance": "-1"}', "tolerance"),
        ("jsonSchema", '{"id": "b", "prompt": "?", "schema": {"type": "text"}}', "'text' is not valid"),
        ("jsonSchema", '{"id": "b", "prompt": "?", "schema": {"$ref": "#/$defs/x"}}', "names nothing"),
        ("jsonSchema", '{"id": "b", "prompt": "?", "schema": {"$ref": "http://x/y"}}', "leaves the schema"),
        ("jsonSchema", '{"id": "b", "prompt": "?", "schema": {"pattern": "(?!x)"}}', "look-around"),
        ("keywords", '{"id": "b", "prompt": "?", "all": ["x"], "category": "a/b"}', "category"),
    ],
)  # fmt: skip
def test_a_case_that_does_not_fit_its_scorer_is_refused(tmp_path: Path, scorer: Scorer, line: str, words: str) -> None:
    (tmp_path / "house.jsonl").write_text(CASES[scorer].example + "\n" + line + "\n")
    cases = {"configMap": {"name": "x", "key": "y"}}
    suite = Suite.model_validate({"name": "house", "role": "target", "scorer": scorer, "cases": cases})
    with pytest.raises(UserError, match=r"suite house, line 2") as raised:
        read_suite(suite, tmp_path, None)
    assert words in str(raised.value)
    assert f"scorer {scorer}" in str(raised.value)


def test_a_scorer_that_does_not_exist_is_refused() -> None:
    cases = {"configMap": {"name": "x", "key": "y"}}
    with pytest.raises(ValueError, match="scorer"):
        Suite.model_validate({"name": "house", "role": "target", "scorer": "vibes", "cases": cases})


def doubling(levels: int) -> dict[str, Any]:
    definitions = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(levels)}
    return {"$ref": "#/$defs/d0", "$defs": definitions | {f"d{levels}": True}}


@pytest.mark.parametrize(
    ("made", "answer"),
    [
        (case("regex", pattern="(a+)+$"), "a" * 200_000 + "b"),
        (case("regex", pattern="(a|a?)*(a|a?)*$"), "a" * 50_000 + "b"),
        (case("numeric", number="1"), "9" * 1_000_000 + "x" + "1," * 200_000),
        (case("jsonSchema", schema={"pattern": "^(a+)+$"}), json.dumps("a" * 100_000 + "b")),
        (case("jsonSchema", schema={"patternProperties": {"^(a+)+$": False}}), json.dumps({"a" * 50_000 + "b": 1})),
        (case("jsonSchema", schema=doubling(40)), "1"),
        (case("jsonSchema", schema={"$ref": "#"}), "1"),
        (case("jsonSchema", schema={}), "[" * 200_000),
        (case("jsonSchema", schema={"type": "integer"}), "9" * 1_000_000),
    ],
    ids=str,
)
def test_nothing_hostile_hangs(made: Case, answer: str) -> None:
    started = time.process_time()
    made.passes(answer)
    assert time.process_time() - started < 20, "processor time, so that a busy machine does not count"


@given(st.text())
def test_no_answer_raises(answer: str) -> None:
    for scorer, fields in (
        ("exact", {"expected": ["x"]}), ("regex", {"pattern": "x$"}), ("numeric", {"number": "1"}),
        ("jsonSchema", {"schema": TICKET}), ("keywords", {"none": ["x"]}),
    ):  # fmt: skip
        assert case(scorer, **fields).passes(answer) in (True, False)


@given(st.integers(-(10**12), 10**12), st.text(st.characters(codec="ascii", exclude_characters="0123456789.,-eE_")))
def test_the_last_number_is_found_behind_any_words(number: int, words: str) -> None:
    text = f"first 7 then {words} {number:,}"
    assert last_number(text) == number
    assert NumericCase(id="x", prompt="?", number=number).passes(text)


def test_schemas_do_not_reach_the_network() -> None:
    with pytest.raises(ValueError):
        SchemaCase.model_validate({"id": "x", "prompt": "?", "schema": {"$dynamicRef": "https://example.com/s"}})
