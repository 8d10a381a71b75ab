"""What was seen while the story ran: views of the cluster in order, and what can be read from them afterwards.

Room: cli. Pure: moments come in with the views.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from ratchet_api.cycle import RolloutStatus
from ratchet_cli.demo.cluster import View


@dataclass(frozen=True)
class Marker:
    """A moment of the plots."""

    at: datetime
    version: str
    text: str
    kind: str
    """`step`, `good` or `bad`."""


@dataclass
class RolloutRecord:
    """One rollout from its begin to its end, as far as it was seen."""

    version: str
    last: RolloutStatus
    weights: list[tuple[datetime, int]] = field(default_factory=list)
    """Weight asked for, whenever it changed."""
    least_stable_pods: int | None = None
    """Fewest ready pods of the stable arm that were seen while it went on."""

    @property
    def highest_weight(self) -> int:
        """Percent."""
        return max((weight for _, weight in self.weights), default=0)

    @property
    def over_at(self) -> datetime | None:
        """When it was decided and, for a rollback, in force."""
        decision = self.last.decision
        if decision is None:
            return None
        return max(decision.at, self.last.weight_zero_at or decision.at)

    @property
    def seconds_to_zero(self) -> float | None:
        """From the first failed measurement to the moment when every gateway was seen to send the candidate nothing."""
        decision = self.last.decision
        if decision is None or self.last.weight_zero_at is None:
            return None
        return (self.last.weight_zero_at - (decision.regression_seen_at or decision.at)).total_seconds()


@dataclass
class Notebook:
    """Collects views; safe for one writer and many readers."""

    rollouts: dict[tuple[str, datetime], RolloutRecord] = field(default_factory=dict)
    """By version and begin, in order."""
    champions: list[tuple[datetime, str]] = field(default_factory=list)
    """Who served as stable, whenever that changed."""

    def see(self, view: View, at: datetime) -> None:
        """Take in one more view."""
        if view.cycle is None:
            return
        serving, rollout = view.cycle.status.serving, view.cycle.status.rollout
        if serving.stable is not None and (not self.champions or self.champions[-1][1] != serving.stable.version):
            self.champions.append((at, serving.stable.version))
        if rollout is None:
            return
        key = (rollout.version, rollout.started_at)
        record = self.rollouts.setdefault(key, RolloutRecord(rollout.version, rollout))
        record.last = rollout
        if serving.stable is not None and rollout.phase != "Done":
            ready, least = serving.stable.ready_replicas, record.least_stable_pods
            record.least_stable_pods = ready if least is None else min(ready, least)
        candidate = serving.candidate
        if candidate is not None and candidate.version == rollout.version:
            weight = candidate.weight
        else:
            weight = 100 if rollout.decision is not None and rollout.decision.outcome == "Promoted" else 0
        if not record.weights or record.weights[-1][1] != weight:
            record.weights.append((at, weight))

    def rollout_of(self, version: str) -> RolloutRecord | None:
        """The version's last rollout."""
        found = [record for record in self.rollouts.values() if record.version == version]
        return found[-1] if found else None

    def windows(self, grace: timedelta) -> list[tuple[datetime, datetime | None]]:
        """Begin and end (plus `grace`) of every rollout; None while it goes on."""
        return [
            (record.last.started_at, None if record.over_at is None else record.over_at + grace)
            for record in self.rollouts.values()
        ]

    def markers(self) -> list[Marker]:
        """Moments worth a line in the plots, in order."""
        found = []
        for record in self.rollouts.values():
            for at, weight in record.weights:
                if weight:
                    found.append(Marker(at, record.version, f"{weight} %", "step"))
            decision = record.last.decision
            if decision is not None:
                good = decision.outcome == "Promoted"
                words = "promoted" if good else f"rolled back: {decision.check or decision.reason}"
                found.append(Marker(decision.at, record.version, words, "good" if good else "bad"))
        return sorted(found, key=lambda marker: marker.at)


def count_within(moments: Iterable[datetime], windows: list[tuple[datetime, datetime | None]]) -> int:
    """How many moments fall into at least one window."""
    return sum(any(begin <= at and (end is None or at <= end) for begin, end in windows) for at in moments)
