"""A stage's Job in the cluster: what is seen of it, and what it lacks.

Room: operator, reconcile. Shared by curate, train and evaluate.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Literal

from pydantic import ValidationError

from ratchet_api.cycle import ImprovementCycle
from ratchet_api.data import Anchors, ConfigMapKey
from ratchet_api.evaluation import Suite
from ratchet_api.judge import KEY_ENV, Judge, under_test
from ratchet_api.reasons import Reason
from ratchet_api.stage import ExitCode, StageReport
from ratchet_operator.clients.kube import Kube
from ratchet_operator.clients.objects import ConfigMap, ContainerStatus, Job, Pod, Secret
from ratchet_operator.domain import suites as domain
from ratchet_operator.domain.phases import Remark
from ratchet_operator.domain.stages import JobSeen
from ratchet_operator.manifests.stages import CONTAINER, QUEUE_LABEL

UNSCHEDULABLE_AFTER = timedelta(seconds=10)
"""An autoscaler or a finishing pod may make room; after this time it is worth saying."""
INDEX_LABEL = "batch.kubernetes.io/job-completion-index"
"""Of a pod of an Indexed Job: the worker's, or the node's, number."""
_CAUSES = {int(ExitCode.PREEMPTED): 2, int(ExitCode.TRY_AGAIN): 1}
"""Who is taken down with another one ends with these codes, which are the cause of nothing else."""
IMAGE_REASONS = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})


async def observe(kube: Kube, namespace: str, name: str, input_uid: str, now: datetime) -> JobSeen | None:
    """The Job and its pods; None when there is none that this ConfigMap owns."""
    found = await kube.get(Job, namespace, name)
    if found is None or not found.metadata.owned_by(input_uid):
        return None
    pods = await kube.select(Pod, namespace, f"batch.kubernetes.io/job-name={name}")
    return seen(found, [pod for pod in pods if pod.metadata.owned_by(found.metadata.uid)], now)


def seen(found: Job, pods: list[Pod], now: datetime) -> JobSeen:
    """A Job and its pods as the domain sees them."""
    uid = found.metadata.uid
    failed = found.condition("Failed")
    if failed is None and found.condition("Complete") is None:
        if found.spec.suspend:
            return JobSeen(uid, waiting=suspended("job", found))
        pod = max(pods, key=age, default=None)
        why = waiting(pod, now) if pod is not None else podless("job", found, now)
        return JobSeen(uid, waiting=why, running_since=running_since(pod))
    ended = [(pod, status) for pod in pods for status in main(pod) if status.ended is not None]
    if failed is None:
        reports = [reported(status) for _, status in ended if status.ended is not None and status.ended.exit_code == 0]
        whole = next((one for one in reports if one is not None and not one.partial), None)
        if whole is None and any(map(_goes_on, pods)):
            # A Job is complete because its pods are: this list of pods is older than the Job, and brings no report yet.
            return JobSeen(uid, running_since=running_since(max(pods, key=age)))
        # Of several workers one puts together what all have made; if only the others' pods are there, its pod is gone.
        gone = not pods or (whole is None and any(one is not None for one in reports))
        return JobSeen(uid, "Complete", pod_gone=gone, exit_code=0, report=whole)
    bad = _to_blame(ended)
    end = bad[1].ended if bad is not None else None
    return JobSeen(
        uid,
        "Failed",
        pod_gone=not pods,
        exit_code=end.exit_code if end is not None else None,
        oom_killed=end is not None and end.reason == "OOMKilled",
        disruption=disrupted(pods if bad is None else [bad[0]]) or "DisruptionTarget" in failed.message,
        deadline=failed.reason == "DeadlineExceeded",
        report=reported(bad[1]) if bad is not None else None,
        message=words(failed.message, bad[1] if bad is not None else None),
    )


def _goes_on(pod: Pod) -> bool:
    return pod.status.phase not in ("Succeeded", "Failed") and all(one.ended is None for one in main(pod))


def _to_blame(ended: list[tuple[Pod, ContainerStatus]]) -> tuple[Pod, ContainerStatus] | None:
    """Whose end was the Job's: the latest pod's; of several workers, the first that ended for a reason of its own."""
    if not any(INDEX_LABEL in pod.metadata.labels for pod, _ in ended):
        return max(ended, key=lambda pair: age(pair[0]), default=None)
    bad = [pair for pair in ended if pair[1].ended is not None and pair[1].ended.exit_code]
    return min(bad, key=lambda pair: blame(pair[1]), default=None)


def blame(container: ContainerStatus) -> tuple[int, str]:
    """Of containers of which one took the others down: the least is the first that ended for a reason of its own."""
    end = container.ended
    assert end is not None
    when = end.finished_at.isoformat() if end.finished_at is not None else ""
    return _CAUSES.get(end.exit_code, 0), when


def podless(kind: Literal["job", "trainjob"], found: Job, now: datetime) -> Remark | None:
    """A quota or an admission rule that lets no pod be made: only events of the Job say which."""
    created = found.metadata.creation_timestamp
    if created is None or now - created < UNSCHEDULABLE_AFTER:
        return None
    name = found.metadata.name
    return Remark(Reason.PENDING, f"{_KINDS[kind]} {name} has no pod yet: `kubectl describe {kind} {name}` says why")


_KINDS = {"job": "Job", "trainjob": "TrainJob"}


def suspended(kind: Literal["job", "trainjob"], found: Job) -> Remark:
    """A Job that Kueue has not admitted yet, or that gave way to another one."""
    name, queue = found.metadata.name, found.metadata.labels.get(QUEUE_LABEL)
    if queue is None:
        text = f"{_KINDS[kind]} {name} is suspended, not by the operator: `kubectl patch {kind} {name} "
        how = "" if kind == "job" else "--type merge "  # a custom resource has no strategic merge patch
        return Remark(Reason.PENDING, f"""{text}{how}-p '{{"spec":{{"suspend":false}}}}'` lets it go on""")
    text = f"{_KINDS[kind]} {name} waits in queue {queue}: `kubectl describe workloads` says for what"
    return Remark(Reason.PENDING, f"{text}; without Kueue it waits for ever")


def age(pod: Pod) -> datetime:
    """When it was made."""
    created = pod.metadata.creation_timestamp
    assert created is not None, "the API server stamps every object"
    return created


def main(pod: Pod, name: str = CONTAINER) -> list[ContainerStatus]:
    """The stage's own container, if its status is known."""
    return [status for status in pod.status.container_statuses if status.name == name]


def disrupted(pods: Iterable[Pod]) -> bool:
    """Whether one of them had to give way."""
    found = [pod.condition("DisruptionTarget") for pod in pods]
    return any(condition is not None and condition.status == "True" for condition in found)


def running_since(pod: Pod | None) -> datetime | None:
    """When a running pod's containers were started."""
    if pod is None or pod.status.phase != "Running":
        return None
    initialized = pod.condition("Initialized")
    return initialized.last_transition_time if initialized is not None else None


def words(failed: str, container: ContainerStatus | None) -> str:
    """Kubernetes' words about a failure: the Job's `failed`, or better the container's."""
    end = container.ended if container is not None else None
    if end is None:
        return failed
    text = f"exit code {end.exit_code}" + (f" ({end.reason})" if end.reason and end.reason != "Error" else "")
    said = end.message.strip()
    return f"{text}: {said}" if said and not said.startswith("{") else text


def reported(container: ContainerStatus) -> StageReport | None:
    """The report of a container that has ended."""
    return report(container.ended.message) if container.ended is not None else None


def report(message: str) -> StageReport | None:
    """A termination message as a StageReport, if it is one."""
    try:
        return StageReport.model_validate_json(message)
    except ValidationError:
        return None


def waiting(pod: Pod, now: datetime) -> Remark | None:
    """Why a pod does not run yet, when that is worth saying."""
    scheduled = pod.condition("PodScheduled")
    if scheduled is not None and scheduled.status == "False" and scheduled.reason == "Unschedulable":
        since = scheduled.last_transition_time
        if since is None or now - since > UNSCHEDULABLE_AFTER:
            return Remark(Reason.UNSCHEDULABLE, f"no node takes pod {pod.metadata.name}: {scheduled.message}")
        return None
    for container in pod.containers:
        state = container.state.waiting
        if state is None:
            continue
        if state.reason in IMAGE_REASONS:
            return Remark(Reason.PENDING, f"pod {pod.metadata.name} has no image: {state.reason}: {state.message}")
        if state.reason in ("CreateContainerConfigError", "CreateContainerError"):
            return Remark(Reason.PENDING, f"pod {pod.metadata.name} cannot start: {state.message}")
    return None


async def missing(
    kube: Kube, cycle: ImprovementCycle, suites: Sequence[Suite] = (), anchors: Anchors | None = None
) -> Remark | None:
    """What the spec names and is not there or cannot be used: the Secret, a ConfigMap, a key, a suite without cases or
    with two of one id; with the fix. None: all is there."""
    namespace = cycle.metadata.namespace
    secret = cycle.spec.storage.credentials_secret
    if secret is not None and await kube.get(Secret, namespace, secret.name) is None:
        return Remark(
            Reason.MISSING_SECRET,
            f"storage.credentialsSecret: there is no Secret {secret.name} in namespace {namespace}; create it with the "
            "keys AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
    wanted = [
        (f"evaluation.suites[{suite.name}].cases", suite.cases.config_map)
        for suite in suites
        if suite.cases.config_map is not None
    ]
    wanted += [
        (f"evaluation.suites[{suite.name}].cases.task", suite.cases.task)
        for suite in suites
        if suite.cases.task is not None
    ]
    if anchors is not None:
        wanted.append(("curation.anchors", anchors.config_map))
    documents = {f"evaluation.suites[{suite.name}].cases" for suite in suites if suite.scorer == "lmEval"}
    maps: dict[str, ConfigMap | None] = {}
    for field, reference in wanted:
        if reference.name not in maps:
            maps[reference.name] = await kube.get(ConfigMap, namespace, reference.name)
        found = maps[reference.name]
        said = _missing_key(field, reference, namespace, None if found is None else found.keys)
        if said is not None:
            return said
        text = None if found is None or not field.endswith("].cases") else found.data.get(reference.key)
        wrong = None if text is None else domain.trouble(text, named=field not in documents)
        if wrong is not None:
            where = f"{field}: ConfigMap {reference.name}, key {reference.key}"
            return Remark(Reason.INVALID_SPEC, f"{where}: {wrong}")
    return None


async def judge_trouble(kube: Kube, cycle: ImprovementCycle, judge: Judge | None) -> Remark | None:
    """Why this judge cannot be asked, with the fix: it is under test itself, or has no Secret. None: it can."""
    if judge is None:
        return None
    name, namespace = cycle.metadata.name, cycle.metadata.namespace
    itself = under_test(judge, name, cycle.spec.base_model.uri)
    if itself is not None:
        text = f"evaluation.judge.model: {judge.model} is the {itself}, which is under test; name another model"
        return Remark(Reason.INVALID_SPEC, text)
    secret = judge.credentials_secret
    if secret is not None and await kube.get(Secret, namespace, secret.name) is None:
        text = f"evaluation.judge.credentialsSecret: there is no Secret {secret.name} in namespace {namespace}"
        return Remark(Reason.MISSING_JUDGE_SECRET, f"{text}; create it with the key {KEY_ENV}")
    return None


def _missing_key(field: str, reference: ConfigMapKey, namespace: str, keys: set[str] | None) -> Remark | None:
    if keys is None:
        text = f"{field}: there is no ConfigMap {reference.name} in namespace {namespace}; create it"
        return Remark(Reason.MISSING_CONFIG_MAP, f"{text} with the key {reference.key}")
    if reference.key not in keys:
        there = ", ".join(sorted(keys)) or "none"
        text = f"{field}: ConfigMap {reference.name} has no key {reference.key} (it has: {there})"
        return Remark(Reason.MISSING_CONFIG_MAP, f"{text}; add the key, or name one of these")
    return None
