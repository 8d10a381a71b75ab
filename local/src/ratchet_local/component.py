"""One process of the platform as data: what to run, how to tell that it is ready, how long it may take to end.

Room: local. Pure.
"""

import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ratchet_local.pki import KeyPair


@dataclass(frozen=True)
class Ready:
    """An HTTP(S) GET that answers with one of `statuses` once the process can be used."""

    url: str
    authority: Path | None = None
    client: KeyPair | None = None
    statuses: frozenset[int] = frozenset({200})


@dataclass(frozen=True)
class Component:
    """A process that the supervisor keeps running."""

    name: str
    command: tuple[str, ...]
    ready: Ready
    env: Mapping[str, str] = field(default_factory=dict)
    after: tuple[str, ...] = ()
    """Components that must be ready before this one starts."""
    ready_seconds: float = 120.0
    """Generous: a stalled start is usually a busy machine."""
    grace_seconds: float = 10.0
    """Between SIGTERM and SIGKILL."""
    litter: tuple[Path, ...] = ()
    """Files that it leaves behind outside the state folder when it is killed; removed before start and after end."""
    death_signal: signal.Signals = signal.SIGKILL
    """What the kernel sends it when the supervisor dies."""
