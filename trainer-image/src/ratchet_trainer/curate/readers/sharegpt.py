"""ShareGPT: {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", ...}], "system": "..."}.

Room: trainer. Pure. Source: LLaMA-Factory, data/README.md ("Sharegpt Format").
"""

from collections.abc import Mapping
from typing import Any

from ratchet_api.data import SourceFormat
from ratchet_trainer.curate.readers.base import Entry, Mismatch, Owner, text_of
from ratchet_trainer.curate.readers.rows import demonstration

_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "bing": "assistant", "bard": "assistant", "model": "assistant", "system": "system",
    "function_call": "function_call", "observation": "tool", "tool": "tool",
}  # fmt: skip


class ShareGPT:
    """One conversation an element."""

    name: SourceFormat = "sharegpt"
    carries_feedback = False

    def recognises(self, value: Mapping[str, Any]) -> bool:
        return isinstance(value.get("conversations"), list)

    def entry(self, value: Mapping[str, Any], digest: str, owner: Owner) -> Entry:
        conversations = value.get("conversations")
        if not isinstance(conversations, list):
            raise Mismatch
        turns = [_turn(turn) for turn in conversations]
        if system := value.get("system"):
            turns.insert(0, {"role": "system", "content": text_of(system)})
        return demonstration(owner, digest, turns)


def _turn(turn: object) -> dict[str, str]:
    if not isinstance(turn, dict):
        raise Mismatch
    role = turn.get("from", turn.get("role"))
    if not isinstance(role, str) or role not in _ROLES:
        raise Mismatch
    return {"role": _ROLES[role], "content": text_of(turn.get("value", turn.get("content")))}
