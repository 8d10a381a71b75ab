"""Files of the spool: open segments that grow, closed ones, sealed (compressed) ones, and where each is to go.

Room: gateway. Touches the spool folder only. No thread of its own: the spool's writer calls `Segment`, the uploader
calls the rest; a file belongs to the writer while its name ends in `.open`, and to the uploader from then on.

    SPOOL/<key of destination>/destination.json
                               dt=2026-11-22/<writer>-<stamp>.open        grows
                                             <writer>-<stamp>.jsonl       closed
                                             <writer>-<stamp>.jsonl.zst   sealed, uploaded under this very name

The names are the whole state: whatever is found at a start is carried on from where it was.
"""

import contextlib
import hashlib
import logging
import os
import secrets
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

import orjson
import zstandard

from ratchet_api.records import SESSIONS_PREFIX

log = logging.getLogger(__name__)
OPEN, CLOSED, SEALED = ".open", ".jsonl", ".jsonl.zst"
_PARTIAL = ".partial"
_DESTINATION = "destination.json"
_ZSTD_LEVEL = 3
_CREATE_RETRIES = 8


@dataclass(frozen=True, slots=True)
class Destination:
    """The object storage of one cycle."""

    namespace: str
    cycle: str
    uri: str
    """s3://bucket/prefix of the cycle."""
    endpoint: str | None
    region: str

    @property
    def key(self) -> str:
        """Name of its folder in the spool."""
        return f"{self.cycle}-{hashlib.sha256(orjson.dumps(asdict(self))).hexdigest()[:16]}"

    @property
    def bucket(self) -> str:
        return self.uri.removeprefix("s3://").partition("/")[0]

    def object_key(self, segment: Path) -> str:
        """Key of a sealed segment in the bucket."""
        prefix = self.uri.removeprefix("s3://").partition("/")[2].strip("/")
        return "/".join(part for part in (prefix, SESSIONS_PREFIX, segment.parent.name, segment.name) if part)


def _sync_folder(folder: Path) -> None:
    """Makes new names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def folder_of(root: Path, destination: Destination, day: str) -> Path:
    """The folder for a destination's records of one day (YYYY-MM-DD), made when it is new."""
    home = root / destination.key
    folder = home / f"dt={day}"
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        _sync_folder(home)
    note = home / _DESTINATION
    if not note.exists():
        _put_in_place(note, note.with_suffix(_PARTIAL), orjson.dumps(asdict(destination)))
        _sync_folder(home)
        _sync_folder(root)
    return folder


def _put_in_place(path: Path, partial: Path, content: bytes) -> None:
    """A whole file or none. Raises OSError."""
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


@dataclass(slots=True)
class Segment:
    """An open segment. Used by the writer thread alone."""

    path: Path
    fd: int
    opened: float
    """Monotonic time."""
    size: int = 0

    @classmethod
    def create(cls, root: Path, destination: Destination, day: str, writer: str) -> Self:
        """A new segment with a name that no other has had. Raises OSError."""
        for _ in range(_CREATE_RETRIES):
            with contextlib.suppress(FileNotFoundError):  # the uploader removed the folder of a past day just now
                return cls._create(root, destination, day, writer)
        return cls._create(root, destination, day, writer)

    @classmethod
    def _create(cls, root: Path, destination: Destination, day: str, writer: str) -> Self:
        folder = folder_of(root, destination, day)
        path = folder / f"{writer}-{time.time_ns():019d}-{secrets.token_hex(2)}{OPEN}"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        _sync_folder(folder)
        return cls(path, fd, time.monotonic())

    def append(self, data: bytes) -> None:
        """Writes whole lines, not yet durable. Raises OSError, after which the segment is as before."""
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self.fd, view) :]
        except OSError:
            os.ftruncate(self.fd, self.size)
            raise
        self.size += len(data)

    def sync(self) -> None:
        """Makes what was appended durable. Raises OSError."""
        os.fdatasync(self.fd)

    def close(self) -> Path:
        """Hands the file over to the uploader."""
        os.close(self.fd)
        closed = self.path.with_suffix(CLOSED)
        self.path.rename(closed)
        return closed


@dataclass(slots=True)
class Census:
    """What a segment holds."""

    interactions: Counter[str] = field(default_factory=Counter)
    """Version -> interactions."""
    unreadable: int = 0
    """Whole lines that are no record (a damaged disk): left out. A last line without its end is not counted: it was
    being written when the process died, so nobody was told that it is kept."""


def read_lines(data: bytes) -> tuple[bytes, Census]:
    """The readable records of a segment's content, and their census."""
    census = Census()
    kept: list[bytes] = []
    *lines, _unfinished = data.split(b"\n")
    for line in lines:
        try:
            record = orjson.loads(line)
            kind, version = record["kind"], record["version"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            census.unreadable += 1
            continue
        kept.append(line)
        if kind == "interaction":
            census.interactions[version] += 1
    return b"".join(line + b"\n" for line in kept), census


def compress(data: bytes) -> bytes:
    """zstd; the same bytes give the same result."""
    return zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(data)


def read_sealed(data: bytes) -> Census:
    """The census of a sealed segment; an empty one when it is damaged."""
    try:
        content = zstandard.ZstdDecompressor().decompressobj().decompress(data)
    except zstandard.ZstdError as error:
        log.error("a sealed segment is damaged: %s", error)
        return Census()
    return read_lines(content)[1]


def seal(closed: Path, content: bytes) -> Path:
    """Puts the compressed content in the place of a closed segment. Raises OSError, for example on a full disk."""
    sealed = closed.with_name(closed.name + ".zst")
    _put_in_place(sealed, closed.with_name(closed.name + _PARTIAL), content)
    closed.unlink()
    return sealed


def recover(root: Path) -> None:
    """At a start, before any segment is opened: closes what was open and clears away what was half done."""
    for path in sorted(root.glob("*/dt=*/*")):
        if path.name.endswith(_PARTIAL):
            path.unlink()
        elif path.name.endswith(OPEN):
            path.rename(path.with_suffix(CLOSED))
    for closed in sorted(root.glob(f"*/dt=*/*{CLOSED}")):
        if closed.with_name(closed.name + ".zst").exists():
            closed.unlink()


def destinations(root: Path) -> Iterator[tuple[Destination, Path]]:
    """Every destination of the spool with its folder."""
    for note in sorted(root.glob(f"*/{_DESTINATION}")):
        try:
            yield Destination(**orjson.loads(note.read_bytes())), note.parent
        except (orjson.JSONDecodeError, TypeError) as error:
            log.error("%s is damaged, so the records beside it stay where they are: %s", note, error)


def waiting(home: Path) -> tuple[list[Path], list[Path]]:
    """(closed, sealed) segments below a destination's folder, oldest first."""
    return sorted(home.glob(f"dt=*/*{CLOSED}")), sorted(home.glob(f"dt=*/*{SEALED}"))


def bytes_on_disk(root: Path) -> int:
    """Bytes of all segments."""
    return sum(path.stat().st_size for path in root.glob("*/dt=*/*"))


def remove_empty_days(home: Path, keep: str) -> None:
    """Removes folders of past days that have nothing left in them; `keep` is today's."""
    for folder in home.glob("dt=*"):
        if folder.name < f"dt={keep}":
            with contextlib.suppress(OSError):  # not empty, perhaps only since this moment
                folder.rmdir()
