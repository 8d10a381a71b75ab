"""Near duplicates: MinHash finds pairs that may be alike, their real Jaccard similarity decides.

Room: trainer. Pure. A. Z. Broder, "On the resemblance and containment of documents" (1997); banding as in Leskovec,
Rajaraman, Ullman, "Mining of Massive Datasets", chapter 3. With 20 bands of 6 rows a pair of similarity 0.8 is
compared with probability 0.997; and since the exact similarity is computed of each such pair, no other is ever joined.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ratchet_trainer.curate.columns import Columns, Indices, batches

Hashes = npt.NDArray[np.uint32]
Keys = npt.NDArray[np.uint64]

LETTERS = 5
BANDS, _ROWS = 20, 6
_PRIME = np.uint32(16777619)
_MIX = np.uint32(0x85EBCA6B)
_SHIFT = np.uint32(15)
_BINS = BANDS * _ROWS
_FULL = 3 * _BINS
"""Shingles, put in again as often as need be, with which few bins stay empty."""
_MOST_TURNS = 32
_EMPTY, _BELOW_EMPTY = np.uint32(0xFFFFFFFF), np.uint32(0x7FFFFFFF)
_INNER, _DISTANCE = np.uint32(0x2C1B3C6D), np.uint32(0x297A2D39)
_MOST_COMPARED = 64
"""Members of one bucket that a text is compared with: the first ones, which are those that are kept."""
_REMEMBERED = 4096
_FEW_RUNS = 1024
"""Buckets that are looked at one by one; of more, one member of each at a time."""


_FOLD: Keys = np.random.Generator(np.random.PCG64(20261122)).integers(0, 1 << 63, _ROWS, dtype=np.uint64)


def _hashes(text: str) -> Hashes:
    """A hash of each five-letter sequence, in their order; of the text itself when it is shorter."""
    codes = np.frombuffer(text.encode("utf-32-le", "replace"), dtype=np.uint32)
    width = min(LETTERS, len(codes))
    if not width:
        return np.zeros(0, dtype=np.uint32)
    hashes = _folded(codes, len(codes) - width + 1)
    hashes ^= hashes >> _SHIFT
    hashes *= _MIX
    return hashes


def _folded(codes: Hashes, count: int = 1) -> Hashes:
    hashes = np.zeros(count, dtype=np.uint32)
    for offset in range(len(codes) - count + 1):
        hashes = (hashes ^ codes[offset : offset + count]) * _PRIME
    return hashes


def shingles(text: str) -> Hashes:
    """Sorted distinct hashes of all five-letter sequences."""
    hashes = np.sort(_hashes(text))
    distinct = np.ones(len(hashes), dtype=np.bool_)
    distinct[1:] = hashes[1:] != hashes[:-1]
    return hashes[distinct]


def band_keys(texts: Sequence[str]) -> Keys:
    """(20, texts): a hash of each band of the signatures. Texts of one set of shingles have equal ones, and two agree
    in a band about as often as in 6 independent draws of a common shingle."""
    keys = [_band_keys(Columns(texts[piece])) for piece in batches(texts)]
    return np.concatenate(keys, axis=1) if keys else np.zeros((BANDS, 0), dtype=np.uint64)


def _band_keys(texts: Columns) -> Keys:
    """One permutation, many bins: the smallest hash of each of 120 bins. With few shingles bins would stay empty, so
    each shingle of a short text is put in several times, each time hashed anew: that changes no similarity of sets."""
    count = len(texts.lengths)
    hashes, owners = _shingle_hashes(texts)
    sizes = np.maximum(texts.lengths - LETTERS + 1, texts.lengths > 0)
    turns = np.clip(-(-_FULL // np.maximum(sizes, 1)), 1, _MOST_TURNS)
    least = np.full(count * _BINS, _EMPTY, dtype=np.uint32)
    for turn in range(int(turns.max(initial=0))):
        if turn:
            again = np.flatnonzero((turns > turn)[owners])
            hashes, owners = hashes[again], owners[again]
        fresh = _rehashed(hashes, turn)
        bins = (fresh >> np.uint32(16)) * np.uint32(_BINS) >> np.uint32(16)
        np.minimum.at(least, owners * _BINS + bins, fresh * _INNER & _BELOW_EMPTY)
    signatures = _filled(least.reshape(count, _BINS))
    folded: Keys = (signatures.reshape(count, BANDS, _ROWS) * _FOLD).sum(axis=2, dtype=np.uint64)
    return folded.T


def _shingle_hashes(texts: Columns) -> tuple[Hashes, Indices]:
    """A hash of each five-letter sequence within one text, as `shingles` has them, and the text."""
    count = max(0, len(texts.codes) - LETTERS + 1)
    hashes = np.zeros(count, dtype=np.uint32)
    for offset in range(LETTERS):
        hashes ^= texts.codes[offset : offset + count]
        hashes *= _PRIME
    whole = np.ones(count, dtype=np.bool_)
    behind = texts.starts + texts.lengths
    for offset in range(LETTERS):  # what begins there goes on behind the text's end
        places = np.maximum(behind - offset, 0)
        whole[places[places < count]] = False
    hashes = hashes[whole]
    owners = np.repeat(np.arange(len(texts.lengths)), np.maximum(texts.lengths - LETTERS + 1, 0))
    short = np.flatnonzero((texts.lengths < LETTERS) & (texts.lengths > 0))
    if len(short):
        alone = [_folded(texts.codes[texts.starts[i] : texts.starts[i] + texts.lengths[i]]) for i in short]
        hashes, owners = np.concatenate([hashes, *alone]), np.concatenate([owners, short])
    hashes ^= hashes >> _SHIFT
    hashes *= _MIX
    return hashes, owners


def _rehashed(hashes: Hashes, turn: int) -> Hashes:
    hashes = hashes + np.uint32(0x9E3779B9 * (turn + 1) % (1 << 32))
    hashes ^= hashes >> np.uint32(16)
    hashes *= np.uint32(0x7FEB352D)
    hashes ^= hashes >> _SHIFT
    hashes *= np.uint32(0x846CA68B)
    return hashes ^ (hashes >> np.uint32(16))


def _filled(signatures: Hashes) -> Hashes:
    """Empty bins take the value of the next full one, changed by how far it is. A. Shrivastava, P. Li, "Densifying one
    permutation hashing via rotation" (2014)."""
    filled = signatures.copy()
    rows = np.flatnonzero((signatures == _EMPTY).any(axis=1))
    for distance in range(1, _BINS):
        if not len(rows):
            break
        here = filled[rows]
        lent = np.roll(signatures[rows], -distance, axis=1)
        here = np.where((here == _EMPTY) & (lent != _EMPTY), lent + np.uint32(distance) * _DISTANCE, here)
        filled[rows] = here
        rows = rows[(here == _EMPTY).any(axis=1)]
    return filled


def jaccard(one: Hashes, other: Hashes) -> float:
    """Share of the union that is common; 1 for two empty sets."""
    if not len(one) or not len(other):
        return float(len(one) == len(other))
    places = np.minimum(np.searchsorted(one, other), len(one) - 1)
    common = int((one[places] == other).sum())
    return common / (len(one) + len(other) - common)


def near_duplicates(texts: Sequence[str], similarity: float) -> Iterator[int | None]:
    """For each text the index of an earlier, kept one that is at least so similar; None for a text that is kept."""
    for twin in twins(band_keys(texts), len(texts), lambda index: shingles(texts[index]), similarity):
        yield None if twin < 0 else int(twin)


def twins(bands: Iterable[Keys], count: int, shingles_of: Callable[[int], Hashes], similarity: float) -> Indices:
    """(count,) The same of texts of which only the keys of each band, each (count,), are known; -1 for one that is
    kept. `shingles_of` is asked for those alone that share a key.

    A text that is dropped stands for nothing: similarity does not spread along a chain.
    """
    found = np.full(count, -1, dtype=np.int64)
    remembered = lru_cache(maxsize=_REMEMBERED)(shingles_of)
    pairs = np.zeros(0, dtype=np.int64)
    for band in bands:
        pairs = np.union1d(pairs, _pairs(band))
    for start in range(0, len(pairs), _REMEMBERED):
        later, earlier = np.divmod(pairs[start : start + _REMEMBERED], max(count, 1))
        for one, other in zip(later.tolist(), earlier.tolist(), strict=True):
            if found[one] < 0 and found[other] < 0 and _alike(remembered(one), remembered(other), similarity):
                found[one] = other
    return found


def _pairs(keys: Keys) -> Indices:
    """`later * count + earlier` of texts with one key; of more than a few with one, the first are the others' only
    partners."""
    count = len(keys)
    order = np.argsort(keys, kind="stable")
    in_order = keys[order]
    alike = np.zeros(count + 1, dtype=np.bool_)
    alike[1:-1] = in_order[1:] == in_order[:-1]
    del in_order
    edges = np.flatnonzero(alike[1:] != alike[:-1])  # where runs of more than one begin and where their last ones are
    starts, sizes = edges[::2], edges[1::2] - edges[::2] + 1
    found = []
    for behind in range(1, int(sizes.max(initial=1))):
        starts, sizes = starts[sizes > behind], sizes[sizes > behind]
        if behind > _MOST_COMPARED and len(starts) < _FEW_RUNS:
            break
        ahead = min(behind, _MOST_COMPARED)
        first = starts[:, None] + np.arange(ahead)
        found.append((order[starts + behind][:, None] * count + order[first]).ravel())
    else:
        starts = starts[:0]
    for start, size in zip(starts.tolist(), sizes.tolist(), strict=False):
        members = order[start + behind : start + size]
        found.append((members[:, None] * count + order[start : start + _MOST_COMPARED]).ravel())
    return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)


def _alike(one: Hashes, other: Hashes, similarity: float) -> bool:
    small, large = sorted((len(one), len(other)))
    return small >= similarity * large and jaccard(one, other) >= similarity
