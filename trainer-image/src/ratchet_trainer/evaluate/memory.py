"""Answers that were given before: the champion is asked once for each suite, not in every evaluation.

Room: trainer. Touches storage below `<cycle's uri>/answers/`.

Answers are greedy or drawn with fixed seeds, so they follow from base, adapter, prompts (as tokens, hence also the chat
template), temperature, the longest answer and the libraries. What follows from the same things is looked up by their
digest; anything else is asked anew.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, ValidationError

from ratchet_trainer.artifacts import tool_versions
from ratchet_trainer.storage import Location, Store

log = logging.getLogger("ratchet")


class _Answers(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    question: str
    """Digest of what was asked of whom."""
    answers: list[list[str]]


@dataclass(frozen=True)
class Asking:
    """What determines the answers of one side to one suite."""

    base: str
    """Digest of the base model's files."""
    adapter: str
    """Digest of the adapter's; empty for the bare base."""
    prompts: Sequence[Sequence[int]]
    """Tokens of each prompt."""
    max_new_tokens: int
    """Longest answer."""
    temperature: str
    """0: the likeliest answer."""
    samples: int
    """Answers to each prompt."""
    device: str
    """Kind of processor and number format: answers near a tie differ between them."""

    @property
    def digest(self) -> str:
        """Hexadecimal digest of all of it and of the libraries' versions."""
        parts = {
            "base": self.base,
            "adapter": self.adapter,
            "prompts": [list(prompt) for prompt in self.prompts],
            "maxNewTokens": self.max_new_tokens,
            "temperature": self.temperature,
            "samples": self.samples,
            "device": self.device,
            "tools": tool_versions(),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class Memory:
    """Earlier answers of a cycle's evaluations."""

    def __init__(self, store: Store, storage_uri: str) -> None:
        self._store = store
        self._folder = Location.parse(storage_uri).child("answers")

    def recall(self, asking: Asking) -> list[list[str]] | None:
        """The answers, if they were given before. What cannot be read counts as never given."""
        location = self._folder.child(f"{asking.digest}.json")
        data = self._store.get(location)
        if data is None:
            return None
        try:
            found = _Answers.model_validate_json(data)
        except ValidationError as error:
            log.warning("%s cannot be read and is not used: %s", location.uri, error)
            return None
        as_many = {len(samples) for samples in found.answers} <= {asking.samples}
        if found.question != asking.digest or len(found.answers) != len(asking.prompts) or not as_many:
            log.warning("%s is not what its name says and is not used", location.uri)
            return None
        return found.answers

    def keep(self, asking: Asking, answers: Sequence[Sequence[str]]) -> None:
        """For later evaluations. The first writer wins; the other one had the same to say."""
        record = _Answers(question=asking.digest, answers=[list(samples) for samples in answers])
        location = self._folder.child(f"{asking.digest}.json")
        self._store.put(location, record.model_dump_json().encode(), only_if_absent=True)
