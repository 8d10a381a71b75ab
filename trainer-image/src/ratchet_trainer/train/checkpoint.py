"""Checkpoints of a training: kept in storage as artifacts, verified before they are used, never unpickled.

Room: trainer. Touches storage below `<cycle's uri>/versions/<version>/checkpoints/`, and the scratch folder.

Layout: `<recipe>/<step>/state.safetensors` (adapter, AdamW's moments, random states), `state.json` (the rest), closed
by a manifest.json like every artifact. They belong to the recipe and not to an attempt, so that the next attempt finds
them; another recipe, base or dataset never does.
"""

import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ratchet_trainer.dataset import first_error
from ratchet_trainer.errors import StageError, TryAgain
from ratchet_trainer.storage import Location, Store
from ratchet_trainer.train.loop import Snapshot
from ratchet_trainer.train.record import Curves, Look, StepRecord

log = logging.getLogger("ratchet")

TENSORS = "state.safetensors"
STATE = "state.json"
KEPT = 2
"""Checkpoints that stay: the last one, and the one before it in case that one cannot be read."""
SHARE = 20
"""Saving takes at most one part in so many of the time."""


class _State(BaseModel):
    """state.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    last: StepRecord
    recent: list[tuple[float, int, float]] = Field(min_length=1)
    records: list[StepRecord]
    """Every step so far, for the curves."""
    looks: list[Look]
    """At what was kept aside, so far."""
    precision: Literal["fp32", "bf16"]
    """Chosen by a probe, which may choose otherwise the next time."""
    packed: bool


@dataclass(frozen=True)
class Resumed:
    """Where an earlier attempt left off."""

    snapshot: Snapshot
    curves: Curves
    precision: str
    packed: bool


class Checkpoints:
    """The checkpoints of one training."""

    def __init__(
        self, store: Store, uri: str, recipe: str, inputs: Mapping[str, str], interval: timedelta, scratch: Path
    ) -> None:
        """`uri`: folder of the version's checkpoints; `recipe` and `inputs`: digests of what determines the weights."""
        self._store = store
        self._all = Location.parse(uri)
        self._folder = self._all.child(recipe.removeprefix("sha256:")[:12])
        self._inputs = {"recipe": recipe, **inputs}
        self._interval = interval.total_seconds()
        self._scratch = scratch
        self._choices: tuple[str, bool] = ("fp32", True)
        self._curves = Curves()
        self._saved_at = time.monotonic()
        self._cost = 0.0

    def latest(self) -> Resumed | None:
        """The last one that is whole; what cannot be verified or read counts as not there. Raises TryAgain."""
        for name in reversed(self._store.folders(self._folder)):
            place = self._folder.child(name)
            try:
                manifest = self._store.manifest(place.uri, "checkpoint")
                if manifest is None or manifest.inputs != self._inputs:
                    continue
                folder = self._scratch / "checkpoint"
                self._store.fetch(place.uri, "checkpoint", manifest.digest, folder)
                found = _read(folder)
            except TryAgain:
                raise
            except (StageError, ValidationError, SafetensorError, OSError) as error:
                text = first_error(error) if isinstance(error, ValidationError) else error
                log.warning("the checkpoint %s cannot be used and is removed: %s", place.uri, text)
                self._store.remove(place)
                continue
            log.info("going on after step %d, from %s", found.snapshot.step, place.uri)
            return found
        return None

    def begin(self, precision: str, packed: bool, curves: Curves) -> None:
        """What was chosen for this training, and where it is written down."""
        self._choices = (precision, packed)
        self._curves = curves
        self._saved_at = time.monotonic()

    def offer(self, snapshot: Callable[[], Snapshot]) -> None:
        """Saves when it is time."""
        since = time.monotonic() - self._saved_at
        if self._interval and since >= max(self._interval, SHARE * self._cost):
            self._save(snapshot())

    def rescue(self, snapshot: Callable[[], Snapshot]) -> None:
        """Saves now, because the training has to leave."""
        self._save(snapshot())

    def _save(self, snapshot: Snapshot) -> None:
        """A storage that does not answer costs the checkpoint, not the training."""
        began = time.monotonic()
        place = self._folder.child(f"{snapshot.step:08d}")
        folder = self._scratch / "saving"
        try:
            shutil.rmtree(folder, ignore_errors=True)
            _write(folder, snapshot, self._curves, *self._choices)
            self._store.publish(folder, place.uri, "checkpoint", self._inputs, {"step": snapshot.step})
            for old in self._store.folders(self._folder)[:-KEPT]:
                self._store.remove(self._folder.child(old))
        except StageError as error:
            log.warning("the checkpoint after step %d could not be saved: %s", snapshot.step, error)
        else:
            log.info("checkpoint after step %d, %.1f s", snapshot.step, time.monotonic() - began)
        self._saved_at = time.monotonic()
        self._cost = self._saved_at - began

    def clear(self) -> None:
        """Removes them all: the adapter is there."""
        try:
            self._store.remove(self._all)
        except StageError as error:
            log.warning("checkpoints stay in %s: %s", self._all.uri, error)


def _write(folder: Path, snapshot: Snapshot, curves: Curves, precision: str, packed: bool) -> None:
    folder.mkdir(parents=True)
    tensors: dict[str, Any] = {name: tensor.contiguous().cpu() for name, tensor in snapshot.tensors.items()}
    save_file(tensors, folder / TENSORS)
    state = _State.model_validate(
        {
            "last": snapshot.last,
            "recent": snapshot.recent,
            "records": [record for record in curves.records if record.step <= snapshot.step],
            "looks": curves.looks,
            "precision": precision,
            "packed": packed,
        }
    )
    (folder / STATE).write_text(state.model_dump_json(), encoding="utf-8")


def _read(folder: Path) -> Resumed:
    state = _State.model_validate_json((folder / STATE).read_bytes())
    snapshot = Snapshot(state.last, load_file(folder / TENSORS), state.recent)
    return Resumed(snapshot, Curves(state.records, state.looks), state.precision, state.packed)
