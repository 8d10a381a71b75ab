"""Tasks of lm-evaluation-harness: the scores of the real one, and what is refused by name."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ratchet_api.evaluation import Suite
from ratchet_api.stage import ExitCode
from ratchet_trainer import harness
from ratchet_trainer.errors import UserError
from ratchet_trainer.evaluate.likelihood import log_likelihoods
from ratchet_trainer.evaluate.stage import _continuations
from ratchet_trainer.harness import ChoiceCase, Comparison, UntilCase
from ratchet_trainer.storage import Location, Store
from ratchet_trainer.suites import read_suite

_spec = importlib.util.spec_from_file_location("harness_by_lm_eval", Path(__file__).with_name("harness_by_lm_eval.py"))
assert _spec is not None
assert _spec.loader is not None
theirs = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(theirs)
EXPECTED: dict[str, Any] = json.loads(theirs.EXPECTED.read_text(encoding="utf-8"))

Identity = Callable[..., dict[str, Any]]
CHOICE = {"output_type": "multiple_choice", "doc_to_text": "{{q}}", "doc_to_choice": ["no", "yes"],
          "doc_to_target": "a", "metric_list": [{"metric": "acc"}]}  # fmt: skip
TEXT = {"doc_to_text": "{{q}}", "doc_to_target": "{{a}}", "metric_list": [{"metric": "exact_match"}]}


def suite(name: str = "house", **changes: Any) -> dict[str, Any]:
    key = {"name": "x", "key": "y"}
    return {"name": name, "role": "target", "scorer": "lmEval", "maxNewTokens": 12,
            "cases": {"configMap": key, "task": key}} | changes  # fmt: skip


def mounted(folder: Path, task: object, documents: list[dict[str, Any]], name: str = "house") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.yaml").write_text(task if isinstance(task, str) else yaml.safe_dump(task))
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    return folder


def cases(tmp_path: Path, task: object, *documents: dict[str, Any]) -> list[Any]:
    return read_suite(Suite.model_validate(suite()), mounted(tmp_path / "suites", task, list(documents)), None)


# -- against the real one


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    theirs.build(folder)
    return folder


def test_scores_are_those_of_lm_eval(
    stages: Any, identity: Identity, store: Store, small: Path, tmp_path: Path
) -> None:
    """All tasks through the whole stage: the same documents right, and the same wrong."""
    names = list(EXPECTED["tasks"])
    for name in names:
        mounted(tmp_path / "suites", theirs.TASKS[name], EXPECTED["tasks"][name]["documents"], name)
    stage = {
        "stage": "evaluate", "identity": identity(), "base_model": {"uri": f"file://{small}"}, "candidate": None,
        "champion": None, "champion_version": "assistant-0", "batch_size": 8,
        "levels": {"fresh": {"number": 1, "alpha": "0.025"}}, "policy": {"suites": [suite(name) for name in names]},
    }  # fmt: skip
    ran = stages.run("evaluate", stage, "--suites", str(tmp_path / "suites"))
    assert ran.code == ExitCode.DONE, ran.log
    lines_ = store.get(Location.parse(ran.report.artifact.uri).child("cases.jsonl")) or b""
    lines = [json.loads(line) for line in lines_.splitlines()]
    for name, result in zip(names, ran.report.suites, strict=True):
        scores = EXPECTED["tasks"][name]["scores"]
        assert [line["candidate"]["score"] for line in lines if line["suite"] == name] == scores, name
        assert float(result.candidate) == pytest.approx(sum(scores) / len(scores), abs=1e-6)
        assert 0.1 < result.candidate < 0.9, "neither all nor nothing, so that it says something"
    again = stages.run("evaluate", stage | {"identity": identity(version="assistant-2")}, "--suites",
                       str(tmp_path / "suites"))  # fmt: skip
    assert again.report.suites == ran.report.suites
    assert all(f"suite {name}: the candidate answered it in an earlier evaluation" in again.log for name in names)


@pytest.mark.parametrize("name", [name for name in EXPECTED["tasks"] if name != "generated"])
def test_likelihoods_are_those_of_lm_eval(name: str, small: Path, tmp_path: Path) -> None:
    import torch

    from ratchet_trainer.loading import load_model, load_tokenizer

    tokenizer = load_tokenizer(small, "small")
    model = load_model(small, "small", torch.device("cpu"), torch.float32)
    task = EXPECTED["tasks"][name]
    found = cases(tmp_path, theirs.TASKS[name], *task["documents"])
    for case, wanted in zip(found, task["likelihoods"], strict=True):
        assert log_likelihoods(model, *_continuations(tokenizer, case)) == pytest.approx(wanted, abs=1e-3), case.id


# -- what a task means


@pytest.mark.parametrize(
    ("target", "document", "right"),
    [
        pytest.param("a", {"a": 1}, [1], id="field with a number"),
        pytest.param("a", {"a": "yes"}, [1], id="field with a choice"),
        pytest.param("{{a}}", {"a": 0}, [0], id="template that gives a number"),
        pytest.param("{{'yes' if a else 'no'}}", {"a": True}, [1], id="template that gives a choice"),
        pytest.param("{{[0, 1]}}", {"a": 0}, [0, 1], id="several are right"),
        pytest.param(1, {"a": 0}, [1], id="always the same"),
    ],
)
def test_right_choices(tmp_path: Path, target: Any, document: dict[str, Any], right: list[int]) -> None:
    (case,) = cases(tmp_path, CHOICE | {"doc_to_target": target}, document | {"q": "?"})
    assert isinstance(case, ChoiceCase)
    assert case.right == right
    assert [case.passes(choice) for choice in case.choices] == [place in right for place in range(2)]


@pytest.mark.parametrize(
    ("metric", "chosen"), [("acc", "no"), ("acc_norm", "maybe"), ("acc_bytes", "üüüü")],
)  # fmt: skip
def test_the_choice_by_length(metric: Any, chosen: str) -> None:
    """Log-likelihoods -3, -6 and -5: for each character -1.5, -1.2 and -1.25; for each byte -1.5, -1.2 and -0.625."""
    case = ChoiceCase(id="1", prompt="?", choices=["no", "maybe", "üüüü"], right=[0], metric=metric)
    assert case.chosen([-3.0, -6.0, -5.0]) == chosen
    assert case.chosen([-1.0, -2.5, -4.0]) in ("no", "maybe", "üüüü")


@pytest.mark.parametrize(
    ("answer", "comparison", "passes"),
    [
        ("42", {}, True), (" 42\n\nQ: next", {}, True), ("42.", {}, False), ("42.", {"ignore_punctuation": True}, True),
        ("$42", {"regexes_to_ignore": [r"\$"]}, True), ("43", {}, False), ("43", {"ignore_numbers": True}, True),
    ],
)  # fmt: skip
def test_an_answer_is_cut_and_compared(answer: str, comparison: dict[str, Any], passes: bool) -> None:
    case = UntilCase(id="1", prompt="?", targets=["42"], until=["\n\n"], comparison=Comparison(**comparison))
    assert case.passes(answer) is passes


def test_a_description_is_the_system_prompt(tmp_path: Path) -> None:
    (case,) = cases(tmp_path, TEXT | {"description": "About {{s}}."}, {"q": "Why?", "a": "x", "s": "tea"})
    assert [(turn.role, turn.content) for turn in case.conversation] == [("system", "About tea."), ("user", "Why?")]
    assert case.question == "Why?", "which is kept out of the training set"


# -- what is refused


@pytest.mark.parametrize(
    ("task", "document", "words"),
    [
        pytest.param("a: [", {}, "cases.task is no YAML", id="no YAML"),
        pytest.param("doc_to_text: !function utils.text", {}, "Python of a task is not run", id="Python"),
        pytest.param(TEXT | {"output_type": "loglikelihood"}, {}, "output_type: Input should be", id="output type"),
        pytest.param(TEXT | {"filter_list": []}, {}, "filter_list: Extra inputs", id="filters"),
        pytest.param(TEXT | {"num_fewshot": 5}, {}, "num_fewshot: Input should be 0", id="few shots"),
        pytest.param(TEXT | {"include": "x.yaml"}, {}, "include: Extra inputs", id="includes"),
        pytest.param(TEXT | {"metric_list": [{"metric": "bleu"}]}, {}, "metric_list.0.metric", id="metric"),
        pytest.param(CHOICE | {"metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}]}, {},
                     "metric_list has acc, acc_norm: keep the one", id="two metrics"),
        pytest.param(TEXT | {"metric_list": [{"metric": "acc"}]}, {}, "write exact_match", id="metric of the other"),
        pytest.param(TEXT | {"doc_to_choice": ["a", "b"]}, {}, "with output_type: multiple_choice", id="choices"),
        pytest.param(TEXT | {"generation_kwargs": {"max_gen_toks": 64}}, {}, "write one number into both", id="length"),
        pytest.param(TEXT | {"generation_kwargs": {"temperature": 1}}, {}, "generation_kwargs.temperature", id="draws"),
        pytest.param(TEXT | {"metric_list": [{"metric": "exact_match", "regexes_to_ignore": ["(?=x)"]}]}, {},
                     "write RE2 syntax", id="pattern"),
        pytest.param(TEXT, {"q": "?"}, "line 1: doc_to_target: 'a' is undefined", id="field that is missing"),
        pytest.param(TEXT | {"doc_to_text": "{{ q"}, {"q": "?", "a": "x"}, "line 1: doc_to_text", id="template"),
        pytest.param(TEXT | {"doc_to_text": "{{ ''.__class__.__mro__ }}"}, {"q": "?", "a": "x"}, "unsafe", id="escape"),
        pytest.param(CHOICE, {"q": "?", "a": 2}, "which is none of 2 choices", id="right one"),
        pytest.param(CHOICE, {"q": "7", "a": 1}, "one context a choice", id="contexts"),
        pytest.param(CHOICE | {"doc_to_choice": ["a", "a"]}, {"q": "?", "a": 1}, "two are alike", id="alike"),
        pytest.param(CHOICE | {"doc_to_choice": "{{q}}"}, {"q": "[1, 2]", "a": 1}, "no list of two", id="numbers"),
    ],
)  # fmt: skip
def test_refused_by_name(tmp_path: Path, task: object, document: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as raised:
        cases(tmp_path, task, document)
    assert words in str(raised.value)
    assert str(raised.value).startswith("suite house, ")


def test_what_is_not_there_or_empty(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="suite house has no cases: write one document a line"):
        cases(tmp_path, TEXT)
    (tmp_path / "suites" / "house.yaml").unlink()
    with pytest.raises(UserError, match="its task is not mounted"):
        read_suite(Suite.model_validate(suite()), tmp_path / "suites", None)
    assert harness.EXAMPLE.startswith("{")
