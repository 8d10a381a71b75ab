"""Whole rollouts with the default policy under simulated traffic: false alarms, detection, and what they cost.

Nothing is stubbed between the events and the decision: counts -> judge -> advance, as the operator does it.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import pytest

from ratchet_api.cycle import Check, RolloutStatus
from ratchet_api.rollout import Metric, Rollout
from ratchet_operator.domain import glance, queries, rollout
from ratchet_operator.domain.analysis import ArmReadings, Recent, Sample, judge
from ratchet_operator.domain.rollout import RolloutObservation

from .support import DIGEST, NOW, arm

PER_MINUTE = 400
"""Feedbacks and requests, of both arms together."""
SHARES = {"feedback": 0.2, "errors": 0.002}
"""Bad events of stable."""
SPEC = Rollout(metrics=[Metric.model_validate({"name": n, "preset": n, "margin": m}) for n, m in
                        (("feedback", "0.05"), ("errors", "0.02"))])  # fmt: skip

Counts = dict[tuple[str, str], tuple[int, int]]
"""(arm, metric) -> (bad, all) so far."""
Excess = Callable[[str, RolloutStatus, datetime], float]
"""By how much the candidate is worse, by metric, at some moment of the rollout."""


@dataclass
class Traffic:
    """Events of both arms, counted as Prometheus does."""

    generator: random.Random
    counts: Counts = field(default_factory=dict)
    past: list[tuple[datetime, Counts]] = field(default_factory=list)
    """What was counted when."""

    def flow(self, now: datetime, minutes: float, weight: int, excess: Callable[[str], float]) -> None:
        """Lets sessions come for a while, up to now."""
        for name, share in SHARES.items():
            for role, part, bad_share in (
                ("candidate", weight / 100, share + excess(name)),
                ("stable", 1 - weight / 100, share),
            ):
                events = round(PER_MINUTE * minutes * part)
                bad, total = self.counts.get((role, name), (0, 0))
                self.counts[role, name] = (bad + _binomial(self.generator, events, bad_share), total + events)
        self.past.append((now, dict(self.counts)))

    def at(self, moment: datetime) -> Counts:
        """What had been counted by then."""
        return next((counts for when, counts in reversed(self.past) if when <= moment), {})

    def readings(self, role: str, name: str, since: Counts) -> ArmReadings:
        """The increase since some moment."""
        bad, total = self.counts.get((role, name), (0, 0))
        bad_then, total_then = since.get((role, name), (0, 0))
        return ArmReadings(bad=Sample(bad - bad_then), all=Sample(total - total_then))


def _binomial(generator: random.Random, n: int, p: float) -> int:
    if n * p * (1 - p) > 100:
        return min(n, max(0, round(generator.gauss(n * p, math.sqrt(n * p * (1 - p))))))
    return sum(generator.random() < p for _ in range(n))


@dataclass(frozen=True)
class End:
    """How a simulated rollout ended."""

    status: RolloutStatus
    minutes: float
    weights: tuple[int, ...]

    @property
    def outcome(self) -> str:
        """Promoted, RolledBack or Returned."""
        assert self.status.decision is not None
        return self.status.decision.outcome


def simulate(seed: int, excess: Excess, spec: Rollout = SPEC) -> End:
    """One rollout, a pass every 12 s, which is when a rollout by default glances at its metrics."""
    traffic = Traffic(random.Random(seed))
    status, now, in_force, begin_of_step = rollout.begin("assistant-7", DIGEST, False, NOW), NOW, 0, {}
    counted, weights = status.step_since, [0]
    pause = glance.spacing(spec)
    while status.phase != "Done":
        now += pause
        assert now - NOW < timedelta(days=1), "the rollout does not end"
        traffic.flow(now, pause / timedelta(minutes=1), in_force, lambda name, s=status, t=now: excess(name, s, t))
        whole = rollout.measurement_due(status, spec, now)
        metrics = spec.metrics if whole else glance.due(status, spec, now)
        looks = queries.plan(status, spec, metrics, "default", "assistant", "assistant-6", now)
        since = {} if status.phase == "Starting" else begin_of_step
        checks = tuple(_judged(traffic, look, since, now) for look in looks)
        seen = RolloutObservation(arm(), arm(), in_force, checks if whole else None, () if whole else checks)
        move = rollout.advance(status, spec, seen, now)
        status, in_force = move.status, move.weight
        if status.step_since != counted:
            counted, begin_of_step = status.step_since, dict(traffic.counts)
        if weights[-1] != move.weight:
            weights.append(move.weight)
    return End(status, (now - NOW).total_seconds() / 60, tuple(weights))


def _judged(traffic: Traffic, look: queries.Look, since: Counts, now: datetime) -> Check:
    def arms(begin: Counts) -> tuple[ArmReadings, ArmReadings | None]:
        name = look.metric.name
        stable = None if look.stable is None else traffic.readings("stable", name, begin)
        return traffic.readings("candidate", name, begin), stable

    candidate, stable = arms(since)
    recent = [Recent(one.length, *arms(traffic.at(now - one.length))) for one in look.recent]
    return judge(look.metric, candidate, stable or ArmReadings(), now, look.reference, recent)


def equal(name: str, status: RolloutStatus, now: datetime) -> float:
    """An A/A rollout."""
    return 0.0


def worse_feedback(name: str, status: RolloutStatus, now: datetime) -> float:
    """Twice the margin more thumbs-down, from the first session on."""
    return 0.1 if name == "feedback" else 0.0


def much_worse_feedback(name: str, status: RolloutStatus, now: datetime) -> float:
    """Twice as many thumbs-down."""
    return 0.2 if name == "feedback" else 0.0


def errors_in_the_bake(name: str, status: RolloutStatus, now: datetime) -> float:
    """Sound until half a minute into the bake, then one request in ten fails."""
    late = status.phase == "Baking" and now - status.step_since > timedelta(seconds=30)
    return 0.1 if late and name == "errors" else 0.0


@pytest.mark.slow
def test_equal_versions_are_promoted() -> None:
    """A/A: the false rollbacks of 40 rollouts, each with some 60 looks at two metrics."""
    ends = [simulate(seed, equal) for seed in range(40)]
    assert sum(end.outcome == "Promoted" for end in ends) >= 39
    assert all(end.weights == (0, 5, 25, 50, 100) for end in ends if end.outcome == "Promoted")
    assert min(end.minutes for end in ends) >= 3 * 5 + 30


def test_twice_the_margin_is_caught_by_the_end_of_the_bake() -> None:
    ends = [simulate(seed, worse_feedback) for seed in range(30)]
    caught = [end for end in ends if end.outcome == "RolledBack"]
    assert len(caught) >= 29
    assert all(end.status.decision is not None and end.status.decision.check == "feedback" for end in caught)


def test_a_plain_regression_is_caught_before_everybody_gets_it() -> None:
    ends = [simulate(seed, much_worse_feedback) for seed in range(20)]
    assert [end.outcome for end in ends] == ["RolledBack"] * 20
    assert sum(max(end.weights) <= 25 for end in ends) >= 18


def test_a_regression_that_begins_in_the_bake_is_caught() -> None:
    ends = [simulate(seed, errors_in_the_bake) for seed in range(10)]
    assert [end.outcome for end in ends] == ["RolledBack"] * 10
    for end in ends:
        decision = end.status.decision
        assert decision is not None
        assert (decision.check, end.weights[-2:]) == ("errors", (100, 0))
        assert decision.regression_seen_at is not None
        assert decision.at - decision.regression_seen_at <= 3 * SPEC.interval
        assert end.status.weight_zero_at is not None
        assert end.status.weight_zero_at - decision.at <= SPEC.interval
        assert "stable before" in decision.message


def errors_late_in_the_bake(name: str, status: RolloutStatus, now: datetime) -> float:
    """Sound for 25 minutes of the bake, so for some 10,000 requests; then one request in ten fails."""
    late = status.phase == "Baking" and now - status.step_since > timedelta(minutes=25)
    return 0.1 if late and name == "errors" else 0.0


def test_a_late_regression_is_not_thinned_out_by_what_was_good_before() -> None:
    ends = [simulate(seed, errors_late_in_the_bake) for seed in range(10)]
    assert [end.outcome for end in ends] == ["RolledBack"] * 10
    for end in ends:
        decision = end.status.decision
        assert decision is not None
        assert decision.at - (end.status.step_since + timedelta(minutes=25)) <= timedelta(minutes=2)
        assert "in the last" in decision.message


def test_the_same_seed_gives_the_same_end() -> None:
    assert simulate(7, worse_feedback) == simulate(7, worse_feedback)
