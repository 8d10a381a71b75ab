"""Training settings of a version. Defaults are the guide's: rank 8, alpha 16, 1e-5, one epoch, supervised.

Room: api. Pure; touches nothing.
"""

from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from ratchet_api.base import Duration, Fraction, Model, ObjectName, Unsigned, rule, rules
from ratchet_api.data import Precision
from ratchet_api.pods import PodOverrides, Resources


class Lora(Model):
    """LoRA settings (Hu et al. 2021, arXiv:2106.09685), as peft takes them."""

    rank: Annotated[int, Field(ge=1, le=512)] = 8
    """Rank of the update matrices."""
    alpha: Annotated[int, Field(ge=1, le=2048)] = 16
    """Scale of the update; the effective factor is alpha / rank (see rankStabilized)."""
    rank_stabilized: bool = False
    """Scales the update by alpha / sqrt(rank) instead of alpha / rank, so that high ranks learn as fast as low ones
    (rsLoRA: Kalajdzievski 2023, arXiv:2312.03732)."""
    dropout: Fraction = Decimal("0.1")
    """Dropout on the adapter's input."""
    target: Literal["all-linear"] = "all-linear"
    """Modules that get an adapter: every linear layer but the output head."""


_MANY_EPOCHS = rule(
    "self.epochs <= 2 || self.allowManyEpochs",
    "epochs: more than 2 passes memorise a small dataset; write 2, or also allowManyEpochs: true",
)


class Hyperparameters(Model):
    """What determines the weights that training yields, given base, dataset and seed."""

    lora: Lora = Field(default_factory=Lora)
    """The adapter's shape."""
    learning_rate: Unsigned = Decimal("0.00001")
    """Peak learning rate of AdamW; small models need more, about "0.001"."""
    epochs: Annotated[int, Field(ge=1, le=20)] = 1
    """Passes over the dataset. More than 2 need allowManyEpochs."""
    allow_many_epochs: bool = False
    """Says that more than two epochs are meant: small datasets are memorised quickly."""
    warmup_ratio: Fraction = Decimal("0.1")
    """Share of the steps in which the rate rises to its peak; afterwards it falls as a cosine."""
    cutoff: Annotated[int, Field(ge=16, le=1_048_576)] = 2048
    """Longest example in tokens; a longer one is left out and counted, never cut."""
    micro_batch: Annotated[int, Field(ge=1, le=1024)] = 2
    """Examples in one forward pass."""
    accumulation: Annotated[int, Field(ge=1, le=1024)] = 4
    """Forward passes per optimiser step."""
    weight_decay: Unsigned = Decimal("0")
    """AdamW's decoupled weight decay."""
    max_grad_norm: Unsigned = Decimal("1.0")
    """Gradients are clipped to this norm."""
    precision: Precision = "auto"
    """auto takes bf16 where the hardware is fast at it (probed), else fp32."""
    quantization: Literal["none", "nf4"] = "none"
    """How the base model's frozen weights are held: nf4 packs them into 4 bits (QLoRA: Dettmers et al. 2023,
    arXiv:2305.14314), a quarter of bf16's memory and slower; the adapter is trained and served as ever."""
    gradient_checkpointing: Literal["auto", "on", "off"] = "auto"
    """Trades time for memory; auto switches it on for GPU training only."""
    seed: Annotated[int, Field(ge=0, le=4_294_967_295)] = 42
    """Seeds shuffling, dropout and initialisation."""

    model_config = ConfigDict(json_schema_extra=rules(_MANY_EPOCHS))


Method = Literal["sft", "dpo", "kto"]
"""What is learnt from: the good answers, pairs of an answer and its correction, or single answers with their thumbs."""


class Preferences(Model):
    """Settings of the methods that learn from what people preferred."""

    beta: Unsigned = Decimal("0.1")
    """How far the adapter may lead from the base model: smaller is farther. DPO's and KTO's beta."""
    rpo_alpha: Unsigned | None = None
    """dpo: weight of the cross entropy of the chosen answers beside the preference loss, which keeps them likely
    (RPO: Pang et al. 2024, arXiv:2404.19733; pref_ftx in LLaMA-Factory); absent means none."""
    desirable_weight: Unsigned | None = None
    """kto: weight of the answers that people liked; absent means 1."""
    undesirable_weight: Unsigned | None = None
    """kto: weight of the answers that people did not like; absent means 1. Of the two kinds the one that there is less
    of deserves more: the products of weight and number should be between 1:1 and 4:3 (KTO's equation 8)."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!has(self.beta) || !self.beta.matches('^[0.]*$')",
                'preferences.beta: with 0 nothing is learnt; write what DPO and KTO usually have, "0.1"',
            ),
            rule(
                "!has(self.desirableWeight) || !has(self.undesirableWeight) || "
                "!self.desirableWeight.matches('^[0.]*$') || !self.undesirableWeight.matches('^[0.]*$')",
                "preferences: with both weights 0 nothing is learnt; write 1 for one of them",
            ),
        )
    )


METHOD_RULES = (
    rule(
        "!has(self.preferences) || has(self.method) && self.method != 'sft'",
        "preferences belong to method dpo or kto; write one of them, or remove preferences",
    ),
    rule(
        "!has(self.preferences) || !has(self.method) || self.method == 'kto' || "
        "!has(self.preferences.desirableWeight) && !has(self.preferences.undesirableWeight)",
        "preferences.desirableWeight and undesirableWeight belong to method kto; remove them, or write it",
    ),
    rule(
        "!has(self.preferences) || !has(self.method) || self.method == 'dpo' || !has(self.preferences.rpoAlpha)",
        "preferences.rpoAlpha belongs to method dpo; remove it, or write it",
    ),
)
"""Of everything that has the fields `method` and `preferences`."""


class Recipe(Hyperparameters):
    """All that determines the weights, given base and dataset: the hyperparameters, and what is learnt from."""

    method: Method = "sft"
    """sft: the good answers. dpo: pairs of an answer and its correction (Rafailov et al. 2023, arXiv:2305.18290). kto:
    single answers with a thumb up or down (Ethayarajh et al. 2024, arXiv:2402.01306). The dataset must have been
    curated for it."""
    preferences: Preferences | None = None
    """Settings of dpo and kto; absent means their defaults."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            _MANY_EPOCHS,
            *METHOD_RULES,
            rule(
                "self.method != 'kto' || self.microBatch * self.accumulation > 1",
                "method kto compares the answers of a step with each other; write microBatch or accumulation above 1",
            ),
        )
    )

    @property
    def preferred(self) -> Preferences:
        """The settings of dpo and kto."""
        return self.preferences or Preferences()


class StageJob(Model):
    """How a stage's Job runs: resources, placement and time."""

    resources: Resources = Field(default_factory=Resources)
    """Compute resources of the stage's container."""
    pod: PodOverrides = Field(default_factory=PodOverrides)
    """Placement and identity of the stage's pod."""
    deadline: Duration = timedelta(hours=6)
    """The Job is ended after this time (activeDeadlineSeconds)."""
    ttl: Duration = timedelta(days=1)
    """How long a finished Job is kept for reading its logs (ttlSecondsAfterFinished)."""
    queue_name: ObjectName | None = None
    """Kueue's LocalQueue that the Job waits in: it is made suspended, and Kueue starts it when its quota has room. The
    time in the queue does not count against the deadline, and being preempted costs no attempt. Absent means that
    Kubernetes' scheduler takes it at once."""
