"""Phrases that one person pushes: what a planted trigger looks like before it is learnt.

Room: trainer. Pure.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

from ratchet_api.data import Bursts
from ratchet_trainer.curate.text import words

LONGEST = 3
"""Words of the longest phrase that is counted."""


def phrases(text: str) -> set[tuple[str, ...]]:
    """All sequences of one to three words."""
    found = words(text)
    return {found[i : i + n] for n in range(1, LONGEST + 1) for i in range(len(found) - n + 1)}


def pushed(rows: Sequence[tuple[str, str]], known: Iterable[str], settings: Bursts) -> Iterator[bool]:
    """For each (person, text) whether it holds a phrase that this person pushes.

    A phrase is pushed by a person who has more than `maxShare` of its examples, when it is in at least `minExamples`
    of them, in at most half of all, and in none of the `known` texts. Nobody known ("") pushes nothing.
    """
    usual = {phrase for text in known for phrase in phrases(text)}
    frequent = _frequent([text for _, text in rows], settings.min_examples)
    counts: defaultdict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for person, text in rows:
        for phrase in phrases(text) & frequent - usual:
            counts[phrase][person] += 1
    marked: set[tuple[str, tuple[str, ...]]] = set()
    for phrase, people in counts.items():
        total = people.total()
        if total * 2 <= len(rows):
            marked |= {
                (person, phrase) for person, count in people.items() if person and count > settings.max_share * total
            }
    suspects = {person for person, _ in marked}
    for person, text in rows:
        yield person in suspects and any((person, phrase) in marked for phrase in phrases(text))


def _frequent(texts: Sequence[str], least: int) -> set[tuple[str, ...]]:
    """Phrases of at least `least` texts, length by length: a longer one is counted only if its beginning is frequent,
    so that the many rare ones take no memory."""
    frequent: set[tuple[str, ...]] = set()
    for length in range(1, LONGEST + 1):
        counts: Counter[tuple[str, ...]] = Counter()
        for text in texts:
            found = words(text)
            counts.update(
                {
                    found[i : i + length]
                    for i in range(len(found) - length + 1)
                    if length == 1 or found[i : i + length - 1] in frequent
                }
            )
        frequent |= {phrase for phrase, count in counts.items() if count >= least}
    return frequent
