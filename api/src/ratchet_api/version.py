"""The ModelVersion resource: an immutable recipe, and what came of it.

Room: api. Pure; touches nothing. Its status has one writer, the version's reconciler.
"""

from decimal import Decimal
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from ratchet_api.announcements import ANNOUNCEMENTS_LIMIT, Announcement
from ratchet_api.base import Digest, Model, Name, ObjectMeta, Observed, Signed, Time, rule, rules
from ratchet_api.conditions import Condition
from ratchet_api.data import AdapterRef, BaseModelRef, DatasetRef
from ratchet_api.evaluation import EvaluationPolicy
from ratchet_api.export import ExportResult
from ratchet_api.names import GROUP_VERSION, VERSION_KIND
from ratchet_api.training import Recipe


class ModelVersionSpec(Model):
    """What the version is made of. Immutable: a changed recipe is another version."""

    cycle: Name
    """The ImprovementCycle that this version belongs to, in the same namespace."""
    run: Annotated[int, Field(ge=0)] | None = None
    """Number of the run that made it; absent for a version applied by a person."""
    parent: Name | None = None
    """The version that served when this one was made."""
    champion: Name | None = None
    """The version to beat; absent means the one that serves when the evaluation starts."""
    base_model: BaseModelRef | None = None
    """The base; absent means the cycle's, which it must equal otherwise."""
    dataset: DatasetRef | None = None
    """Recipe: the training set."""
    training: Recipe | None = None
    """Recipe: the settings; absent means the cycle's at the time of the training."""
    adapter: AdapterRef | None = None
    """A finished adapter, instead of a recipe."""
    evaluation: EvaluationPolicy | None = None
    """What it has to prove; absent means the cycle's evaluation."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule("self == oldSelf", "a ModelVersion's spec is immutable: apply a new ModelVersion with another name"),
            rule(
                "!(has(self.dataset) && has(self.adapter))",
                "write either dataset (a recipe to train) or adapter (a finished one), not both",
            ),
            rule(
                "has(self.dataset) || has(self.adapter) || has(self.run) && self.run == 0",
                "write either dataset (a recipe to train) or adapter (a finished one)",
            ),
            rule(
                "!has(self.training) || has(self.dataset)",
                "training belongs to a recipe: add dataset, or remove training",
            ),
        )
    )


class Artifact(Observed):
    """A finished artifact in storage."""

    uri: str
    """Folder in storage."""
    digest: str
    """Digest that its manifest has."""


class Artifacts(Observed):
    """What the version's stages made."""

    adapter: Artifact | None = None
    """The LoRA adapter."""
    report: Artifact | None = None
    """The evaluation report with every case."""
    sealed_report: Artifact | None = None
    """The report of the sealed suites: numbers only."""


class TrainingEstimate(Observed):
    """What a training will take, said before a GPU is asked for."""

    gpus: int
    """Number of GPUs that the Job asks for."""
    gpu_hours: Signed
    """Their time, in hours of one GPU."""
    cost: Signed | None = None
    """By `training.price`, if that is given."""
    currency: str | None = None
    """Of the cost, ISO 4217."""
    basis: str
    """What it was reckoned from."""


class Rewards(Observed):
    """How a training on preferences moved answers, as mean over the last steps. An answer's reward is beta times how
    much likelier, in nats, the adapter makes it than the base model does."""

    chosen: Signed | None = None
    """Of the answers that people preferred."""
    rejected: Signed | None = None
    """Of those that they did not."""
    margin: Signed | None = None
    """chosen - rejected."""
    accuracy: Signed | None = None
    """dpo: share of the pairs whose chosen answer has the higher reward. kto: share of the answers whose reward is on
    their side of the reference point, beta times kl."""
    kl: Signed | None = None
    """kto: how far, in nats, the adapter has led from the base model, by answers to other questions."""


class TrainingStatus(Observed):
    """Progress and result of the training."""

    estimate: TrainingEstimate | None = None
    """What it was expected to take; absent when nothing is known of the model's size or of earlier trainings."""

    examples: int | None = None
    """Rows of the training set."""
    step: int | None = None
    """Optimiser steps done."""
    steps: int | None = None
    """Optimiser steps to do."""
    loss: Signed | None = None
    """Mean loss of the last steps: per supervised token, for dpo per pair, for kto per answer."""
    validation_loss: Signed | None = None
    """The same of what curation kept aside (`curation.validationShare`), when it was last looked at: before the first
    step, which is the base model, and at the end of each epoch."""
    rewards: Rewards | None = None
    """dpo and kto: what the adapter prefers."""
    tokens_per_second: int | None = None
    """Supervised tokens trained per second."""
    eta_seconds: int | None = None
    """Seconds that remain, estimated."""
    seconds: int | None = None
    """What a finished training took, without loading the model and without interruptions."""


class SliceResult(Observed):
    """A slice of a suite (the cases of one category) that is proven to have lost."""

    name: str
    """The category."""
    cases: int
    """Number of its cases."""
    difference: Signed
    """candidate - champion, mean scores."""
    upper_bound: Signed
    """One-sided upper confidence bound of the difference; below zero, or the loss would not be proven."""


class SuiteResult(Observed):
    """Paired result of one suite: candidate against champion over the same cases."""

    name: str
    """Name of the suite."""
    role: Literal["target", "guardrail", "safety"]
    """Its role."""
    cases: int
    """Number of cases, n."""
    champion: Signed
    """Mean score of the champion, 0 to 1."""
    candidate: Signed
    """Mean score of the candidate, 0 to 1."""
    difference: Signed
    """candidate - champion."""
    lower_bound: Signed
    """One-sided lower confidence bound of the difference: of a target at 1 - alpha, of others at the policy's
    confidence."""
    p_value: Signed
    """One-sided p value of "not better"."""
    better: int
    """Cases that only the candidate passes."""
    worse: int
    """Cases that only the champion passes."""
    digest: str | None = None
    """What a target asks, in 12 hexadecimal digits: the same cases have the same, whatever their order and ids."""
    look: int | None = None
    """How many versions of the cycle a target's cases judge with this one."""
    alpha: Signed | None = None
    """Error rate that earlier looks left for a target; its p value has to be below it."""
    lost_slices: list[SliceResult] = Field(default_factory=list, max_length=4)
    """Slices with enough cases that are proven to have lost, the worst ones; the report has them all."""


class EvaluationStatus(Observed):
    """Result of the evaluation, and the gate's decision in words."""

    champion: str
    """The version it was compared with."""
    suites: list[SuiteResult] = Field(default_factory=list, max_length=16)
    """One result a suite."""
    target: str = ""
    """For people: the target's gain in points, with p."""
    guardrail: str = ""
    """For people: the guardrails' change in points, with ok or veto."""
    unsealed: bool = False
    """It passed all other suites, and the sealed ones are open to it."""


class Look(Observed):
    """That the cases of a target suite were used up a little: every version that is judged by them costs error rate."""

    suite: str
    """Name of the suite."""
    digest: str
    """What it asked, as in the suite's result."""
    number: int
    """How many versions of the cycle were judged by the same cases so far, this one included."""
    alpha: Signed
    """Error rate that was left for this one: the p value has to be below it."""
    proven: bool
    """Whether it was. The rate of a proof is given back to the next look."""


class Attempts(Observed):
    """Attempts used by one stage, by failure class. They belong to the owner and survive the Jobs."""

    infrastructure: int = 0
    """Infrastructure failures retried."""
    out_of_memory: int = 0
    """Out-of-memory kills retried with a smaller micro-batch."""
    preempted: int = 0
    """Preemptions; free."""
    missing: int = 0
    """Attempts that found something missing that the spec names; free, but ever slower."""

    repeated: int = 0
    """Evaluations done again because another champion served by the time of the rollout, and exports that a person
    asked for again; free."""
    unsealed: int = 0
    """Evaluations that went on with the sealed suites; free."""

    @property
    def total(self) -> int:
        """Number of the attempt that runs now, from 0; part of the Job's name."""
        return self.infrastructure + self.out_of_memory + self.preempted + self.missing + self.repeated + self.unsealed


LEFT_LIMIT = 16


class LeftTrainJob(Observed):
    """A TrainJob that has ended and is still there for reading its logs: Kubeflow Trainer removes none by itself."""

    name: str
    """Its name."""
    ended_at: Time
    """When that was seen; it is removed `ttl` later."""


class StageStatus(Observed):
    """One stage of the version or of the run."""

    stage: Literal["curate", "train", "evaluate", "export"]
    """Which one."""
    job: str | None = None
    """Name of its present Job; written before the Job is created."""
    launcher: Literal["Job", "TrainJob"] = "Job"
    """What kind of object `job` is."""
    input_uid: str | None = None
    """uid of its ConfigMap, which is there before the Job and owns it."""
    left: list[LeftTrainJob] = Field(default_factory=list, max_length=LEFT_LIMIT)
    """TrainJobs to remove."""
    job_uid: str | None = None
    """Its uid, once it was seen: a Job that is gone afterwards was taken away."""
    attempts: Attempts = Field(default_factory=Attempts)
    """Attempts used."""
    started_at: Time | None = None
    """When its first Job was created."""
    finished_at: Time | None = None
    """When it ended; terminal."""
    retry_at: Time | None = None
    """When the next attempt starts, after a failure."""
    reason: str = ""
    """A Reason: why the last attempt failed."""
    message: str = ""
    """The same in words."""


class ExportStatus(Observed):
    """The version's export. Nothing else depends on it."""

    request: str = ""
    """Value of the annotation ratchet.dev/export that was last taken."""
    work: StageStatus
    """Its stage."""
    result: ExportResult | None = None
    """What the last export that ended well brought."""


class Provenance(Observed):
    """What the version was made from."""

    base_model_digest: str | None = None
    """Digest of the base model's files."""
    dataset_digest: str | None = None
    """Digest of the dataset."""
    parent: str | None = None
    """The version that served then."""
    tools: dict[str, str] = Field(default_factory=dict, max_length=32)
    """Versions of the libraries that made it."""


VersionPhase = Literal[
    "Pending", "Training", "Evaluating", "Accepted", "Canary", "Baking", "Serving", "Superseded", "Rejected", "Failed"
]


class ModelVersionStatus(Observed):
    """What came of the version."""

    observed_generation: int = 0
    """Generation of the spec that this speaks of."""
    phase: VersionPhase = "Pending"
    """For people; computed from the conditions."""
    conditions: Annotated[
        list[Condition],
        Field(
            max_length=16, json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
        ),
    ] = Field(default_factory=list)
    """Ready, Reconciling, Stalled, Trained, Evaluated, Accepted, Serving, Rejected; Exported if there is an export."""
    training: TrainingStatus | None = None
    """Progress and result of the training."""
    evaluation: EvaluationStatus | None = None
    """Result of the evaluation."""
    looks: list[Look] = Field(default_factory=list, max_length=12)
    """What its evaluations spent of the target suites' error rate; later versions reckon from it."""
    artifacts: Artifacts = Field(default_factory=Artifacts)
    """What the stages made."""
    stages: Annotated[
        list[StageStatus],
        Field(
            max_length=4, json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["stage"]}
        ),
    ] = Field(default_factory=list)
    """The stages so far."""
    export: ExportStatus | None = None
    """Its export."""
    provenance: Provenance = Field(default_factory=Provenance)
    """What it was made from."""
    announcements: list[Announcement] = Field(default_factory=list, max_length=ANNOUNCEMENTS_LIMIT)
    """The last events about it, so that one which a crash kept from being posted is posted afterwards."""
    outcome: Literal["Promoted", "RolledBack", "Returned"] | None = None
    """How its rollout ended. A version is rolled out at most once; to try again is to apply another one."""


class ModelVersion(Observed):
    """One candidate or champion of a cycle, or the base model itself."""

    api_version: str = GROUP_VERSION
    kind: str = VERSION_KIND
    metadata: ObjectMeta
    spec: ModelVersionSpec
    status: ModelVersionStatus = Field(default_factory=ModelVersionStatus)

    @property
    def adapter(self) -> AdapterRef | None:
        """The adapter that this version serves, once it is known; None for the base model or before training."""
        if self.spec.adapter is not None:
            return self.spec.adapter
        made = self.status.artifacts.adapter
        return None if made is None else AdapterRef(uri=made.uri, digest=made.digest)

    @property
    def digest(self) -> Digest | None:
        """The adapter's digest: what a rejection remembers."""
        return None if self.adapter is None else self.adapter.digest


def points(difference: Decimal | float) -> str:
    """A difference of scores (0 to 1) as signed points, for people: `+6.2`."""
    return f"{float(difference) * 100:+.1f}"
