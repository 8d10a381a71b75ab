"""The manifests of examples/assistant, as they are or with a profile's overrides.

Room: cli. Reads files.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ratchet_cli.demo.errors import Unprepared
from ratchet_cli.demo.settings import Settings

CYCLE_FILE = "cycle.yaml"


@dataclass(frozen=True)
class ManifestFile:
    """One file to apply."""

    shown: str
    """Its path as a person would write it."""
    text: str
    """Its content, overrides applied."""


def cycle_manifests(settings: Settings) -> list[ManifestFile]:
    """Suites, anchors and last the cycle. Raises Unprepared when the example is not there."""
    cycle = settings.example / CYCLE_FILE
    if not cycle.is_file():
        raise Unprepared(f"{cycle} does not exist: the checkout named by --checkout is not complete")
    others = sorted(p for p in settings.example.glob("*.yaml") if not p.name.startswith("cycle"))
    found = [ManifestFile(_shown(path), path.read_text(encoding="utf-8")) for path in others]
    text = cycle.read_text(encoding="utf-8")
    overrides = settings.profile.overrides
    return [*found, ManifestFile(_shown(cycle), overridden(text, overrides) if overrides else text)]


def _shown(path: Path) -> str:
    return str(Path(*path.parts[-3:]))


def overridden(text: str, overrides: Mapping[str, object]) -> str:
    """A YAML document with some fields replaced: `spec.a.b` -> value. Missing blocks on the way are made."""
    document: dict[str, Any] = yaml.safe_load(text)
    for dotted, value in overrides.items():
        *path, last = dotted.split(".")
        block = document
        for key in path:
            block = block.setdefault(key, {})
        block[last] = value
    return yaml.safe_dump(document, sort_keys=False)
