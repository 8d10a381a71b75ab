"""Settings of one gateway process, grouped by what they govern.

Room: gateway. Pure; touches nothing.
"""

from dataclasses import dataclass
from pathlib import Path

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """How much and how long a request may be."""

    body_bytes: int = 4 * MIB
    """Largest request body; a larger one is answered with 413."""
    answer_bytes: int = 64 * MIB
    """Largest answer of an arm (or single line of its stream); a larger one is answered with 502."""
    body_seconds: float = 60.0
    """Longest wait for a request's body."""
    request_seconds: float = 600.0
    """Longest whole answer, to its last byte at the client."""
    connect_seconds: float = 2.0
    """Longest connection set-up to a pod, before another one is tried."""
    idle_seconds: float = 300.0
    """Longest silence of an arm, before and during its answer."""
    suspect_seconds: float = 1.0
    """How long a pod that could not be reached is passed over. A dead pod has the fewest requests, so without this the
    least busy choice would prefer it until Kubernetes notices."""


@dataclass(frozen=True, slots=True)
class SpoolSettings:
    """The local, append-only record and its way to object storage."""

    folder: Path
    """Where segments lie until they are uploaded; must survive a restart of the process."""
    writer: str
    """First part of the objects' names: the pod's name."""
    limit_bytes: int = 1024 * MIB
    """Most bytes kept on disk; beyond it the newest records are dropped and counted."""
    segment_bytes: int = 8 * MIB
    """A segment is closed at this size ..."""
    segment_seconds: float = 30.0
    """... or this age, whichever comes first."""
    retry_seconds: tuple[float, float] = (0.5, 30.0)
    """First and longest pause after a failed upload."""
    remembered_answers: int = 100_000
    """Answers whose session and first verdict are remembered."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that the command line says."""

    host: str
    """Address to listen on."""
    port: int
    """Port to listen on; 0 takes a free one."""
    spool: SpoolSettings
    """The record."""
    namespaces: tuple[str, ...] = ()
    """Namespaces whose cycles are served; empty means all."""
    limits: Limits = Limits()
    """Bounds of a request."""
    drain_seconds: float = 3.0
    """After SIGTERM: time in which the gateway still answers although it is not ready any more, so that load balancers
    notice."""
    grace_seconds: float = 60.0
    """After that: time for answers under way to end. Drain, grace and the last upload have to fit into the pod's
    terminationGracePeriodSeconds."""
    upload_seconds: float = 20.0
    """After that: time for the last upload; what is left waits in the spool."""
