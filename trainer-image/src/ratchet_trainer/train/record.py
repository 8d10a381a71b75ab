"""One step of a training in numbers.

Room: trainer. Pure.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Rewards:
    """How an adapter moves judged answers: beta times how much likelier, in nats, it makes them than the base does."""

    chosen: float | None
    """Mean of the preferred answers; None when the step had none."""
    rejected: float | None
    """Mean of the others."""
    accuracy: float
    """Share that is told rightly."""
    kl: float
    """Mean log ratio of mismatched answers, at least 0; 0 where none is needed (dpo)."""

    @property
    def margin(self) -> float | None:
        """chosen - rejected."""
        return None if self.chosen is None or self.rejected is None else self.chosen - self.rejected


@dataclass(frozen=True)
class StepRecord:
    """One optimiser step."""

    step: int
    """From 1."""
    steps: int
    loss: float
    """Mean over the step's supervised tokens; over its pairs (dpo) or answers (kto)."""
    learning_rate: float
    gradient_norm: float
    """Before clipping."""
    tokens: int
    """Supervised tokens of the step."""
    tokens_per_second: float
    """Supervised tokens, over the last steps."""
    seconds: float
    """Since the first step began."""
    eta: float
    """Seconds that remain."""
    rewards: Rewards | None = None
    """dpo and kto."""


@dataclass(frozen=True)
class Look:
    """The model on what was kept aside."""

    step: int
    """Optimiser steps done; 0 is the base model."""
    loss: float
    """As that of a step, over all that was kept aside, without dropout."""


@dataclass
class Curves:
    """What a training wrote down so far."""

    records: list[StepRecord] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
