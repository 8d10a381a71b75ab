"""Folders on disk as artifacts: hashing, verifying, building manifests.

Room: trainer. Touches the files that it is given, nothing else.
"""

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import ValidationError

from ratchet_api.artifacts import MANIFEST, FileEntry, Manifest
from ratchet_trainer.errors import DataError, DigestMismatch

Kind = Literal["model", "adapter", "dataset", "report", "checkpoint", "part"]
TOOLS = ("torch", "transformers", "peft", "tokenizers", "safetensors", "ratchet")


def tool_versions() -> dict[str, str]:
    """Versions of the libraries that determine what a stage makes."""
    found = {}
    for name in TOOLS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def file_entry(path: Path) -> FileEntry:
    """Hash and size of a file, read in pieces."""
    with path.open("rb") as handle:
        return FileEntry(sha256=hashlib.file_digest(handle, "sha256").hexdigest(), size=path.stat().st_size)


def folder_entries(folder: Path) -> dict[str, FileEntry]:
    """Every file below a folder (but its manifest.json) by its path relative to it; hidden files are left out."""
    entries = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_file() and relative.as_posix() != MANIFEST and not any(p.startswith(".") for p in relative.parts):
            entries[relative.as_posix()] = file_entry(path)
    return entries


def build_manifest(
    kind: Kind, folder: Path, inputs: Mapping[str, str], numbers: Mapping[str, int | float | str]
) -> Manifest:
    """The manifest of a folder as it lies on disk now."""
    return Manifest(
        kind=kind, files=folder_entries(folder), inputs=dict(inputs), tools=tool_versions(), numbers=dict(numbers),
        created_at=datetime.now(UTC),
    )  # fmt: skip


def parse_manifest(data: bytes, where: str, kind: Kind) -> Manifest:
    """A manifest.json. Raises DataError when it is none, is of another kind or names files outside its folder."""
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        text = f"{where}/{MANIFEST} is no manifest ({place}: {first['msg']}): write the artifact again"
        raise DataError(text) from None
    if manifest.kind != kind:
        raise DataError(f"{where} is an artifact of kind {manifest.kind}, not {kind}: name the right folder")
    for path in manifest.files:
        parts = PurePosixPath(path).parts
        if not parts or path.startswith("/") or ".." in parts or "\\" in path or "\0" in path or path == MANIFEST:
            raise DataError(f"{where}/{MANIFEST} names the file {path!r} outside its folder: it is refused")
    return manifest


def check_digest(manifest: Manifest, expected: str | None, where: str) -> None:
    """Raises DigestMismatch when a manifest's digest is not the one that a reference asks for."""
    if expected is not None and manifest.digest != expected:
        raise DigestMismatch(
            f"{where} has digest {manifest.digest} instead of {expected}: it is refused; put the right artifact there, "
            "or correct the digest in the spec"
        )


def check_file(path: Path, name: str, entry: FileEntry, where: str) -> None:
    """Raises DigestMismatch when a file is not what its manifest says."""
    found = file_entry(path)
    if found != entry:
        raise DigestMismatch(
            f"{where}/{name} has sha256 {found.sha256} ({found.size} bytes) instead of {entry.sha256} ({entry.size} "
            "bytes): it was changed after it was written and is refused; write the artifact again"
        )


def local_manifest(folder: Path, kind: Kind, where: str) -> Manifest | None:
    """The manifest of a folder on disk, with every file checked against it; None when it has none.

    Raises DigestMismatch for a file that differs or is missing.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    manifest = parse_manifest(path.read_bytes(), where, kind)
    for name, entry in manifest.files.items():
        file = folder / name
        if not file.is_file():
            raise DigestMismatch(f"{where}/{name} is missing although {MANIFEST} names it: write the artifact again")
        check_file(file, name, entry, where)
    return manifest
