"""curation.parallelism: several pods of one Indexed Job; one of them reports for all, and one may fail for all."""

from datetime import UTC, datetime
from typing import Any

import pytest
from operator_stories import serving
from operator_world import JSON, World, curated, terminated

from ratchet_api.stage import ExitCode, StageReport
from ratchet_api.version import Attempts
from ratchet_operator.clients.objects import Job, Pod
from ratchet_operator.reconcile.jobs import INDEX_LABEL, seen

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
PART: JSON = {"stage": "curate", "outcome": "Succeeded", "reason": "Succeeded", "partial": True, "message": "shard 1"}
CURATE = "assistant-1-curate-0"
EVICTED = {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}]}


def said(report: JSON) -> str:
    return StageReport.model_validate(report).encode().decode()


def job(condition: str) -> Job:
    entry = {"type": condition, "status": "True", "reason": "", "message": "Job has failed"}
    return Job.model_validate({"metadata": {"name": "j", "uid": "u"}, "status": {"conditions": [entry]}})


def worker(index: int, code: int | None, message: str = "", second: int = 0, **status: Any) -> Pod:
    end: JSON = {"exitCode": code, "reason": "x", "message": message, "finishedAt": f"2026-11-22T11:30:{second:02}Z"}
    states: list[JSON] = [{"name": "stage", "state": {"terminated": end}}] if code is not None else []
    phase = "Running" if code is None else "Succeeded" if code == 0 else "Failed"
    meta = {
        "name": f"p-{index}", "labels": {INDEX_LABEL: str(index)}, "creationTimestamp": f"2026-11-22T11:00:{index:02}Z",
    }  # fmt: skip
    return Pod.model_validate({"metadata": meta, "status": {"phase": phase, "containerStatuses": states} | status})


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_the_report_is_the_one_that_is_not_partial(order: tuple[int, ...]) -> None:
    pods = [worker(0, 0, said(PART)), worker(1, 0, said(curated())), worker(2, 0, said(PART))]
    found = seen(job("Complete"), [pods[index] for index in order], NOW)
    assert (found.outcome, found.pod_gone) == ("Complete", False)
    assert found.report == StageReport.model_validate(curated())


def test_a_report_whose_pod_is_gone_is_not_there() -> None:
    found = seen(job("Complete"), [worker(0, 0, said(PART))], NOW)
    assert (found.outcome, found.report, found.pod_gone) == ("Complete", None, True), "which is tried again"


def test_a_list_in_which_one_still_works_is_older_than_its_job() -> None:
    assert seen(job("Complete"), [worker(0, 0, said(PART)), worker(1, None)], NOW).outcome == "Running"
    lost = worker(2, None, phase="Failed", **EVICTED)
    ended = seen(job("Complete"), [worker(0, 0, said(PART)), worker(1, 0, said(curated())), lost], NOW)
    assert ended.report is not None


def test_a_failure_is_the_worker_s_whose_own_it_was() -> None:
    """Kubernetes ends the others then, and one may have been evicted before: neither is the cause."""
    pods = [
        worker(0, ExitCode.PREEMPTED, second=3), worker(1, ExitCode.DATA_ERROR, "torn", second=2),
        worker(2, ExitCode.PREEMPTED, second=1, **EVICTED), worker(3, 0, said(PART)),
    ]  # fmt: skip
    found = seen(job("Failed"), pods, NOW)
    assert (found.exit_code, found.message, found.disruption) == (65, "exit code 65 (x): torn", False)
    lost = seen(job("Failed"), [worker(0, ExitCode.PREEMPTED), worker(1, ExitCode.TRY_AGAIN, second=9)], NOW)
    assert lost.exit_code == ExitCode.TRY_AGAIN


async def workers(world: World, count: int) -> dict[str, Pod]:
    """By index, those that go on, once there are so many."""
    there: dict[str, Pod] = {}

    async def made() -> bool:
        found = await world.pods(**{"batch.kubernetes.io/job-name": CURATE})
        goes_on = [pod for pod in found if pod.status.phase not in ("Succeeded", "Failed")]
        there.clear()
        there.update({pod.metadata.labels[INDEX_LABEL]: pod for pod in goes_on})
        return len(there) == count

    await world.until(made)
    return there


@pytest.mark.apiserver
async def test_an_indexed_job_with_one_eviction(world: World) -> None:
    """On the real API server and its Job controller."""
    await serving(world, curation={"parallelism": 3})
    await world.annotate("run", "now")
    await world.settle()
    there = await workers(world, 3)
    first = there["0"].metadata.name
    environment = (await world.raw.request("get", f"/api/v1/namespaces/{world.namespace}/pods/{first}"))["spec"]
    names = [entry["name"] for entry in environment["containers"][0]["env"]]
    assert "JOB_COMPLETION_INDEX" in names, "what tells a worker its number"

    await world.pod_status(there["2"].metadata.name, terminated("stage", ExitCode.PREEMPTED, **EVICTED))
    await world.pod_status(there["0"].metadata.name, terminated("stage", 0, said(PART)))

    async def another() -> bool:
        await world.settle()
        now = await world.pods(**{"batch.kubernetes.io/job-name": CURATE, INDEX_LABEL: "2"})
        return any(pod.status.phase == "Pending" for pod in now)

    await world.until(another)
    there = await workers(world, 2)
    await world.pod_status(there["2"].metadata.name, terminated("stage", 0, said(curated())))
    await world.settle()
    run = (await world.cycle()).status.run
    assert run is not None
    assert run.dataset is None, "not before all have ended"
    await world.pod_status(there["1"].metadata.name, terminated("stage", 0, said(PART)))

    async def curated_is() -> bool:
        run = (await world.cycle()).status.run
        return run is not None and run.dataset is not None

    await world.until(curated_is)
    run = (await world.cycle()).status.run
    assert run is not None
    assert run.curate is not None
    assert (run.curate.job, run.curate.attempts) == (CURATE, Attempts())
