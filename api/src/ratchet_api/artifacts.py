"""Content-addressed artifacts: a folder in storage that is closed by a manifest.json, written last.

Room: api. Pure; touches nothing.

The digest of an artifact is that of its `files` map alone (canonical JSON), so that the same bytes have the same
digest whoever made them and whenever; inputs, tools and times stand beside it as provenance.
"""

import hashlib
import json
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ratchet_api.base import Digest, Time

MANIFEST = "manifest.json"


class FileEntry(BaseModel):
    """One file of an artifact."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Hexadecimal SHA-256 of the content."""
    size: int = Field(ge=0)
    """Bytes."""


class Manifest(BaseModel):
    """The last object of an artifact; without it the artifact does not exist."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["model", "adapter", "dataset", "report", "checkpoint", "part"]
    """What it is; a part is what one of several workers made."""
    files: dict[str, FileEntry]
    """Path below the folder -> its digest; `manifest.json` itself is not among them."""
    inputs: dict[str, str] = Field(default_factory=dict)
    """What it was made from: name -> digest."""
    tools: dict[str, str] = Field(default_factory=dict)
    """Library -> version."""
    numbers: dict[str, int | float | str] = Field(default_factory=dict)
    """A few figures for people."""
    created_at: Time
    """When; not part of the digest."""

    @property
    def digest(self) -> Digest:
        """`sha256:` and the hash of the canonical JSON of {path: sha256}."""
        return files_digest({path: entry.sha256 for path, entry in self.files.items()})


def files_digest(files: dict[str, str]) -> Digest:
    """Digest of {path: hexadecimal sha256}, independent of order."""
    canonical = json.dumps(files, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()
