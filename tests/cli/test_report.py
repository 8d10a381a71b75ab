"""The page: complete, self-contained, and safe with any text."""

import re
from datetime import timedelta
from html.parser import HTMLParser

import pytest
from tests.cli.builders import NOW

from ratchet_cli.demo.notebook import Marker
from ratchet_cli.demo.prometheus import Series
from ratchet_cli.demo.report import Material, duration, render
from ratchet_cli.demo.summary import (
    Evidence,
    Fact,
    GateEvidence,
    Requests,
    RolloutEvidence,
    RunNumbers,
    StageTime,
    StepTime,
    SuiteEvidence,
    Summary,
    Verdicts,
    VersionEntry,
)

REQUESTS = Requests(sent=1200, failed=0, failed_by_rollback=0)


def gate(accepted: bool, message: str = "better") -> GateEvidence:
    suites = [
        SuiteEvidence(name="house-rules", role="target", cases=100, champion=0.0, candidate=0.66, difference=0.66,
                      lower_bound=0.58, p_value=3e-21),
        SuiteEvidence(name="general", role="guardrail", cases=100, champion=0.8, candidate=0.78, difference=-0.02,
                      lower_bound=-0.07, p_value=0.6),
    ]  # fmt: skip
    return GateEvidence(
        accepted=accepted, reason="GatePassed" if accepted else "NotBetter", message=message, champion="assistant-0",
        suites=suites,
    )  # fmt: skip


@pytest.fixture
def summary() -> Summary:
    """A whole story."""
    forward = RolloutEvidence(
        outcome="Promoted", reason="Promoted", check="", message="stood its bake", highest_weight=100, wall_seconds=80
    )
    back = RolloutEvidence(
        outcome="RolledBack", reason="CheckFailed", check="feedback", message="41 % vs 20 % <b>limit</b>",
        highest_weight=25, wall_seconds=31, regression_to_zero_seconds=6.5,
    )  # fmt: skip
    versions = [
        VersionEntry(
            name="assistant-0",
            outcome="Base",
            evidence=Evidence(phase="Superseded", verdicts=Verdicts(up=90, down=120, share=0.43)),
        ),
        VersionEntry(
            name="assistant-1",
            outcome="Champion",
            evidence=Evidence(
                phase="Serving", examples=420, loss=0.31, gate=gate(True), rollout=forward,
                stages=[StageTime(stage="train", wall_seconds=130, attempts=0)],
                verdicts=Verdicts(up=190, down=40, share=0.83),
            ),
        ),
        VersionEntry(
            name="assistant-bad",
            outcome="RolledBack",
            evidence=Evidence(
                phase="Rejected", gate=gate(True, "<script>alert(1)</script>"), rollout=back,
                verdicts=Verdicts(up=0, down=0, share=None),
            ),
        ),
        VersionEntry(
            name="assistant-worse", outcome="GateRejected", evidence=Evidence(phase="Rejected", gate=gate(False))
        ),
    ]  # fmt: skip
    return Summary(
        ok=True, profile="full", told_until=8, wall_seconds=612, versions=versions, requests=REQUESTS,
        run=RunNumbers(interactions=420, successful=300, categories=5, examples=400, quarantined=0, wall_seconds=9),
        steps=[StepTime(number=1, title="the platform comes up", wall_seconds=21.3)],
        facts=[Fact(text="assistant-1 is champion", holds=True)],
    )  # fmt: skip


@pytest.fixture
def material() -> Material:
    """Series with a gap."""
    seconds = [*range(0, 60, 2), *range(200, 260, 2)]
    times = tuple(NOW + timedelta(seconds=s) for s in seconds)
    series = [
        Series({"version": name}, times, tuple(scale * (0.5 + i % 3 / 10) for i in range(len(times))))
        for name, scale in (("assistant-0", 1.0), ("assistant-1", 0.8))
    ]
    return Material(
        began=NOW,
        losses={"assistant-1": [(1, 3.2), (2, 2.1), (3, 1.4)]},
        weights=series,
        shares=series,
        latencies=series,
        markers=[
            Marker(times[3], "assistant-1", "25 %", "step"),
            Marker(times[5], "assistant-1", "promoted", "good"),
            Marker(times[9], "assistant-bad", "rolled back: feedback", "bad"),
        ],
    )


class Outline(HTMLParser):
    """Tags that do not close, and what the page would load."""

    VOID = frozenset({"meta", "br", "link", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_it_is_one_well_formed_page_that_loads_nothing(summary: Summary, material: Material) -> None:
    page = render(summary, material)
    outline = Outline()
    outline.feed(page)
    outline.close()
    assert not outline.open
    assert all(target.startswith("#") for target in outline.loads)
    assert not re.search(r"url\((?!#)", page)
    assert page.count("<svg") == 3


def test_it_tells_every_version_its_outcome_and_evidence(summary: Summary, material: Material) -> None:
    page = render(summary, material)
    for text in ("assistant-0", "Champion", "RolledBack", "GateRejected", "43.0 %", "83.0 %", "6.5 s", "3e-21"):
        assert text in page


def test_text_from_outside_is_escaped(summary: Summary, material: Material) -> None:
    page = render(summary, material)
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "<b>limit</b>" not in page


def test_a_story_that_stopped_early_still_has_a_page() -> None:
    summary = Summary(ok=False, profile="full", told_until=0, error="no disk left", wall_seconds=3, requests=REQUESTS)
    page = render(summary, Material(began=NOW))
    assert "no disk left" in page
    assert "did not come out as told" in page
    assert "<svg" not in page


def test_the_same_story_gives_the_same_page(summary: Summary, material: Material) -> None:
    assert render(summary, material) == render(summary, material)


@pytest.mark.parametrize(("value", "text"), [(None, "–"), (6.54, "6.5 s"), (60, "1 min 00 s"), (754.9, "12 min 34 s")])
def test_durations(value: float | None, text: str) -> None:
    assert duration(value) == text
