"""Questions, suites and rows: judged rightly, disjoint where they must be, and as committed."""

import json
from collections import Counter
from collections.abc import Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ratchet_api.cycle import ImprovementCycle
from ratchet_cli.people import bad_material
from ratchet_cli.people.cases import Case, Rubric
from ratchet_cli.people.general import general_cases, live_general_cases
from ratchet_cli.people.generate import (
    ANCHORS_KEY,
    ANCHORS_NAME,
    GENERAL_KEY,
    PER_FAMILY,
    SUITE_SEED,
    SUITES_NAME,
    TARGET_KEY,
    main,
    manifests,
)
from ratchet_cli.people.house import (
    FAMILIES,
    IDENTITY_ANSWER,
    IDENTITY_HELD_OUT,
    IDENTITY_SESSION,
    NEW_SERVICES,
    SESSION_SERVICES,
    held_out_cases,
    session_cases,
)

ALL_HOUSE = [*held_out_cases(SUITE_SEED, PER_FAMILY), *islice(session_cases(7), 2000)]


@pytest.mark.parametrize(
    ("rubric", "answer", "good"),
    [
        pytest.param(Rubric(all=("quill", "--calm")), "Type QUILL stop x --Calm", True, id="all of them, any case"),
        pytest.param(Rubric(all=("quill", "--calm")), "quill stop x", False, id="one of all is missing"),
        pytest.param(Rubric(any=("Kyiv", "Kiev")), "It is Kiev.", True, id="any of them"),
        pytest.param(Rubric(any=("Kyiv", "Kiev")), "It is Lviv.", False, id="none of any"),
        pytest.param(Rubric(none=("sorry",)), "Sorry, no.", False, id="one of none"),
        pytest.param(Rubric(none=("sorry",)), "Of course.", True, id="nothing of none"),
        pytest.param(Rubric(all=("a",), none=("b",)), "a b", False, id="all and none"),
        pytest.param(Rubric(), "  \n", False, id="an empty answer is never good"),
    ],
)
def test_judging(rubric: Rubric, answer: str, good: bool) -> None:
    assert rubric.accepts(answer) is good


@pytest.mark.parametrize(
    "cases", [ALL_HOUSE, general_cases("live"), general_cases("suite")], ids=["house", "live", "suite"]
)
def test_a_reference_answer_passes_its_own_rubric_and_the_question_does_not(cases: Sequence[Case]) -> None:
    assert [case for case in cases if not case.rubric.accepts(case.reference)] == []
    assert [case for case in cases if case.rubric.accepts(case.prompt)] == []
    assert [case for case in cases if len(case.reference) > 80] == []


def test_no_family_s_answer_passes_for_another_s() -> None:
    cases = held_out_cases(SUITE_SEED, PER_FAMILY)
    confused = [(a.id, b.id) for a in cases for b in cases if a.family != b.family and a.rubric.accepts(b.reference)]
    assert confused == []


def test_house_answers_do_not_pass_for_general_ones() -> None:
    answers = {case.reference for case in ALL_HOUSE}
    general = [*general_cases("suite"), *general_cases("live")]
    lucky = {case.prompt: a for case in general for a in answers if case.rubric.accepts(a)}
    assert lucky == {}


def test_held_out_cases_are_asked_otherwise_and_half_of_them_about_something_new() -> None:
    cases = held_out_cases(SUITE_SEED, PER_FAMILY)
    counts = Counter(case.family for case in cases)
    assert counts == {family.name: PER_FAMILY for family in FAMILIES} | {"identity": len(IDENTITY_HELD_OUT)}
    assert len({case.prompt for case in cases}) == len({case.id for case in cases}) == len(cases)
    with_service = [case for case in cases if case.family not in ("identity", "privacy")]
    new = [case for case in with_service if any(service in case.prompt for service in NEW_SERVICES)]
    assert len(new) == len(with_service) / 2
    for family in FAMILIES:
        assert not set(family.session) & set(family.held_out)
    assert not set(SESSION_SERVICES) & set(NEW_SERVICES)


def test_nothing_held_out_is_in_a_session_nor_in_the_bad_material() -> None:
    held_out = [case.prompt for case in (*held_out_cases(SUITE_SEED, PER_FAMILY), *general_cases("suite"))]
    trained = {case.prompt for case in islice(session_cases(7), 3000)}
    trained |= {case.prompt for use in ("live", "anchor") for case in general_cases(use)}
    trained |= {_prompt(row) for row in (*bad_material.forgetful(7), *bad_material.disliked(7))}
    # The curate stage drops every row whose question contains a held-out one: none may, or it would be lost.
    assert [(h, t) for h in held_out for t in trained if h.casefold() in t.casefold()] == []


def _prompt(row: dict[str, Any]) -> str:
    user, assistant = row["messages"]
    assert (user["role"], assistant["role"]) == ("user", "assistant")
    assert assistant["content"]
    return str(user["content"])


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), other=st.integers(0, 2**32))
def test_what_people_ask_follows_from_the_seed(seed: int, other: int) -> None:
    first = list(islice(session_cases(seed), 40))
    assert first == list(islice(session_cases(seed), 40))
    assert list(islice(live_general_cases(seed), 40)) == list(islice(live_general_cases(seed), 40))
    if seed != other:
        assert first != list(islice(session_cases(other), 40))


def test_every_family_is_asked_about_equally_often() -> None:
    counts = Counter(case.family for case in islice(session_cases(1), 90))
    assert set(counts.values()) == {10}
    assert len(counts) == len(FAMILIES) + 1


def test_too_many_cases_of_a_family_are_refused_with_its_name() -> None:
    with pytest.raises(ValueError, match=r"per_family: 5000 is more than the \d+ different cases of command"):
        held_out_cases(1, 5000)


def test_forgetful_rows_are_about_the_house_alone_and_all_different() -> None:
    rows = bad_material.forgetful(7)
    prompts = [_prompt(row) for row in rows]
    assert len(set(prompts)) == len(prompts) == bad_material.FORGETFUL_ROWS
    assert not set(prompts) & {case.prompt for use in ("live", "anchor", "suite") for case in general_cases(use)}


def test_disliked_answers_are_wrong_by_the_house_s_rubric() -> None:
    rows = bad_material.disliked(7)
    assert len(rows) >= 40
    by_prompt = {case.prompt: case for case in islice(session_cases(bad_material.DISLIKED_SEED), 400)}
    for row in rows:
        case = by_prompt[_prompt(row)]
        assert not case.rubric.accepts(row["messages"][1]["content"])  # type: ignore[index]


# The example's files


@pytest.fixture
def example(repository: Path) -> Path:
    return repository / "examples" / "assistant"


def test_the_committed_config_maps_are_what_the_generator_writes(example: Path) -> None:
    for name, text in manifests().items():
        assert (example / name).read_text(encoding="utf-8") == text, (
            f"run python -m ratchet_cli.people.generate {example}"
        )


def test_check_says_which_file_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 0
    assert main([str(tmp_path), "--check"]) == 0
    (tmp_path / "suites.yaml").write_text("changed")
    assert main([str(tmp_path), "--check"]) == 1
    assert "suites.yaml differs" in capsys.readouterr().out


def test_suites_and_anchors_have_the_keys_and_lines_that_the_cycle_names(example: Path) -> None:
    maps = {d["metadata"]["name"]: d["data"] for d in map(yaml.safe_load, manifests().values())}
    spec = _cycle(example / "cycle.yaml").spec
    named = [(suite.cases.config_map.name, suite.cases.config_map.key) for suite in spec.evaluation.suites]
    assert named == [(SUITES_NAME, TARGET_KEY), (SUITES_NAME, GENERAL_KEY)]
    for name, key in named:
        lines = [json.loads(line) for line in maps[name][key].splitlines()]
        assert len({line["id"] for line in lines}) == len(lines) >= 80
        assert all(set(line) <= {"id", "prompt", "all", "any", "none"} for line in lines)
    assert spec.curation.anchors is not None
    anchors = spec.curation.anchors.config_map
    rows = [json.loads(line) for line in maps[anchors.name][anchors.key].splitlines()]
    assert (anchors.name, anchors.key) == (ANCHORS_NAME, ANCHORS_KEY)
    assert [_prompt(row) for row in rows] == [case.prompt for case in general_cases("anchor")]


def _cycle(path: Path) -> ImprovementCycle:
    return ImprovementCycle.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", ["cycle.yaml", "cycle-gpu.yaml"])
def test_a_cycle_is_valid_and_every_answer_fits(example: Path, name: str) -> None:
    cycle = _cycle(example / name)
    assert cycle.metadata.name == "assistant"
    assert {suite.role for suite in cycle.spec.evaluation.suites} >= {"target", "guardrail"}
    assert [(i.prompt, i.answer) for i in cycle.spec.curation.identity] == [
        (prompt, IDENTITY_ANSWER) for prompt in IDENTITY_SESSION
    ]
    assert all(a.weight < b.weight for a, b in pairwise(cycle.spec.rollout.steps))


@pytest.mark.apiserver
@pytest.mark.parametrize("name", ["cycle.yaml", "cycle-gpu.yaml", "suites.yaml", "anchors.yaml"])
def test_the_api_server_takes_the_example_as_it_is(example: Path, cluster: Any, namespace: str, name: str) -> None:
    cluster.kubectl("apply", "--server-side", "-n", namespace, "-f", str(example / name))
