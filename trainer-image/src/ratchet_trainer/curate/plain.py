"""The usual lines of our own segments, read many times faster: whole text conversations, as the gateway writes them.

Room: trainer. Pure. What this module takes is what `records.RECORD` takes, with the same values; anything out of the
ordinary it leaves (None) to the model, which knows what it is, or what is wrong with it.
"""

import re
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt


class Turn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request's message that is text and nothing else."""

    role: Literal["system", "user", "assistant"]
    content: str


class PlainAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An answer in text, with what servers say beside it."""

    content: str
    role: Literal["assistant"] = "assistant"
    tool_calls: None = None
    function_call: None = None
    refusal: Any = None
    annotations: Any = None
    audio: Any = None
    reasoning: Any = None
    reasoning_content: Any = None


class PlainInteraction(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="interaction"):
    """records.Interaction, of text."""

    id: str
    session: str
    namespace: str
    cycle: str
    version: str
    arm: Literal["stable", "candidate", "pinned"]
    time: Annotated[datetime, msgspec.Meta(tz=True)]
    messages: list[Turn]
    status: int
    duration: float
    answer: PlainAnswer | None = None
    principal: str = ""
    parameters: dict[str, Any] = {}
    finish_reason: str = ""
    usage: dict[str, Any] | None = None
    stream: bool = False
    time_to_first_token: float | None = None


class PlainFeedback(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="feedback"):
    """records.Feedback."""

    id: str
    response_id: str
    namespace: str
    cycle: str
    version: str
    time: Annotated[datetime, msgspec.Meta(tz=True)]
    value: Literal["up", "down"]
    session: str = ""
    comment: str = ""
    correction: str = ""


class _Passed(msgspec.Struct, frozen=True, tag_field="kind", tag="interaction"):
    """An interaction that is passed by."""


_FRACTION, _SECONDS = re.compile(rb"\.\d{7}"), re.compile(rb":\d\d")
"""Perhaps a time finer than microseconds, which the model cuts off and this decoder would round."""
_DECODER = msgspec.json.Decoder(PlainInteraction | PlainFeedback)
_FEEDBACK = msgspec.json.Decoder(_Passed | PlainFeedback)


def parse(line: bytes) -> PlainInteraction | PlainFeedback | None:
    """The record of a line, or None for one that needs a closer look."""
    if line.count(b'"kind"') != 1 or _finer(line):
        return None
    try:
        record: PlainInteraction | PlainFeedback = _DECODER.decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return record


def records_of(content: bytes) -> list[PlainInteraction | PlainFeedback] | None:
    """The records of whole lines, one of each, or None when one of them needs a closer look."""
    found: list[PlainInteraction | PlainFeedback] | None = _decoded(content, _DECODER)
    return found


def feedback_of(content: bytes) -> list[PlainFeedback] | None:
    """The feedback among whole lines, or None when one of them needs a closer look."""
    found: list[_Passed | PlainFeedback] | None = _decoded(content, _FEEDBACK)
    return None if found is None else [record for record in found if isinstance(record, PlainFeedback)]


def _decoded(content: bytes, decoder: msgspec.json.Decoder[Any]) -> list[Any] | None:
    """What the lines are, when they are as many and each is what it is by itself."""
    lines = _plain_lines(content)
    if lines is None:
        return None
    try:
        found: list[Any] = decoder.decode_lines(content)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return found if len(found) == lines else None


def _plain_lines(content: bytes) -> int | None:
    """How many lines there are; None if there is something out of the ordinary. With a brace on both sides of each
    newline no value goes on behind one. Each line has one key that tells its kind, in plain letters (`\\u006b`, say, is
    none), and no time is finer than microseconds."""
    codes = np.frombuffer(b"   " + content + b"      ", dtype=np.uint8)  # so that each place has neighbours
    ends = np.flatnonzero(codes == ord("\n"))
    if not ((codes[ends - 1] == ord("}")) & (codes[ends + 1] == ord("{"))).all():
        return None
    keys = np.flatnonzero((codes[:-1] == ord('"')) & (codes[1:] == ord("k")))
    if _follow(codes, keys[keys < len(codes) - 6] + 2, b'ind"').sum() != len(ends) + 1:
        return None
    escapes = np.flatnonzero((codes[:-1] == ord("\\")) & (codes[1:] == ord("u"))) + 2
    if (_follow(codes, escapes, b"006") | _follow(codes, escapes, b"007")).any() or _finer(content):
        return None
    return len(ends) + 1


def _follow(codes: npt.NDArray[np.uint8], places: npt.NDArray[np.int64], wanted: bytes) -> npt.NDArray[np.bool_]:
    """(places,) Whether these bytes are there."""
    found = np.ones(len(places), dtype=np.bool_)
    for offset, code in enumerate(wanted):
        found &= codes[places + offset] == code
    return found


def _finer(content: bytes) -> bool:
    """Whether so fine a fraction stands behind what may be the seconds of a time."""
    found = (match.start() for match in _FRACTION.finditer(content))
    return any(_SECONDS.fullmatch(content, max(place - 3, 0), place) for place in found)
