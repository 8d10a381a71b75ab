"""What Prometheus would answer about counters that were scraped: increase(), the last value, the age of a series.

Room: operator/simulate. Pure.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Literal

from ratchet_operator.domain.analysis import ArmReadings, Kind, NoSample, Reading, Sample

LOOKBACK = 300.0
"""Seconds for which Prometheus answers with the last sample of a series."""
ArmName = Literal["candidate", "stable"]


@dataclass
class Counter:
    """A counter's samples in the order of their times, mended where it was reset."""

    times: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    mended: list[float] = field(default_factory=list)
    """The values with what was lost at resets added, so that differences are increases."""

    def scrape(self, at: float, value: float) -> None:
        """One more sample, `at` seconds. One that is not newer than the last is out of order, and dropped; NaN too."""
        if math.isnan(value) or (self.times and at <= self.times[-1]):
            return
        gain = value
        if self.times:
            last = self.values[-1]
            gain = self.mended[-1] + (value - last if value >= last else value)
        self.times.append(at)
        self.values.append(value)
        self.mended.append(gain)

    def increase(self, window: float, now: float, seen_until: float) -> float | None:
        """increase(x[window]) at `now`, of the samples not newer than `seen_until`; None: fewer than two samples.

        Extrapolated to the ends of the window as Prometheus does (promql/functions.go, extrapolatedRate): by at most
        half a gap when the end is farther away than 1.1 gaps, and never below zero.
        """
        first = bisect_right(self.times, now - window)
        last = bisect_right(self.times, min(now, seen_until)) - 1
        if last <= first:
            return None
        gained = self.mended[last] - self.mended[first]
        sampled = self.times[last] - self.times[first]
        gap = sampled / (last - first)
        before, behind = self.times[first] - (now - window), now - self.times[last]
        if before >= 1.1 * gap:
            before = gap / 2
        if gained > 0:
            before = min(before, sampled * self.values[first] / gained)
        if behind >= 1.1 * gap:
            behind = gap / 2
        return gained * (sampled + before + behind) / sampled

    def last(self, now: float, seen_until: float) -> tuple[float, float] | None:
        """(time, value) of the newest sample within the lookback."""
        index = bisect_right(self.times, min(now, seen_until)) - 1
        if index < 0 or now - self.times[index] > LOOKBACK:
            return None
        return self.times[index], self.values[index]


@dataclass
class Store:
    """All series of both arms, by (arm, metric, field): `bad` and `all`, or `value` and `samples`."""

    series: dict[tuple[ArmName, str, str], Counter] = field(default_factory=dict)
    lag: float = 0.0
    """Seconds after which a sample can be seen."""
    silent_from: float = math.inf
    """From when it does not answer at all."""
    not_a_number: tuple[float, float] = (math.inf, math.inf)
    """From when until when every answer is NaN."""
    lost: list[tuple[float, float]] = field(default_factory=list)
    """(from, until): the target could not be scraped, which marks its series stale."""

    def counter(self, arm: ArmName, metric: str, name: str) -> Counter:
        """The series, made when it is new."""
        return self.series.setdefault((arm, metric, name), Counter())

    def readings(self, arm: ArmName, metric: str, kind: Kind, window: float, now: float) -> ArmReadings:
        """What a metric's queries would give for one arm; a series that was never scraped is no data."""
        if now >= self.silent_from:
            nothing = NoSample("QueryError", "Prometheus does not answer")
            return ArmReadings(bad=nothing, all=nothing, value=nothing)
        if self.not_a_number[0] <= now < self.not_a_number[1]:
            nothing = NoSample("NoData", "the value is nan")
            return ArmReadings(bad=nothing, all=nothing, value=nothing)
        if kind == "proportion":
            total = self._increase(arm, metric, "all", window, now)
            # Like the presets: no series of that value yet is no such event, as long as `all` has an answer.
            bad = self._increase(arm, metric, "bad", window, now)
            if isinstance(total, Sample) and isinstance(bad, NoSample):
                bad = Sample(0.0)
            return ArmReadings(bad=bad, all=total, age=self._age(arm, metric, "all", now))
        value = self.series.get((arm, metric, "value"))
        last = value.last(now, now - self.lag) if value is not None else None
        samples = None
        if (arm, metric, "samples") in self.series:
            samples = self._increase(arm, metric, "samples", window, now)
        return ArmReadings(
            value=Sample(last[1]) if last is not None else NoSample("NoData", "no series"),
            samples=samples,
            age=self._age(arm, metric, "value", now),
        )

    def share(self, arm: ArmName, metric: str, window: float, now: float) -> float | None:
        """A proportion's estimate, whatever stands in the way of reading it; None: no events."""
        total = self.series.get((arm, metric, "all"))
        bad = self.series.get((arm, metric, "bad"))
        seen = now - self.lag
        events = total.increase(window, now, seen) if total is not None else None
        if not events:
            return None
        return min(1.0, ((bad.increase(window, now, seen) if bad is not None else None) or 0.0) / events)

    def _increase(self, arm: ArmName, metric: str, name: str, window: float, now: float) -> Reading:
        series = self.series.get((arm, metric, name))
        found = series.increase(window, now, now - self.lag) if series is not None else None
        return NoSample("NoData", "no series") if found is None else Sample(found)

    def _age(self, arm: ArmName, metric: str, name: str, now: float) -> Reading | None:
        series = self.series.get((arm, metric, name))
        last = series.last(now, now - self.lag) if series is not None else None
        if last is None or self._is_lost(now - self.lag):
            return NoSample("NoData", "no series")
        return Sample(now - last[0])

    def _is_lost(self, at: float) -> bool:
        return any(begin <= at < end for begin, end in self.lost)
