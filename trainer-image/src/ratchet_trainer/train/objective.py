"""What a training makes smaller: a loss over the units of an optimiser step, in numbers that ranks can add.

Room: trainer. Pure.

A unit is what the step's mean goes over and what ranks share: an example (sft), a pair (dpo), a judged answer (kto).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol

from ratchet_trainer.train.encode import Example
from ratchet_trainer.train.record import Rewards

if TYPE_CHECKING:
    from torch import Tensor

    from ratchet_trainer.train.loop import Forward


class Unit(Protocol):
    """An example, a pair or a judged answer."""

    def __len__(self) -> int:
        """Tokens."""

    @property
    def targets(self) -> int:
        """Supervised tokens."""

    @property
    def sequences(self) -> Sequence[Example]:
        """What of it goes through the model."""


@dataclass(frozen=True)
class Figures:
    """What one rank has of a step: sums, which those of the other ranks are added to."""

    loss: float
    """Part of the step's mean loss."""
    chosen: float = 0.0
    """Sum of the rewards of preferred answers, ..."""
    chosen_count: float = 0.0
    """... and their number."""
    rejected: float = 0.0
    rejected_count: float = 0.0
    right: float = 0.0
    """Number of pairs, or answers, that are told rightly, ..."""
    told: float = 0.0
    """... of so many."""
    kl: float = 0.0
    """Part of the mean log ratio of mismatched answers."""

    def numbers(self) -> list[float]:
        """In their order."""
        return [getattr(self, field.name) for field in fields(self)]

    @classmethod
    def of(cls, numbers: Sequence[float]) -> "Figures":
        """From `numbers()`, or sums of several."""
        return cls(*numbers)

    def __add__(self, other: "Figures") -> "Figures":
        return Figures.of([a + b for a, b in zip(self.numbers(), other.numbers(), strict=True)])

    @property
    def rewards(self) -> Rewards | None:
        """The means; None where nobody preferred anything."""
        if not self.told:
            return None
        chosen = self.chosen / self.chosen_count if self.chosen_count else None
        rejected = self.rejected / self.rejected_count if self.rejected_count else None
        return Rewards(chosen, rejected, self.right / self.told, self.kl)


FIGURES = len(fields(Figures))


class Objective(Protocol):
    """A loss."""

    def parts(
        self, model: Any, mine: Sequence[Any], batch: Sequence[Any], micro_batch: int, forward: "Forward"
    ) -> Iterator[tuple["Tensor", Figures]]:
        """The mean loss of the units in `batch`, as far as it is of those in `mine`: a piece for at most `micro_batch`
        of them at a time, to be differentiated, with its figures."""
        ...

    def backward(
        self, model: Any, mine: Sequence[Any], batch: Sequence[Any], micro_batch: int, forward: "Forward"
    ) -> Figures:
        """Adds to the gradients the part of a step's mean loss that `mine` has, of all the step's units in `batch`."""
        total = Figures(0.0)
        for loss, figures in self.parts(model, mine, batch, micro_batch, forward):
            loss.backward()
            total += figures
        return total
