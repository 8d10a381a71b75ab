"""A train stage's TrainJob in the cluster: what is seen of it and its pods, what it lacks, and its end.

Room: operator, reconcile. The pods are those of reconcile.jobs, several of them. The report is the termination message
of node 0, which leads; when the TrainJob fails, what counts is the node whose own fault it was.
"""

from datetime import datetime
from typing import TYPE_CHECKING

from ratchet_api.cycle import ImprovementCycle
from ratchet_api.reasons import Reason
from ratchet_operator.clients.kube import Kube
from ratchet_operator.clients.objects import ConfigMap, Pod, TrainJob
from ratchet_operator.domain import stages
from ratchet_operator.domain.phases import Remark
from ratchet_operator.domain.stages import JobSeen
from ratchet_operator.errors import Forbidden
from ratchet_operator.manifests.trainjobs import NODE, OWNER_LABEL
from ratchet_operator.reconcile import jobs

if TYPE_CHECKING:
    from ratchet_operator.reconcile.version import VersionPass


async def observe(kube: Kube, namespace: str, name: str, input_uid: str, now: datetime) -> JobSeen | None:
    """The TrainJob and its pods; None when there is none that this ConfigMap owns."""
    found = await kube.get(TrainJob, namespace, name)
    if found is None or not found.metadata.owned_by(input_uid):
        return None
    of = f"jobset.sigs.k8s.io/jobset-name={name},{OWNER_LABEL}={input_uid}"
    return seen(found, await kube.select(Pod, namespace, of), now)


def seen(found: TrainJob, pods: list[Pod], now: datetime) -> JobSeen:
    """A TrainJob and its pods as the domain sees them."""
    uid, failed = found.metadata.uid, found.condition("Failed")
    leaders = [pod for pod in pods if pod.metadata.labels.get(jobs.INDEX_LABEL) == "0"]
    leader = max(leaders, key=jobs.age, default=None)
    if failed is None and found.condition("Complete") is None:
        if found.spec.suspend:
            return JobSeen(uid, waiting=jobs.suspended("trainjob", found))
        said = (why for pod in sorted(pods, key=jobs.age, reverse=True) if (why := jobs.waiting(pod, now)) is not None)
        why = next(said, None) if pods else jobs.podless("trainjob", found, now)
        return JobSeen(uid, waiting=why, running_since=jobs.running_since(leader))
    ended = [status for pod in pods for status in jobs.main(pod, NODE) if status.ended is not None]
    if failed is None:
        mine = [status for pod in leaders for status in jobs.main(pod, NODE) if status.ended is not None]
        if leader is not None and not mine:
            # It is complete because its pods are: this list of pods is older, and brings no report yet.
            return JobSeen(uid, running_since=jobs.running_since(leader))
        good = next((one for one in mine if one.ended is not None and one.ended.exit_code == 0), None)
        report = jobs.reported(good) if good is not None else None
        return JobSeen(uid, "Complete", pod_gone=leader is None, exit_code=0, report=report)
    first = min((one for one in ended if one.ended is not None and one.ended.exit_code), key=jobs.blame, default=None)
    end = first.ended if first is not None else None
    return JobSeen(
        uid,
        "Failed",
        pod_gone=not pods,
        exit_code=end.exit_code if end is not None else None,
        oom_killed=end is not None and end.reason == "OOMKilled",
        disruption=jobs.disrupted(pods) or "DisruptionTarget" in failed.message,
        deadline=failed.reason == "DeadlineExceeded",
        report=jobs.reported(first) if first is not None else None,
        message=jobs.words(failed.message, first),
    )


async def missing(kube: Kube, cycle: ImprovementCycle) -> Remark | None:
    """Kubeflow Trainer, its runtime or the rights to it, when they are not there; with the fix."""
    runtime, namespace = cycle.spec.training.runtime_ref, cycle.metadata.namespace
    scope = namespace if runtime.kind == "TrainingRuntime" else ""
    try:
        there = await kube.exists(runtime.kind, scope, runtime.name)
    except Forbidden:
        text = "training.launcher: the operator may not use Kubeflow Trainer; install the chart with"
        return Remark(Reason.INVALID_SPEC, f"{text} launchers.trainJob.enabled=true, or write launcher: Job")
    if there:
        return None
    where = f" in namespace {namespace}" if scope else ""
    text = f"training.runtimeRef: there is no {runtime.kind} {runtime.name}{where}"
    return Remark(
        Reason.INVALID_SPEC, f"{text}; install Kubeflow Trainer, name a runtime of it, or write launcher: Job"
    )


async def collect(this: "VersionPass") -> None:
    """Removes TrainJobs that were kept for as long as the cycle says, and the ConfigMaps that own them; Jobs are
    removed by Kubernetes."""
    cycle = this.cycle
    entry = next((one for one in this.version.status.stages if one.left), None)
    if cycle is None or entry is None:
        return
    kube, meta = this.ctx.kube, this.version.metadata
    over, due = stages.expired(entry, cycle.spec.training.ttl, this.now)
    for name in over:
        owner = await kube.get(ConfigMap, meta.namespace, name)
        if owner is not None and owner.metadata.owned_by(meta.uid):
            await kube.delete_child("TrainJob", meta.namespace, name, owner.metadata.uid)
            await kube.delete(ConfigMap, meta.namespace, name, owner.metadata.uid)
    this.wake.append(due)
    if over:
        this.store(stages.removed(entry, over))
