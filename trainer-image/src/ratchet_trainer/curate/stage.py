"""The curate stage: sessions in, content-addressed dataset out.

Room: trainer. Touches storage and the scratch folder. Reads top to bottom.

Two passes over the files keep the memory bounded: the first collects feedback, the second turns each interaction into
an example or a number at once. What a run curated is remembered below `datasets/.runs/` under the digest of all its
input, so that a stage that runs again gives the same answer without work.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import ValidationError

from ratchet_api.cycle import DatasetNumbers
from ratchet_api.reasons import Reason
from ratchet_api.records import SESSIONS_PREFIX, Feedback, Interaction
from ratchet_api.stage import CurateInput, StageReport, dataset_uri
from ratchet_api.version import Artifact, Provenance
from ratchet_trainer.artifacts import build_manifest, tool_versions
from ratchet_trainer.chat import Message
from ratchet_trainer.curate import read
from ratchet_trainer.curate.examples import Example, Verdicts, categoriser, example_of, select
from ratchet_trainer.curate.text import HeldOut
from ratchet_trainer.curate.write import Rows, compose, write
from ratchet_trainer.dataset import read_rows
from ratchet_trainer.errors import DataError, UserError
from ratchet_trainer.metrics import Progress
from ratchet_trainer.storage import Location, Store
from ratchet_trainer.suites import read_suite

log = logging.getLogger("ratchet")

_SUFFIXES = (".jsonl.zst", ".jsonl")
_DOWNLOADS = 8
"""Session files fetched at the same time: there may be thousands, and each waits for the network."""


@dataclass
class Counts:
    """Every line that was read ends in exactly one of these numbers."""

    files: int = 0
    lines: int = 0
    quarantine: read.Quarantine = field(default_factory=read.Quarantine)
    feedback: int = 0
    outside_window: int = 0
    other_cycle: int = 0
    repeated: int = 0
    """Interactions whose id came before: a segment that was uploaded twice."""
    interactions: int = 0
    judged: int = 0
    """Interactions with feedback."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Interactions that are no examples, by reason."""


def run(
    stage: CurateInput, store: Store, scratch: Path, progress: Progress, suites: Path | None, anchors: Path | None
) -> StageReport:
    """Curates, publishes and reports; Skipped when there are fewer good examples than asked for.

    Raises StageError's children.
    """
    held_out = HeldOut(case.question for suite in stage.suites for case in read_suite(suite, suites))
    anchor_rows = _read_anchors(stage, anchors)
    remembered = Location.parse(stage.identity.storage_uri).child(f"datasets/.runs/{_key(stage, suites, anchors)}.json")
    if (known := _remembered(store, remembered)) is not None:
        log.info("this run is curated already: %s", known.message)
        return known

    files = _download_sessions(stage, store, scratch / "sessions")
    counts, examples = _examples(stage, files, progress)
    if counts.lines and counts.quarantine.total == counts.lines:
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(counts.quarantine.counts.items()))
        raise DataError(
            f"all {counts.lines} lines of the sessions from {_since(stage):%Y-%m-%d} to {stage.until:%Y-%m-%d} are "
            f"unreadable ({kinds}): look at the files below {stage.identity.storage_uri}/{SESSIONS_PREFIX}/"
        )
    selection = select(examples, held_out, stage.curation.max_per_category)
    counts.dropped.update(selection.dropped)
    successful = len(examples)
    if len(selection.examples) < stage.min_examples:
        return _skipped(stage, counts, successful, len(selection.examples))

    rows = compose(selection.examples, stage.curation, anchor_rows, held_out)
    folder = scratch / "dataset"
    write(folder, rows, counts.quarantine, _statistics(stage, counts, successful, rows))
    report = _publish(stage, store, folder, counts, successful, rows)
    store.put(remembered, report.encode())
    return report


def _key(stage: CurateInput, suites: Path | None, anchors: Path | None) -> str:
    """Hash of all that determines the dataset, but the sessions themselves: those of a window that has ended."""
    recipe = stage.model_dump_json(exclude={"identity": {"attempt"}})
    digest = hashlib.sha256(recipe.encode())
    files = [] if suites is None else [suites / f"{suite.name}.jsonl" for suite in stage.suites]
    for path in [*files, *([] if anchors is None else [anchors])]:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _remembered(store: Store, place: Location) -> StageReport | None:
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
    return report


def _read_anchors(stage: CurateInput, path: Path | None) -> list[list[Message]]:
    if stage.curation.anchors is None:
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


def _download_sessions(stage: CurateInput, store: Store, folder: Path) -> list[tuple[str, Path]]:
    """The session files of the window's days, in the order of their keys, as (key below sessions/, local file).

    A day more at either end: a file bears the day on which it was begun, a record that of its own clock.
    """
    root = Location.parse(stage.identity.storage_uri).child(SESSIONS_PREFIX)
    first = (_since(stage).astimezone(UTC) - timedelta(days=1)).date().isoformat()
    last = (stage.until.astimezone(UTC) + timedelta(days=1)).date().isoformat()
    days = [name for name in store.folders(root) if first <= name.removeprefix("dt=") <= last and name[:3] == "dt="]
    found = [o.location for day in days for o in store.objects(root.child(day)) if o.location.key.endswith(_SUFFIXES)]
    # Numbered, because names in storage are not bound to what a file system takes.
    local = [folder / f"{index}{Path(place.key).suffix}" for index, place in enumerate(found)]
    with ThreadPoolExecutor(_DOWNLOADS) as pool:
        there = list(pool.map(store.download, found, local))
    log.info("%d session files of %d days", sum(there), len(days))
    names = (place.key.removeprefix(f"{root.key}/") for place in found)
    return [(name, path) for name, path, got in zip(names, local, there, strict=True) if got]


def _examples(
    stage: CurateInput, files: Sequence[tuple[str, Path]], progress: Progress
) -> tuple[Counts, list[Example]]:
    verdicts = _collect_feedback(stage, files)
    categorise = categoriser(stage.curation.categories)
    counts = Counts(files=len(files))
    seen: set[str] = set()
    examples = []
    for done, (name, path) in enumerate(files, start=1):
        for interaction in _interactions(stage, name, path, counts, seen):
            verdict = verdicts.of(interaction, stage.sessions.feedback_delay)
            counts.judged += verdict is not None
            found = example_of(interaction, verdict, stage.curation.threshold, categorise)
            if isinstance(found, Example):
                examples.append(found)
            else:
                counts.dropped[found] += 1
        progress.update(done, len(files))
    return counts, examples


def _collect_feedback(stage: CurateInput, files: Sequence[tuple[str, Path]]) -> Verdicts:
    verdicts = Verdicts()
    for _, path in files:
        for line in read.lines(path, stage.curation.max_line_bytes):
            if read.may_be_feedback(line):
                record = read.parse(line)
                if isinstance(record, Feedback) and record.time < stage.until and _is_ours(stage, record):
                    verdicts.add(record)
    return verdicts


def _interactions(stage: CurateInput, name: str, path: Path, counts: Counts, seen: set[str]) -> Iterator[Interaction]:
    """Interactions of this cycle within the window, each once; everything else is counted."""
    since = _since(stage)
    for line in read.lines(path, stage.curation.max_line_bytes):
        counts.lines += 1
        record = read.parse(line)
        if isinstance(record, str):
            counts.quarantine.add(name, line.number, record)
        elif not _is_ours(stage, record):
            counts.other_cycle += 1
        elif isinstance(record, Feedback):
            counts.feedback += 1
        elif not since <= record.time < stage.until:
            counts.outside_window += 1
        elif record.id in seen:
            counts.repeated += 1
        else:
            seen.add(record.id)
            counts.interactions += 1
            yield record


def _is_ours(stage: CurateInput, record: Interaction | Feedback) -> bool:
    return (record.namespace, record.cycle) == (stage.identity.namespace, stage.identity.cycle)


def _statistics(stage: CurateInput, counts: Counts, successful: int, rows: Rows) -> dict[str, object]:
    return {
        "window": {"since": _since(stage).isoformat(), "until": stage.until.isoformat()},
        "files": counts.files,
        "lines": {
            "read": counts.lines,
            "interactions": counts.interactions,
            "feedback": counts.feedback,
            "outsideWindow": counts.outside_window,
            "otherCycle": counts.other_cycle,
            "repeated": counts.repeated,
            "quarantined": dict(sorted(counts.quarantine.counts.items())),
        },
        "interactions": {
            "judged": counts.judged, "successful": successful, "dropped": dict(sorted(counts.dropped.items())),
        },
        "categories": rows.categories,
        "uncategorised": rows.uncategorised,
        "rows": rows.by_origin,
        "anchorsHeldOut": rows.anchors_held_out,
    }  # fmt: skip


def _numbers(counts: Counts, successful: int, rows: Rows, uri: str, digest: str) -> DatasetNumbers:
    return DatasetNumbers(
        uri=uri, digest=digest, interactions=counts.interactions, successful=successful,
        categories=len(rows.categories), examples=len(rows.rows), quarantined=counts.quarantine.total,
    )  # fmt: skip


def _publish(
    stage: CurateInput, store: Store, folder: Path, counts: Counts, successful: int, rows: Rows
) -> StageReport:
    digest = build_manifest("dataset", folder, {}, {}).digest
    uri = dataset_uri(stage.identity.storage_uri, digest)
    numbers = _numbers(counts, successful, rows, uri, digest)
    figures: dict[str, int | float | str] = {
        "interactions": numbers.interactions, "successful": successful, "categories": numbers.categories,
        "uncategorised": rows.uncategorised, "examples": numbers.examples, "quarantined": numbers.quarantined,
        **{f"rows.{origin}": count for origin, count in rows.by_origin.items()},
    }  # fmt: skip
    store.publish(folder, uri, "dataset", {}, figures)
    quarantined = f", {numbers.quarantined} lines quarantined" if numbers.quarantined else ""
    return StageReport(
        stage="curate",
        outcome="Succeeded",
        reason=Reason.SUCCEEDED,
        message=f"{numbers.examples} rows from {successful} good of {numbers.interactions} interactions{quarantined}",
        artifact=Artifact(uri=uri, digest=digest),
        dataset=numbers,
        provenance=Provenance(dataset_digest=digest, tools=tool_versions()),
    )


def _skipped(stage: CurateInput, counts: Counts, successful: int, good: int) -> StageReport:
    why = ", ".join(f"{reason} {count}" for reason, count in sorted(counts.dropped.items())) or "nothing was left out"
    return StageReport(
        stage="curate",
        outcome="Skipped",
        reason=Reason.SKIPPED,
        message=f"{good} good examples among {counts.interactions} interactions, {stage.min_examples} are asked for "
        f"(trigger.minExamples); left out: {why}",
        dataset=DatasetNumbers(
            uri="", digest="", interactions=counts.interactions, successful=successful, examples=good,
            quarantined=counts.quarantine.total,
        ),
    )  # fmt: skip
