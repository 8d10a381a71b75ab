"""LiteLLM's log objects in S3: a StandardLoggingPayload, one object a file (or a line).

Room: trainer. Pure. Source: LiteLLM, "StandardLoggingPayload Specification". It carries no feedback: that comes as
records of our own, or under another source, and names the response's id.
"""

import json
from collections.abc import Mapping
from typing import Any

from ratchet_api.data import SourceFormat
from ratchet_trainer.curate.readers.base import Entry, Mismatch, Owner, interaction, parse_time, principal_of


class LiteLLM:
    """One request and its answer."""

    name: SourceFormat = "litellm"
    carries_feedback = False

    def recognises(self, value: Mapping[str, Any]) -> bool:
        return "call_type" in value and "messages" in value and ("startTime" in value or "response" in value)

    def entry(self, value: Mapping[str, Any], digest: str, owner: Owner) -> Entry:
        messages, response = _unpacked(value.get("messages")), _unpacked(value.get("response"))
        if isinstance(messages, dict):
            messages = messages.get("messages")
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            raise Mismatch
        name = value.get("id")
        id = name if isinstance(name, str) and name else digest
        answer, finish = _answer(response)
        metadata = value.get("metadata")
        metadata = metadata if isinstance(metadata, dict) else {}
        person = value.get("end_user") or metadata.get("user_api_key_end_user_id") or metadata.get("user_api_key_hash")
        time = parse_time(value.get("startTime"))
        failed = value.get("status") == "failure" or answer is None
        record = interaction(
            owner, id, messages, None if failed else answer, time, finish_reason=finish,
            session=str(value.get("trace_id") or id), principal=principal_of(person),
        )  # fmt: skip
        answered = response.get("id") if isinstance(response, dict) else None
        aliases = (answered,) if isinstance(answered, str) and answered != id else ()
        return Entry(record, aliases=aliases, dated=time is not None, named=id != digest)


def _unpacked(value: object) -> Any:
    """A value that some writers put in as a string of JSON."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _answer(response: object) -> tuple[dict[str, Any] | None, str]:
    if isinstance(response, str):
        return ({"role": "assistant", "content": response}, "stop") if response else (None, "")
    choices = response.get("choices") if isinstance(response, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return None, ""
    message, finish = choices[0].get("message"), choices[0].get("finish_reason")
    return (message if isinstance(message, dict) else None), (finish if isinstance(finish, str) else "")
