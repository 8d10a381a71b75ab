"""report.html: one self-contained page with plots, tables and sentences.

Room: cli. Pure from the summary and the measured series to HTML; `write` writes the file.
"""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.resources import files
from pathlib import Path

import jinja2
import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ratchet_cli.demo.notebook import Marker
from ratchet_cli.demo.prometheus import Series
from ratchet_cli.demo.summary import Summary, VersionEntry

COLOURS = ("#3567b0", "#2f9e6e", "#c98a1b", "#b5476f", "#7a5bbf", "#5b7f86")
_GOOD, _BAD, _STEP = "#2f9e6e", "#c23b3b", "#9aa3ad"
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ratchet",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a939c",
    "axes.grid": True,
    "grid.color": "#e4e8ec",
    "axes.axisbelow": True,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Material:
    """Everything that the page shows beside the summary."""

    began: datetime
    losses: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    """Version -> (optimiser step, loss)."""
    weights: Sequence[Series] = ()
    """Weight in force, one series a version."""
    shares: Sequence[Series] = ()
    """Thumbs-up share over a sliding window, one series a version."""
    latencies: Sequence[Series] = ()
    """95th percentile of the answer time, one series a version."""
    markers: Sequence[Marker] = ()
    """Moments of decision."""
    window_seconds: int = 30
    """Of the sliding windows."""


def write(path: Path, summary: Summary, material: Material) -> None:
    """Render the page into a file."""
    path.write_text(render(summary, material), encoding="utf-8")


def render(summary: Summary, material: Material) -> str:
    """The page. It loads nothing from anywhere."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {"percent": percent, "seconds": duration, "points": points, "p": p_value}
    source = files("ratchet_cli.demo").joinpath("report.html.j2").read_text(encoding="utf-8")
    with matplotlib.rc_context(_STYLE):
        plots = {
            "evaluation": _plot(lambda f: _evaluation(f, summary), 7.6, 2.9) if _gated(summary) else None,
            "loss": _plot(lambda f: _loss(f, material), 7.6, 2.4) if material.losses else None,
            "time": _plot(lambda f: _time(f, summary, material), 10.4, 6.4) if material.weights else None,
        }
    return environment.from_string(source).render(summary=summary, plots=plots, window=material.window_seconds)


def percent(value: float | None) -> str:
    """A share for people."""
    return "–" if value is None else f"{value * 100:.1f} %"


def points(value: float) -> str:
    """A difference of shares for people."""
    return f"{value * 100:+.1f}"


def duration(value: float | None) -> str:
    """Seconds for people."""
    if value is None:
        return "–"
    return f"{value:.1f} s" if value < 60 else f"{int(value) // 60} min {int(value) % 60:02d} s"


def p_value(value: float) -> str:
    """A p value with as many digits as mean something."""
    return f"{value:.2g}"


def _plot(draw: Callable[[Figure], None], width: float, height: float) -> Markup:
    figure = Figure(figsize=(width, height), layout="constrained")
    draw(figure)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return Markup(text[text.index("<svg") :])  # our own drawing; its texts are escaped by matplotlib


def _gated(summary: Summary) -> list[VersionEntry]:
    return [v for v in summary.versions if v.evidence.gate is not None and v.evidence.gate.suites]


def _evaluation(figure: Figure, summary: Summary) -> None:
    rows = [(v, gate, suite) for v in _gated(summary) if (gate := v.evidence.gate) for suite in gate.suites]
    axes = figure.subplots()
    for place, (_, gate, suite) in enumerate(rows):
        axes.bar(place - 0.2, suite.champion * 100, 0.38, color="#b9c2cb", label="champion" if place == 0 else None)
        axes.bar(place + 0.2, suite.candidate * 100, 0.38, color=_GOOD if gate.accepted else _BAD)
        axes.annotate(
            f"{suite.difference * 100:+.0f}",
            (place + 0.2, suite.candidate * 100),
            ha="center",
            va="bottom",
            fontsize=8,
        )
    axes.set_xticks(range(len(rows)), [f"{v.name}\n{s.name} ({s.role})" for v, _, s in rows], fontsize=7.5)
    axes.bar(0, 0, color=_GOOD, label="candidate, accepted")
    axes.bar(0, 0, color=_BAD, label="candidate, refused")
    axes.set_ylabel("cases passed, %")
    axes.set_ylim(0, 110)
    axes.grid(axis="x", visible=False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=3, fontsize=8)


def _loss(figure: Figure, material: Material) -> None:
    axes = figure.subplots()
    for colour, (name, points_) in zip(COLOURS[1:], material.losses.items(), strict=False):
        axes.plot([s for s, _ in points_], [loss for _, loss in points_], color=colour, label=name, linewidth=1.4)
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("loss per supervised token")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)


def _time(figure: Figure, summary: Summary, material: Material) -> None:
    names = [v.name for v in summary.versions]
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    weight, share, latency = figure.subplots(3, 1, sharex=True, height_ratios=(1.1, 1.2, 1))

    def minutes(at: datetime) -> float:
        return (at - material.began).total_seconds() / 60

    for axes, found in ((weight, material.weights), (share, material.shares), (latency, material.latencies)):
        for series in found:
            name = series.labels.get("version", "")
            values = [v * 100 for v in series.values] if axes is share else list(series.values)
            times, values = _with_gaps([minutes(t) for t in series.times], values)
            axes.plot(
                times,
                values,
                color=colours.get(name, "#444"),
                label=name,
                linewidth=1.5,
                drawstyle="steps-post" if axes is weight else "default",
            )
        _mark(axes, material.markers, minutes, words=axes is weight)
    weight.set_ylabel("weight in force, %")
    weight.set_ylim(-3, 128)
    weight.set_yticks((0, 25, 50, 75, 100))
    share.set_ylabel(f"thumbs up, %\n({material.window_seconds} s window)")
    share.set_ylim(-3, 103)
    latency.set_ylabel("answer time,\np95 in s")
    latency.set_ylim(bottom=0)
    latency.set_xlabel("minutes since the start")
    handles, labels = weight.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=max(1, len(labels)), fontsize=8.5)


def _with_gaps(times: list[float], values: list[float], gap: float = 0.2) -> tuple[list[float], list[float]]:
    """A break of the line where nothing was measured for longer than `gap` minutes."""
    out_t: list[float] = []
    out_v: list[float] = []
    for t, v in zip(times, values, strict=True):
        if out_t and t - out_t[-1] > gap:
            out_t.append(t)
            out_v.append(math.nan)
        out_t.append(t)
        out_v.append(v)
    return out_t, out_v


def _mark(axes: Axes, markers: Sequence[Marker], minutes: Callable[[datetime], float], words: bool) -> None:
    for number, marker in enumerate(marker for marker in markers if marker.kind != "step"):
        colour = {"good": _GOOD, "bad": _BAD}.get(marker.kind, _STEP)
        axes.axvline(minutes(marker.at), color=colour, linewidth=1, linestyle=(0, (4, 3)))
        if words:
            axes.annotate(
                marker.text, (minutes(marker.at), 126), color=colour, fontsize=7.5, ha="right", va="top",
                xytext=(-3, -9 * (number % 2)), textcoords="offset points",  # decisions may be close to each other
            )  # fmt: skip
