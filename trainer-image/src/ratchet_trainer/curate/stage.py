"""The curate stage: sessions in, content-addressed dataset out.

Room: trainer. Touches storage and the scratch folder. Reads top to bottom.

What a run curated is remembered below `datasets/.runs/` under the digest of all its
input, so that a stage that runs again gives the same answer without work.
"""

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path

from pydantic import ValidationError

from ratchet_api.cycle import DatasetNumbers
from ratchet_api.data import Source
from ratchet_api.erasures import ERASURES, Erased
from ratchet_api.reasons import Reason
from ratchet_api.records import SESSIONS_PREFIX
from ratchet_api.stage import CurateInput, StageReport, dataset_uri
from ratchet_api.training import Method
from ratchet_api.version import Artifact, Provenance
from ratchet_trainer.artifacts import build_manifest, file_entry, tool_versions
from ratchet_trainer.canaries import Planted, plant
from ratchet_trainer.chat import Message
from ratchet_trainer.curate.curated import Curated, finished
from ratchet_trainer.curate.erasures import read_erasures
from ratchet_trainer.curate.mapped import Mapped, mapped
from ratchet_trainer.curate.pipeline import MOST_UNREADABLE, Counts, SessionFile, Settings, examples_of
from ratchet_trainer.curate.readers import suffix_of
from ratchet_trainer.curate.text import HeldOut
from ratchet_trainer.dataset import read_rows
from ratchet_trainer.errors import DataError, Missing, UserError
from ratchet_trainer.metrics import Progress
from ratchet_trainer.storage import Location, Store, StoredObject
from ratchet_trainer.suites import read_suite

log = logging.getLogger("ratchet")

RUNS = "datasets/.runs"
"""What each run came to, by what it went by."""
_SUFFIXES = (".jsonl.zst", ".jsonl")
DOWNLOADS = 8
"""Session files fetched at the same time: there may be thousands, and each waits for the network."""
_DAY = re.compile(r"(?:^|/)(?:dt=)?(\d{4}-\d\d-\d\d)/")


@dataclass(frozen=True)
class Fetched:
    """A file on disk, and where it came from."""

    file: SessionFile
    sha256: str


@dataclass(frozen=True)
class Given:
    """What a run goes by beside the sessions."""

    cases: Sequence[str]
    """Held-out texts."""
    anchors: Sequence[Sequence[Message]]
    withdrawn: bytes
    """The erasure list."""
    settings: Settings

    @cached_property
    def held_out(self) -> HeldOut:
        """The cases, to be asked."""
        return HeldOut(self.cases, self.settings.curation.decontamination)


def given(stage: CurateInput, store: Store, suites: Path | None, anchors: Path | None) -> Given:
    """Reads it. Raises StageError's children."""
    cases = [
        case.question
        for suite in stage.suites
        if suite.scorer != "exposure"  # whose cases are planted
        for case in read_suite(suite, suites, store)
    ]
    anchor_rows = read_anchors(stage.curation.anchors is not None, anchors)
    place = Location.parse(stage.identity.storage_uri).child(ERASURES)
    withdrawn = store.get(place) or b""
    return Given(cases, anchor_rows, withdrawn, _settings(stage, read_erasures(withdrawn, place.uri)))


def run(
    stage: CurateInput, store: Store, scratch: Path, progress: Progress, suites: Path | None, anchors: Path | None
) -> StageReport:
    """Curates, publishes and reports; Skipped when there are fewer good examples than asked for.

    Raises StageError's children.
    """
    by = given(stage, store, suites, anchors)
    # The sessions of a window that has ended do not change; other people's files, and who withdraws, may.
    imported = [found for index, source in enumerate(stage.sessions.sources)
                for found in _download_source(stage, index, source, store, scratch / "sources")]  # fmt: skip
    key = recipe_of(stage, suites, anchors, by.withdrawn, imported)
    place = Location.parse(stage.identity.storage_uri).child(f"{RUNS}/{key}.json")
    if (known := remembered(store, place)) is not None:
        return known

    fetched = [*_download_sessions(stage, store, scratch / "sessions"), *imported]
    counts = Counts()
    examples = examples_of(by.settings, [found.file for found in fetched], progress.update, counts)
    found = mapped(by.settings, examples, counts, by.held_out)
    return concluded(stage, store, scratch, by, found, fetched, place)


def concluded(
    stage: CurateInput, store: Store, scratch: Path, by: Given, found: Mapped, fetched: Sequence[Fetched],
    place: Location,
) -> StageReport:  # fmt: skip
    """From the examples of all files to the report, which is remembered at `place`."""
    counts = found.counts
    curated = finished(by.settings, found, by.held_out, by.anchors, _planted(stage))
    if counts.broken:
        raise DataError(
            f"{counts.quarantine.total} of {counts.lines} lines of the sessions from {_since(stage):%Y-%m-%d} to "
            f"{stage.until:%Y-%m-%d} are unreadable, more than {MOST_UNREADABLE:.0%}: {counts.funnel.summary()}; "
            f"look at what writes the files below {stage.identity.storage_uri}/{SESSIONS_PREFIX}/"
            + (" and at sessions.sources" if any(one.file.source is not None for one in fetched) else "")
        )
    if curated.learnable < stage.min_examples or not curated.enough:
        return _skipped(stage, curated)
    folder = scratch / "dataset"
    curated.write(folder, stage.base_model)
    report = _publish(stage, store, folder, curated, _inputs(stage, fetched))
    store.put(place, report.encode())
    return report


def _settings(stage: CurateInput, erased: Erased) -> Settings:
    return Settings(
        stage.curation, stage.identity.namespace, stage.identity.cycle, _since(stage), stage.until,
        stage.sessions.feedback_delay, erased, stage.method,
    )  # fmt: skip


def _planted(stage: CurateInput) -> Planted | None:
    """Canaries, if a suite looks for them. Each run has its own, so that no champion has met them; an attempt that is
    tried again has the same. A training on preferences does not see the rows that they would be among."""
    if stage.method != "sft" or not any(suite.scorer == "exposure" for suite in stage.suites):
        return None
    who = stage.identity
    seed = f"{who.namespace}/{who.cycle}/{who.run}/{stage.until.isoformat()}"
    return plant(seed, repeats=1 + stage.curation.variations)


def recipe_of(
    stage: CurateInput, suites: Path | None, anchors: Path | None, withdrawn: bytes, imported: Sequence[Fetched]
) -> str:
    """Hash of all that determines the dataset, but the sessions themselves: those of a window that has ended."""
    recipe = stage.model_dump_json(exclude={"identity": {"attempt"}})
    digest = hashlib.sha256(recipe.encode())
    # Of files in storage the recipe has the digest; built-in ones come with the rules.
    mounted = [f"{suite.name}.jsonl" for suite in stage.suites if suite.cases.config_map is not None]
    mounted += [f"{suite.name}.yaml" for suite in stage.suites if suite.cases.task is not None]
    files = [] if suites is None else [suites / name for name in mounted]
    for path in [*files, *([] if anchors is None else [anchors])]:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    if withdrawn or imported:
        digest.update(hashlib.sha256(withdrawn).digest())
        digest.update(_digest_of(imported).encode())
    return digest.hexdigest()


def _digest_of(files: Sequence[Fetched]) -> str:
    names = sorted(f"{found.sha256}  {found.file.name}\n" for found in files)
    return "sha256:" + hashlib.sha256("".join(names).encode()).hexdigest()


def _inputs(stage: CurateInput, fetched: Sequence[Fetched]) -> Mapping[str, str]:
    """What the dataset was made from, for its manifest: the sessions, and each source, by digest of their files."""
    by_source = {SESSIONS_PREFIX: [found for found in fetched if found.file.source is None]}
    for source in stage.sessions.sources:
        by_source[source.uri] = [found for found in fetched if found.file.source == source]
    return {name: _digest_of(files) for name, files in by_source.items()}


def remembered(store: Store, place: Location) -> StageReport | None:
    """What a run that went by the same came to; None when there was none that made a dataset."""
    data = store.get(place)
    if data is None:
        return None
    try:
        report = StageReport.model_validate_json(data)
    except ValidationError:
        log.warning("%s cannot be read; curating again", place.uri)
        return None
    if report.artifact is None or store.manifest(report.artifact.uri, "dataset") is None:
        return None
    log.info("this run is curated already: %s", report.message)
    return report


def read_anchors(wanted: bool, path: Path | None) -> list[list[Message]]:
    """The anchors' rows. Raises UserError naming the row that cannot be one."""
    if not wanted:
        return []
    if path is None or not path.is_file():
        raise UserError("curation.anchors: the file is not mounted (--anchors FILE); name its ConfigMap and key")
    try:
        rows = read_rows(path, "curation.anchors")
    except DataError as error:
        raise UserError(str(error)) from None
    for number, row in enumerate(rows, start=1):
        roles = [message.role for message in row.messages]
        if roles[-1] != "assistant" or "user" not in roles:
            raise UserError(
                f"curation.anchors, row {number}: it must have a user turn and end with the assistant's answer"
            )
    return [row.messages for row in rows]


def _since(stage: CurateInput) -> datetime:
    return stage.until - stage.sessions.window


def session_objects(stage: CurateInput, store: Store) -> list[StoredObject]:
    """The session files of the window's days, in the order of their keys.

    A day more at either end: a file bears the day on which it was begun, a record that of its own clock.
    """
    root = _sessions(stage)
    first, last = _days(stage)
    days = [name for name in store.folders(root) if first <= name.removeprefix("dt=") <= last and name[:3] == "dt="]
    found = [o for day in days for o in store.objects(root.child(day)) if o.location.key.endswith(_SUFFIXES)]
    log.info("%d session files of %d days", len(found), len(days))
    return found


def name_of(stage: CurateInput, place: Location, source: Source | None) -> str:
    """What a file is called: ours by their keys below sessions/, others by where they lie."""
    return place.uri if source is not None else place.key.removeprefix(f"{_sessions(stage).key}/")


def _sessions(stage: CurateInput) -> Location:
    return Location.parse(stage.identity.storage_uri).child(SESSIONS_PREFIX)


def _download_sessions(stage: CurateInput, store: Store, folder: Path) -> list[Fetched]:
    return _download(stage, store, session_objects(stage, store), folder, None)


def _days(stage: CurateInput) -> tuple[str, str]:
    first = (_since(stage).astimezone(UTC) - timedelta(days=1)).date().isoformat()
    return first, (stage.until.astimezone(UTC) + timedelta(days=1)).date().isoformat()


def source_objects(stage: CurateInput, index: int, store: Store) -> list[StoredObject]:
    """The files of a source: the object itself, or all below the folder that are readable by their names and, where
    folders bear dates, of the window's days. Raises Missing when there is none at all."""
    place = Location.parse(stage.sessions.sources[index].uri)
    first, last = _days(stage)
    if suffix_of(place.key):
        one = store.head(place)
        there = [] if one is None else [one]
    else:
        there = [o for o in store.objects(place) if suffix_of(o.location.key)]
    if not there:
        raise _no_file(stage, index)
    days = {found: _DAY.search(found.location.key.removeprefix(place.key)) for found in there}
    return [found for found, day in days.items() if day is None or first <= day[1] <= last]


def _no_file(stage: CurateInput, index: int) -> Missing:
    return Missing(
        Reason.MISSING_DATASET,
        f"sessions.sources[{index}].uri: there is no .jsonl, .ndjson or .json file (plain, .gz or .zst) at "
        f"{stage.sessions.sources[index].uri}: put them there, or correct the uri",
    )


def _download_source(stage: CurateInput, index: int, source: Source, store: Store, folder: Path) -> list[Fetched]:
    wanted = source_objects(stage, index, store)
    fetched = _download(stage, store, wanted, folder / str(index), source)
    if wanted and not fetched:
        raise _no_file(stage, index)
    log.info("%d files of %s", len(fetched), source.uri)
    return fetched


def _download(
    stage: CurateInput, store: Store, found: Sequence[StoredObject], folder: Path, source: Source | None
) -> list[Fetched]:
    places = [one.location for one in found]
    # Numbered, because names in storage are not bound to what a file system takes.
    local = [folder / f"{index}{suffix_of(place.key)}" for index, place in enumerate(places)]
    with ThreadPoolExecutor(DOWNLOADS) as pool:
        there = list(pool.map(store.download, places, local))
    return [
        Fetched(SessionFile(name_of(stage, place, source), path, source), file_entry(path).sha256)
        for place, path, got in zip(places, local, there, strict=True)
        if got
    ]


def _publish(
    stage: CurateInput, store: Store, folder: Path, curated: Curated, inputs: Mapping[str, str]
) -> StageReport:
    digest = build_manifest("dataset", folder, {}, {}).digest
    uri = dataset_uri(stage.identity.storage_uri, digest)
    rows = curated.rows
    numbers = DatasetNumbers(
        uri=uri, digest=digest, interactions=curated.counts.interactions, successful=curated.successful,
        categories=len(rows.categories), examples=curated.row_count, quarantined=curated.counts.quarantine.total,
        characters=curated.characters,
    )  # fmt: skip
    figures: dict[str, int | float | str] = {
        "interactions": numbers.interactions, "successful": numbers.successful, "categories": numbers.categories,
        "uncategorised": rows.uncategorised, "examples": numbers.examples, "quarantined": numbers.quarantined,
        **{f"rows.{origin}": count for origin, count in rows.by_origin.items()},
    }  # fmt: skip
    store.publish(folder, uri, "dataset", inputs, figures)
    quarantined = f", {numbers.quarantined} lines quarantined" if numbers.quarantined else ""
    rows_of = f", {rows.by_origin['canary']} of the rows planted canaries" if curated.planted else ""
    aside = f", {len(curated.validation)} kept aside" if curated.validation else ""
    preferred = f"; {curated.learnable} {_WANTED[stage.method]}{_kinds(curated)}" if curated.preferences else ""
    return StageReport(
        stage="curate",
        outcome="Succeeded",
        reason=Reason.SUCCEEDED,
        message=_reached(numbers) + rows_of + preferred + aside + quarantined,
        artifact=Artifact(uri=uri, digest=digest),
        dataset=numbers,
        provenance=Provenance(dataset_digest=digest, tools=tool_versions()),
    )


def _reached(numbers: DatasetNumbers) -> str:
    """The numbers that a training set is first looked at for, each with what it should be at least."""
    targets = numbers.targets
    return (
        f"{numbers.examples} rows ({targets.examples}+ are the rule of thumb) from {numbers.successful} "
        f"({targets.successful}+) good of {numbers.interactions} ({targets.interactions}+) interactions in "
        f"{numbers.categories} ({targets.categories}+) categories"
    )


def _skipped(stage: CurateInput, curated: Curated) -> StageReport:
    counts, good = curated.counts, curated.learnable
    wanted = _WANTED[stage.method]
    lacking = "" if good < stage.min_examples else f"; {stage.method} needs at least one of each kind"
    return StageReport(
        stage="curate",
        outcome="Skipped",
        reason=Reason.SKIPPED,
        message=f"{good} {wanted}{_kinds(curated)} among {counts.interactions} interactions, {stage.min_examples} are "
        f"asked for (trigger.minExamples){lacking}; {curated.summary}",
        dataset=DatasetNumbers(
            uri="", digest="", interactions=counts.interactions, successful=curated.successful, examples=good,
            quarantined=counts.quarantine.total,
        ),
    )  # fmt: skip


_WANTED: Mapping[Method, str] = {
    "sft": "good examples", "dpo": "pairs of an answer and its correction", "kto": "judged answers",
}  # fmt: skip


def _kinds(curated: Curated) -> str:
    found = curated.preferences
    if found is None or found.method == "dpo":
        return ""
    return f" ({len(found.train.chosen)} desirable, {len(found.train.rejected)} undesirable)"
