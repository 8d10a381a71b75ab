"""A file that is one JSON array, or objects one after the other over many lines, as a stream of its elements.

Room: trainer. Touches the files that it is given, nothing else. Only brackets and strings are looked at, so an element
is cut out whole whatever is in it, and never more than one of them (and one piece of the file) is held.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from ratchet_trainer.curate import read
from ratchet_trainer.curate.read import Line, LineProblem

_OUTSIDE = re.compile(rb'["{}\[\]]')
_INSIDE = re.compile(rb'["\\]')
_BETWEEN = b" \t\r\n,"
_BOM = b"\xef\xbb\xbf"
_SNIFFED = 1 << 16


def content(path: Path, max_bytes: int) -> Iterator[Line]:
    """The lines of a file of JSON lines, or the elements of a file that is JSON as a whole; which, its start says."""
    return elements(path, max_bytes) if _is_whole(path) else read.lines(path, max_bytes)


def _is_whole(path: Path) -> bool:
    start = b""
    try:
        for piece in read.pieces(path):
            start += piece[:_SNIFFED]
            if len(start) >= _SNIFFED:
                break
    except (read.Undecodable, read.ExpandsTooMuch, read.EndsWithinFrame):
        pass  # reading it says so by name
    start = start.removeprefix(_BOM).lstrip()
    if not start.startswith(b"{"):
        return start.startswith(b"[")
    try:
        return not isinstance(json.loads(start.split(b"\n", 1)[0]), dict) if b"\n" in start else False
    except (ValueError, RecursionError):
        # A first line that is no JSON by itself, as a pretty-printed object's: or a damaged line of JSON lines.
        return start.split(b"\n", 1)[0].strip() in (b"{", b"{}") or not re.search(rb"\n\s*\{", start)


def elements(path: Path, max_bytes: int) -> Iterator[Line]:
    """The elements of the top-level array (or the top-level objects), numbered from 1; a longer one is thrown away
    while it is read, and what stands between elements but a comma is `malformed`."""
    splitter = _Splitter(max_bytes)
    problem: LineProblem | None = None
    try:
        for piece in read.pieces(path):
            yield from splitter.feed(piece)
    except read.Undecodable:
        problem = "undecodable"
    except read.ExpandsTooMuch:
        problem = "expansion"
    except read.EndsWithinFrame:
        problem = "truncated"
    yield from splitter.end(problem)


class _Splitter:
    """Where elements begin and end, piece by piece."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._number = 1
        self._base: int | None = None
        self._depth = 0
        self._inside = False
        self._escaped = False
        self._size = 0
        self._parts: list[bytes] = []
        self._junk = False

    def feed(self, piece: bytes) -> Iterator[Line]:
        if self._base is None:
            piece = piece.removeprefix(_BOM).lstrip()
            if not piece:
                return
            self._base = 1 if piece.startswith(b"[") else 0
        at = start = 0
        if self._escaped:
            at, self._escaped = 1, False
        while True:
            found = (_INSIDE if self._inside else _OUTSIDE).search(piece, at)
            if found is None:
                break
            token, at = found.group(), found.end()
            if self._inside:
                self._escaped = token == b"\\" and at == len(piece)
                at += token == b"\\"
                self._inside = token == b"\\"
            elif token == b'"':
                self._inside = True
            elif token in b"{[":
                if self._depth == self._base:
                    self._between(piece[start : at - 1])
                    yield from self._junk_line()
                    start = at - 1
                self._depth += 1
                if self._depth == self._base:
                    start = at
            else:
                self._depth = max(self._depth - 1, 0)
                if self._depth == self._base:
                    self._take(piece[start:at])
                    yield self._element()
                    start = at
                elif self._depth < self._base:
                    self._between(piece[start : at - 1])
                    yield from self._junk_line()
                    start = at
        if self._depth > self._base:
            self._take(piece[start:])
        else:
            self._between(piece[start:])

    def end(self, problem: LineProblem | None) -> Iterator[Line]:
        yield from self._junk_line()
        if problem is not None:
            yield Line(self._number, problem)
        elif self._base is not None and (self._depth > 0 or self._inside):
            yield Line(self._number, "oversized" if self._size > self._limit else "truncated", ended=False)

    def _take(self, part: bytes) -> None:
        self._size += len(part)
        if self._size <= self._limit:
            self._parts.append(part)
        else:
            self._parts = []

    def _between(self, part: bytes) -> None:
        self._junk = self._junk or bool(part.strip(_BETWEEN))

    def _junk_line(self) -> Iterator[Line]:
        if self._junk:
            self._junk = False
            yield Line(self._number, "malformed")
            self._number += 1

    def _element(self) -> Line:
        whole: bytes | LineProblem = b"".join(self._parts) if self._size <= self._limit else "oversized"
        line = Line(self._number, whole)
        self._number, self._size, self._parts = self._number + 1, 0, []
        return line
