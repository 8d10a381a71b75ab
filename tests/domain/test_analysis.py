"""Verdicts of one look, as named cases."""

import math
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratchet_api.cycle import Check
from ratchet_api.rollout import Metric
from ratchet_operator.domain.analysis import ArmReadings, NoSample, Reading, Recent, Sample, figure, fold, judge

from .support import FEEDBACK, NOW, P95, after, check, fails, passes, reference, unknown

NO_DATA = NoSample("NoData", "the query gave nothing")
MANY = NoSample("ManySeries", "the query gave 3 series")
DOWN = NoSample("QueryError", "Prometheus does not answer")


def counts(bad: float | Reading, total: float | Reading, age: float | None = None) -> ArmReadings:
    """Readings of a proportion."""
    return ArmReadings(bad=_reading(bad), all=_reading(total), age=None if age is None else Sample(age))


def value(number: float | Reading, samples: float | Reading | None = 1000, age: float | None = None) -> ArmReadings:
    """Readings of a ratio or threshold."""
    behind = None if samples is None else _reading(samples)
    return ArmReadings(value=_reading(number), samples=behind, age=None if age is None else Sample(age))


def _reading(number: float | Reading) -> Reading:
    return Sample(number) if isinstance(number, int | float) else number


STABLE = counts(82, 402)


@pytest.mark.parametrize(
    ("candidate", "stable", "verdict", "reason"),
    [
        pytest.param(counts(60, 300), STABLE, "Pass", "", id="no proof of harm passes"),
        pytest.param(counts(150, 300), STABLE, "Fail", "", id="harm beyond the margin proven"),
        pytest.param(counts(78, 300), STABLE, "Pass", "", id="worse, but not proven beyond the margin"),
        pytest.param(counts(199, 199), STABLE, "Unknown", "TooFewSamples", id="one event short in the candidate"),
        pytest.param(counts(199.6, 199.6), STABLE, "Fail", "", id="extrapolated to the minimum"),
        pytest.param(counts(60, 300), counts(1, 199), "Unknown", "TooFewSamples", id="one event short in stable"),
        pytest.param(counts(0, 0), STABLE, "Unknown", "NoData", id="no event at all is no data"),
        pytest.param(counts(NO_DATA, NO_DATA), STABLE, "Unknown", "NoData", id="empty answer"),
        pytest.param(counts(60, 300), counts(NO_DATA, NO_DATA), "Unknown", "NoData", id="empty answer for stable"),
        pytest.param(counts(1, MANY), STABLE, "Unknown", "ManySeries", id="more than one series"),
        pytest.param(counts(DOWN, 300), STABLE, "Unknown", "QueryError", id="Prometheus is down"),
        pytest.param(counts(math.nan, 300), STABLE, "Unknown", "NoData", id="NaN"),
        pytest.param(counts(1, math.inf), STABLE, "Unknown", "NoData", id="infinite"),
        pytest.param(counts(-1, 300), STABLE, "Unknown", "QueryError", id="negative count"),
        pytest.param(counts(400, 300), STABLE, "Unknown", "QueryError", id="more bad than all"),
        pytest.param(counts(301.5, 300), STABLE, "Fail", "", id="a little more bad than all is extrapolation"),
        pytest.param(counts(150, 300, age=500), STABLE, "Unknown", "Stale", id="gateway is not scraped any more"),
        pytest.param(counts(150, 300, age=14), STABLE, "Fail", "", id="scraped lately"),
        pytest.param(counts(150, 300), counts(82, 402, age=500), "Unknown", "Stale", id="stable is stale"),
        pytest.param(ArmReadings(), STABLE, "Unknown", "QueryError", id="nothing was asked"),
    ],
)
def test_proportion(candidate: ArmReadings, stable: ArmReadings, verdict: str, reason: str) -> None:
    got = judge(FEEDBACK, candidate, stable, NOW)
    assert (got.verdict, got.reason) == (verdict, reason), got.message
    assert got.message.startswith("feedback: ")
    assert got.measured_at == NOW


def test_an_age_that_could_not_be_asked_for_does_not_matter() -> None:
    stable = ArmReadings(bad=Sample(82), all=Sample(402), age=NoSample("QueryError", "time-out"))
    assert judge(FEEDBACK, counts(60, 300), stable, NOW).verdict == "Pass"


def test_a_target_that_is_lost_is_stale_although_a_range_still_finds_its_past() -> None:
    lost = ArmReadings(bad=Sample(82), all=Sample(402), age=NO_DATA)
    for arms in ((counts(60, 300), lost), (lost, counts(60, 300))):
        got = judge(FEEDBACK, *arms, NOW)
        assert (got.verdict, got.reason) == ("Unknown", "Stale")
        assert "no longer scraped" in got.message


def recent(ours: ArmReadings, theirs: ArmReadings | None, seconds: float = 30) -> Recent:
    """The last moments of both arms."""
    return Recent(timedelta(seconds=seconds), ours, theirs)


@pytest.mark.parametrize(
    ("last", "verdict"),
    [
        pytest.param([recent(counts(26, 40), counts(24, 120))], "Fail", id="late harm"),
        pytest.param([recent(counts(8, 40), counts(24, 120))], "Pass", id="as before"),
        pytest.param([recent(counts(13, 40), counts(24, 120))], "Pass", id="worse, but not proven"),
        pytest.param([recent(counts(19, 19), counts(0, 120))], "Pass", id="one event short"),
        pytest.param([recent(counts(40, 40), counts(0, 19))], "Pass", id="stable one event short"),
        pytest.param([recent(counts(NO_DATA, 40), counts(0, 120))], "Pass", id="no data proves nothing"),
        pytest.param([recent(counts(40, 40), counts(0, DOWN))], "Pass", id="Prometheus is down"),
        pytest.param([recent(counts(-1, 40), counts(0, 120))], "Pass", id="a negative count"),
        pytest.param([recent(ArmReadings(), ArmReadings())], "Pass", id="nothing was asked"),
        pytest.param(
            [recent(counts(8, 160), counts(24, 480)), recent(counts(20, 40), counts(6, 120), 8)],
            "Fail",
            id="the shorter",
        ),
    ],
)
def test_late_harm_is_not_thinned_out(last: list[Recent], verdict: str) -> None:
    candidate, stable = counts(600, 3000), counts(1800, 9000)
    got = judge(FEEDBACK, candidate, stable, NOW, None, last)
    assert got.verdict == verdict, got.message
    if verdict == "Pass":
        assert got == judge(FEEDBACK, candidate, stable, NOW)


def test_late_harm_says_when_and_how_much() -> None:
    got = judge(FEEDBACK, counts(600, 3000), counts(1800, 9000), NOW, None, [recent(counts(26, 40), counts(24, 120))])
    assert got.message.endswith("limit +5.0, in the last 30s")
    assert (got.candidate, got.candidate_samples, got.stable_samples) == (Decimal("0.65"), 40, 120)
    assert got.lower is not None
    assert got.lower > Decimal("0.05")
    assert got.reference is not None
    assert got.reference.samples == 9000


def test_late_harm_in_the_bake_is_compared_with_what_stable_was() -> None:
    got = judge(FEEDBACK, counts(600, 3000), ArmReadings(), NOW, reference(), [recent(counts(26, 40), None)])
    assert (got.verdict, got.stable_samples) == ("Fail", 400)
    assert "stable before" in got.message


def test_recent_events_do_not_stand_in_for_the_samples_asked_for() -> None:
    got = judge(FEEDBACK, counts(40, 199), STABLE, NOW, None, [recent(counts(40, 40), counts(24, 120))])
    assert (got.verdict, got.reason) == ("Unknown", "TooFewSamples")


@pytest.mark.parametrize(
    ("assurance", "candidate", "verdict", "reason"),
    [
        pytest.param("NoHarm", counts(60, 300), "Pass", "", id="NoHarm asks for samples only"),
        pytest.param("NonInferior", counts(60, 300), "Unknown", "TooFewSamples", id="NonInferior not proven yet"),
        pytest.param("NonInferior", counts(2000, 10_000), "Pass", "", id="NonInferior proven"),
        pytest.param("Superior", counts(2000, 10_000), "Unknown", "TooFewSamples", id="equal is not Superior"),
        pytest.param("Superior", counts(1000, 10_000), "Pass", "", id="Superior proven"),
        pytest.param("Superior", counts(5000, 10_000), "Fail", "", id="harm fails whatever is asked for"),
    ],
)
def test_assurance(assurance: Any, candidate: ArmReadings, verdict: str, reason: str) -> None:
    metric = FEEDBACK.model_copy(update={"assurance": assurance})
    got = judge(metric, candidate, counts(2000, 10_000), NOW)
    assert (got.verdict, got.reason) == (verdict, reason), got.message


@pytest.mark.parametrize(
    ("candidate", "stable", "verdict", "reason"),
    [
        pytest.param(value(1.3), value(1.0), "Pass", "", id="within the factor"),
        pytest.param(value(1.5), value(1.0), "Pass", "", id="at the limit"),
        pytest.param(value(1.51), value(1.0), "Fail", "", id="beyond the factor"),
        pytest.param(value(9.0, 199), value(1.0), "Unknown", "TooFewSamples", id="too few behind the candidate"),
        pytest.param(value(9.0), value(1.0, 199), "Unknown", "TooFewSamples", id="too few behind stable"),
        pytest.param(value(9.0, None), value(1.0, None), "Fail", "", id="no samples query, no minimum"),
        pytest.param(value(math.nan), value(1.0), "Unknown", "NoData", id="NaN quantile"),
        pytest.param(value(math.nan, 0), value(1.0), "Unknown", "NoData", id="no request at all"),
        pytest.param(value(9.0, DOWN), value(1.0), "Unknown", "QueryError", id="samples cannot be had"),
        pytest.param(value(9.0), value(0.0), "Unknown", "QueryError", id="a ratio to nothing"),
        pytest.param(value(-1.0), value(1.0), "Unknown", "QueryError", id="a negative value"),
        pytest.param(value(0.0), value(1.0), "Pass", "", id="the candidate may be zero"),
        pytest.param(value(9.0, age=151), value(1.0), "Unknown", "Stale", id="stale"),
    ],
)
def test_ratio_to_stable(candidate: ArmReadings, stable: ArmReadings, verdict: str, reason: str) -> None:
    got = judge(P95, candidate, stable, NOW)
    assert (got.verdict, got.reason) == (verdict, reason), got.message


@pytest.mark.parametrize(
    ("bounds", "candidate", "verdict", "reason"),
    [
        pytest.param({"max": "0.9"}, value(0.9, None), "Pass", "", id="at the upper bound"),
        pytest.param({"max": "0.9"}, value(0.91, None), "Fail", "", id="above it"),
        pytest.param({"min": "10"}, value(9.9, None), "Fail", "", id="below the lower bound"),
        pytest.param({"min": "1", "max": "2"}, value(1.5, None), "Pass", "", id="between"),
        pytest.param({"min": "1", "max": "2"}, value(0.5, None), "Fail", "", id="below both"),
        pytest.param({"max": "0.9"}, value(0.5, 10), "Unknown", "TooFewSamples", id="too few"),
        pytest.param({"max": "0.9"}, value(NO_DATA, None), "Unknown", "NoData", id="nothing there"),
        pytest.param({}, value(0.5, None), "Unknown", "QueryError", id="no bound"),
    ],
)
def test_threshold(bounds: dict[str, str], candidate: ArmReadings, verdict: str, reason: str) -> None:
    metric = Metric(name="gpu", kind="threshold", query="x", **{k: Decimal(v) for k, v in bounds.items()})
    got = judge(metric, candidate, ArmReadings(), NOW)
    assert (got.verdict, got.reason) == (verdict, reason), got.message


def test_a_metric_without_a_kind_is_said() -> None:
    got = judge(Metric(name="odd"), value(1.0), value(1.0), NOW)
    assert (got.verdict, got.reason) == ("Unknown", "QueryError")
    assert "write a preset, or a kind with its queries" in got.message


@pytest.mark.parametrize(
    ("metric", "candidate", "stable", "message"),
    [
        pytest.param(
            FEEDBACK,
            counts(54, 231),
            counts(82, 402),
            "feedback: thumbs-down 23.4 % (n 231) vs 20.4 % stable (n 402): +3.0 points [-6.3, 12.8], limit +5.0",
            id="proportion",
        ),
        pytest.param(
            Metric(name="errors", preset="errors", margin=Decimal("0.002")),
            counts(0, 4000),
            counts(1, 40_000),
            "errors: server errors 0.00 % (n 4000) vs 0.00 % stable (n 40000): +0.00 points [-0.02, 0.12], limit +0.20",
            id="small margin, finer digits",
        ),
        pytest.param(
            P95,
            value(3.42, 312),
            value(1.2, 2404),
            "p95: 3.42 s (n 312) vs 1.2 s stable (n 2404): 2.85x, limit 1.5x",
            id="ratio",
        ),
        pytest.param(
            FEEDBACK,
            counts(5, 12),
            counts(82, 402),
            "feedback: waits for samples: candidate 12, stable 402, at least 200",
            id="too few",
        ),
        pytest.param(
            Metric(name="gpu", kind="threshold", query="x", min=Decimal("0.1"), max=Decimal("0.9")),
            value(0.934, None),
            ArmReadings(),
            "gpu: 0.934, limit at least 0.1 and at most 0.9",
            id="threshold",
        ),
        pytest.param(
            FEEDBACK,
            counts(MANY, 300),
            counts(82, 402),
            "feedback: candidate: the query gave 3 series",
            id="the arm is named",
        ),
    ],
)
def test_measured_against_limit_in_words(
    metric: Metric, candidate: ArmReadings, stable: ArmReadings, message: str
) -> None:
    assert judge(metric, candidate, stable, NOW).message == message


class TestReference:
    """At weight 100 stable has no events: its figures from before stand in."""

    def test_good_figures_of_stable_are_kept_even_if_the_candidate_has_none(self) -> None:
        got = judge(FEEDBACK, counts(NO_DATA, NO_DATA), STABLE, NOW)
        assert got.reference is not None
        assert (got.reference.value, got.reference.samples) == (Decimal("0.20398"), 402)

    def test_too_few_events_of_stable_are_not_kept(self) -> None:
        assert judge(FEEDBACK, counts(60, 300), counts(1, 199), NOW).reference is None

    def test_the_candidate_is_judged_by_it(self) -> None:
        got = judge(FEEDBACK, counts(150, 300), ArmReadings(), NOW, reference())
        assert got.verdict == "Fail"
        assert got.message.startswith("feedback: thumbs-down 50.0 % (n 300) vs 20.0 % stable before (n 400)")
        assert got.reference is None

    def test_ratio_by_it(self) -> None:
        assert judge(P95, value(4.0), ArmReadings(), NOW, reference("2.0")).verdict == "Fail"

    def test_without_it_nothing_is_known(self) -> None:
        got = judge(FEEDBACK, counts(150, 300), ArmReadings(), NOW, None)
        assert (got.verdict, got.reason) == ("Unknown", "NoData")
        assert "no figures from before it lost its traffic" in got.message


class TestFold:
    """What is counted in a step."""

    def test_the_first_look(self) -> None:
        first = fold(None, fails(NOW))
        assert (first.passes, first.failures, first.unknowns, first.first_failed_at) == (0, 1, 0, NOW)

    def test_failures_add_up_and_unknowns_are_in_a_row(self) -> None:
        state: Check | None = None
        for i, one in enumerate((unknown, unknown, fails, unknown, passes, fails, unknown)):
            state = fold(state, one(after(i)))
        assert state is not None
        assert (state.passes, state.failures, state.unknowns) == (1, 2, 1)
        assert (state.first_failed_at, state.passed_at) == (after(2), after(4))

    def test_the_same_look_is_not_counted_twice(self) -> None:
        state = fold(None, fails(NOW))
        assert fold(state, fails(NOW)) == state

    def test_a_clock_that_went_back_does_not_stop_the_counting(self) -> None:
        assert fold(fold(None, fails(NOW)), fails(after(-3600))).failures == 2

    def test_the_last_reference_is_remembered(self) -> None:
        state = fold(fold(None, passes(NOW, reference=reference())), unknown(after(1)))
        assert state.reference == reference()
        newer = fold(state, passes(after(2), reference=reference("0.3")))
        assert newer.reference == reference("0.3")

    def test_shares_of_earlier_steps_are_added(self) -> None:
        earlier = reference("0.2", 300).model_copy(update={"additive": True})
        state = passes(NOW, carried=earlier, reference=earlier)
        for seconds, share, samples in ((1, "0.5", 50), (2, "0.6", 100)):
            look = reference(share, samples, after(seconds)).model_copy(update={"additive": True})
            state = fold(state, passes(after(seconds), reference=look))
        assert state.reference is not None
        assert (state.reference.value, state.reference.samples) == (Decimal("0.3"), 400)
        assert (state.carried, state.reference.at) == (earlier, after(2))

    def test_quantiles_of_earlier_steps_are_replaced(self) -> None:
        state = fold(passes(NOW, carried=reference("2.0"), reference=reference("2.0")), unknown(after(1)))
        assert fold(state, passes(after(2), reference=reference("3.0"))).reference == reference("3.0")


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_figure_fits_into_a_status(number: float) -> None:
    again = Check.model_validate(check("Pass", NOW, candidate=figure(number)).dump())
    assert again.candidate == figure(number)
    whole, _, fraction = format(abs(figure(number)), "f").partition(".")
    assert len(whole) <= 12
    assert len(fraction) <= 6
    if abs(number) < 1e11:
        assert float(figure(number)) == pytest.approx(number, abs=1e-6, rel=1e-9)


numbers = st.floats(allow_nan=True, allow_infinity=True) | st.integers(-5, 10_000).map(float)
readings = st.none() | numbers.map(Sample) | st.sampled_from([NO_DATA, MANY, DOWN])
arms = st.builds(ArmReadings, bad=readings, all=readings, value=readings, samples=readings, age=readings)
metrics = st.sampled_from(
    [
        FEEDBACK,
        P95,
        FEEDBACK.model_copy(update={"assurance": "Superior", "min_samples": 1}),
        Metric(name="gpu", kind="threshold", query="x", max=Decimal(1)),
        Metric(name="odd"),
    ]
)


@given(metrics, arms, arms, st.none() | st.just(reference()))
def test_judge_is_total_and_never_decides_without_numbers(
    metric: Metric, candidate: ArmReadings, stable: ArmReadings, kept: Any
) -> None:
    got = judge(metric, candidate, stable, NOW, kept)
    assert got.verdict in ("Pass", "Fail", "Unknown")
    assert (got.reason == "") == (got.verdict != "Unknown")
    if got.verdict != "Unknown":
        assert got.candidate is not None
        assert got.limit is not None
    assert (got.passes, got.failures, got.unknowns) == (0, 0, 0)
    assert Check.model_validate(got.dump()) == got


def test_fold_keeps_time() -> None:
    assert fold(passes(NOW), passes(NOW + timedelta(seconds=1))).measured_at == after(1)
