"""The A/B test of a rollout: a fixed split until an outcome says better, not worse or worse, or the time is over.

Room: api. Pure; touches nothing.
"""

from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints, WithJsonSchema

from ratchet_api.base import Duration, Fraction, Model, Name, Observed, Signed, Time, rule, rules

Counter = Annotated[
    str,
    StringConstraints(min_length=1, max_length=2048),
    WithJsonSchema({"type": "string", "minLength": 1, "maxLength": 2048}),
]
"""PromQL that gives one count. {{ namespace }}, {{ cycle }}, {{ version }} and {{ window }} are filled in per arm."""


class Outcome(Model):
    """What the two versions are compared by: a share of good outcomes. Left empty: thumbs-up of all feedback."""

    metric: Name | None = None
    """Name of a proportion in rollout.metrics; good is what it does not count as bad."""
    good: Counter | None = None
    """Number of good outcomes in the window, for example of conversations that people marked as resolved."""
    all: Counter | None = None
    """Number of all outcomes in the window."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "has(self.good) == has(self.all) && !(has(self.metric) && has(self.good))",
                "abTest.outcome: write either metric, or the two queries good and all, or nothing for the thumbs-up "
                "share",
            )
        )
    )


class AbTest(Model):
    """The test's split, outcome and end."""

    weight: Annotated[int, Field(ge=1, le=99)] = 50
    """Percent of the sessions that the candidate gets, from the begin to the end of the test."""
    outcome: Outcome = Field(default_factory=Outcome)
    """What the versions are compared by."""
    assurance: Literal["Superior", "NonInferior"] = "NonInferior"
    """What promotes. Superior: only proof that the candidate is better. NonInferior: also, when the time is over, proof
    that it is not worse by the margin."""
    margin: Fraction = Decimal("0.05")
    """NonInferior: largest acceptable deficit of the candidate's share of good outcomes; proof of a larger one rolls
    back. Superior: proof of any deficit rolls back."""
    min_samples: Annotated[int, Field(ge=20, le=1_000_000_000)] = 200
    """Outcomes that each arm must have before anything is concluded."""
    max_duration: Duration = timedelta(days=14)
    """The test's time, from when the split is in force. Without an answer by then: back to stable, without blame."""


AbVerdict = Literal["Undecided", "Better", "NotWorse", "Worse", "Inconclusive"]


class AbTestStatus(Observed):
    """The A/B test as it was last looked at."""

    verdict: AbVerdict = "Undecided"
    """Better and NotWorse promote, Worse rolls back, Inconclusive returns to stable."""
    rule: str = ""
    """The rule that decided, with its figures; empty while it is undecided."""
    message: str = ""
    """What was seen, in words."""
    reason: str = ""
    """Why nothing could be seen: NoData, TooFewSamples, QueryError, Stale or ManySeries."""
    candidate: Signed | None = None
    """The candidate's share of good outcomes."""
    stable: Signed | None = None
    """Stable's share of good outcomes."""
    difference: Signed | None = None
    """Estimate: candidate - stable."""
    lower: Signed | None = None
    """Lower end of the anytime-valid interval of the difference."""
    upper: Signed | None = None
    """Its upper end."""
    candidate_samples: int | None = None
    """Exposures: outcomes of the candidate."""
    stable_samples: int | None = None
    """Exposures: outcomes of stable."""
    unknowns: int = 0
    """Looks in a row that could not be made."""
    measured_at: Time
    """When it was last looked at."""
    decided_at: Time | None = None
    """When it was decided."""
