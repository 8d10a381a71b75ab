"""Runs: when one starts, what comes next, how it ends.

Room: operator/domain. Pure. One run at a time; a run makes at most one version.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from ratchet_api.cycle import (
    HistoryEntry,
    ImprovementCycleSpec,
    ImprovementCycleStatus,
    RunOutcome,
    RunStatus,
)
from ratchet_api.names import version_name
from ratchet_api.reasons import Reason
from ratchet_api.stage import StageReport
from ratchet_operator.domain import schedule
from ratchet_operator.domain.phases import Remark


@dataclass(frozen=True)
class RunVersion:
    """The run's version, as far as the run cares."""

    uid: str
    trained: bool = False
    accepted: bool = False
    rejected: Remark | None = None
    """Why it is rejected: by the gate, by its rollout, or as a digest that was rejected before."""
    failed: Remark | None = None
    in_rollout: bool = False
    """Its rollout has ended, or is being taken back."""
    unapproved: Remark | None = None
    """Accepted, but nobody approved its rollout in time."""
    awaits_pointer: bool = False
    """serving.version names another version, so it is not rolled out before a person says so."""


def active(run: RunStatus | None) -> bool:
    """Whether a run is going on."""
    return run is not None and run.finished_at is None


def start(
    cycle: str,
    spec: ImprovementCycleSpec,
    status: ImprovementCycleStatus,
    request: str,
    created_at: datetime,
    versions: Iterable[str],
    now: datetime,
) -> RunStatus | None:
    """The run that begins now, if one does. Raises ValueError (a sentence) for a schedule that cannot be followed.

    `request`: value of the annotation ratchet.dev/run, empty when absent. `versions`: names that are taken.
    """
    last = status.run
    if spec.suspend or active(last):
        return None
    taken = last.request if last is not None else ""
    asked = bool(request) and request != taken
    if not asked and not _due(spec, status, created_at, now):
        return None
    number = _next_number(cycle, last, versions)
    return RunStatus(number=number, stage="Curating", request=request if asked else taken, started_at=now)


def _due(spec: ImprovementCycleSpec, status: ImprovementCycleStatus, created_at: datetime, now: datetime) -> bool:
    last = status.run.started_at if status.run is not None else created_at
    return schedule.due(spec.trigger, last, now, _rejected_at(status))


def _rejected_at(status: ImprovementCycleStatus) -> datetime | None:
    return max((entry.at for entry in status.rejected), default=None)


def next_run_time(
    spec: ImprovementCycleSpec, status: ImprovementCycleStatus, created_at: datetime, now: datetime
) -> datetime | None:
    """When the schedule starts the next run; None without one, or while suspended. Raises ValueError like `start`."""
    if spec.suspend:
        return None
    rejected_at = _rejected_at(status)
    not_before = rejected_at + spec.trigger.cooldown if rejected_at is not None else None
    last = status.run.started_at if status.run is not None else created_at
    following = schedule.next_run(spec.trigger, last, not_before)
    if following is not None and following < now:
        # It is due already and starts as soon as the present run has ended; what people want to see is the one after.
        following = schedule.next_run(spec.trigger, now, not_before)
    return following


def _next_number(cycle: str, last: RunStatus | None, versions: Iterable[str]) -> int:
    taken = set(versions)
    number = (last.number if last is not None else 0) + 1
    while version_name(cycle, number) in taken:
        number += 1
    return number


def curated(run: RunStatus, cycle: str, report: StageReport, now: datetime) -> RunStatus:
    """After the curate stage: Skipped, or on to the version."""
    if report.outcome == "Skipped" or report.dataset is None:
        run = run.model_copy(update={"dataset": report.dataset})
        return finished(run, "Skipped", report.message, now)
    version = version_name(cycle, run.number)
    return run.model_copy(update={"dataset": report.dataset, "stage": "Training", "version": version})


def follow(run: RunStatus, version: RunVersion | None, now: datetime) -> RunStatus:
    """After the curate stage: where the run's version has brought it. `version` None: there is no such object.

    How a rollout ended is not asked here: see `rolled_out`.
    """
    if run.finished_at is not None or run.stage == "Curating":
        return run
    if version is None:
        if run.version_uid is None:
            return run
        return finished(run, "Failed", f"the version {run.version} was deleted", now)
    run = run.model_copy(update={"version_uid": version.uid})
    if version.failed is not None:
        return finished(run, "Failed", version.failed.message, now)
    if version.in_rollout:
        return run.model_copy(update={"stage": "RollingOut"})
    if version.rejected is not None:
        return finished(run, "GateRejected", version.rejected.message, now)
    if version.accepted and version.unapproved is not None:
        return finished(run, "Returned", version.unapproved.message, now)
    if version.accepted and version.awaits_pointer:
        return finished(run, "Accepted", f"{run.version} is accepted and waits for serving.version", now)
    if version.accepted:
        return run.model_copy(update={"stage": "RollingOut"})
    # Once trained is always trained, also in the eyes of a pass that read its version a moment too early.
    trained = version.trained or run.stage in ("Evaluating", "RollingOut")
    return run.model_copy(update={"stage": "Evaluating" if trained else "Training"})


def rolled_out(run: RunStatus, outcome: RunOutcome, message: str, now: datetime) -> RunStatus:
    """The rollout of the run's version has ended."""
    return run if run.finished_at is not None else finished(run, outcome, message, now)


def finished(run: RunStatus, outcome: RunOutcome, message: str, now: datetime) -> RunStatus:
    """The run has ended; terminal."""
    if run.finished_at is not None:
        return run
    return run.model_copy(update={"stage": "Done", "finished_at": now, "outcome": outcome, "message": message})


def recorded(status: ImprovementCycleStatus, spec: ImprovementCycleSpec, run: RunStatus) -> ImprovementCycleStatus:
    """The status with a run that ended without a rollout in its history."""
    if run.outcome is None or run.finished_at is None:
        return status
    entry = HistoryEntry(
        version=run.version or "", run=run.number, outcome=run.outcome, message=run.message, at=run.finished_at
    )
    if any(old.run == entry.run and old.outcome == entry.outcome for old in status.history):
        return status
    return status.model_copy(update={"history": [*status.history, entry][-spec.history_limit :]})


def event(run: RunStatus, why: Reason | None = None) -> tuple[Reason, str, bool]:
    """(reason, sentence, whether it is a warning) of a run that has ended; `why` is the reason of a failure."""
    match run.outcome:
        case "Skipped":
            return Reason.SKIPPED, f"run {run.number} was skipped: {run.message}", False
        case "Accepted":
            return Reason.AWAITING_POINTER, f"run {run.number}: {run.message}", False
        case "Promoted":
            return Reason.PROMOTED, f"run {run.number} made {run.version} champion", False
        case "GateRejected":
            return why or Reason.NOT_BETTER, f"run {run.number}: {run.version} was rejected: {run.message}", True
        case "RolledBack" | "Returned":
            return why or Reason.CHECK_FAILED, f"run {run.number}: {run.version} was taken back: {run.message}", True
        case "Failed" | None:
            return why or Reason.INTERNAL_ERROR, f"run {run.number} failed: {run.message}", True
