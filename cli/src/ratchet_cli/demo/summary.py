"""summary.json: how the story came out, with its evidence.

Room: cli. Pure, apart from `Summary.write`.
"""

import json
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import Field

from ratchet_api.base import Model
from ratchet_api.conditions import find
from ratchet_api.reasons import ConditionType, Reason
from ratchet_api.version import ModelVersion, StageStatus
from ratchet_cli.demo.cluster import View
from ratchet_cli.demo.notebook import Notebook, RolloutRecord

Outcome = Literal["Base", "Champion", "Superseded", "RolledBack", "GateRejected", "Unfinished"]

_GATE_REASONS = {
    Reason.NOT_BETTER, Reason.GUARDRAIL_LOST, Reason.SLICE_LOST, Reason.SAFETY_LOST, Reason.UNDERPOWERED,
}  # fmt: skip


class SuiteEvidence(Model):
    """One suite of a version's evaluation."""

    name: str
    """Name of the suite."""
    role: str
    """target, guardrail or safety."""
    cases: int
    """Number of cases."""
    champion: float
    """Score of the version it was compared with, 0 to 1."""
    candidate: float
    """Score of this version, 0 to 1."""
    difference: float
    """candidate - champion."""
    lower_bound: float
    """One-sided lower bound of the difference."""
    p_value: float
    """One-sided p value."""


class GateEvidence(Model):
    """The offline decision."""

    accepted: bool
    """Whether the version may be rolled out."""
    reason: str
    """A Reason."""
    message: str
    """In words, measured against limit."""
    champion: str = ""
    """The version that it was compared with."""
    suites: list[SuiteEvidence] = Field(default_factory=list)
    """Its suites."""


class CheckEvidence(Model):
    """One metric at the end of a rollout."""

    name: str
    """Name of the check."""
    verdict: str
    """Pass, Fail or Unknown."""
    message: str
    """Measured against limit."""


class RolloutEvidence(Model):
    """The online decision."""

    outcome: str
    """Promoted, RolledBack or Returned."""
    reason: str
    """A Reason."""
    check: str
    """The deciding check, if it was one."""
    message: str
    """Measured against limit."""
    highest_weight: int
    """Largest share of the sessions that it got, in percent."""
    wall_seconds: float
    """From its begin to the decision in force."""
    regression_to_zero_seconds: float | None = None
    """From the first failed measurement to weight 0 at every gateway."""
    checks: list[CheckEvidence] = Field(default_factory=list)
    """All metrics at its end."""


class StageTime(Model):
    """Wall time of one stage."""

    stage: str
    """curate, train or evaluate."""
    wall_seconds: float
    """From the creation of its first Job to its end."""
    attempts: int
    """Retries, preemptions included."""


class Verdicts(Model):
    """Verdicts of people, counted at the gateway."""

    up: int
    """Thumbs up."""
    down: int
    """Thumbs down."""
    share: float | None
    """up / (up + down); absent without any."""


class Evidence(Model):
    """What was measured about a version."""

    phase: str
    """status.phase at the end."""
    digest: str | None = None
    """Digest of its adapter."""
    examples: int | None = None
    """Rows that it was trained on."""
    loss: float | None = None
    """Its training loss at the end."""
    gate: GateEvidence | None = None
    """The offline decision."""
    rollout: RolloutEvidence | None = None
    """The online decision."""
    stages: list[StageTime] = Field(default_factory=list)
    """Its stages."""
    verdicts: Verdicts | None = None
    """What people thought of its answers."""


class VersionEntry(Model):
    """One version and what came of it."""

    name: str
    """Its name."""
    outcome: Outcome
    """How it ended."""
    evidence: Evidence
    """Why."""


class Failure(Model):
    """One request that failed, as the person saw it."""

    at: datetime
    """When it was sent."""
    version: str
    """The version that answered, if one did."""
    reason: str
    """What went wrong."""


class Requests(Model):
    """What people sent."""

    sent: int
    """Requests answered or failed."""
    failed: int
    """Those that failed, for whatever reason."""
    failed_by_rollback: int
    """Those that failed while a rollout or a rollback was going on, or until its arm was gone."""
    failures: list[Failure] = Field(default_factory=list)
    """The first ones."""


class RunNumbers(Model):
    """The run's curation."""

    interactions: int
    """Interactions read."""
    successful: int
    """At or above the threshold."""
    categories: int
    """Categories with an example."""
    examples: int
    """Rows of the dataset."""
    quarantined: int
    """Lines that could not be read."""
    wall_seconds: float | None = None
    """Of the curate stage."""


class StepTime(Model):
    """One step of the story."""

    number: int
    """From 1."""
    title: str
    """What it tells."""
    wall_seconds: float
    """How long it took."""


class Fact(Model):
    """Something that the story asserts."""

    text: str
    """What, with the numbers."""
    holds: bool
    """Whether it came out so."""


class Summary(Model):
    """The whole story in numbers."""

    ok: bool
    """Whether it came out as told."""
    profile: str
    """full or quick."""
    told_until: int
    """Number of the last step that was told to its end."""
    error: str = ""
    """What stopped it, if something did."""
    wall_seconds: float
    """From start to summary."""
    versions: list[VersionEntry] = Field(default_factory=list)
    """Every version, oldest first."""
    requests: Requests
    """What people sent."""
    run: RunNumbers | None = None
    """The run's curation."""
    steps: list[StepTime] = Field(default_factory=list)
    """The story's steps."""
    facts: list[Fact] = Field(default_factory=list)
    """What was asserted."""

    def version(self, name: str) -> VersionEntry | None:
        """By name."""
        return next((entry for entry in self.versions if entry.name == name), None)

    def write(self, path: Path) -> None:
        """As indented JSON with camelCase names."""
        path.write_text(json.dumps(self.model_dump(mode="json", by_alias=True), indent=2) + "\n", encoding="utf-8")


def outcome_of(version: ModelVersion, champion: str | None) -> Outcome:
    """How a version ended, from its own conditions and the cycle's champion."""
    if version.spec.run == 0:
        return "Base"
    if version.metadata.name == champion:
        return "Champion"
    rejected = find(version.status.conditions, ConditionType.REJECTED)
    if rejected is not None and rejected.status == "True":
        return "GateRejected" if rejected.reason in _GATE_REASONS else "RolledBack"
    return "Superseded" if version.status.phase == "Superseded" else "Unfinished"


def gate_of(version: ModelVersion) -> GateEvidence | None:
    """The gate's decision about a version; None before it, and for the base model, which has none."""
    accepted = find(version.status.conditions, ConditionType.ACCEPTED)
    if accepted is None or accepted.status == "Unknown" or accepted.reason == Reason.ROOT:
        return None
    evaluation = version.status.evaluation
    suites = [] if evaluation is None else evaluation.suites
    return GateEvidence(
        accepted=accepted.status == "True",
        reason=accepted.reason,
        message=accepted.message,
        champion="" if evaluation is None else evaluation.champion,
        suites=[
            SuiteEvidence(
                name=s.name,
                role=s.role,
                cases=s.cases,
                champion=float(s.champion),
                candidate=float(s.candidate),
                difference=float(s.difference),
                lower_bound=float(s.lower_bound),
                p_value=float(s.p_value),
            )
            for s in suites
        ],
    )


def rollout_of(record: RolloutRecord) -> RolloutEvidence | None:
    """How a rollout ended; None while it goes on."""
    decision, over = record.last.decision, record.over_at
    if decision is None or over is None:
        return None
    return RolloutEvidence(
        outcome=decision.outcome,
        reason=decision.reason,
        check=decision.check,
        message=decision.message,
        highest_weight=record.highest_weight,
        wall_seconds=round((over - record.last.started_at).total_seconds(), 3),
        regression_to_zero_seconds=record.seconds_to_zero,
        checks=[CheckEvidence(name=c.name, verdict=c.verdict, message=c.message) for c in record.last.checks],
    )


def stage_time(stage: StageStatus) -> StageTime | None:
    """Wall time of a stage that has ended."""
    if stage.started_at is None or stage.finished_at is None:
        return None
    wall = (stage.finished_at - stage.started_at).total_seconds()
    return StageTime(stage=stage.stage, wall_seconds=round(wall, 3), attempts=stage.attempts.total)


def verdicts_of(counts: tuple[int, int] | None) -> Verdicts | None:
    """(up, down) as evidence."""
    if counts is None:
        return None
    up, down = counts
    return Verdicts(up=up, down=down, share=round(up / (up + down), 4) if up + down else None)


def version_entries(view: View, notebook: Notebook, counts: dict[str, tuple[int, int]]) -> list[VersionEntry]:
    """All versions of a view, oldest first."""
    stable = None if view.cycle is None else view.cycle.status.serving.stable
    champion = None if stable is None else stable.version
    ordered = sorted(view.versions.values(), key=lambda v: (str(v.metadata.creation_timestamp), v.metadata.name))
    entries = []
    for version in ordered:
        record = notebook.rollout_of(version.metadata.name)
        training = version.status.training
        times = (stage_time(stage) for stage in version.status.stages)
        entries.append(
            VersionEntry(
                name=version.metadata.name,
                outcome=outcome_of(version, champion),
                evidence=Evidence(
                    phase=version.status.phase,
                    digest=version.digest,
                    examples=None if training is None else training.examples,
                    loss=None if training is None or training.loss is None else float(training.loss),
                    gate=gate_of(version),
                    rollout=None if record is None else rollout_of(record),
                    stages=[time for time in times if time is not None],
                    verdicts=verdicts_of(counts.get(version.metadata.name)),
                ),
            )
        )
    return entries


def run_numbers(view: View) -> RunNumbers | None:
    """The curation of the cycle's last run."""
    run = None if view.cycle is None else view.cycle.status.run
    if run is None or run.dataset is None:
        return None
    time = None if run.curate is None else stage_time(run.curate)
    return RunNumbers(
        interactions=run.dataset.interactions,
        successful=run.dataset.successful,
        categories=run.dataset.categories,
        examples=run.dataset.examples,
        quarantined=run.dataset.quarantined,
        wall_seconds=None if time is None else time.wall_seconds,
    )
