"""Conversations of the training formats as one record: their last assistant turn is the answer.

Room: trainer. Pure. Used by the readers of messages, ShareGPT and Alpaca.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ratchet_trainer.curate.readers.base import Entry, Mismatch, Owner, interaction


def demonstration(owner: Owner, digest: str, turns: Sequence[Mapping[str, Any]]) -> Entry:
    """A row that somebody wrote or chose to be learnt from. Raises Mismatch when no turn of the assistant answers one
    of a person."""
    turns = list(turns)
    while turns and turns[-1].get("role") != "assistant":
        turns.pop()  # an open question at the end teaches nothing
    if not any(turn.get("role") == "user" for turn in turns):
        raise Mismatch
    leading = next(i for i, turn in enumerate(turns) if turn.get("role") == "user")
    kept = [turn for i, turn in enumerate(turns) if i > leading or turn.get("role") != "assistant"]
    record = interaction(owner, digest, kept[:-1], kept[-1], None)
    return Entry(record, dated=False, named=False, demonstration=True)
