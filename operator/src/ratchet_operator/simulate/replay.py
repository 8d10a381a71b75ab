"""A whole rollout on a simulated clock: what is scraped is judged and decided by domain, as reconcile does it.

Room: operator/simulate. Pure.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Protocol

from ratchet_api.cycle import Check, RolloutStatus
from ratchet_api.rollout import Metric, Rollout
from ratchet_operator.domain import ab_test, glance, queries, rollout
from ratchet_operator.domain.analysis import ArmReadings, Recent, judge, kind_of
from ratchet_operator.domain.rollout import ArmObservation, RolloutObservation
from ratchet_operator.simulate.store import ArmName, Store
from ratchet_operator.simulate.traffic import SCRAPE, Scraped

CLOCK_BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
_READY = ArmObservation(exists=True, replicas=1, ready=1, serves_model=True)
_DIGEST = "sha256:" + "0" * 64


class Source(Protocol):
    """Where figures come from."""

    store: Store

    def flow(self, weight: int) -> None:
        """SCRAPE more seconds, at this weight."""

    def skew(self, now: float) -> float:
        """By how many seconds the operator's clock is ahead."""


@dataclass(frozen=True)
class Moment:
    """A pass in which something was measured or decided."""

    at: float
    """Seconds from the begin."""
    status: RolloutStatus
    events: tuple[tuple[str, str], ...] = ()
    """(reason, message) of each event."""


@dataclass
class Timeline:
    """What would have happened."""

    moments: list[Moment] = field(default_factory=list)
    status: RolloutStatus = field(default_factory=lambda: rollout.begin("candidate", _DIGEST, False, CLOCK_BEGIN))
    weights: list[tuple[float, int]] = field(default_factory=lambda: [(0.0, 0)])
    """(seconds, weight) at each change."""
    held: bool = False
    """Whether it was ever held."""
    rose_failing: bool = False
    """Whether the weight ever rose while the last look at a check had failed."""
    ended_at: float | None = None
    """Seconds until it was done; None: it was not."""

    @property
    def outcome(self) -> str:
        """Promoted, RolledBack, Returned; Held or Unfinished when there was no end."""
        if self.status.decision is not None:
            return self.status.decision.outcome
        return "Held" if self.status.held_since is not None else "Unfinished"


@dataclass
class Replay:
    """One rollout under a spec. `skim` leaves out passes that cannot change anything but their own time (see
    `_matters`), which a benchmark of thousands wants; the ends are the same."""

    spec: Rollout
    source: Source
    skim: bool = False
    record: bool = True

    def __post_init__(self) -> None:
        self.timeline = Timeline()
        self._now = 0.0
        self._in_force = 0
        self._pause = max(1, round(glance.spacing(self.spec) / timedelta(seconds=SCRAPE)))

    def run(self, horizon: float) -> Timeline:
        """Until the end, or for so many seconds."""
        line, tick = self.timeline, 0
        while self._now < horizon and line.status.phase != "Done":
            self.source.flow(self._in_force)
            tick += 1
            self._now = tick * SCRAPE
            if tick % self._pause == 0:
                self._pass()
        if line.status.phase == "Done":
            line.ended_at = self._now
        return line

    def _pass(self) -> None:
        line, spec = self.timeline, self.spec
        now = CLOCK_BEGIN + timedelta(seconds=self._now + self.source.skew(self._now))
        status = line.status
        whole = rollout.measurement_due(status, spec, now)
        metrics = spec.metrics if whole else glance.due(status, spec, now)
        spans = queries.spans(status, spec, metrics, now)
        if self.skim and not whole and not self._matters(spans):
            return
        checks = tuple(self._judged(span, now) for span in spans)
        outcome = None
        if whole and ab_test.running(status, spec):
            [asked] = queries.spans(status, spec, [ab_test.outcome(spec)], now)
            outcome = ab_test.look(spec, *self._both(asked), now)
        seen = RolloutObservation(
            stable=_READY,
            candidate=_READY,
            observed_weight=self._in_force,
            checks=checks if whole else None,
            glances=() if whole else checks,
            outcome=outcome,
        )
        self._moved(rollout.advance(status, spec, seen, now), whole, checks)

    def _moved(self, move: rollout.Move, whole: bool, checks: tuple[Check, ...]) -> None:
        line = self.timeline
        if move.weight != line.weights[-1][1]:
            if move.weight > line.weights[-1][1] > 0:
                line.rose_failing |= any(check.verdict == "Fail" for check in checks)
            line.weights.append((self._now, move.weight))
        line.held |= move.status.held_since is not None
        line.status = move.status
        if self.record and (whole or move.events):
            events = tuple((event.reason.value, event.message) for event in move.events)
            line.moments.append(Moment(self._now, move.status, events))
        # The gateways follow within a tick.
        self._in_force = move.weight

    def _judged(self, span: queries.Span, now: datetime) -> Check:
        recent = [Recent(length, *self._arms(span.metric, length, span.compared)) for length in span.recent]
        return judge(span.metric, *self._both(span), now, span.reference, recent)

    def _both(self, span: queries.Span) -> tuple[ArmReadings, ArmReadings]:
        candidate, stable = self._arms(span.metric, span.window, span.compared)
        return candidate, stable or ArmReadings()

    def _arms(self, metric: Metric, window: timedelta, stable: bool) -> tuple[ArmReadings, ArmReadings | None]:
        series, kind, length = self._series(metric), kind_of(metric), _seconds(window)

        def read(arm: ArmName) -> ArmReadings:
            return self.source.store.readings(arm, series, kind, length, self._now)

        return read("candidate"), read("stable") if stable else None

    def _series(self, metric: Metric) -> str:
        """A metric's name in the store. An outcome that is a metric's own has that metric's series."""
        if metric.name != ab_test.OUTCOME:
            return metric.name
        outcome = ab_test.test_of(self.spec).outcome
        if outcome.good is not None:
            return metric.name
        thumbs = next((other.name for other in self.spec.metrics if other.preset == "feedback"), metric.name)
        return outcome.metric or thumbs

    def _matters(self, spans: tuple[queries.Span, ...]) -> bool:
        """Whether a glance can find anything: a Fail takes an estimate beyond the margin in some window; or whether
        something is awaited."""
        status = self.timeline.status
        if status.unconfirmed_since is not None or status.phase not in ("Canary", "Baking"):
            return True
        return any(self._may_fail(span) for span in spans)

    def _may_fail(self, span: queries.Span) -> bool:
        margin, series, store = float(span.metric.margin), self._series(span.metric), self.source.store
        for window in (span.window, *span.recent):
            length = _seconds(window)
            ours = store.share("candidate", series, length, self._now)
            if ours is None or ours <= margin:
                continue
            kept = None if span.reference is None else float(span.reference.value)
            theirs = store.share("stable", series, length, self._now) if span.compared else kept
            if theirs is not None and ours - theirs > margin:
                return True
        return False


def _seconds(window: timedelta) -> float:
    """A range's length: PromQL refuses one of 0."""
    return max(1.0, window.total_seconds())


def generated(spec: Rollout, source: Scraped, horizon: float, skim: bool = False, record: bool = True) -> Timeline:
    """One rollout over generated traffic."""
    return Replay(spec, source, skim, record).run(horizon)
