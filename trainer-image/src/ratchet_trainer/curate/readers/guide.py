"""`interactions.jsonl`: {"timestamp", "user", "assistant", "metadata": {"success"}}.

Room: trainer. Pure. `metadata` may also carry `correction`, `session`, `principal` and `id`.
"""

from collections.abc import Mapping
from typing import Any

from ratchet_api.data import SourceFormat
from ratchet_trainer.curate.readers.base import Entry, Mismatch, Owner, feedback, interaction, parse_time, principal_of


class Interactions:
    """One exchange a line."""

    name: SourceFormat = "interactions"
    carries_feedback = False

    def recognises(self, value: Mapping[str, Any]) -> bool:
        return "user" in value and "assistant" in value

    def entry(self, value: Mapping[str, Any], digest: str, owner: Owner) -> Entry:
        user, assistant = value.get("user"), value.get("assistant")
        metadata = value.get("metadata") or {}
        if not isinstance(user, str) or not isinstance(assistant, str) or not isinstance(metadata, dict):
            raise Mismatch
        name = metadata.get("id")
        id = name if isinstance(name, str) and name else digest
        time = parse_time(value.get("timestamp"))
        record = interaction(
            owner, id, [{"role": "user", "content": user}], {"role": "assistant", "content": assistant}, time,
            session=str(metadata.get("session") or metadata.get("session_id") or id),
            principal=principal_of(metadata.get("principal") or metadata.get("user_id")),
        )  # fmt: skip
        success, correction = metadata.get("success"), metadata.get("correction") or ""
        if not isinstance(success, bool | None) or not isinstance(correction, str):
            raise Mismatch
        if success is None and not correction:
            return Entry(record, dated=time is not None, named=id != digest)
        verdict = feedback(owner, f"{id}/success", id, time, "up" if success else "down", correction=correction)
        return Entry(record, (verdict,), dated=time is not None, named=id != digest)
