"""Which answer was whose: what feedback needs to find the version that it judges.

Room: gateway. `AnswerIndex` appends to two files in the spool folder; the rest is pure.

An answer's id carries a tag of its version, so that any gateway can tell the version of any answer, also after a
restart and for answers of another replica. What the tag cannot tell (the session, and whether a verdict was counted)
is remembered for the latest answers in two generations: when the younger one is full, the older one is forgotten.
The files are written without a flush: they survive the process, and losing their end in a power cut costs a session
name and at worst counts a verdict twice.
"""

import hashlib
import logging
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import orjson

log = logging.getLogger(__name__)
PREFIX = "chatcmpl-"
_ID = re.compile(r"chatcmpl-[0-9a-f]{24}([0-9a-f]{8})")
VersionKey = tuple[str, str, str]
"""(namespace, cycle, version)."""


def version_tag(key: VersionKey) -> str:
    """Eight hexadecimal digits for a version."""
    return hashlib.blake2b("/".join(key).encode(), digest_size=4).hexdigest()


def new_id(tag: str) -> str:
    """`chatcmpl-`, 24 random hexadecimal digits, and the version's tag."""
    return f"{PREFIX}{secrets.token_hex(12)}{tag}"


def tag_of(answer_id: str) -> str | None:
    """The version's tag in an id of ours; None for any other id."""
    match = _ID.fullmatch(answer_id)
    return None if match is None else match[1]


@dataclass(slots=True)
class Remembered:
    """One answer."""

    key: VersionKey
    session: str
    judged: bool = False
    """Whether a verdict on it was counted."""


class AnswerIndex:
    """The latest answers by id. Used from the event loop's thread: its writes go to the page cache."""

    def __init__(self, folder: Path, capacity: int) -> None:
        """Reads what an earlier process left. Raises OSError when the folder cannot be used."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._half = max(1, capacity // 2)
        self._old = _read(self._path(1))
        self._young = _read(self._path(0))
        self._file: BinaryIO | None = _continued(self._path(0))
        self._tags: dict[VersionKey, str] = {}
        self._keys: dict[str, VersionKey] = {}
        for answer in (*self._old.values(), *self._young.values()):
            self.know(answer.key)

    def _path(self, generation: int) -> Path:
        return self._folder / f"{generation}.jsonl"

    def know(self, key: VersionKey) -> str:
        """Remember that the version exists; gives its tag."""
        tag = self._tags.get(key)
        if tag is None:
            tag = self._tags[key] = version_tag(key)
            self._keys[tag] = key
        return tag

    def version_of(self, answer_id: str) -> VersionKey | None:
        """The version that an id's tag stands for, if this gateway has heard of it."""
        tag = tag_of(answer_id)
        return None if tag is None else self._keys.get(tag)

    def add(self, answer_id: str, key: VersionKey, session: str) -> Remembered:
        """Remember an answer."""
        if len(self._young) >= self._half:
            self._turn()
        self.know(key)
        answer = self._young[answer_id] = Remembered(key, session)
        self._write({"id": answer_id, "key": key, "session": session})
        return answer

    def find(self, answer_id: str) -> Remembered | None:
        """An answer that is still remembered."""
        return self._young.get(answer_id) or self._old.get(answer_id)

    def judge(self, answer_id: str, answer: Remembered) -> bool:
        """Note a verdict; says whether it is the answer's first."""
        if answer.judged:
            return False
        answer.judged = True
        if answer_id not in self._young:
            self._young[answer_id] = answer
        self._write({"id": answer_id, "key": answer.key, "session": answer.session, "judged": True})
        return True

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _write(self, entry: dict[str, object]) -> None:
        if self._file is None:
            return
        try:
            self._file.write(orjson.dumps(entry) + b"\n")
            self._file.flush()
        except OSError as error:
            log.error("the index of answers cannot be written and ends with this process: %s", error)
            self._file = None

    def _turn(self) -> None:
        self._old, self._young = self._young, {}
        try:
            if self._file is not None:
                self._file.close()
            self._path(0).replace(self._path(1))
            self._file = self._path(0).open("wb")
        except OSError as error:
            log.error("the index of answers cannot be turned and ends with this process: %s", error)
            self._file = None


def _continued(path: Path) -> BinaryIO:
    """The file to append to, with an end put to a line that a killed process left without one."""
    torn = path.exists() and not path.read_bytes().endswith(b"\n")
    file = path.open("ab")
    file.write(b"\n" if torn else b"")
    return file


def _read(path: Path) -> dict[str, Remembered]:
    answers: dict[str, Remembered] = {}
    if not path.exists():
        return answers
    for line in path.read_bytes().splitlines():
        try:
            entry = orjson.loads(line)
            namespace, cycle, version = entry["key"]
            answers[entry["id"]] = Remembered((namespace, cycle, version), entry["session"], bool(entry.get("judged")))
        except (orjson.JSONDecodeError, KeyError, ValueError, TypeError):
            continue  # the last line of a process that was killed
    return answers
