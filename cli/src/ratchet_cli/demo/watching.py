"""Waiting for what the API server says, with progress on screen, a deadline, and a diagnosis when it expires.

Room: cli. Reads through `Cluster`; prints through `Screen`.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from ratchet_api.conditions import find
from ratchet_api.cycle import ImprovementCycle
from ratchet_api.reasons import ConditionType
from ratchet_api.version import ModelVersion
from ratchet_cli.demo.cluster import Cluster, View
from ratchet_cli.demo.errors import CameOutOtherwise, WaitExpired
from ratchet_cli.demo.screen import Screen

PROGRESS_SECONDS = 4.0
"""Numbers that merely move (loss, samples) are printed at most this often; a new phase is printed at once."""


@dataclass(frozen=True)
class Progress:
    """One line about a view: a change of `stage` is news, a change of `detail` only moves."""

    stage: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.stage}: {self.detail}" if self.detail else self.stage


class Waiter:
    """`until(...)` blocks until the cluster is as asked."""

    def __init__(self, cluster: Cluster, screen: Screen, namespaces: list[str]) -> None:
        self.cluster = cluster
        self._screen = screen
        self._namespaces = namespaces

    def until(
        self,
        what: str,
        done: Callable[[View], bool],
        timeout: float,
        progress: Callable[[View], Progress | None] = lambda view: None,
        impossible: Callable[[View], str | None] = lambda view: None,
    ) -> View:
        """The first view for which `done` holds.

        Raises WaitExpired after `timeout` seconds; CameOutOtherwise as soon as `impossible` gives a sentence. Both
        carry a diagnosis.
        """
        deadline = time.monotonic() + timeout
        printer = _Printer(self._screen)
        while True:
            view = self.cluster.view
            printer.offer(progress(view))
            if done(view):
                return view
            if (why := impossible(view)) is not None:
                raise CameOutOtherwise(f"{what} cannot come any more: {why}", self._known())
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise WaitExpired(f"{what} did not come within {timeout:.0f} s", self._known())
            with self.cluster.changed:
                self.cluster.changed.wait_for(
                    lambda seen=view: self.cluster.view is not seen,  # type: ignore[misc]
                    min(remaining, PROGRESS_SECONDS),
                )

    def _known(self) -> str:
        return self.cluster.diagnosis(self._namespaces)


class _Printer:
    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._last: Progress | None = None
        self._at = 0.0

    def offer(self, progress: Progress | None) -> None:
        """Print it if it is news, or if it moved and the last line is old enough."""
        if progress is None or progress == self._last:
            return
        now = time.monotonic()
        news = self._last is None or progress.stage != self._last.stage
        if news or now - self._at >= PROGRESS_SECONDS:
            self._screen.say(str(progress))
            self._last, self._at = progress, now


def version_progress(view: View, name: str) -> Progress | None:
    """Where a version is, with the numbers of its training."""
    version = view.versions.get(name)
    if version is None:
        return None
    training = version.status.training
    phase = version.status.phase
    if phase == "Training" and training is not None and training.step and training.steps:
        parts = [f"step {training.step}/{training.steps}"]
        if training.loss is not None:
            parts.append(f"loss {float(training.loss):.3f}")
        if training.tokens_per_second is not None:
            parts.append(f"{training.tokens_per_second} tokens/s")
        if training.eta_seconds is not None:
            parts.append(f"{training.eta_seconds} s left")
        return Progress(f"{name} {phase}", ", ".join(parts))
    return Progress(f"{name} {phase}", why(version))


def why(owner: ModelVersion | ImprovementCycle) -> str:
    """What its most telling condition says: why it is stalled, else what it is doing."""
    for kind in (ConditionType.STALLED, ConditionType.REJECTED, ConditionType.RECONCILING):
        condition = find(owner.status.conditions, kind)
        if condition is not None and condition.status == "True" and condition.message:
            return condition.message
    return ""


def rollout_progress(view: View, name: str) -> Progress | None:
    """Weight and checks of a version's rollout."""
    cycle = view.cycle
    if cycle is None or cycle.status.rollout is None or cycle.status.rollout.version != name:
        return None
    rollout = cycle.status.rollout
    candidate = cycle.status.serving.candidate
    weight = 0 if candidate is None else candidate.weight
    stage = f"{rollout.version} {rollout.phase}" + (f" at {weight} %" if weight else "")
    if rollout.decision is not None:
        return Progress(stage, rollout.decision.message)
    measured = [check.message for check in rollout.checks if check.verdict != "Unknown"]
    return Progress(stage, "; ".join(measured) if len(measured) == len(rollout.checks) else rollout.summary)


def ended_badly(view: View, name: str) -> str | None:
    """Why a version that was to go forward will not: it failed, or was rejected."""
    version = view.versions.get(name)
    if version is not None and version.status.phase in ("Failed", "Rejected"):
        return f"{name} is {version.status.phase}: {why(version) or 'without a message'}"
    return None
