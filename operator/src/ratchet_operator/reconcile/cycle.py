"""An ImprovementCycle: its arms, its rollout, its runs.

Room: operator, reconcile. The only writer of a cycle's status. One pass: observe; decide, by the pure domain, what the
status will be; write it; make the children be what it says.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from ratchet_api.cycle import Arm, Good, ImprovementCycle, ImprovementCycleStatus
from ratchet_api.reasons import ConditionType, Reason
from ratchet_api.version import ModelVersion
from ratchet_operator.clients.events import Subject
from ratchet_operator.domain import ledger, queries, run, traces, versions
from ratchet_operator.domain import rollout as rollouts
from ratchet_operator.domain.phases import CycleFacts, Remark, cycle_conditions, cycle_phase
from ratchet_operator.domain.rollout import RolloutObservation
from ratchet_operator.errors import InvalidObject
from ratchet_operator.manifests import versions as manifests
from ratchet_operator.manifests.stages import StageRequest
from ratchet_operator.reconcile import arms, autoscaling, jobs, notices, proposals, registrar, rollout, runs
from ratchet_operator.reconcile.announcing import ASK_AGAIN, announce, announced
from ratchet_operator.reconcile.conditions import first, newly_stalled, said_if_refused, stalled_delay, unreadable
from ratchet_operator.reconcile.context import Acts, Context, soonest
from ratchet_operator.reconcile.hosting import Hosting, Owned
from ratchet_operator.reconcile.httproute import HttpRouteRouter
from ratchet_operator.reconcile.replicas import ReplicaRouter
from ratchet_operator.reconcile.routers import GatewayRouter, Router, Traffic
from ratchet_operator.reconcile.workload import InPlace, give_back

SECOND = timedelta(seconds=1)
ROUTERS: dict[str, Callable[[Context, ImprovementCycle, arms.Fleet], Router]] = {
    "gateway": GatewayRouter,
    "httpRoute": HttpRouteRouter,
    "replicas": ReplicaRouter,
}


async def reconcile(ctx: Context, namespace: str, name: str) -> float | None:
    """One pass over one cycle; returns the seconds until the next, or None when only an event can change anything."""
    now = ctx.now()
    try:
        cycle = await ctx.kube.get(ImprovementCycle, namespace, name)
    except InvalidObject as error:
        await unreadable(ctx, "ImprovementCycle", error)
        return None
    if cycle is None or cycle.metadata.deletion_timestamp is not None:
        ctx.metrics.cycle(namespace, name, None)
        ctx.desk.forget((namespace, name))
        ctx.courier.forget((namespace, name))
        if ctx.registrar is not None:
            ctx.registrar.forget((namespace, name))
        if ctx.tracer is not None:
            ctx.tracer.forget((namespace, name))
        if cycle is None:
            await give_back(ctx, namespace, name)
        return None
    if not cycle.status.conditions:
        conditions = first(cycle.metadata.generation, now, "seen for the first time")
        status = ImprovementCycleStatus(observed_generation=cycle.metadata.generation, conditions=conditions)
        await ctx.kube.write_cycle_status(cycle, status)
        return 0.0
    return await CyclePass(ctx, cycle, now).run()


class CyclePass:
    """One pass: `status` is what will be written; afterwards the children are made what it says."""

    def __init__(self, ctx: Context, cycle: ImprovementCycle, now: datetime) -> None:
        self.ctx = ctx
        self.before = cycle
        self.status = cycle.status
        self.now = now
        self.versions: list[ModelVersion] = []
        in_place = cycle.spec.serving.workload is not None
        self.hosting: Hosting = InPlace(ctx, cycle) if in_place else Owned(ctx, cycle)
        self.fleet = arms.Fleet({}, [])
        self.router: Router = GatewayRouter(ctx, cycle, self.fleet)
        self.traffic = Traffic()
        self.stable = self.candidate = arms.ABSENT
        self.missing: Remark | None = None
        """The Secret that the arms need is not there."""
        self.stalled: list[Remark] = []
        self.waiting: list[Remark] = []
        self.wake: list[datetime | float | None] = [ctx.settings.pace.resync]
        self.events: list[tuple[bool, Reason, str]] = []
        """(whether it is a warning, reason, sentence) of what is to be said."""
        self.curate: StageRequest | None = None
        """The curate stage whose Job is to exist after this pass."""
        self.leftovers: list[str] = []
        """ConfigMaps of a curate stage that has ended in this pass."""

    @property
    def cycle(self) -> ImprovementCycle:
        """The cycle with the status as decided so far."""
        return self.before.model_copy(update={"status": self.status})

    @property
    def namespace(self) -> str:
        """Of the cycle and all its children."""
        return self.before.metadata.namespace

    @property
    def name(self) -> str:
        """Of the cycle."""
        return self.before.metadata.name

    def update(self, **fields: Any) -> None:
        """Change fields of the status to be."""
        self.status = self.status.model_copy(update=fields)

    def tell(self, warning: bool, reason: Reason, message: str) -> None:
        """An event, posted after the status is written."""
        self.events.append((warning, reason, message))

    async def run(self) -> float | None:
        """Observe and decide, write, act."""
        await self._observe()
        self._bring_up()
        await self._roll_out()
        self._remember_rejections()
        await runs.advance(self)
        proposals.advance(self)
        self._retire()
        self._summarise()
        registrar.advance(self)
        notices.advance(self)
        await self._write()
        notices.act(self)
        registrar.act(self)
        self._trace()
        self.ctx.metrics.cycle(self.namespace, self.name, self.status, bool(self.stalled))
        await self._converge()
        self.wake.append(stalled_delay(self.ctx, self.status.conditions, self.now))
        return soonest(self.now, *self.wake)

    # Observing

    async def _observe(self) -> None:
        kube = self.ctx.kube
        refused = self.ctx.refused.get(self.before.metadata.uid)
        if refused is not None:
            self.stalled.append(refused)
        self.versions = await kube.select(ModelVersion, self.namespace, fields=f"spec.cycle={self.name}")
        self.fleet = await self.hosting.observe()
        for reset in self.hosting.resets():
            self.tell(True, reset.reason, reset.message)
        self.router = ROUTERS[self.before.spec.serving.router](self.ctx, self.before, self.fleet)
        self.stable = await self._observe_arm(self.status.serving.stable)
        self.candidate = await self._observe_arm(self.status.serving.candidate)
        await self._observe_traffic()
        if any(arm is None or arm.deployment not in self.fleet.deployments for arm in self._wanted_arms()):
            self.missing = await jobs.missing(kube, self.before)
            if self.missing is not None:
                self.stalled.append(self.missing)

    async def _observe_arm(self, arm: Arm | None) -> arms.ArmSeen:
        wanted = 0 if arm is None else self.hosting.goal(arm, self.router.goal(arm))
        return await arms.observe(self.ctx, self.fleet, arm, wanted, self.now)

    async def _observe_traffic(self) -> None:
        self.traffic = await self.router.observe()
        conflict = autoscaling.conflict(self.before, self._wanted_arms(), self.hosting.scalers)
        self.stalled += [remark for remark in (self.traffic.stalled, conflict) if remark is not None]
        if self.traffic.waiting is not None:
            self.waiting.append(self.traffic.waiting)
            self.wake.append(self.ctx.settings.pace.rollout)
        if self.traffic.reset is not None:
            self.tell(True, self.traffic.reset.reason, self.traffic.reset.message)
        self.wake.append(self.router.pace)

    def _wanted_arms(self) -> list[Arm | None]:
        serving = self.status.serving
        return [serving.stable] if serving.candidate is None else [serving.stable, serving.candidate]

    # Deciding

    def _bring_up(self) -> None:
        """The champion of a cycle that has none: the one that says that it served (a lost status), else the base."""
        serving = self.status.serving
        if serving.stable is None:
            served = [v for v in self.versions if _says_serving(v)]
            name = served[0].metadata.name if served else manifests.root_name(self.name)
            digest = versions.digest(served[0]) if served else ""
            stable = rollout.new_arm(self.before.spec.serving, name, digest, self.now, weight=100)
            self.update(serving=serving.model_copy(update={"stable": stable}))
        elif self.stable.observation.proven and not self.status.last_good:
            good = Good(version=serving.stable.version, digest=serving.stable.digest, at=self.now)
            self.update(last_good=[good])
            self.tell(False, Reason.PROMOTED, f"{serving.stable.version} serves")
        self._check_champion()
        if self.stable.trouble is not None:
            (self.stalled if self.stable.missing else self.waiting).append(self.stable.trouble)

    def _check_champion(self) -> None:
        """An arm is never made from another version than the one that passed: say so when there is no such one."""
        stable = self.status.serving.stable
        if stable is None or (
            stable.version == manifests.root_name(self.name) and self._version(stable.version) is None
        ):
            return
        version = self._version(stable.version)
        if version is not None and versions.is_served_by(stable, version):
            return
        what = "was deleted" if version is None else "is another one than the arm serves"
        text = f"ModelVersion {stable.version}, the champion, {what}"
        if stable.deployment in self.fleet.deployments:
            self.waiting.append(Remark(Reason.PENDING, f"{text}: its arm serves on, but cannot be changed"))
        else:
            text += " and its Deployment is gone: apply the version that served"
            self.stalled.append(Remark(Reason.MISSING_ADAPTER, text))

    async def _roll_out(self) -> None:
        self.status = ledger.refreshed(self.status, self.before.spec)
        try:
            queries.check_queries(self.before.spec.rollout)
            looks = await rollout.look(self.ctx, self.cycle, self.now)
        except ValueError as error:
            self.stalled.append(Remark(Reason.INVALID_SPEC, str(error)))
            looks = rollout.Looks()
        current = rollout.going_on(self.status)
        if current is not None:
            in_force = self.traffic.in_force
            seen = rollout.observation(self.cycle, self.versions, self.stable, self.candidate, in_force, looks)
            self._advance(seen)
        self._note_arms()
        self.status = rollout.settled(self.status, self.before, self.status.run, self.now)
        self.status = self.hosting.moved(self.status)
        self._begin()

    def _advance(self, seen: RolloutObservation) -> None:
        before = self.status.rollout
        assert before is not None
        move = rollouts.advance(before, self.before.spec.rollout, seen, self.now)
        self.status = rollout.moved(self.status, move)
        self.wake.append(move.wake_at)
        self.events += [(event.type == "Warning", event.reason, event.message) for event in move.events]
        if move.stalled is not None:
            self.stalled.append(Remark(*move.stalled))
        if self.candidate.trouble is not None:
            self.waiting.append(self.candidate.trouble)
        if move.status.phase in ("Starting", "RollingBack") or seen.observed_weight != move.weight:
            self.wake.append(self.ctx.settings.pace.rollout)

    def _begin(self) -> None:
        remark, busy = self.hosting.stalled(self.status), self.hosting.busy(self.status)
        self.stalled += [] if remark is None else [remark]
        if busy is not None:
            self.waiting.append(busy)
            self.wake.append(self.ctx.settings.pace.rollout)
        if self.stalled or (busy is not None and rollout.going_on(self.status) is None):
            return
        self.status, asked = rollout.begun(self.status, self.before, self.versions, self.now)
        if asked.stalled is not None:
            self.stalled.append(asked.stalled)
        if asked.waiting is not None:
            self.waiting.append(asked.waiting)
        if asked.wanted is not None:
            self.wake.append(self.ctx.settings.pace.rollout)
            self.tell(False, Reason.CANARY, f"the rollout of {asked.wanted.metadata.name} begins: its arm comes up")

    def _note_arms(self) -> None:
        serving = self.status.serving
        noted: dict[str, Arm] = {}
        ready: dict[str, int] = {}
        for role, arm, seen in (
            ("stable", serving.stable, self.stable),
            ("candidate", serving.candidate, self.candidate),
        ):
            if arm is not None:
                ready[arm.version] = seen.ready
                share = self.traffic.shares.get(arm.version)
                noted[role] = arm.model_copy(update={"observed_weight": share, "ready_replicas": seen.ready})
        serving = self.router.sized(serving.model_copy(update=noted), ready)
        self.update(serving=self.hosting.sized(serving))

    def _remember_rejections(self) -> None:
        for entry in versions.rejections(self.versions, self.cycle):
            said = (entry.version, entry.digest, entry.reason, entry.message)
            version = self._version(entry.version)
            if version is not None and version.status.outcome == "RolledBack":
                self.status = ledger.remembered(self.status, self.before.spec, *said, entry.at)
            else:
                run_number = version.spec.run if version is not None else None
                self.status = ledger.gate_rejected(self.status, self.before.spec, *said, entry.at, run_number)

    def _retire(self) -> None:
        """Retired arms are kept until their answers have ended, and listed until their Deployment is gone."""
        for arm in self.status.serving.retired:
            if arm.deployment not in self.fleet.deployments:
                self.status = ledger.removed(self.status, arm.deployment)
            else:
                self.wake.append(max(arm.since + self.before.spec.rollout.scale_down_delay, self.now + SECOND))

    def _summarise(self) -> None:
        spec, meta = self.before.spec, self.before.metadata
        try:
            created = meta.creation_timestamp or self.now
            following = run.next_run_time(spec, self.status, created, self.now)
        except ValueError as error:
            following = None
            self.stalled.append(Remark(Reason.INVALID_SPEC, str(error)))
        self.wake.append(following)
        stable = self.status.serving.stable
        facts = CycleFacts(
            suspended=spec.suspend,
            champion=stable.version if stable is not None else None,
            ready=self.stable.ready,
            replicas=stable.replicas if stable is not None else spec.serving.replicas,
            run=self.status.run,
            rollout=self.status.rollout,
            stalled=next(iter(self.stalled), None),
            waiting=next(iter(self.waiting), None),
        )
        self.update(
            observed_generation=meta.generation,
            next_run_time=following,
            conditions=cycle_conditions(self.status.conditions, facts, meta.generation, self.now),
            phase=cycle_phase(facts),
        )

    # Writing

    async def _write(self) -> None:
        stalled = newly_stalled(self.before.status.conditions, self.status.conditions)
        if stalled is not None:
            self.tell(True, Reason(stalled.reason), stalled.message)
        subject, words = Subject("ImprovementCycle", self.before.metadata), self.status.announcements
        late = await announce(self.ctx, subject, words, self.now)
        self.update(announcements=announced(words, late, self.events, self.now))
        if self.status.dump() != self.before.status.dump():
            meta, conditions = self.before.metadata, self.before.status.conditions
            async with said_if_refused(self.ctx, "ImprovementCycle", meta, conditions):
                await self.ctx.kube.write_cycle_status(self.before, self.status)
            self._count()
        if await announce(self.ctx, subject, self.status.announcements, self.now):
            self.wake.append(ASK_AGAIN)

    def _trace(self) -> None:
        if self.ctx.tracer is not None:
            ended = traces.ended(self.before.metadata, self.status, self.versions, self.now)
            self.ctx.tracer.note((self.namespace, self.name), ended)

    def _count(self) -> None:
        old, new = self.before.status, self.status
        where = (self.namespace, self.name)
        ended = new.rollout is not None and new.rollout.phase == "Done" and rollout.going_on(old) is not None
        if ended and new.rollout is not None and new.rollout.decision is not None:
            decision = new.rollout.decision
            self.ctx.metrics.rollouts.labels(*where, decision.outcome, decision.reason).inc()
        if run.active(old.run) and new.run is not None and new.run.outcome is not None:
            self.ctx.metrics.runs.labels(*where, new.run.outcome).inc()

    # Acting: all of it follows from the status just written, so that the next pass finishes what this one does not

    async def _converge(self) -> None:
        acts = Acts()
        await acts.attempt(self.router.act(self.status))
        if self._version(manifests.root_name(self.name)) is None:
            await acts.attempt(self.ctx.kube.create(manifests.root(self.before)))
        if self.missing is None:
            for arm in self._wanted_arms():
                await acts.attempt(self._ensure_arm(arm))
        await acts.attempt(runs.act(self))
        proposals.act(self)
        await acts.attempt(self.hosting.clear(self.cycle, self.now))
        self.wake.append(acts.settle(self.ctx, self.before.metadata.uid))

    async def _ensure_arm(self, arm: Arm | None) -> None:
        version = self._version(arm.version) if arm is not None else None
        if arm is None or version is None:
            if arm is not None and arm.version == manifests.root_name(self.name):
                self.wake.append(self.ctx.settings.pace.rollout)  # made in this very pass
            return
        if not versions.is_served_by(arm, version):
            return
        await self.hosting.ensure(self.cycle, arm, version)

    def _version(self, name: str) -> ModelVersion | None:
        return next((v for v in self.versions if v.metadata.name == name), None)


def _says_serving(version: ModelVersion) -> bool:
    return any(c.type == ConditionType.SERVING and c.status == "True" for c in version.status.conditions)
