"""PromQL of each metric for each arm.

Room: operator/domain. Pure: makes strings.

Proportions count events since the step began, so that their evidence grows, and those of the last moments besides, so
that late harm is not thinned out; ratios and thresholds look at the last rollout.window. Both arms are always asked
over the same window.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from ratchet_api import metrics as series
from ratchet_api.base import format_duration
from ratchet_api.cycle import Reference, RolloutStatus
from ratchet_api.names import ARM, child_name
from ratchet_api.rollout import Metric, Preset, Rollout
from ratchet_operator.domain import ab_test
from ratchet_operator.domain.analysis import kind_of

_VARIABLE = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_VARIABLES = ("namespace", "cycle", "version", "window")
_SHORTEST = timedelta(seconds=1)
_WHOLE_IN_POD = 46
"""Longest name of a Deployment that its pods' names hold whole: 63, less `-<10>-<5>` of the two hashes."""
_VLLM: Mapping[str, str] = {
    "vllmLatencyP95": "vllm:e2e_request_latency_seconds",
    "vllmTimeToFirstTokenP95": "vllm:time_to_first_token_seconds",
}
"""Histograms of vLLM's own (docs.vllm.ai, production metrics). They know no adapter, but an arm is a Deployment."""


@dataclass(frozen=True)
class ArmQueries:
    """PromQL for one arm; a field is None when the metric has no such query. Same fields as analysis.ArmReadings."""

    bad: str | None = None
    all: str | None = None
    value: str | None = None
    samples: str | None = None
    age: str | None = None


RECENT_PARTS = (1, 4)
"""Proportions are also looked at over rollout.window divided by these."""


_Arms = tuple[ArmQueries, ArmQueries | None]


@dataclass(frozen=True)
class RecentLook:
    """A proportion's `bad` and `all` over the last moments, for analysis.Recent."""

    length: timedelta
    candidate: ArmQueries
    stable: ArmQueries | None


@dataclass(frozen=True)
class Look:
    """What to ask for one metric now, and what to hand to analysis.judge."""

    metric: Metric
    candidate: ArmQueries
    stable: ArmQueries | None
    """None: not needed; judge with an empty ArmReadings() and with `reference`."""
    reference: Reference | None
    window: timedelta
    """The range that the queries look back over."""
    recent: tuple[RecentLook, ...] = ()
    """Of a proportion, the longest first."""


@dataclass(frozen=True)
class Span:
    """Over what a metric is looked at now, before there are queries for it."""

    metric: Metric
    window: timedelta
    compared: bool
    """Whether stable is looked at too."""
    reference: Reference | None
    recent: tuple[timedelta, ...]
    """Of a proportion, the windows of the last moments, the longest first."""


def spans(status: RolloutStatus, spec: Rollout, metrics: Sequence[Metric], now: datetime) -> tuple[Span, ...]:
    """What one look at these metrics of a rollout has to cover.

    At weight 100 stable has no traffic to be compared with, so its figures from before (Check.reference) stand in.
    """
    found = []
    for metric in metrics:
        kind = kind_of(metric)
        window = _since_begin(status, spec, now) if kind == "proportion" else spec.window
        compared = kind != "threshold" and status.weight < 100
        kept = None
        if kind != "threshold" and not compared:
            kept = next((check.reference for check in status.checks if check.name == metric.name), None)
        recent: tuple[timedelta, ...] = ()
        if kind == "proportion" and status.phase != "Starting":
            recent = tuple(length for part in RECENT_PARTS if (length := spec.window / part) < window)
        found.append(Span(metric, window, compared, kept, recent))
    return tuple(found)


def plan(
    status: RolloutStatus,
    spec: Rollout,
    metrics: Sequence[Metric],
    namespace: str,
    cycle: str,
    stable_version: str,
    now: datetime,
) -> tuple[Look, ...]:
    """All queries of one look. Raises ValueError (a sentence) for an unknown variable."""
    looks = []
    for span in spans(status, spec, metrics, now):

        def arms(window: timedelta, span: Span = span) -> _Arms:
            stable = arm_queries(span.metric, namespace, cycle, stable_version, window) if span.compared else None
            return arm_queries(span.metric, namespace, cycle, status.version, window), stable

        recent = tuple(_recent(length, *arms(length)) for length in span.recent)
        looks.append(Look(span.metric, *arms(span.window), span.reference, span.window, recent))
    return tuple(looks)


def _recent(length: timedelta, candidate: ArmQueries, stable: ArmQueries | None) -> RecentLook:
    return RecentLook(length, _counts(candidate), None if stable is None else _counts(stable))


def _counts(arm: ArmQueries) -> ArmQueries:
    return ArmQueries(bad=arm.bad, all=arm.all)


def _since_begin(status: RolloutStatus, spec: Rollout, now: datetime) -> timedelta:
    if status.phase == "Starting":
        # Stable's figures for a bake without steps before it: over as long a time as they will be compared with.
        return max(spec.window, spec.bake)
    return now - status.step_since


def arm_queries(metric: Metric, namespace: str, cycle: str, version: str, window: timedelta) -> ArmQueries:
    """Queries of one metric for one arm over `window`. Raises ValueError (a sentence) for an unknown {{ variable }}."""
    # PromQL refuses a range of 0, and whole milliseconds are its finest unit.
    duration = format_duration(max(_SHORTEST, window))
    if metric.preset is not None:
        if metric.preset in _VLLM:
            return _quantile(_VLLM[metric.preset], _pods(namespace, version), duration)
        return _preset(metric.preset, _selector(namespace, cycle, version), duration)
    values = {"namespace": namespace, "cycle": cycle, "version": version, "window": duration}
    filled = {
        field: _fill(text, _path(metric, field), values)
        for field in ("bad", "all", "query", "samples")
        if (text := getattr(metric, field)) is not None
    }
    return ArmQueries(filled.get("bad"), filled.get("all"), filled.get("query"), filled.get("samples"))


def _path(metric: Metric, field: str) -> str:
    """Where a person wrote a query."""
    if metric.name == ab_test.OUTCOME:
        return f"rollout.abTest.outcome.{'good' if field == 'bad' else field}"
    return f"rollout.metrics[{metric.name}].{field}"


def check_queries(spec: Rollout) -> None:
    """Raises ValueError (a sentence naming the field) when a metric cannot be asked for."""
    for metric in spec.metrics:
        kind_of(metric)
        arm_queries(metric, "namespace", "cycle", "version", spec.window)
    if spec.strategy == "abTest":
        arm_queries(ab_test.outcome(spec), "namespace", "cycle", "version", spec.window)


def _selector(namespace: str, cycle: str, version: str) -> str:
    return ",".join(
        f'{label}="{value}"' for label, value in zip(series.LABELS, (namespace, cycle, version), strict=True)
    )


def _pods(namespace: str, version: str) -> str:
    """The pods of an arm's Deployment: its name, the ReplicaSet's hash, the pod's own; Kubernetes cuts long names."""
    name = child_name(version, ARM)
    pattern = f"{name}-[a-z0-9]+-[a-z0-9]+" if len(name) <= _WHOLE_IN_POD else f"{name[:_WHOLE_IN_POD]}[-a-z0-9]+"
    return f'namespace="{namespace}",pod=~"{pattern}"'


def _preset(preset: Preset, selector: str, window: str) -> ArmQueries:
    def total(name: str, more: str = "") -> str:
        return f"sum(increase({name}{{{selector}{more}}}[{window}]))"

    def age(name: str) -> str:
        return _age(name, selector)

    if preset == "feedback":
        # No series of that value yet means no such event, as long as `all` has an answer.
        return ArmQueries(
            bad=_or_zero(total(series.FEEDBACK, ',value="down"')),
            all=total(series.FEEDBACK),
            age=age(series.FEEDBACK),
        )
    if preset == "errors":
        return ArmQueries(
            bad=_or_zero(total(series.REQUESTS, ',code=~"5.."')),
            all=total(series.REQUESTS),
            age=age(series.REQUESTS),
        )
    return _quantile(series.DURATION if preset == "latencyP95" else series.TIME_TO_FIRST_TOKEN, selector, window)


def _quantile(name: str, selector: str, window: str) -> ArmQueries:
    buckets = f"sum by (le) (increase({name}_bucket{{{selector}}}[{window}]))"
    samples = f"sum(increase({name}_count{{{selector}}}[{window}]))"
    return ArmQueries(
        value=f"histogram_quantile(0.95, {buckets})", samples=samples, age=_age(f"{name}_count", selector)
    )


def _age(name: str, selector: str) -> str:
    return f"time() - max(timestamp({name}{{{selector}}}))"


def _or_zero(query: str) -> str:
    return f"{query} or vector(0)"


def _fill(text: str, field: str, values: Mapping[str, str]) -> str:
    def replace(match: re.Match[str]) -> str:
        name = match.group(1).strip()
        if name not in values:
            raise ValueError(f"{field}: unknown variable {{{{ {name} }}}}: write one of {', '.join(_VARIABLES)}")
        return values[name]

    return _VARIABLE.sub(replace, text)
