"""Coverage-guided fuzzing of the curate stage's readers: `make fuzz` (SECONDS=120), by atheris.

An input's first two bytes choose how the file is named and which format is asked for; the rest is the file. It is read,
joined, scored and put through all rules. Nothing may be raised but what is meant for people (StageError), every rule's
account has to be even, and what our quick parser of segments takes has to be what the careful one takes. An input that
breaks this is kept in the folder that is printed; give its name to see it again. Seeds are the golden files of the
formats.
"""

import argparse
import sys
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import get_args

import atheris

with atheris.instrument_imports(include=["ratchet_trainer", "ratchet_api", "json"]):
    from ratchet_api.data import Curation, Limits, NearDuplicates, Source, SourceFormat
    from ratchet_trainer.curate import plain, read
    from ratchet_trainer.curate.curated import build
    from ratchet_trainer.curate.pipeline import Counts, SessionFile, Settings, examples_of
    from ratchet_trainer.curate.readers import SUFFIXES, Entry, own_entries
    from ratchet_trainer.curate.text import HeldOut
    from ratchet_trainer.errors import StageError

FORMATS = (None, *get_args(SourceFormat))
"""None: a segment of our own."""
SEEDS = Path(__file__).resolve().parent.parent / "trainer" / "formats"
SEGMENT = (
    b'{"kind":"interaction","id":"c1","session":"s1","namespace":"default","cycle":"assistant","version":"a-1",'
    b'"arm":"stable","time":"2026-11-20T10:00:00Z","principal":"ab","messages":[{"role":"user",'
    b'"content":"Where is 4711?"}],"answer":{"role":"assistant","content":"On its way."},'
    b'"finish_reason":"stop","status":200,"duration":0.5}\n'
    b'{"kind":"feedback","id":"f1","response_id":"c1","namespace":"default","cycle":"assistant","version":"a-1",'
    b'"time":"2026-11-20T10:01:00Z","value":"down","correction":"It arrives on Thursday."}\n'
)
# Without bursts: atheris keeps every array that is compared, and theirs are of 4 MiB.
CURATION = Curation(
    limits=Limits(max_repetition="0.5", max_characters=10_000), near_duplicates=NearDuplicates(),
    max_line_bytes=65_536, max_per_principal=100,
)  # fmt: skip
SETTINGS = Settings(
    CURATION, "default", "assistant", datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC),
    timedelta(days=1),
)  # fmt: skip
HELD_OUT = HeldOut(["What is the capital of Italy?"], CURATION.decontamination)


def look(data: bytes, folder: Path) -> None:
    """One input."""
    if len(data) < 2:
        return
    suffix, wanted = SUFFIXES[data[0] % len(SUFFIXES)], FORMATS[data[1] % len(FORMATS)]
    path = folder / f"input{suffix}"
    path.write_bytes(data[2:])
    source = None if wanted is None else Source(uri="s3://fuzz/input", format=wanted)
    counts = Counts()
    examples = examples_of(SETTINGS, [SessionFile(path.name, path, source)], lambda done, files: None, counts)
    try:
        build(SETTINGS, counts, examples, HELD_OUT, [], None).statistics()
    except StageError:
        return
    for step in counts.funnel.steps:
        assert step.read == step.kept + step.dropped.total(), asdict(step)
    if wanted is None:
        _agree(path)


def _agree(path: Path) -> None:
    """The quick way is the careful one, and lines that are read together are what they are alone."""
    limit = CURATION.max_line_bytes
    for line, found in zip(read.lines(path, limit), own_entries(path, limit), strict=True):
        careful = read.parse(line)
        quick = plain.parse(line.content) if isinstance(line.content, bytes) else None
        if quick is not None:
            assert not isinstance(careful, str), (careful, line)
            assert (quick.id, quick.time, quick.cycle) == (careful.id, careful.time, careful.cycle), line
        said = found.entry.record if isinstance(found.entry, Entry) else found.entry
        assert (found.number, said) == (line.number, quick or careful), line


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=120, help="how long (default: 120)")
    parser.add_argument(
        "--kept", type=Path, default=Path(".ratchet/fuzz"), help="folder of the inputs that are worth keeping"
    )
    parser.add_argument("input", nargs="?", type=Path, help="only this one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ratchet-fuzz-") as scratch:
        if arguments.input is not None:
            look(arguments.input.read_bytes(), Path(scratch))
            return
        corpus, broken = arguments.kept / "corpus", arguments.kept / "broken"
        for folder in (corpus, broken):
            folder.mkdir(parents=True, exist_ok=True)
        for number, path in enumerate(sorted(file for file in SEEDS.rglob("*") if file.is_file())):
            suffix = next((index for index, end in enumerate(SUFFIXES) if path.name.endswith(end)), 0)
            for chosen in (0, FORMATS.index("auto")):
                (corpus / f"seed-{number}-{chosen}").write_bytes(bytes([suffix, chosen]) + path.read_bytes())
        (corpus / "seed-segment").write_bytes(bytes([0, 0]) + SEGMENT)
        options = [f"-max_total_time={arguments.seconds}", "-max_len=20000", "-timeout=60", "-rss_limit_mb=2048",
                   f"-artifact_prefix={broken}/", str(corpus)]  # fmt: skip
        print(f"inputs that break something are kept in {broken}", flush=True)
        atheris.Setup([sys.argv[0], *options], lambda data: look(data, Path(scratch)))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
