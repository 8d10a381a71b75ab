"""The ImprovementCycle resource: the standing policy of one served model, and its serving target.

Room: api. Pure; touches nothing. Its status has one writer, the cycle's reconciler.
"""

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints, WithJsonSchema

from ratchet_api.ab_test import AbTestStatus
from ratchet_api.announcements import ANNOUNCEMENTS_LIMIT, Announcement
from ratchet_api.base import Duration, Model, ObjectMeta, Observed, Signed, Time, matches, rule, rules
from ratchet_api.conditions import Condition
from ratchet_api.data import BaseModelRef, Curation, Sessions, Storage
from ratchet_api.evaluation import Evaluation
from ratchet_api.export import Export
from ratchet_api.names import CYCLE_KIND, GROUP_VERSION
from ratchet_api.notifications import SINKS_LIMIT, Notification, NotificationsStatus
from ratchet_api.presets import Training
from ratchet_api.promotion import Promotion, Proposal
from ratchet_api.rollout import Rollout
from ratchet_api.serving import Serving
from ratchet_api.tracking import Tracking
from ratchet_api.training import StageJob
from ratchet_api.version import StageStatus


def _cron_field(value: str) -> str:
    item = rf"(\*|{value}(-{value})?)(/[1-9][0-9]?)?"
    return rf"{item}(,{item})*"


_MONTHS = "(1[0-2]|0?[1-9]|JAN|FEB|MAR|APR|MAY|JUN|JUL|AUG|SEP|OCT|NOV|DEC)"
_DAYS = "([0-7]|SUN|MON|TUE|WED|THU|FRI|SAT)"
CRON_PATTERN = "^" + " +".join(
    _cron_field(v) for v in ("[0-5]?[0-9]", "(2[0-3]|[01]?[0-9])", "(3[01]|[12][0-9]|0?[1-9])", _MONTHS, _DAYS)
) + "$"  # fmt: skip

Schedule = Annotated[
    str,
    StringConstraints(pattern=CRON_PATTERN, max_length=128),
    WithJsonSchema(
        matches(
            CRON_PATTERN,
            'write five cron fields (minute hour day month weekday), such as "0 2 * * 1" for Mondays at two',
            128,
        )
    ),
]
TimeZone = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9_+/-]{1,64}$"),
    WithJsonSchema(
        matches(r"^[A-Za-z0-9_+/-]{1,64}$", 'write an IANA time zone, such as "Etc/UTC" or "Europe/Berlin"', 64)
    ),
]


class Trigger(Model):
    """When a run starts."""

    schedule: Schedule | None = None
    """Five cron fields; absent means only when a person asks by the annotation ratchet.dev/run."""
    time_zone: TimeZone = "Etc/UTC"
    """IANA time zone of the schedule."""
    min_examples: Annotated[int, Field(ge=1, le=10_000_000)] = 20
    """Fewer good examples than this end the run as Skipped; with training.method dpo fewer pairs, with kto fewer judged
    answers."""
    cooldown: Duration = timedelta(0)
    """Shortest time between a rejection and the next scheduled run."""


_IN_PLACE = "has(self.serving) && has(self.serving.workload)"
_BY_GATEWAY = "!has(self.serving) || !has(self.serving.router) || self.serving.router == 'gateway'"


class ImprovementCycleSpec(Model):
    """The policy that a person applies and Git keeps."""

    suspend: bool = False
    """Stop starting and stop advancing; serving goes on."""
    base_model: Annotated[
        BaseModelRef,
        Field(
            json_schema_extra=rules(
                rule("self == oldSelf", "baseModel cannot change: adapters fit one base only; apply a new cycle")
            )
        ),
    ]
    """The model that is served and improved."""
    storage: Storage
    """Object storage of the cycle."""
    trigger: Trigger = Field(default_factory=Trigger)
    """When a run starts."""
    sessions: Sessions = Field(default_factory=Sessions)
    """Which sessions a run reads."""
    curation: Curation = Field(default_factory=Curation)
    """How sessions become a dataset."""
    curate_job: StageJob = Field(default_factory=StageJob)
    """How the curate stage's Job runs."""
    training: Training = Field(default_factory=Training)
    """How a dataset becomes an adapter."""
    evaluation: Evaluation
    """What an adapter has to prove."""
    serving: Serving = Field(default_factory=Serving)
    """How versions are served."""
    rollout: Rollout = Field(default_factory=Rollout)
    """How an accepted version comes to serve everybody."""
    promotion: Promotion = Field(default_factory=Promotion)
    """Who lets a version go on."""
    notifications: Annotated[
        list[Notification],
        Field(
            max_length=SINKS_LIMIT,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = Field(default_factory=list)
    """Who is told outside the cluster."""
    tracking: Tracking | None = None
    """Where trainings are written down besides; absent means nowhere."""
    export: Export | None = None
    """In which formats a version leaves the cycle; absent means none."""
    history_limit: Annotated[int, Field(ge=1, le=100)] = 10
    """Entries kept in status.history and status.lastGood."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                f"{_BY_GATEWAY} || has(self.rollout) && has(self.rollout.metrics) && "
                "self.rollout.metrics.all(m, !has(m.preset) || m.preset.startsWith('vllm'))",
                "serving.router sends requests past the gateway, which alone counts feedback, errors, latencyP95 and "
                "timeToFirstTokenP95, so these checks would have no data: write rollout.metrics with vllm presets or "
                "PromQL of your own, or serving.router: gateway",
            ),
            rule(
                f"{_BY_GATEWAY} || !has(self.rollout) || !has(self.rollout.strategy) || "
                "self.rollout.strategy != 'abTest' || has(self.rollout.abTest) && has(self.rollout.abTest.outcome) && "
                "(has(self.rollout.abTest.outcome.metric) || has(self.rollout.abTest.outcome.good))",
                "serving.router sends requests past the gateway, which alone counts thumbs: write "
                "rollout.abTest.outcome with metric, or with good and all",
            ),
            rule(
                f"{_BY_GATEWAY} || !has(self.serving.runtime) || self.serving.runtime != 'transformers' || "
                "!has(self.rollout) || !has(self.rollout.metrics) || "
                "self.rollout.metrics.all(m, !has(m.preset) || !m.preset.startsWith('vllm'))",
                "rollout.metrics: the transformers runtime has no vllm series, so its presets would have no data: "
                "write PromQL of your own, for example over ratchet_runtime_requests_total",
            ),
            rule(
                "!has(self.training) || !has(self.training.method) || self.training.method == 'sft' || "
                "!has(self.curation) || !has(self.curation.anchors) && "
                "(!has(self.curation.identity) || size(self.curation.identity) == 0)",
                "training.method dpo and kto learn what people preferred, and nobody preferred curation.identity or "
                "curation.anchors to anything: remove them, or write method: sft",
            ),
            rule(
                "!has(self.promotion) || !has(self.promotion.mode) || self.promotion.mode != 'Git' || "
                "(has(self.serving) && has(self.serving.version))",
                "serving.version: promotion.mode Git changes it in your YAML, so it has to be there; "
                "write NAME-0 for the base model",
            ),
            rule(
                f"!({_IN_PLACE}) || !has(self.rollout) || !has(self.rollout.metrics) || "
                "self.rollout.metrics.all(m, !has(m.preset) || !m.preset.startsWith('vllm'))",
                "rollout.metrics: the vllm presets know an arm by its Deployment, which with serving.workload serves "
                "one version after the other: write the gateway's presets, or PromQL of your own",
            ),
            rule(
                f"({_IN_PLACE}) == ({_IN_PLACE.replace('self.', 'oldSelf.')}) && "
                f"(!({_IN_PLACE}) || self.serving.workload.name == oldSelf.serving.workload.name)",
                "serving.workload cannot come, go or name another Deployment: apply a new cycle",
            ),
        )
    )


class DatasetTargets(Observed):
    """What a training set should have, by rule of thumb. It decides nothing: `trigger.minExamples` does."""

    interactions: int = 50
    """Interactions read, at least."""
    successful: int = 30
    """Interactions at or above the threshold, at least."""
    categories: int = 5
    """Categories with at least one example, at least."""
    examples: int = 100
    """Rows of the training set, at least."""


class DatasetNumbers(Observed):
    """The curate stage's numbers."""

    uri: str
    """Folder of the dataset."""
    digest: str
    """Its digest."""
    interactions: int = 0
    """Interactions read."""
    successful: int = 0
    """Interactions at or above the threshold."""
    categories: int = 0
    """Categories with at least one example."""
    examples: int = 0
    """Rows of the training set."""
    characters: int = 0
    """Length of all their text."""
    quarantined: int = 0
    """Lines that could not be read."""
    targets: DatasetTargets = Field(default_factory=DatasetTargets)
    """What four of these numbers should be at least."""


RunStage = Literal["Curating", "Training", "Evaluating", "RollingOut", "Done"]
RunOutcome = Literal["Skipped", "Failed", "GateRejected", "RolledBack", "Promoted", "Returned", "Accepted"]


class RunStatus(Observed):
    """The present run, or the last one."""

    number: int
    """From 1."""
    stage: RunStage
    """Where it is."""
    request: str = ""
    """Value of the annotation ratchet.dev/run that was last taken."""
    started_at: Time
    """When it was decided."""
    finished_at: Time | None = None
    """When it ended; terminal."""
    outcome: RunOutcome | None = None
    """How it ended."""
    message: str = ""
    """One sentence about it."""
    curate: StageStatus | None = None
    """Its curate stage."""
    dataset: DatasetNumbers | None = None
    """What was curated."""
    version: str | None = None
    """The ModelVersion it made; written before it is created."""
    version_uid: str | None = None
    """Its uid, once it was seen: a version that is gone afterwards was deleted by a person."""


class Arm(Observed):
    """The Deployment that serves one version."""

    version: str
    """Name of the ModelVersion."""
    deployment: str
    """Name of the Deployment."""
    model_name: str
    """What the arm's server calls the model; people never see it."""
    digest: str = ""
    """Digest of the adapter that it serves; empty for the base model. Another one under the same name is not served."""
    port: int
    """Port of the OpenAI API on the arm's pods."""
    weight: int = 0
    """Percent of the sessions asked for."""
    observed_weight: int | None = None
    """Percent of the traffic that it really gets: what every ready gateway pod has in force, or the HTTPRoute's weights
    once all its parents have accepted them, or its share of the Service's ready endpoints."""
    replicas: int = 0
    """Pods wanted now."""
    ready_replicas: int = 0
    """Pods that are ready and list the model."""
    since: Time
    """When the arm was asked for."""


class RetiredArm(Observed):
    """An arm that takes no traffic any more and is removed after scaleDownDelay."""

    version: str
    """Name of the ModelVersion."""
    deployment: str
    """Name of the Deployment."""
    since: Time
    """When it lost its traffic."""


class ServingStatus(Observed):
    """What serves. The gateway routes by this block alone."""

    stable: Arm | None = None
    """The champion's arm."""
    candidate: Arm | None = None
    """The candidate's arm."""
    retired: list[RetiredArm] = Field(default_factory=list, max_length=32)
    """Arms on their way out."""


Verdict = Literal["Pass", "Fail", "Unknown"]


class Reference(Observed):
    """Stable's figures while it still had traffic: what the candidate is held against once it has all of it."""

    value: Signed
    """proportion: share of bad events; ratioToStable: the value."""
    samples: int | None = None
    """Events behind it."""
    additive: bool = False
    """Whether the figures of several steps can be added up: shares can, quantiles cannot."""
    at: Time
    """When they were read."""


class Check(Observed):
    """One metric's state in the present step."""

    name: str
    """Name of the metric."""
    verdict: Verdict
    """Verdict of the last measurement."""
    reason: str = ""
    """For Unknown: NoData, TooFewSamples, QueryError, Stale or ManySeries."""
    message: str = ""
    """Measured against limit, in words."""
    candidate: Signed | None = None
    """The candidate's value."""
    stable: Signed | None = None
    """Stable's value over the same window."""
    lower: Signed | None = None
    """proportion: lower end of the anytime-valid interval of the difference."""
    upper: Signed | None = None
    """proportion: its upper end."""
    limit: Signed | None = None
    """What it was held against."""
    candidate_samples: int | None = None
    """Events behind the candidate's value."""
    stable_samples: int | None = None
    """Events behind stable's value."""
    passes: int = 0
    """Passed measurements in this step."""
    failures: int = 0
    """Failed measurements in this step."""
    unknowns: int = 0
    """Unknown measurements in a row."""
    passed_at: Time | None = None
    """Last Pass in this rollout."""
    first_failed_at: Time | None = None
    """First failed measurement in this step."""
    reference: Reference | None = None
    """Stable's figures from before the candidate had all traffic: of all steps, or the last ones."""
    carried: Reference | None = None
    """The part of reference that earlier steps saw."""
    measured_at: Time
    """When."""

    @property
    def leans_to_harm(self) -> bool:
        """Whether the best estimate of a proportion's difference is beyond the margin without being proven to be."""
        if self.candidate is None or self.stable is None or self.limit is None or self.lower is None:
            return False
        return self.candidate - self.stable > self.limit >= self.lower


RolloutPhase = Literal["Starting", "Canary", "Baking", "RollingBack", "Done"]
RolloutOutcome = Literal["Promoted", "RolledBack", "Returned"]


class RolloutDecision(Observed):
    """What ended the rollout, with its evidence; written before it is acted upon."""

    outcome: RolloutOutcome
    """Promoted; RolledBack (the version is rejected for good); Returned to stable without blame."""
    reason: str
    """A Reason."""
    check: str = ""
    """The deciding check, if it was one."""
    message: str
    """Measured against limit, in words."""
    at: Time
    """When it was decided."""
    regression_seen_at: Time | None = None
    """First failed measurement of the deciding check in its step."""


class RolloutStatus(Observed):
    """The rollout that is going on, or the last one."""

    version: str
    """The candidate."""
    uid: str = ""
    """Its uid: another object of its name is another version."""
    generation: int = 0
    """Generation of the cycle when it began."""
    digest: str
    """Digest of its adapter."""
    phase: RolloutPhase
    """Where it is."""
    step: int = -1
    """Index of the step in rollout.steps; -1 before the first."""
    weight: int = 0
    """Percent of the sessions asked for the candidate."""
    started_at: Time
    """When the rollout began."""
    step_since: Time
    """When the present step began to count, i.e. its weight was observed in force."""
    unconfirmed_since: Time | None = None
    """Since when the weight asked for is not confirmed to be in force by the gateways, the HTTPRoute's parents or the
    Service's endpoints; nothing counts meanwhile."""
    unready_since: Time | None = None
    """Since when the candidate, after it was ready, has fewer ready pods than it should have."""
    held_since: Time | None = None
    """Since when it is held."""
    awaiting_since: Time | None = None
    """Since when everything but a person's approval is there for all of the traffic."""
    known_good: bool = False
    """A return to a version in lastGood: no steps, but a bake."""
    checks: list[Check] = Field(default_factory=list, max_length=20)
    """One entry a metric."""
    summary: str = ""
    """For people: `feedback ok, errors ok, p95 ok`."""
    measured_at: Time | None = None
    """When the metrics were last looked at."""
    ab_test: AbTestStatus | None = None
    """strategy abTest: estimate, interval, exposures and the rule that decided."""
    decision: RolloutDecision | None = None
    """What ended it."""
    weight_zero_at: Time | None = None
    """RollingBack: when every gateway was seen to send the candidate nothing."""
    settled: bool = False
    """Done: whether its end is in serving, rejected, lastGood and history."""


class Rejected(Observed):
    """A version that will not be tried again."""

    digest: str
    """Digest of its adapter."""
    version: str
    """Its name then."""
    reason: str
    """A Reason."""
    message: str = ""
    """The evidence in words."""
    at: Time
    """When."""
    retried: bool = False
    """It was tried again on a person's word (rollout.retryDigests) and rejected again: that word is used up."""


class Good(Observed):
    """A version that served everybody and stood its bake."""

    version: str
    """Its name."""
    digest: str
    """Digest of its adapter; empty for the base model."""
    at: Time
    """When it became champion."""


class HistoryEntry(Observed):
    """One run or rollout that has ended."""

    version: str
    """The version; empty when a run made none."""
    run: int | None = None
    """Number of the run."""
    outcome: RunOutcome
    """How it ended."""
    message: str = ""
    """Why."""
    at: Time
    """When."""


class ImprovementCycleStatus(Observed):
    """What the operator sees and does."""

    observed_generation: int = 0
    """Generation of the spec that this speaks of."""
    phase: str = "Initializing"
    """For people; computed from the conditions."""
    conditions: Annotated[
        list[Condition],
        Field(
            max_length=16, json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
        ),
    ] = Field(default_factory=list)
    """Ready, Reconciling, Stalled, RolloutProgressing."""
    run: RunStatus | None = None
    """The present run, or the last one."""
    serving: ServingStatus = Field(default_factory=ServingStatus)
    """What serves."""
    rollout: RolloutStatus | None = None
    """The rollout that is going on, or the last one."""
    promotion: Proposal | None = None
    """promotion.mode Git: the change of the pointer that is proposed now, or was last."""
    notifications: NotificationsStatus | None = None
    """What the receivers in spec.notifications have not been told yet; absent at rest."""
    rejected: list[Rejected] = Field(default_factory=list, max_length=256)
    """Versions that will not be tried again, newest last."""
    last_good: list[Good] = Field(default_factory=list, max_length=100)
    """Champions so far, newest last."""
    announcements: list[Announcement] = Field(default_factory=list, max_length=ANNOUNCEMENTS_LIMIT)
    """The last events about it, so that one which a crash kept from being posted is posted afterwards."""
    history: list[HistoryEntry] = Field(default_factory=list, max_length=100)
    """Runs and rollouts that have ended, newest last."""
    next_run_time: Time | None = None
    """When the schedule starts the next run."""


class ImprovementCycle(Observed):
    """The standing policy of one served model, and its serving target."""

    api_version: str = GROUP_VERSION
    kind: str = CYCLE_KIND
    metadata: ObjectMeta
    spec: ImprovementCycleSpec
    status: ImprovementCycleStatus = Field(default_factory=ImprovementCycleStatus)
