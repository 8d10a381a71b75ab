"""Near duplicates: MinHash finds pairs that may be alike, their real Jaccard similarity decides.

Room: trainer. Pure. A. Z. Broder, "On the resemblance and containment of documents" (1997); banding as in Leskovec,
Rajaraman, Ullman, "Mining of Massive Datasets", chapter 3. With 20 bands of 6 rows a pair of similarity 0.8 is
compared with probability 0.997; and since the exact similarity is computed of each such pair, no other is ever joined.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]

LETTERS = 5
_BANDS, _ROWS = 20, 6
_PRIME = np.uint64(1099511628211)
_SHIFT = np.uint64(32)
_MOST_COMPARED = 64
"""Members of one bucket that a newcomer is compared with: the first ones, which are those that are kept."""


def _coefficients() -> tuple[Hashes, Hashes]:
    random = np.random.Generator(np.random.PCG64(20261122))
    odd = random.integers(0, 1 << 63, _BANDS * _ROWS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    return odd, random.integers(0, 1 << 63, _BANDS * _ROWS, dtype=np.uint64)


_FACTORS, _OFFSETS = _coefficients()


def shingles(text: str) -> Hashes:
    """Sorted distinct hashes of all five-letter sequences; of the text itself when it is shorter."""
    codes = np.frombuffer(text.encode("utf-32-le", "replace"), dtype=np.uint32).astype(np.uint64)
    width = min(LETTERS, len(codes))
    if not width:
        return np.zeros(0, dtype=np.uint64)
    hashes = np.zeros(len(codes) - width + 1, dtype=np.uint64)
    for offset in range(width):
        hashes = (hashes ^ codes[offset : offset + len(hashes)]) * _PRIME
    hashes ^= hashes >> _SHIFT
    return np.unique(hashes)


def signature(hashes: Hashes) -> Hashes:
    """The smallest value of each of 120 hash functions (multiply-shift) over a set: (120,) uint64."""
    if not len(hashes):
        return np.zeros(_BANDS * _ROWS, dtype=np.uint64)
    least: Hashes = np.full(_BANDS * _ROWS, np.iinfo(np.uint64).max, dtype=np.uint64)
    for start in range(0, len(hashes), 4096):  # a long text does not take more memory
        block = hashes[start : start + 4096, None] * _FACTORS + _OFFSETS
        least = np.minimum(least, (block >> _SHIFT).min(axis=0))
    return least


def jaccard(one: Hashes, other: Hashes) -> float:
    """Share of the union that is common; 1 for two empty sets."""
    if not len(one) and not len(other):
        return 1.0
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / (len(one) + len(other) - common)


def near_duplicates(texts: Sequence[str], similarity: float) -> Iterator[int | None]:
    """For each text the index of an earlier, kept one that is at least so similar; None for a text that is kept.

    A text that is dropped stands for nothing: similarity does not spread along a chain.
    """
    buckets: defaultdict[tuple[int, bytes], list[int]] = defaultdict(list)
    sets: dict[int, Hashes] = {}
    for index, text in enumerate(texts):
        found = shingles(text)
        marks = signature(found).reshape(_BANDS, _ROWS)
        keys = [(band, marks[band].tobytes()) for band in range(_BANDS)]
        candidates = sorted({other for key in keys for other in buckets.get(key, ())[:_MOST_COMPARED]})
        twin = next((other for other in candidates if _alike(found, sets[other], similarity)), None)
        if twin is None:
            sets[index] = found
            for key in keys:
                buckets[key].append(index)
        yield twin


def _alike(one: Hashes, other: Hashes, similarity: float) -> bool:
    small, large = sorted((len(one), len(other)))
    return small >= similarity * large and jaccard(one, other) >= similarity
