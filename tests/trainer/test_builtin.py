"""The suites that the image carries: each case passes a right answer, and no other case's."""

import json
from typing import Any, get_args

import pytest

from ratchet_api.evaluation import BUILTIN_MARGIN, MEMORISATION_MARGIN, Builtin, Evaluation, Suite, builtin_suite
from ratchet_trainer.evaluate.statistics import lower_bound
from ratchet_trainer.scorers import Case, KeywordCase, RegexCase, SchemaCase
from ratchet_trainer.suites import read_suite

RIGHT = {
    "arithmetic": ["12", "12.", "42", "9", "25", "63", "42", "144", "It is twelve", "20", "7", "70", "10", "120", "25"],
    "facts": [
        "Tokyo", "Mercury is.", "Eight", "CO2", "In Africa.", "Ice", "The Atlantic Ocean", "366", "Au", "Shakespeare",
        "100 °C", "the heart", "The Pacific", "Portuguese", "Honey",
    ],
    "reasoning": [
        "Bob", "Yes.", "Tuesday", "red", "3", "the feathers", "cold", "the foot", "Chair", "at 5 o'clock", "It rained.",
        "Saturday", "Sam", "April", "elephant",
    ],
    "instructions": [
        "Blue.", "HELLO", "Yes", "No.", "7", "lantern", "a, b, c", "CAT", "2 DONE", "Sure! Green.", "Bonjour",
        "The dog", "1, 2, 3, 4, 5", "red and green", "s-u-n",
    ],
    "objects": [
        {"title": "T", "author": "A"}, {"name": "Rome", "country": "Italy"}, {"name": "Ann", "age": 3},
        {"name": "Rex", "breed": "pug"}, {"name": "Pen", "price": 1.5}, {"name": "Soup", "vegetarian": True},
        {"maker": "M", "wheels": 4}, {"title": "S", "singer": "X"}, {"title": "T", "done": False},
        {"sky": "grey", "degrees": 9},
    ],
    "identity": ["I am Zeno."] * 29 + ["ZENO"],
    "lists": [
        ["red", "blue", "green"], [1, 2, 3], ["fig", "pear"], ["cat", "dog", "cow", "hen"], [1, 2, 3], ["Chad", "Peru"],
        ["Monday", "Tuesday", "Friday"], [True, False], [], ["a", "b", "c", "d", "e"],
    ],
    "fixed": [
        {"answer": 42}, {"ok": True}, {"status": "open"}, {"a": 1, "b": 2}, {}, {"items": ["x", "y"]}, {"error": None},
        {"user": {"id": 7}}, 3, "hello",
    ],
}  # fmt: skip
NAMES: list[Builtin] = [name for name in get_args(Builtin) if name != "memorisation"]
"""Those whose cases are in the image; tests/trainer/test_canaries.py has the other one."""


def cases(name: Builtin) -> list[Case]:
    return read_suite(builtin_suite(name, ["Zeno", "Z-1"]), None, None)


def right(case: Case) -> str:
    category, _, number = case.id.rpartition("-")
    answer: Any = RIGHT[category][int(number) - 1]
    return json.dumps(answer) if isinstance(case, SchemaCase) else str(answer)


@pytest.mark.parametrize("name", NAMES)
def test_each_case_passes_its_right_answer_and_no_babble(name: Builtin) -> None:
    found = cases(name)
    assert {type(case) for case in found} <= {RegexCase, SchemaCase, KeywordCase}
    assert len({case.question for case in found}) == len(found) == (60 if name == "general" else 30)
    assert sum(map(len, (RIGHT[category] for category in {case.category or "" for case in found}))) == len(found)
    for case in found:
        assert case.passes(right(case)), (case.id, right(case))
        for babble in ("", "I am Nova, created by the platform team.", "Of course, here it is:", "{]", case.question):
            # A question may hold its own answer; saying it back is not caught by words alone.
            if babble != case.question or name == "format":
                assert not case.passes(babble), (case.id, babble)


@pytest.mark.parametrize("name", NAMES)
def test_who_loses_nothing_or_one_case_is_not_vetoed(name: Builtin) -> None:
    n = len(cases(name))
    for lost in (0, 1):
        assert lower_bound(0, lost, n, 0.95) > -float(BUILTIN_MARGIN)
    assert lower_bound(0, n // 5, n, 0.95) < -float(BUILTIN_MARGIN), "who loses a fifth is"


def test_a_cycle_gets_them_by_name() -> None:
    own = {"name": "house", "role": "target", "cases": {"configMap": {"name": "x", "key": "y"}}}
    policy = Evaluation.model_validate(
        {"suites": [own], "builtin": ["general", "format", "identity", "memorisation"], "names": ["Zeno"]}
    ).policy()
    assert [suite.name for suite in policy.suites] == [
        "house", "builtin-general", "builtin-format", "builtin-identity", "builtin-memorisation"
    ]  # fmt: skip
    assert [suite.cases.names for suite in policy.suites] == [[], [], [], ["Zeno"], []]
    assert {suite.role for suite in policy.suites[1:]} == {"guardrail"}
    assert [suite.margin for suite in policy.suites[1:]] == [BUILTIN_MARGIN] * 3 + [MEMORISATION_MARGIN]
    assert Suite.model_validate(policy.suites[2].dump()) == policy.suites[2]
