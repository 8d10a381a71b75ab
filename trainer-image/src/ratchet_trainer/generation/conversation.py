"""A conversation on its way to its answer.

Room: trainer. Pure; without torch, so that whoever only hands conversations over starts quickly.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Temperature 0 takes the likeliest."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None


@dataclass(eq=False)
class Conversation:
    """One prompt and the answer that grows."""

    prompt: Sequence[int]
    max_new: int
    """Longest answer, in tokens."""
    sampling: Sampling = field(default_factory=Sampling)
    tokens: list[int] = field(default_factory=list)
    """Tokens of the answer so far, without the one that ends it."""
    finish: Finish | None = None
    """How it ended; None while it has not."""
    cancelled: bool = False
    """Set by anybody, noticed at the next step."""
