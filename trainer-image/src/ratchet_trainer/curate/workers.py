"""Files shared out to several workers, and what these make of them as if one had read all.

Room: trainer. Touches the files and folders that it is given; what a worker is, is its caller's. Shards are runs of the
files in their order, of about the same size, so that the parts, one after the other, are in the order of the files,
too.
"""

from collections.abc import Sequence
from concurrent.futures import Executor, Future, as_completed
from itertools import pairwise
from pathlib import Path

from ratchet_trainer.curate.columns import Hashes
from ratchet_trainer.curate.languages import check_languages
from ratchet_trainer.curate.mapped import Mapped, joined, map_shard
from ratchet_trainer.curate.pipeline import SessionFile, Settings, Told, in_order, verdicts_of
from ratchet_trainer.curate.text import HeldOut
from ratchet_trainer.curate.verdicts import Verdicts


def shards(sizes: Sequence[int], count: int) -> list[range]:
    """Which files, by their places, are each shard's; `sizes` in bytes. A shard may be empty."""
    total, done, edges = sum(sizes) or 1, 0, [0]
    for place, size in enumerate(sizes):
        # A file goes where its middle lies.
        while len(edges) <= (2 * done + size) * count // (2 * total):
            edges.append(place)
        done += size
    edges += [len(sizes)] * (count + 1 - len(edges))
    return [range(*pair) for pair in pairwise(edges)]


def save_verdicts(settings: Settings, files: Sequence[SessionFile], folder: Path) -> None:
    """What people said in a shard, into a folder."""
    folder.mkdir(parents=True)
    verdicts_of(settings, files).save(folder)


def all_verdicts(folders: Sequence[Path]) -> Verdicts:
    """Of all shards."""
    verdicts = Verdicts()
    for folder in folders:
        verdicts.absorb(folder)
    return verdicts


def map_by_workers(
    settings: Settings, files: Sequence[SessionFile], cases: Sequence[str], pool: Executor, workers: int, told: Told,
    scratch: Path,
) -> Mapped:  # fmt: skip
    """The work of so many workers of a pool; `cases` are the held-out texts. Raises what a worker raises."""
    check_languages(settings.curation.limits.languages)
    files = in_order(files)
    mine = [[files[at] for at in shard] for shard in shards([file.path.stat().st_size for file in files], workers)]
    said = [scratch / "said" / str(shard) for shard in range(workers)]
    parts = [scratch / "parts" / str(shard) for shard in range(workers)]
    for done in [pool.submit(save_verdicts, settings, *one) for one in zip(mine, said, strict=True)]:
        done.result()
    work = {pool.submit(_map, settings, mine[at], said, cases, parts[at]): len(mine[at]) for at in range(workers)}
    _follow(work, told)

    def again(shard: int, before: Hashes) -> Path:
        folder = scratch / "again" / str(shard)
        _map(settings, mine[shard], said, cases, folder, before)
        return folder

    return joined(settings, parts, again)


def _follow(work: dict[Future[None], int], told: Told) -> None:
    ready, files = 0, sum(work.values())
    for done in as_completed(work):
        done.result()
        ready += work[done]
        told(ready, files)


def _map(
    settings: Settings, files: Sequence[SessionFile], said: Sequence[Path], cases: Sequence[str], folder: Path,
    before: Hashes | None = None,
) -> None:  # fmt: skip
    held_out = HeldOut(cases, settings.curation.decontamination)
    map_shard(settings, files, all_verdicts(said), held_out, lambda done, files: None, folder, before)
