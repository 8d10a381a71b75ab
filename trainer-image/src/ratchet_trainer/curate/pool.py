"""Examples that are compared with each other: what they say is in a store, what they are compared by in columns.

Room: trainer. Pure but for the store's file. About 60 bytes of memory an example, and the bands of near duplicates on
disk.
"""

import json
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ratchet_trainer.curate.columns import Hashes, Indices, digest
from ratchet_trainer.curate.examples import Example
from ratchet_trainer.curate.similar import BANDS, band_keys
from ratchet_trainer.curate.spill import Examples, ExampleStore, Spill, microseconds
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


class Pool:
    """Examples in the order in which they came; `bands` says whether near duplicates will be asked for."""

    def __init__(self, bands: bool) -> None:
        self.store = ExampleStore()
        self._times, self._prefixes = array("q"), array("Q")
        self._conversations, self._answers = array("Q"), array("Q")
        self._own, self._corrections = array("b"), array("b")
        self._categories, self._people = array("i"), array("i")
        self._names: dict[str, int] = {"": 0}
        self._bands = _Bands() if bands else None

    def add(self, keyed: Sequence[Keyed]) -> None:
        """Takes some more."""
        for one in keyed:
            example = one.example
            self.store.append(example)
            self._times.append(microseconds(example.time))
            self._prefixes.append(
                int.from_bytes(example.id.encode("utf-8", "surrogatepass")[:8].ljust(8, b"\0"), "big")
            )
            turns = zip(example.context, one.conversation, strict=True)
            self._conversations.append(digest("".join([f"{turn.role}{len(text)}:{text}" for turn, text in turns])))
            self._answers.append(digest(one.answer))
            self._own.append(example.own)
            self._corrections.append(example.origin == "correction")
            self._categories.append(self._names.setdefault(f"category {example.category}", len(self._names)))
            person = f"person {example.principal}" if example.principal else ""
            self._people.append(self._names.setdefault(person, len(self._names)))
        if self._bands is not None and keyed:
            self._bands.append(band_keys([one.text for one in keyed]))

    def save(self, folder: Path) -> None:
        """Into a new folder."""
        folder.mkdir()
        self.store.save(folder)
        np.savez(
            folder / "columns.npz", allow_pickle=False, times=np.array(self._times), prefixes=np.array(self._prefixes),
            conversations=self.conversations, answers=self.answers, own=np.array(self._own),
            corrections=np.array(self._corrections), categories=self.categories, people=self.people,
        )  # fmt: skip
        (folder / "names.json").write_text(json.dumps(list(self._names)))
        if self._bands is not None:
            self._bands.save(folder)

    def absorb(self, folder: Path) -> None:
        """Takes what another one saved, behind what is there."""
        self.store.absorb(folder)
        names = json.loads((folder / "names.json").read_text())
        numbers = np.array([self._names.setdefault(name, len(self._names)) for name in names], dtype=np.int32)
        with np.load(folder / "columns.npz") as columns:
            for column, name in (
                (self._times, "times"), (self._prefixes, "prefixes"), (self._conversations, "conversations"),
                (self._answers, "answers"), (self._own, "own"), (self._corrections, "corrections"),
            ):  # fmt: skip
                column.frombytes(columns[name].tobytes())
            self._categories.frombytes(numbers[columns["categories"]].tobytes())
            self._people.frombytes(numbers[columns["people"]].tobytes())
        if self._bands is not None:
            self._bands.absorb(folder)

    @property
    def conversations(self) -> Hashes:
        """(examples,) Digest of everything before the answer, in normal form."""
        return np.array(self._conversations, dtype=np.uint64)

    @property
    def answers(self) -> Hashes:
        """(examples,) Digest of the answer in normal form."""
        return np.array(self._answers, dtype=np.uint64)

    @property
    def own(self) -> npt.NDArray[np.bool_]:
        """(examples,) Whether a version of the cycle wrote the answer."""
        return np.array(self._own, dtype=np.bool_)

    @property
    def corrections(self) -> npt.NDArray[np.bool_]:
        """(examples,) Whether a person wrote the answer."""
        return np.array(self._corrections, dtype=np.bool_)

    @property
    def categories(self) -> npt.NDArray[np.int32]:
        """(examples,) A number for each category."""
        return np.array(self._categories, dtype=np.int32)

    @property
    def people(self) -> npt.NDArray[np.int32]:
        """(examples,) A number for each person; 0 for nobody known."""
        return np.array(self._people, dtype=np.int32)

    def bands(self, indices: Indices) -> Iterator[Hashes]:
        """For each band its key of each of these examples."""
        assert self._bands is not None
        for band in range(BANDS):
            yield self._bands.band(band)[indices]

    def sorted(self) -> Examples:
        """All, by time, then by id."""
        times, prefixes = np.array(self._times, dtype=np.int64), np.array(self._prefixes, dtype=np.uint64)
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
        found = bytearray()
        for place, count in self._chunks:
            found += self._spill.read(place + index * 8 * count, place + (index + 1) * 8 * count)
        return np.frombuffer(found, dtype=np.uint64)
