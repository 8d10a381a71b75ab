"""Examples on disk, so that memory is bounded by a few numbers of each and not by what they say.

Room: trainer. Touches files of its own in the temporary folder, which are gone when the process is. A small set never
leaves the memory.
"""

import json
import os
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any, Generic, TypeVar, overload

import msgspec
import numpy as np
import numpy.typing as npt

from ratchet_trainer.chat import Message
from ratchet_trainer.curate.columns import Indices
from ratchet_trainer.curate.examples import Example

IN_MEMORY = 32 << 20
"""Bytes that are held before a file is begun."""
_PIECE = 1 << 20
_ROWS = 1 << 13
"""Numbers of a column that are handed over together."""
N = TypeVar("N", bound=np.generic)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def microseconds(time: datetime) -> int:
    """Since 1970."""
    return (time - _EPOCH) // _MICROSECOND


def moment(since: int) -> datetime:
    """The time so many microseconds after 1970."""
    return _EPOCH + timedelta(microseconds=since)


_NEVER_USED = b"\xc1"
"""By the msgpack specification, as a first byte."""


def packed(value: object) -> bytes:
    """Tuples, texts and numbers as msgpack; as JSON if a text has half of a surrogate pair, which only that can say."""
    try:
        return msgspec.msgpack.encode(value)
    except UnicodeEncodeError:
        return _NEVER_USED + json.dumps(value).encode()


def unpacked(piece: bytes) -> Any:
    """What was packed, with lists for tuples."""
    return json.loads(piece[1:]) if piece[:1] == _NEVER_USED else msgspec.msgpack.decode(piece)


class Spill:
    """Pieces of bytes, in memory while they are few and in a file when they are many."""

    def __init__(self, in_memory: int = IN_MEMORY) -> None:
        self._limit = in_memory
        self._tail = bytearray()
        self._file: IO[bytes] | None = None
        self._written = 0
        """Bytes in the file; what follows them is the tail."""

    def append(self, piece: bytes) -> int:
        """Where the piece begins."""
        place = self.size
        self._tail += piece
        if len(self._tail) > self._limit:
            self._write()
        return place

    @property
    def size(self) -> int:
        """Bytes in all."""
        return self._written + len(self._tail)

    def copy(self, out: memoryview) -> None:
        """All of them into as many bytes."""
        place = 0
        while place < self._written:
            assert self._file is not None
            place += os.preadv(self._file.fileno(), [out[place : self._written]], place)
        out[place:] = self._tail

    def _write(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="ratchet-curate-", buffering=0)  # noqa: SIM115
            weakref.finalize(self, self._file.close)
        while self._tail:
            done = self._file.write(self._tail)
            self._written += done
            del self._tail[:done]

    def save(self, path: Path) -> None:
        """All pieces into a file, one after the other."""
        with path.open("wb") as out:
            for start in range(0, self._written, _PIECE):
                out.write(self.read(start, min(start + _PIECE, self._written)))
            out.write(self._tail)

    def absorb(self, path: Path) -> int:
        """Takes the pieces that another one saved; gives back where they begin."""
        begin = self.size
        with path.open("rb") as saved:
            while part := saved.read(_PIECE):
                self.append(part)
        self._write()  # because a piece may lie on both sides of the file's end by now
        return begin

    def read(self, start: int, end: int) -> bytes:
        """The bytes from one place to another; they were appended, and are on one side of the file's end."""
        if start >= self._written:
            return bytes(self._tail[start - self._written : end - self._written])
        assert self._file is not None
        return os.pread(self._file.fileno(), end - start, start)


class Column(Generic[N]):
    """Numbers of one kind, by the order in which they came: in a file when they are many."""

    def __init__(self, dtype: type[N]) -> None:
        self._dtype = np.dtype(dtype)
        self._spill = Spill(_PIECE)
        self._tail = array(self._dtype.char)

    def __len__(self) -> int:
        return self._spill.size // self._dtype.itemsize + len(self._tail)

    def append(self, number: int) -> None:
        """Takes one more."""
        self._tail.append(number)
        if len(self._tail) >= _ROWS:
            self._settle()

    def extend(self, numbers: Iterable[int]) -> None:
        """Takes some more."""
        self._tail.extend(numbers)
        if len(self._tail) >= _ROWS:
            self._settle()

    def absorb(self, numbers: npt.NDArray[N]) -> None:
        """Takes as many as there are."""
        self._settle()
        self._spill.append(numbers.astype(self._dtype, copy=False).tobytes())

    def _settle(self) -> None:
        self._spill.append(self._tail.tobytes())
        del self._tail[:]

    @property
    def all(self) -> npt.NDArray[N]:
        """(numbers,) A copy of all of them."""
        self._settle()
        found = np.empty(len(self), dtype=self._dtype)
        if len(found):
            self._spill.copy(found.data.cast("B"))
        return found

    def __getitem__(self, index: int) -> int:
        self._settle()
        size = self._dtype.itemsize
        return int(np.frombuffer(self._spill.read(index * size, (index + 1) * size), dtype=self._dtype)[0])


class ExampleStore:
    """Examples by the order in which they came."""

    def __init__(self) -> None:
        self._spill = Spill()
        self._places = array("q", [0])

    def __len__(self) -> int:
        return len(self._places) - 1

    def append(self, example: Example) -> None:
        """Takes one more."""
        turns = tuple((turn.role, turn.content, turn.weight) for turn in example.context)
        piece = packed(
            (
                example.id, turns, example.answer, example.origin, example.category, microseconds(example.time),
                example.session, example.principal, example.own, example.demonstrated,
            )
        )  # fmt: skip
        self._places.append(self._spill.append(piece) + len(piece))

    def save(self, folder: Path) -> None:
        """Into files of its own."""
        self._spill.save(folder / "examples.msgpack")
        np.save(folder / "places.npy", np.array(self._places, dtype=np.int64))

    def absorb(self, folder: Path) -> None:
        """Takes what another one saved, behind what is there."""
        begin = self._spill.absorb(folder / "examples.msgpack")
        self._places.frombytes((np.load(folder / "places.npy")[1:] + begin).tobytes())

    def text(self, index: int) -> str:
        """An example's prompt and answer."""
        _, turns, answer, *_ = self._fields(index)
        return f"{turns[-1][1]}\n{answer}"

    def _fields(self, index: int) -> Any:
        return unpacked(self._spill.read(self._places[index], self._places[index + 1]))

    def __getitem__(self, index: int) -> Example:
        id, turns, answer, origin, category, time, session, principal, own, demonstrated = self._fields(index)
        context = tuple(Message(role=role, content=content, weight=weight) for role, content, weight in turns)
        return Example(id, context, answer, origin, category, moment(time), session, principal, own, demonstrated)


class Examples(Sequence[Example]):
    """Some of the examples of a store, in an order; each is read when it is asked for."""

    def __init__(self, store: ExampleStore, indices: Indices) -> None:
        self._store = store
        self.indices = indices
        """(examples,) Their places in the store."""

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Example]:
        return (self._store[int(index)] for index in self.indices)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> "Examples": ...
    def __getitem__(self, index: int | slice) -> "Example | Examples":
        if isinstance(index, slice):
            return Examples(self._store, self.indices[index])
        return self._store[int(self.indices[index])]

    def text(self, index: int) -> str:
        """Prompt and answer of one of them, for less than the example costs."""
        return self._store.text(int(self.indices[index]))

    def at(self, places: Sequence[int]) -> "Examples":
        """Those of the store at these places, in this order; one may come several times."""
        return Examples(self._store, np.array(places, dtype=np.int64))

    def where(self, wanted: Sequence[bool] | np.ndarray[tuple[int], np.dtype[np.bool_]]) -> "Examples":
        """Those of which it is true, in their order."""
        return Examples(self._store, self.indices[np.asarray(wanted, dtype=np.bool_)])
