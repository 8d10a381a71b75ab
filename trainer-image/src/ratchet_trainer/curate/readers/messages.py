"""OpenAI's fine-tuning format: {"messages": [{"role", "content"}], "tools": [...]}.

Room: trainer. Pure. Rows with tool calls are read whole, and left out later by name (`unsupported`).
"""

from collections.abc import Mapping
from typing import Any

from ratchet_api.data import SourceFormat
from ratchet_trainer.curate.readers.base import Entry, Mismatch, Owner
from ratchet_trainer.curate.readers.rows import demonstration


class Messages:
    """One conversation a line."""

    name: SourceFormat = "messages"
    carries_feedback = False

    def recognises(self, value: Mapping[str, Any]) -> bool:
        return isinstance(value.get("messages"), list)

    def entry(self, value: Mapping[str, Any], digest: str, owner: Owner) -> Entry:
        messages = value.get("messages")
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            raise Mismatch
        return demonstration(owner, digest, messages)
