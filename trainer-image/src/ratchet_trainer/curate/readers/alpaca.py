"""Alpaca: {"instruction", "input", "output", "system", "history": [[question, answer], ...]}.

Room: trainer. Pure. Source: LLaMA-Factory, data/README.md ("Alpaca Format").
"""

from collections.abc import Mapping
from typing import Any

from ratchet_api.data import SourceFormat
from ratchet_trainer.curate.readers.base import Entry, Mismatch, Owner, text_of
from ratchet_trainer.curate.readers.rows import demonstration


class Alpaca:
    """One instruction and its answer an element."""

    name: SourceFormat = "alpaca"
    carries_feedback = False

    def recognises(self, value: Mapping[str, Any]) -> bool:
        return "instruction" in value and "output" in value

    def entry(self, value: Mapping[str, Any], digest: str, owner: Owner) -> Entry:
        turns = []
        if system := value.get("system"):
            turns.append({"role": "system", "content": text_of(system)})
        history = value.get("history") or []
        if not isinstance(history, list):
            raise Mismatch
        for pair in history:
            if not isinstance(pair, list) or len(pair) != 2:
                raise Mismatch
            turns += [
                {"role": "user", "content": text_of(pair[0])}, {"role": "assistant", "content": text_of(pair[1])},
            ]  # fmt: skip
        parts = [text_of(value.get("instruction")), text_of(value.get("input") or "")]
        turns += [
            {"role": "user", "content": "\n".join(part for part in parts if part)},
            {"role": "assistant", "content": text_of(value.get("output"))},
        ]
        return demonstration(owner, digest, turns)
