"""Answers that people did not want: collected beside the examples, and brought through the same rules.

Room: trainer. Pure but for the files of large sets. Only for the methods that learn from them. Of each interaction the
funnel of the rejected says what became of its answer, as the other funnel says of the example.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ratchet_api.data import Curation
from ratchet_api.records import Interaction
from ratchet_api.training import Method
from ratchet_trainer.curate.examples import Example, Verdict, example_of
from ratchet_trainer.curate.funnel import Funnel
from ratchet_trainer.curate.plain import PlainInteraction
from ratchet_trainer.curate.pool import Keyed, Pool
from ratchet_trainer.curate.readers import Entry
from ratchet_trainer.curate.rules import (
    SensitiveCounts,
    beyond,
    distinct,
    pooled,
    shared_out,
    unlike,
    unpushed,
)
from ratchet_trainer.curate.spill import Examples, ExampleStore
from ratchet_trainer.curate.text import HeldOut

REJECTED_RULES: Mapping[str, str] = {
    "judged": "answers that a person did not want: corrected (dpo), or with a thumb down (kto)",
    "answered": "a whole answer in text to a person's turn",
    "limits": "turns, length and repetition within bounds",
    "sensitive": "personal data and secrets redacted, or the answer dropped",
    "heldOut": "nothing that the evaluation asks, whole or in part",
    "contradicted": "no answer that is also among the good ones to the same conversation",
    "duplicate": "each conversation and answer once, in normal form",
    "nearDuplicate": "nothing that says nearly what another of them says",
    "bursts": "no phrase that one person pushes, or several together",
    "caps": "no more than asked for of a category and of a person",
    "paired": "answers whose correction is among the good ones, on the same side of the split (dpo)",
}
"""Every rule in its order, and what is left after it."""


@dataclass
class Rejected:
    """What a run collects of them."""

    method: Method
    funnel: Funnel = field(default_factory=lambda: Funnel(REJECTED_RULES))
    sensitive: SensitiveCounts = field(default_factory=SensitiveCounts)
    _store: ExampleStore = field(default_factory=ExampleStore)
    pool: Pool | None = None
    """Those that the rules that look at one at a time have left."""

    def look(
        self, entry: Entry, interaction: Interaction | PlainInteraction, verdict: Verdict | None, curation: Curation,
        categorise: Callable[[str], str],
    ) -> None:  # fmt: skip
        """Takes the interaction's answer, or counts why not. Whoever is on the erasure list never comes here."""
        reason = self._unfit(verdict)
        if reason is not None:
            self.funnel["judged"].drop(reason)
            return
        assert verdict is not None
        self.funnel["judged"].keep()
        found = example_of(entry, interaction, verdict._replace(correction=""), categorise)
        if not isinstance(found, Example):
            self.funnel["answered"].drop(found)
            return
        self.funnel["answered"].keep()
        # Nobody learns to say it, so it counts towards no share of the model's own answers.
        rejected = found._replace(origin="rejected", own=False, demonstrated=False)
        bound = beyond(rejected, curation.limits)
        if bound is not None:
            self.funnel["limits"].drop(bound, rejected.text)
            return
        self.funnel["limits"].keep()
        self._store.append(rejected)

    def _unfit(self, verdict: Verdict | None) -> str | None:
        if verdict is None:
            return "unjudged"
        if self.method == "dpo":
            return None if verdict.correction else "uncorrected"
        return None if verdict.value == "down" else "liked"

    def look_at_each(self, held_out: HeldOut, curation: Curation) -> Pool:
        """The rules that look at one at a time; afterwards nothing more is taken."""
        all_of = Examples(self._store, np.arange(len(self._store)))
        self.pool = pooled(all_of, held_out, curation, self.funnel, self.sensitive)
        self._store = ExampleStore()
        return self.pool

    def selected(self, good: Sequence[Example], curation: Curation, anchors: Sequence[str]) -> Examples:
        """What the rules leave of them, by time, then id; `good` are the examples that they leave of the others."""
        pool = self.pool
        assert pool is not None, "each was looked at"
        kept = self._uncontradicted(pool, good)
        kept = distinct(pool, kept, self.funnel["duplicate"])
        kept = unlike(pool, kept, curation, self.funnel["nearDuplicate"])
        kept = unpushed(pool, kept, curation, anchors, self.funnel["bursts"])
        return shared_out(pool, kept, curation, self.funnel["caps"])

    def _uncontradicted(self, pool: Pool, good: Sequence[Example]) -> Examples:
        liked = set(zip(*keys(good), strict=True))
        step, examples = self.funnel["contradicted"], pool.sorted()
        places = examples.indices
        said = zip(pool.conversations[places].tolist(), pool.answers[places].tolist(), strict=True)
        agrees = np.array([one not in liked for one in said], dtype=np.bool_)
        for example in examples.where(~agrees):
            step.drop("contradicted", example.text)
        step.keep(count=int(agrees.sum()))
        return examples.where(agrees)


def keys(examples: Sequence[Example]) -> tuple[list[int], list[int]]:
    """Digests of the conversations and of the answers, in normal form."""
    pool = Pool(bands=False)
    for example in examples:
        pool.add([Keyed.of(example)])
    return pool.conversations.tolist(), pool.answers.tolist()
