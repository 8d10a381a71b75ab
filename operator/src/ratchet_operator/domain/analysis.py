"""One look at one metric, judged: Pass, Fail or Unknown.

Room: operator/domain. Pure. Fetching is `clients`' business; what was read arrives here as `Reading`s.
Anything but exactly one finite number per arm is Unknown, which neither promotes nor rolls back.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Literal

from ratchet_api.base import format_duration
from ratchet_api.cycle import Check, Reference, Verdict
from ratchet_api.rollout import Metric
from ratchet_operator.domain import sequential
from ratchet_operator.domain.sequential import Interval

UnknownReason = Literal["NoData", "TooFewSamples", "QueryError", "Stale", "ManySeries"]
Kind = Literal["proportion", "ratioToStable", "threshold"]

STALE_AFTER = 150.0
"""Seconds without a scrape after which figures are Stale: two and a half of Prometheus' default scrape interval, and
half of the five minutes for which it goes on answering with the last sample."""
RECENT_EVENTS = 20
"""Fewest events of a recent window in either arm; the coverage of its interval is simulated in the tests from here."""
_LARGEST = Decimal(10) ** 12 - 1
_BAD_EVENTS = {"feedback": "thumbs-down", "errors": "server errors"}
_UNITS = {"latencyP95": " s", "timeToFirstTokenP95": " s"}


@dataclass(frozen=True)
class Sample:
    """Exactly one finite number."""

    value: float


@dataclass(frozen=True)
class NoSample:
    """A query that did not give exactly one finite number, and why."""

    reason: UnknownReason
    message: str


Reading = Sample | NoSample


@dataclass(frozen=True)
class ArmReadings:
    """What the queries of one arm gave; a field is None when the metric has no such query (see queries.ArmQueries)."""

    bad: Reading | None = None
    all: Reading | None = None
    value: Reading | None = None
    samples: Reading | None = None
    age: Reading | None = None
    """Seconds since the gateway's series of this arm were last scraped."""


@dataclass(frozen=True)
class Recent:
    """What a proportion's queries gave over the last moments."""

    length: timedelta
    candidate: ArmReadings
    stable: ArmReadings | None
    """None: compared with the reference."""


@dataclass(frozen=True)
class _Figures:
    """An arm's value with the events behind it; samples None: not asked for. `enough`: at least minSamples."""

    value: float
    samples: float | None
    enough: bool


def kind_of(metric: Metric) -> Kind:
    """How a metric is judged. Raises ValueError (a sentence) for one that is neither a preset nor of a kind."""
    if metric.preset in ("feedback", "errors"):
        return "proportion"
    if metric.preset is not None:
        return "ratioToStable"
    if metric.kind is None:
        raise ValueError(f"rollout.metrics[{metric.name}]: write a preset, or a kind with its queries")
    return metric.kind


def judge(
    metric: Metric,
    candidate: ArmReadings,
    stable: ArmReadings,
    now: datetime,
    reference: Reference | None = None,
    recent: Sequence[Recent] = (),
    tuned_for: float | None = None,
) -> Check:
    """The verdict of one look, with failures = unknowns = 0, and with stable's figures of this step as its reference.

    `reference`: stable's figures from before it lost its traffic; when given, `stable` is not looked at
    (see queries.plan, which says when). `recent`: of a proportion, what queries.Look.recent gave; it can only prove
    harm. `tuned_for`: see sequential.difference; None: the smallest arms that are judged at all, so that regressions
    are seen early or not at all.
    """
    try:
        kind = kind_of(metric)
    except ValueError as error:
        return Check(name=metric.name, verdict="Unknown", reason="QueryError", message=str(error), measured_at=now)
    if kind == "threshold":
        return _threshold(metric, _figures(metric, "threshold", candidate), now)
    before = reference is not None
    theirs = _stable(metric, kind, stable, reference)
    fresh = None
    if not before and isinstance(theirs, _Figures) and theirs.enough:
        fresh = Reference(
            value=figure(theirs.value), samples=_whole(theirs.samples), additive=kind == "proportion", at=now
        )
    ours = _figures(metric, kind, candidate)
    check = Check(name=metric.name, verdict="Unknown", reference=fresh, measured_at=now)
    for arm, figures in (("candidate", ours), ("stable", theirs)):
        if isinstance(figures, NoSample):
            message = f"{metric.name}: {arm}: {figures.message}"
            return check.model_copy(update={"reason": figures.reason, "message": message})
    assert isinstance(ours, _Figures)
    assert isinstance(theirs, _Figures)
    check = check.model_copy(
        update={
            "candidate": figure(ours.value),
            "stable": figure(theirs.value),
            "candidate_samples": _whole(ours.samples),
            "stable_samples": _whole(theirs.samples),
        }
    )
    if not (ours.enough and theirs.enough):
        return _too_few(metric, check)
    if kind == "ratioToStable":
        return _ratio(metric, ours, theirs, check, before)
    check = _proportion(metric, ours, theirs, check, before, tuned_for or max(1.0, 0.7 * metric.min_samples))
    return check if check.verdict == "Fail" else _recent_harm(metric, theirs, check, before, recent) or check


def fold(previous: Check | None, new: Check) -> Check:
    """`new` with the counts of the step carried on: passes and failures in the step, unknowns in a row.

    A look that is known already (same measured_at and verdict) changes nothing.
    """
    if previous is None:
        previous = new.model_copy(update={"reference": None, "passed_at": None, "first_failed_at": None})
    elif (previous.measured_at, previous.verdict) == (new.measured_at, new.verdict):
        return previous
    failed, passed, unknown = (new.verdict == v for v in ("Fail", "Pass", "Unknown"))
    return new.model_copy(
        update={
            "passes": previous.passes + passed,
            "failures": previous.failures + failed,
            "unknowns": previous.unknowns + 1 if unknown else 0,
            "passed_at": new.measured_at if passed else previous.passed_at,
            "first_failed_at": previous.first_failed_at or (new.measured_at if failed else None),
            "reference": previous.reference if new.reference is None else _added(previous.carried, new.reference),
            "carried": previous.carried,
        }
    )


def _added(earlier: Reference | None, now: Reference) -> Reference:
    """Stable's figures of earlier steps and of this one. More events of stable make a bake's interval shorter."""
    if earlier is None or not (earlier.additive and now.additive and earlier.samples and now.samples):
        return now
    samples = earlier.samples + now.samples
    bad = float(earlier.value) * earlier.samples + float(now.value) * now.samples
    return now.model_copy(update={"value": figure(bad / samples), "samples": samples})


def figure(value: float) -> Decimal:
    """A float as the decimal that a status can carry: six places, at most twelve digits before the point."""
    exact = max(-_LARGEST, min(_LARGEST, Decimal(repr(value))))
    rounded = exact.quantize(Decimal("0.000001"), rounding=ROUND_HALF_EVEN)
    return Decimal(format(rounded, "f").rstrip("0").rstrip(".") or "0") + 0


def _proportion(
    metric: Metric, ours: _Figures, theirs: _Figures, check: Check, before: bool, tuned_for: float
) -> Check:
    interval = sequential.difference(*_events(ours), *_events(theirs), tuned_for=tuned_for)
    margin = float(metric.margin)
    verdict: Verdict = "Pass"
    wanting = ""
    if interval.lower > margin:
        verdict = "Fail"
    elif metric.assurance == "NonInferior" and interval.upper >= margin:
        verdict, wanting = "Unknown", "; not yet proven within the margin"
    elif metric.assurance == "Superior" and interval.upper >= 0:
        verdict, wanting = "Unknown", "; not yet proven better"
    update = {"verdict": verdict, "reason": "TooFewSamples" if wanting else ""}
    message = _compared(metric, ours, theirs, interval, before) + wanting
    return check.model_copy(update=update | _evidence(ours, theirs, interval, margin) | {"message": message})


def _recent_harm(
    metric: Metric, theirs: _Figures, check: Check, before: bool, recent: Sequence[Recent]
) -> Check | None:
    """The check of the longest recent window that proves harm. Windows without enough events prove nothing."""
    margin = float(metric.margin)
    for window in recent:
        ours = _share(metric, _number(window.candidate.bad, "bad"), _number(window.candidate.all, "all"))
        if window.stable is not None:
            then = _share(metric, _number(window.stable.bad, "bad"), _number(window.stable.all, "all"))
        else:
            then = theirs
        if not isinstance(ours, _Figures) or not isinstance(then, _Figures):
            continue
        if min(ours.samples or 0.0, then.samples or 0.0) < RECENT_EVENTS:
            continue
        if (ours.value - then.value) <= margin:
            continue  # an interval holds its estimate, so this one could not prove harm
        interval = sequential.recent_difference(*_events(ours), *_events(then))
        if interval.lower > margin:
            message = f"{_compared(metric, ours, then, interval, before)}, in the last {format_duration(window.length)}"
            evidence = _evidence(ours, then, interval, margin)
            return check.model_copy(update={"verdict": "Fail", "reason": "", "message": message} | evidence)
    return None


def _events(figures: _Figures) -> tuple[float, float]:
    """(bad, all)."""
    n = figures.samples or 0.0
    return figures.value * n, n


def _evidence(ours: _Figures, theirs: _Figures, interval: Interval, margin: float) -> dict[str, object]:
    return {
        "candidate": figure(ours.value),
        "stable": figure(theirs.value),
        "candidate_samples": _whole(ours.samples),
        "stable_samples": _whole(theirs.samples),
        "lower": figure(interval.lower),
        "upper": figure(interval.upper),
        "limit": figure(margin),
    }


def _compared(metric: Metric, ours: _Figures, theirs: _Figures, interval: Interval, before: bool) -> str:
    margin = float(metric.margin)
    places = 1 if margin >= 0.01 else 2
    share, share_stable, gap, lower, upper, limit = (
        round(100 * x, places) + 0.0
        for x in (ours.value, theirs.value, interval.difference, interval.lower, interval.upper, margin)
    )
    what, when = _BAD_EVENTS.get(metric.preset or "", "bad"), " before" if before else ""
    n, n_stable = ours.samples or 0.0, theirs.samples or 0.0
    return (
        f"{metric.name}: {what} {share:.{places}f} % (n {n:.0f}) vs {share_stable:.{places}f} % stable{when} "
        f"(n {n_stable:.0f}): {gap:+.{places}f} points [{lower:.{places}f}, {upper:.{places}f}], "
        f"limit {limit:+.{places}f}"
    )


def _ratio(metric: Metric, ours: _Figures, theirs: _Figures, check: Check, before: bool) -> Check:
    if theirs.value <= 0 or ours.value < 0:
        message = (
            f"{metric.name}: {ours.value:.4g} vs {theirs.value:.4g} stable: "
            "a ratio needs a value above 0 in stable and none below 0 in the candidate"
        )
        return check.model_copy(update={"reason": "QueryError", "message": message})
    ratio = ours.value / theirs.value
    unit = _UNITS.get(metric.preset or "", "")
    message = (
        f"{metric.name}: {ours.value:.3g}{unit}{_behind(ours)} vs {theirs.value:.3g}{unit} stable"
        f"{' before' if before else ''}{_behind(theirs)}: {ratio:.2f}x, limit {metric.limit}x"
    )
    verdict: Verdict = "Fail" if ratio > float(metric.limit) else "Pass"
    return check.model_copy(update={"verdict": verdict, "message": message, "limit": metric.limit})


def _threshold(metric: Metric, ours: _Figures | NoSample, now: datetime) -> Check:
    check = Check(name=metric.name, verdict="Unknown", measured_at=now)
    if isinstance(ours, NoSample):
        message = f"{metric.name}: candidate: {ours.message}"
        return check.model_copy(update={"reason": ours.reason, "message": message})
    too_high = metric.max is not None and ours.value > float(metric.max)
    too_low = metric.min is not None and ours.value < float(metric.min)
    limit = metric.min if too_low or metric.max is None else metric.max
    check = check.model_copy(
        update={"candidate": figure(ours.value), "candidate_samples": _whole(ours.samples), "limit": limit}
    )
    if not ours.enough:
        return _too_few(metric, check)
    if limit is None:
        message = f"{metric.name}: a threshold needs a bound: write max, min or both"
        return check.model_copy(update={"reason": "QueryError", "message": message})
    bounds = " and ".join(
        f"{word} {bound}" for word, bound in (("at least", metric.min), ("at most", metric.max)) if bound is not None
    )
    message = f"{metric.name}: {ours.value:.4g}{_behind(ours)}, limit {bounds}"
    return check.model_copy(update={"verdict": "Fail" if too_high or too_low else "Pass", "message": message})


def _too_few(metric: Metric, check: Check) -> Check:
    counts = [f"candidate {check.candidate_samples}"]
    if check.stable_samples is not None:
        counts.append(f"stable {check.stable_samples}")
    message = f"{metric.name}: waits for samples: {', '.join(counts)}, at least {metric.min_samples}"
    return check.model_copy(update={"reason": "TooFewSamples", "message": message})


def _figures(metric: Metric, kind: Kind, arm: ArmReadings) -> _Figures | NoSample:
    if isinstance(arm.age, Sample) and arm.age.value > STALE_AFTER:
        return NoSample("Stale", f"last scraped {arm.age.value:.0f} s ago, more than {STALE_AFTER:.0f}")
    # A range still finds the samples from before the target was lost; an instant does not.
    lost = isinstance(arm.age, NoSample) and arm.age.reason == "NoData"
    if lost and isinstance(arm.all or arm.samples or arm.value, Sample):
        return NoSample("Stale", "no longer scraped, so that what is known of it is of the past")
    if kind == "proportion":
        bad, total = _number(arm.bad, "bad"), _number(arm.all, "all")
        return _share(metric, bad, total)
    value = _number(arm.value, "query")
    samples = _number(arm.samples, "samples") if arm.samples is not None else None
    if isinstance(samples, NoSample):
        return samples
    if samples is not None and samples <= 0:
        return NoSample("NoData", "no events yet")
    # A value without enough events behind it may well be NaN: then the events are what is missing.
    if isinstance(value, NoSample):
        return value
    return _Figures(value, samples, samples is None or round(samples) >= metric.min_samples)


def _share(metric: Metric, bad: float | NoSample, total: float | NoSample) -> _Figures | NoSample:
    for number in (total, bad):
        if isinstance(number, NoSample):
            return number
    assert not isinstance(bad, NoSample)
    assert not isinstance(total, NoSample)
    if bad < 0 or total < 0:
        return NoSample("QueryError", f"counts must not be negative, but bad is {bad:.4g} and all is {total:.4g}")
    # increase() extrapolates each series by itself, so that bad may come out a little above all.
    if bad > 1.1 * total + 1:
        return NoSample("QueryError", f"bad ({bad:.4g}) must be part of all ({total:.4g})")
    if total == 0:
        return NoSample("NoData", "no events yet")
    return _Figures(min(1.0, bad / total), total, round(total) >= metric.min_samples)


def _stable(metric: Metric, kind: Kind, stable: ArmReadings, reference: Reference | None) -> _Figures | NoSample:
    if reference is not None:
        samples = None if reference.samples is None else float(reference.samples)
        return _Figures(float(reference.value), samples, True)
    if stable == ArmReadings():
        return NoSample("NoData", "no figures from before it lost its traffic")
    return _figures(metric, kind, stable)


def _number(reading: Reading | None, query: str) -> float | NoSample:
    if reading is None:
        return NoSample("QueryError", f"{query} was not asked")
    if isinstance(reading, NoSample):
        return reading
    if not math.isfinite(reading.value):
        return NoSample("NoData", f"{query} gave {reading.value}")
    return reading.value


def _whole(samples: float | None) -> int | None:
    return None if samples is None else round(samples)


def _behind(figures: _Figures) -> str:
    return "" if figures.samples is None else f" (n {figures.samples:.0f})"
