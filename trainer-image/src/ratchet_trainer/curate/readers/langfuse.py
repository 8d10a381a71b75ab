"""Langfuse exports: observations (of type GENERATION), traces, and scores, from the API, the UI or blob storage.

Room: trainer. Pure. Source: Langfuse, "Blob storage export field reference" (snake_case) and its public API
(camelCase). A score judges an observation, or a whole trace; it is a verdict when it is the one that the source names,
or, if none is named, one whose name speaks of feedback, thumbs, helpfulness or correctness.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from ratchet_api.data import SourceFormat
from ratchet_api.records import Feedback
from ratchet_trainer.curate.readers.base import Entry, Mismatch, Owner, feedback, interaction, parse_time, principal_of

_VERDICT_NAMES = re.compile(r"feedback|thumb|helpful|correct|rating", re.I)
_UP = {"up", "thumbs_up", "thumbs-up", "like", "good", "positive", "helpful", "correct", "yes", "true", "pass"}
_DOWN = {"down", "thumbs_down", "thumbs-down", "dislike", "bad", "negative", "unhelpful", "incorrect", "no", "false",
         "fail"}  # fmt: skip
_IGNORED = ("SPAN", "EVENT")


class Langfuse:
    """One observation, trace or score an object."""

    name: SourceFormat = "langfuse"
    carries_feedback = True

    def recognises(self, value: Mapping[str, Any]) -> bool:
        keys = value.keys()
        if keys & {"trace_id", "traceId"} and keys & {"type", "value", "input", "stringValue", "string_value"}:
            return True
        return {"id", "input", "output"} <= keys and bool(
            keys & {"scores", "projectId", "project_id", "observations", "sessionId", "session_id"}
        )

    def entry(self, value: Mapping[str, Any], digest: str, owner: Owner) -> Entry | None:
        if value.get("type") in _IGNORED:
            return None
        if "input" not in value and "output" not in value and _get(value, "trace_id", "traceId"):
            return self._score(value, owner)
        messages, answer = _messages(_unpacked(value.get("input"))), _answer(_unpacked(value.get("output")))
        name = value.get("id")
        id = name if isinstance(name, str) and name else digest
        trace = _get(value, "trace_id", "traceId")
        time = parse_time(_get(value, "start_time", "startTime", "timestamp"))
        failed = value.get("level") == "ERROR"
        record = interaction(
            owner, id, messages, None if failed else answer, time,
            session=str(_get(value, "session_id", "sessionId") or trace or id),
            principal=principal_of(_get(value, "user_id", "userId")),
        )  # fmt: skip
        scores = value.get("scores")
        verdicts = _verdicts(scores, id, time, owner) if isinstance(scores, list) else ()
        aliases = (trace,) if isinstance(trace, str) and trace != id else ()
        return Entry(record, tuple(verdicts), aliases, dated=time is not None, named=id != digest)

    def _score(self, value: Mapping[str, Any], owner: Owner) -> Entry | None:
        target = _get(value, "observation_id", "observationId") or _get(value, "trace_id", "traceId")
        found = next(iter(_verdicts([value], str(target), None, owner)), None)
        return None if found is None else Entry(found)


def _get(value: Mapping[str, Any], *names: str) -> Any:
    return next((value[name] for name in names if value.get(name) is not None), None)


def _unpacked(value: object) -> Any:
    if isinstance(value, str) and value[:1] in ("{", "[", '"'):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _messages(value: object) -> Sequence[Mapping[str, Any]]:
    if isinstance(value, dict):
        value = value.get("messages", value.get("input", value.get("question", value.get("prompt"))))
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if isinstance(value, list) and value and all(isinstance(message, dict) for message in value):
        return value
    raise Mismatch


def _answer(value: object) -> dict[str, Any] | None:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, str):
        return {"role": "assistant", "content": value}
    if isinstance(value, dict):
        inner = value.get("message")
        if isinstance(inner, dict):
            return inner
        for name in ("content", "output", "answer", "text"):
            if isinstance(value.get(name), str):
                return {**value, "role": "assistant", "content": value[name]}
        return value
    return None


def _verdicts(scores: Iterable[object], target: str, time: datetime | None, owner: Owner) -> list[Feedback]:
    found = []
    for index, score in enumerate(scores):
        if not isinstance(score, Mapping):
            raise Mismatch
        name = score.get("name")
        if not isinstance(name, str) or not (name == owner.score if owner.score else _VERDICT_NAMES.search(name)):
            continue
        value = _verdict(score)
        if value is not None:
            said = parse_time(_get(score, "timestamp", "created_at", "createdAt")) or time
            comment = score.get("comment")
            found.append(
                feedback(
                    owner, str(score.get("id") or f"{target}/{index}"), target, said, value,
                    comment=comment if isinstance(comment, str) else "",
                )
            )  # fmt: skip
    return found


def _verdict(score: Mapping[str, Any]) -> Literal["up", "down"] | None:
    """A score between -1 and 1 as a verdict: 0.5 and more is up. Of another scale nobody knows what is good."""
    text = _get(score, "string_value", "stringValue")
    value = score.get("value")
    if isinstance(text, str) and text.casefold() in _UP | _DOWN:
        return "up" if text.casefold() in _UP else "down"
    if isinstance(value, str) and value.casefold() in _UP | _DOWN:
        return "up" if value.casefold() in _UP else "down"
    if isinstance(value, bool):
        return "up" if value else "down"
    if isinstance(value, int | float) and -1 <= value <= 1:
        return "up" if value >= 0.5 else "down"
    return None
