"""Short ways to say what a rollout is and what is seen of it."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from ratchet_api.cycle import Check, ImprovementCycleSpec, Reference, RolloutStatus
from ratchet_api.rollout import Metric, Rollout, Step
from ratchet_operator.domain import rollout
from ratchet_operator.domain.rollout import ArmObservation, Move, RolloutObservation

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
DIGEST = "sha256:" + "7" * 64
OTHER = "sha256:" + "5" * 64

FEEDBACK = Metric(name="feedback", preset="feedback", min_samples=200)
P95 = Metric(name="p95", preset="latencyP95", min_samples=200)


def after(seconds: float, start: datetime = NOW) -> datetime:
    """So many seconds later."""
    return start + timedelta(seconds=seconds)


def policy(**changes: Any) -> Rollout:
    """Steps 5, 50, 100 of a minute each, one metric, a look each 10 s, failureLimit 0, a bake of 5 minutes."""
    minute = timedelta(minutes=1)
    settings: dict[str, Any] = {
        "steps": [
            Step(weight=5, min_time=minute),
            Step(weight=50, min_time=minute),
            Step(weight=100, min_time=timedelta(0)),
        ],
        "interval": timedelta(seconds=10),
        "metrics": [FEEDBACK],
        "failure_limit": 0,
        "unknown_limit": 3,
        "max_hold": timedelta(minutes=10),
        "progress_deadline": timedelta(minutes=2),
        "bake": timedelta(minutes=5),
    }
    return Rollout(**(settings | changes))


def cycle_spec(**changes: Any) -> ImprovementCycleSpec:
    """The spec of a cycle with this rollout and little else."""
    suite = {"name": "rules", "role": "target", "cases": {"configMap": {"name": "suites", "key": "rules.jsonl"}}}
    document = {
        "baseModel": {"uri": "s3://ratchet/models/base"},
        "storage": {"uri": "s3://ratchet/assistant"},
        "evaluation": {"suites": [suite]},
    }
    return ImprovementCycleSpec.model_validate(document).model_copy(update=changes)


def arm(ready: int = 1, replicas: int = 1, serves_model: bool | None = True, **more: Any) -> ArmObservation:
    """An arm that is there."""
    return ArmObservation(exists=True, replicas=replicas, ready=ready, serves_model=serves_model, **more)


def seen(
    observed: int | None,
    *checks: Check,
    candidate: ArmObservation | None = None,
    stable: ArmObservation | None = None,
    **more: Any,
) -> RolloutObservation:
    """What a pass observes; without checks no measurement was due."""
    return RolloutObservation(
        stable=arm() if stable is None else stable,
        candidate=arm() if candidate is None else candidate,
        observed_weight=observed,
        checks=checks or None,
        **more,
    )


def check(verdict: str, at: datetime, name: str = "feedback", reason: str = "", **more: Any) -> Check:
    """One fresh judgement."""
    if verdict == "Unknown" and not reason:
        reason = "NoData"
    return Check(name=name, verdict=verdict, reason=reason, message=f"{name}: {verdict}", measured_at=at, **more)


def passes(at: datetime, name: str = "feedback", **more: Any) -> Check:
    """A fresh Pass."""
    return check("Pass", at, name, **more)


def fails(at: datetime, name: str = "feedback", **more: Any) -> Check:
    """A fresh Fail."""
    return check("Fail", at, name, **more)


def unknown(at: datetime, reason: str = "NoData", name: str = "feedback", **more: Any) -> Check:
    """A fresh Unknown."""
    return check("Unknown", at, name, reason, **more)


def reference(value: str = "0.2", samples: int | None = 400, at: datetime = NOW) -> Reference:
    """Stable's figures from before."""
    return Reference(value=Decimal(value), samples=samples, at=at)


def canary(weight: int = 5, since: datetime = NOW, **more: Any) -> RolloutStatus:
    """A step that counts since `since` and was last looked at then."""
    status = rollout.begin("assistant-7", DIGEST, False, since)
    settings = {"phase": "Canary", "step": 0, "weight": weight, "step_since": since, "measured_at": since}
    return status.model_copy(update=settings | more)


def baking(since: datetime = NOW, **more: Any) -> RolloutStatus:
    """A bake that counts since `since`; feedback has passed before."""
    earlier = [unknown(since, passed_at=since, reference=reference())]
    return canary(100, since, **({"phase": "Baking", "step": 2, "checks": earlier} | more))


def rolling_back(**more: Any) -> RolloutStatus:
    """A decision is written at weight 50; nothing is done about it yet."""
    move = rollout.advance(canary(50), policy(), seen(50, abort=True, stable=arm(0)), NOW)
    return move.status.model_copy(update=more)


def look(status: RolloutStatus, spec: Rollout, seconds: float, *checks: Check, **more: Any) -> Move:
    """A pass `seconds` after NOW with the asked weight in force."""
    return rollout.advance(status, spec, seen(status.weight, *checks, **more), after(seconds))


def outcome(move: Move) -> tuple[str, str] | None:
    """(outcome, reason) of the decision."""
    decision = move.status.decision
    return None if decision is None else (decision.outcome, str(decision.reason))
