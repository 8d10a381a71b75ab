"""Processes of this machine: start them so that they cannot outlive us, find strays, end groups.

Room: local. Touches /proc, prctl and signals.
"""

import asyncio
import contextlib
import ctypes
import hashlib
import os
import signal
import sys
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


def watch_children() -> None:
    """Have asyncio learn of ended children through pidfds, not through a thread for each (Python 3.11's default).

    Call it inside the running loop, before the first child: `preexec_fn` wants no other threads.
    """
    if sys.version_info < (3, 12):
        watcher = asyncio.PidfdChildWatcher()
        watcher.attach_loop(asyncio.get_running_loop())
        asyncio.set_child_watcher(watcher)


def reap_adopted(own: set[int]) -> None:
    """Clear away ended processes that we adopted; `own` are children that somebody else waits for."""
    me = str(os.getpid())
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) in own:
            continue
        fields = stat_fields(int(entry.name))
        if fields is not None and fields[0] == "Z" and fields[1] == me:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(int(entry.name), os.WNOHANG)


def marked(mark: str, variable: str = INSTANCE_VARIABLE) -> Iterator[int]:
    """Process ids (not our own) whose environment carries the mark, wherever in the process tree they have gone."""
    needle = f"{variable}={mark}".encode()
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
