"""The usual lines of our own segments, read many times faster: whole text conversations, as the gateway writes them.

Room: trainer. Pure. What this module takes is what `records.RECORD` takes, with the same values; anything out of the
ordinary it leaves (None) to the model, which knows what it is, or what is wrong with it.
"""

import re
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec


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


_FINER = re.compile(rb"\.\d{7}")
"""Perhaps a time finer than microseconds, which the model cuts off and this decoder would round."""
_DECODER = msgspec.json.Decoder(PlainInteraction | PlainFeedback)


def parse(line: bytes) -> PlainInteraction | PlainFeedback | None:
    """The record of a line, or None for one that needs a closer look."""
    if line.count(b'"kind"') != 1 or _FINER.search(line):
        return None
    try:
        record: PlainInteraction | PlainFeedback = _DECODER.decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return record
