"""A training in MLflow while it goes on.

Room: trainer. One thread, which reads what the training writes down and waits for the server instead of it; a training
that is told to leave waits for it no longer than STOP_SECONDS.
"""

import logging
import os
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from ratchet_api.stage import TrainInput
from ratchet_trainer.errors import Preempted
from ratchet_trainer.train import tracking
from ratchet_trainer.train.journal import look_rows, step_rows
from ratchet_trainer.train.record import Curves

log = logging.getLogger("ratchet")

EVERY_SECONDS = 5.0
STOP_SECONDS = 3.0


class Live:
    """Tells the run at MLFLOW_TRACKING_URI, if that is set, every few seconds what is new. A server that fails is
    asked again, and told all of it once it answers."""

    def __init__(self, stage: TrainInput, inputs: Mapping[str, str], curves: Curves) -> None:
        """`inputs`: digests of recipe, base and dataset; `curves`: what the training adds to."""
        self._address = os.environ.get("MLFLOW_TRACKING_URI", "")
        self._stage, self._inputs, self._curves = stage, inputs, curves
        self._ended = threading.Event()
        self._becomes: tracking.Status = "RUNNING"
        self._entry: tracking.Entry | None = None
        self._server: tracking.Server | None = None
        self._told = 0
        """Steps."""
        self._said = ""
        self._given_up = False
        self._thread = threading.Thread(target=self._tell_all, name="mlflow", daemon=True)

    def __enter__(self) -> Self:
        if self._address:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._becomes = "SCHEDULED" if isinstance(error, Preempted) else "FAILED"
        self._ended.set()
        if self._address:
            self._thread.join(STOP_SECONDS if error is not None else 2 * tracking.SECONDS)
            self._given_up = True

    def _tell_all(self) -> None:
        while True:
            last = self._ended.wait(EVERY_SECONDS if self._entry is not None or self._said else 0)
            try:
                self._tell()
            except (tracking.TrackingError, KeyError, TypeError, ValueError) as error:
                self._warn(f"{type(error).__name__}: {error}")
            if last:
                return

    def _tell(self) -> None:
        if self._server is None:
            self._server = tracking.Server(self._address)
        # The last one again, because a look comes after its step; and steps before looks, for the same reason.
        records = self._curves.records[max(0, self._told - 1) :]
        curve, looks = step_rows(Curves(records)), look_rows(self._curves)
        if self._entry is None:
            elapsed = curve[-1]["seconds"] if curve else 0.0
            self._entry = tracking.entered(self._server, self._stage, self._inputs, elapsed)
        if self._entry.status == "FINISHED":
            return
        known = {0, *(int(row["step"]) for row in curve)}
        said = tracking.points(curve, [look for look in looks if look["step"] in known])
        tracking.tell(self._server, self._entry, said)
        self._told = max(0, self._told - 1) + len(records)
        if self._entry.status != self._becomes and not self._given_up:
            over = (time.time() * 1000 - self._entry.began) / 1000 if self._becomes == "FAILED" else None
            tracking.update(self._server, self._entry, self._becomes, over)

    def _warn(self, why: str) -> None:
        """Each new trouble once."""
        if why != self._said:
            log.warning("MLflow at %s is not told of the training as it goes on: %s", self._address, why)
        self._said = why
