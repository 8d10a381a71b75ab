"""What every reader gives: one canonical record a line, whatever the format.

Room: trainer. Pure.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Literal, NamedTuple, Protocol

from pydantic import ValidationError
from pydantic_core import from_json

from ratchet_api.data import SourceFormat
from ratchet_api.records import Feedback, Interaction
from ratchet_trainer.curate.plain import PlainFeedback, PlainInteraction
from ratchet_trainer.curate.read import Line, LineProblem

UNDATED = datetime(1970, 1, 1, tzinfo=UTC)
"""Time of a record whose format carries none: older than all others, so that a cap keeps the dated ones."""
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_BOM = b"\xef\xbb\xbf"


class Entry(NamedTuple):
    """One record, and what its line says beyond it."""

    record: Interaction | Feedback | PlainInteraction | PlainFeedback
    verdicts: tuple[Feedback, ...] = ()
    """Verdicts on the interaction that stand in the same line."""
    aliases: tuple[str, ...] = ()
    """Other ids under which feedback may name the interaction (a trace's)."""
    dated: bool = True
    """Whether the line carries a time; what has none is in every window."""
    named: bool = True
    """Whether the line carries an id. One made of its content cannot tell a repeated upload from a duplicate."""
    demonstration: bool = False
    """A training format's row: written to be learnt from, all its assistant turns included."""


@dataclass(frozen=True)
class Owner:
    """Whose cycle the records of a source are taken for."""

    namespace: str
    cycle: str
    score: str = ""
    """Name of the score that is a verdict; empty for the usual ones."""


class Mismatch(Exception):
    """A line is not of the format that its file has."""


class Reader(Protocol):
    """One format."""

    name: SourceFormat
    carries_feedback: bool
    """Whether verdicts come as objects of their own, so that the first pass has to look for them."""

    def recognises(self, value: Mapping[str, Any]) -> bool:
        """Whether an object is one of this format's."""
        ...

    def entry(self, value: Mapping[str, Any], digest: str, owner: Owner) -> Entry | None:
        """The record of an object, `digest` being that of its bytes; None when it is nothing to learn from (a span, a
        score that is no verdict). Raises Mismatch or ValidationError."""
        ...


class _DuplicateKeys(Exception):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _DuplicateKeys
    return found


def decode(line: Line) -> Mapping[str, Any] | LineProblem:
    """A line's JSON object, or why there is none."""
    if not isinstance(line.content, bytes):
        return line.content
    content = line.content.removeprefix(_BOM)
    try:
        value = json.loads(content, object_pairs_hook=_unique)
        if _SURROGATE.search(content):
            from_json(content)  # refuses a half of a surrogate pair, which no file can hold as UTF-8
    except _DuplicateKeys:
        return "duplicateKeys"
    except (ValueError, RecursionError):
        return "malformed" if line.ended else "truncated"
    return value if isinstance(value, dict) else "schema"


def content_digest(line: Line) -> str:
    """Id for a line that has none: of its bytes, so that neither order nor file name matters."""
    assert isinstance(line.content, bytes)
    return hashlib.sha256(line.content).hexdigest()[:24]


def parse_time(value: object) -> datetime | None:
    """ISO 8601 (a space or a T, with or without zone: UTC is meant) or seconds or milliseconds since 1970.

    Raises Mismatch for anything that is there but no time.
    """
    if value is None or value == "":
        return None
    try:
        if isinstance(value, bool):
            raise ValueError
        if isinstance(value, int | float | Decimal):
            seconds = float(value)
            return datetime.fromtimestamp(seconds / 1000 if abs(seconds) > 1e11 else seconds, UTC)
        if isinstance(value, str):
            found = datetime.fromisoformat(value)
            return (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        pass
    raise Mismatch


def principal_of(value: object) -> str:
    """Hash of a person's name in a log, as the gateway records it; empty for nobody."""
    return hashlib.sha256(str(value).encode()).hexdigest() if value else ""


def text_of(value: object) -> str:
    """A string. Raises Mismatch."""
    if not isinstance(value, str):
        raise Mismatch
    return value


def interaction(
    owner: Owner, id: str, messages: Sequence[Mapping[str, Any]], answer: Mapping[str, Any] | None,
    time: datetime | None, **more: Any,
) -> Interaction:  # fmt: skip
    """A record of an imported interaction; no version of ours answered it. Raises ValidationError."""
    fields: dict[str, Any] = {
        "id": id, "session": id, "namespace": owner.namespace, "cycle": owner.cycle, "version": "", "arm": "pinned",
        "time": time or UNDATED, "messages": list(messages), "answer": answer, "finish_reason": "stop",
        "status": 200 if answer is not None else 500, "duration": 0.0,
    }  # fmt: skip
    return Interaction.model_validate(fields | more)


def feedback(
    owner: Owner, id: str, response_id: str, time: datetime | None, value: Literal["up", "down"], **more: str
) -> Feedback:
    """A record of an imported verdict. Raises ValidationError."""
    return Feedback(
        id=id, response_id=response_id, namespace=owner.namespace, cycle=owner.cycle, version="",
        time=time or UNDATED, value=value, **more,
    )  # fmt: skip


def read_entry(reader: Reader, value: Mapping[str, Any], digest: str, owner: Owner) -> Entry | LineProblem | None:
    """The record of an object, `schema` when it is none, None when there is nothing in it to learn from."""
    try:
        return reader.entry(value, digest, owner)
    except (Mismatch, ValidationError):
        return "schema"
