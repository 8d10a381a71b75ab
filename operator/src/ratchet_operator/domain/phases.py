"""What people see: phase and conditions of a cycle and of a version, from facts.

Room: operator/domain. Pure. Ready, Reconciling and Stalled are only ever summarised here (kstatus).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from ratchet_api.conditions import Condition
from ratchet_api.cycle import RolloutStatus, RunStatus
from ratchet_api.reasons import Reason
from ratchet_api.version import VersionPhase


@dataclass(frozen=True)
class Remark:
    """A reason and its sentence."""

    reason: Reason
    message: str


@dataclass(frozen=True)
class CycleFacts:
    """All that a cycle's phase and conditions depend on."""

    suspended: bool
    champion: str | None
    """Version of the stable arm."""
    ready: int
    """Stable pods that are ready and list their model."""
    replicas: int
    """Stable pods wanted."""
    run: RunStatus | None = None
    rollout: RolloutStatus | None = None
    stalled: Remark | None = None
    """Nothing moves until a person, or what is missing, comes."""
    waiting: Remark | None = None
    """Said in Reconciling while work goes on, e.g. Unschedulable."""


@dataclass(frozen=True)
class VersionFacts:
    """All that a version's phase and conditions depend on."""

    root: bool = False
    """The bare base model."""
    trained: Remark | None = None
    """Set once its adapter exists."""
    evaluated: Remark | None = None
    """Set once its report exists."""
    gate: Remark | None = None
    """The gate's decision, once made."""
    accepted: bool | None = None
    """Which way it went."""
    stage: Literal["train", "evaluate"] | None = None
    """The stage that runs or is to run now."""
    failed: Remark | None = None
    """Failed for good."""
    rejected: Remark | None = None
    """Rejected by gate or rollout, or a digest that was."""
    place: Literal["Candidate", "Canary", "Baking", "Serving", "Superseded"] | None = None
    """Its place in the cycle's serving and rollout; Candidate: its arm is coming up."""
    stalled: Remark | None = None
    waiting: Remark | None = None
    """Said in Reconciling while work goes on, e.g. Unschedulable or a retry's reason."""


def cycle_phase(facts: CycleFacts) -> str:
    """One word for the PHASE column."""
    raise NotImplementedError


def cycle_conditions(
    previous: Sequence[Condition], facts: CycleFacts, generation: int, now: datetime
) -> list[Condition]:
    """Ready, Reconciling, Stalled and RolloutProgressing."""
    raise NotImplementedError


def version_phase(facts: VersionFacts) -> VersionPhase:
    """One word for the PHASE column."""
    raise NotImplementedError


def version_conditions(
    previous: Sequence[Condition], facts: VersionFacts, generation: int, now: datetime
) -> list[Condition]:
    """Ready, Reconciling, Stalled, Trained, Evaluated, Accepted, Serving and Rejected."""
    raise NotImplementedError
