"""One look at one metric, judged: Pass, Fail or Unknown.

Room: operator/domain. Pure. Fetching is `clients`' business; what was read arrives here as `Reading`s.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from ratchet_api.cycle import Check, Reference
from ratchet_api.rollout import Metric

UnknownReason = Literal["NoData", "TooFewSamples", "QueryError", "Stale", "ManySeries"]


@dataclass(frozen=True)
class Sample:
    """Exactly one finite number."""

    value: float


@dataclass(frozen=True)
class NoSample:
    """A query that did not give exactly one finite number, and why."""

    reason: UnknownReason
    message: str


Reading = Sample | NoSample


@dataclass(frozen=True)
class ArmReadings:
    """What the queries of one arm gave; a field is None when the metric has no such query (see queries.ArmQueries)."""

    bad: Reading | None = None
    all: Reading | None = None
    value: Reading | None = None
    samples: Reading | None = None
    age: Reading | None = None
    """Seconds since the gateway's series of this arm were last scraped."""


def judge(
    metric: Metric, candidate: ArmReadings, stable: ArmReadings, now: datetime, reference: Reference | None = None
) -> Check:
    """The verdict of one look, with failures = unknowns = 0.

    `reference`: stable's figures from before it lost its traffic; when given, `stable` is not looked at
    (see queries.plan, which says when).
    """
    raise NotImplementedError


def fold(previous: Check | None, new: Check) -> Check:
    """`new` with the counts of the step carried on: passes and failures in the step, unknowns in a row.

    A look that is known already (same measured_at) changes nothing.
    """
    raise NotImplementedError
