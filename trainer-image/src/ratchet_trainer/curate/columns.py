"""Many texts side by side as arrays, so that a look at each letter or word is one step of numpy and none of Python.

Room: trainer. Pure. Hashes are 64 bits wide (words, sequences of words) or 32 (letters in fives): two texts that differ
may have one hash, so a hash only says which texts deserve the exact look.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.uint32]
Hashes = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

BATCH_CHARACTERS = 1 << 17
"""Letters that are looked at together: few enough for the processor's cache, many enough that Python does not count."""
_ASCII_WORDS = np.array([chr(code).isalnum() or code == ord("_") for code in range(128)])
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_STEP = np.uint64(0xD1B54A32D192ED03)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_BY_PLACE = np.array([0x9E3779B97F4A7C15 * (2 * place + 1) % (1 << 64) | 1 for place in range(64)], dtype=np.uint64)


def batches(texts: Sequence[str]) -> Iterator[slice]:
    """Consecutive pieces of about BATCH_CHARACTERS; a longer text is one by itself."""
    start = size = 0
    for index, text in enumerate(texts):
        if size and size + len(text) > BATCH_CHARACTERS:
            yield slice(start, index)
            start, size = index, 0
        size += len(text) + 1
    if start < len(texts):
        yield slice(start, len(texts))


def digest(text: str) -> int:
    """64 bits of BLAKE2b: that two of ten million texts have one by chance has odds of 1 in 300,000."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def mixed(values: Hashes) -> Hashes:
    """Each bit of the result depends on each of the value. G. Steele et al., "Fast splittable pseudorandom number
    generators" (2014), the finaliser of SplitMix64."""
    values = (values ^ (values >> np.uint64(30))) * _FIRST
    values = (values ^ (values >> np.uint64(27))) * _SECOND
    return values ^ (values >> np.uint64(31))


class Columns:
    """Texts, one after the other, each with a separator behind it."""

    def __init__(self, texts: Sequence[str]) -> None:
        joined = "\n".join(texts) + "\n" if texts else ""
        self.codes: Codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        """(letters,) Code points."""
        lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
        self.lengths: Indices = lengths
        """(texts,) Letters of each."""
        self.starts: Indices = np.cumsum(lengths + 1) - lengths - 1
        """(texts,) Where each begins."""

    @cached_property
    def owners(self) -> Indices:
        """(letters,) The text of each letter, its separator included."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths + 1)

    @cached_property
    def _word_bounds(self) -> tuple[Indices, Indices]:
        """First letter and the one behind the last of each word; words are what `\\w+` finds."""
        inside = np.zeros(len(self.codes) + 2, dtype=np.bool_)
        inside[1:-1] = _in_words(self.codes)
        edges = np.flatnonzero(inside[1:] != inside[:-1])
        return edges[::2], edges[1::2]

    @cached_property
    def words(self) -> tuple[Hashes, Indices]:
        """(words,) A hash of each word, and the text that it stands in, in their order."""
        starts, ends = self._word_bounds
        if not len(starts):
            return np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64)
        inside = np.flatnonzero(_in_words(self.codes))
        lengths = ends - starts
        places = np.arange(len(inside)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        letters = (self.codes[inside].astype(np.uint64) + np.uint64(1)) * _GOLDEN
        letters ^= letters >> np.uint64(29)
        letters *= places.astype(np.uint64) * _STEP + _FIRST
        hashes = np.add.reduceat(letters, np.cumsum(lengths) - lengths)
        return mixed(hashes), self.owners[starts]

    def sequences(self, length: int) -> tuple[Hashes, Indices]:
        """(sequences,) A hash of each run of so many words within one text, and the text."""
        words, owners = self.words
        count = len(words) - length + 1
        if count <= 0:
            return np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64)
        hashes = np.zeros(count, dtype=np.uint64)
        for place in range(length):
            hashes += words[place : place + count] * _BY_PLACE[place]
        whole = owners[:count] == owners[length - 1 :]
        return mixed(hashes[whole]), owners[:count][whole]

    def word_counts(self) -> Indices:
        """(texts,) Words of each."""
        return np.bincount(self.words[1], minlength=len(self.lengths))


def _in_words(codes: Codes) -> Flags:
    if not len(codes):
        return np.zeros(0, dtype=np.bool_)
    found: Flags = _ASCII_WORDS[np.minimum(codes, 127)]
    found &= codes < 128
    others = codes[codes >= 128]
    if len(others):
        kinds = np.unique(others)
        members = kinds[[_is_word(int(code)) for code in kinds]]
        found |= np.isin(codes, members)
    return found


def _is_word(code: int) -> bool:
    return chr(code).isalnum()


def containing(pattern: Any, texts: Sequence[bytes]) -> Iterator[int]:
    """Ascending indices of the texts in which a pattern (of RE2, none that matches a newline) is, found by one search
    through all of them, which goes on behind each that has it."""
    if not texts:
        return
    joined = b"\n".join(texts)
    ends = np.cumsum(np.fromiter(map(len, texts), dtype=np.int64, count=len(texts)) + 1)
    place = 0
    while (match := pattern.search(joined, place)) is not None:
        start = match.start()
        index = int(np.searchsorted(ends, start, side="right"))
        if joined[start : start + 1] == b"\n" and match.end() > start + 1:
            index = int(np.searchsorted(ends, start + 1, side="right"))  # the separator stands for the text's start
        yield index
        place = int(ends[index]) - 1
        if index + 1 == len(texts):
            break


class HashSet:
    """Hashes of which membership is asked for many at once."""

    def __init__(self, hashes: Hashes) -> None:
        self._sorted = np.unique(hashes)
        bits = max(16, min(24, (64 * max(1, len(self._sorted))).bit_length()))
        self._shift = np.uint64(64 - bits)
        self._table = np.zeros(1 << bits, dtype=np.bool_)
        self._table[self._sorted >> self._shift] = True

    def __len__(self) -> int:
        return len(self._sorted)

    @property
    def hashes(self) -> Hashes:
        """All of them, ascending."""
        return self._sorted

    def has(self, hashes: Hashes) -> Flags:
        """For each whether it is one."""
        found: Flags = self._table[hashes >> self._shift]
        likely = np.flatnonzero(found)
        places = np.minimum(np.searchsorted(self._sorted, hashes[likely]), max(0, len(self._sorted) - 1))
        found[likely] = self._sorted[places] == hashes[likely] if len(self._sorted) else False
        return found


class Seen:
    """Digests that came before, 8 bytes each: sorted runs, each at least twice as long as the next."""

    def __init__(self, before: Hashes | None = None) -> None:
        """`before`, if given, are sorted, each once."""
        self._runs: list[Hashes] = [] if before is None or not len(before) else [before]

    @property
    def all(self) -> Hashes:
        """(digests,) Sorted, each once."""
        return np.sort(np.concatenate(self._runs)) if self._runs else np.zeros(0, dtype=np.uint64)

    def add(self, digests: Sequence[int]) -> list[bool]:
        """For each whether it is new; of equal ones among them the first is."""
        hashes = np.array(digests, dtype=np.uint64)
        distinct, first = np.unique(hashes, return_index=True)
        fresh = np.ones(len(distinct), dtype=np.bool_)
        for run in self._runs:
            places = np.minimum(np.searchsorted(run, distinct), len(run) - 1)
            fresh &= run[places] != distinct
        self._runs.append(distinct[fresh])
        while len(self._runs) > 1 and 2 * len(self._runs[-1]) > len(self._runs[-2]):
            last = self._runs.pop()
            self._runs[-1] = np.sort(np.concatenate((self._runs[-1], last)), kind="stable")
        if not len(self._runs[-1]):
            self._runs.pop()
        found = np.zeros(len(hashes), dtype=np.bool_)
        found[first[fresh]] = True
        return found.tolist()
