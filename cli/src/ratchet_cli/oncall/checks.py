"""The checks of a rollout as a table: observed, limit, n, interval, verdict, and which one decided.

Room: cli. Pure.
"""

from datetime import datetime

from rich.table import Table
from rich.text import Text

from ratchet_api.cycle import Check, RolloutStatus
from ratchet_api.rollout import Metric, Rollout
from ratchet_cli.oncall.words import number, share

_SECONDS = ("latencyP95", "timeToFirstTokenP95")
_VERDICTS = {"Pass": "green", "Fail": "bold red", "Unknown": "yellow"}


def kind_of(metric: Metric) -> str:
    """How a metric is judged; a preset knows its own kind."""
    if metric.preset is not None:
        return "proportion" if metric.preset in ("feedback", "errors") else "ratioToStable"
    return metric.kind or "threshold"


def checks_table(rollout: RolloutStatus, spec: Rollout, now: datetime) -> Table:
    """One row a metric of the spec, in its order; then checks of metrics that the spec does not name any more."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("CHECK", "VERDICT", "OBSERVED", "LIMIT", "N", "INTERVAL", "FAILED"):
        table.add_column(column, no_wrap=True)
    table.add_column("", no_wrap=True)
    found = {check.name: check for check in rollout.checks}
    for metric in spec.metrics:
        _add(table, rollout, spec, metric, found.pop(metric.name, None))
    for check in found.values():
        table.add_row(check.name, _verdict(check), "", "", "", "", "", "not in the spec any more")
    return table


def _add(table: Table, rollout: RolloutStatus, spec: Rollout, metric: Metric, check: Check | None) -> None:
    tolerated = spec.failure_limit if metric.failure_limit is None else metric.failure_limit
    if check is None:
        table.add_row(metric.name, Text("not looked at yet", style="dim"), "", limit(metric), "", "", "", "")
        return
    decided = rollout.decision is not None and rollout.decision.check == check.name
    mark = Text("<- decided", style="bold red") if decided else Text(_remark(check), style="dim")
    table.add_row(
        check.name, _verdict(check), observed(metric, check), limit(metric), samples(metric, check), interval(check),
        f"{check.failures} (tolerated {tolerated})", mark,
    )  # fmt: skip


def _verdict(check: Check) -> Text:
    reason = f" ({check.reason})" if check.reason and check.verdict == "Unknown" else ""
    return Text(check.verdict + reason, style=_VERDICTS[check.verdict])


def _remark(check: Check) -> str:
    """Why it cannot say anything, when it is more than waiting for events."""
    if check.verdict != "Unknown" or check.reason in ("TooFewSamples", ""):
        return ""
    times = f" ({check.unknowns} times in a row)" if check.unknowns > 1 else ""
    return check.message.removeprefix(f"{check.name}: ") + times


def observed(metric: Metric, check: Check) -> str:
    """The candidate's value, beside stable's when it is compared with it."""
    if check.candidate is None:
        return "-"
    kind = kind_of(metric)
    if kind == "proportion":
        other = f" vs {share(check.stable)}" if check.stable is not None else ""
        return share(check.candidate) + other
    unit = " s" if metric.preset in _SECONDS else ""
    words = number(check.candidate) + unit
    if kind == "ratioToStable" and check.stable is not None:
        ratio = f" ({float(check.candidate / check.stable):.2f}x)" if check.stable > 0 else ""
        words += f" vs {number(check.stable)}{unit}{ratio}"
    return words


def limit(metric: Metric) -> str:
    """What it is held against."""
    match kind_of(metric):
        case "proportion":
            places = 1 if float(metric.margin) >= 0.01 else 2
            return f"+{float(metric.margin) * 100:.{places}f} points"
        case "ratioToStable":
            return f"{number(metric.limit)}x stable"
        case _:
            bounds = (("at least", metric.min), ("at most", metric.max))
            return " and ".join(f"{word} {number(bound)}" for word, bound in bounds if bound is not None)


def samples(metric: Metric, check: Check) -> str:
    """Events behind both values, and how many are needed while they are too few."""
    counts = [str(n) for n in (check.candidate_samples, check.stable_samples) if n is not None]
    if not counts:
        return "-"
    lacking = check.reason == "TooFewSamples" and check.lower is None
    return " / ".join(counts) + (f", needs {metric.min_samples}" if lacking else "")


def interval(check: Check) -> str:
    """The anytime-valid interval of the difference, in points."""
    if check.lower is None or check.upper is None:
        return "-"
    return f"[{float(check.lower) * 100:+.1f}, {float(check.upper) * 100:+.1f}]"
