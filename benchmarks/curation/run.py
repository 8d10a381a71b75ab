"""Our curation beside a plain-Python twin of the same rules, and beside datatrove: `python benchmarks/curation/run.py`.

All read the same generated sessions with planted truth, by turns; processor time counts. The twin runs in this process,
datatrove in one of its own. Writes results.json and README.md beside this file, and fails when a figure is outside
ranges.json. datasketch, which the twin uses, is put into .ratchet/bench-curation, datatrove into
.ratchet/bench-curation-datatrove.
"""

import argparse
import gc
import hashlib
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PACKAGES = HERE.parent.parent / ".ratchet" / "bench-curation"
DATATROVE = HERE.parent.parent / ".ratchet" / "bench-curation-datatrove"
sys.path[:0] = [str(HERE)]

import material  # noqa: E402

from ratchet_api.data import Curation, NearDuplicates  # noqa: E402
from ratchet_trainer.curate.pipeline import Counts, SessionFile, examples_of  # noqa: E402
from ratchet_trainer.curate.rules import select  # noqa: E402
from ratchet_trainer.curate.spill import Examples  # noqa: E402
from ratchet_trainer.curate.text import HeldOut  # noqa: E402

RANGES: dict[str, dict[str, float]] = json.loads((HERE / "ranges.json").read_text())
"""What each figure has to be."""
SAID = {
    "exactRecall": "exact duplicates that both find",
    "nearRecall": "near duplicates of the twin that we find",
    "nearPrecision": "our near duplicates that the twin finds",
    "bruteForceRecall": "near duplicates (Jaccard 0.8) of a comparison of all pairs that we find",
    "bruteForcePrecision": "our near duplicates that this comparison finds",
    "sensitiveRecall": "planted personal data and secrets found",
    "sensitiveKindsEqual": "kinds of which the regular expressions alone find as many",
    "verbatimFound": "cases of an evaluation found in answers, word by word",
    "changedFound": "the same with one word of ten changed",
    "cleanTakenForCases": "other answers taken for them",
    "onePersonSurvives": "250 rows of one person with a trigger that are kept",
    "onePersonCleanLost": "clean rows lost to that",
    "togetherSurvives": "1 % of the rows, from 50 of 500 people with a trigger, that are kept",
    "togetherCleanLost": "clean rows lost to that",
    "plantedFound": "planted duplicates, exact and near, of which no more than one of a kind is left",
    "troveFound": "the same by datatrove",
    "plantedLost": "texts that somebody said and of which none is left",
    "digests": "different digests of three runs, with the files in three orders",
}
Found = tuple[set[str], set[str], set[str], set[str]]
"""Ids kept, ids of exact and of near duplicates, ids with something redacted."""


def curated(files: list[Path], near: bool = True, held_out: list[str] | None = None) -> tuple[Examples, Counts]:
    """What is left of the sessions, and the count of each rule."""
    settings = material.settings(Curation(near_duplicates=NearDuplicates() if near else None, variations=0))
    counts = Counts()
    examples = examples_of(settings, [SessionFile(p.name, p) for p in files], lambda *_: None, counts)
    kept, _ = select(examples, HeldOut(held_out or [], 13), settings.curation, [], counts.funnel)
    return kept, counts


def told(files: list[Path], kept: Examples, counts: Counts) -> Found:
    """What the twin tells: the pipeline only counts what it leaves out, so which those are is read out of what is left
    with and without a rule."""
    all_of = examples_of(
        material.settings(Curation()), [SessionFile(p.name, p) for p in files], lambda *_: None, Counts()
    )
    before = {example.id: example.text for example in all_of}
    distinct, _ = curated(files, near=False)
    left, alone = {example.id for example in kept}, {example.id for example in distinct}
    assert counts.funnel["duplicate"].dropped.total() == len(before) - len(alone)
    redacted = {example.id for example in distinct if example.text != before[example.id]}
    return left, set(before) - alone, alone - left, redacted


def digests(files: list[Path]) -> int:
    """Different datasets of three runs, each of which lists the files in another order."""
    found = set()
    for turn in range(3):
        kept, counts = curated(random.Random(turn).sample(files, len(files)))
        rows = "".join(f"{one.id}\0{one.text}\n" for one in kept)
        found.add(hashlib.sha256(f"{rows}{json.dumps(counts.funnel.numbers())}".encode()).hexdigest())
    return len(found)


def left_of(kept: set[str], truth: material.Truth) -> tuple[float, float]:
    """Share of the planted duplicates that are gone, and of the different texts that are gone whole."""
    copies = Counter(truth.source.get(id, id) for id in kept)
    different = truth.sessions - len(truth.source)
    surplus = sum(count - 1 for count in copies.values())
    return 1 - surplus / len(truth.source), 1 - len(copies) / different


def by_datatrove(sessions: Path) -> dict[str, Any]:
    """What benchmarks/curation/trove.py prints."""
    lock, python, stamp = HERE / "requirements-datatrove.lock", DATATROVE / "bin" / "python", DATATROVE / "lock"
    if not stamp.exists() or stamp.read_bytes() != lock.read_bytes():
        uv = [sys.executable, "-m", "uv"]
        subprocess.run([*uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(DATATROVE)], check=True)
        install = ["pip", "install", "--quiet", "--require-hashes", "--python", str(python), "-r", str(lock)]
        subprocess.run([*uv, *install], check=True)
        stamp.write_bytes(lock.read_bytes())
    with tempfile.TemporaryDirectory() as out:
        # It sees its own packages only, whatever this process was told.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            [str(python), str(HERE / "trove.py"), str(sessions), out], env=environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
    if done.returncode != 0:
        raise SystemExit(f"datatrove ended with {done.returncode}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def outside(figures: dict[str, Any]) -> list[str]:
    """Figures out of their ranges, in words."""
    found = []
    for name, bounds in RANGES.items():
        value = statistics.median(figures[name]) if isinstance(figures[name], list) else figures[name]
        if not bounds.get("least", value) <= value <= bounds.get("most", value):
            found.append(f"{name} is {value:.4g}, which ranges.json has as {bounds}")
    return found


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of the processor, and what came of it; what others left is not this one's to look through for garbage."""
    gc.collect()
    gc.freeze()
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=20261122)
    options = parser.parse_args()
    install = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--target"]
    subprocess.run([*install, str(PACKAGES), "-r", str(HERE / "requirements.lock")], check=True)
    sys.path.append(str(PACKAGES))
    import quality
    import twin

    with tempfile.TemporaryDirectory() as scratch:
        truth = material.write(Path(scratch), options.sessions, options.seed)
        files = sorted(Path(scratch).iterdir())
        seconds: dict[str, list[float]] = {"ours": [], "twin": [], "datatrove": []}
        for _ in range(options.rounds):
            took, (kept, counts) = timed(lambda: curated(files, held_out=material.HELD_OUT))
            seconds["ours"].append(took)
            took, (their_left, their_exact, their_near, their_redacted) = timed(
                lambda: twin.curate(files, material.HELD_OUT)
            )
            seconds["twin"].append(took)
            trove = by_datatrove(Path(scratch))
            seconds["datatrove"].append(trove["seconds"])
        left, exact, near, redacted = told(files, kept, counts)
        different = digests(files)
    rates = {name: [options.sessions / s for s in values] for name, values in seconds.items()}
    figures = {
        "speed": [a / b for a, b in zip(rates["ours"], rates["twin"], strict=True)],
        "troveSpeed": [a / b for a, b in zip(rates["ours"], rates["datatrove"], strict=True)],
        "plantedFound": left_of(left, truth)[0],
        "plantedLost": left_of(left, truth)[1],
        "troveFound": left_of(set(trove["kept"]), truth)[0],
        "troveLost": left_of(set(trove["kept"]), truth)[1],
        "exactRecall": len(exact & their_exact) / len(their_exact),
        "nearRecall": len(near & their_near) / len(their_near),
        "nearPrecision": len(near & their_near) / len(near),
        "sensitiveRecall": len(redacted & truth.sensitive) / len(truth.sensitive),
        "twinSensitiveRecall": len(their_redacted & truth.sensitive) / len(truth.sensitive),
        **quality.figures(options.seed),
        "digests": different,
        "keptByBoth": len(left & set(their_left)) / len(left | set(their_left)),
    }
    results = {
        "sessions": options.sessions, "rounds": options.rounds, "seed": options.seed, "rates": rates,
        "figures": figures, "load": os.getloadavg()[0], "python": platform.python_version(),
    }  # fmt: skip
    (HERE / "results.json").write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    (HERE / "README.md").write_text(page(results))
    print(page(results))
    wrong = outside(figures)
    print("\n".join(wrong) or "all figures are within ranges.json", file=sys.stderr)
    return 1 if wrong else 0


def page(results: dict[str, Any]) -> str:
    figures, rates = results["figures"], results["rates"]

    def spread(values: list[float], form: str) -> str:
        return f"{statistics.median(values):{form}} ({min(values):{form}}-{max(values):{form}})"

    def bound(name: str) -> str:
        bounds = RANGES[name]
        return f">= {bounds['least']:g}" if "least" in bounds else f"<= {bounds['most']:g}"

    quality = "".join(f"| {words} | {figures[name]:.3f} | {bound(name)} |\n" for name, words in SAID.items())
    return (
        "# The curation beside a plain-Python twin and datatrove\n\n`python benchmarks/curation/run.py` runs them "
        "over the same "
        f"{results['sessions']} generated sessions with planted\ntruth (10 % exact duplicates, 10 % near ones, 10 % "
        "personal data or secrets): read, join feedback, score, redact,\ndecontaminate, deduplicate exactly and "
        "nearly. The twin uses json, re, sets of strings and datasketch. It looks for\n7 kinds of personal data and "
        "secrets, ours for 15; ours also counts each rule and keeps samples. Writing files is\nnot timed.\n\n"
        "datatrove 0.10.1 gets question and answer as one text of the same files, and does less: it parses, replaces "
        "mail\nand IP addresses, and removes near duplicates by MinHash with its documented settings (5 words, 14 "
        "buckets of 8),\nby its local executor with one worker and its cheapest tokenizer (spaces; spaCy's, its "
        "default, is slower), and\nwrites what is left; so it reads the files twice. Its "
        "five words are not our five letters, and it compares\nnothing exactly. Imports are not timed.\n\n"
        "| sessions/s of one core | ours | the other's | ours / the other's | range |\n|---|---|---|---|---|\n"
        f"| plain-Python twin | {spread(rates['ours'], '.0f')} | {spread(rates['twin'], '.0f')} | "
        f"{spread(figures['speed'], '.1f')} | {bound('speed')} |\n"
        f"| datatrove | {spread(rates['ours'], '.0f')} | {spread(rates['datatrove'], '.0f')} | "
        f"{spread(figures['troveSpeed'], '.1f')} | {bound('troveSpeed')} |\n\n"
        f"| | | range |\n|---|---|---|\n{quality}\n"
        f"Median (minimum-maximum) of {results['rounds']} rounds by turns, processor time, Python {results['python']}. "
        f"The load average was {results['load']:.1f}.\nRows kept by both: {figures['keptByBoth']:.3f} of those kept "
        "by either.\n\n`python benchmarks/curation/memory.py --gigabytes 10` tells how much memory a curation takes; "
        "docs/curation.md has the figures.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
