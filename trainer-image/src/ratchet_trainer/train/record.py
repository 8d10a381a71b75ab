"""One step of a training in numbers.

Room: trainer. Pure.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class StepRecord:
    """One optimiser step."""

    step: int
    """From 1."""
    steps: int
    loss: float
    """Mean over the step's supervised tokens."""
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
