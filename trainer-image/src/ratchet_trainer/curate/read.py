"""Session files to records: line by line, bounded in memory, whatever is in them.

Room: trainer. Touches the files that it is given, nothing else. A line that cannot be read is quarantined: counted by
kind and noted by its place (never by its content), and the rest goes on.
"""

import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal, NamedTuple

import zstandard
from pydantic import ValidationError

from ratchet_api.records import RECORD, Feedback, Interaction

LineProblem = Literal[
    "oversized", "undecodable", "truncated", "malformed", "duplicateKeys", "schema", "unrecognised", "expansion"
]
"""Why a line is not read. oversized: longer than the limit. undecodable: the compressed stream is damaged here.
truncated: the file ends within the line. malformed: not JSON or not UTF-8. duplicateKeys: an object has one key twice,
so that two readers may see two things. schema: JSON, but no record of its file's format. unrecognised: of no format
that is known. expansion: the file unpacks to far more than its size allows, and is left there."""

MAX_NOTED = 1000
"""Places written into the quarantine's list; beyond that they are only counted."""
_ROW = re.compile(rb"[^\n]+")
_MANY_EMPTY = 4096
_PIECE = 1 << 18
_COMPRESSED_PIECE = 512
"""Bytes given to the decoder at once. A block of 128 KiB takes as little as four bytes, so this bounds what comes back
to 16 MiB; and what a damaged stream held before the damage is not lost but for so much."""
_BUFFER = 1 << 20
_MAX_EXPANSION = 2000
_FREE_EXPANSION = 32 << 20


@dataclass(frozen=True)
class Quarantined:
    """Where a line stood that could not be read."""

    file: str
    line: int
    problem: LineProblem


@dataclass
class Quarantine:
    """Lines that could not be read."""

    counts: Counter[LineProblem] = field(default_factory=Counter)
    places: list[Quarantined] = field(default_factory=list)

    def add(self, file: str, line: int, problem: LineProblem) -> None:
        """Counts one line."""
        self.counts[problem] += 1
        if len(self.places) < MAX_NOTED:
            self.places.append(Quarantined(file, line, problem))

    def absorb(self, other: "Quarantine") -> None:
        """Takes what was counted in files behind these."""
        self.counts.update(other.counts)
        self.places += other.places[: MAX_NOTED - len(self.places)]

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.counts.values())


class Line(NamedTuple):
    """One line of a file: its bytes, or why there are none."""

    number: int
    content: bytes | LineProblem
    ended: bool = True
    """Whether a newline followed."""


class Block(NamedTuple):
    """Whole lines of a file, one after the other, without the last one's newline."""

    number: int
    """Of the first one."""
    content: bytes


def lines(path: Path, max_line_bytes: int) -> Iterator[Line]:
    """The lines of a file that are not blank; it may be packed (.zst, .gz)."""
    for found in blocks(path, max_line_bytes):
        if isinstance(found, Line):
            yield found
        else:
            yield from each_of(found, max_line_bytes)


def blocks(path: Path, max_line_bytes: int) -> Iterator[Block | Line]:
    """The same, as many together as were read together.

    Never holds more than one line and one piece; an oversized line is thrown away while it is read.
    """
    number, parts, size = 1, list[bytes](), 0
    try:
        for piece in pieces(path):
            first, last = piece.find(b"\n"), piece.rfind(b"\n")
            head = piece if first < 0 else piece[:first]
            size += len(head)
            parts = [*parts, head] if size <= max_line_bytes else []
            if first < 0:
                continue
            yield from _line(number, parts, size, max_line_bytes)
            content, tail = piece[first + 1 : last], piece[last + 1 :]
            del piece  # here and below: so that no two are held while others look at one, or the next is unpacked
            number += 1
            if first < last:
                yield Block(number, content)
                number += content.count(b"\n") + 1
            del content
            size = len(tail)
            parts = [tail] if size <= max_line_bytes else []
    except Undecodable:
        yield Line(number, "undecodable")
        return
    except ExpandsTooMuch:
        yield Line(number, "expansion")
        return
    except EndsWithinFrame:
        if not size:
            yield Line(number, "truncated")
    for line in _line(number, parts, size, max_line_bytes):
        yield Line(line.number, line.content, ended=False)


def each_of(block: Block, max_line_bytes: int) -> Iterator[Line]:
    """The lines of a block that are not blank."""
    for index, content in _rows(block.content):
        if len(content) > max_line_bytes:
            yield Line(block.number + index, "oversized")
        elif stripped := content.strip():
            yield Line(block.number + index, stripped)


def _rows(content: bytes) -> Iterable[tuple[int, bytes]]:
    """What stands between newlines, by how many of these come before; of many empty rows none, because a bomb of them
    is not worth a look at each."""
    if content.count(b"\n\n") < _MANY_EMPTY:
        yield from enumerate(content.split(b"\n"))
        return
    index = place = 0
    for match in _ROW.finditer(content):
        index += content.count(b"\n", place, match.start())
        place = match.start()
        yield index, match.group()


def _line(number: int, parts: list[bytes], size: int, limit: int) -> Iterator[Line]:
    if size > limit:
        yield Line(number, "oversized")
    elif content := b"".join(parts).strip():
        yield Line(number, content)


class Undecodable(Exception):
    """A compressed stream is damaged."""


class ExpandsTooMuch(Exception):
    """A file unpacks to far more than its size allows."""


class EndsWithinFrame(Exception):
    """A compressed file is cut off."""


def pieces(path: Path) -> Iterator[bytes]:
    """The unpacked content, never more than 16 MiB at once. Raises Undecodable, ExpandsTooMuch or EndsWithinFrame."""
    with path.open("rb", buffering=_BUFFER) as raw:
        match path.suffix:
            case ".zst":
                unpacked = _decompressed(raw)
            case ".gz":
                unpacked = _gunzipped(raw)
            case _:
                yield from iter(lambda: raw.read(_PIECE), b"")
                return
        yield from _gathered(unpacked, _FREE_EXPANSION + _MAX_EXPANSION * path.stat().st_size)


def _gathered(unpacked: Iterator[bytes], allowed: int) -> Iterator[bytes]:
    """The pieces, small ones together; what came before damage comes before the error that says so."""
    held, size = list[bytes](), 0
    try:
        for piece in unpacked:
            allowed -= len(piece)
            if allowed < 0:
                raise ExpandsTooMuch
            held.append(piece)
            size += len(piece)
            del piece
            if size >= _PIECE:
                yield _emptied(held)
                size = 0
    except (Undecodable, EndsWithinFrame, ExpandsTooMuch):
        yield _emptied(held)
        raise
    yield _emptied(held)


def _emptied(held: list[bytes]) -> bytes:
    whole = b"".join(held)
    held.clear()  # before others look at it
    return whole


def _gunzipped(raw: IO[bytes]) -> Iterator[bytes]:
    """The content of all members of a gzip file; zeros after the last one are padding."""
    member = None
    rest = b""
    try:
        while rest or (rest := raw.read(_PIECE)):
            if member is None:
                rest = rest.lstrip(b"\0")
                if not rest:
                    continue
                member = zlib.decompressobj(wbits=31)
            if piece := member.decompress(rest, _PIECE):
                yield piece
            rest = member.unused_data if member.eof else member.unconsumed_tail
            if member.eof:
                member = None
        if member is not None and (piece := member.flush()):
            yield piece
    except zlib.error as error:
        raise Undecodable from error
    if member is not None and not member.eof:
        raise EndsWithinFrame


def _decompressed(raw: IO[bytes]) -> Iterator[bytes]:
    """The content of all frames of a file."""
    # The window bounds the decoder's memory; the gateway's is far below it.
    decoder = zstandard.ZstdDecompressor(max_window_size=1 << 27)
    frame = None
    rest = b""
    while rest or (rest := raw.read(_COMPRESSED_PIECE)):
        frame = frame or decoder.decompressobj()
        try:
            yield frame.decompress(rest)
        except zstandard.ZstdError as error:
            raise Undecodable from error
        rest = frame.unused_data
        if frame.eof:
            frame = None
    if frame is not None:
        raise EndsWithinFrame


def parse(line: Line) -> Interaction | Feedback | LineProblem:
    """A record, or why the line is none."""
    if not isinstance(line.content, bytes):
        return line.content
    try:
        return RECORD.validate_json(line.content)
    except ValidationError as error:
        if all(problem["type"] == "json_invalid" for problem in error.errors(include_url=False, include_input=False)):
            return "malformed" if line.ended else "truncated"
        return "schema"
