"""The A/B test: its rules as tables, what must never happen as properties, its errors by simulation."""

import math
import random
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratchet_api.ab_test import AbTest, Outcome
from ratchet_api.cycle import Check, RolloutStatus
from ratchet_api.rollout import Metric, Rollout
from ratchet_operator.domain import ab_test, queries, rollout, sequential
from ratchet_operator.domain.analysis import ArmReadings, NoSample, Sample
from ratchet_operator.domain.rollout import Move

from .support import DIGEST, FEEDBACK, NOW, P95, after, canary, outcome, passes, policy, seen, unknown

HOUR = timedelta(hours=1)


def spec_of(**changes: Any) -> Rollout:
    """An A/B test of an hour at half of the sessions, with one check beside it."""
    return policy(strategy="abTest", ab_test=AbTest(**({"max_duration": HOUR} | changes)))


def counts(bad: float, all_: float) -> ArmReadings:
    """One arm's counters."""
    return ArmReadings(bad=Sample(bad), all=Sample(all_), age=Sample(1.0))


def pass_of(
    status: RolloutStatus, spec: Rollout, seconds: float, candidate: ArmReadings, stable: ArmReadings, **more: Any
) -> Move:
    """A pass with passing checks and a look at the outcome."""
    now = after(seconds)
    look = ab_test.look(spec, candidate, stable, now)
    return rollout.advance(status, spec, replace(seen(status.weight, passes(now), **more), outcome=look), now)


DOWN = {
    "better": (counts(40, 1000), counts(200, 1000)),
    "equal": (counts(2000, 10_000), counts(2000, 10_000)),
    "worse": (counts(400, 1000), counts(200, 1000)),
    "a little worse": (counts(2200, 10_000), counts(2000, 10_000)),
    "unclear": (counts(60, 300), counts(66, 300)),
    "few": (counts(1, 30), counts(10, 30)),
    "nothing": (ArmReadings(bad=NoSample("NoData", "no series"), all=NoSample("NoData", "no series")),) * 2,
}


@pytest.mark.parametrize(
    ("what", "assurance", "over", "verdict", "end"),
    [
        ("better", "NonInferior", False, "Better", "bakes"),
        ("better", "Superior", True, "Better", "bakes"),
        ("equal", "NonInferior", False, "Undecided", None),
        ("equal", "NonInferior", True, "NotWorse", "bakes"),
        ("equal", "Superior", True, "Inconclusive", ("Returned", "Inconclusive")),
        ("worse", "NonInferior", False, "Worse", ("RolledBack", "OutcomeWorse")),
        ("worse", "Superior", False, "Worse", ("RolledBack", "OutcomeWorse")),
        ("a little worse", "Superior", False, "Worse", ("RolledBack", "OutcomeWorse")),
        ("a little worse", "NonInferior", False, "Undecided", None),
        ("a little worse", "NonInferior", True, "NotWorse", "bakes"),
        ("unclear", "NonInferior", True, "Inconclusive", ("Returned", "Inconclusive")),
        ("few", "NonInferior", False, "Undecided", None),
        ("few", "NonInferior", True, "Inconclusive", ("Returned", "Inconclusive")),
        ("nothing", "NonInferior", True, "Undecided", None),
    ],
)
def test_the_rules(what: str, assurance: str, over: bool, verdict: str, end: Any) -> None:
    move = pass_of(canary(50), spec_of(assurance=assurance), 3600 if over else 60, *DOWN[what])
    found = move.status.ab_test
    assert found is not None
    assert found.verdict == verdict
    assert bool(found.rule) == bool(found.decided_at) == (verdict != "Undecided")
    if end == "bakes":
        assert (move.status.phase, move.weight) == ("Baking", 100)
        assert found.rule in move.events[-1].message
    else:
        assert outcome(move) == end
    if end is None:
        assert (move.status.phase, move.weight) == ("Canary", 50)


def test_figures_are_shares_of_good_outcomes() -> None:
    found = pass_of(canary(50), spec_of(), 60, *DOWN["better"]).status.ab_test
    assert found is not None
    assert (found.candidate, found.stable, found.difference) == (Decimal("0.96"), Decimal("0.8"), Decimal("0.16"))
    assert found.lower is not None
    assert found.upper is not None
    assert 0 < found.lower < Decimal("0.16") < found.upper
    assert (found.candidate_samples, found.stable_samples) == (1000, 1000)
    assert found.message.startswith("thumbs-up 96.0 % (n 1000) vs 80.0 % stable (n 1000): +16.0 points [")


def test_an_inline_outcome_counts_the_good_ones() -> None:
    spec = spec_of(outcome=Outcome(good='resolved{version="{{ version }}"}', all='asked{version="{{ version }}"}'))
    [look] = queries.plan(canary(50), spec, [ab_test.outcome(spec)], "chat", "assistant", "assistant-6", after(60))
    assert (look.candidate.bad, look.candidate.all) == (
        'resolved{version="assistant-7"}',
        'asked{version="assistant-7"}',
    )
    found = pass_of(canary(50), spec, 60, counts(960, 1000), counts(800, 1000)).status.ab_test
    assert found is not None
    assert (found.verdict, found.difference) == ("Better", Decimal("0.16"))


def test_an_outcome_that_is_none_is_refused_by_its_field() -> None:
    spec = spec_of(outcome=Outcome(metric="p95")).model_copy(update={"metrics": [FEEDBACK, P95]})
    with pytest.raises(ValueError, match=r"rollout\.abTest\.outcome\.metric: p95 is no proportion"):
        queries.check_queries(spec)
    spec = spec_of(outcome=Outcome(good="x{{ arm }}", all="y"))
    with pytest.raises(ValueError, match=r"rollout\.abTest\.outcome\.good: unknown variable"):
        queries.check_queries(spec)


def test_the_split_is_fixed_from_begin_to_end() -> None:
    spec = spec_of(weight=30)
    status = canary(0, phase="Starting", step=-1)
    first = rollout.advance(status, spec, seen(0), after(1))
    assert (first.status.phase, first.weight) == ("Canary", 30)
    status = first.status.model_copy(update={"unconfirmed_since": None})
    edited = spec_of(weight=70)
    assert pass_of(status, edited, 60, *DOWN["equal"]).weight == 30
    assert pass_of(status, edited, 60, *DOWN["better"]).weight == 100


def test_a_failing_check_rolls_back_whatever_the_outcome_says() -> None:
    now = after(60)
    spec = spec_of()
    bad = Check(name="feedback", verdict="Fail", message="harm", measured_at=now)
    look = ab_test.look(spec, *DOWN["better"], now)
    move = rollout.advance(canary(50), spec, replace(seen(50, bad), outcome=look), now)
    assert outcome(move) == ("RolledBack", "CheckFailed")


def test_a_check_that_cannot_see_keeps_a_better_one_waiting_and_then_holds_it() -> None:
    spec, status = spec_of(), canary(50)
    for i in range(1, 7):
        now = after(10 * i)
        look = ab_test.look(spec, *DOWN["better" if i == 1 else "unclear"], now)
        move = rollout.advance(status, spec, replace(seen(50, unknown(now, "TooFewSamples")), outcome=look), now)
        status = move.status
        assert status.ab_test is not None
        assert (status.ab_test.verdict, move.weight) == ("Better", 50)
    assert status.held_since is not None


def test_waiting_for_samples_is_no_hold_while_the_test_goes_on() -> None:
    spec, status = spec_of(), canary(50)
    for i in range(1, 12):
        now = after(10 * i)
        look = ab_test.look(spec, *DOWN["few"], now)
        move = rollout.advance(status, spec, replace(seen(50, unknown(now, "TooFewSamples")), outcome=look), now)
        status = move.status
        assert status.held_since is None


def test_an_outcome_that_cannot_be_seen_is_held_and_at_the_end_inconclusive() -> None:
    spec, status = spec_of(max_duration=timedelta(minutes=2)), canary(50)
    moves = []
    for i in range(1, 13):
        moves.append(pass_of(status, spec, 10 * i, *DOWN["nothing"]))
        status = moves[-1].status
    assert any(move.status.held_since for move in moves[:11])
    assert outcome(moves[-1]) == ("Returned", "Inconclusive")
    late = pass_of(canary(50), spec, 130, *DOWN["nothing"])
    assert outcome(late) is None, "one look that saw nothing is no answer, even when the time is over"


def test_suspended_tests_neither_promote_nor_end_by_time() -> None:
    spec = spec_of()
    assert pass_of(canary(50), spec, 60, *DOWN["better"], suspended=True).weight == 50
    assert outcome(pass_of(canary(50), spec, 4000, *DOWN["unclear"], suspended=True)) is None
    assert outcome(pass_of(canary(50), spec, 4000, *DOWN["worse"], suspended=True)) == ("RolledBack", "OutcomeWorse")


def test_the_same_look_twice_counts_once() -> None:
    spec = spec_of()
    once = pass_of(canary(50), spec, 60, *DOWN["nothing"]).status
    twice = pass_of(once, spec, 60, *DOWN["nothing"]).status
    assert twice.ab_test == once.ab_test


arms = st.integers(0, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
readings = arms.map(lambda a: counts(*a)) | st.sampled_from(["NoData", "QueryError", "Stale", "ManySeries"]).map(
    lambda reason: ArmReadings(bad=NoSample(reason, "x"), all=NoSample(reason, "x"))  # type: ignore[arg-type]
)


@given(
    st.lists(st.tuples(readings, readings, st.sampled_from(["Pass", "Unknown", "Fail"])), min_size=1, max_size=12),
    st.sampled_from(["Superior", "NonInferior"]),
    st.integers(10, 200),
)
def test_no_history_promotes_or_blames_without_proof(
    looks: list[tuple[ArmReadings, ArmReadings, str]], assurance: str, seconds: int
) -> None:
    spec = spec_of(assurance=assurance, max_duration=timedelta(seconds=seconds), min_samples=50)
    status = canary(50)
    for i, (ours, theirs, verdict) in enumerate(looks, 1):
        now = after(10 * i)
        look = ab_test.look(spec, ours, theirs, now)
        check = Check(name="feedback", verdict=verdict, reason="NoData" * (verdict == "Unknown"), measured_at=now)
        move = rollout.advance(status, spec, replace(seen(50, check), outcome=look), now)
        status, found = move.status, move.status.ab_test
        assert found is not None
        assert move.weight in (0, 50, 100)
        if move.weight == 100:
            assert found.verdict in ("Better", "NotWorse")
            assert verdict == "Pass"
        if status.decision is not None and status.decision.reason == "OutcomeWorse":
            assert found.upper is not None
            assert found.upper < (0 if assurance == "Superior" else -Decimal("0.05"))
        if found.verdict in ("Better", "Worse") and found.decided_at == now:
            samples = (found.candidate_samples, found.stable_samples)
            assert min(n for n in samples if n is not None) >= 50
        if status.phase != "Canary":
            break


def test_only_blind_looks_never_promote_and_never_blame() -> None:
    spec, status = spec_of(max_duration=timedelta(seconds=30)), canary(50)
    for i in range(1, 30):
        move = pass_of(status, spec, 10 * i, *DOWN["nothing"])
        status = move.status
        assert move.weight in (0, 50)
        assert status.decision is None or status.decision.outcome == "Returned"


def test_a_return_to_a_known_good_version_needs_no_test() -> None:
    status = rollout.begin("assistant-5", DIGEST, True, NOW).model_copy(update={"measured_at": NOW})
    move = rollout.advance(status, spec_of(), seen(0), after(1))
    assert (move.status.phase, move.weight) == ("Baking", 100)


def wrong_answers(share: float, deficit: float, assurance: str, tests: int, alpha: float) -> tuple[float, float]:
    """(share of tests that promote early as Better, share that roll back), over tests of 100 looks of 100 outcomes an
    arm and look, by the rules' own boundary. `alpha` widens it to show that the simulation notices."""
    generator = random.Random(f"{share} {deficit} {assurance}")
    spec = spec_of(assurance=assurance)
    margin = 0.0 if assurance == "Superior" else float(ab_test.test_of(spec).margin)
    tuned = max(0.5 * ab_test.test_of(spec).min_samples, 0.25 * (2.8 / max(0.005, 0.05)) ** 2)
    better = worse = 0
    for _ in range(tests):
        good = good_stable = n = 0
        for _ in range(100):
            n += 100
            good += _binomial(generator, 100, share - deficit)
            good_stable += _binomial(generator, 100, share)
            gap = (good - good_stable) / n
            if n < 200 or -margin <= gap <= 0:
                continue
            interval = sequential.difference(n - good, n, n - good_stable, n, tuned, alpha)
            if interval.lower > margin:
                worse += 1
                break
            if interval.upper < 0:
                better += 1
                break
    return better / tests, worse / tests


def _binomial(generator: random.Random, n: int, p: float) -> int:
    if n * p * (1 - p) > 9:
        return min(n, max(0, round(generator.gauss(n * p, math.sqrt(n * p * (1 - p))))))
    return sum(generator.random() < p for _ in range(n))


@pytest.mark.slow
@pytest.mark.parametrize("assurance", ["Superior", "NonInferior"])
@pytest.mark.parametrize("share", [0.8, 0.5])
def test_equal_versions_are_seldom_called_better_or_worse(assurance: str, share: float) -> None:
    better, worse = wrong_answers(share, 0.0, assurance, tests=300, alpha=sequential.ALPHA)
    assert better <= sequential.ALPHA
    assert worse <= sequential.ALPHA


@pytest.mark.slow
def test_a_deficit_of_just_the_margin_is_seldom_called_more() -> None:
    assert wrong_answers(0.8, 0.05, "NonInferior", tests=300, alpha=sequential.ALPHA)[1] <= sequential.ALPHA


def test_the_simulation_would_notice_too_narrow_an_interval() -> None:
    better, worse = wrong_answers(0.8, 0.0, "Superior", tests=60, alpha=0.49)
    assert better + worse > 2 * sequential.ALPHA


def test_metrics_named_like_the_outcome_cannot_be() -> None:
    with pytest.raises(ValueError, match="abTest"):
        Metric(name=ab_test.OUTCOME, preset="errors")
