"""What the card draws beside the funnel: when people spoke and what they thought, and how long examples are.

Room: trainer. Pure. The same interactions give the same figures, in whatever order they come.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Literal

from ratchet_trainer.curate.examples import Example, Verdict

MAX_PERIODS = 120
"""Columns of the plot over time; beyond that, days become months and months years."""
Opinion = Literal["up", "corrected", "down", "none"]
OPINIONS: tuple[Opinion, ...] = ("up", "corrected", "down", "none")
_SHORTEST = 16
_UNITS: tuple[tuple[str, int], ...] = (("day", 10), ("month", 7), ("year", 4))
"""Unit, and the characters of an ISO date that name it."""


@dataclass
class Timeline:
    """Interactions by day (UTC) and by what was thought of the answer."""

    days: dict[date, Counter[Opinion]] = field(default_factory=dict)
    undated: Counter[Opinion] = field(default_factory=Counter)

    def add(self, at: datetime | None, verdict: Verdict | None) -> None:
        """Counts one interaction; None is a time that nobody noted."""
        counter = self.undated
        if at is not None:
            day = at.astimezone(UTC).date()
            counter = self.days.get(day) or self.days.setdefault(day, Counter())
        counter[opinion(verdict)] += 1

    def absorb(self, other: "Timeline") -> None:
        """Takes other interactions' times."""
        for day, counter in other.days.items():
            self.days.setdefault(day, Counter()).update(counter)
        self.undated.update(other.undated)

    def feedback(self) -> dict[Opinion, int]:
        """All of them by opinion."""
        total = sum(self.days.values(), Counter(self.undated))
        return {name: total[name] for name in OPINIONS}

    def numbers(self) -> dict[str, object]:
        """By day; by month or year where that would be more than MAX_PERIODS. Of more years, the latest."""
        by_unit = {unit: self._by(characters) for unit, characters in _UNITS}
        unit = next((unit for unit, periods in by_unit.items() if len(periods) <= MAX_PERIODS), "year")
        shown = sorted(by_unit[unit].items())[-MAX_PERIODS:]
        return {
            "unit": unit,
            "periods": [{"from": name} | {each: counter[each] for each in OPINIONS} for name, counter in shown],
            "undated": self.undated.total(),
        }

    def _by(self, characters: int) -> dict[str, Counter[Opinion]]:
        periods: dict[str, Counter[Opinion]] = {}
        for day, counter in self.days.items():
            periods.setdefault(day.isoformat()[:characters], Counter()).update(counter)
        return periods


def opinion(verdict: Verdict | None) -> Opinion:
    """A correction is one whatever thumb it came with."""
    if verdict is None:
        return "none"
    return "corrected" if verdict.correction else verdict.value


def lengths(examples: Iterable[Example]) -> list[Mapping[str, int]]:
    """Numbers of prompts and of answers by their characters, in classes that double: `upTo` 16, 32, 64, ..."""
    prompts, answers = Counter[int](), Counter[int]()
    for example in examples:
        prompts[_class(len(example.prompt))] += 1
        answers[_class(len(example.answer))] += 1
    found = sorted(prompts.keys() | answers.keys())
    steps = [_SHORTEST << i for i in range((found[-1] // _SHORTEST).bit_length())] if found else []
    return [{"upTo": most, "prompts": prompts[most], "answers": answers[most]} for most in steps]


def _class(length: int) -> int:
    return max(_SHORTEST, 1 << max(length - 1, 0).bit_length())
