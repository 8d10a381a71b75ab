"""The spool: records are made durable on the local disk before the client gets the last byte of its answer.

Room: gateway. Touches the spool folder, through one writer thread.

`append` gives a future that is done when the record's bytes are written and flushed (fdatasync). All records that
arrive while a flush is going on share the next one, so that the cost of a flush is spread over as many as there are,
and no record waits for more than two flushes. Storage is never waited for: closed segments are the uploader's.

A full or broken disk, or a spool over its limit, never stops an answer: the newest records are dropped, counted and
said aloud, and the process is not ready while it cannot write.
"""

import asyncio
import fcntl
import logging
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from ratchet_gateway import segments
from ratchet_gateway.segments import Destination, Segment
from ratchet_gateway.settings import SpoolSettings

log = logging.getLogger(__name__)
_TICK_SECONDS = 0.5
_LOCK = ".lock"


class SpoolInUse(Exception):
    """Another process writes into this spool folder."""


class Room:
    """Bytes of the spool on disk, shared by the writer and the uploader."""

    def __init__(self, used: int, limit: int, changed: Callable[[int], None]) -> None:
        self._lock = threading.Lock()
        self.used = used
        self.limit = limit
        self._changed = changed
        changed(used)

    def add(self, count: int) -> None:
        """Count bytes in (or, negative, out)."""
        with self._lock:
            self.used += count
            self._changed(self.used)

    def fits(self, count: int) -> bool:
        """Whether so many bytes more stay within the limit."""
        return self.used + count <= self.limit


@dataclass(slots=True)
class _Entry:
    destination: Destination
    day: str
    line: bytes
    kept: asyncio.Future[bool]


@dataclass(slots=True)
class _Outcome:
    """What became of a batch."""

    kept: list[_Entry] = field(default_factory=list)
    lost: list[_Entry] = field(default_factory=list)
    full: bool = False
    """A segment has reached its size."""


@dataclass(slots=True)
class _Writer:
    """The writer thread's own state: no other thread looks at it."""

    settings: SpoolSettings
    open: dict[tuple[Destination, str], Segment] = field(default_factory=dict)

    def commit(self, batch: list[_Entry]) -> _Outcome:
        """Writes and flushes a batch."""
        groups: dict[tuple[Destination, str], list[_Entry]] = defaultdict(list)
        for entry in batch:
            groups[entry.destination, entry.day].append(entry)
        outcome = _Outcome()
        for key, entries in groups.items():
            (outcome.kept if self._write(key, entries) else outcome.lost).extend(entries)
        outcome.full = any(segment.size >= self.settings.segment_bytes for segment in self.open.values())
        return outcome

    def _write(self, key: tuple[Destination, str], entries: list[_Entry]) -> bool:
        try:
            segment = self.open.get(key)
            if segment is None:
                segment = self.open[key] = Segment.create(self.settings.folder, *key, self.settings.writer)
            segment.append(b"".join(entry.line for entry in entries))
            segment.sync()
        except OSError as error:
            log.error("the spool cannot be written (%s), %d records are lost: mend the disk", error, len(entries))
            return False
        return True

    def rotate(self, *, everything: bool = False) -> list[Path]:
        """Closes segments that are big or old enough, or all of them."""
        now = time.monotonic()
        due = [
            key
            for key, segment in self.open.items()
            if everything
            or segment.size >= self.settings.segment_bytes
            or now - segment.opened >= self.settings.segment_seconds
        ]
        return [segment.close() for key in due if (segment := self.open.pop(key)).size or self._discard(segment)]

    def _discard(self, segment: Segment) -> bool:
        """A segment whose every write failed holds nothing."""
        segment.close().unlink()
        return False

    def probe(self) -> bool:
        """Whether the folder can be written to."""
        path = self.settings.folder / ".probe"
        try:
            path.write_bytes(b"x" * 4096)
            path.unlink()
        except OSError:
            return False
        return True


def _resolve(entries: list[_Entry], kept: bool) -> None:
    for entry in entries:
        if not entry.kept.done():
            entry.kept.set_result(kept)


class Spool:
    """Used from the event loop's thread."""

    def __init__(
        self, settings: SpoolSettings, size_changed: Callable[[int], None], closed: Callable[[], None]
    ) -> None:
        """`size_changed` hears the bytes on disk, `closed` that there are new closed segments; from any thread.

        Raises SpoolInUse when another process has the folder, OSError when it cannot be used.
        """
        settings.folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(settings.folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise SpoolInUse(f"spool folder {settings.folder} is used by another gateway: give each its own") from None
        segments.recover(settings.folder)
        self.room = Room(segments.bytes_on_disk(settings.folder), settings.limit_bytes, size_changed)
        self.writable = True
        self._writer = _Writer(settings)
        self._closed = closed
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="spool")
        self._pending: list[_Entry] = []
        self._pending_bytes = 0
        self._committing_bytes = 0
        self._flushing: asyncio.Task[None] | None = None
        self._ticking: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to close segments by age."""
        self._ticking = asyncio.create_task(self._tick(), name="spool-tick")

    def append(self, destination: Destination, day: str, line: bytes) -> asyncio.Future[bool]:
        """Takes one record, a JSON line with its end. The future says whether it is durable; it never raises."""
        kept: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if not self.room.fits(self._committing_bytes + self._pending_bytes + len(line)):
            kept.set_result(False)
            return kept
        self._pending.append(_Entry(destination, day, line, kept))
        self._pending_bytes += len(line)
        if self._flushing is None:
            self._flushing = asyncio.create_task(self._flush(), name="spool-flush")
        return kept

    async def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._pending:
                batch, self._pending = self._pending, []
                size, self._pending_bytes = self._pending_bytes, 0
                self._committing_bytes = size
                try:
                    outcome = await loop.run_in_executor(self._thread, self._writer.commit, batch)
                    self.room.add(sum(len(entry.line) for entry in outcome.kept))
                    self.writable = not outcome.lost
                    _resolve(outcome.kept, True)
                finally:
                    self._committing_bytes = 0
                    _resolve(batch, False)
                if outcome.full:
                    await self._rotate()
        finally:
            self._flushing = None

    async def _rotate(self, *, everything: bool = False) -> None:
        rotate = self._writer.rotate
        closed = await asyncio.get_running_loop().run_in_executor(self._thread, lambda: rotate(everything=everything))
        if closed:
            self._closed()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            try:
                await self._rotate()
                if not self.writable:
                    self.writable = await asyncio.get_running_loop().run_in_executor(self._thread, self._writer.probe)
            except OSError as error:
                self.writable = False
                log.error("the spool folder cannot be used: %s", error)

    async def close(self) -> None:
        """Flush and close every segment; the uploader may still work on what is closed."""
        if self._ticking is not None:
            self._ticking.cancel()
        while self._flushing is not None:
            await self._flushing
        await self._rotate(everything=True)
        self._thread.shutdown()

    def release(self) -> None:
        """Let another process have the folder."""
        os.close(self._lock)
