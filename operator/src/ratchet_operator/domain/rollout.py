"""The rollout's state machine: Starting, Canary steps, Baking, RollingBack, Done.

Room: operator/domain. Pure.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from ratchet_api.cycle import Check, RolloutStatus
from ratchet_api.reasons import Reason
from ratchet_api.rollout import Rollout


@dataclass(frozen=True)
class ArmObservation:
    """What is seen of one arm."""

    exists: bool
    replicas: int
    """Pods wanted."""
    ready: int
    """Pods ready."""
    serves_model: bool | None
    """Whether the ready pods list the version's model; None: not asked, or no answer."""
    failure: str | None = None
    """A sentence when pods crash, run out of memory or refuse their adapter: rolls back at once."""
    failure_reason: Reason = Reason.ARM_FAILED
    """ARM_FAILED, or what is known better, e.g. DIGEST_MISMATCH."""
    waiting: str | None = None
    """A sentence when pods cannot start through no fault of the version (unschedulable, image or base model missing):
    at the deadline the rollout is then Returned, not RolledBack."""


@dataclass(frozen=True)
class RolloutObservation:
    """Everything that `advance` looks at besides status and spec."""

    stable: ArmObservation
    candidate: ArmObservation
    observed_weight: int | None
    """Percent that all ready gateways have in force for the candidate (0 if they do not know it); None: not agreed."""
    checks: tuple[Check, ...] | None = None
    """Fresh judgements when a measurement was due, else None."""
    abort: bool = False
    suspended: bool = False


@dataclass(frozen=True)
class Event:
    """A Kubernetes event to be posted after the status is written."""

    type: Literal["Normal", "Warning"]
    reason: Reason
    message: str


@dataclass(frozen=True)
class Move:
    """What to do: write `status` first, then ask the gateways for `weight`."""

    status: RolloutStatus
    weight: int
    events: tuple[Event, ...] = ()
    stalled: tuple[Reason, str] | None = None
    wake_at: datetime | None = None


def begin(version: str, digest: str, known_good: bool, now: datetime) -> RolloutStatus:
    """A rollout that starts now. `digest` is empty for the bare base model."""
    raise NotImplementedError


def measurement_due(status: RolloutStatus, spec: Rollout, now: datetime) -> bool:
    """Whether the metrics should be looked at in this pass (queries.plan -> analysis.judge -> observation.checks)."""
    raise NotImplementedError


def advance(status: RolloutStatus, spec: Rollout, seen: RolloutObservation, now: datetime) -> Move:
    """The next move. Total over every status; Done absorbs; calling it again with the same input is harmless."""
    raise NotImplementedError
