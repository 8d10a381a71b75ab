"""The train stage in a cycle's spec, and what `training.preset` stands for.

Room: api. Pure; touches nothing.

Rates, dropout and batch are those of the QLoRA paper for these sizes (Dettmers et al. 2023, arXiv:2305.14314, table 9);
the device is the smallest common one whose memory holds weights, activations and optimiser. Peak rates are dense bf16
of NVIDIA's data sheets (A10: 125, A100: 312 TFLOPS).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints, WithJsonSchema

from ratchet_api.base import Duration, Model, ObjectName, Unsigned, matches, rule, rules
from ratchet_api.pods import Resources
from ratchet_api.training import METHOD_RULES, Hyperparameters, Lora, Method, Preferences, Recipe, StageJob

PresetName = Literal["small", "medium", "large"]


@dataclass(frozen=True)
class Preset:
    """What a base model of a size is trained with."""

    parameters: int
    """Of the largest base model that it is meant for."""
    hyperparameters: Hyperparameters
    resources: Resources
    peak: float
    """Of the device, in FLOP/s (dense bf16)."""
    utilisation: float
    """Share of the peak that is assumed to be reached; less where weights are unpacked from 4 bits all the time."""


def _resources(cpu: str, memory: str) -> Resources:
    return Resources(requests={"cpu": cpu, "memory": memory}, limits={"nvidia.com/gpu": "1"})


_TO_13_BILLION = Hyperparameters(
    lora=Lora(rank=16, alpha=32, dropout=Decimal("0.1")), learning_rate=Decimal("0.0002"), micro_batch=4, accumulation=4
)
"""The paper's for 7 and 13 billion weights."""

PRESETS: Mapping[PresetName, Preset] = {
    "small": Preset(
        4_000_000_000, _TO_13_BILLION, _resources("4", "24Gi"), 125e12, 0.3,
    ),
    "medium": Preset(
        8_000_000_000, _TO_13_BILLION, _resources("8", "48Gi"), 312e12, 0.3,
    ),
    "large": Preset(
        70_000_000_000,
        Hyperparameters(
            lora=Lora(rank=16, alpha=32, dropout=Decimal("0.05")), learning_rate=Decimal("0.0001"), micro_batch=1,
            accumulation=16, quantization="nf4",
        ),
        _resources("8", "96Gi"), 312e12, 0.2,
    ),
}  # fmt: skip


_CURRENCY = "^[A-Z]{3}$"


class Price(Model):
    """What a GPU costs, for the estimate before a training."""

    per_gpu_hour: Unsigned
    """Price of one GPU for an hour, such as "2.50"."""
    currency: Annotated[
        str,
        StringConstraints(pattern=_CURRENCY),
        WithJsonSchema(matches(_CURRENCY, 'write the ISO 4217 code of the currency, such as "EUR"')),
    ] = "USD"
    """Of the price, ISO 4217."""


class RuntimeRef(Model):
    """The training runtime of Kubeflow Trainer that a TrainJob is made by."""

    kind: Literal["ClusterTrainingRuntime", "TrainingRuntime"] = "ClusterTrainingRuntime"
    """One for all namespaces, or one in the cycle's own."""
    name: ObjectName = "ratchet"
    """Its name. The chart brings one called ratchet; docs/launchers.md says what another one has to have."""


class Training(StageJob):
    """The train stage: hyperparameters of a run's version, and its Job."""

    launcher: Literal["Job", "TrainJob"] = "Job"
    """What the training is handed to: a Job of Kubernetes (one pod, all its GPUs), or a TrainJob of Kubeflow Trainer
    (one pod on each of several nodes, all their GPUs)."""
    nodes: Annotated[int, Field(ge=1, le=64)] = 1
    """Pods of a TrainJob, each with `resources` of its own. Examples of a step are dealt to the GPUs of all of them, so
    that their number changes the speed and not the result."""
    runtime_ref: RuntimeRef = Field(default_factory=RuntimeRef)
    """For launcher TrainJob: its training runtime."""

    preset: PresetName | None = None
    """Settings and resources by the size of the base model: small to 4 billion parameters (one GPU with 24 GB), medium
    to 8 (48 GB), large to 70 (80 GB, with the weights in 4 bits). `resources` that are written go before the preset's;
    hyperparameters cannot be mixed with one. docs/evaluation.md lists what they are."""
    price: Price | None = None
    """What a GPU costs, so that status.training.estimate says money too."""
    hyperparameters: Hyperparameters | None = None
    """What determines the weights; absent means the preset's, or the defaults."""
    method: Method = "sft"
    """What is learnt from. sft: the good answers. dpo: pairs of an answer and the correction that a person wrote. kto:
    single answers with a thumb up or down. docs/preferences.md says when to use which."""
    preferences: Preferences | None = None
    """Settings of dpo and kto; absent means their defaults."""
    checkpoint_interval: Duration = timedelta(minutes=10)
    """How often the state of the training is saved, at most a twentieth of the time; "0s": only when it has to give
    way. A training that was killed goes on from there, and ends with the same bytes."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!has(self.preset) || !has(self.hyperparameters)",
                "training: a preset brings its own hyperparameters; write either, or copy the preset's from "
                "docs/evaluation.md into hyperparameters and change them there",
            ),
            rule(
                "self.launcher == 'TrainJob' || self.nodes == 1",
                "training.nodes: a Job has one pod; write launcher: TrainJob (with Kubeflow Trainer), or nodes: 1",
            ),
            rule(
                "self.launcher != 'TrainJob' || !has(self.pod.priorityClassName) && !has(self.pod.runtimeClassName)",
                "training.pod: a TrainJob cannot say priorityClassName or runtimeClassName; write them into the "
                "training runtime that runtimeRef names",
            ),
            *METHOD_RULES,
            rule(
                "!has(self.method) || self.method != 'kto' || !has(self.hyperparameters) || "
                "self.hyperparameters.microBatch * self.hyperparameters.accumulation > 1",
                "method kto compares the answers of a step with each other; write hyperparameters.microBatch or "
                "accumulation above 1",
            ),
        )
    )

    @property
    def recipe(self) -> Recipe:
        """What a run's version is trained with."""
        said = self.hyperparameters or (PRESETS[self.preset].hyperparameters if self.preset else Hyperparameters())
        return Recipe(**said.model_dump(), method=self.method, preferences=self.preferences)

    @property
    def job(self) -> StageJob:
        """How the stage's Job runs."""
        unsaid = not self.resources.requests and not self.resources.limits
        if self.preset is None or not unsaid:
            return self
        return self.model_copy(update={"resources": PRESETS[self.preset].resources})
