"""The rollout in a cycle's pass: what is observed for it, and what its moves do to status.serving.

Room: operator, reconcile. The decisions are domain.rollout's; ended rollouts are entered by domain.ledger.
"""

import asyncio
import dataclasses
from collections.abc import Sequence
from datetime import datetime

from ratchet_api.cycle import Arm, Check, ImprovementCycle, ImprovementCycleStatus, RolloutStatus, RunStatus
from ratchet_api.names import ABORT_ANNOTATION, ARM_PORT
from ratchet_api.serving import Serving
from ratchet_api.version import ModelVersion
from ratchet_operator.domain import ab_test, approval, glance, ledger, pointer, queries, rollout, versions
from ratchet_operator.domain.analysis import ArmReadings, Recent, judge
from ratchet_operator.domain.pointer import Pointer
from ratchet_operator.domain.rollout import Move, RolloutObservation
from ratchet_operator.manifests.arms import deployment_name
from ratchet_operator.manifests.workload import companion_name
from ratchet_operator.reconcile.arms import ArmSeen
from ratchet_operator.reconcile.context import Context


def going_on(status: ImprovementCycleStatus) -> RolloutStatus | None:
    """The rollout that has not ended, if there is one."""
    return status.rollout if status.rollout is not None and status.rollout.phase != "Done" else None


def new_arm(serving: Serving, version: str, digest: str, now: datetime, weight: int = 0) -> Arm:
    """The arm of a version, asked for now: a Deployment of its own, or a companion of people's."""
    workload = serving.workload
    return Arm(
        version=version,
        digest=digest,
        deployment=deployment_name(version) if workload is None else companion_name(workload.name, version),
        model_name=version,
        port=ARM_PORT if workload is None else workload.port,
        weight=weight,
        since=now,
    )


@dataclasses.dataclass(frozen=True)
class Looks:
    """What the metrics say in this pass."""

    measured: tuple[Check, ...] | None = None
    """All of them, when a measurement was due."""
    glances: tuple[Check, ...] = ()
    """Some of them, between two measurements."""
    outcome: Check | None = None
    """With a measurement: an A/B test's outcome."""


async def look(ctx: Context, cycle: ImprovementCycle, now: datetime) -> Looks:
    """Judgements of the metrics that are due. Raises ValueError (a sentence) for a query that cannot be."""
    status, spec = cycle.status, cycle.spec.rollout
    current, stable = going_on(status), status.serving.stable
    if current is None or stable is None:
        return Looks()
    whole = rollout.measurement_due(current, spec, now)
    metrics = spec.metrics if whole else glance.due(current, spec, now)
    meta = cycle.metadata
    where = (meta.namespace, meta.name, stable.version)
    asked = queries.plan(current, spec, metrics, *where, now)
    outcome = None
    if whole and ab_test.running(current, spec):
        [question] = queries.plan(current, spec, [ab_test.outcome(spec)], *where, now)
        (candidate, theirs), checks = await asyncio.gather(
            _arms(ctx, question.candidate, question.stable), _all(ctx, asked, now)
        )
        outcome = ab_test.look(spec, candidate, theirs or ArmReadings(), now)
    else:
        checks = await _all(ctx, asked, now)
    return Looks(measured=checks, outcome=outcome) if whole else Looks(glances=checks)


async def _all(ctx: Context, asked: Sequence[queries.Look], now: datetime) -> tuple[Check, ...]:
    return tuple(await asyncio.gather(*(_judged(ctx, one, now) for one in asked)))


async def _judged(ctx: Context, asked: queries.Look, now: datetime) -> Check:
    (candidate, stable), *recent = await asyncio.gather(
        _arms(ctx, asked.candidate, asked.stable), *(_arms(ctx, one.candidate, one.stable) for one in asked.recent)
    )
    lengths = (one.length for one in asked.recent)
    windows = [Recent(length, *arms) for length, arms in zip(lengths, recent, strict=True)]
    return judge(asked.metric, candidate, stable or ArmReadings(), now, asked.reference, windows)


async def _arms(
    ctx: Context, candidate: queries.ArmQueries, stable: queries.ArmQueries | None
) -> tuple[ArmReadings, ArmReadings | None]:
    if stable is None:
        return await ctx.prometheus.arm(candidate), None
    return await asyncio.gather(ctx.prometheus.arm(candidate), ctx.prometheus.arm(stable))


def observation(
    cycle: ImprovementCycle,
    found: Sequence[ModelVersion],
    stable: ArmSeen,
    candidate: ArmSeen,
    in_force: int | None,
    looks: Looks,
) -> RolloutObservation:
    """All that domain.rollout.advance looks at."""
    current = going_on(cycle.status)
    name = current.version if current is not None else ""
    meta = cycle.metadata
    living = [v for v in found if v.metadata.deletion_timestamp is None]
    deleted = current is not None and not any(versions.is_of(current, v) for v in living)
    return RolloutObservation(
        stable=stable.observation,
        candidate=candidate.observation,
        observed_weight=in_force,
        checks=looks.measured,
        glances=looks.glances,
        outcome=looks.outcome,
        # Whoever deletes the version does not want it to serve.
        abort=meta.annotations.get(ABORT_ANNOTATION) == name or deleted,
        unwanted=pointer.elsewhere(cycle, name),
        approval=_approval(cycle, living, current),
        suspended=cycle.spec.suspend,
    )


def _approval(
    cycle: ImprovementCycle, living: Sequence[ModelVersion], current: RolloutStatus | None
) -> approval.Awaited | None:
    version = next((v for v in living if current is not None and versions.is_of(current, v)), None)
    if version is None:
        return None
    return approval.awaited(cycle.spec.promotion, "Promotion", version, versions.digest(version))


def moved(status: ImprovementCycleStatus, move: Move) -> ImprovementCycleStatus:
    """The status with the move's weights asked for."""
    serving = status.serving
    stable = serving.stable and serving.stable.model_copy(update={"weight": 100 - move.weight})
    candidate = serving.candidate and serving.candidate.model_copy(update={"weight": move.weight})
    serving = serving.model_copy(update={"stable": stable, "candidate": candidate})
    return status.model_copy(update={"rollout": move.status, "serving": serving})


def begun(
    status: ImprovementCycleStatus, cycle: ImprovementCycle, found: Sequence[ModelVersion], now: datetime
) -> tuple[ImprovementCycleStatus, Pointer]:
    """With the rollout of the version whose turn it is, if one may begin; and what serving.version comes to."""
    if going_on(status) is not None or status.serving.stable is None or not versions.acknowledged(found, status):
        return status, Pointer()
    asked = pointer.follow(cycle.model_copy(update={"status": status}), found)
    version = asked.wanted
    if version is None or cycle.spec.suspend:
        return status, dataclasses.replace(asked, wanted=None)
    digest = versions.digest(version)
    name = version.metadata.name
    begin = rollout.begin(name, digest, ledger.is_known_good(status, digest), now)
    begin = begin.model_copy(update={"uid": version.metadata.uid, "generation": cycle.metadata.generation})
    return ledger.started(status, new_arm(cycle.spec.serving, name, digest, now), begin), asked


def settled(
    status: ImprovementCycleStatus, cycle: ImprovementCycle, run: RunStatus | None, now: datetime
) -> ImprovementCycleStatus:
    """With an ended rollout entered into arms, rejections, champions and history."""
    current = status.rollout
    if current is None or current.phase != "Done":
        return status
    number = run.number if run is not None and run.version == current.version else None
    status = ledger.ended(status, cycle.spec, now, number)
    # The CHECKS column speaks of what goes on; how it ended is in the decision.
    quiet = status.rollout and status.rollout.model_copy(update={"summary": ""})
    return status.model_copy(update={"rollout": quiet})
