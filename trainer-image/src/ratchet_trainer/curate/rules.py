"""The rules that look at examples: which are bounded, clean, uncontaminated, distinct and fairly shared.

Room: trainer. Pure. Every example that a rule reads it keeps or drops, by a named reason, in the funnel.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal

from ratchet_api.data import Curation, Limits, SensitiveKind
from ratchet_api.records import Interaction
from ratchet_trainer.curate.bursts import pushed
from ratchet_trainer.curate.examples import Example
from ratchet_trainer.curate.funnel import Funnel, Step
from ratchet_trainer.curate.sensitive import Action, actions, find, redact
from ratchet_trainer.curate.similar import near_duplicates
from ratchet_trainer.curate.text import HeldOut, normalised, words

_LOOP_WORDS = 5
_LOOP_FROM_WORDS = 20


@dataclass(frozen=True)
class Erased:
    """Who withdrew: what they said is never used again."""

    principals: frozenset[str] = frozenset()
    sessions: frozenset[str] = frozenset()

    def covers(self, interaction: Interaction) -> bool:
        """Whether an interaction is on the list."""
        return interaction.principal in self.principals or interaction.session in self.sessions


def beyond(example: Example, limits: Limits) -> str | None:
    """The bound that an example is beyond, if it is."""
    if limits.max_turns is not None and len(example.context) + 1 > limits.max_turns:
        return "tooManyTurns"
    size = sum(len(message.content) for message in example.context) + len(example.answer)
    if limits.max_characters is not None and size > limits.max_characters:
        return "tooLong"
    if len(example.answer) < limits.min_answer_characters:
        return "tooShort"
    if limits.max_repetition < 1 and repetition(example.answer) > limits.max_repetition:
        return "repetitive"
    return None


def repetition(text: str) -> Decimal:
    """Share of a text's five-word sequences that came before in it; 0 for one under 20 words."""
    found = words(text)
    if len(found) < _LOOP_FROM_WORDS:
        return Decimal(0)
    sequences = [found[i : i + _LOOP_WORDS] for i in range(len(found) - _LOOP_WORDS + 1)]
    return 1 - Decimal(len(set(sequences))) / len(sequences)


@dataclass
class SensitiveCounts:
    """What was found of personal data and secrets."""

    found: Counter[SensitiveKind] = field(default_factory=Counter)
    """Places in examples, by kind."""
    residual: int = 0
    """Examples kept in which a second look found something that was to be redacted or dropped."""


def select(
    examples: Iterable[Example], held_out: HeldOut, curation: Curation, anchors: Sequence[str], funnel: Funnel
) -> tuple[list[Example], SensitiveCounts]:
    """What is left after the rules that need to see examples together, by time, then id; `anchors` are their texts."""
    counts = SensitiveCounts()
    kept = clean(sorted(examples, key=_order), actions(curation.sensitive), funnel["sensitive"], counts)
    kept = uncontaminated(kept, held_out, funnel["heldOut"])
    kept = distinct(agreeing([_Keyed.of(example) for example in kept], funnel["contradicted"]), funnel["duplicate"])
    kept = unlike(kept, curation, funnel["nearDuplicate"])
    kept = unpushed(kept, curation, anchors, funnel["bursts"])
    return shared_out(kept, curation, funnel["caps"]), counts


def _order(example: Example) -> tuple[object, str]:
    return example.time, example.id


def clean(
    examples: Iterable[Example], what: dict[SensitiveKind, Action], step: Step, counts: SensitiveCounts
) -> list[Example]:
    """Examples without personal data and secrets, each redacted or left out as its kinds ask."""
    kept = []
    for example in examples:
        texts = [*(message.content for message in example.context), example.answer]
        cleaned, found = [], Counter[SensitiveKind]()
        for text in texts:
            new, here = redact(text, what)
            cleaned.append(new)
            found += here
        counts.found.update(found)
        if any(what[kind] == "drop" for kind in found):
            step.drop("sensitive", example.text)
            continue
        if found:
            context = [m.model_copy(update={"content": t}) for m, t in zip(example.context, cleaned, strict=False)]
            example = replace(example, context=tuple(context), answer=cleaned[-1])
            counts.residual += any(what[kind] != "keep" for text in cleaned for kind in find(text))
        step.keep(changed=bool(found))
        kept.append(example)
    return kept


def uncontaminated(examples: Iterable[Example], held_out: HeldOut, step: Step) -> list[Example]:
    """Examples of which no turn asks what the evaluation asks, and that share no long run of words with it."""
    kept = []
    for example in examples:
        turns = [message.content for message in example.context]
        if any(m.role == "user" and held_out.covers(m.content) for m in example.context):
            step.drop("heldOut", example.prompt)
        elif any(held_out.overlaps(text) for text in (*turns, example.answer)):
            step.drop("contaminated", example.prompt)
        else:
            step.keep()
            kept.append(example)
    return kept


@dataclass(frozen=True)
class _Keyed:
    """An example with the normal forms by which it is compared."""

    example: Example
    conversation: tuple[tuple[str, str], ...]
    answer: str

    @classmethod
    def of(cls, example: Example) -> "_Keyed":
        conversation = tuple((message.role, normalised(message.content)) for message in example.context)
        return cls(example, conversation, normalised(example.answer))


def agreeing(examples: Sequence[_Keyed], step: Step) -> list[_Keyed]:
    """Examples but those whose answer differs from the latest correction of the same conversation."""
    right = {keyed.conversation: keyed.answer for keyed in examples if keyed.example.origin == "correction"}
    kept = []
    for keyed in examples:
        if right.get(keyed.conversation, keyed.answer) != keyed.answer:
            step.drop("contradicted", keyed.example.text)
        else:
            step.keep()
            kept.append(keyed)
    return kept


def distinct(examples: Sequence[_Keyed], step: Step) -> list[Example]:
    """The last of equal ones stands for all: the newest are the ones that a cap keeps."""
    last = {(keyed.conversation, keyed.answer): index for index, keyed in enumerate(examples)}
    kept = []
    for index, keyed in enumerate(examples):
        if last[keyed.conversation, keyed.answer] != index:
            step.drop("duplicate", keyed.example.prompt)
        else:
            step.keep()
            kept.append(keyed.example)
    return kept


def unlike(examples: Sequence[Example], curation: Curation, step: Step) -> list[Example]:
    """Examples without near duplicates: a correction stays before an answer, the newer before the older."""
    if curation.near_duplicates is None:
        return _all(examples, step)
    ranked = sorted(range(len(examples)), key=lambda i: (examples[i].origin != "correction", -i))
    texts = [normalised(examples[i].text) for i in ranked]
    twins = dict(zip(ranked, near_duplicates(texts, float(curation.near_duplicates.similarity)), strict=True))
    kept = []
    for index, example in enumerate(examples):
        if twins[index] is not None:
            step.drop("nearDuplicate", example.text)
        else:
            step.keep()
            kept.append(example)
    return kept


def unpushed(examples: Sequence[Example], curation: Curation, anchors: Sequence[str], step: Step) -> list[Example]:
    """Examples but those that hold a phrase which their author pushes."""
    if curation.bursts is None:
        return _all(examples, step)
    kept = []
    rows = [(example.principal, example.text) for example in examples]
    for example, suspect in zip(examples, pushed(rows, anchors, curation.bursts), strict=True):
        if suspect:
            step.drop("burst", example.text)
        else:
            step.keep()
            kept.append(example)
    return kept


def _all(examples: Sequence[Example], step: Step) -> list[Example]:
    for _ in examples:
        step.keep()
    return list(examples)


def shared_out(examples: Sequence[Example], curation: Curation, step: Step) -> list[Example]:
    """The newest of each category, of each person and of the cycle's own answers, as many as asked for."""
    categories: Counter[str] = Counter()
    people: Counter[str] = Counter()
    newest = []
    for example in reversed(examples):
        if curation.max_per_category is not None and categories[example.category] >= curation.max_per_category:
            step.drop("overCategoryCap", example.prompt)
        elif (
            curation.max_per_principal is not None
            and example.principal
            and people[example.principal] >= curation.max_per_principal
        ):
            step.drop("overPrincipalCap", example.prompt)
        else:
            categories[example.category] += 1
            people[example.principal] += 1
            newest.append(example)
    own = _own_allowed(newest, curation.max_own_share)
    kept = []
    for example in newest:
        if example.own:
            own -= 1
        if example.own and own < 0:
            step.drop("overOwnShare", example.prompt)
        else:
            step.keep()
            kept.append(example)
    return kept[::-1]


def _own_allowed(examples: Sequence[Example], share: Decimal | None) -> int:
    """The most own answers with which they are at most `share` of all."""
    others = sum(not example.own for example in examples)
    if share is None or share >= 1:
        return len(examples)
    return int(share * others / (1 - share))
