"""Training settings of a version. Defaults are the guide's: rank 8, alpha 16, 1e-5, one epoch.

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

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "self.epochs <= 2 || self.allowManyEpochs",
                "epochs: more than 2 passes memorise a small dataset; write 2, or also allowManyEpochs: true",
            )
        )
    )


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
