"""What each rule did: read = kept + dropped, by reason, with a few redacted examples.

Room: trainer. Pure.
"""

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ratchet_trainer.curate.sensitive import REDACT_ALL, redact

SAMPLES = 3
SAMPLE_CHARACTERS = 160
RULES: Mapping[str, str] = {
    "reading": "lines that are interactions of this cycle, within the window, each once",
    "consent": "nobody and no session on the erasure list",
    "answered": "a whole answer in text to a person's turn",
    "limits": "turns, length and repetition within bounds",
    "effectiveness": "a score of at least the threshold",
    "sensitive": "personal data and secrets redacted, or the example dropped",
    "heldOut": "nothing that the evaluation asks, whole or in part",
    "contradicted": "no answer that a later correction of the same prompt contradicts",
    "duplicate": "each conversation once, in normal form",
    "nearDuplicate": "nothing that says nearly what another example says",
    "bursts": "no phrase that one person pushes, or several together",
    "caps": "no more than asked for of a category, of a person, and of the model's own answers",
}
"""Every rule in its order, and what is left after it."""
RULES_VERSION = 3
"""Raised when a rule comes to mean something else; part of the dataset's statistics."""


@dataclass
class Step:
    """One rule's account."""

    rule: str
    read: int = 0
    kept: int = 0
    changed: int = 0
    """Kept, but not as it was."""
    dropped: Counter[str] = field(default_factory=Counter)
    sampled: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    """By reason a heap of texts, each behind its hash; see `samples`."""

    def keep(self, changed: bool = False, count: int = 1) -> None:
        """One that goes on, or so many."""
        self.read += count
        self.kept += count
        self.changed += changed

    def drop(self, reason: str, text: str = "") -> None:
        """One that is left out, with what it said."""
        self.read += 1
        self.dropped[reason] += 1
        if text:
            self._sample(reason, text)

    def _sample(self, reason: str, text: str) -> None:
        """Keeps the texts with the smallest hashes: the same whatever the order they come in."""
        short = text[: 4 * SAMPLE_CHARACTERS]
        self._keep(reason, (-int.from_bytes(hashlib.sha256(short.encode()).digest()[:8], "big"), short))

    def _keep(self, reason: str, entry: tuple[int, str]) -> None:
        kept = self.sampled.setdefault(reason, [])
        if entry in kept:
            return
        if len(kept) < SAMPLES:
            heapq.heappush(kept, entry)
        else:
            heapq.heappushpop(kept, entry)

    def absorb(self, other: "Step") -> None:
        """Takes the account of other examples."""
        self.read += other.read
        self.kept += other.kept
        self.changed += other.changed
        self.dropped.update(other.dropped)
        for reason, entries in other.sampled.items():
            for entry in entries:
                self._keep(reason, entry)

    def samples(self) -> dict[str, list[str]]:
        """Up to three texts of each reason, short, redacted whatever the settings say."""
        return {
            reason: [_shortened(redact(text, REDACT_ALL)[0]) for _, text in sorted(entries, reverse=True)]
            for reason, entries in sorted(self.sampled.items())
        }

    def numbers(self) -> dict[str, object]:
        """As it stands in the statistics."""
        return {
            "rule": self.rule, "read": self.read, "kept": self.kept, "changed": self.changed,
            "dropped": dict(sorted(self.dropped.items())),
        }  # fmt: skip


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SAMPLE_CHARACTERS else line[: SAMPLE_CHARACTERS - 1] + "…"


def _reasons(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in sorted(dropped.items()))


class Funnel:
    """Every rule's account, in the rules' order."""

    def __init__(self, rules: Mapping[str, str] = RULES) -> None:
        self.rules = rules
        self._steps = {rule: Step(rule) for rule in rules}

    def __getitem__(self, rule: str) -> Step:
        return self._steps[rule]

    @property
    def steps(self) -> list[Step]:
        """In order."""
        return list(self._steps.values())

    def absorb(self, steps: Iterable[Step]) -> None:
        """Takes the accounts of other examples."""
        for step in steps:
            self[step.rule].absorb(step)

    @property
    def dropped(self) -> Counter[str]:
        """Interactions that are no examples, by reason; what reading leaves out is counted in lines and not here."""
        return sum((step.dropped for step in self.steps if step.rule != "reading"), Counter[str]())

    def numbers(self) -> list[dict[str, object]]:
        """As it stands in the statistics."""
        return [step.numbers() for step in self.steps]

    def summary(self) -> str:
        """In one line: each rule that left something out, and why."""
        parts = [
            f"{step.rule} kept {step.kept} of {step.read} (" + _reasons(step.dropped) + ")"
            for step in self.steps
            if step.dropped
        ]
        return ", ".join(parts) or "nothing was left out"

    def table(self) -> str:
        """For a terminal."""
        lines = [f"{'rule':<16}{'read':>10}{'kept':>10}{'dropped':>10}  why"]
        for step in self.steps:
            why = _reasons(step.dropped)
            changed = f"{step.changed} redacted" if step.changed else ""
            lines.append(
                f"{step.rule:<16}{step.read:>10}{step.kept:>10}{step.dropped.total():>10}  "
                + "; ".join(part for part in (why, changed) if part)
            )
        return "\n".join(line.rstrip() for line in lines)
