"""`curate-files`: files on disk to a dataset on disk, by the rules of the stage; what `ratchet curate` runs.

Room: trainer. Touches the files and the folder named on the command line. No cluster, no storage, no credentials.
"""

import argparse
import json
import multiprocessing
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ratchet_api.artifacts import MANIFEST
from ratchet_api.data import Anchors, BaseModelRef, ConfigMapKey, Curation, Source, SourceFormat
from ratchet_api.erasures import Erased
from ratchet_api.stage import ExitCode
from ratchet_api.training import Method
from ratchet_trainer.artifacts import build_manifest, file_entry
from ratchet_trainer.chat import Message
from ratchet_trainer.curate.curated import Curated, finished
from ratchet_trainer.curate.erasures import read_erasures
from ratchet_trainer.curate.mapped import Mapped, mapped
from ratchet_trainer.curate.pipeline import MOST_UNREADABLE, Counts, SessionFile, Settings, Told, examples_of
from ratchet_trainer.curate.readers import SUFFIXES, suffix_of
from ratchet_trainer.curate.readers.base import Mismatch, parse_time
from ratchet_trainer.curate.stage import read_anchors
from ratchet_trainer.curate.text import HeldOut
from ratchet_trainer.curate.workers import map_by_workers
from ratchet_trainer.dataset import first_error, numbered_lines
from ratchet_trainer.errors import DataError, UserError

_EVER = datetime(1970, 1, 1, tzinfo=UTC)
_LOCAL = "local"
_NO_URI = "s3://local/files"
_CURATION = TypeAdapter(Curation)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "paths", type=Path, nargs="+", metavar="PATH", help="files, or folders of them: " + ", ".join(SUFFIXES)
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder, which gets the dataset")
    parser.add_argument("--format", choices=get_args(SourceFormat), default="auto", help="what the files hold")
    parser.add_argument(
        "--verdict", choices=("auto", "recorded", "good"), default="auto", help="what silence about an answer means"
    )
    parser.add_argument("--score", default="", metavar="NAME", help="Langfuse: the score that is the verdict")
    parser.add_argument("--curation", type=Path, metavar="FILE", help="the block `curation` of a cycle, as JSON")
    parser.add_argument(
        "--held-out", type=Path, action="append", default=[], metavar="FILE", help="a suite's cases, never trained on"
    )
    parser.add_argument("--anchors", type=Path, metavar="FILE", help="rows against forgetting, JSONL of messages")
    parser.add_argument("--erasures", type=Path, metavar="FILE", help="who withdrew, JSONL of principal or session")
    parser.add_argument("--model", metavar="URI", help="what train.yaml trains, as a cycle's baseModel.uri names it")
    parser.add_argument("--method", choices=get_args(Method), default="sft", help="what the dataset will be trained by")
    parser.add_argument("--since", metavar="TIME", help="leave out what is older (ISO 8601)")
    parser.add_argument("--until", metavar="TIME", help="leave out what is newer (ISO 8601; now)")
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="processes that share the files (1); the dataset is the same",
    )
    parser.add_argument("--json", action="store_true", help="print the statistics as JSON instead of the funnel")


def run(options: argparse.Namespace) -> int:
    """Curates and prints; 65 when no example is left. Raises UserError or DataError."""
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise UserError(f"--out: {options.out} is there already: name a new folder")
    if options.workers < 1:
        raise UserError(f"--workers: {options.workers} is too few: write 1 or more, up to the number of cores")
    model = _model(options.model)
    source = Source(uri=_NO_URI, format=options.format, verdict=options.verdict, score=options.score)
    files = list(_files(options.paths, source))
    curation = _curation(options)
    cases = [text for path in options.held_out for text in _questions(path)]
    held_out = HeldOut(cases, curation.decontamination)
    settings = Settings(
        curation, _LOCAL, _LOCAL, _time("--since", options.since) or _EVER,
        _time("--until", options.until) or datetime.now(UTC), timedelta(days=36500), _erased(options.erasures),
        method=options.method, bounded=bool(options.since and options.until),
    )  # fmt: skip
    if curation.anchors is not None and options.anchors is None:
        raise UserError("--anchors: the cycle mixes in anchors: name the file that its ConfigMap holds")
    anchors = read_anchors(curation.anchors is not None, options.anchors)
    found = _mapped(settings, files, cases, held_out, options.workers)
    curated, counts = finished(settings, found, held_out, anchors, None), found.counts
    if counts.broken:
        print(counts.funnel.table())
        raise DataError(
            f"{counts.quarantine.total} of {counts.lines} lines are unreadable, more than {MOST_UNREADABLE:.0%}: "
            f"{counts.funnel.summary()}; look at what wrote the files, or name their --format"
        )
    if curated.enough:
        digest = _write(curated, options.out, files, model)
        print(_said(curated, options.json))
        print(f"{options.out}: {curated.row_count} rows, {digest}", file=sys.stderr)
        return ExitCode.DONE
    print(_said(curated, options.json))
    print("no example is left: the table says which rule took them", file=sys.stderr)
    return ExitCode.DATA_ERROR


def _mapped(
    settings: Settings, files: Sequence[SessionFile], cases: Sequence[str], held_out: HeldOut, workers: int
) -> Mapped:
    told = _progress()
    if workers == 1:
        counts = Counts()
        return mapped(settings, examples_of(settings, files, told, counts), counts, held_out)
    # Spawned, because a fork of a process that has threads may stand still.
    spawning = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory(prefix="ratchet-curate-") as scratch,
        ProcessPoolExecutor(workers, spawning) as pool,
    ):
        return map_by_workers(settings, files, cases, pool, workers, told, Path(scratch))


def _files(paths: Sequence[Path], source: Source) -> Iterator[SessionFile]:
    """Files named, and those below the folders named, each once. Raises UserError for a path that has none."""
    known: set[Path] = set()
    for path in paths:
        found = sorted(p for p in path.rglob("*") if p.is_file() and suffix_of(p.name)) if path.is_dir() else [path]
        if not found or not found[0].is_file() or not suffix_of(found[0].name):
            raise UserError(f"{path}: there is no file to read: name one, or a folder of them ({', '.join(SUFFIXES)})")
        for file in found:
            if file.resolve() not in known:
                known.add(file.resolve())
                yield SessionFile(file.as_posix(), file, source)


class _Case(BaseModel):
    """What of a held-out case must not be trained on, whatever scorer judges its answer."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    prompt: str = ""
    messages: list[Message] = Field(default_factory=list)


def _questions(path: Path) -> Iterator[str]:
    """The prompts of a suite's cases. Raises UserError naming the line that has none."""
    if not path.is_file():
        raise UserError(f"--held-out: there is no file {path}: name the cases of a suite")
    for number, line in numbered_lines(path):
        try:
            case = _Case.model_validate_json(line)
        except ValidationError as error:
            raise UserError(f"--held-out: {path}, line {number}: {first_error(error)}") from None
        question = case.messages[-1].content if case.messages else case.prompt
        if not question.strip():
            raise UserError(f"--held-out: {path}, line {number}: it asks nothing: write prompt or messages")
        yield question


def _curation(options: argparse.Namespace) -> Curation:
    curation = Curation()
    if options.curation is not None:
        try:
            curation = _CURATION.validate_json(options.curation.read_bytes())
        except ValidationError as error:
            raise UserError(f"--curation: {first_error(error)}") from None
        except OSError as error:
            raise UserError(f"--curation: {error.strerror}: {options.curation}; name a JSON file") from None
    if options.anchors is not None and curation.anchors is None:
        given = Anchors(config_map=ConfigMapKey(name=_LOCAL, key="anchors.jsonl"))
        curation = curation.model_copy(update={"anchors": given})
    return curation


def _model(uri: str | None) -> BaseModelRef | None:
    if uri is None:
        return None
    try:
        return BaseModelRef(uri=uri)
    except ValidationError:
        raise UserError(
            f"--model: {uri!r} names no model: write hf://org/name@revision, s3://bucket/prefix, pvc://claim/path or "
            "file:///path"
        ) from None


def _time(option: str, text: str | None) -> datetime | None:
    try:
        return parse_time(text)
    except Mismatch:
        raise UserError(f"{option}: {text!r} is no time: write it as 2026-11-20 or 2026-11-20T12:00:00Z") from None


def _erased(path: Path | None) -> Erased:
    if path is None:
        return Erased()
    if not path.is_file():
        raise UserError(f"--erasures: there is no file {path}: name the list")
    return read_erasures(path.read_bytes(), str(path))


def _progress() -> Told:
    """A line that is written over on a terminal; nothing elsewhere."""

    def told(done: int, files: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{done} of {files} files", end="\n" if done == files else "", file=sys.stderr, flush=True)

    return told


def _write(curated: Curated, out: Path, files: Sequence[SessionFile], model: BaseModelRef | None) -> str:
    """The whole dataset, or nothing: it is made beside its place and moved there."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".curating-", dir=out.parent) as scratch:
        folder = Path(scratch) / "dataset"
        curated.write(folder, model)
        inputs = {file.name: f"sha256:{file_entry(file.path).sha256}" for file in files}
        manifest = build_manifest("dataset", folder, inputs, {"examples": curated.row_count})
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n")
        if out.exists():
            out.rmdir()
        shutil.move(folder, out)
    return manifest.digest


def _said(curated: Curated, as_json: bool) -> str:
    statistics: dict[str, Any] = curated.statistics()
    if as_json:
        return json.dumps(statistics, ensure_ascii=False, indent=1, sort_keys=True)
    formats = ", ".join(f"{name} {count}" for name, count in curated.counts.formats.items())
    origins = ", ".join(f"{name} {count}" for name, count in curated.rows.by_origin.items())
    categories = ", ".join(f"{name} {count}" for name, count in curated.rows.categories.items()) or "none"
    preferred = "" if curated.preferences is None else f"\n\n{curated.preferences.funnel.table()}"
    return (
        f"{curated.counts.funnel.table()}{preferred}\n\nfiles: {formats}\n"
        f"judged {curated.counts.judged} of {curated.counts.interactions} interactions, {curated.successful} good\n"
        f"categories: {categories}; uncategorised {curated.rows.uncategorised}\nrows: {origins}"
    )
