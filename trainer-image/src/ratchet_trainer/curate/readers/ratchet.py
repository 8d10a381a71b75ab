"""Our own records, as they lie in another cycle's or another cluster's `sessions/`.

Room: trainer. Pure. As a source they are taken for this cycle's own, whatever cycle they name: a person said so.
"""

from collections.abc import Mapping
from typing import Any

from ratchet_api.data import SourceFormat
from ratchet_api.records import RECORD
from ratchet_trainer.curate.readers.base import Entry, Owner


class Ratchet:
    """One interaction or one piece of feedback a line."""

    name: SourceFormat = "ratchet"
    carries_feedback = True

    def recognises(self, value: Mapping[str, Any]) -> bool:
        return value.get("kind") in ("interaction", "feedback")

    def entry(self, value: Mapping[str, Any], digest: str, owner: Owner) -> Entry:
        return Entry(RECORD.validate_python(dict(value) | {"namespace": owner.namespace, "cycle": owner.cycle}))
