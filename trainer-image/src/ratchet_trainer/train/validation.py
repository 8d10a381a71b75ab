"""The loss on what curation kept aside, while a training goes on: whether it learns, or learns by heart.

Room: trainer. Touches nothing: the model computes without gradients and without dropout, and no random number is drawn,
so that a training that is looked at gives the same bytes as one that is not. The first rank looks alone; the others
wait.
"""

from collections.abc import Callable, Sequence

from ratchet_api.training import Recipe
from ratchet_trainer.train.loop import Forward, steps_of
from ratchet_trainer.train.objective import Figures, Objective, Unit
from ratchet_trainer.train.preferences import undisturbed
from ratchet_trainer.train.record import Look


class Validation:
    """Looks before the first step and at the end of each epoch, once each whatever interrupts the training."""

    def __init__(
        self, units: Sequence[Unit], examples: int, hyper: Recipe, forward: Forward, objective: Objective,
        looks: list[Look], note: Callable[[Look], None],
    ) -> None:  # fmt: skip
        """`units` were kept aside, so many `examples` are trained on; `looks` are those of earlier attempts, which
        `note` adds to."""
        self._units, self._hyper, self._forward, self._objective = units, hyper, forward, objective
        self._looks, self._note = looks, note
        self._each = steps_of(examples, hyper) // hyper.epochs

    def look(self, model: object, step: int) -> None:
        """After so many steps, if it is time."""
        if step % self._each == 0 and all(look.step != step for look in self._looks):
            self._note(Look(step, self._loss(model)))

    def _loss(self, model: object) -> float:
        with undisturbed(model):
            parts = self._objective.parts(model, self._units, self._units, self._hyper.micro_batch, self._forward)
            return sum((figures for _, figures in parts), Figures(0.0)).loss
