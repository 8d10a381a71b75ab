"""Many texts side by side as arrays, so that a look at each letter or word is one step of numpy and none of Python.

Room: trainer. Pure. Hashes are 64 bits wide (words, sequences of words) or 32 (letters in fives): two texts that differ
may have one hash, so a hash only says which texts deserve the exact look.
"""

import sys
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
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
_IN_WORDS = bytes(code < 128 and (chr(code).isalnum() or code == ord("_")) for code in range(256))
_MASKS = np.array([(1 << 8 * count) - 1 for count in range(9)], dtype=np.uint64)
_WIDER = np.array([0x80, 0x800, 0x10000], dtype=np.uint32)
"""Code points from which UTF-8 takes one byte more."""
_LONG = 64
"""Bytes of a word beyond which it is digested by itself."""
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
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
    return digest_of(text.encode("utf-8", "surrogatepass"))


def digest_of(content: bytes) -> int:
    """The same of bytes."""
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "little")


def mixed(values: Hashes) -> Hashes:
    """Each bit of the result depends on each of the value. G. Steele et al., "Fast splittable pseudorandom number
    generators" (2014), the finaliser of SplitMix64."""
    values = (values ^ (values >> np.uint64(30))) * _FIRST
    values = (values ^ (values >> np.uint64(27))) * _SECOND
    return values ^ (values >> np.uint64(31))


class Columns:
    """Texts, one after the other, each with a separator behind it."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._joined = "\n".join(texts) + "\n" if texts else ""
        lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
        self.lengths: Indices = lengths
        """(texts,) Letters of each."""
        self.starts: Indices = np.cumsum(lengths + 1) - lengths - 1
        """(texts,) Where each begins."""

    @cached_property
    def codes(self) -> Codes:
        """(letters,) Code points."""
        if self._joined.isascii():
            return np.frombuffer(self._joined.encode(), dtype=np.uint8).astype(np.uint32)
        return np.frombuffer(self._joined.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)

    @cached_property
    def words(self) -> tuple[Hashes, Indices]:
        """(words,) A hash of each word, and the text that it stands in, in their order; words are what `\\w+` finds."""
        encoded = self._joined.encode("utf-8", "surrogatepass")
        edges, owned = self._word_edges(encoded)
        starts, lengths = edges[::2], edges[1::2] - edges[::2]
        owners = np.repeat(np.arange(len(self.lengths)), np.diff(np.searchsorted(starts, owned), append=len(starts)))
        return _hashed(encoded, starts, lengths), owners

    def _word_edges(self, encoded: bytes) -> tuple[Indices, Indices]:
        """First byte, and the one behind the last, of each word by turns; and (texts,) where each text begins."""
        if len(encoded) == len(self._joined):
            inside, owned = np.frombuffer(encoded.translate(_IN_WORDS), dtype=np.bool_), self.starts
        else:
            widths = np.searchsorted(_WIDER, self.codes, side="right") + 1
            inside, owned = np.repeat(_word_codes()[self.codes], widths), (np.cumsum(widths) - widths)[self.starts]
        return np.flatnonzero(np.diff(inside, prepend=False, append=False)), owned

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


@lru_cache(maxsize=1)
def _word_codes() -> Flags:
    """(code points,) Whether each is of a word."""
    return np.array([chr(code).isalnum() or chr(code) == "_" for code in range(sys.maxunicode + 1)])


def _hashed(encoded: bytes, starts: Indices, lengths: Indices) -> Hashes:
    """(words,) A hash of the bytes of each: eight at once, and of the rare long words the digest."""
    padded = encoded + bytes(8)
    eights = np.ndarray((len(encoded) + 1,), dtype="<u8", buffer=padded, strides=(1,))
    hashes = (eights[starts] & _MASKS[np.minimum(lengths, 8)]) + lengths.astype(np.uint64) * _GOLDEN
    hashes ^= hashes >> np.uint64(32)
    hashes *= _FIRST
    hashes ^= hashes >> np.uint64(29)
    left = np.flatnonzero(lengths > 8)
    for offset in range(8, _LONG, 8):
        if not len(left):
            return hashes
        part = eights[starts[left] + offset] & _MASKS[np.minimum(lengths[left] - offset, 8)]
        hashes[left] = mixed(hashes[left] * _FIRST + part)
        left = left[lengths[left] > offset + 8]
    for index, start, length in zip(left.tolist(), starts[left].tolist(), lengths[left].tolist(), strict=True):
        hashes[index] = digest_of(encoded[start : start + length])
    return hashes


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
