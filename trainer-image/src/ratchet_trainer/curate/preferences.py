"""What people preferred, as rows: pairs of an answer and its correction (dpo), or judged answers (kto).

Room: trainer. `preferences_of` is pure. The columns are those of TRL's preference and unpaired preference formats with
conversations (docs of TRL 1.16, "Dataset formats").
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ratchet_api.data import Curation
from ratchet_api.training import Method
from ratchet_trainer.chat import Message
from ratchet_trainer.curate.examples import Example, varied
from ratchet_trainer.curate.funnel import Funnel
from ratchet_trainer.curate.rejected import Rejected, keys
from ratchet_trainer.curate.spill import Examples


@dataclass(frozen=True)
class PairRow:
    """Two answers to one conversation."""

    prompt: Sequence[Message]
    chosen: str
    rejected: str
    category: str
    id: str
    """Interaction whose answer was rejected."""

    def entry(self) -> dict[str, object]:
        """As a line of preferences.jsonl."""
        return {
            "prompt": _turns(self.prompt), "chosen": _answer(self.chosen), "rejected": _answer(self.rejected),
            "category": self.category, "id": self.id,
        }  # fmt: skip

    @property
    def characters(self) -> int:
        """Of all that a training reads of it."""
        return 2 * sum(len(turn.content) for turn in self.prompt) + len(self.chosen) + len(self.rejected)


@dataclass(frozen=True)
class JudgedRow:
    """An answer, and whether somebody liked it."""

    prompt: Sequence[Message]
    completion: str
    label: bool
    category: str
    id: str

    def entry(self) -> dict[str, object]:
        """As a line of preferences.jsonl."""
        return {
            "prompt": _turns(self.prompt), "completion": _answer(self.completion), "label": self.label,
            "category": self.category, "id": self.id,
        }  # fmt: skip

    @property
    def characters(self) -> int:
        """Of all that a training reads of it."""
        return sum(len(turn.content) for turn in self.prompt) + len(self.completion)


def _turns(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in messages]


def _answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


@dataclass(frozen=True)
class Side:
    """What is trained on, or what is kept aside."""

    method: Method
    chosen: Sequence[Example]
    """dpo: corrections, each with the rejected answer of the same index. kto: the answers that are liked."""
    rejected: Sequence[Example]
    variations: int

    def __len__(self) -> int:
        """Pairs, or judged answers, before variations."""
        return len(self.rejected) if self.method == "dpo" else len(self.chosen) + len(self.rejected)

    @property
    def enough(self) -> bool:
        """Whether there is something of each kind, without which the method learns nothing."""
        return bool(len(self.chosen) and len(self.rejected))

    @property
    def examples(self) -> Iterator[Example]:
        """Whose words it holds."""
        yield from self.rejected
        yield from self.chosen

    def rows(self) -> Iterator[PairRow | JudgedRow]:
        """Each followed by its variations."""
        if self.method == "dpo":
            for chosen, rejected in zip(self.chosen, self.rejected, strict=True):
                for form in (chosen, *varied(chosen, self.variations)):
                    yield PairRow(form.context, chosen.answer, rejected.answer, chosen.category, rejected.id)
            return
        for examples, label in ((self.chosen, True), (self.rejected, False)):
            for example in examples:
                for form in (example, *varied(example, self.variations)):
                    yield JudgedRow(form.context, example.answer, label, example.category, example.id)

    @property
    def row_count(self) -> int:
        """Of `rows()`."""
        return len(self) * (1 + self.variations)


@dataclass(frozen=True)
class Preferences:
    """What a dataset has of them."""

    method: Method
    train: Side
    validation: Side
    funnel: Funnel
    statistics: Mapping[str, object]


def preferences_of(
    rejected: Rejected, train: tuple[Examples, Examples], aside: tuple[Examples, Examples], curation: Curation
) -> Preferences:
    """Of (good, rejected) examples of each side, as the rules and the split left them."""
    method = rejected.method
    matched = _paired if method == "dpo" else _unpaired
    sides = [
        Side(method, *matched(*side, rejected.funnel), variations)
        for side, variations in ((train, curation.variations), (aside, 0))
    ]
    numbers: dict[str, object] = {"pairs": len(sides[0])} if method == "dpo" else {
        "desirable": len(sides[0].chosen), "undesirable": len(sides[0].rejected),
    }  # fmt: skip
    statistics = {
        "method": method, **numbers, "rows": sides[0].row_count, "validation": len(sides[1]),
        "funnel": rejected.funnel.numbers(),
        "sensitive": {
            "found": dict(sorted(rejected.sensitive.found.items())), "residualExamples": rejected.sensitive.residual,
        },
    }  # fmt: skip
    return Preferences(method, sides[0], sides[1], rejected.funnel, statistics)


def _paired(good: Examples, rejected: Examples, funnel: Funnel) -> tuple[Examples, Examples]:
    """Each rejected answer with the correction of its conversation, of which the rules left one at most."""
    conversations, _ = keys(good)
    corrections = {
        key: place for place, (key, one) in enumerate(zip(conversations, good, strict=True))
        if one.origin == "correction"
    }  # fmt: skip
    known, _ = keys(rejected)
    step = funnel["paired"]
    for key, example in zip(known, rejected, strict=True):
        if key not in corrections:
            step.drop("correctionLeftOut", example.text)
    step.keep(count=sum(key in corrections for key in known))
    chosen = [good.indices[corrections[key]] for key in known if key in corrections]
    return good.at(chosen), rejected.where([key in corrections for key in known])


def _unpaired(good: Examples, rejected: Examples, funnel: Funnel) -> tuple[Examples, Examples]:
    funnel["paired"].keep(count=len(rejected))
    return good, rejected
