"""The example's suites and anchors as ConfigMaps: `python -m ratchet_cli.people.generate examples/assistant`.

Room: cli. `manifests()` is pure; `main()` writes files, or with --check only compares them.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from ratchet_cli.people.general import general_cases
from ratchet_cli.people.house import held_out_cases

SUITE_SEED = 2026
PER_FAMILY = 10
"""Held-out cases of each task family; with eight families and the identity about 86 in all."""

SUITES_FILE, SUITES_NAME = "suites.yaml", "assistant-suites"
TARGET_KEY, GENERAL_KEY = "target.jsonl", "general.jsonl"
ANCHORS_FILE, ANCHORS_NAME = "anchors.yaml", "assistant-anchors"
ANCHORS_KEY = "anchors.jsonl"

_MADE = "# Written by `python -m ratchet_cli.people.generate`; change that, not this.\n"


def manifests() -> dict[str, str]:
    """File name -> content."""
    target = [case.suite_line() for case in held_out_cases(SUITE_SEED, PER_FAMILY)]
    general = [case.suite_line() for case in general_cases("suite")]
    anchors = [case.row() for case in general_cases("anchor")]
    return {
        SUITES_FILE: _config_map(
            SUITES_NAME,
            "The held-out cases of both suites. The curate stage keeps their prompts out of every training set.",
            {TARGET_KEY: target, GENERAL_KEY: general},
        ),
        ANCHORS_FILE: _config_map(
            ANCHORS_NAME,
            "General questions with the base model's own answers, mixed into the training set against forgetting.",
            {ANCHORS_KEY: anchors},
        ),
    }


def _config_map(name: str, purpose: str, keys: dict[str, list[dict[str, object]]]) -> str:
    """A ConfigMap whose values are JSONL, as literal blocks that a person can read and diff."""
    blocks = "".join(f"  {key}: |\n{_indented(rows)}" for key, rows in keys.items())
    return f"# {purpose}\n{_MADE}apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {name}\ndata:\n{blocks}"


def _indented(rows: Iterable[dict[str, object]]) -> str:
    return "".join(f"    {json.dumps(row, ensure_ascii=False)}\n" for row in rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the files, or with --check say which differ. 1 when a check finds a difference."""
    parser = argparse.ArgumentParser(prog="python -m ratchet_cli.people.generate", description=__doc__)
    parser.add_argument("folder", type=Path, help="the example's folder, such as examples/assistant")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a file differs")
    arguments = parser.parse_args(argv)
    stale = [name for name, text in manifests().items() if _read(arguments.folder / name) != text]
    if arguments.check:
        for name in stale:
            print(f"{arguments.folder / name} differs: run python -m ratchet_cli.people.generate {arguments.folder}")
        return 1 if stale else 0
    for name, text in manifests().items():
        (arguments.folder / name).write_text(text, encoding="utf-8")
    return 0


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


if __name__ == "__main__":
    sys.exit(main())
