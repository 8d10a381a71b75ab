"""A rollout's checks and times in words.

Room: operator/domain. Pure.
"""

from collections.abc import Sequence
from datetime import timedelta

from ratchet_api.base import format_duration
from ratchet_api.cycle import Check
from ratchet_api.rollout import Metric


def summary(checks: Sequence[Check], metrics: Sequence[Metric]) -> str:
    """For the CHECKS column: `feedback ok, errors fail (1), p95 wait (12/200)`."""
    found = {check.name: check for check in checks}
    return ", ".join(
        f"{metric.name} {_word(found.get(metric.name), metric)}{' (dry run)' if metric.dry_run else ''}"
        for metric in metrics
    )


def _word(check: Check | None, metric: Metric) -> str:
    if check is None:
        return "wait"
    if check.verdict == "Pass":
        return "ok"
    if check.verdict == "Fail":
        return f"fail ({max(1, check.failures)})"
    counts = [n for n in (check.candidate_samples, check.stable_samples) if n is not None]
    if check.reason == "TooFewSamples" and counts and min(counts) < metric.min_samples:
        return f"wait ({min(counts)}/{metric.min_samples})"
    return "wait" if check.reason in ("TooFewSamples", "NoData", "") else f"unknown ({check.reason})"


def sentence(checks: Sequence[Check]) -> str:
    """All of their messages."""
    return "; ".join(check.message for check in checks)


def long(time: timedelta) -> str:
    """A time to the second."""
    return format_duration(timedelta(seconds=round(time.total_seconds())))
