"""What the rules that look at one interaction at a time leave of some files; and of several workers' shards as one.

Room: trainer. Touches the folders that it is given. A shard's part is a folder of columns (.npy, .npz), of records
(msgpack) and of numbers (JSON): it means the same in any process, and nothing in it is code.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from ratchet_trainer.curate.columns import Hashes, Seen
from ratchet_trainer.curate.examples import Example
from ratchet_trainer.curate.figures import Timeline
from ratchet_trainer.curate.funnel import Step
from ratchet_trainer.curate.pipeline import Counts, SessionFile, Settings, Told, examples_of
from ratchet_trainer.curate.pool import Pool
from ratchet_trainer.curate.read import Quarantine
from ratchet_trainer.curate.rejected import Rejected
from ratchet_trainer.curate.rules import SensitiveCounts, pooled
from ratchet_trainer.curate.text import HeldOut
from ratchet_trainer.curate.verdicts import Verdicts

IDS, SUMMARY, GOOD, REJECTED = "ids.npy", "summary.json", "good", "rejected"


@dataclass(frozen=True)
class Mapped:
    """Examples that are bounded, clean and uncontaminated, before they are compared with each other."""

    counts: Counts
    sensitive: SensitiveCounts
    pool: Pool

    def save(self, folder: Path, ids: Hashes) -> None:
        """As the part of a shard, into a folder; `ids` are the digests of its interactions' ids, sorted."""
        folder.mkdir(parents=True, exist_ok=True)
        counts, rejected = self.counts, self.counts.rejected
        self.pool.save(folder / GOOD)
        if rejected is not None:
            assert rejected.pool is not None, "each was looked at"
            rejected.pool.save(folder / REJECTED)
        summary = _Summary(
            counts.files, counts.formats, counts.quarantine, counts.interactions, counts.judged, counts.funnel.steps,
            counts.timeline, self.sensitive, [] if rejected is None else rejected.funnel.steps,
            SensitiveCounts() if rejected is None else rejected.sensitive,
        )  # fmt: skip
        (folder / SUMMARY).write_bytes(_SUMMARY.dump_json(summary))
        np.save(folder / IDS, ids)

    def absorb(self, folder: Path) -> None:
        """Takes a part, whose files are behind those that are here."""
        summary, counts, rejected = (
            _SUMMARY.validate_json((folder / SUMMARY).read_bytes()),
            self.counts,
            self.counts.rejected,
        )
        self.pool.absorb(folder / GOOD)
        counts.files += summary.files
        counts.formats = dict(Counter(counts.formats) + Counter(summary.formats))
        counts.quarantine.absorb(summary.quarantine)
        counts.interactions += summary.interactions
        counts.judged += summary.judged
        counts.funnel.absorb(summary.funnel)
        counts.timeline.absorb(summary.timeline)
        self.sensitive.absorb(summary.sensitive)
        if rejected is not None:
            assert rejected.pool is not None, "made to be filled"
            rejected.pool.absorb(folder / REJECTED)
            rejected.funnel.absorb(summary.rejected)
            rejected.sensitive.absorb(summary.rejected_sensitive)


@dataclass(frozen=True)
class _Summary:
    """The numbers of a part."""

    files: int
    formats: dict[str, int]
    quarantine: Quarantine
    interactions: int
    judged: int
    funnel: list[Step]
    timeline: Timeline
    sensitive: SensitiveCounts
    rejected: list[Step] = field(default_factory=list)
    rejected_sensitive: SensitiveCounts = field(default_factory=SensitiveCounts)


_SUMMARY = TypeAdapter(_Summary)


def mapped(settings: Settings, examples: Iterable[Example], counts: Counts, held_out: HeldOut) -> Mapped:
    """The rest of the rules that look at one at a time."""
    sensitive = SensitiveCounts()
    pool = pooled(examples, held_out, settings.curation, counts.funnel, sensitive)
    if counts.rejected is not None:
        counts.rejected.look_at_each(held_out, settings.curation)
    return Mapped(counts, sensitive, pool)


def map_shard(
    settings: Settings, files: Sequence[SessionFile], verdicts: Verdicts, held_out: HeldOut, told: Told, folder: Path,
    before: Hashes | None = None,
) -> None:  # fmt: skip
    """A shard's part into a folder; `before` are the digests of ids that came in earlier shards."""
    counts, seen = Counts(), Seen(before)
    examples = examples_of(settings, files, told, counts, verdicts, seen)
    mapped(settings, examples, counts, held_out).save(folder, seen.all)


def joined(settings: Settings, parts: Iterable[Path], again: Callable[[int, Hashes], Path]) -> Mapped:
    """The parts of all shards, in their order, as if one worker had read all files.

    Of interactions with one id the first counts. A worker does not know the ids of earlier shards, so a part that
    repeats one is made `again` (shard, ids before it).
    """
    counts, near = Counts(), settings.curation.near_duplicates is not None
    if settings.method != "sft":
        counts.rejected = Rejected(settings.method, pool=Pool(near))
    whole, before = Mapped(counts, SensitiveCounts(), Pool(near)), np.zeros(0, dtype=np.uint64)
    for shard, folder in enumerate(parts):
        ids: Hashes = np.load(folder / IDS)
        if len(np.intersect1d(before, ids, assume_unique=True)):
            folder = again(shard, before)
            ids = np.load(folder / IDS)
        whole.absorb(folder)
        before = np.union1d(before, ids)
    return whole
