"""What a stage is handed to: a Job of Kubernetes, or a TrainJob of Kubeflow Trainer, behind one door.

Room: operator, reconcile.
"""

from datetime import datetime

from ratchet_api.version import StageStatus
from ratchet_operator.clients.kube import Kube
from ratchet_operator.domain.stages import JobSeen
from ratchet_operator.manifests.stages import StageRequest, config_map
from ratchet_operator.manifests.trainjobs import train_job
from ratchet_operator.reconcile import jobs, trainjobs


async def observe(kube: Kube, namespace: str, owner_uid: str, status: StageStatus, now: datetime) -> JobSeen | None:
    """The stage's present Job or TrainJob; None when there is none that belongs to this owner."""
    if status.launcher == "Job" or status.job is None or status.finished_at is not None:
        return await jobs.observe(kube, namespace, owner_uid, status, now)
    return await trainjobs.observe(kube, namespace, owner_uid, status.job, now)


async def create(kube: Kube, request: StageRequest) -> bool:
    """ConfigMap, then Job or TrainJob; they are there already when this pass is a repetition. True when it is new."""
    if request.launcher == "Job":
        return await jobs.create(kube, request)
    await kube.create(config_map(request), request.owner.uid)
    return await kube.create(train_job(request, request.cycle.spec.training), request.owner.uid)
