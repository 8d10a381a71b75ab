"""A simulated rollout as lines of text, as JSON and as a page with one plot.

Room: operator/simulate. Pure.
"""

import html
from typing import Any

from ratchet_operator.simulate.replay import Moment, Timeline

_WIDTH, _HEIGHT, _LEFT = 900, 220, 50
_COLOURS = {"Pass": "#2a7", "Fail": "#c33", "Unknown": "#aaa"}


def clock(seconds: float) -> str:
    """`1:02:03` from the begin."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def text(line: Timeline, every: bool) -> str:
    """A line a change, or (`every`) a look; then how it ended and the evidence."""
    rows, last = [], ""
    for moment in line.moments:
        status = moment.status
        state = f"{status.phase:<11} {_bar(status.weight)} {status.weight:>3} %"
        said = _looks(moment)
        if every or moment.events or f"{state} {said}" != last:
            rows.append(f"{clock(moment.at):>8}  {state}  {said}")
        last = f"{state} {said}"
        rows += [f"{'':10}{reason}: {message}" for reason, message in moment.events]
    rows.append("")
    rows.append(_ending(line))
    return "\n".join(rows)


def _bar(weight: int) -> str:
    full = round(weight / 10)
    return "#" * full + "." * (10 - full)


def _looks(moment: Moment) -> str:
    seen = moment.status.ab_test
    outcome = f", a/b {seen.verdict}" if seen is not None and moment.status.phase == "Canary" else ""
    return (moment.status.summary if moment.status.phase != "Starting" else "its arm comes up") + outcome


def _ending(line: Timeline) -> str:
    decision = line.status.decision
    if decision is None:
        return f"{line.outcome}: no end within the time simulated; {line.status.summary}"
    at = f" at {clock(line.ended_at)}" if line.ended_at is not None else ""
    return f"{decision.outcome}{at}, {decision.reason}: {decision.message}"


def document(line: Timeline) -> dict[str, Any]:
    """Everything, ready for JSON."""
    return {
        "outcome": line.outcome,
        "endedAfterSeconds": line.ended_at,
        "weights": [{"afterSeconds": at, "weight": weight} for at, weight in line.weights],
        "decision": line.status.decision.dump() if line.status.decision is not None else None,
        "abTest": line.status.ab_test.dump() if line.status.ab_test is not None else None,
        "looks": [
            {
                "afterSeconds": moment.at,
                "phase": moment.status.phase,
                "weight": moment.status.weight,
                "checks": [check.dump() for check in moment.status.checks],
                "events": [{"reason": reason, "message": message} for reason, message in moment.events],
            }
            for moment in line.moments
        ],
    }


def page(line: Timeline, title: str) -> str:
    """One HTML file: the weight over time as a plot, a strip of verdicts a check, and the text."""
    end = max([line.moments[-1].at if line.moments else 1.0, line.weights[-1][0], 1.0])
    names = list(dict.fromkeys(check.name for moment in line.moments for check in moment.status.checks))
    height = _HEIGHT + 20 * len(names) + 30

    def x(at: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - 10) * at / end

    points, weight = [], 0
    for at, following in [*line.weights, (end, line.weights[-1][1])]:
        points += [f"{x(at):.1f},{_y(weight):.1f}", f"{x(at):.1f},{_y(following):.1f}"]
        weight = following
    parts = [f'<polyline fill="none" stroke="#246" stroke-width="2" points="{" ".join(points)}"/>']
    parts += [f'<text x="4" y="{_y(w) + 4:.0f}">{w} %</text>' for w in (0, 50, 100)]
    for index, name in enumerate(names):
        top = _HEIGHT + 20 * index
        parts.append(f'<text x="4" y="{top + 11}">{html.escape(name[:8])}</text>')
        for moment in line.moments:
            check = next((c for c in moment.status.checks if c.name == name), None)
            if check is not None:
                parts.append(
                    f'<rect x="{x(moment.at):.1f}" y="{top}" width="3" height="14" fill="{_COLOURS[check.verdict]}">'
                    f"<title>{clock(moment.at)} {html.escape(check.message)}</title></rect>"
                )
    parts.append(f'<text x="{_WIDTH - 70}" y="{height - 4}">{clock(end)}</text>')
    return (
        f'<!doctype html><meta charset="utf-8"><title>{html.escape(title)}</title><h1>{html.escape(title)}</h1>'
        f'<svg viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" font-family="sans-serif" font-size="11">'
        f"{''.join(parts)}</svg><pre>{html.escape(text(line, False))}</pre>\n"
    )


def _y(weight: float) -> float:
    return _HEIGHT - 20 - (_HEIGHT - 40) * weight / 100
