"""Container logs: one file per run of a container, in the CRI's line format, and readers that can follow.

Room: local. Touches log files only. A line is `<RFC 3339 time> <stdout|stderr> <F|P> <text>`; P marks a part of a line
that is longer than MAX_LINE.
"""

import asyncio
import datetime
import os
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

MAX_LINE = 16 * 1024
ROTATE_BYTES = 64 << 20


def timestamp(now: datetime.datetime) -> str:
    """RFC 3339 in UTC with nanoseconds, as the CRI writes it."""
    return now.strftime("%Y-%m-%dT%H:%M:%S.%f") + "000Z"


class LogFile:
    """The output of one run of a container."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)
        self._changed = asyncio.Event()
        self.finished = False
        self._partial: dict[str, bytes] = {}

    def feed(self, stream: str, data: bytes) -> None:
        """Append what a process wrote; whole lines are written, the rest is kept for later."""
        buffer = self._partial.get(stream, b"") + data
        *lines, rest = buffer.split(b"\n")
        out = bytearray()
        prefix = f"{timestamp(datetime.datetime.now(datetime.UTC))} {stream} "
        for line in lines:
            out += self._format(prefix, line, "F")
        while len(rest) > MAX_LINE:
            out += f"{prefix}P ".encode() + rest[:MAX_LINE] + b"\n"
            rest = rest[MAX_LINE:]
        self._partial[stream] = rest
        if out:
            self._file.write(out)
            self._rotate()
            self._changed.set()

    @staticmethod
    def _format(prefix: str, line: bytes, tag: str) -> bytes:
        out = bytearray()
        while len(line) > MAX_LINE:
            out += f"{prefix}P ".encode() + line[:MAX_LINE] + b"\n"
            line = line[MAX_LINE:]
        return bytes(out + f"{prefix}{tag} ".encode() + line + b"\n")

    def _rotate(self) -> None:
        if self._file.tell() > ROTATE_BYTES:
            self._file.close()
            self.path.replace(self.path.with_suffix(".old"))
            self._file = self.path.open("ab", buffering=0)

    def finish(self) -> None:
        """No more will come."""
        now = timestamp(datetime.datetime.now(datetime.UTC))
        for stream, rest in self._partial.items():
            if rest:
                self._file.write(f"{now} {stream} F ".encode() + rest + b"\n")
        self._file.close()
        self.finished = True
        self._changed.set()

    async def changed(self) -> None:
        """Until something was written or the log is finished."""
        if not self.finished:
            await self._changed.wait()
            if not self.finished:
                self._changed.clear()

    def tail_text(self, lines: int = 80, size: int = 2048) -> str:
        """The end of the log as plain text: at most so many lines and bytes (a termination message's fallback)."""
        kept: deque[bytes] = deque(maxlen=lines)
        with self.path.open("rb") as handle:
            for line in handle:
                kept.append(line.split(b" ", 3)[3] if line.count(b" ") >= 3 else line)
        return b"".join(kept)[-size:].decode(errors="replace")


@dataclass(frozen=True)
class LogQuery:
    """What `kubectl logs` asks for."""

    follow: bool = False
    timestamps: bool = False
    tail_lines: int | None = None
    since: datetime.datetime | None = None
    limit_bytes: int | None = None


async def read_log(log: LogFile, query: LogQuery) -> AsyncIterator[bytes]:
    """Chunks of the log as the client wants to see it; with `follow`, until that run of the container is over."""
    left = query.limit_bytes
    handle = log.path.open("rb")
    try:
        _skip_to_tail(handle, query.tail_lines)
        while True:
            finished = log.finished
            chunk = bytearray()
            while (line := handle.readline()).endswith(b"\n"):
                chunk += _shown(line, query)
            handle.seek(-len(line), 1)
            if chunk:
                piece = bytes(chunk if left is None else chunk[:left])
                yield piece
                if left is not None:
                    left -= len(piece)
                    if left <= 0:
                        return
            if finished or not query.follow:
                return
            now = log.path.stat()
            if now.st_ino != os.fstat(handle.fileno()).st_ino:  # rotated: the rest is in the new file
                handle.close()
                handle = log.path.open("rb")
            elif now.st_size <= handle.tell():
                await log.changed()
    finally:
        handle.close()


def _skip_to_tail(handle: BufferedReader, lines: int | None) -> None:
    if lines is None:
        return
    starts: deque[int] = deque(maxlen=max(lines, 1))
    position = 0
    for line in handle:
        starts.append(position)
        position += len(line)
    handle.seek(position if lines == 0 or not starts else starts[0])


def _shown(line: bytes, query: LogQuery) -> bytes:
    stamp, _stream, tag, text = line.split(b" ", 3)
    if query.since is not None and datetime.datetime.fromisoformat(_microseconds(stamp.decode())) < query.since:
        return b""
    if tag == b"P":
        text = text[:-1]
    return stamp + b" " + text if query.timestamps else text


def _microseconds(stamp: str) -> str:
    return stamp[:26] + "+00:00"
