"""Processes of this machine: start them so that they cannot outlive us, find strays, end groups.

Room: local. Touches /proc, prctl and signals.
"""

import ctypes
import hashlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

INSTANCE_VARIABLE = "RATCHET_LOCAL_INSTANCE"
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


def instance(state: Path) -> str:
    """The mark that every process of the platform in this state folder carries in its environment."""
    return hashlib.sha256(str(state.absolute()).encode()).hexdigest()[:16]


def die_with_parent(death_signal: signal.Signals = signal.SIGKILL) -> Callable[[], None]:
    """A `preexec_fn`: the kernel sends the child this signal when the thread that started it ends.

    Also unblocks SIGINT and SIGTERM, whose dispositions a parent may have changed.
    """

    def prepare() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return prepare


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent died, so that none is lost sight of."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def marked(mark: str) -> Iterator[int]:
    """Process ids (not our own) whose environment carries the instance mark."""
    needle = f"{INSTANCE_VARIABLE}={mark}".encode()
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            with open(f"/proc/{entry.name}/environ", "rb") as handle:
                environment = handle.read()
        except OSError:
            continue  # gone, or somebody else's
        if needle in environment.split(b"\0"):
            yield int(entry.name)


def send(pid: int, number: signal.Signals) -> bool:
    """Signal one process; False when it is gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def send_group(group: int, number: signal.Signals) -> bool:
    """Signal a whole process group; False when nobody is left in it."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


def kill_marked(mark: str) -> int:
    """SIGKILL every process with the mark, until none is left; returns how many were hit."""
    hit: set[int] = set()
    for _ in range(20):
        now = [pid for pid in marked(mark) if not _is_zombie(pid)]
        if not now:
            break
        for pid in now:
            hit.add(pid)
            send(pid, signal.SIGKILL)
        psutil.wait_procs([psutil.Process(pid) for pid in now if psutil.pid_exists(pid)], timeout=0.5)
    return len(hit)


def _is_zombie(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def session_members(session: int) -> list[int]:
    """Live process ids of a session: a container's processes, also those that changed their process group."""
    members = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            fields = stat_fields(int(entry.name))
            if fields is not None and fields[3] == str(session) and fields[0] != "Z":
                members.append(int(entry.name))
    return members


def stat_fields(pid: int) -> list[str] | None:
    """/proc/PID/stat from its third field on (state, ppid, pgrp, session, ...); None when the process is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as handle:
            text = handle.read()
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def start_ticks(pid: int) -> str | None:
    """When a process started, in clock ticks since boot: with the pid it names a process for good."""
    fields = stat_fields(pid)
    return fields[19] if fields else None
