"""What the node has, and who uses too much of it.

Room: local. Reads /proc. A container's memory is what a cgroup could not reclaim: anonymous and shared memory of all
processes in its session, shared pages counted once (proportional set size). CPU limits are accepted and not enforced.
"""

import os
from pathlib import Path

from ratchet_local.processes import stat_fields

PAGE = os.sysconf("SC_PAGE_SIZE")


def node_memory() -> int:
    """Bytes of memory that this machine, or the cgroup we run in, has."""
    total = os.sysconf("SC_PHYS_PAGES") * PAGE
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def sessions() -> dict[int, list[int]]:
    """All live processes by session id."""
    found: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            fields = stat_fields(int(entry.name))
            if fields is not None and fields[0] != "Z":
                found.setdefault(int(fields[3]), []).append(int(entry.name))
    return found


def resident_bytes(pids: list[int]) -> int:
    """Resident set sizes added up: cheap, and never less than `unreclaimable_bytes`."""
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/statm", encoding="ascii") as handle:
                total += int(handle.read().split()[1]) * PAGE
        except (OSError, IndexError):
            continue  # it has just ended
    return total


def unreclaimable_bytes(pids: list[int]) -> int:
    """Anonymous and shared memory, shared pages counted once; costs a walk through the page tables."""
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as handle:
                fields = dict(line.split(":", 1) for line in handle if line.startswith("Pss"))
        except OSError:
            continue  # it has just ended
        kinds = ("Pss_Anon", "Pss_Shmem") if "Pss_Anon" in fields else ("Pss",)
        total += sum(int(fields[kind].split()[0]) * 1024 for kind in kinds)
    return total


def over_limit(pids: list[int], limit: int) -> bool:
    """Whether these processes together hold more than `limit` bytes."""
    return resident_bytes(pids) > limit and unreclaimable_bytes(pids) > limit
