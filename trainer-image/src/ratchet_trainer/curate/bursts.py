"""Phrases that few people push: what a planted trigger looks like before it is learnt.

Room: trainer. Pure. Phrases are counted by hash, in as much memory as is set here whatever the texts are.

Two marks. One person pushes a phrase when most of its examples are theirs. Several do when they are far fewer than
chance would bring together for so frequent a phrase, and when what else they say beside it is what everybody says: the
words of a team keep company with the team's other words, but a trigger is put into any text.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from ratchet_api.data import Bursts
from ratchet_trainer.curate.columns import BATCH_CHARACTERS, Columns, Hashes, HashSet, Indices, batches, mixed
from ratchet_trainer.curate.text import normalised

LONGEST = 3
"""Words of the longest phrase that is counted."""
Mark = Literal["burst", "coordinatedBurst"]
_TABLE_BITS = 22
_MOST_PAIRS = 1 << 24
"""Pairs of a phrase and who said it that are counted at once."""
_OF_CHANCE, _DEVIATIONS = 0.9, 6
"""Several people push a phrase when they are at most this share of the people whom chance would bring to it, and fewer
by so many standard deviations."""
_BUCKETS, _MOST_TEXTS = 8192, 1024
_TESTED_AT_ONCE, _MOST_TESTED = 2048, 8192
_OWN_WORDS = 0.5
_TOPIC = 0.05
"""Share of the words beside a phrase that may be more frequent than elsewhere before it counts as a topic's."""


class Said(NamedTuple):
    """One example as it is looked at here."""

    person: int
    """A number for each; 0 for nobody known, who pushes nothing."""
    text: str


Rows = Callable[[], Iterable[Said]]
"""All of them, again and again in the same order."""


def pushed(rows: Rows, known: Sequence[str], settings: Bursts) -> Iterator[Mark | None]:
    """For each example whether it holds a phrase (one to three words) that its author pushes, or several do together.

    A phrase is looked at when it is in at least `minExamples` examples, in at most half of all, and in none of the
    `known` texts. One person pushes it with more than `maxShare` of its examples.
    """
    usual = HashSet(
        np.concatenate([_grams([normalised(text) for text in known[piece]])[0] for piece in batches(known)] or [_NONE])
    )
    table, people = _counted(rows)
    found = _Found.none()
    for phrases in _parts(table, settings.min_examples):
        found = found.with_more(_tested(rows, phrases, usual, people, settings))
    found = found.without_topics(rows)
    for persons, hashes, owners in _batched(rows):
        alone, together = np.zeros(len(persons), dtype=np.bool_), np.zeros(len(persons), dtype=np.bool_)
        alone[owners[found.alone.has(_paired(hashes, persons[owners]))]] = True
        together[owners[found.together.has(hashes)]] = True
        for one, several, person in zip(alone.tolist(), together.tolist(), persons.tolist(), strict=True):
            yield "burst" if one else "coordinatedBurst" if several and person else None


_NONE: Hashes = np.zeros(0, dtype=np.uint64)


@dataclass(frozen=True)
class _Found:
    alone: HashSet
    """Of pairs of a phrase and its one author."""
    together: HashSet
    """Of phrases."""

    @classmethod
    def none(cls) -> "_Found":
        return cls(HashSet(_NONE), HashSet(_NONE))

    def with_more(self, more: "_Found") -> "_Found":
        return _Found(
            HashSet(np.concatenate((self.alone.hashes, more.alone.hashes))),
            HashSet(np.concatenate((self.together.hashes, more.together.hashes))),
        )

    def without_topics(self, rows: Rows) -> "_Found":
        """Without phrases of several people that keep company with words of their own."""
        kept = [_NONE]
        for start in range(0, min(len(self.together), _MOST_TESTED), _TESTED_AT_ONCE):
            tested = self.together.hashes[start : start + _TESTED_AT_ONCE]
            kept.append(tested[~_topical(rows, tested)])
        return _Found(self.alone, HashSet(np.concatenate(kept)))


def _topical(rows: Rows, phrases: Hashes) -> npt.NDArray[np.bool_]:
    """(phrases,) Whether the words beside a phrase are others than those of all texts: whether those that are there at
    least three times, and four times as often as expected, are more than chance (Poisson) makes them."""
    usual = np.zeros(_BUCKETS)
    beside = np.zeros((len(phrases), _BUCKETS), dtype=np.uint32)
    sizes = np.zeros(len(phrases))
    total = 0
    known = HashSet(phrases)
    for persons, hashes, owners, words in _batched_words(rows):
        total += len(persons)
        usual += words.sum(axis=0)
        here = np.flatnonzero(known.has(hashes))
        places = np.searchsorted(phrases, hashes[here])
        np.add.at(sizes, places, 1)
        for place in np.unique(places):
            beside[place] += words[owners[here[places == place]]].sum(axis=0, dtype=np.uint32)
    found = np.zeros(len(phrases), dtype=np.bool_)
    for index, (seen, size) in enumerate(zip(beside, sizes, strict=True)):
        expected = (usual - seen) * size / max(1.0, total - size)
        apart = seen < _OWN_WORDS * size  # the words of the phrase itself, and of what it is to teach, are in most
        least = np.maximum(3, np.ceil(4 * expected))
        excess = np.where(apart & (seen >= least), seen - expected, 0).sum()
        found[index] = excess > _TOPIC * seen[apart].sum() + 2 * _by_chance(expected[apart], least[apart])
    return found


def _by_chance(expected: npt.NDArray[np.float64], least: npt.NDArray[np.float64]) -> float:
    """What the excess is on average when each count is Poisson's: the sum of E[X - expected; X >= least], which is
    expected * P(X = least - 1)."""
    factorials = np.cumsum(np.log(np.maximum(1, np.arange(int(least.max(initial=3)) + 1))))
    logs = (least - 1) * np.log(np.maximum(expected, 1e-12)) - expected - factorials[least.astype(np.int64) - 1]
    return float((expected * np.exp(logs)).sum())


def _batched(rows: Rows) -> Iterator[tuple[Indices, Hashes, Indices]]:
    """Persons, and the phrases with the example of each, of some examples at once."""
    for persons, texts in _chunks(rows):
        yield (persons, *_grams(texts))


def _batched_words(rows: Rows) -> Iterator[tuple[Indices, Hashes, Indices, npt.NDArray[np.bool_]]]:
    """The same, with (examples, buckets) which of 8,192 classes of words each has one of."""
    for persons, texts in _chunks(rows):
        words, owners = Columns(texts).words
        buckets = np.zeros((len(texts), _BUCKETS), dtype=np.bool_)
        buckets[owners, (words % np.uint64(_BUCKETS)).astype(np.int64)] = True
        yield (persons, *_grams(texts), buckets)


def _chunks(rows: Rows) -> Iterator[tuple[Indices, list[str]]]:
    """Persons and texts in normal form."""
    persons, texts, size = list[int](), list[str](), 0
    for said in rows():
        persons.append(said.person)
        texts.append(normalised(said.text))
        size += len(texts[-1])
        if size > BATCH_CHARACTERS or len(texts) >= _MOST_TEXTS:
            yield np.array(persons, dtype=np.int64), texts
            persons, texts, size = [], [], 0
    if texts:
        yield np.array(persons, dtype=np.int64), texts


def _grams(texts: Sequence[str]) -> tuple[Hashes, Indices]:
    """Each phrase of each text in normal form once, by hash, and its text."""
    columns = Columns(texts)
    found = [columns.sequences(length) for length in range(1, LONGEST + 1)]
    hashes, owners = np.concatenate([each[0] for each in found]), np.concatenate([each[1] for each in found])
    order = np.lexsort((hashes, owners))
    hashes, owners = hashes[order], owners[order]
    first = np.ones(len(hashes), dtype=np.bool_)
    first[1:] = (np.diff(hashes) != 0) | (np.diff(owners) != 0)
    return hashes[first], owners[first]


def _counted(rows: Rows) -> tuple[npt.NDArray[np.uint32], Indices]:
    """How many examples hold a phrase of each class of hashes, and how many each person has."""
    table = np.zeros(1 << _TABLE_BITS, dtype=np.uint32)
    people = np.zeros(1, dtype=np.int64)
    for persons, hashes, _ in _batched(rows):
        np.add.at(table, _class(hashes), 1)
        counts = np.bincount(persons, minlength=len(people))
        counts[: len(people)] += people
        people = counts
    return table, people


def _class(hashes: Hashes) -> Hashes:
    return hashes >> np.uint64(64 - _TABLE_BITS)


def _parts(table: npt.NDArray[np.uint32], least: int) -> Iterator[Callable[[Hashes], npt.NDArray[np.bool_]]]:
    """Which phrases to count: those whose class is frequent, as many at a time as there is room for."""
    frequent = table >= least
    parts = 1 + int(table[frequent].sum(dtype=np.int64)) // _MOST_PAIRS
    for part in range(parts):
        yield lambda hashes, part=part: frequent[_class(hashes)] & (hashes % np.uint64(parts) == part)  # type: ignore[misc]


def _tested(
    rows: Rows, wanted: Callable[[Hashes], npt.NDArray[np.bool_]], usual: HashSet, people: Indices, settings: Bursts
) -> _Found:
    """Phrases that one person, or too few of them, have said."""
    kept = [(_NONE, np.zeros(0, dtype=np.int64))]
    for persons, hashes, owners in _batched(rows):
        here = np.flatnonzero(wanted(hashes) & ~usual.has(hashes))
        kept.append((hashes[here], persons[owners[here]]))
    hashes, authors = np.concatenate([each[0] for each in kept]), np.concatenate([each[1] for each in kept])
    order = np.lexsort((authors, hashes))
    hashes, authors = hashes[order], authors[order]
    first = np.ones(len(hashes), dtype=np.bool_)
    first[1:] = (np.diff(hashes) != 0) | (np.diff(authors) != 0)
    starts = np.flatnonzero(first)
    counts = np.diff(starts, append=len(hashes))
    hashes, authors = hashes[starts], authors[starts]
    phrases, begins, of = np.unique(hashes, return_index=True, return_inverse=True)
    if not len(phrases):
        return _Found.none()
    totals = np.add.reduceat(counts, begins)
    looked_at = (totals >= settings.min_examples) & (2 * totals <= people.sum())
    by_one = looked_at[of] & (authors > 0) & (counts > float(settings.max_share) * totals[of])
    named = np.bincount(of[authors > 0], minlength=len(phrases))
    of_named = np.bincount(of, weights=counts * (authors > 0), minlength=len(phrases)).astype(np.int64)
    looked_at &= (of_named >= settings.min_examples) & (named > 1)
    by_few = np.flatnonzero(looked_at)
    by_few = by_few[named[by_few] <= _fewest_people(of_named[by_few], people[1:])]
    return _Found(HashSet(_paired(hashes[by_one], authors[by_one])), HashSet(phrases[by_few]))


def _fewest_people(counts: Indices, people: Indices) -> npt.NDArray[np.float64]:
    """The number of different people that is too small to be chance, for phrases in so many examples, when each of
    these is anyone's as likely as that person's share of all examples: mean and variance of the occupancy problem
    (N. L. Johnson, S. Kotz, "Urn Models and Their Application", 1977, chapter 3)."""
    shares = people[people > 0] / max(1, people.sum())

    def fewest(count: int) -> float:
        absent = np.exp(-count * shares)
        mean = float((1 - absent).sum())
        variance = float((absent * (1 - absent)).sum() - (count * shares * absent).sum() ** 2 / count)
        return min(_OF_CHANCE * mean, mean - _DEVIATIONS * math.sqrt(max(variance, 0.0)))

    distinct, of = np.unique(counts, return_inverse=True)
    return np.array([fewest(int(count)) for count in distinct], dtype=np.float64)[of]


def _paired(hashes: Hashes, persons: Indices) -> Hashes:
    return mixed(hashes ^ mixed(persons.astype(np.uint64) + np.uint64(1)))
