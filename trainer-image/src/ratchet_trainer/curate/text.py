"""Normal forms of text: for equality, and for finding held-out prompts.

Room: trainer. Pure.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np

from ratchet_trainer.curate.columns import Columns, Flags, HashSet

_WORDS = re.compile(r"\w+")
CONTAINED_WORDS = 4
"""A held-out prompt of at least so many words is also found inside a longer turn; a shorter one ("Who are you?") is
held out only when it is the whole turn, or nearly every turn with these words would be lost."""


def normalised(text: str) -> str:
    """Unicode NFKC, case folded, white space collapsed: what counts as the same text."""
    if text.isascii():  # which is in NFKC, and of which each letter has one fold
        folded = text.lower()
        plain = folded.isprintable() and "  " not in folded  # then there is no white space but single blanks
        return folded.strip() if plain else " ".join(folded.split())
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


@lru_cache(maxsize=8)  # rules ask for the same turn one after the other
def words(text: str) -> tuple[str, ...]:
    """The words of a text in normal form, without punctuation."""
    return tuple(_WORDS.findall(normalised(text)))


PART_WORDS = 5
PARTS_FROM_WORDS = 20
PARTS_SHARE = 1 / 3
"""A held-out prompt of at least 20 words is also held out when a third of its five-word sequences are in a text:
with each tenth word changed 0.9^5 = 59 % of them are left."""


class HeldOut:
    """Prompts that must never be trained on. `overlap` is the number of words in a row that a text may not share with
    one (0: any); Brown et al., "Language Models are Few-Shot Learners" (2020), appendix C, takes 13."""

    def __init__(self, prompts: Iterable[str], overlap: int = 0) -> None:
        prompts = list(prompts)
        self._overlap = overlap
        self._runs: set[tuple[str, ...]] = set()
        self._parts: defaultdict[tuple[str, ...], set[int]] = defaultdict(set)
        self._part_counts: dict[int, int] = {}
        if overlap:
            for index, prompt in enumerate(prompts):
                self._add_parts(index, words(prompt))
        self._whole: set[tuple[str, ...]] = set()
        self._texts: set[str] = set()
        by_head: defaultdict[tuple[str, ...], set[tuple[str, ...]]] = defaultdict(set)
        for prompt in prompts:
            found = words(prompt)
            self._texts.add(normalised(prompt))
            if found:
                self._whole.add(found)
            if len(found) >= CONTAINED_WORDS:
                by_head[found[:CONTAINED_WORDS]].add(found)
        self._by_head = dict(by_head)
        self._heads = _hashed(by_head, CONTAINED_WORDS)
        self._run_hashes = _hashed(self._runs, overlap) if overlap else HashSet(np.zeros(0, dtype=np.uint64))
        self._part_hashes = _hashed(self._parts, PART_WORDS)
        self._fewest_parts = PARTS_SHARE * min(self._part_counts.values(), default=0)

    def suspects(self, normal: Sequence[str]) -> Flags:
        """(texts,) Of texts in normal form those that `covers` or `overlaps` may hold of: never too few, and few."""
        columns = Columns(normal)
        found: Flags = (columns.word_counts() < CONTAINED_WORDS) & bool(self._texts)
        for hashes, length in ((self._heads, CONTAINED_WORDS), (self._run_hashes, self._overlap)):
            if len(hashes):
                sequences, owners = columns.sequences(length)
                found[owners[hashes.has(sequences)]] = True
        if len(self._part_hashes):
            sequences, owners = columns.sequences(PART_WORDS)
            shared = np.bincount(owners[self._part_hashes.has(sequences)], minlength=len(normal))
            found |= shared >= self._fewest_parts
        return found

    def covers(self, turn: str) -> bool:
        """Whether a person's turn is a held-out prompt or contains one, punctuation and case aside."""
        found = words(turn)
        if found in self._whole or normalised(turn) in self._texts:
            return True
        return any(
            found[start : start + len(prompt)] == prompt
            for start in range(len(found) - CONTAINED_WORDS + 1)
            for prompt in self._by_head.get(found[start : start + CONTAINED_WORDS], ())
        )

    def _add_parts(self, index: int, found: tuple[str, ...]) -> None:
        self._runs |= _sequences(found, self._overlap)
        if len(found) >= PARTS_FROM_WORDS:
            parts = _sequences(found, PART_WORDS)
            self._part_counts[index] = len(parts)
            for part in parts:
                self._parts[part].add(index)

    def overlaps(self, text: str) -> bool:
        """Whether a text shares that many words in a row with a held-out prompt, or most of a long one's parts."""
        if not self._runs:
            return False
        found = words(text)
        if not self._runs.isdisjoint(_sequences(found, self._overlap)):
            return True
        shared: Counter[int] = Counter()
        for part in _sequences(found, PART_WORDS) if self._parts else ():
            shared.update(self._parts.get(part, ()))
        return any(count >= PARTS_SHARE * self._part_counts[index] for index, count in shared.items())


def _hashed(sequences: Iterable[tuple[str, ...]], length: int) -> HashSet:
    """Hashes of the sequences, each of so many words, as Columns makes them of texts."""
    return HashSet(Columns([" ".join(words) for words in sequences]).sequences(length)[0])


def _sequences(found: tuple[str, ...], length: int) -> set[tuple[str, ...]]:
    return {found[start : start + length] for start in range(len(found) - length + 1)}
