"""The online proof: steps of weight, metrics, limits and bake.

Room: api. Pure; touches nothing.
"""

from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints, WithJsonSchema

from ratchet_api.ab_test import AbTest
from ratchet_api.base import Digest, Duration, Fraction, Model, Name, Signed, Unsigned, rule, rules

Query = Annotated[
    str,
    StringConstraints(min_length=1, max_length=2048),
    WithJsonSchema({"type": "string", "minLength": 1, "maxLength": 2048}),
]
"""PromQL that gives one number. {{ namespace }}, {{ cycle }}, {{ version }} and {{ window }} are filled in per arm."""

Preset = Literal["feedback", "errors", "latencyP95", "timeToFirstTokenP95", "vllmLatencyP95", "vllmTimeToFirstTokenP95"]

LONGEST_BAKE = 2
"""A bake whose evidence leans to harm is over after so many times rollout.bake."""


class Metric(Model):
    """One check of the online analysis. Either a preset of the gateway's own metrics, or PromQL."""

    name: Name
    """Name of the check, as it appears in status and events."""
    preset: Preset | None = None
    """feedback (thumbs-down of all feedback) and errors (5xx of all requests) are proportions; latencyP95 and
    timeToFirstTokenP95 are ratios to stable. These four are counted at the gateway. vllmLatencyP95 and
    vllmTimeToFirstTokenP95 are the same as vLLM's pods measure them; Prometheus has to scrape the arms' pods with the
    labels namespace and pod."""
    kind: Literal["proportion", "ratioToStable", "threshold"] | None = None
    """How a custom query is judged; a preset knows its own kind."""
    bad: Query | None = None
    """proportion: number of bad events in the window."""
    all: Query | None = None
    """proportion: number of all events in the window."""
    query: Query | None = None
    """ratioToStable and threshold: the value."""
    samples: Query | None = None
    """ratioToStable and threshold: number of events behind the value; absent means that minSamples is not asked for."""
    margin: Fraction = Decimal("0.05")
    """proportion: largest acceptable excess of the candidate's share of bad events over stable's."""
    limit: Unsigned = Decimal("1.5")
    """ratioToStable: largest acceptable candidate / stable."""
    max: Signed | None = None
    """threshold: the candidate's value must not be above it."""
    min: Signed | None = None
    """threshold: the candidate's value must not be below it."""
    assurance: Literal["NoHarm", "NonInferior", "Superior"] = "NoHarm"
    """proportion: what Pass means. NoHarm: enough samples and no proof of harm. NonInferior: proven within the margin.
    Superior: proven better."""
    min_samples: Annotated[int, Field(ge=1, le=1_000_000_000)] = 200
    """Fewer events than this in either arm are Unknown, neither Pass nor Fail."""
    failure_limit: Annotated[int, Field(ge=0, le=1000)] | None = None
    """Failed measurements tolerated in one step; absent means the rollout's own."""
    dry_run: bool = False
    """Measured and reported, but decides nothing: for a check that is being tried out."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "has(self.preset) != has(self.kind)",
                "write either a preset, or a kind with its queries, not both",
            ),
            rule(
                "!has(self.preset) || !has(self.bad) && !has(self.all) && !has(self.query) && !has(self.samples)",
                "a preset brings its own queries: remove bad, all, query and samples, or write a kind instead",
            ),
            rule(
                "!has(self.kind) || self.kind != 'proportion' || has(self.bad) && has(self.all) && !has(self.query)",
                "kind: proportion needs two queries, bad and all, and no query",
            ),
            rule(
                "!has(self.kind) || self.kind == 'proportion' || has(self.query) && !has(self.bad) && !has(self.all)",
                "kind: ratioToStable and threshold need query, and neither bad nor all",
            ),
            rule(
                "!has(self.kind) || self.kind != 'threshold' || has(self.min) || has(self.max)",
                "kind: threshold needs a bound: write max, min or both",
            ),
            rule(
                "has(self.kind) && self.kind == 'threshold' || !has(self.min) && !has(self.max)",
                "min and max belong to kind: threshold",
            ),
        )
    )


DEFAULT_METRICS = [
    Metric(name="feedback", preset="feedback"),
    Metric(name="errors", preset="errors", margin=Decimal("0.02")),
    Metric(name="p95", preset="latencyP95", limit=Decimal("1.5")),
]


class Step(Model):
    """One step of the canary."""

    weight: Annotated[int, Field(ge=1, le=100)]
    """Percent of the sessions that the candidate gets."""
    min_time: Duration = timedelta(minutes=5)
    """Shortest stay at this weight."""


DEFAULT_STEPS = [Step(weight=5), Step(weight=25), Step(weight=50), Step(weight=100, min_time=timedelta(0))]


class Rollout(Model):
    """How an accepted version comes to serve everybody, and what sends it back."""

    strategy: Literal["canary", "abTest"] = "canary"
    """canary: by steps, as long as no check proves harm. abTest: at one weight, until an outcome has given its answer;
    then the bake. The checks judge and roll back in both."""
    ab_test: AbTest | None = None
    """strategy abTest: its split, outcome and end; absent means half of the sessions and the thumbs-up share."""
    steps: list[Step] = Field(default=DEFAULT_STEPS, min_length=1, max_length=20)
    """strategy canary: weights in rising order; the last one is 100. An abTest has the one weight of its own."""
    interval: Duration = timedelta(seconds=60)
    """Time between two measurements. Proportions are also looked at in between, five times an interval but not more
    often than every 2 s: harm that is proven counts at once, and nothing else of such a look counts."""
    window: Duration = timedelta(minutes=5)
    """Range of the ratioToStable and threshold queries. Proportions count from the step's begin, and are also held
    against the last window and the last quarter of it, so that late harm is seen at once."""
    metrics: list[Metric] = Field(default=DEFAULT_METRICS, min_length=1, max_length=20)
    """The checks."""
    failure_limit: Annotated[int, Field(ge=0, le=1000)] = 2
    """Failed measurements of one metric tolerated in one step; one more rolls back."""
    unknown_limit: Annotated[int, Field(ge=0, le=100_000)] = 5
    """Unknown measurements of one metric in a row tolerated before the rollout is Held."""
    max_hold: Duration = timedelta(hours=6)
    """A hold longer than this returns to stable without marking the version bad."""
    progress_deadline: Duration = timedelta(minutes=30)
    """Time that the candidate arm may take to become ready."""
    bake: Duration = timedelta(minutes=30)
    """Time after 100 percent in which the previous arm is kept warm and a regression still rolls back. It goes on, up
    to twice as long, while a proportion looks worse than its margin and that is neither proven nor gone."""
    scale_down_delay: Duration = timedelta(minutes=5)
    """How long an arm without traffic is kept before it is removed, so that answers under way end."""
    retry_digests: list[Digest] = Field(default_factory=list, max_length=64)
    """Rejected adapters that a person wants tried again, by digest."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!has(self.abTest) || has(self.strategy) && self.strategy == 'abTest'",
                "rollout.abTest belongs to strategy: abTest; write that, or leave abTest out",
            ),
            rule(
                "!has(self.abTest) || !has(self.abTest.outcome) || !has(self.abTest.outcome.metric) || "
                "has(self.metrics) && self.metrics.exists(m, m.name == self.abTest.outcome.metric && "
                "(has(m.kind) && m.kind == 'proportion' || has(m.preset) && m.preset in ['feedback', 'errors']))",
                "rollout.abTest.outcome.metric: name a proportion of rollout.metrics",
            ),
            rule(
                "!has(self.steps) || self.steps[self.steps.size() - 1].weight == 100",
                "rollout.steps: the last step must have weight: 100",
            ),
            rule(
                "!has(self.steps) || self.steps.map(s, s.weight).isSorted() && "
                "self.steps.all(s, self.steps.exists_one(t, t.weight == s.weight))",
                "rollout.steps: weights must rise from step to step, for example 5, 25, 50, 100",
            ),
            rule(
                "!has(self.metrics) || self.metrics.all(m, self.metrics.exists_one(n, n.name == m.name))",
                "rollout.metrics: two metrics have one name; give each its own",
            ),
            rule(
                "!has(self.metrics) || self.metrics.exists(m, !has(m.dryRun) || !m.dryRun)",
                "rollout.metrics: all metrics are dryRun, so nothing could be judged; leave dryRun out of one",
            ),
        )
    )
