"""What a training writes down while it goes on, and the numbers that stay of it.

Room: trainer. Touches the folder that it is given, and the log.
"""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ratchet_trainer.dataset import write_json
from ratchet_trainer.metrics import Progress
from ratchet_trainer.train.record import Curves, Look, StepRecord

log = logging.getLogger("ratchet")

LOSS = "loss.json"
"""Every step."""
LOOKS = "validation.json"
"""The loss on what was kept aside, by step; absent when nothing was."""
LOG_EVERY_SECONDS = 5.0


class Journal:
    """Where each step and each look is written down: log, Prometheus, TensorBoard, loss.json, validation.json."""

    def __init__(self, folder: Path, progress: Progress, curves: Curves) -> None:
        """`curves`: what earlier attempts wrote down, which is added to."""
        self._folder = folder
        self._progress = progress
        self.curves = curves
        self._said = 0.0

    def __enter__(self) -> "Journal":
        from torch.utils.tensorboard import SummaryWriter

        self._folder.mkdir(parents=True, exist_ok=True)
        self._board: Any = SummaryWriter(str(self._folder / "tensorboard"))
        for record in self.curves.records:
            self._draw(record)
        for look in self.curves.looks:
            self._draw_look(look)
        return self

    def __exit__(self, *_: object) -> None:
        self._board.close()
        write_json(self._folder / LOSS, step_rows(self.curves))
        if self.curves.looks:
            write_json(self._folder / LOOKS, look_rows(self.curves))

    def _draw(self, record: StepRecord) -> None:
        for key, value in _values(record).items():
            if key in _DRAWN or key.startswith("rewards/"):
                self._board.add_scalar(f"train/{key}", value, record.step)

    def note(self, record: StepRecord) -> None:
        """One step; a line in the log every few seconds."""
        self.curves.records.append(record)
        self._draw(record)
        self._progress.update(record.step, record.steps, record.loss, record.tokens_per_second, record.eta)
        now = time.monotonic()
        if now - self._said >= LOG_EVERY_SECONDS or record.step in (1, record.steps):
            self._said = now
            log.info(
                "step %d/%d  loss %.4f  rate %.2g  %.0f tokens/s  eta %.0f s", record.step, record.steps, record.loss,
                record.learning_rate, record.tokens_per_second, record.eta,
            )  # fmt: skip

    def _draw_look(self, look: Look) -> None:
        self._board.add_scalar("validation/loss", look.loss, look.step)
        self._progress.validation(look.loss)

    def note_look(self, look: Look) -> None:
        """The loss on what was kept aside."""
        self.curves.looks.append(look)
        self._draw_look(look)
        log.info("after step %d  loss on what was kept aside %.4f", look.step, look.loss)

    def numbers(self) -> dict[str, float]:
        """For the manifest: rewards, as means over the last steps, and the looks at what was kept aside."""
        return _rewards(self.curves.records) | _looks(self.curves.looks)


def step_rows(curves: Curves) -> list[dict[str, int | float]]:
    """Every step, as in loss.json."""
    return [{key: round(value, 6) for key, value in _values(record).items()} for record in curves.records]


def look_rows(curves: Curves) -> list[dict[str, int | float]]:
    """Every look, as in validation.json."""
    return [{"step": look.step, "loss": round(look.loss, 6)} for look in curves.looks]


_DRAWN = ("loss", "learning_rate", "gradient_norm", "tokens_per_second")


def _values(record: StepRecord) -> dict[str, int | float]:
    """Every number of a step by its name, but those that it does not have."""
    said = record.rewards
    rewards = {} if said is None else asdict(said) | {"margin": said.margin}
    return {
        **{key: value for key, value in asdict(record).items() if key != "rewards"},
        **{f"rewards/{key}": value for key, value in rewards.items() if value is not None},
    }


def _rewards(records: Sequence[StepRecord]) -> dict[str, float]:
    """Means over the last steps, as many as the loss goes over."""
    from ratchet_trainer.train.loop import SPEED_STEPS

    last = list(map(_values, records[-min(SPEED_STEPS, math.ceil(len(records) / 5)) :]))
    found = dict[str, float]()
    for name in ("chosen", "rejected", "margin", "accuracy", "kl"):
        values = [values[f"rewards/{name}"] for values in last if f"rewards/{name}" in values]
        if values:
            found[f"rewards.{name}"] = round(sum(values) / len(values), 6)
    return found


def _looks(looks: Sequence[Look]) -> dict[str, float]:
    if not looks:
        return {}
    lowest = min(looks, key=lambda look: look.loss)
    return {
        "validationLoss": round(looks[-1].loss, 6), "validationLossLowest": round(lowest.loss, 6),
        "validationLossLowestStep": lowest.step,
    }  # fmt: skip
