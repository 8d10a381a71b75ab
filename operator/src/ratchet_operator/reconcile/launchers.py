"""What a stage is handed to: a Job of Kubernetes, or a TrainJob of Kubeflow Trainer, behind one door.

Room: operator, reconcile. An attempt's ConfigMap is there before the status names the attempt, and owns what is made
for it; it goes before the status says that the attempt's Job was taken away. So whatever of an earlier pass takes
effect later, a second Job of one attempt has no owner, and the garbage collector takes it.
"""

from dataclasses import replace
from datetime import datetime

from ratchet_api.version import StageStatus
from ratchet_operator.clients.kube import Kube
from ratchet_operator.clients.objects import ConfigMap
from ratchet_operator.domain.phases import Remark
from ratchet_operator.domain.stages import JobSeen
from ratchet_operator.errors import Waiting
from ratchet_operator.manifests.stages import StageRequest, config_map, job
from ratchet_operator.manifests.trainjobs import train_job
from ratchet_operator.reconcile import jobs, trainjobs
from ratchet_operator.reconcile.context import Acts


async def prepare(kube: Kube, request: StageRequest) -> StageRequest | Remark:
    """The request of an attempt that is about to be planned, with its ConfigMap; or why there can be none."""
    acts = Acts()
    prepared = await acts.attempt(_prepared(kube, request))
    if prepared is not None:
        return prepared
    assert acts.refused is not None, "either is there"
    return acts.refused


async def _prepared(kube: Kube, request: StageRequest) -> StageRequest:
    manifest, namespace = config_map(request), request.input.identity.namespace
    created = await kube.create(manifest, request.owner.uid)
    found = await kube.get(ConfigMap, namespace, request.name)
    if found is None:
        raise Waiting(f"ConfigMap {request.name} vanished while it was looked at", 0.5)
    if not created and found.data != manifest["data"]:
        await kube.delete(ConfigMap, namespace, request.name, found.metadata.uid)
        raise Waiting(f"ConfigMap {request.name} is of a pass that ended before it could plan this attempt", 0.5)
    return replace(request, input_uid=found.metadata.uid)


async def observe(kube: Kube, namespace: str, status: StageStatus, now: datetime) -> JobSeen | None:
    """The stage's present Job or TrainJob; None when there is none, or another one than was seen before, and then there
    will be none any more."""
    if status.job is None or status.input_uid is None or status.finished_at is not None:
        return None
    look = jobs.observe if status.launcher == "Job" else trainjobs.observe
    seen = await look(kube, namespace, status.job, status.input_uid, now)
    if status.job_uid is None or (seen is not None and seen.uid == status.job_uid):
        return seen
    if await _is_there(kube, namespace, status):
        await kube.delete(ConfigMap, namespace, status.job, status.input_uid)
    return None


async def unprepared(kube: Kube, namespace: str, status: StageStatus) -> bool:
    """Whether a planned Job that was not made yet has lost its ConfigMap, so that it has to be planned anew."""
    if status.job is None or status.job_uid is not None or status.finished_at is not None:
        return False
    return not await _is_there(kube, namespace, status)


async def _is_there(kube: Kube, namespace: str, status: StageStatus) -> bool:
    """Whether the ConfigMap is the attempt's own."""
    assert status.job is not None, "it has the Job's name"
    found = await kube.get(ConfigMap, namespace, status.job)
    return found is not None and found.metadata.uid == status.input_uid


async def create(kube: Kube, request: StageRequest) -> bool:
    """The Job or TrainJob; it is there already when this pass is a repetition. True when it is new."""
    training = request.cycle.spec.training
    manifest = job(request) if request.launcher == "Job" else train_job(request, training)
    return await kube.create(manifest, request.input_uid)
