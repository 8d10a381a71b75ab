"""The life of a stage as tables: what is seen of its Job, and what follows. No cluster."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratchet_api.reasons import Reason
from ratchet_api.stage import StageReport
from ratchet_api.version import Attempts, StageStatus
from ratchet_operator.clients.objects import Job, Pod
from ratchet_operator.domain.phases import Remark
from ratchet_operator.domain.stages import MISSING, JobSeen, advance, planned, retry_due
from ratchet_operator.reconcile.jobs import seen, waiting

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
RUNS = StageStatus(stage="train", job="v-train-0", job_uid="u", started_at=NOW)
GOOD = StageReport(stage="train", outcome="Succeeded", reason="Succeeded")


def bad(reason: str, message: str = "words") -> StageReport:
    return StageReport(stage="train", outcome="Failed", reason=reason, message=message)


def job_failed(**facts: Any) -> JobSeen:
    return JobSeen("u", "Failed", **facts)


def test_a_job_is_planned_before_it_is_made() -> None:
    status = planned(None, "train", "v-train-0", "c")
    assert (status.job, status.job_uid, status.started_at) == ("v-train-0", None, None)
    move = advance(status, None, NOW)
    assert move.status == status, "no Job yet: it is made, not missed"


def test_a_job_that_is_seen_is_remembered() -> None:
    move = advance(planned(None, "train", "v-train-0", "c"), JobSeen("u"), NOW)
    assert (move.status.job_uid, move.status.started_at) == ("u", NOW)
    assert advance(move.status, JobSeen("u"), NOW + timedelta(hours=1)).status == move.status


def test_done() -> None:
    move = advance(RUNS, JobSeen("u", "Complete", exit_code=0, report=GOOD), NOW)
    assert move.done == GOOD
    assert move.status.finished_at == NOW
    assert not move.status.reason


@pytest.mark.parametrize("gone", [None, JobSeen("other"), job_failed(exit_code=70)])
def test_terminal_is_terminal(gone: JobSeen | None) -> None:
    ended = RUNS.model_copy(update={"finished_at": NOW})
    move = advance(ended, gone, NOW + timedelta(days=1))
    assert move.status == ended
    assert (move.done, move.failed, move.retried) == (None, None, None)


# (case, what is seen, final reason or the counter that grew)
FAILURES: list[tuple[str, JobSeen | None, str]] = [
    ("bad settings", job_failed(exit_code=64, report=bad("UserError")), "UserError"),
    ("bad data", job_failed(exit_code=65, report=bad("DataError")), "DataError"),
    ("a changed byte", job_failed(exit_code=65, report=bad("DigestMismatch")), "DigestMismatch"),
    ("a bug", job_failed(exit_code=70), "InternalError"),
    ("an unknown exit code", job_failed(exit_code=1), "InternalError"),
    ("a deadline", job_failed(exit_code=143, deadline=True), "DeadlineExceeded"),
    ("no report at all", JobSeen("u", "Complete", exit_code=0), "InternalError"),
    ("another stage's report", JobSeen("u", "Complete", exit_code=0, report=GOOD.model_copy(
        update={"stage": "evaluate"})), "InternalError"),
    ("storage is away", job_failed(exit_code=75, report=bad("InfrastructureError")), "infrastructure"),
    ("the Job is gone", None, "infrastructure"),
    ("the pod is gone with the report", JobSeen("u", "Complete", pod_gone=True), "infrastructure"),
    ("the node is gone", job_failed(pod_gone=True), "infrastructure"),
    ("out of memory", job_failed(exit_code=137, oom_killed=True), "out_of_memory"),
    ("preempted", job_failed(exit_code=143, disruption=True), "preempted"),
    ("no bucket", job_failed(exit_code=64, report=bad("MissingBucket")), "missing"),
    ("no suite", job_failed(exit_code=64, report=bad("MissingSuite")), "missing"),
    ("no dataset", job_failed(exit_code=64, report=bad("MissingDataset")), "missing"),
]  # fmt: skip


@pytest.mark.parametrize(("case", "what", "follows"), FAILURES, ids=[case[0] for case in FAILURES])
def test_failures(case: str, what: JobSeen | None, follows: str) -> None:
    move = advance(RUNS, what, NOW)
    assert move.done is None
    if follows in Attempts.model_fields:
        assert getattr(move.status.attempts, follows) == 1
        assert move.status.attempts.total == 1
        assert (move.status.job, move.status.job_uid, move.status.finished_at) == (None, None, None)
        assert move.retried is not None
        assert move.wake_at == move.status.retry_at
    else:
        assert move.failed is not None
        assert move.failed.reason == follows
        assert move.status.finished_at == NOW
        assert move.status.reason == follows


@pytest.mark.parametrize(("case", "what", "follows"), FAILURES, ids=[case[0] for case in FAILURES])
def test_a_failure_seen_twice_counts_once(case: str, what: JobSeen | None, follows: str) -> None:
    """A crash before the write: the same is decided again. After it: nothing more."""
    once = advance(RUNS, what, NOW)
    assert advance(RUNS, what, NOW) == once
    assert advance(once.status, what, NOW).status == once.status


def test_retries_end() -> None:
    status, tries = RUNS, 0
    while status.finished_at is None:
        tries += 1
        move = advance(status, job_failed(exit_code=75), NOW)
        status = move.status
        if status.finished_at is None:
            status = planned(status, "train", f"v-train-{tries}", "c").model_copy(update={"job_uid": "u"})
        assert tries < 10
    assert tries == 4, "one attempt, and three more"


def test_out_of_memory_without_anything_to_shrink_is_final() -> None:
    move = advance(RUNS, job_failed(exit_code=137, oom_killed=True), NOW, shrinkable=False)
    assert move.failed is not None
    assert move.failed.reason is Reason.OUT_OF_MEMORY


def test_what_is_missing_is_looked_for_ever_slower_and_for_ever() -> None:
    status, delays = RUNS, []
    for _ in range(20):
        move = advance(status, job_failed(exit_code=64, report=bad("MissingBaseModel")), NOW)
        assert move.stalled == Remark(Reason.MISSING_BASE_MODEL, "words")
        assert move.status.retry_at is not None
        delays.append((move.status.retry_at - NOW).total_seconds())
        status = planned(move.status, "train", "next", "c").model_copy(update={"job_uid": "u"})
    assert delays == sorted(delays)
    assert delays[0] == 5
    assert delays[-1] == 300


def test_missing_stays_said_until_an_attempt_got_further() -> None:
    status = planned(RUNS.model_copy(update={"reason": "MissingBucket", "message": "words"}), "train", "next", "c")
    starts = JobSeen("u2", running_since=NOW)
    assert advance(status, None, NOW).stalled is not None
    assert advance(status, JobSeen("u2"), NOW).stalled is not None
    early = advance(status, starts, NOW + timedelta(seconds=5))
    assert early.stalled is not None
    assert early.wake_at is not None
    assert advance(status, starts, NOW + timedelta(seconds=30)).stalled is None


def test_an_attempt_is_due_at_its_time() -> None:
    waits = RUNS.model_copy(update={"job": None, "retry_at": NOW + timedelta(seconds=10)})
    assert not retry_due(waits, NOW)
    assert retry_due(waits, NOW + timedelta(seconds=10))
    assert not retry_due(RUNS, NOW), "it runs"
    assert not retry_due(waits.model_copy(update={"finished_at": NOW}), NOW + timedelta(days=1))


def test_a_job_in_the_way_is_said() -> None:
    why = Remark(Reason.UNSCHEDULABLE, "no node")
    assert advance(RUNS, JobSeen("u", waiting=why), NOW).waiting == why


reports = st.one_of(
    st.none(),
    st.builds(
        StageReport,
        stage=st.sampled_from(["curate", "train", "evaluate"]),
        outcome=st.sampled_from(["Succeeded", "Skipped", "Failed"]),
        reason=st.sampled_from([*[str(r) for r in Reason], "Unheard"]),
        message=st.text(max_size=20),
    ),
)
sights = st.one_of(
    st.none(),
    st.builds(
        JobSeen,
        uid=st.sampled_from(["u", "w"]),
        outcome=st.sampled_from(["Running", "Complete", "Failed"]),
        pod_gone=st.booleans(),
        exit_code=st.one_of(st.none(), st.integers(0, 255)),
        oom_killed=st.booleans(),
        disruption=st.booleans(),
        deadline=st.booleans(),
        report=reports,
        message=st.text(max_size=20),
    ),
)
statuses = st.builds(
    StageStatus,
    stage=st.just("train"),
    job=st.one_of(st.none(), st.just("v-train-0")),
    job_uid=st.one_of(st.none(), st.just("u")),
    attempts=st.builds(Attempts, infrastructure=st.integers(0, 4), missing=st.integers(0, 9)),
    finished_at=st.one_of(st.none(), st.just(NOW)),
    retry_at=st.one_of(st.none(), st.just(NOW)),
    reason=st.sampled_from(["", "MissingBucket", "UserError", "Unheard"]),
)


@given(statuses, sights, st.booleans())
def test_advance_is_total_and_says_one_thing(status: StageStatus, what: JobSeen | None, shrinkable: bool) -> None:
    move = advance(status, what, NOW, shrinkable=shrinkable)
    assert sum(thing is not None for thing in (move.done, move.failed, move.retried)) <= 1
    assert move.status.attempts.total >= status.attempts.total
    if status.finished_at is not None:
        assert move.status == status
    if move.done is not None:
        assert what is not None
        assert what.outcome == "Complete"
    if move.stalled is not None:
        assert move.stalled.reason in MISSING
    assert StageStatus.model_validate(move.status.dump()) == move.status


# What Kubernetes shows, as JobSeen


def job(condition: str = "", reason: str = "", message: str = "") -> Job:
    entry = {"type": condition, "status": "True", "reason": reason, "message": message}
    return Job.model_validate({"metadata": {"name": "j", "uid": "u"}, "status": {"conditions": [entry]}})


def pod(name: str = "p", minute: int = 0, **status: Any) -> Pod:
    meta = {"name": name, "creationTimestamp": f"2026-11-22T11:{minute:02}:00Z"}
    return Pod.model_validate({"metadata": meta, "status": status})


def ended(code: int, message: str = "", reason: str = "Error") -> list[dict[str, Any]]:
    return [{"name": "stage", "state": {"terminated": {"exitCode": code, "reason": reason, "message": message}}}]


def test_a_report_is_read_from_the_pod_that_ended_well() -> None:
    text = GOOD.encode().decode()
    pods = [pod("first", containerStatuses=ended(0, text)), pod("second", 1)]
    assert seen(job("Complete"), pods, NOW) == JobSeen("u", "Complete", exit_code=0, report=GOOD)


def test_a_list_of_pods_older_than_its_job_says_nothing_of_the_end() -> None:
    """A Job is complete because its pod is; without this, a good training would have ended without a report."""
    still = pod(containerStatuses=[{"name": "stage", "state": {"running": {"startedAt": "2026-11-22T11:00:00Z"}}}])
    assert seen(job("Complete"), [still], NOW).outcome == "Running"
    assert seen(job("Complete"), [], NOW).pod_gone


@pytest.mark.parametrize("text", ["", "{", "Traceback ...", '{"stage": "bake"}', "\x00"])
def test_what_is_no_report_is_none(text: str) -> None:
    assert seen(job("Complete"), [pod(containerStatuses=ended(0, text))], NOW).report is None


def test_the_latest_pod_speaks_of_a_failure() -> None:
    pods = [pod("old", 0, containerStatuses=ended(75)), pod("new", 1, containerStatuses=ended(65, "torn line"))]
    found = seen(job("Failed", message="Job has failed"), pods, NOW)
    assert (found.exit_code, found.message) == (65, "exit code 65: torn line")


def test_a_kill_for_memory_is_told_from_a_kill() -> None:
    killed = seen(job("Failed"), [pod(containerStatuses=ended(137, reason="OOMKilled"))], NOW)
    assert killed.oom_killed
    assert killed.message == "exit code 137 (OOMKilled)"
    assert not seen(job("Failed"), [pod(containerStatuses=ended(137))], NOW).oom_killed


def test_a_disruption_is_known_from_the_pod_or_from_the_job() -> None:
    condition = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}
    assert seen(job("Failed"), [pod(containerStatuses=ended(143), conditions=[condition])], NOW).disruption
    said = "Pod default/p has condition DisruptionTarget matching FailJob rule at index 0"
    gone = seen(job("Failed", "PodFailurePolicy", said), [], NOW)
    assert gone.disruption
    assert gone.pod_gone


def test_a_deadline_is_the_job_s() -> None:
    assert seen(job("Failed", "DeadlineExceeded"), [], NOW).deadline


def unscheduled(since: datetime) -> Pod:
    condition = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.",
        "lastTransitionTime": since.isoformat().replace("+00:00", "Z"),
    }
    return pod(conditions=[condition])


def test_unschedulable_is_said_after_a_while() -> None:
    assert waiting(unscheduled(NOW - timedelta(seconds=5)), NOW) is None
    said = waiting(unscheduled(NOW - timedelta(seconds=11)), NOW)
    assert said is not None
    assert said.reason is Reason.UNSCHEDULABLE
    assert "Insufficient nvidia.com/gpu" in said.message


@pytest.mark.parametrize("reason", ["ErrImagePull", "ImagePullBackOff", "CreateContainerConfigError"])
def test_a_pod_that_cannot_start_says_why(reason: str) -> None:
    state = {"name": "stage", "state": {"waiting": {"reason": reason, "message": "no such thing"}}}
    said = waiting(pod(containerStatuses=[state]), NOW)
    assert said is not None
    assert "no such thing" in said.message


def test_job_seen_is_a_value() -> None:
    assert replace(JobSeen("u"), outcome="Failed") == JobSeen("u", "Failed")
