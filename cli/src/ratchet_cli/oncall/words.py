"""Times, shares and digests in the words of a terminal.

Room: cli. Pure.
"""

from datetime import datetime, timedelta
from decimal import Decimal

from ratchet_api.cycle import ImprovementCycle

_UNITS = (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))


def span(time: timedelta) -> str:
    """A length of time in its two largest units, as kubectl does: `41d`, `2h5m`, `12s`."""
    seconds = max(0, round(time.total_seconds()))
    if seconds >= 10 * 86_400:
        return f"{seconds // 86_400}d"
    parts: list[str] = []
    for unit, size in _UNITS:
        count, seconds = divmod(seconds, size)
        if count or parts:
            parts.append(f"{count}{unit}" if count else "")
        if len(parts) == 2:
            break
    return "".join(parts) or "0s"


def ago(then: datetime, now: datetime) -> str:
    """`3m ago`, `in 2h`, `now`."""
    gap = now - then
    if abs(gap) < timedelta(seconds=1):
        return "now"
    return f"{span(gap)} ago" if gap > timedelta(0) else f"in {span(-gap)}"


def share(value: Decimal, places: int = 1) -> str:
    """A fraction as percent: `2.4 %`."""
    return f"{float(value) * 100 + 0.0:.{places}f} %"


def number(value: Decimal) -> str:
    """Three significant digits without an exponent for ordinary sizes."""
    return f"{float(value):.3g}" if abs(value) < 100_000 else f"{float(value):.0f}"


def short(digest: str | None) -> str:
    """The first twelve hex digits of a digest."""
    return digest.removeprefix("sha256:")[:12] if digest else ""


def count(n: int, noun: str) -> str:
    """`1 pod`, `2 pods`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def traffic(cycle: ImprovementCycle) -> str:
    """What the router splits, in the plural."""
    return {"gateway": "sessions", "httpRoute": "requests", "replicas": "connections"}[cycle.spec.serving.router]


def real_share(cycle: ImprovementCycle) -> str:
    """` (really 25 %: 1 of 4 pods)` when the candidate's share is not the one that was asked for; else empty."""
    candidate, stable = cycle.status.serving.candidate, cycle.status.serving.stable
    if candidate is None or stable is None or candidate.observed_weight in (None, candidate.weight):
        return ""
    pods = f": {candidate.ready_replicas} of {candidate.ready_replicas + stable.ready_replicas} pods"
    return f" (really {candidate.observed_weight} %{pods if cycle.spec.serving.router == 'replicas' else ''})"
