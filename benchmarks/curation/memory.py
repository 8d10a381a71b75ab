"""How much memory a curation takes: `python benchmarks/curation/memory.py --gigabytes 10`.

Makes so many bytes of sessions with planted truth (see material.py), curates them as the stage does, near duplicates
looked for and all files of the dataset written, and prints the peak of the resident memory (VmHWM) after each step, the
process's own 100 MiB included. Takes about five times the input on disk, below --scratch.
"""

import argparse
import json
import multiprocessing
import shutil
import tempfile
import time
from pathlib import Path

import material

from ratchet_api.data import Curation, NearDuplicates
from ratchet_trainer.curate.curated import finished
from ratchet_trainer.curate.mapped import mapped
from ratchet_trainer.curate.pipeline import Counts, SessionFile, examples_of
from ratchet_trainer.curate.text import HeldOut

SESSION_BYTES = 1098
"""A session with its feedback, before it is packed."""


def peak() -> int:
    """MiB of memory that this process has had at most."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) >> 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0, help="of input, 10^9 bytes each (1)")
    parser.add_argument("--sessions", type=Path, help="a folder of such files, instead of making them")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--seed", type=int, default=20261122)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        tempfile.tempdir = scratch
        folder = options.sessions or Path(scratch) / "sessions"
        if options.sessions is None:
            # By a process of its own, because what it remembers is not the curation's.
            sessions = int(options.gigabytes * 1e9 / SESSION_BYTES)
            made = multiprocessing.get_context("spawn").Process(
                target=material.write, args=(folder, sessions, options.seed, 64)
            )
            made.start()
            made.join()
            assert made.exitcode == 0, "the sessions were not made"
        curate(sorted(folder.iterdir()), Path(scratch) / "dataset")


def curate(files: list[Path], out: Path) -> None:
    curation = Curation(near_duplicates=NearDuplicates(), variations=0)
    settings = material.settings(curation)
    held_out, counts = HeldOut(material.HELD_OUT, curation.decontamination), Counts()

    def told(step: str) -> None:
        seconds = round(time.process_time())
        print(json.dumps({"step": step, "peakMiB": peak(), "processorSeconds": seconds}), flush=True)

    told("begin")
    examples = examples_of(settings, [SessionFile(path.name, path) for path in files], lambda *_: None, counts)
    found = mapped(settings, examples, counts, held_out)
    told("each looked at")
    curated = finished(settings, found, held_out, [], None)
    told("compared")
    curated.write(out)
    told("written")
    size = sum(path.stat().st_size for path in out.iterdir())
    shutil.rmtree(out)
    print(json.dumps({"interactions": counts.interactions, "rows": curated.row_count, "datasetBytes": size}))


if __name__ == "__main__":
    main()
