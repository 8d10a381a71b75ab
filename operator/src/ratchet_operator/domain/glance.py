"""Glances: looks between two measurements, so that proven harm does not wait for the next one.

Room: operator/domain. Pure. The interval by which a proportion is judged holds at every moment (domain.sequential), so
that looking more often makes no false alarm more likely; and only a Fail counts, so that a glance never lets a weight
rise, ends a bake or speaks of missing evidence. Ratios and thresholds are values of a window, which one burst fills for
several looks in a row: they keep to rollout.interval.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from ratchet_api.cycle import Check, RolloutStatus
from ratchet_api.rollout import Metric, Rollout
from ratchet_operator.domain.analysis import fold, kind_of

GLANCES = 5
"""Looks at proportions in one interval, the measurement included."""
SHORTEST = timedelta(seconds=2)
"""Prometheus has seldom anything new sooner."""


def spacing(spec: Rollout) -> timedelta:
    """Time between two glances."""
    return max(SHORTEST, spec.interval / GLANCES)


def due(status: RolloutStatus, spec: Rollout, now: datetime) -> tuple[Metric, ...]:
    """The metrics to be glanced at in a pass that brings no measurement."""
    if status.phase not in ("Canary", "Baking") or status.unconfirmed_since is not None:
        return ()
    last = {check.name: check.measured_at for check in status.checks}
    return tuple(
        metric
        for metric in spec.metrics
        if not metric.dry_run
        and kind_of(metric) == "proportion"
        # A last look in the future means that the clock went back.
        and not (metric.name in last and now - spacing(spec) < last[metric.name] <= now)
    )


def folded(status: RolloutStatus, seen: Sequence[Check]) -> RolloutStatus:
    """The status with the checks that failed, their failures counted. The others leave no trace."""
    failed = [check for check in seen if check.verdict == "Fail"]
    checks = {check.name: check for check in status.checks}
    checks |= {check.name: fold(checks.get(check.name), check) for check in failed}
    return status.model_copy(update={"checks": list(checks.values())}) if failed else status
