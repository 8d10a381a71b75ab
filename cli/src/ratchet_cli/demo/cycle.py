"""The manifests of examples/assistant.

Room: cli. Reads files.
"""

from dataclasses import dataclass
from pathlib import Path

from ratchet_cli.demo.errors import Unprepared
from ratchet_cli.demo.settings import Settings

CYCLE_FILE = "cycle.yaml"


@dataclass(frozen=True)
class ManifestFile:
    """One file to apply."""

    shown: str
    """Its path as a person would write it."""
    text: str
    """Its content."""


def cycle_manifests(settings: Settings) -> list[ManifestFile]:
    """Suites, anchors and last the cycle. Raises Unprepared when the example is not there."""
    cycle = settings.example / CYCLE_FILE
    if not cycle.is_file():
        raise Unprepared(f"{cycle} does not exist: the checkout named by --checkout is not complete")
    others = sorted(p for p in settings.example.glob("*.yaml") if not p.name.startswith("cycle"))
    return [ManifestFile(_shown(path), path.read_text(encoding="utf-8")) for path in (*others, cycle)]


def _shown(path: Path) -> str:
    return str(Path(*path.parts[-3:]))
