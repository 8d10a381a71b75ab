"""A ModelVersion: train, evaluate, gate; afterwards its status follows what its cycle does with it.

Room: operator, reconcile. The only writer of a version's status.
"""

from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import datetime
from typing import Any

from ratchet_api.conditions import find, merged
from ratchet_api.cycle import ImprovementCycle
from ratchet_api.data import AdapterRef
from ratchet_api.evaluation import EvaluationPolicy
from ratchet_api.names import VERSION_KIND
from ratchet_api.reasons import ConditionType, Reason
from ratchet_api.stage import EvaluateInput, Levels, StageIdentity, StageReport, TrainInput
from ratchet_api.training import Recipe
from ratchet_api.version import (
    Attempts,
    EvaluationStatus,
    ModelVersion,
    ModelVersionStatus,
    StageStatus,
    TrainingStatus,
)
from ratchet_operator.clients.events import Subject
from ratchet_operator.domain import estimate, gate, pointer, proposal, retries, spending, stages, versions
from ratchet_operator.domain.approval import Awaited, awaited
from ratchet_operator.domain.phases import Remark, VersionFacts, version_conditions, version_phase
from ratchet_operator.errors import InvalidObject, Waiting
from ratchet_operator.manifests import pods
from ratchet_operator.manifests.stages import Owner, StageRequest
from ratchet_operator.reconcile import exports, jobs, launchers, progress, trainjobs
from ratchet_operator.reconcile.announcing import ASK_AGAIN, announce, announced
from ratchet_operator.reconcile.conditions import first, newly_stalled, said_if_refused, stalled_delay, unreadable
from ratchet_operator.reconcile.context import Acts, Context, soonest


class Stop(Exception):
    """This pass can go no further; `stalled` or `waiting` says why."""

    def __init__(self, *, stalled: Remark | None = None, waiting: Remark | None = None) -> None:
        super().__init__((stalled or waiting or Remark(Reason.PENDING, "")).message)
        self.stalled = stalled
        self.waiting = waiting


async def reconcile(ctx: Context, namespace: str, name: str) -> float | None:
    """One pass over one version; returns the seconds until the next, or None when only an event can change anything."""
    now = ctx.now()
    try:
        version = await ctx.kube.get(ModelVersion, namespace, name)
    except InvalidObject as error:
        await unreadable(ctx, "ModelVersion", error)
        return None
    if version is None or version.metadata.deletion_timestamp is not None:
        ctx.metrics.stall(VERSION_KIND, namespace, name, None)
        return None
    if not version.status.conditions:
        conditions = first(version.metadata.generation, now, "seen for the first time")
        status = ModelVersionStatus(observed_generation=version.metadata.generation, conditions=conditions)
        await ctx.kube.write_version_status(version, status)
        return 0.0
    try:
        cycle = await ctx.kube.get(ImprovementCycle, namespace, version.spec.cycle)
    except InvalidObject as error:
        raise Waiting(
            f"its cycle {version.spec.cycle} cannot be read: {error}", ctx.settings.pace.stalled_last
        ) from None
    return await VersionPass(ctx, version, cycle, now).run()


class VersionPass:
    """One pass: `status` is what will be written, `request` the stage whose Job is to exist afterwards, `export` the
    export's."""

    def __init__(self, ctx: Context, version: ModelVersion, cycle: ImprovementCycle | None, now: datetime) -> None:
        self.ctx = ctx
        self.before = version
        self.version = version
        self.cycle = cycle
        self.now = now
        self.stalled: Remark | None = None
        self.waiting: Remark | None = None
        self.wake: list[datetime | float | None] = []
        self.events: list[tuple[bool, Reason, str]] = []
        self.request: StageRequest | None = None
        self.export: StageRequest | None = None
        self._judging = AsyncExitStack()

    async def run(self) -> float | None:
        """Observe and decide, write, act."""
        async with self._judging:
            try:
                await self._decide()
            except Stop as stop:
                self.stalled, self.waiting = stop.stalled, stop.waiting
            await exports.advance(self)
            await trainjobs.collect(self)
            self.stalled = self.ctx.refused.get(self.version.metadata.uid) or self.stalled
            self._summarise()
            await self._write()
        meta = self.version.metadata
        self.ctx.metrics.stall(VERSION_KIND, meta.namespace, meta.name, self.stalled is not None)
        acts = Acts()
        if self.request is not None:
            await acts.attempt(launchers.create(self.ctx.kube, self.request))
        self.wake.append(acts.settle(self.ctx, self.version.metadata.uid))
        await exports.act(self)
        conditions = self.version.status.conditions
        if self.stalled is not None:
            self.wake.append(stalled_delay(self.ctx, conditions, self.now))
        return soonest(self.now, *self.wake)

    def update(self, **fields: Any) -> None:
        """These fields of the status that will be written."""
        self.version = self.version.model_copy(update={"status": self.version.status.model_copy(update=fields)})

    # Deciding

    async def _decide(self) -> None:
        cycle = self.cycle
        if cycle is None:
            name = self.version.spec.cycle
            text = f"spec.cycle: there is no ImprovementCycle {name} in namespace {self.version.metadata.namespace}"
            raise Stop(stalled=Remark(Reason.MISSING_CYCLE, f"{text}; apply it"))
        base, asked = cycle.spec.base_model, self.version.spec.base_model
        if asked is not None and (asked.uri != base.uri or asked.digest not in (None, base.digest)):
            text = f"spec.baseModel: {asked.uri} is not the cycle's base {base.uri}; an adapter fits one base only"
            raise Stop(stalled=Remark(Reason.INVALID_SPEC, f"{text}: apply a version for this cycle's base"))
        stable = cycle.status.serving.stable
        name = self.version.metadata.name
        if stable is not None and stable.version == name and not versions.is_served_by(stable, self.version):
            text = f"another version of the name {name} serves, with adapter {stable.digest or 'none'}"
            raise Stop(stalled=Remark(Reason.INVALID_SPEC, f"metadata.name: {text}; apply this one under a new name"))
        self._repeat_if_outdated(cycle)
        now = versions.standing(self.version, cycle)
        if now.next is not None:
            await self._stage(cycle, now.next)
        elif now.place == "Candidate":
            said = versions.remark(cycle.status.conditions, ConditionType.RECONCILING)
            self.waiting = said if said is not None and said.reason is Reason.UNSCHEDULABLE else None
        elif now.place == "Canary":
            said = versions.remark(cycle.status.conditions, ConditionType.PROGRESSING)
            self.waiting = said if said is not None and said.reason is Reason.AWAITING_APPROVAL else None
        elif now.accepted and now.place is None and now.outcome is None and not now.root:
            self._say_who_is_awaited(cycle)

    def _say_who_is_awaited(self, cycle: ImprovementCycle) -> None:
        """Why an accepted version is not rolled out, when it is a person's turn."""
        name, since = self.version.metadata.name, versions.accepted_since(self.version)
        elsewhere = pointer.elsewhere(cycle, name)
        if elsewhere is not None:
            self.stalled, self.waiting = proposal.of_version(cycle, name)
        if elsewhere is not None and self.stalled is None and self.waiting is None:
            text = f"accepted; {elsewhere}: write {name} there to roll it out"
            self.waiting = Remark(Reason.AWAITING_POINTER, text)
        elif elsewhere is None and since is not None:
            self._await(versions.canary_approval(self.version, cycle), since)

    def _await(self, needed: Awaited | None, since: datetime) -> None:
        if needed is not None:
            self.stalled = needed.expired(since, self.now)
            self.waiting = None if self.stalled is not None else needed.remark
            self.wake.append(since + needed.expiry)

    async def _stage(self, cycle: ImprovementCycle, name: versions.Next) -> None:
        entry = versions.stage(self.version, name)
        if entry is None or stages.retry_due(entry, self.now):
            await self._plan(cycle, name, entry)
            return
        kube, namespace = self.ctx.kube, self.version.metadata.namespace
        seen = await launchers.observe(kube, namespace, entry, self.now)
        if seen is None and await launchers.unprepared(kube, namespace, entry):
            await self._plan(cycle, name, entry)
            return
        move = stages.advance(entry, seen, self.now, shrinkable=self._shrinkable(cycle, name, entry.attempts))
        self.store(move.status)
        self.stalled, self.waiting = move.stalled, move.waiting
        self.wake.append(move.wake_at)
        self.events += stages.events(name, move)
        if move.done is not None:
            await self._done(cycle, name, move.done)
        elif move.status.job is not None and move.status.finished_at is None:
            self.wake.append(self.ctx.settings.pace.training)
            if seen is None:
                request = await self._request(cycle, name, entry.attempts, entry.launcher)
                self.request = replace(request, input_uid=entry.input_uid)
            elif name == "train" and seen.running_since is not None:
                numbers = await progress.training(self.ctx, self.version, cycle, self.now)
                self.update(training=numbers or self.version.status.training)

    def _repeat_if_outdated(self, cycle: ImprovementCycle) -> None:
        """Another champion serves than the one that the version was proven against: the proof begins anew.

        Asked before anything else, and again when a proof has just come in: an ended proof that does not count must
        never be written, because the next pass would take its undecided Accepted condition for the gate's word.
        """
        done = versions.stage(self.version, "evaluate")
        if done is None or not versions.outdated(self.version, cycle.status):
            return
        if versions.standing(self.version, cycle).next != "evaluate":
            return
        before = self.version.status.evaluation
        attempts = done.attempts.model_copy(update={"repeated": done.attempts.repeated + 1})
        entry = StageStatus(stage="evaluate", attempts=attempts)
        artifacts = self.version.status.artifacts.model_copy(update={"sealed_report": None})
        self.update(evaluation=None, artifacts=artifacts)
        self.store(entry)
        text = f"proven against {before.champion if before else '?'}, which serves no more: it is evaluated again"
        self.events.append((False, Reason.PENDING, text))

    async def _plan(self, cycle: ImprovementCycle, name: versions.Next, entry: StageStatus | None) -> None:
        if cycle.spec.suspend:
            raise Stop(waiting=Remark(Reason.SUSPENDED, f"the cycle is suspended: {name} starts when it is resumed"))
        if entry is None and name == "train":
            await self._estimate(cycle)
            if self._unapproved(cycle):
                return
        launcher = cycle.spec.training.launcher if name == "train" else "Job"
        request = await self._request(cycle, name, entry.attempts if entry is not None else Attempts(), launcher)
        # Also before a training: a version that nothing could judge is not worth one.
        policy = self._policy(cycle)
        missing = await jobs.missing(self.ctx.kube, cycle, policy.suites)
        missing = missing or await jobs.judge_trouble(self.ctx.kube, cycle, policy.judge)
        if missing is None and launcher == "TrainJob":
            missing = await trainjobs.missing(self.ctx.kube, cycle)
        if missing is not None:
            raise Stop(stalled=missing)
        prepared = await launchers.prepare(self.ctx.kube, request)
        if isinstance(prepared, Remark):
            raise Stop(stalled=prepared)
        self.store(stages.planned(entry, name, prepared.name, str(prepared.input_uid), launcher))
        self.request = prepared
        self.wake.append(self.ctx.settings.pace.training)
        reason = Reason.TRAINING if name == "train" else Reason.EVALUATING
        self.events.append((False, reason, f"{name} starts as {launcher} {request.name}"))

    async def _estimate(self, cycle: ImprovementCycle) -> None:
        """What the training will cost, before anything is asked of the cluster or of a person."""
        made_by, known = cycle.status.run, self.version.status.training or TrainingStatus()
        if made_by is None or made_by.version != self.version.metadata.name or made_by.dataset is None:
            return
        if known.examples is not None:
            return
        said = estimate.of(cycle.spec.training, made_by.dataset, await self._of_cycle())
        self.update(training=known.model_copy(update={"examples": made_by.dataset.examples, "estimate": said}))
        if said is not None:
            self.events.append((False, Reason.TRAINING, f"the training will take {estimate.words(said)}"))

    def _unapproved(self, cycle: ImprovementCycle) -> bool:
        """Whether a person has yet to let it be trained. When that takes too long, it failed: nothing was begun."""
        meta, dataset = self.version.metadata, self.version.spec.dataset
        assert dataset is not None, "only a recipe is trained"
        needed = awaited(cycle.spec.promotion, "Training", self.version, dataset.digest)
        if needed is None:
            return False
        expired = needed.expired(meta.creation_timestamp or self.now, self.now)
        if expired is None:
            self._await(needed, meta.creation_timestamp or self.now)
        else:
            reason, message = str(expired.reason), expired.message
            self.store(StageStatus(stage="train", finished_at=self.now, reason=reason, message=message))
            self.events.append((True, expired.reason, message))
        return True

    def store(self, entry: StageStatus) -> None:
        """The status of a stage."""
        others = [old for old in self.version.status.stages if old.stage != entry.stage]
        self.update(stages=sorted([*others, entry], key=lambda one: ("train", "evaluate", "curate").index(one.stage)))

    # What a stage is told

    async def _request(
        self, cycle: ImprovementCycle, name: versions.Next, attempts: Attempts, launcher: stages.Launcher
    ) -> StageRequest:
        return self._train(cycle, attempts, launcher) if name == "train" else await self._evaluate(cycle, attempts)

    def _identity(self, cycle: ImprovementCycle, attempts: Attempts) -> StageIdentity:
        meta, run = self.version.metadata, self.version.spec.run
        return StageIdentity(**pods.identity(cycle), run=run, version=meta.name, attempt=attempts.total)

    def _owner(self) -> Owner:
        return Owner(VERSION_KIND, self.version.metadata.name, self.version.metadata.uid)

    def _recipe(self, cycle: ImprovementCycle) -> Recipe:
        return self.version.spec.training or cycle.spec.training.recipe

    def _shrinkable(self, cycle: ImprovementCycle, name: versions.Next, attempts: Attempts) -> bool:
        times = attempts.out_of_memory + 1
        if name == "train":
            return retries.shrink(self._recipe(cycle), times) is not None
        return retries.shrink_batch(cycle.spec.evaluation.batch_size, times) is not None

    def _train(self, cycle: ImprovementCycle, attempts: Attempts, launcher: stages.Launcher) -> StageRequest:
        dataset = self.version.spec.dataset
        assert dataset is not None, "only a recipe is trained"
        asked = self._recipe(cycle)
        work = TrainInput(
            identity=self._identity(cycle, attempts),
            base_model=cycle.spec.base_model,
            dataset=dataset,
            hyperparameters=retries.shrink(asked, attempts.out_of_memory) or asked,
            checkpoint_interval=cycle.spec.training.checkpoint_interval,
        )
        image, base = self.ctx.settings.images.trainer, cycle.spec.base_model
        return StageRequest(cycle, self._owner(), work, cycle.spec.training.job, image, base, launcher=launcher)

    async def _evaluate(self, cycle: ImprovementCycle, attempts: Attempts) -> StageRequest:
        champion = await self._champion(cycle)
        policy = self._policy(cycle)
        policy = policy.part(sealed=self._unsealed()) or policy
        batch = cycle.spec.evaluation.batch_size
        work = EvaluateInput(
            identity=self._identity(cycle, attempts),
            base_model=cycle.spec.base_model,
            candidate=self.version.adapter,
            champion=champion[1],
            champion_version=champion[0],
            policy=policy,
            levels=await self._levels(policy),
            dataset=self.version.spec.dataset,
            batch_size=retries.shrink_batch(batch, attempts.out_of_memory) or batch,
        )
        image = self.ctx.settings.images.trainer
        return StageRequest(
            cycle, self._owner(), work, cycle.spec.evaluation, image, cycle.spec.base_model, policy.suites
        )

    async def _champion(self, cycle: ImprovementCycle) -> tuple[str, AdapterRef | None]:
        """The version to beat and its adapter; which one it is gets into the status with the first plan."""
        decided = self.version.status.evaluation
        stable = cycle.status.serving.stable
        name = decided.champion if decided is not None else self.version.spec.champion
        name = name or (stable.version if stable is not None else None)
        if name is None:
            raise Stop(waiting=Remark(Reason.PENDING, "waiting for the cycle's champion to serve"))
        champion = await self.ctx.kube.get(ModelVersion, self.version.metadata.namespace, name)
        if champion is None:
            text = f"the champion to beat, ModelVersion {name}, does not exist: apply it, or apply this version again"
            raise Stop(stalled=Remark(Reason.MISSING_ADAPTER, text))
        if champion.adapter is None and not versions.is_root(champion):
            raise Stop(waiting=Remark(Reason.PENDING, f"the champion to beat, {name}, is not trained yet"))
        if decided is None:
            self.update(evaluation=EvaluationStatus(champion=name))
        return name, champion.adapter

    # What a stage brought

    async def _done(self, cycle: ImprovementCycle, name: versions.Next, report: StageReport) -> None:
        status = self.version.status
        provenance = report.provenance or status.provenance
        if provenance.parent is None:
            provenance = provenance.model_copy(update={"parent": self.version.spec.parent})
        if name == "train":
            if report.artifact is None:
                self._fail(name, "the train stage reported no adapter")
                return
            artifacts = status.artifacts.model_copy(update={"adapter": report.artifact})
            training = report.training or status.training
            if training is not None and status.training is not None:
                before = status.training
                said = {"examples": training.examples or before.examples, "estimate": before.estimate}
                training = training.model_copy(update=said)
            self.update(artifacts=artifacts, training=training, provenance=provenance)
            self.events.append((False, Reason.SUCCEEDED, f"trained: {report.message or report.artifact.digest}"))
            return
        assert status.evaluation is not None, "the champion was written before the Job was created"
        policy, unsealed = self._policy(cycle), self._unsealed()
        new = {result.name for result in report.suites}
        passed = status.evaluation.suites if unsealed else []
        results = [*(result for result in passed if result.name not in new), *report.suites]
        present = policy if unsealed else policy.part(sealed=False) or policy
        if not await self._spend(policy, report):
            return
        decision = gate.decide(present, results)
        evaluation = status.evaluation.model_copy(
            update={"suites": results, "target": decision.target, "guardrail": decision.guardrail}
        )
        which = "sealed_report" if unsealed else "report"
        artifacts = status.artifacts.model_copy(update={which: report.artifact})
        if decision.accepted and not unsealed and policy.part(sealed=True) is not None:
            evaluation = evaluation.model_copy(update={"unsealed": True})
            self.update(evaluation=evaluation, artifacts=artifacts, provenance=provenance)
            self._unseal(decision.message)
            return
        now, generation = self.now, self.version.metadata.generation
        # The decision stands from here on: later passes take it from the condition, whatever the spec says then.
        conditions = merged(
            status.conditions, ConditionType.ACCEPTED, decision.accepted, decision.reason, decision.message,
            generation, now,
        )  # fmt: skip
        self.update(evaluation=evaluation, artifacts=artifacts, provenance=provenance, conditions=conditions)
        self.events.append((not decision.accepted, decision.reason, decision.message))
        self._repeat_if_outdated(cycle)

    def _policy(self, cycle: ImprovementCycle) -> EvaluationPolicy:
        return self.version.spec.evaluation or cycle.spec.evaluation.policy()

    def _unsealed(self) -> bool:
        evaluation = self.version.status.evaluation
        return evaluation is not None and evaluation.unsealed

    async def _spend(self, policy: EvaluationPolicy, report: StageReport) -> bool:
        """Spends the error rates of the report's targets. False when they are no longer those that are left: another
        version was judged by the same cases meanwhile, and the report is to be made anew.

        Until this pass has written so, no other one may reckon with the same rates.
        """
        await self._judging.enter_async_context(self.ctx.judging)
        if spending.overtaken(report.suites, await self._levels(policy)):
            done = versions.stage(self.version, "evaluate")
            assert done is not None
            attempts = done.attempts.model_copy(update={"repeated": done.attempts.repeated + 1})
            self.store(StageStatus(stage="evaluate", attempts=attempts))
            if not self._unsealed():
                self.update(evaluation=None)  # against whom serves by now
            self.wake.append(0.0)
            text = "another version was judged by the same cases meanwhile: it is evaluated at the error rate left now"
            self.events.append((False, Reason.PENDING, text))
            return False
        self.update(looks=spending.spent(report.suites, self.version.status.looks))
        return True

    async def _levels(self, policy: EvaluationPolicy) -> Levels:
        return spending.levels(policy, self.version.metadata.name, await self._of_cycle())

    async def _of_cycle(self) -> list[ModelVersion]:
        """All versions of the cycle, this one included."""
        of = f"spec.cycle={self.version.spec.cycle}"
        return await self.ctx.kube.select(ModelVersion, self.version.metadata.namespace, fields=of)

    def _unseal(self, passed: str) -> None:
        """All other suites are passed: the same stage goes on with the sealed ones, as another Job."""
        done = versions.stage(self.version, "evaluate")
        assert done is not None
        attempts = done.attempts.model_copy(update={"unsealed": done.attempts.unsealed + 1})
        self.store(StageStatus(stage="evaluate", attempts=attempts))
        self.wake.append(0.0)
        self.events.append((False, Reason.EVALUATING, f"the sealed suites are opened: {passed}"))

    def _fail(self, name: versions.Next, message: str) -> None:
        entry = versions.stage(self.version, name)
        assert entry is not None
        self.store(entry.model_copy(update={"reason": str(Reason.INTERNAL_ERROR), "message": message}))
        self.events.append((True, Reason.INTERNAL_ERROR, message))

    # Saying it

    def _summarise(self) -> None:
        generation, status = self.version.metadata.generation, self.version.status
        if self.cycle is None:
            facts = VersionFacts(root=versions.is_root(self.version), stalled=self.stalled)
            conditions = version_conditions(status.conditions, facts, generation, self.now)
            self.update(conditions=conditions, phase=version_phase(facts), observed_generation=generation)
            return
        now = versions.standing(self.version, self.cycle)
        facts = VersionFacts(
            root=now.root,
            trained=now.trained,
            evaluated=now.evaluated,
            gate=now.gate,
            accepted=now.accepted,
            stage=now.next,
            failed=now.failed,
            rejected=now.rejected,
            returned=now.returned,
            place=now.place,
            stalled=self.stalled,
            waiting=self.waiting,
        )
        conditions = version_conditions(status.conditions, facts, generation, self.now)
        phase = version_phase(facts)
        self.update(conditions=conditions, phase=phase, observed_generation=generation, outcome=now.outcome)
        self._announce(now)

    def _announce(self, now: versions.Standing) -> None:
        """An event for a rejection that is seen for the first time."""
        old = find(self.before.status.conditions, ConditionType.REJECTED)
        if now.rejected is not None and now.accepted is not False and (old is None or old.status != "True"):
            self.events.append((True, now.rejected.reason, now.rejected.message))

    async def _write(self) -> None:
        status = self.version.status
        stalled = newly_stalled(self.before.status.conditions, status.conditions)
        if stalled is not None:
            self.events.append((True, Reason(stalled.reason), stalled.message))
        subject, words = Subject("ModelVersion", self.version.metadata), status.announcements
        late = await announce(self.ctx, subject, words, self.now)
        self.update(announcements=announced(words, late, self.events, self.now))
        status = self.version.status
        if status.dump() != self.before.status.dump():
            conditions = self.before.status.conditions
            async with said_if_refused(self.ctx, "ModelVersion", self.before.metadata, conditions):
                await self.ctx.kube.write_version_status(self.before, status)
        if await announce(self.ctx, subject, status.announcements, self.now):
            self.wake.append(ASK_AGAIN)
