"""The rules that look at examples: which are bounded, clean, uncontaminated, distinct and fairly shared.

Room: trainer. Pure. Every example that a rule reads it keeps or drops, by a named reason, in the funnel.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

import numpy as np
import numpy.typing as npt

from ratchet_api.data import Curation, Limits, SensitiveKind
from ratchet_trainer.curate.bursts import Said, pushed
from ratchet_trainer.curate.columns import BATCH_CHARACTERS, Flags, batches
from ratchet_trainer.curate.examples import Example
from ratchet_trainer.curate.funnel import Funnel, Step
from ratchet_trainer.curate.languages import foreign
from ratchet_trainer.curate.pool import Keyed, Pool
from ratchet_trainer.curate.sensitive import Action, actions, find, redact, suspects
from ratchet_trainer.curate.similar import shingles, twins
from ratchet_trainer.curate.spill import Examples
from ratchet_trainer.curate.text import HeldOut, normalised, words

_LOOP_WORDS = 5
_LOOP_FROM_WORDS = 20
_AT_ONCE = 1 << 16


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
    if limits.languages and foreign(example.text, limits.languages):
        return "otherLanguage"
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

    def absorb(self, other: "SensitiveCounts") -> None:
        """Takes the counts of other examples."""
        self.found.update(other.found)
        self.residual += other.residual


def select(
    examples: Iterable[Example], held_out: HeldOut, curation: Curation, anchors: Sequence[str], funnel: Funnel
) -> tuple[Examples, SensitiveCounts]:
    """What is left after the rules that need to see examples together, by time, then id; `anchors` are their texts.

    Memory: a few numbers of each example; their texts are on disk.
    """
    counts = SensitiveCounts()
    pool = pooled(examples, held_out, curation, funnel, counts)
    return compared(pool, curation, anchors, funnel), counts


def compared(pool: Pool, curation: Curation, anchors: Sequence[str], funnel: Funnel) -> Examples:
    """The same of examples that were looked at one by one."""
    kept = agreeing(pool, pool.sorted(), funnel["contradicted"])
    kept = distinct(pool, kept, funnel["duplicate"])
    kept = unlike(pool, kept, curation, funnel["nearDuplicate"])
    kept = unpushed(pool, kept, curation, anchors, funnel["bursts"])
    return shared_out(pool, kept, curation, funnel["caps"])


def pooled(
    examples: Iterable[Example], held_out: HeldOut, curation: Curation, funnel: Funnel, counts: SensitiveCounts
) -> Pool:
    """What is left after the rules that look at one at a time, ready to be compared."""
    pool = Pool(curation.near_duplicates is not None)
    what = actions(curation.sensitive)
    for chunk in _chunks(examples):
        cleaned = clean(chunk, what, funnel["sensitive"], counts)
        pool.add(uncontaminated([Keyed.of(example) for example in cleaned], held_out, funnel["heldOut"]))
    return pool


def _chunks(examples: Iterable[Example]) -> Iterator[list[Example]]:
    chunk, size = list[Example](), 0
    for example in examples:
        chunk.append(example)
        size += len(example.answer) + sum([len(turn.content) for turn in example.context])
        if size > BATCH_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _suspicious(
    texts: Iterable[Sequence[str]], look: Callable[[Sequence[str]], Iterable[int]]
) -> dict[int, set[int]]:  # fmt: skip
    """Of the groups of texts in which there is something, at a look at many at once, by their indices: in which."""
    flat, owners = list[str](), list[tuple[int, int]]()
    for index, group in enumerate(texts):
        flat += group
        owners += [(index, place) for place in range(len(group))]
    found: dict[int, set[int]] = {}
    for piece in batches(flat):
        for each in look(flat[piece]):
            index, place = owners[piece.start + each]
            found.setdefault(index, set()).add(place)
    return found


def clean(
    examples: Sequence[Example], what: dict[SensitiveKind, Action], step: Step, counts: SensitiveCounts
) -> list[Example]:
    """Examples without personal data and secrets, each redacted or left out as its kinds ask."""
    suspicious = _suspicious(map(_said, examples), suspects)
    kept, redacted = list[Example](), list[list[str]]()
    for index, example in enumerate(examples):
        cleaned = _cleaned(example, suspicious[index], what, counts) if index in suspicious else example
        if cleaned is None:
            step.drop("sensitive", example.text)
            continue
        step.keep(changed=cleaned is not example)
        kept.append(cleaned)
        if cleaned is not example:
            redacted.append(_said(cleaned))
    for index, places in _suspicious(redacted, suspects).items():
        counts.residual += any(what[kind] != "keep" for place in places for kind in find(redacted[index][place]))
    return kept


def _said(example: Example) -> list[str]:
    """All its turns, the answer last."""
    return [*[message.content for message in example.context], example.answer]


def _cleaned(
    example: Example, suspicious: set[int], what: dict[SensitiveKind, Action], counts: SensitiveCounts
) -> Example | None:
    """The example itself when nothing is found in its suspicious turns, redacted when something is, None when that
    drops it."""
    texts, found = _said(example), Counter[SensitiveKind]()
    for place in suspicious:
        texts[place], here = redact(texts[place], what)
        found += here
    counts.found.update(found)
    if not found:
        return example
    if any(what[kind] == "drop" for kind in found):
        return None
    context = [m.model_copy(update={"content": t}) for m, t in zip(example.context, texts, strict=False)]
    return example._replace(context=tuple(context), answer=texts[-1])


def uncontaminated(examples: Sequence[Keyed], held_out: HeldOut, step: Step) -> list[Keyed]:
    """Examples of which no turn asks what the evaluation asks, and that share no long run of words with it."""
    groups = ([*keyed.conversation, keyed.answer] for keyed in examples)
    suspicious = _suspicious(groups, lambda texts: np.flatnonzero(held_out.suspects(texts)).tolist())
    kept = []
    for index, keyed in enumerate(examples):
        reason = _contamination(keyed.example, held_out) if index in suspicious else None
        if reason is not None:
            step.drop(reason, keyed.example.prompt)
        else:
            step.keep()
            kept.append(keyed)
    return kept


def _contamination(example: Example, held_out: HeldOut) -> str | None:
    if any(message.role == "user" and held_out.covers(message.content) for message in example.context):
        return "heldOut"
    return "contaminated" if any(map(held_out.overlaps, _said(example))) else None


def agreeing(pool: Pool, examples: Examples, step: Step) -> Examples:
    """Examples but those whose answer differs from the latest correction of the same conversation."""
    corrected = np.flatnonzero(pool.corrections[examples.indices])
    if not len(corrected):
        return _all(examples, step)
    conversations, answers = pool.conversations[examples.indices], pool.answers[examples.indices]
    known, newest = np.unique(conversations[corrected][::-1], return_index=True)
    right = answers[corrected][::-1][newest]
    places = np.minimum(np.searchsorted(known, conversations), len(known) - 1)
    agrees = (known[places] != conversations) | (right[places] == answers)
    return _parted(examples, agrees, "contradicted", step, lambda example: example.text)


def distinct(pool: Pool, examples: Examples, step: Step) -> Examples:
    """The last of equal ones stands for all: the newest are the ones that a cap keeps."""
    conversations, answers = pool.conversations[examples.indices], pool.answers[examples.indices]
    order = np.lexsort((answers, conversations))  # stable: of equal ones the last comes last
    last = np.ones(len(order), dtype=np.bool_)
    last[:-1] = (np.diff(conversations[order]) != 0) | (np.diff(answers[order]) != 0)
    newest = np.zeros(len(order), dtype=np.bool_)
    newest[order[last]] = True
    return _parted(examples, newest, "duplicate", step)


def unlike(pool: Pool, examples: Examples, curation: Curation, step: Step) -> Examples:
    """Examples without near duplicates: a correction stays before an answer, the newer before the older."""
    if curation.near_duplicates is None:
        return _all(examples, step)
    corrections = pool.corrections[examples.indices]
    ranked = np.lexsort((-np.arange(len(examples)), ~corrections))

    def shingles_of(rank: int) -> npt.NDArray[np.uint32]:
        return shingles(normalised(examples.text(int(ranked[rank]))))

    similarity = float(curation.near_duplicates.similarity)
    found = twins(pool.bands(examples.indices[ranked]), len(ranked), shingles_of, similarity)
    alone = np.zeros(len(ranked), dtype=np.bool_)
    alone[ranked[found < 0]] = True
    return _parted(examples, alone, "nearDuplicate", step, lambda example: example.text)


def unpushed(pool: Pool, examples: Examples, curation: Curation, anchors: Sequence[str], step: Step) -> Examples:
    """Examples but those that hold a phrase which their author pushes, alone or with others."""
    if curation.bursts is None:
        return _all(examples, step)
    people = pool.people[examples.indices].tolist()

    def rows() -> Iterator[Said]:
        return (Said(person, one.text) for person, one in zip(people, examples, strict=True))

    keep = np.ones(len(examples), dtype=np.bool_)
    for index, mark in enumerate(pushed(rows, anchors, curation.bursts)):
        if mark is not None:
            step.drop(mark, examples[index].text)
            keep[index] = False
    return _all(examples.where(keep), step)


def _all(examples: Examples, step: Step) -> Examples:
    step.keep(count=len(examples))
    return examples


def _parted(
    examples: Examples, keep: Flags, reason: str, step: Step,
    sample: Callable[[Example], str] = lambda example: example.prompt,
) -> Examples:  # fmt: skip
    """Those to keep; the others are counted, with what `sample` takes of them."""
    for example in examples.where(~keep):
        step.drop(reason, sample(example))
    return _all(examples.where(keep), step)


def shared_out(pool: Pool, examples: Examples, curation: Curation, step: Step) -> Examples:
    """The newest of each category, of each person and of the cycle's own answers, as many as asked for."""
    by_category, by_person = _within(pool.categories[examples.indices], pool.people[examples.indices], curation)
    newest = examples.where(by_category & by_person)
    own = pool.own[newest.indices]
    by_share = ~own | (np.cumsum(own[::-1])[::-1] <= _own_allowed(own, curation.max_own_share))
    for reason, dropped in (
        ("overCategoryCap", examples.where(~by_category)),
        ("overPrincipalCap", examples.where(~by_person)),
        ("overOwnShare", newest.where(~by_share)),
    ):
        for example in dropped:
            step.drop(reason, example.prompt)
    return _all(newest.where(by_share), step)


def _within(
    categories: npt.NDArray[np.int32], people: npt.NDArray[np.int32], curation: Curation
) -> tuple[Flags, Flags]:
    """For each, from the last to the first, whether its category has room, and whether its person has."""
    room, its_own = np.ones(len(categories), dtype=np.bool_), np.ones(len(categories), dtype=np.bool_)
    if curation.max_per_category is None and curation.max_per_principal is None:
        return room, its_own
    of_category, of_person = Counter[int](), Counter[int]()
    pairs = zip(_backwards(categories), _backwards(people), strict=True)
    for index, (category, person) in enumerate(pairs, start=1):
        if curation.max_per_category is not None and of_category[category] >= curation.max_per_category:
            room[-index] = False
        elif curation.max_per_principal is not None and person and of_person[person] >= curation.max_per_principal:
            its_own[-index] = False
        else:
            of_category[category] += 1
            of_person[person] += 1
    return room, its_own


def _backwards(numbers: npt.NDArray[np.int32]) -> Iterator[int]:
    """A few at a time, because a list of them is many times as large."""
    for end in range(len(numbers), 0, -_AT_ONCE):
        yield from numbers[max(0, end - _AT_ONCE) : end][::-1].tolist()


def _own_allowed(own: Flags, share: Decimal | None) -> int:
    """The most own answers with which they are at most `share` of all."""
    if share is None or share >= 1:
        return len(own)
    return int(share * int((~own).sum()) / (1 - share))
