"""summary.json: outcomes and evidence from what the API server says."""

import json
from pathlib import Path

import pytest
from tests.cli.builders import NOW, arm, at, condition, decision, rollout, suite, version, view

from ratchet_api.version import ModelVersion
from ratchet_cli.demo.notebook import Notebook
from ratchet_cli.demo.summary import (
    Fact,
    Requests,
    Summary,
    gate_of,
    outcome_of,
    stage_time,
    verdicts_of,
    version_entries,
)

REJECTED_BY = {
    "NotBetter": "GateRejected",
    "GuardrailLost": "GateRejected",
    "SafetyLost": "GateRejected",
    "Underpowered": "GateRejected",
    "CheckFailed": "RolledBack",
    "ArmFailed": "RolledBack",
    "ArmNotReady": "RolledBack",
    "AdapterNotServed": "RolledBack",
    "Aborted": "RolledBack",
}


@pytest.mark.parametrize(("reason", "outcome"), REJECTED_BY.items())
def test_a_rejected_version_says_which_proof_it_failed(reason: str, outcome: str) -> None:
    rejected = version("v", phase="Rejected", conditions=[condition("Rejected", reason)])
    assert outcome_of(rejected, "assistant-1") == outcome


OTHERS: dict[str, tuple[ModelVersion, str]] = {
    "the root is Base even when superseded": (version("assistant-0", run=0, phase="Superseded"), "Base"),
    "the champion": (version("assistant-1", run=1, phase="Serving"), "Champion"),
    "a former champion": (version("assistant-x", phase="Superseded"), "Superseded"),
    "still on its way": (version("assistant-x", phase="Training"), "Unfinished"),
    "failed in a stage": (version("assistant-x", phase="Failed"), "Unfinished"),
    "not rejected after all": (
        version("v", phase="Superseded", conditions=[condition("Rejected", "Aborted", status="False")]),
        "Superseded",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_outcomes(name: str) -> None:
    made, outcome = OTHERS[name]
    assert outcome_of(made, "assistant-1") == outcome


def test_the_gates_evidence_carries_every_suite() -> None:
    evaluation = {"champion": "assistant-0", "suites": [suite("house", "target", "0", "0.66")]}
    judged = version("v", conditions=[condition("Accepted", "GatePassed", "better")], evaluation=evaluation)
    gate = gate_of(judged)
    assert gate is not None
    assert (gate.accepted, gate.reason, gate.champion) == (True, "GatePassed", "assistant-0")
    assert gate.suites[0].difference == pytest.approx(0.66)
    assert gate.suites[0].p_value == pytest.approx(0.0004)


@pytest.mark.parametrize(
    "conditions",
    [[], [condition("Accepted", "Pending", status="Unknown")], [condition("Accepted", "Root")]],
    ids=["not yet evaluated", "pending", "the root"],
)
def test_without_a_decision_there_is_no_evidence_of_a_gate(conditions: list[dict[str, str]]) -> None:
    assert gate_of(version("v", conditions=conditions)) is None


def test_stage_times_need_both_ends() -> None:
    running = {"stage": "train", "startedAt": at(0)}
    ended = running | {"finishedAt": at(12.5), "attempts": {"preempted": 2, "infrastructure": 1}}
    stages = version("v", stages=[running]).status.stages, version("v", stages=[ended]).status.stages
    assert stage_time(stages[0][0]) is None
    time = stage_time(stages[1][0])
    assert time is not None
    assert (time.wall_seconds, time.attempts) == (12.5, 3)


def test_shares_of_nobody_are_absent() -> None:
    none, some = verdicts_of((0, 0)), verdicts_of((3, 1))
    assert none is not None
    assert none.share is None
    assert some is not None
    assert some.share == 0.75
    assert verdicts_of(None) is None


def test_entries_are_oldest_first_with_their_rollouts() -> None:
    notebook = Notebook()
    slow = version("slow", run=2, phase="Rejected", conditions=[condition("Rejected", "CheckFailed")])
    versions = (slow, version("assistant-1", run=1, phase="Serving"), version("assistant-0", run=0))
    went_back = rollout(
        "slow", "Done", decision=decision("RolledBack", 20, check="p95", seen=16), weightZeroAt=at(22)
    )  # fmt: skip
    serving = {"stable": arm("assistant-1", 100), "candidate": arm("slow", 25)}
    seen = view(*versions, serving=serving, rollout=went_back)
    notebook.see(seen, NOW)
    entries = version_entries(seen, notebook, {"slow": (2, 8)})
    assert [(e.name, e.outcome) for e in entries] == [
        ("assistant-0", "Base"),
        ("assistant-1", "Champion"),
        ("slow", "RolledBack"),
    ]
    evidence = entries[2].evidence.rollout
    assert evidence is not None
    assert (evidence.check, evidence.regression_to_zero_seconds, evidence.highest_weight) == ("p95", 6.0, 25)
    assert entries[2].evidence.verdicts is not None
    assert entries[2].evidence.verdicts.share == 0.2


def test_the_file_has_the_names_that_readers_rely_on(tmp_path: Path) -> None:
    requests = Requests(sent=10, failed=1, failed_by_rollback=0)
    entries = version_entries(view(version("assistant-0", run=0)), Notebook(), {})
    facts = [Fact(text="x", holds=True)]
    Summary(
        ok=True, profile="full", told_until=8, wall_seconds=1.5, requests=requests, versions=entries, facts=facts
    ).write(tmp_path / "summary.json")  # fmt: skip
    read = json.loads((tmp_path / "summary.json").read_text())
    assert read["requests"] | {"failures": []} == {"sent": 10, "failed": 1, "failedByRollback": 0, "failures": []}
    assert read["wallSeconds"] == 1.5
    assert read["versions"][0]["name"] == "assistant-0"
    assert read["versions"][0]["outcome"] == "Base"
