"""The life of one stage: planned, created, running, ended, tried again.

Room: operator/domain. Pure. The stage's status belongs to its owner (a cycle's run or a version) and survives its
Jobs; what is seen of the present Job arrives here as JobSeen.

    no job ----> job planned (name written) ----> created (uid written) ----> finished_at
       ^  retry_at                                    |
       +----------------------------------------------+  failed, and may be tried again
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

from ratchet_api.reasons import Reason
from ratchet_api.stage import StageReport
from ratchet_api.version import LEFT_LIMIT, Attempts, LeftTrainJob, StageStatus
from ratchet_operator.domain.phases import Remark
from ratchet_operator.domain.retries import FailureClass, GiveUp, classify, next_attempt

MISSING = frozenset(
    {
        Reason.MISSING_SECRET,
        Reason.MISSING_CONFIG_MAP,
        Reason.MISSING_BUCKET,
        Reason.MISSING_BASE_MODEL,
        Reason.MISSING_DATASET,
        Reason.MISSING_SUITE,
        Reason.MISSING_ADAPTER,
    }
)
"""Reasons for which a stage is tried again for as long as it takes, ever slower: what is missing may still come."""
MISSING_DELAYS = tuple(timedelta(seconds=seconds) for seconds in (5, 10, 20, 40, 80, 160, 300))

SETTLED = timedelta(seconds=20)
"""A stage that found something missing has found it by now when it has run for so long."""


@dataclass(frozen=True)
class JobSeen:
    """What is seen of a stage's present Job and its pod."""

    uid: str
    outcome: Literal["Running", "Complete", "Failed"] = "Running"
    pod_gone: bool = False
    """The Job has ended, and its pod, which held the report, is not there any more."""
    exit_code: int | None = None
    """Of the stage's container; None: it never ran, or is gone."""
    oom_killed: bool = False
    disruption: bool = False
    """The pod had to give way."""
    deadline: bool = False
    """The Job ran into its deadline."""
    report: StageReport | None = None
    """Termination message, if it is a report."""
    waiting: Remark | None = None
    """Why the pod does not run yet, when that is worth saying (unschedulable, image, missing ConfigMap)."""
    running_since: datetime | None = None
    """When its containers were started."""
    message: str = ""
    """Kubernetes' own words about a failure."""


@dataclass(frozen=True)
class StageMove:
    """What follows: write `status`, then create its Job if `status.job` has none."""

    status: StageStatus
    done: StageReport | None = None
    """The stage has ended well, with this report (outcome Succeeded or Skipped)."""
    failed: Remark | None = None
    """The stage has failed for good."""
    retried: Remark | None = None
    """An attempt failed just now, and there will be another one."""
    waiting: Remark | None = None
    """Said while it goes on: why its pod does not run."""
    stalled: Remark | None = None
    """Something that the spec names is missing."""
    wake_at: datetime | None = None
    """When to look again, if nothing happens before."""


Launcher = Literal["Job", "TrainJob"]


def planned(
    status: StageStatus | None,
    stage: Literal["curate", "train", "evaluate", "export"],
    job: str,
    input_uid: str,
    launcher: Launcher = "Job",
) -> StageStatus:
    """The stage's status with `job`, an object of the kind `launcher`, as its present Job, which the ConfigMap with
    `input_uid` owns."""
    status = status or StageStatus(stage=stage)
    fields = {"job": job, "input_uid": input_uid, "launcher": launcher, "job_uid": None, "retry_at": None}
    return status.model_copy(update=fields)


def expired(status: StageStatus, ttl: timedelta, now: datetime) -> tuple[list[str], datetime | None]:
    """TrainJobs that were kept for `ttl` after their end, and when the next one will have been."""
    by_age = sorted(status.left, key=lambda left: left.ended_at)
    over = [left.name for left in by_age if left.ended_at + ttl <= now]
    return over, by_age[len(over)].ended_at + ttl if len(over) < len(by_age) else None


def removed(status: StageStatus, names: Iterable[str]) -> StageStatus:
    """The status without TrainJobs that are there no more."""
    gone = set(names)
    return status.model_copy(update={"left": [left for left in status.left if left.name not in gone]})


def advance(status: StageStatus, seen: JobSeen | None, now: datetime, *, shrinkable: bool = True) -> StageMove:
    """The next move of a stage whose Job is planned; total, and harmless when repeated.

    `seen` None: there is no Job of that name. `shrinkable`: whether it could run with less memory.
    """
    move = _advance(status, seen, now, shrinkable)
    if status.job is None or status.launcher != "TrainJob" or (seen is None and status.job_uid is None):
        return move
    if status.finished_at is not None or (move.status.job is not None and move.status.finished_at is None):
        return move
    # More of them than can be written down are more than anybody reads: the oldest ones are forgotten, and go with
    # their version.
    left = [*status.left, LeftTrainJob(name=status.job, ended_at=now)][-LEFT_LIMIT:]
    return replace(move, status=move.status.model_copy(update={"left": left}))


def _advance(status: StageStatus, seen: JobSeen | None, now: datetime, shrinkable: bool) -> StageMove:
    if status.finished_at is not None:
        return StageMove(status)
    if status.job is None:
        return StageMove(status, stalled=_stalled(status), waiting=_last_failure(status), wake_at=status.retry_at)
    if seen is None:
        if status.job_uid is None:
            return StageMove(status, stalled=_stalled(status))
        gone = Remark(
            Reason.INFRASTRUCTURE_ERROR, f"the {status.launcher} {status.job} was deleted before it had ended"
        )
        return _failed(status, FailureClass.INFRASTRUCTURE, gone, now, shrinkable)
    status = _noted(status, seen, now)
    if seen.outcome == "Running":
        return _running(status, seen, now)
    if seen.outcome == "Complete":
        return _completed(status, seen, now, shrinkable)
    return _ended_badly(status, seen, now, shrinkable)


def events(name: str, move: StageMove) -> list[tuple[bool, Reason, str]]:
    """What is to be said of a move, as warnings: that the stage `name` is tried again, or has failed for good."""
    said = []
    if move.retried is not None:
        said.append((True, move.retried.reason, f"{name} is tried again: {move.retried.message}"))
    if move.failed is not None:
        said.append((True, move.failed.reason, f"{name} failed: {move.failed.message}"))
    return said


def retry_due(status: StageStatus, now: datetime) -> bool:
    """Whether the next attempt may be planned now."""
    if status.finished_at is not None or status.job is not None:
        return False
    return status.retry_at is None or now >= status.retry_at


def _noted(status: StageStatus, seen: JobSeen, now: datetime) -> StageStatus:
    if status.job_uid == seen.uid:
        return status
    return status.model_copy(update={"job_uid": seen.uid, "started_at": status.started_at or now})


def _running(status: StageStatus, seen: JobSeen, now: datetime) -> StageMove:
    settled = seen.running_since + SETTLED if seen.running_since is not None else None
    over = settled is not None and now >= settled
    stalled = None if over or seen.waiting is not None else _stalled(status)
    return StageMove(status, waiting=seen.waiting, stalled=stalled, wake_at=settled if stalled is not None else None)


def _completed(status: StageStatus, seen: JobSeen, now: datetime, shrinkable: bool) -> StageMove:
    report = seen.report
    if report is not None and report.stage == status.stage and report.outcome != "Failed":
        done = status.model_copy(update={"finished_at": now, "reason": "", "message": ""})
        return StageMove(done, done=report)
    if seen.pod_gone:
        text = f"the {status.launcher} {status.job} has ended, but its pod and with it the report is gone"
        return _failed(status, FailureClass.INFRASTRUCTURE, Remark(Reason.INFRASTRUCTURE_ERROR, text), now, shrinkable)
    text = f"the {status.launcher} {status.job} has ended without a report of the stage {status.stage}"
    return _failed(status, FailureClass.BUG, Remark(Reason.INTERNAL_ERROR, text), now, shrinkable)


def _ended_badly(status: StageStatus, seen: JobSeen, now: datetime, shrinkable: bool) -> StageMove:
    failure = classify(seen.exit_code, oom_killed=seen.oom_killed, disruption=seen.disruption, deadline=seen.deadline)
    report = seen.report
    if report is not None and report.reason in MISSING:
        return _missing(status, Remark(Reason(report.reason), report.message), now)
    said = report.message if report is not None and report.message else seen.message
    reason = _known(report.reason) if report is not None else None
    return _failed(status, failure, Remark(reason or _REASONS[failure], said), now, shrinkable)


_REASONS = {
    FailureClass.USER: Reason.USER_ERROR,
    FailureClass.DATA: Reason.DATA_ERROR,
    FailureClass.OUT_OF_MEMORY: Reason.OUT_OF_MEMORY,
    FailureClass.INFRASTRUCTURE: Reason.INFRASTRUCTURE_ERROR,
    FailureClass.PREEMPTED: Reason.PREEMPTED,
    FailureClass.DEADLINE: Reason.DEADLINE_EXCEEDED,
    FailureClass.BUG: Reason.INTERNAL_ERROR,
}


def _known(reason: str) -> Reason | None:
    try:
        return Reason(reason)
    except ValueError:
        return None


def _failed(status: StageStatus, failure: FailureClass, why: Remark, now: datetime, shrinkable: bool) -> StageMove:
    following = next_attempt(status.attempts, failure, shrinkable=shrinkable)
    if isinstance(following, GiveUp):
        text = f"{why.message.rstrip('.')} ({following.message})" if why.message else following.message
        # DigestMismatch says more than DataError; the class's own reason is the fallback.
        reason = why.reason if failure in (FailureClass.USER, FailureClass.DATA) else following.reason
        ended = status.model_copy(update={"finished_at": now, "reason": str(reason), "message": text})
        return StageMove(ended, failed=Remark(reason, text))
    retry_at = now + following.delay
    return StageMove(_again(status, following.attempts, why, retry_at), retried=why, waiting=why, wake_at=retry_at)


def _missing(status: StageStatus, why: Remark, now: datetime) -> StageMove:
    missing = status.attempts.missing
    retry_at = now + MISSING_DELAYS[min(missing, len(MISSING_DELAYS) - 1)]
    attempts = status.attempts.model_copy(update={"missing": missing + 1})
    return StageMove(_again(status, attempts, why, retry_at), retried=why, stalled=why, wake_at=retry_at)


def _again(status: StageStatus, attempts: Attempts, why: Remark, retry_at: datetime) -> StageStatus:
    """The status between two attempts."""
    return status.model_copy(
        update={
            "job": None,
            "input_uid": None,
            "job_uid": None,
            "attempts": attempts,
            "retry_at": retry_at,
            "reason": str(why.reason),
            "message": why.message,
        }
    )


def _last_failure(status: StageStatus) -> Remark | None:
    reason = _known(status.reason)
    return None if reason is None or reason in MISSING else Remark(reason, status.message)


def _stalled(status: StageStatus) -> Remark | None:
    """What was missing the last time stays said until an attempt got further."""
    reason = _known(status.reason)
    return Remark(reason, status.message) if reason is not None and reason in MISSING else None
