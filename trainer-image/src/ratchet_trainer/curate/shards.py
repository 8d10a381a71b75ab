"""The curate stage by several workers: the pods of an Indexed Job, which meet in storage only.

Room: trainer. Touches storage and the scratch folder. What the sessions are is pinned once for an attempt; from then on
each worker, whenever it comes, does what is not there yet:

    said-<shard>      what people said in the shard's files. A worker needs that of all shards, for feedback comes late
                      and elsewhere; what another worker has not brought yet it makes itself rather than wait for it
    map-<shard>       what the rules that look at one interaction at a time leave of its own shard
    closing-<attempt> which worker puts the shards together: the first that found all of them there

Who makes the last `map` finds all of them there, so there is always one; its report is the stage's, and the others'
are partial. No worker waits for another one, so it does not matter how many of them run at the same time, and in which
order. Parts are known by all that they are made from: the next attempt finds those that are finished.
"""

import hashlib
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from ratchet_api.artifacts import Manifest
from ratchet_api.reasons import Reason
from ratchet_api.stage import CurateInput, StageReport
from ratchet_trainer.artifacts import file_entry
from ratchet_trainer.curate.columns import Hashes
from ratchet_trainer.curate.mapped import joined, map_shard
from ratchet_trainer.curate.pipeline import SessionFile, Told
from ratchet_trainer.curate.readers import suffix_of
from ratchet_trainer.curate.stage import (
    DOWNLOADS,
    RUNS,
    Fetched,
    Given,
    concluded,
    given,
    name_of,
    recipe_of,
    remembered,
    session_objects,
    source_objects,
)
from ratchet_trainer.curate.workers import all_verdicts, save_verdicts, shards
from ratchet_trainer.errors import DataError, TryAgain
from ratchet_trainer.metrics import Progress
from ratchet_trainer.storage import Location, Store, StoredObject

log = logging.getLogger("ratchet")

PARTS = "datasets/.parts"


class Listed(BaseModel):
    """A file as it was when the workers agreed on what there is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    uri: str
    size: int
    etag: str
    source: int | None = None
    """Which of sessions.sources; None: the cycle's own."""


class Pinned(BaseModel):
    """What an attempt reads, whichever of its workers reads it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: list[Listed]
    """In the order in which they are read."""
    erasures: str
    """SHA-256 of the erasure list."""

    def holds(self, now: "Pinned") -> bool:
        """Whether all of it is still so; files that came since are the next run's, lest they cost finished parts."""
        return self.erasures == now.erasures and set(self.files) <= set(now.files)


def run(
    stage: CurateInput, store: Store, scratch: Path, progress: Progress, suites: Path | None, anchors: Path | None,
    index: int,
) -> StageReport:  # fmt: skip
    """The work of worker `index`, from 0; its report is partial unless it has put the parts together.

    Raises StageError's children.
    """
    by = given(stage, store, suites, anchors)
    recipe = recipe_of(stage, suites, anchors, b"", [])
    root = Location.parse(stage.identity.storage_uri)
    pinned = _pin(stage, store, recipe, by)
    key = _key(recipe, pinned)
    place, parts = root.child(f"{RUNS}/{key}.json"), root.child(f"{PARTS}/{key}")
    if (known := remembered(store, place)) is not None:
        store.remove(parts)
        return known
    work = _Work(stage, store, scratch, by, pinned, parts)
    work.map(index, progress.update)
    there = [work.manifest(f"map-{shard}") for shard in range(work.count)]
    lacking = there.count(None)
    if lacking or not work.closes(index):
        return _partial(index, work.count, lacking)
    found = joined(by.settings, (work.fetched(f"map-{shard}") for shard in range(work.count)), work.again)
    inputs = work.inputs([one for one in there if one is not None])
    try:
        report = concluded(stage, store, scratch, by, found, inputs, place)
    except DataError:
        store.remove(parts)
        raise
    store.remove(parts)
    return report


def _partial(index: int, count: int, lacking: int) -> StageReport:
    rest = f"{lacking} are not there yet" if lacking else "all are there, and another worker puts them together"
    return StageReport(
        stage="curate", outcome="Succeeded", reason=Reason.SUCCEEDED, partial=True,
        message=f"shard {index + 1} of {count} is done; {rest}",
    )  # fmt: skip


def _key(recipe: str, pinned: Pinned) -> str:
    return hashlib.sha256(recipe.encode() + pinned.model_dump_json().encode()).hexdigest()


def _pin(stage: CurateInput, store: Store, recipe: str, by: Given) -> Pinned:
    """What the first worker of the attempt has found. Raises TryAgain when the erasure list is another one by now."""
    root = Location.parse(stage.identity.storage_uri)
    place, erasures = _pinned_at(root, recipe, stage.identity.attempt), hashlib.sha256(by.withdrawn).hexdigest()
    data = store.get(place)
    if data is None:
        found, earlier = Pinned(files=_listed(stage, store), erasures=erasures), _earlier(stage, store, recipe)
        if earlier is not None and earlier.holds(found):
            found = earlier
        if store.put(place, found.model_dump_json().encode(), only_if_absent=True):
            # A cycle has one run at a time: nobody asks for other parts any more, and they may say what somebody has
            # withdrawn.
            for other in set(store.folders(root.child(PARTS))) - {_key(recipe, found)}:
                store.remove(root.child(f"{PARTS}/{other}"))
        data = store.get(place)
    if data is None:
        raise TryAgain(f"{place.uri} came and went while it was read: run the stage again")
    pinned = Pinned.model_validate_json(data)
    if pinned.erasures != erasures:
        raise TryAgain("somebody withdrew since the first worker listed the sessions: the next attempt lists them anew")
    return pinned


def _pinned_at(root: Location, recipe: str, attempt: int) -> Location:
    return root.child(f"{RUNS}/{recipe}/{attempt}.json")


def _earlier(stage: CurateInput, store: Store, recipe: str) -> Pinned | None:
    """What the latest attempt went by that came so far."""
    root = Location.parse(stage.identity.storage_uri)
    for attempt in reversed(range(stage.identity.attempt)):
        if (data := store.get(_pinned_at(root, recipe, attempt))) is not None:
            return Pinned.model_validate_json(data)
    return None


def _listed(stage: CurateInput, store: Store) -> list[Listed]:
    found: list[tuple[int | None, StoredObject]] = [(None, one) for one in session_objects(stage, store)]
    for index in range(len(stage.sessions.sources)):
        found += [(index, one) for one in source_objects(stage, index, store)]
    files = [
        Listed(
            name=name_of(stage, one.location, None if index is None else stage.sessions.sources[index]),
            uri=one.location.uri, size=one.size, etag=one.etag, source=index,
        )
        for index, one in found
    ]  # fmt: skip
    return sorted(files, key=lambda file: file.name)


@dataclass
class _Work:
    """One worker's view of the parts."""

    stage: CurateInput
    store: Store
    scratch: Path
    by: Given
    pinned: Pinned
    place: Location
    _files: dict[int, list[Fetched]] = field(default_factory=dict)
    """By shard."""

    @property
    def count(self) -> int:
        """Shards."""
        return self.stage.curation.parallelism

    def manifest(self, name: str) -> Manifest | None:
        """Of a part; None when nobody has finished it."""
        return self.store.manifest(self.place.child(name).uri, "part")

    def closes(self, index: int) -> bool:
        """Whether it is this worker that puts the shards together; also after it was evicted while it did."""
        place, mine = self.place.child(f"closing-{self.stage.identity.attempt}"), str(index).encode()
        return self.store.put(place, mine, only_if_absent=True) or self.store.get(place) == mine

    def fetched(self, name: str) -> Path:
        """A finished part on disk."""
        made, folder = self.scratch / "parts" / name, self.scratch / "fetched" / name
        if made.exists():
            return made
        if not folder.exists():
            self.store.fetch(self.place.child(name).uri, "part", None, folder)
        return folder

    def map(self, shard: int, told: Told) -> None:
        """Has the shard's part be there."""
        name = f"map-{shard}"
        if self.manifest(name) is not None:
            log.info("shard %d of %d is done already", shard + 1, self.count)
            return
        folder = self.scratch / "parts" / name
        self._map(shard, told, folder)
        inputs = {one.file.name: f"sha256:{one.sha256}" for one in self._files[shard]}
        self.store.publish(folder, self.place.child(name).uri, "part", inputs, {})

    def again(self, shard: int, before: Hashes) -> Path:
        """The shard's part when these ids came before."""
        folder = self.scratch / "again" / str(shard)
        self._map(shard, lambda *_: None, folder, before)
        return folder

    def _map(self, shard: int, told: Told, folder: Path, *before: Hashes) -> None:
        verdicts = all_verdicts(self._said(shard))
        map_shard(self.by.settings, self._sessions(shard), verdicts, self.by.held_out, told, folder, *before)

    def inputs(self, there: Sequence[Manifest]) -> list[Fetched]:
        """All files that were read, by the manifests of the parts."""
        digests = {name: digest.removeprefix("sha256:") for one in there for name, digest in one.inputs.items()}
        return [Fetched(self._file(one, Path()), digests[one.name]) for one in self.pinned.files]

    def _said(self, first: int) -> list[Path]:
        """What people said, by shard; one's own is looked for first, which spreads what nobody has made yet."""
        found = {shard: self._said_in(shard) for shard in (*range(first, self.count), *range(first))}
        return [found[shard] for shard in range(self.count)]

    def _said_in(self, shard: int) -> Path:
        name = f"said-{shard}"
        folder = self.scratch / "parts" / name
        if folder.exists() or self.manifest(name) is not None:
            return self.fetched(name)
        save_verdicts(self.by.settings, self._sessions(shard), folder)
        self.store.publish(folder, self.place.child(name).uri, "part", {}, {})
        return folder

    def _sessions(self, shard: int) -> list[SessionFile]:
        if shard not in self._files:
            places = shards([one.size for one in self.pinned.files], self.count)[shard]
            self._files[shard] = self._download([self.pinned.files[place] for place in places], shard)
        return [one.file for one in self._files[shard]]

    def _download(self, listed: Sequence[Listed], shard: int) -> list[Fetched]:
        """Raises TryAgain when one of them is not as it was listed."""
        folder = self.scratch / "files" / str(shard)
        places = [StoredObject(Location.parse(one.uri), one.size, one.etag) for one in listed]
        paths = [folder / f"{number}{suffix_of(one.location.key)}" for number, one in enumerate(places)]
        with ThreadPoolExecutor(DOWNLOADS) as pool:
            as_listed = list(pool.map(self.store.download_as_listed, places, paths))
        for one, same in zip(listed, as_listed, strict=True):
            if not same:
                raise TryAgain(
                    f"{one.uri} is gone or changed since the first worker listed it; the next attempt lists anew"
                )
        return [
            Fetched(self._file(one, path), file_entry(path).sha256) for one, path in zip(listed, paths, strict=True)
        ]

    def _file(self, listed: Listed, path: Path) -> SessionFile:
        source = None if listed.source is None else self.stage.sessions.sources[listed.source]
        return SessionFile(listed.name, path, source)
