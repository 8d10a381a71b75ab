"""Generated traffic: sessions that fail or not, scraped with the faults that a scenario names.

Room: operator/simulate. Pure; the same seed gives the same sessions whatever is decided about them.

Sessions are dealt to segments between the rollout's weights, as the gateway's hash does, so that more weight only moves
segments to the candidate: two systems that choose different weights still see the very same sessions.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from ratchet_operator.simulate.store import Store

SCRAPE = 2.0
"""Seconds between two scrapes."""


@dataclass(frozen=True)
class Scenario:
    """What happens to a rollout. Times are in seconds from the moment at which its first weight is in force."""

    title: str
    rate: float = 100.0
    """Requests a second, of both arms together."""
    share: float = 0.01
    """Bad ones of a healthy version."""
    worse: float = 0.0
    """By how much the candidate's share is larger once it regresses."""
    worse_from: float = 0.0
    """When it begins to regress."""
    worse_in_bake: float | None = None
    """When it begins to regress, from the moment at which it has all of the traffic; instead of worse_from."""
    missed: float = 0.0
    """Share of single scrapes that are missed."""
    lost: tuple[tuple[float, float], ...] = ()
    """(from, until): the gateway cannot be scraped."""
    reset_every: float | None = None
    """The gateway's counters begin anew so often."""
    lag: float = 0.0
    """A sample can be seen so much later."""
    nan_at: float | None = None
    """For one measurement's time from here on, every answer is NaN."""
    silent_from: float = math.inf
    """Prometheus does not answer any more."""
    clock_jumps: tuple[tuple[float, float], ...] = ()
    """(when, by how much) the operator's clock is put forward or back."""


SCENARIOS = {
    "equal": Scenario("both versions the same, 1 % errors"),
    "equal-sparse": Scenario("the same, 2 requests a second", rate=2.0),
    "twice-the-margin": Scenario("regression of twice the margin (1 % -> 5 %) from the begin", worse=0.04),
    "twice-sparse": Scenario("the same regression, 2 requests a second", rate=2.0, worse=0.04),
    "half": Scenario("0 % -> 50 % errors after 15 s", share=0.0, worse=0.5, worse_from=15.0),
    "half-in-bake": Scenario("0 % -> 50 % errors 30 s after 100 %", share=0.0, worse=0.5, worse_in_bake=30.0),
    "nan": Scenario("equal, one NaN measurement", nan_at=12.0),
    "gaps": Scenario("equal, 30 % of the scrapes missed, and 20 s without any", missed=0.3, lost=((25.0, 45.0),)),
    "late": Scenario("twice the margin, figures 15 s late", worse=0.04, lag=15.0),
    "skew": Scenario("equal, the operator's clock +60 s, then -90 s", clock_jumps=((15.0, 60.0), (35.0, -90.0))),
    "resets": Scenario("equal, counters reset every 20 s", reset_every=20.0),
    "outage": Scenario("equal, no scrapes from 15 s to 75 s", lost=((15.0, 75.0),)),
    "outage-worse": Scenario("the same, and twice the margin worse from 20 s", worse=0.04, worse_from=20.0,
                             lost=((15.0, 75.0),)),
    "gone": Scenario("equal, Prometheus gone for good after 15 s", silent_from=15.0),
}  # fmt: skip


@dataclass
class Traffic:
    """The sessions of one rollout, tick by tick; grows as it is asked for."""

    scenario: Scenario
    seed: str
    weights: Sequence[int]
    """The rollout's weights, rising, to 100."""
    ticks: list[list[tuple[int, int, int]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._generator = random.Random(self.seed)
        edges = sorted({0, 100, *self.weights})
        self._parts = [(high, (high - low) / 100) for low, high in pairwise(edges)]

    def counts(self, tick: int, weight: int, worse: bool) -> tuple[int, int, int, int]:
        """(candidate all, candidate bad, stable all, stable bad) of one tick under a split."""
        while len(self.ticks) <= tick:
            self.ticks.append([self._dealt(part) for _, part in self._parts])
        ours = ours_bad = theirs = theirs_bad = 0
        for (edge, _), (all_, healthy, regressed) in zip(self._parts, self.ticks[tick], strict=True):
            if edge <= weight:
                ours += all_
                ours_bad += regressed if worse else healthy
            else:
                theirs += all_
                theirs_bad += healthy
        return ours, ours_bad, theirs, theirs_bad

    def _dealt(self, part: float) -> tuple[int, int, int]:
        """(all, bad when healthy, bad when regressed) of one segment; the first are among the second."""
        draw, scenario = self._generator, self.scenario
        all_ = poisson(draw, scenario.rate * SCRAPE * part)
        healthy = binomial(draw, all_, scenario.share)
        if scenario.worse == 0:
            return all_, healthy, healthy
        more = scenario.worse / (1 - scenario.share)
        return all_, healthy, healthy + binomial(draw, all_ - healthy, more)


@dataclass
class Scraped:
    """Traffic under one system's weights, as its Prometheus has it."""

    traffic: Traffic
    metric: str
    store: Store = field(init=False)
    ticks: int = 0
    begun: float | None = None
    """When the first weight was in force; the scenario's times count from here."""
    full: float | None = None
    """When it had all of the traffic."""

    def __post_init__(self) -> None:
        self.store = Store(lag=self.traffic.scenario.lag)
        self._raw = dict.fromkeys((("candidate", "all"), ("candidate", "bad"), ("stable", "all"), ("stable", "bad")), 0)
        self._faults = random.Random(self.traffic.seed + " faults")
        self._series = {key: self.store.counter(key[0], self.metric, key[1]) for key in self._raw}  # type: ignore[arg-type]
        # The gateway exports a new arm's series with value 0 before the arm has traffic.
        for series in self._series.values():
            series.scrape(-SCRAPE / 2, 0.0)

    def flow(self, weight: int) -> None:
        """One more tick of traffic at this weight, and a scrape at its end."""
        scenario, now = self.traffic.scenario, (self.ticks + 1) * SCRAPE
        if self.begun is None and weight > 0:
            self._begin(now - SCRAPE)
        if self.full is None and weight >= 100:
            self.full = now - SCRAPE
        counts = self.traffic.counts(self.ticks, weight, self.is_worse(now))
        self.ticks += 1
        since = now - self.begun if self.begun is not None else -math.inf
        if scenario.reset_every is not None and since > 0 and since % scenario.reset_every < SCRAPE:
            # What was counted between the last scrape and the restart is lost: half of a tick.
            self._raw = dict.fromkeys(self._raw, 0)
            counts = tuple(count // 2 for count in counts)  # type: ignore[assignment]
        for key, count in zip(self._raw, counts, strict=True):
            self._raw[key] += count
        missed = scenario.missed and self._faults.random() < scenario.missed
        if missed or any(begin <= since < end for begin, end in scenario.lost):
            return
        for key, series in self._series.items():
            series.scrape(now, self._raw[key])

    def is_worse(self, now: float) -> bool:
        """Whether the candidate regresses at this moment."""
        scenario = self.traffic.scenario
        if scenario.worse == 0:
            return False
        if scenario.worse_in_bake is not None:
            return self.full is not None and now - self.full > scenario.worse_in_bake
        return self.begun is not None and now - self.begun > scenario.worse_from

    def regressed_at(self) -> float | None:
        """When the candidate's first worse session came."""
        scenario = self.traffic.scenario
        if scenario.worse == 0 or self.begun is None:
            return None
        if scenario.worse_in_bake is not None:
            return None if self.full is None else self.full + scenario.worse_in_bake
        return self.begun + scenario.worse_from

    def skew(self, now: float) -> float:
        """By how many seconds the operator's clock is ahead."""
        since = now - self.begun if self.begun is not None else 0.0
        return sum(jump for at, jump in self.traffic.scenario.clock_jumps if since >= at)

    def _begin(self, at: float) -> None:
        self.begun, scenario = at, self.traffic.scenario
        self.store.silent_from = at + scenario.silent_from
        self.store.lost = [(at + begin, at + end) for begin, end in scenario.lost]
        if scenario.nan_at is not None:
            self.store.not_a_number = (at + scenario.nan_at, at + scenario.nan_at + 10.0)


def poisson(generator: random.Random, mean: float) -> int:
    """A Poisson number: by exponential gaps when it is small, else the normal's nearest."""
    if mean > 30:
        return max(0, round(generator.gauss(mean, math.sqrt(mean))))
    limit, product, count = math.exp(-mean), generator.random(), 0
    while product > limit:
        product *= generator.random()
        count += 1
    return count


def binomial(generator: random.Random, n: int, p: float) -> int:
    """A binomial number: by geometric gaps when few are expected, else the normal's nearest."""
    if n <= 0 or p <= 0:
        return 0
    if p > 0.5:
        return n - binomial(generator, n, 1 - p)
    if n * p * (1 - p) > 60:
        return min(n, max(0, round(generator.gauss(n * p, math.sqrt(n * p * (1 - p))))))
    log, place, count = math.log1p(-p), -1, 0
    while True:
        place += 1 + int(math.log(1.0 - generator.random()) / log)
        if place >= n:
            return count
        count += 1
