"""Arms in the cluster: what is seen of them, and how they come and go.

Room: operator, reconcile.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from ratchet_api.cycle import Arm, ImprovementCycle
from ratchet_api.names import ARM_LABEL, CYCLE_LABEL, VERSION_LABEL
from ratchet_api.reasons import Reason
from ratchet_api.version import ModelVersion
from ratchet_operator.clients.arms import Server
from ratchet_operator.clients.objects import ContainerStatus, Deployment, Pod, Terminated
from ratchet_operator.domain.phases import Remark
from ratchet_operator.domain.rollout import ArmObservation
from ratchet_operator.domain.stages import MISSING
from ratchet_operator.manifests import arms as manifests
from ratchet_operator.manifests.arms import ArmRequest
from ratchet_operator.manifests.workload import FETCH as FETCH_IN_PLACE
from ratchet_operator.reconcile import autoscaling, jobs
from ratchet_operator.reconcile.context import Context

SECOND = timedelta(seconds=1)
"""Kubernetes' timestamps are whole seconds."""
PREEMPTED = 143
TRY_AGAIN = 75


@dataclass(frozen=True)
class ArmSeen:
    """One arm, as it is now."""

    observation: ArmObservation
    """What the rollout's decision needs."""
    trouble: Remark | None = None
    """Why it is not ready, when that is worth saying."""
    missing: bool = False
    """The trouble is something that the spec names and that is not there."""

    @property
    def ready(self) -> int:
        """Pods that are ready, and none if they do not list the model."""
        return 0 if self.observation.serves_model is False else self.observation.ready


ABSENT = ArmSeen(ArmObservation(exists=False, replicas=0, ready=0, serves_model=None))


@dataclass(frozen=True)
class Fleet:
    """All Deployments and pods of a cycle's arms."""

    deployments: dict[str, Deployment]
    """By name."""
    pods: list[Pod]

    def of(self, version: str) -> list[Pod]:
        """Pods of one version that are not on their way out."""
        return [
            pod
            for pod in self.pods
            if pod.metadata.labels.get(VERSION_LABEL) == version
            and pod.metadata.deletion_timestamp is None
            and pod.status.phase != "Failed"
        ]


async def fleet(ctx: Context, cycle: ImprovementCycle) -> Fleet:
    """Everything with the cycle's arm labels."""
    meta = cycle.metadata
    labels = f"{CYCLE_LABEL}={meta.name},{ARM_LABEL}=true"
    deployments = await ctx.kube.select(Deployment, meta.namespace, labels)
    pods = await ctx.kube.select(Pod, meta.namespace, labels)
    # One that is being deleted in the foreground is as good as gone: it must be made again if it is wanted.
    living = {d.metadata.name: d for d in deployments if d.metadata.deletion_timestamp is None}
    return Fleet(living, pods)


async def observe(ctx: Context, seen: Fleet, arm: Arm | None, wanted: int, now: datetime) -> ArmSeen:
    """One arm of status.serving, of which `wanted` pods should be ready."""
    if arm is None:
        return ABSENT
    pods = seen.of(arm.version)
    ready = [pod for pod in pods if pod.ready and pod.status.pod_ip]
    servers = [Server(pod.status.pod_ip, pod.start) for pod in ready]
    serves = await ctx.arms.serves(servers, arm.port, arm.model_name)
    failure, reason = _failure(pods, arm.since)
    deployment = seen.deployments.get(arm.deployment)
    trouble = _trouble(pods, now) or _refused_pods(deployment)
    observation = ArmObservation(
        exists=deployment is not None,
        replicas=wanted,
        ready=len(ready),
        serves_model=serves,
        failure=failure,
        failure_reason=reason,
        waiting=trouble.message if trouble is not None else None,
        made_at=deployment.metadata.creation_timestamp if deployment is not None else None,
    )
    if trouble is None and failure is not None and len(ready) < observation.replicas:
        trouble = Remark(reason, failure)
    return ArmSeen(observation, trouble, missing=trouble is not None and trouble.reason in MISSING)


def _failure(pods: list[Pod], since: datetime) -> tuple[str | None, Reason]:
    """The worst that the version did to its pods since: a refused adapter, a crash, an out-of-memory kill."""
    for pod in pods:
        for container in pod.containers:
            end = container.ended
            if end is None or end.exit_code in (0, PREEMPTED):
                continue
            if _earlier(pod, end, since):
                continue
            if container.name in (manifests.FETCH, FETCH_IN_PLACE):
                said = jobs.report(end.message)
                reason = _reason(said.reason) if said is not None else None
                if end.exit_code == TRY_AGAIN or (reason is not None and reason in MISSING):
                    continue
                if said is not None:
                    return (
                        f"pod {pod.metadata.name} was not given its model: {said.message}",
                        reason or Reason.ARM_FAILED,
                    )
            return _crash(pod, container, end), Reason.ARM_FAILED
    return None, Reason.ARM_FAILED


def _earlier(pod: Pod, end: Terminated, since: datetime) -> bool:
    """Whether it was in an earlier life of this arm: a version that served before may come back to its old pods."""
    created = pod.metadata.creation_timestamp
    if created is None or created + SECOND >= since:
        return False
    return end.finished_at is not None and end.finished_at + SECOND < since


def _crash(pod: Pod, container: ContainerStatus, end: Terminated) -> str:
    how = "ran out of memory" if end.reason == "OOMKilled" else f"crashed with exit code {end.exit_code}"
    times = f", {container.restart_count} restarts" if container.restart_count else ""
    return f"container {container.name} of pod {pod.metadata.name} {how}{times}"


def _reason(text: str) -> Reason | None:
    try:
        return Reason(text)
    except ValueError:
        return None


def _refused_pods(deployment: Deployment | None) -> Remark | None:
    """A quota or an admission rule that lets no pod be made: only the Deployment says so."""
    conditions = deployment.status.conditions if deployment is not None else []
    found = next((c for c in conditions if c.type == "ReplicaFailure" and c.status == "True"), None)
    return None if found is None else Remark(Reason.PENDING, f"no pod can be made: {found.message}")


def _trouble(pods: list[Pod], now: datetime) -> Remark | None:
    """What keeps pods from starting through no fault of the version."""
    for pod in pods:
        if pod.ready:
            continue
        for container in pod.status.init_container_statuses:
            end = container.ended
            said = jobs.report(end.message) if end is not None and end.exit_code != 0 else None
            reason = _reason(said.reason) if said is not None else None
            if said is not None and (reason in MISSING or reason is Reason.INFRASTRUCTURE_ERROR):
                assert reason is not None
                return Remark(reason, f"pod {pod.metadata.name}: {said.message}")
        found = jobs.waiting(pod, now)
        if found is not None:
            return found
    return None


def request(ctx: Context, cycle: ImprovementCycle, version: ModelVersion, replicas: int | None) -> ArmRequest:
    """What the version's arm is made from. `replicas` is None when somebody else scales it."""
    recipe = version.spec.training or cycle.spec.training.recipe
    # A finished adapter's rank is only known to its file; vLLM needs an upper bound of it beforehand.
    rank = recipe.lora.rank if version.spec.dataset is not None else max(64, recipe.lora.rank)
    images = ctx.settings.images
    return ArmRequest(cycle, version.metadata.name, version.adapter, rank, images.trainer, images.vllm, replicas)


async def ensure(ctx: Context, wanted: ArmRequest, present: Deployment | None, whole: bool) -> bool:
    """Make the arm so; False, and no write, when it is so already. `whole`: all of its pods are ready."""
    manifest = manifests.deployment(wanted)
    if present is not None and _same(present, manifest):
        return not whole and await _completed(ctx, wanted)
    await ctx.kube.create(manifests.fetch_config_map(wanted), wanted.cycle.metadata.uid)
    if present is not None and wanted.replicas is None:
        await autoscaling.hand_over(ctx, present)
    await ctx.kube.apply(manifest)
    budget = manifests.disruption_budget(wanted)
    if budget is not None:
        await ctx.kube.apply(budget)
    elif present is not None:
        meta = wanted.cycle.metadata
        await ctx.kube.delete_child("PodDisruptionBudget", meta.namespace, wanted.deployment, meta.uid)
    return True


async def _completed(ctx: Context, wanted: ArmRequest) -> bool:
    """What goes with a Deployment, made again where it is gone: a removal that broke off before the arm was wanted
    again has taken it already, and without its input no new pod starts."""
    written, namespace = False, wanted.cycle.metadata.namespace
    for manifest in (manifests.fetch_config_map(wanted), manifests.disruption_budget(wanted)):
        if manifest is not None and not await ctx.kube.exists(
            manifest["kind"], namespace, manifest["metadata"]["name"]
        ):
            written |= await ctx.kube.create(manifest, wanted.cycle.metadata.uid)
    return written


def _same(present: Deployment, manifest: dict[str, object]) -> bool:
    """The stamp says that we wrote it; replicas and images that nobody else has changed it since."""
    wanted = Deployment.model_validate(manifest)
    stamp = manifests.MANIFEST_ANNOTATION
    return (
        present.metadata.annotations.get(stamp) == wanted.metadata.annotations[stamp]
        and ("replicas" not in wanted.spec.model_fields_set or present.spec.replicas == wanted.spec.replicas)
        and present.spec.template.spec.containers == wanted.spec.template.spec.containers
    )


async def remove(ctx: Context, cycle: ImprovementCycle, present: Deployment) -> None:
    """Take an arm away, the Deployment last, so that a crash in between leaves the sign that there is more to do."""
    name, namespace = present.metadata.name, present.metadata.namespace
    config_map = present.metadata.annotations.get(manifests.INPUT_ANNOTATION)
    owner = cycle.metadata.uid
    if config_map:
        await ctx.kube.delete_child("ConfigMap", namespace, config_map, owner)
    if max(present.spec.replicas, cycle.spec.serving.replicas) > 1:
        await ctx.kube.delete_child("PodDisruptionBudget", namespace, name, owner)
    await ctx.kube.delete(Deployment, namespace, name, present.metadata.uid)
