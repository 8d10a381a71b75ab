"""What to change when a training goes wrong: one that diverges is ended early, one that learns by heart is told of.

Room: trainer. Pure.
"""

import math

from ratchet_api.base import format_decimal
from ratchet_api.training import Hyperparameters
from ratchet_trainer.errors import UserError
from ratchet_trainer.train.record import Look, StepRecord

WINDOW = 10
"""Steps whose mean loss is looked at; more, a twentieth of all, in a long training."""
RISE = 2.0
"""The mean loss may be so many times the lowest one so far ..."""
LEAST_RISE = 1.0
"""... and has to be at least so much above it, in nats: a small loss doubles by chance."""
WORSE = 0.05
"""Part by which the loss on what was kept aside may end above its lowest: the generalisation loss of Prechelt 1998,
"Early Stopping - But When?" (Neural Networks: Tricks of the Trade), who stops at 5 %."""


class Watch:
    """The mean loss over a window of steps, against the lowest that it ever was."""

    def __init__(self, steps: int, hyper: Hyperparameters) -> None:
        self._window = max(WINDOW, math.ceil(steps / 20))
        self._hyper = hyper
        self._last: list[tuple[float, int]] = []
        self._lowest = math.inf
        self._lowest_at = 0

    def look(self, record: StepRecord) -> None:
        """Raises UserError when the loss has risen past the bound."""
        self._last = [*self._last, (record.loss, record.tokens)][-self._window :]
        if len(self._last) < self._window:
            return
        mean = sum(loss * tokens for loss, tokens in self._last) / sum(tokens for _, tokens in self._last)
        if mean < self._lowest:
            self._lowest, self._lowest_at = mean, record.step
        elif mean > RISE * self._lowest and mean > self._lowest + LEAST_RISE:
            raise UserError(
                f"the loss rose from {self._lowest:.2f} (at step {self._lowest_at}) to {mean:.2f} at step "
                f"{record.step} of {record.steps} (means of {self._window} steps), so the training was ended: "
                + advice(self._hyper)
            )


def not_finite(step: int, rate: float, loss: float, norm: float, hyper: Hyperparameters) -> UserError:
    """The error for a loss or a gradient that is no number any more."""
    what, value = ("loss", loss) if not math.isfinite(loss) else ("gradient", norm)
    return UserError(f"the {what} is {value} at step {step} (learning rate {rate:.2g}): {advice(hyper)}")


def advice(hyper: Hyperparameters) -> str:
    """What to change, in the order in which it helps, with this training's numbers."""
    rate, lower = format_decimal(hyper.learning_rate), format_decimal(hyper.learning_rate / 10)
    steps = [f'lower training.hyperparameters.learningRate from "{rate}" to "{lower}"']
    if hyper.epochs > 1:
        steps.append(f"epochs from {hyper.epochs} to {hyper.epochs - 1}")
    if hyper.max_grad_norm == 0 or hyper.max_grad_norm > 1:
        steps.append('maxGradNorm to "1.0"')
    if hyper.precision != "fp32":
        steps.append('write precision: "fp32"')
    if hyper.lora.rank < 64:
        steps.append(f"if it stays so, raise lora.rank from {hyper.lora.rank} to {2 * hyper.lora.rank}")
    return "; ".join(steps)


def by_heart(lowest: Look, last: Look, hyper: Hyperparameters) -> str:
    """What to change when the loss on what was kept aside has ended above its lowest; else nothing."""
    if last.loss <= (1 + WORSE) * lowest.loss:
        return ""
    epochs = lowest.step * hyper.epochs // last.step
    if epochs:
        less = f"lower training.hyperparameters.epochs from {hyper.epochs} to {epochs}"
    else:
        rate, lower = format_decimal(hyper.learning_rate), format_decimal(hyper.learning_rate / 10)
        less = f'lower training.hyperparameters.learningRate from "{rate}" to "{lower}"'
    return (
        f"it learns by heart: on what was kept aside the loss rose from {lowest.loss:.4g} (step {lowest.step}) to "
        f"{last.loss:.4g}; collect more sessions, raise curation.variations (up to 5), or {less}"
    )
