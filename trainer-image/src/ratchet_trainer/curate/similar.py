"""Near duplicates: MinHash finds pairs that may be alike, their real Jaccard similarity decides.

Room: trainer. Pure. A. Z. Broder, "On the resemblance and containment of documents" (1997); banding as in Leskovec,
Rajaraman, Ullman, "Mining of Massive Datasets", chapter 3. With 20 bands of 6 rows a pair of similarity 0.8 is
compared with probability 0.997; and since the exact similarity is computed of each such pair, no other is ever joined.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint32]
Keys = npt.NDArray[np.uint64]

LETTERS = 5
_BANDS, _ROWS = 20, 6
_PRIME = np.uint32(16777619)
_MIX = np.uint32(0x85EBCA6B)
_SHIFT = np.uint32(15)
_BLOCK = 4096
"""Shingles that are hashed at once, so that a long text takes no more memory than a short one."""
_MOST_COMPARED = 64
"""Members of one bucket that a text is compared with: the first ones, which are those that are kept."""
_REMEMBERED = 4096


def _coefficients() -> tuple[Hashes, Hashes, Keys]:
    random = np.random.Generator(np.random.PCG64(20261122))
    odd = random.integers(0, 1 << 31, _BANDS * _ROWS, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    offsets = random.integers(0, 1 << 32, _BANDS * _ROWS, dtype=np.uint32)
    return odd[:, None], offsets[:, None], random.integers(0, 1 << 63, _ROWS, dtype=np.uint64)


_FACTORS, _OFFSETS, _FOLD = _coefficients()


def _hashes(text: str) -> Hashes:
    """A hash of each five-letter sequence, in their order; of the text itself when it is shorter."""
    codes = np.frombuffer(text.encode("utf-32-le", "replace"), dtype=np.uint32)
    width = min(LETTERS, len(codes))
    if not width:
        return np.zeros(0, dtype=np.uint32)
    hashes = np.zeros(len(codes) - width + 1, dtype=np.uint32)
    for offset in range(width):
        hashes = (hashes ^ codes[offset : offset + len(hashes)]) * _PRIME
    hashes ^= hashes >> _SHIFT
    hashes *= _MIX
    return hashes


def shingles(text: str) -> Hashes:
    """Sorted distinct hashes of all five-letter sequences."""
    return np.unique(_hashes(text))


def signature(hashes: Hashes) -> Hashes:
    """The smallest value of each of 120 hash functions (multiply-add) over a set: (120,) uint32."""
    least: Hashes = np.full(_BANDS * _ROWS, np.iinfo(np.uint32).max, dtype=np.uint32)
    for start in range(0, len(hashes), _BLOCK):
        least = np.minimum(least, (_FACTORS * hashes[start : start + _BLOCK] + _OFFSETS).min(axis=1))
    return least


def jaccard(one: Hashes, other: Hashes) -> float:
    """Share of the union that is common; 1 for two empty sets."""
    if not len(one) and not len(other):
        return 1.0
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / (len(one) + len(other) - common)


def near_duplicates(texts: Sequence[str], similarity: float) -> Iterator[int | None]:
    """For each text the index of an earlier, kept one that is at least so similar; None for a text that is kept.

    A text that is dropped stands for nothing: similarity does not spread along a chain. Memory: 160 bytes a text.
    """
    buckets = _buckets(texts)
    remembered = lru_cache(maxsize=_REMEMBERED)(lambda index: shingles(texts[index]))
    dropped: set[int] = set()
    for index in range(len(texts)):
        earlier = {int(i) for bucket in buckets.get(index, ()) for i in bucket[:_MOST_COMPARED] if i < index}
        twin = next(
            (i for i in sorted(earlier - dropped) if _alike(remembered(index), remembered(i), similarity)), None
        )
        if twin is not None:
            dropped.add(index)
        yield twin


def _buckets(texts: Sequence[str]) -> dict[int, list[npt.NDArray[np.intp]]]:
    """For each text that shares a band of its signature with another, the ascending members of each such bucket."""
    keys = np.zeros((_BANDS, len(texts)), dtype=np.uint64)
    for index, text in enumerate(texts):
        keys[:, index] = (signature(_hashes(text)).reshape(_BANDS, _ROWS) * _FOLD).sum(axis=1, dtype=np.uint64)
    found: defaultdict[int, list[npt.NDArray[np.intp]]] = defaultdict(list)
    for band in keys:
        order = np.argsort(band, kind="stable")
        edges = np.flatnonzero(np.diff(band[order], prepend=~band[order[:1]], append=~band[order[-1:]]) != 0)
        for run in np.flatnonzero(np.diff(edges) > 1):
            members = order[edges[run] : edges[run + 1]]
            for member in members:
                found[int(member)].append(members)
    return dict(found)


def _alike(one: Hashes, other: Hashes, similarity: float) -> bool:
    small, large = sorted((len(one), len(other)))
    return small >= similarity * large and jaccard(one, other) >= similarity
