"""The run in a cycle's pass: its curate stage, then the version that it makes.

Room: operator, reconcile. The decisions are domain.run's and domain.stages'.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from ratchet_api.conditions import find
from ratchet_api.cycle import RunStatus
from ratchet_api.data import DatasetRef
from ratchet_api.names import CYCLE_KIND, RUN_ANNOTATION, child_name
from ratchet_api.reasons import ConditionType, Reason
from ratchet_api.stage import CurateInput, StageIdentity
from ratchet_api.version import Attempts, ModelVersion, StageStatus
from ratchet_operator.domain import run, stages, versions
from ratchet_operator.domain.phases import Remark
from ratchet_operator.manifests import pods
from ratchet_operator.manifests import versions as manifests
from ratchet_operator.manifests.stages import Owner, StageRequest
from ratchet_operator.reconcile import jobs, launchers

if TYPE_CHECKING:
    from ratchet_operator.reconcile.cycle import CyclePass


async def advance(this: "CyclePass") -> None:
    """Start a run, or bring the present one on."""
    current = this.status.run
    if current is None or not run.active(current):
        _start(this)
    elif current.stage == "Curating":
        await _curate(this, current)
    else:
        _follow(this, current)


def _start(this: "CyclePass") -> None:
    meta = this.before.metadata
    try:
        begun = run.start(
            this.name,
            this.before.spec,
            this.status,
            meta.annotations.get(RUN_ANNOTATION, ""),
            meta.creation_timestamp or this.now,
            [version.metadata.name for version in this.versions],
            this.now,
        )
    except ValueError:
        return  # said by the summary, which asks for the next time of the same schedule
    if begun is not None:
        last = this.status.run
        if last is not None and last.curate is not None:
            this.leftovers += [_name(this, last, attempt) for attempt in range(last.curate.attempts.total + 1)]
        this.update(run=begun)
        this.wake.append(0.0)
        asked = (
            "asked for"
            if begun.request != (this.before.status.run.request if this.before.status.run else "")
            else "due"
        )
        this.tell(False, Reason.CURATING, f"run {begun.number} starts ({asked})")


async def _curate(this: "CyclePass", current: RunStatus) -> None:
    entry = current.curate
    if entry is None or stages.retry_due(entry, this.now):
        await _plan(this, current, entry)
        return
    seen = await launchers.observe(this.ctx.kube, this.namespace, entry, this.now)
    if seen is None and await launchers.unprepared(this.ctx.kube, this.namespace, entry):
        await _plan(this, current, entry)
        return
    # Nothing in the curate stage could be made smaller, so running out of memory is final.
    move = stages.advance(entry, seen, this.now, shrinkable=False)
    current = current.model_copy(update={"curate": move.status})
    this.wake.append(move.wake_at)
    if move.stalled is not None:
        this.stalled.append(move.stalled)
    if move.waiting is not None:
        this.waiting.append(move.waiting)
    if move.retried is not None:
        this.tell(True, move.retried.reason, f"curate is tried again: {move.retried.message}")
    if move.failed is not None:
        _finish(this, run.finished(current, "Failed", f"curate: {move.failed.message}", this.now), move.failed.reason)
    elif move.done is not None:
        done = run.curated(current, this.name, move.done, this.now)
        if done.finished_at is not None:
            _finish(this, done, None)
        else:
            this.update(run=done)
            this.wake.append(this.ctx.settings.pace.training)
            this.tell(False, Reason.SUCCEEDED, f"curated: {move.done.message or _numbers(done)}")
    else:
        this.update(run=current)
        this.wake.append(this.ctx.settings.pace.training)
        if seen is None and move.status.job is not None:
            this.curate = replace(_request(this, current, entry.attempts), input_uid=entry.input_uid)


def _numbers(current: RunStatus) -> str:
    dataset = current.dataset
    if dataset is None:
        return "no dataset"
    return f"{dataset.examples} examples of {dataset.interactions} interactions"


async def _plan(this: "CyclePass", current: RunStatus, entry: StageStatus | None) -> None:
    spec = this.before.spec
    if spec.suspend:
        return
    missing = await jobs.missing(this.ctx.kube, this.before, spec.evaluation.policy().suites, spec.curation.anchors)
    if missing is not None:
        this.stalled.append(missing)
        return
    attempts = entry.attempts if entry is not None else Attempts()
    request = await launchers.prepare(this.ctx.kube, _request(this, current, attempts))
    if isinstance(request, Remark):
        this.stalled.append(request)
        return
    planned = stages.planned(entry, "curate", request.name, str(request.input_uid))
    this.update(run=current.model_copy(update={"curate": planned}))
    this.curate = request
    this.wake.append(this.ctx.settings.pace.training)


def _name(this: "CyclePass", current: RunStatus, attempt: int) -> str:
    """Name of the Job and the ConfigMap of an attempt at the curate stage."""
    return child_name(this.name, str(current.number), "curate", str(attempt))


def _request(this: "CyclePass", current: RunStatus, attempts: Attempts) -> StageRequest:
    spec, meta = this.before.spec, this.before.metadata
    work = CurateInput(
        identity=StageIdentity(**pods.identity(this.before), run=current.number, attempt=attempts.total),
        until=current.started_at,
        sessions=spec.sessions,
        curation=spec.curation,
        base_model=spec.base_model,
        method=spec.training.method,
        min_examples=spec.trigger.min_examples,
        suites=spec.evaluation.policy().suites,
    )
    return StageRequest(
        this.before,
        Owner(CYCLE_KIND, meta.name, meta.uid),
        work,
        spec.curate_job,
        this.ctx.settings.images.trainer,
        suites=spec.evaluation.policy().suites,
        anchors=spec.curation.anchors,
    )


def _follow(this: "CyclePass", current: RunStatus) -> None:
    version = next((v for v in this.versions if v.metadata.name == current.version), None)
    if version is not None and version.spec.run != current.number:
        text = f"a ModelVersion {current.version} that this run did not make exists already"
        _finish(this, run.finished(current, "Failed", text, this.now), Reason.INVALID_SPEC)
        return
    seen = versions.of_run(version, this.cycle, this.now) if version is not None else None
    following = run.follow(current, seen, this.now)
    decision = this.status.rollout.decision if this.status.rollout is not None else None
    ended = this.status.rollout is not None and this.status.rollout.phase == "Done"
    mine = this.status.rollout is not None and this.status.rollout.version == current.version
    if decision is not None and ended and mine and following.finished_at is None:
        following = run.rolled_out(following, decision.outcome, decision.message, this.now)
        this.update(run=following)
        return
    if following.finished_at is not None:
        why = seen.failed or seen.rejected if seen is not None else None
        _finish(this, following, why.reason if why is not None else None)
        return
    this.update(run=following)
    if version is not None and following.stage != "RollingOut":
        _hear(this, version)


def _hear(this: "CyclePass", version: ModelVersion) -> None:
    """What keeps the run's version waiting is said of the cycle too."""
    for kind, heard in ((ConditionType.STALLED, this.stalled), (ConditionType.RECONCILING, this.waiting)):
        said = find(version.status.conditions, kind)
        if said is None or said.status != "True":
            continue
        remark = versions.remark(version.status.conditions, kind)
        if remark is not None and (kind is ConditionType.STALLED or remark.reason in WORTH_HEARING):
            heard.append(Remark(remark.reason, f"{version.metadata.name}: {remark.message}"))


WORTH_HEARING = frozenset(
    {Reason.UNSCHEDULABLE, Reason.INFRASTRUCTURE_ERROR, Reason.OUT_OF_MEMORY, Reason.PREEMPTED, Reason.PENDING}
)


def _finish(this: "CyclePass", ended: RunStatus, why: Reason | None) -> None:
    this.update(run=ended)
    this.status = run.recorded(this.status, this.before.spec, ended)
    reason, message, warning = run.event(ended, why)
    this.tell(warning, reason, message)


async def act(this: "CyclePass") -> None:
    """Make the run's children be what the status says."""
    kube, current = this.ctx.kube, this.status.run
    if this.curate is not None:
        await launchers.create(kube, this.curate)
    for name in this.leftovers:
        # Of the run before, with the Jobs that they own; what a crash leaves behind goes with the cycle.
        await kube.delete_child("ConfigMap", this.namespace, name, this.before.metadata.uid)
    if current is None or current.version is None or current.dataset is None or not run.active(current):
        return
    there = any(version.metadata.name == current.version for version in this.versions)
    if not there and current.version_uid is None:
        dataset = DatasetRef(uri=current.dataset.uri, digest=current.dataset.digest)
        stable = this.status.serving.stable
        parent = stable.version if stable is not None else None
        await kube.create(manifests.of_run(this.before, current.version, current.number, dataset, parent))
