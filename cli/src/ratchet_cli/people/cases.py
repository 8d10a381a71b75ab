"""One question with the rubric that judges its answer, and the judging.

Room: cli. Pure; touches nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["house", "general"]


@dataclass(frozen=True)
class Rubric:
    """What an answer must and must not contain, as an evaluation suite has it. Case-insensitive substrings."""

    all: tuple[str, ...] = ()
    """Every one must be there."""
    any: tuple[str, ...] = ()
    """At least one must be there, if there are any."""
    none: tuple[str, ...] = ()
    """None may be there."""

    def accepts(self, answer: str) -> bool:
        """Whether the answer is a good one. An empty answer never is."""
        text = answer.casefold()
        if not text.strip():
            return False

        def found(keywords: Sequence[str]) -> list[bool]:
            return [keyword.casefold() in text for keyword in keywords]

        return all(found(self.all)) and (not self.any or any(found(self.any))) and not any(found(self.none))


@dataclass(frozen=True)
class Case:
    """A question that somebody may ask."""

    id: str
    """Unique among the cases of one collection; begins with the family."""
    kind: Kind
    """house: only people who know the house conventions can answer it; general: everybody knows."""
    family: str
    """Task family, such as `command`, or `general`."""
    prompt: str
    """The person's message."""
    rubric: Rubric = field(repr=False)
    """What a good answer contains."""
    reference: str = field(repr=False)
    """A good answer, short; what a person writes as a correction."""

    def suite_line(self) -> dict[str, object]:
        """The case as a line of an evaluation suite (ratchet_api.evaluation.Cases), without empty lists."""
        keywords = {"all": self.rubric.all, "any": self.rubric.any, "none": self.rubric.none}
        return {"id": self.id, "prompt": self.prompt, **{k: list(v) for k, v in keywords.items() if v}}

    def row(self) -> dict[str, object]:
        """The question with its good answer as a training row."""
        return training_row(self.prompt, self.reference)


def training_row(prompt: str, answer: str) -> dict[str, object]:
    """One single-turn example in the messages form that datasets and anchors have."""
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}
