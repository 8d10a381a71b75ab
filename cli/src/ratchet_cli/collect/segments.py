"""Records on disk in the layout that curation reads: `sessions/dt=YYYY-MM-DD/<name>-<stamp>.jsonl`.

Room: cli. Touches the folder that it is given. A line is on disk before `append` returns. A file can be read at any
moment: only its last line may be unfinished, and only while (or because) nobody was told that it is kept. A segment
that somebody still writes is locked, so that whoever sends segments away passes it by.
"""

import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from ratchet_api.records import SESSIONS_PREFIX

SUFFIX = ".jsonl"


@dataclass
class _Open:
    path: Path
    fd: int
    day: date
    began: float
    """Monotonic seconds."""
    size: int = 0


class Segments:
    """The one writer of its own segments below a folder; others may write theirs beside it."""

    def __init__(self, folder: Path, name: str, segment_bytes: int, segment_seconds: float) -> None:
        """A segment ends at `segment_bytes`, or at the first record after `segment_seconds`, or with its day (UTC)."""
        self._folder, self._name = folder, name
        self._bytes, self._seconds = segment_bytes, segment_seconds
        self._open: _Open | None = None

    @property
    def path(self) -> Path | None:
        """The segment that is being written."""
        return None if self._open is None else self._open.path

    def append(self, lines: bytes, at: datetime) -> bool:
        """Writes whole lines durably into the segment of their day; whether another segment ended by it.

        All or nothing: raises OSError, after which the segment is as before.
        """
        day = at.astimezone(UTC).date()
        ended = self._open is not None and self._over(self._open, day) and self.close()
        segment = self._open = self._open or self._create(day)
        view = memoryview(lines)
        try:
            while view:
                view = view[os.write(segment.fd, view) :]
            os.fsync(segment.fd)
        except OSError:
            os.ftruncate(segment.fd, segment.size)
            raise
        segment.size += len(lines)
        return ended

    def close(self) -> bool:
        """Ends the segment that is being written; whether there was one."""
        if self._open is None:
            return False
        os.close(self._open.fd)
        self._open = None
        return True

    def _over(self, segment: _Open, day: date) -> bool:
        return (
            segment.day != day
            or segment.size >= self._bytes
            or time.monotonic() - segment.began >= self._seconds
        )  # fmt: skip

    def _create(self, day: date) -> _Open:
        folder = self._folder / SESSIONS_PREFIX / f"dt={day.isoformat()}"
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            path = folder / f"{self._name}-{time.time_ns():019d}-{secrets.token_hex(2)}{SUFFIX}"
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX)
            # Between the two calls somebody who sends segments away may have taken the empty file for a left-over.
            if os.fstat(fd).st_nlink:
                break
            os.close(fd)
        _sync(folder)
        return _Open(path, fd, day, time.monotonic())


def _sync(folder: Path) -> None:
    """Makes a new name in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@dataclass(frozen=True)
class Finished:
    """A segment that nobody writes any more."""

    path: Path
    key: str
    """Its path below the folder, with forward slashes."""
    content: bytes
    """Its whole lines; what a crash left unfinished is none."""


def finished(folder: Path) -> Iterator[Finished]:
    """The segments below a folder that nobody writes, the oldest first; each is locked while it is looked at."""
    for path in sorted(folder.glob(f"{SESSIONS_PREFIX}/dt=*/*{SUFFIX}")):
        with _unused(path) as content:
            if content is not None:
                yield Finished(path, path.relative_to(folder).as_posix(), content[: content.rfind(b"\n") + 1])


def waiting(folder: Path) -> int:
    """Number of segments below a folder."""
    return sum(1 for _ in folder.glob(f"{SESSIONS_PREFIX}/dt=*/*{SUFFIX}"))


@contextmanager
def _unused(path: Path) -> Iterator[bytes | None]:
    """The content of a file, locked; None when somebody has it, or when it is gone."""
    with contextlib.ExitStack() as stack:
        try:
            handle = stack.enter_context(path.open("rb"))
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (FileNotFoundError, BlockingIOError):
            yield None
            return
        yield handle.read() if os.fstat(handle.fileno()).st_nlink else None
