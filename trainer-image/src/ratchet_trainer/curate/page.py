"""card.html: the dataset's card with its plots, in one file that needs nothing else.

Room: trainer. Pure: statistics in, HTML out; equal statistics give equal bytes. No scripts, nothing from elsewhere;
what people wrote is redacted and escaped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from ratchet_trainer.curate.card import reached
from ratchet_trainer.curate.figures import OPINIONS
from ratchet_trainer.curate.funnel import Funnel

PAGE = "card.html"
_COLOURS = {"up": "#237a54", "corrected": "#2f6db0", "down": "#b03030", "none": "#c3ccd4"}
_WORDS = {"up": "helpful", "corrected": "corrected", "down": "not helpful", "none": "no verdict"}


@dataclass(frozen=True)
class Bar:
    """One row of a plot: parts of a whole, side by side."""

    name: str
    parts: Sequence[tuple[int, str, str]]
    """Number, colour, what it is."""

    @property
    def total(self) -> int:
        """All parts."""
        return sum(number for number, _, _ in self.parts)


@dataclass(frozen=True)
class Plot:
    """Bars to one scale, in pixels."""

    bars: Sequence[Bar]
    label = 170
    wide = 560
    row = 26

    @property
    def height(self) -> int:
        """Of the whole plot."""
        return self.row * len(self.bars) + 8

    @property
    def width(self) -> int:
        """Of the whole plot, with room for the number at a bar's end."""
        return self.label + self.wide + 90

    def pieces(self, bar: Bar) -> list[tuple[float, float, str, str]]:
        """Begin, width, colour and words of each part of a bar."""
        most = max((each.total for each in self.bars), default=0) or 1
        found, at = [], float(self.label)
        for number, colour, words in bar.parts:
            size = round(self.wide * number / most, 2)
            found.append((round(at, 2), size, colour, words))
            at += size
        return found


@dataclass(frozen=True)
class Columns:
    """The same upright, for many."""

    bars: Sequence[Bar]
    height = 200
    wide = 780

    @property
    def step(self) -> float:
        """From one column to the next."""
        return round(min(40.0, self.wide / max(len(self.bars), 1)), 2)

    @property
    def every(self) -> int:
        """Each how many columns have their name written below."""
        return max(1, round(80 / self.step))

    def pieces(self, bar: Bar) -> list[tuple[float, float, str, str]]:
        """Top, height, colour and words of each part of a column."""
        most = max((each.total for each in self.bars), default=0) or 1
        found, at = [], float(self.height)
        for number, colour, words in bar.parts:
            size = round((self.height - 16) * number / most, 2)
            at -= size
            found.append((round(at, 2), size, colour, words))
        return found

    @property
    def most(self) -> int:
        """Of the highest column."""
        return max((each.total for each in self.bars), default=0)


def render(statistics: Mapping[str, Any], funnel: Funnel, rejected: Funnel | None = None) -> str:
    """The page; `rejected`: of what people preferred."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = files("ratchet_trainer.curate").joinpath("card.html.j2").read_text(encoding="utf-8")
    time = statistics["time"]
    return environment.from_string(template).render(
        statistics=statistics, reached=reached(statistics), rules=funnel.rules, steps=funnel.steps,
        rejected=rejected,
        legend=[(_COLOURS[name], _WORDS[name]) for name in OPINIONS],
        funnel=Plot([_step(step.rule, step.kept, step.dropped) for step in funnel.steps]),
        categories=Plot(_bars(statistics["categories"] | _others(statistics))),
        origins=Plot(_bars(statistics["rows"])),
        feedback=Plot([_opinions("all", statistics["feedback"])]),
        time=Columns([_opinions(period["from"], period) for period in time["periods"]]), unit=time["unit"],
        prompts=Columns([_length(each["upTo"], each["prompts"]) for each in statistics["lengths"]]),
        answers=Columns([_length(each["upTo"], each["answers"]) for each in statistics["lengths"]]),
    ) + "\n"  # fmt: skip


def _step(rule: str, kept: int, dropped: Mapping[str, int]) -> Bar:
    lost = [(number, "#d9a5a5", f"{reason} {number}") for reason, number in sorted(dropped.items())]
    return Bar(rule, [(kept, "#237a54", f"kept {kept}"), *lost])


def _bars(counts: Mapping[str, int]) -> list[Bar]:
    order = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [Bar(name, [(number, "#2f6db0", f"{name} {number}")]) for name, number in order]


def _others(statistics: Mapping[str, Any]) -> dict[str, int]:
    return {"uncategorised": statistics["uncategorised"]} if statistics["uncategorised"] else {}


def _opinions(name: str, counts: Mapping[str, Any]) -> Bar:
    return Bar(
        name, [(counts[each], _COLOURS[each], f"{name}: {_WORDS[each]} {counts[each]}") for each in OPINIONS]
    )  # fmt: skip


def _length(most: int, number: int) -> Bar:
    return Bar(f"≤ {most}", [(number, "#2f6db0", f"up to {most} characters: {number}")])
