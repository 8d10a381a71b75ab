"""A run as a trace: which spans have ended, from the statuses alone.

Room: operator/domain. Pure. Ids follow from uids and names, so that whoever looks again, after a crash or in another
process, finds the same spans: what is sent twice is one span. A run is a trace; a version that a person applied is one,
too.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from ratchet_api.base import ObjectMeta
from ratchet_api.cycle import ImprovementCycleStatus, RolloutStatus, RunStatus
from ratchet_api.version import ModelVersion, StageStatus
from ratchet_operator.domain import versions

OLDEST = timedelta(hours=24)
"""Age at which a span is not told any more: an operator that starts anew tells what ended lately."""
_FAILED = ("Failed", "RolledBack")
Value = str | int | bool


@dataclass(frozen=True)
class SpanEvent:
    """A moment within a span."""

    name: str
    at: datetime
    attributes: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class Span:
    """Something that has ended. Terms as in the OpenTelemetry specification (Trace API, Span)."""

    trace: str
    """32 hexadecimal digits."""
    id: str
    """16 hexadecimal digits."""
    parent: str
    """Id of the span that it is a part of; empty for a trace's root."""
    name: str
    """What it was: run, a stage, or rollout."""
    begun: datetime
    ended: datetime
    error: str | None
    """Why it failed; None when it did not."""
    attributes: Mapping[str, Value]
    events: tuple[SpanEvent, ...] = ()


def trace_id(*names: object) -> str:
    """Of a whole story."""
    return hashlib.sha256("/".join(map(str, names)).encode()).hexdigest()[:32]


def span_id(trace: str, name: str) -> str:
    """Of a part of it."""
    return hashlib.sha256(f"{trace}/{name}".encode()).hexdigest()[:16]


def ended(
    meta: ObjectMeta, status: ImprovementCycleStatus, found: Sequence[ModelVersion], now: datetime
) -> tuple[Span, ...]:
    """All spans of the cycle's last run and last rollout that have ended within OLDEST. `meta`: the cycle's."""
    by_name = {version.metadata.name: version for version in found}
    spans = [*_of_run(meta, status, by_name), *_of_rollout(meta, status, by_name)]
    return tuple(span for span in spans if now - span.ended <= OLDEST)


def _of_run(meta: ObjectMeta, status: ImprovementCycleStatus, found: Mapping[str, ModelVersion]) -> Iterator[Span]:
    run = status.run
    if run is None:
        return
    trace = trace_id(meta.uid, "run", run.number)
    root = span_id(trace, "run")
    version = found.get(run.version or "")
    if version is not None and version.spec.run != run.number:
        version = None
    common = _common(meta) | {"ratchet.run": run.number}
    for stage in [run.curate, *_stages(version)]:
        yield from _stage(trace, root, stage, run.started_at, common)
    if run.finished_at is not None:
        yield Span(
            trace, root, "", "run", run.started_at, run.finished_at, _error(run), common | _outcome(run),
            _announced(status, run.started_at, run.finished_at),
        )  # fmt: skip


def _stages(version: ModelVersion | None) -> list[StageStatus]:
    if version is None:
        return []
    exported = version.status.export
    return [*version.status.stages, *([] if exported is None else [exported.work])]


def _stage(
    trace: str, parent: str, stage: StageStatus | None, begun: datetime, common: Mapping[str, Value]
) -> Iterator[Span]:
    """The stage's span, once it has ended."""
    if stage is None or stage.finished_at is None:
        return
    attributes: dict[str, Value] = {
        **common,
        "ratchet.stage": stage.stage,
        "ratchet.attempts": stage.attempts.total + 1,
    }
    if stage.job is not None:
        attributes["k8s.job.name"] = stage.job
    if stage.reason:
        attributes["ratchet.reason"] = stage.reason
    error = f"{stage.reason}: {stage.message}" if stage.reason else None
    name, start = span_id(trace, stage.stage), stage.started_at or begun
    yield Span(trace, name, parent, stage.stage, start, stage.finished_at, error, attributes)


def _of_rollout(meta: ObjectMeta, status: ImprovementCycleStatus, found: Mapping[str, ModelVersion]) -> Iterator[Span]:
    rollout, run = status.rollout, status.run
    if rollout is None or rollout.decision is None:
        return
    version = found.get(rollout.version)
    mine = version is not None and versions.is_of(rollout, version)
    number = version.spec.run if mine and version is not None else None
    if number and run is not None and number == run.number and not rollout.known_good:
        trace = trace_id(meta.uid, "run", number)
        yield _rollout(trace, span_id(trace, "run"), status, rollout, _common(meta))
        return
    # A version may come back, and that is another story.
    trace = trace_id(meta.uid, "rollout", rollout.version, rollout.uid, rollout.started_at.isoformat())
    whole = _rollout(trace, "", status, rollout, _common(meta))
    if mine and not rollout.known_good:
        for stage in _stages(version):
            yield from _stage(trace, whole.id, stage, rollout.started_at, _common(meta))
    yield whole


def _rollout(
    trace: str, parent: str, status: ImprovementCycleStatus, rollout: RolloutStatus, common: Mapping[str, Value]
) -> Span:
    decision = rollout.decision
    assert decision is not None
    attributes: dict[str, Value] = {
        **common,
        "ratchet.version": rollout.version,
        "ratchet.digest": rollout.digest,
        "ratchet.outcome": decision.outcome,
        "ratchet.reason": decision.reason,
        "ratchet.known_good": rollout.known_good,
    }
    check = next((check for check in rollout.checks if check.name == decision.check), None)
    if check is not None:
        told = {"measured": check.candidate, "limit": check.limit, "samples": check.candidate_samples}
        attributes["ratchet.check"] = check.name
        attributes |= {f"ratchet.check.{key}": str(value) for key, value in told.items() if value is not None}
    events = list(_announced(status, rollout.started_at, decision.at))
    if decision.regression_seen_at is not None:
        events.append(SpanEvent("regression seen", decision.regression_seen_at))
    end = decision.at
    if rollout.weight_zero_at is not None:
        events.append(SpanEvent("weight 0 in force", rollout.weight_zero_at))
        end = max(end, rollout.weight_zero_at)
    error = decision.message if decision.outcome in _FAILED else None
    begun, name = rollout.started_at, span_id(trace, "rollout")
    return Span(trace, name, parent, "rollout", begun, end, error, attributes, tuple(events))


def _announced(status: ImprovementCycleStatus, begun: datetime, over: datetime) -> tuple[SpanEvent, ...]:
    """What people were told meanwhile, as far as the status still has it."""
    return tuple(
        SpanEvent(words.reason, words.at, {"message": words.message})
        for words in status.announcements
        if begun <= words.at <= over
    )


def _common(meta: ObjectMeta) -> dict[str, Value]:
    return {"k8s.namespace.name": meta.namespace, "ratchet.cycle": meta.name}


def _error(run: RunStatus) -> str | None:
    return run.message if run.outcome in _FAILED else None


def _outcome(run: RunStatus) -> dict[str, Value]:
    told = {"ratchet.outcome": run.outcome, "ratchet.version": run.version}
    return {key: value for key, value in told.items() if value is not None}
