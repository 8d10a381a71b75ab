"""Flux' health checks and kstatus over every state, and the page that says what they are."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from .cel import Status, by_expressions, by_kstatus, holds
from .states import CYCLES, VERSIONS, VIEWS, document
from .test_argocd import enabled, health

ROOT = Path(__file__).resolve().parents[2]
EXPRESSIONS: dict[str, dict[str, str]] = {
    entry["kind"]: {key: entry[key] for key in ("inProgress", "failed", "current")}
    for entry in yaml.safe_load((ROOT / "integrations/flux/health-check-exprs.yaml").read_text())
}
STATES: dict[str, dict[str, Any]] = {"ImprovementCycle": CYCLES, "ModelVersion": VERSIONS}
EVERY = [(kind, name) for kind, states in STATES.items() for name in states]


def judged(found: dict[str, Any]) -> Status:
    return by_expressions(EXPRESSIONS[found["kind"]], found)


def conditions(found: dict[str, Any]) -> dict[str, str]:
    return {entry["type"]: entry["status"] for entry in found["status"].get("conditions", [])}


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_every_state_is_judged(kind: str, name: str) -> None:
    """By every expression, whichever one decides; with the CRD's defaults too."""
    found = document(STATES[kind][name])
    if conditions(found):
        for expression in EXPRESSIONS[kind].values():
            assert holds(expression, found) in (True, False)
    assert judged(found) == judged(document(STATES[kind][name], defaults=True))


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_kstatus_and_the_expressions_agree_on_failure(kind: str, name: str) -> None:
    found = document(STATES[kind][name])
    plain, expressed = by_kstatus(found), judged(found)
    if plain != "Terminating":
        assert (plain == "Failed") == (expressed == "Failed")
    if plain == "Current":
        assert expressed == "Current"
    said = conditions(found)
    assert not (said.get("Reconciling") == said.get("Stalled") == "True"), "kstatus: one or the other"
    assert not said or "Ready" in said


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_flux_and_argo_cd_agree(kind: str, name: str) -> None:
    found = document(STATES[kind][name])
    told = health(found)["status"]
    match judged(found):
        case "Failed":
            assert told in ("Degraded", "Suspended")
        case "Current" if kind == "ImprovementCycle":
            assert told in ("Healthy", "Progressing", "Suspended")
        case "Current":
            assert told != "Degraded"
        case _:
            assert told != "Healthy"


@pytest.mark.parametrize(
    ("name", "plain", "expressed"),
    [
        ("unseen", "InProgress", "InProgress"),
        ("unread", "InProgress", "InProgress"),
        ("initializing", "InProgress", "InProgress"),
        ("degraded", "InProgress", "InProgress"),
        ("idle", "Current", "Current"),
        ("training", "InProgress", "Current"),
        ("canary", "InProgress", "Current"),
        ("suspended", "Current", "Current"),
        ("pointer-evaluating", "InProgress", "InProgress"),
        ("pointer-canary", "InProgress", "InProgress"),
        ("pointer-followed", "Current", "Current"),
        ("pointer-rolled-back", "Failed", "Failed"),
        ("stalled", "Failed", "Failed"),
    ],
)
def test_a_cycle_as_flux_sees_it(name: str, plain: Status, expressed: Status) -> None:
    found = document(CYCLES[name])
    assert (by_kstatus(found), judged(found)) == (plain, expressed)


def test_a_new_object_is_not_finished_for_anybody() -> None:
    """The CRD gives a new object status.observedGeneration 0; without it, kstatus would call it current."""
    found = document(CYCLES["unseen"])
    assert found["status"] == {"observedGeneration": 0}
    assert (by_kstatus(found), judged(found)) == ("InProgress", "InProgress")
    bare = {key: value for key, value in found.items() if key != "status"}
    assert by_kstatus(bare) == "Current"
    with pytest.raises((ValueError, RuntimeError)):
        judged(bare)


PAGE = ROOT / "docs/gitops-health.md"
BEGIN, END = "<!-- states: generated, UPDATE_GOLDEN=1 -->\n", "<!-- end of states -->\n"


def table(kind: str) -> list[str]:
    lines = [
        "| State | Phase | Argo CD | kstatus | Flux, by expressions | Actions in Argo CD |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, found in STATES[kind].items():
        body = document(found)
        may = ", ".join(sorted(enabled(body) - {"pause", "promote"})) or "none"
        cells = [name, found.status.phase, health(body)["status"], by_kstatus(body), judged(body), may]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def test_the_page_has_every_state() -> None:
    parts = ["### ImprovementCycle", "", *table("ImprovementCycle"), "", "### ModelVersion", "", *table("ModelVersion")]
    generated = "\n".join([*parts, "", ""])
    text = PAGE.read_text()
    head, rest = text.split(BEGIN)
    middle, tail = rest.split(END)
    if os.environ.get("UPDATE_GOLDEN"):
        PAGE.write_text(head + BEGIN + "\n" + generated + END + tail)
        middle = "\n" + generated
    assert middle == "\n" + generated, "UPDATE_GOLDEN=1, and read the difference"
    assert len(VIEWS) > 40
