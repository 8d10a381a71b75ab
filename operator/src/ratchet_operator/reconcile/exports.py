"""A version's export in its pass: a Job of its own, beside everything else.

Room: operator, reconcile. Writes status.export and the condition Exported, and nothing else of the version; whatever
goes wrong here is said there and holds nothing up. The decisions are domain.exports' and domain.stages'.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from ratchet_api.conditions import find, merged
from ratchet_api.cycle import ImprovementCycle
from ratchet_api.export import Export
from ratchet_api.names import VERSION_KIND
from ratchet_api.reasons import ConditionType, Reason
from ratchet_api.stage import ExportInput, StageIdentity
from ratchet_api.version import Attempts, ExportStatus, StageStatus
from ratchet_operator.clients.objects import Secret
from ratchet_operator.domain import exports, stages
from ratchet_operator.domain.phases import Remark
from ratchet_operator.manifests import pods
from ratchet_operator.manifests.stages import Owner, StageRequest
from ratchet_operator.reconcile import jobs, launchers
from ratchet_operator.reconcile.context import Acts

if TYPE_CHECKING:
    from ratchet_operator.reconcile.version import VersionPass


async def advance(this: "VersionPass") -> None:
    """Begin the version's export when one is due, or bring the present one on."""
    cycle = this.cycle
    if cycle is None or (this.stalled is not None and this.stalled.reason is Reason.INVALID_SPEC):
        return
    due = exports.due(this.version, cycle)
    if due is not None and not cycle.spec.suspend:
        _write(this, exports.begun(this.version, due))
    status = this.version.status.export
    if status is None or not exports.going_on(this.version):
        return
    if stages.retry_due(status.work, this.now):
        await _plan(this, cycle, status)
        return
    kube, namespace = this.ctx.kube, this.version.metadata.namespace
    seen = await launchers.observe(kube, namespace, status.work, this.now)
    if seen is None and await launchers.unprepared(kube, namespace, status.work):
        await _plan(this, cycle, status)
        return
    # No setting makes an export smaller, so running out of memory is final.
    move = stages.advance(status.work, seen, this.now, shrinkable=False)
    refused = this.ctx.refused.get(_key(this)) if seen is None else None
    _write(this, status.model_copy(update={"work": move.status}), move.stalled or refused, move.waiting)
    this.wake.append(move.wake_at)
    this.events += stages.events("export", move)
    if move.done is not None:
        _done(this, move.status, move)
    elif move.status.job is not None and move.status.finished_at is None:
        this.wake.append(this.ctx.settings.pace.training)
        if seen is None and cycle.spec.export is not None:
            request = _request(this, cycle, cycle.spec.export, status.work.attempts)
            this.export = replace(request, input_uid=status.work.input_uid)


async def _plan(this: "VersionPass", cycle: ImprovementCycle, status: ExportStatus) -> None:
    policy = cycle.spec.export
    if policy is None:
        gone = Remark(Reason.INVALID_SPEC, "the cycle names no export any more")
        ended = status.work.model_copy(
            update={"finished_at": this.now, "reason": str(gone.reason), "message": gone.message}
        )
        _write(this, status.model_copy(update={"work": ended}))
        return
    if cycle.spec.suspend:
        _write(this, status, waiting=Remark(Reason.SUSPENDED, "the cycle is suspended: export goes on afterwards"))
        return
    missing = await jobs.missing(this.ctx.kube, cycle) or await _missing_secret(this, policy)
    if missing is not None:
        _write(this, status, stalled=missing)
        this.wake.append(_look_again(this))
        return
    request = await launchers.prepare(this.ctx.kube, _request(this, cycle, policy, status.work.attempts))
    if isinstance(request, Remark):
        _write(this, status, stalled=request)
        this.wake.append(_look_again(this))
        return
    work = stages.planned(status.work, "export", request.name, str(request.input_uid))
    _write(this, status.model_copy(update={"work": work}))
    this.export = request
    this.wake.append(this.ctx.settings.pace.training)
    this.events.append((False, Reason.EXPORTING, f"export starts as Job {request.name}"))


async def act(this: "VersionPass") -> None:
    """Make the export's Job exist. What the API server refuses is said in Exported by the next pass."""
    acts = Acts()
    if this.export is not None:
        await acts.attempt(launchers.create(this.ctx.kube, this.export))
    this.wake.append(acts.settle(this.ctx, _key(this)))


def _key(this: "VersionPass") -> str:
    """Under which a refusal of the export's Job is remembered, apart from those of the version's own."""
    return f"{this.version.metadata.uid}/export"


def _look_again(this: "VersionPass") -> float:
    """How soon to look for something missing: a quarter of the time it has been missing for, in bounds."""
    found, pace = find(this.version.status.conditions, ConditionType.EXPORTED), this.ctx.settings.pace
    age = (this.now - found.last_transition_time).total_seconds() if found is not None else 0.0
    return min(pace.stalled_last, max(pace.stalled_first, age / 4))


async def _missing_secret(this: "VersionPass", policy: Export) -> Remark | None:
    """A Secret that export names and is not there, with the fix."""
    namespace = this.version.metadata.namespace
    wanted = []
    if policy.hub is not None:
        wanted.append(("export.hub.tokenSecret", policy.hub.token_secret.name, "the key HF_TOKEN"))
    if policy.oci is not None and policy.oci.credentials_secret is not None:
        how = "`kubectl create secret docker-registry`"
        wanted.append(("export.oci.credentialsSecret", policy.oci.credentials_secret.name, how))
    for field, name, how in wanted:
        if await this.ctx.kube.get(Secret, namespace, name) is None:
            text = f"{field}: there is no Secret {name} in namespace {namespace}; create it with {how}"
            return Remark(Reason.MISSING_SECRET, text)
    return None


def _request(this: "VersionPass", cycle: ImprovementCycle, policy: Export, attempts: Attempts) -> StageRequest:
    version = this.version
    meta, adapter, proof = version.metadata, version.adapter, version.status.evaluation
    assert adapter is not None, "the bare base model is not exported"
    work = ExportInput(
        identity=StageIdentity(**pods.identity(cycle), run=version.spec.run, version=meta.name, attempt=attempts.total),
        base_model=cycle.spec.base_model,
        adapter=adapter,
        formats=policy.formats,
        license=policy.license,
        hub=policy.hub,
        oci=policy.oci,
        dataset_digest=version.spec.dataset.digest if version.spec.dataset is not None else None,
        champion=proof.champion if proof is not None else "",
        suites=proof.suites if proof is not None else [],
    )
    owner = Owner(VERSION_KIND, meta.name, meta.uid)
    return StageRequest(cycle, owner, work, policy, this.ctx.settings.images.trainer, cycle.spec.base_model)


def _done(this: "VersionPass", work: StageStatus, move: stages.StageMove) -> None:
    status, report = this.version.status.export, move.done
    assert status is not None
    assert report is not None
    if report.export is None:
        text = "the export stage reported no formats"
        failed = work.model_copy(update={"reason": str(Reason.INTERNAL_ERROR), "message": text})
        _write(this, status.model_copy(update={"work": failed}))
        this.events.append((True, Reason.INTERNAL_ERROR, text))
        return
    _write(this, status.model_copy(update={"work": work, "result": report.export}))
    this.events.append((False, Reason.SUCCEEDED, f"exported: {exports.summary(report.export)}"))


def _write(
    this: "VersionPass", status: ExportStatus, stalled: Remark | None = None, waiting: Remark | None = None
) -> None:
    """The status and its condition, which always agree."""
    holds, said = exports.verdict(status, stalled, waiting)
    meta, before = this.version.metadata, this.version.status
    conditions = merged(
        before.conditions, ConditionType.EXPORTED, holds, said.reason, said.message, meta.generation, this.now
    )
    this.update(export=status, conditions=conditions)
