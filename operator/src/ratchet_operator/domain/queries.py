"""PromQL of each metric for each arm.

Room: operator/domain. Pure: makes strings.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from ratchet_api.cycle import Reference, RolloutStatus
from ratchet_api.rollout import Metric, Rollout


@dataclass(frozen=True)
class ArmQueries:
    """PromQL for one arm; a field is None when the metric has no such query. Same fields as analysis.ArmReadings."""

    bad: str | None = None
    all: str | None = None
    value: str | None = None
    samples: str | None = None
    age: str | None = None


@dataclass(frozen=True)
class Look:
    """What to ask for one metric now, and what to hand to analysis.judge."""

    metric: Metric
    candidate: ArmQueries
    stable: ArmQueries | None
    """None: stable has no traffic; judge by `reference`."""
    reference: Reference | None


def plan(
    status: RolloutStatus, spec: Rollout, namespace: str, cycle: str, stable_version: str, now: datetime
) -> tuple[Look, ...]:
    """All queries of one measurement of this rollout. Raises ValueError (a sentence) for an unknown {{ variable }}."""
    raise NotImplementedError


def arm_queries(metric: Metric, namespace: str, cycle: str, version: str, window: timedelta) -> ArmQueries:
    """Queries of one metric for one arm over `window`. Raises ValueError (a sentence) for an unknown {{ variable }}."""
    raise NotImplementedError


def check_queries(spec: Rollout) -> None:
    """Raises ValueError (a sentence naming the field) when a custom query uses an unknown {{ variable }}."""
    raise NotImplementedError
