"""Examples that are compared with each other: what they say is in a store, what they are compared by in columns.

Room: trainer. Pure but for its files. Eight bytes of memory an example while they come; what they are compared by, and
the bands of near duplicates, is on disk, and in memory while a rule looks at it.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ratchet_trainer.curate.columns import Hashes, Indices, digest
from ratchet_trainer.curate.examples import Example
from ratchet_trainer.curate.similar import BANDS, band_keys
from ratchet_trainer.curate.spill import Column, Examples, ExampleStore, Spill, microseconds
from ratchet_trainer.curate.text import normalised


class Keyed(NamedTuple):
    """An example with the normal forms by which it is compared."""

    example: Example
    conversation: tuple[str, ...]
    """Of each turn of its context."""
    answer: str

    @classmethod
    def of(cls, example: Example) -> "Keyed":
        return cls(
            example, tuple([normalised(turn.content) for turn in example.context]), normalised(example.answer)
        )  # fmt: skip

    @property
    def text(self) -> str:
        """Prompt and answer."""
        return f"{self.conversation[-1]} {self.answer}".strip()


def _conversation(keyed: Keyed) -> str:
    turns = zip(keyed.example.context, keyed.conversation, strict=True)
    return "".join([f"{turn.role}{len(text)}:{text}" for turn, text in turns])


def _prefix(id: str) -> int:
    """The first letters of an id, in its order."""
    return int.from_bytes(id.encode("utf-8", "surrogatepass")[:8].ljust(8, b"\0"), "big")


class Pool:
    """Examples in the order in which they came; `bands` says whether near duplicates will be asked for."""

    def __init__(self, bands: bool) -> None:
        self.store = ExampleStore()
        self._times, self._prefixes = Column(np.int64), Column(np.uint64)
        self._conversations, self._answers = Column(np.uint64), Column(np.uint64)
        self._own, self._corrections = Column(np.int8), Column(np.int8)
        self._categories, self._people = Column(np.int32), Column(np.int32)
        self._names: dict[str, int] = {"": 0}
        self._bands = _Bands() if bands else None

    def add(self, keyed: Sequence[Keyed]) -> None:
        """Takes some more."""
        examples = [one.example for one in keyed]
        for example in examples:
            self.store.append(example)
        self._times.extend([microseconds(example.time) for example in examples])
        self._prefixes.extend([_prefix(example.id) for example in examples])
        self._conversations.extend([digest(_conversation(one)) for one in keyed])
        self._answers.extend([digest(one.answer) for one in keyed])
        self._own.extend([example.own for example in examples])
        self._corrections.extend([example.origin == "correction" for example in examples])
        number = self._names.setdefault
        self._categories.extend([number(f"category {one.category}", len(self._names)) for one in examples])
        people = [f"person {one.principal}" if one.principal else "" for one in examples]
        self._people.extend([number(person, len(self._names)) for person in people])
        if self._bands is not None and keyed:
            self._bands.append(band_keys([one.text for one in keyed]))

    def save(self, folder: Path) -> None:
        """Into a new folder."""
        folder.mkdir()
        self.store.save(folder)
        columns = {name: column.all for name, column in self._columns.items()}
        np.savez(folder / "columns.npz", allow_pickle=False, **columns)
        (folder / "names.json").write_text(json.dumps(list(self._names)))
        if self._bands is not None:
            self._bands.save(folder)

    @property
    def _columns(self) -> dict[str, Column[Any]]:
        return {
            "times": self._times, "prefixes": self._prefixes, "conversations": self._conversations,
            "answers": self._answers, "own": self._own, "corrections": self._corrections,
            "categories": self._categories, "people": self._people,
        }  # fmt: skip

    def absorb(self, folder: Path) -> None:
        """Takes what another one saved, behind what is there."""
        self.store.absorb(folder)
        names = json.loads((folder / "names.json").read_text())
        numbers = np.array([self._names.setdefault(name, len(self._names)) for name in names], dtype=np.int32)
        with np.load(folder / "columns.npz") as columns:
            for name, column in self._columns.items():
                values = columns[name]
                column.absorb(numbers[values] if name in ("categories", "people") else values)
        if self._bands is not None:
            self._bands.absorb(folder)

    @property
    def conversations(self) -> Hashes:
        """(examples,) Digest of everything before the answer, in normal form."""
        return self._conversations.all

    @property
    def answers(self) -> Hashes:
        """(examples,) Digest of the answer in normal form."""
        return self._answers.all

    @property
    def own(self) -> npt.NDArray[np.bool_]:
        """(examples,) Whether a version of the cycle wrote the answer."""
        return self._own.all.astype(np.bool_)

    @property
    def corrections(self) -> npt.NDArray[np.bool_]:
        """(examples,) Whether a person wrote the answer."""
        return self._corrections.all.astype(np.bool_)

    @property
    def categories(self) -> npt.NDArray[np.int32]:
        """(examples,) A number for each category."""
        return self._categories.all

    @property
    def people(self) -> npt.NDArray[np.int32]:
        """(examples,) A number for each person; 0 for nobody known."""
        return self._people.all

    def bands(self, indices: Indices) -> Iterator[Hashes]:
        """For each band its key of each of these examples."""
        assert self._bands is not None
        for band in range(BANDS):
            yield self._bands.band(band)[indices]

    def sorted(self) -> Examples:
        """All, by time, then by id."""
        times, prefixes = self._times.all, self._prefixes.all
        order = np.lexsort((prefixes, times))
        same = (np.diff(times[order]) == 0) & (np.diff(prefixes[order]) == 0)
        edges = np.flatnonzero(np.diff(np.concatenate(([False], same, [False])).astype(np.int8)))
        for first, last in zip(edges[::2], edges[1::2], strict=True):
            alike = order[first : last + 1]
            order[first : last + 1] = sorted(alike, key=lambda index: self.store[int(index)].id)
        return Examples(self.store, order)


class _Bands:
    """The keys of each band, chunk by chunk."""

    def __init__(self) -> None:
        self._spill = Spill()
        self._chunks: list[tuple[int, int]] = []

    def append(self, keys: Hashes) -> None:
        self._chunks.append((self._spill.append(np.ascontiguousarray(keys).tobytes()), keys.shape[1]))

    def save(self, folder: Path) -> None:
        self._spill.save(folder / "bands.bin")
        np.save(folder / "bands.npy", np.array(self._chunks, dtype=np.int64).reshape(-1, 2))

    def absorb(self, folder: Path) -> None:
        begin = self._spill.absorb(folder / "bands.bin")
        self._chunks += [(begin + place, count) for place, count in np.load(folder / "bands.npy").tolist()]

    def band(self, index: int) -> Hashes:
        found, done = np.empty(sum(count for _, count in self._chunks), dtype=np.uint64), 0
        for place, count in self._chunks:
            keys = self._spill.read(place + index * 8 * count, place + (index + 1) * 8 * count)
            found[done : done + count] = np.frombuffer(keys, dtype=np.uint64)
            done += count
        return found
