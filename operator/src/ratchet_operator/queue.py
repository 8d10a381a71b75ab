"""The work queue: keys of objects that have to be looked at, each by at most one worker at a time.

Room: operator. asyncio only.

A key that is added while it is being worked on is worked on once more afterwards; added often, it still waits once.
Every pass decides anew when the next one is due, so an older appointment is forgotten when a pass begins.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

FIRST_BACKOFF = 0.25
LAST_BACKOFF = 120.0
"""Seconds; between two attempts at a key that fails again and again."""


@dataclass(frozen=True, order=True)
class Key:
    """One object of ours."""

    kind: str
    """names.CYCLE_KIND or names.VERSION_KIND."""
    namespace: str
    name: str


class WorkQueue:
    """Keys that wait, keys with an appointment, keys that are being worked on."""

    def __init__(self, changed: Callable[[int, int], None] = lambda waiting, delayed: None) -> None:
        self._changed = changed
        """Told the number of waiting and of delayed keys after each change."""
        self._ready: asyncio.Queue[Key] = asyncio.Queue()
        self._waiting: set[Key] = set()
        self._working: dict[Key, float] = {}
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._failures: dict[Key, int] = {}

    def add(self, key: Key) -> None:
        """Look at it as soon as a worker is free."""
        if key in self._waiting:
            return
        self._waiting.add(key)
        if key not in self._working:
            self._ready.put_nowait(key)
        self._tell()

    def add_after(self, key: Key, seconds: float) -> None:
        """Look at it in `seconds`, or when an earlier appointment says so."""
        loop = asyncio.get_running_loop()
        due = loop.time() + max(0.0, seconds)
        timer = self._timers.get(key)
        if timer is not None:
            if timer.when() <= due:
                return
            timer.cancel()
        self._timers[key] = loop.call_at(due, self._due, key)
        self._tell()

    def add_backoff(self, key: Key) -> float:
        """Look at it again after a failure, each time later; returns the seconds."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        delay = float(min(LAST_BACKOFF, FIRST_BACKOFF * 2 ** min(failures, 30)))
        self.add_after(key, delay)
        return delay

    def succeeded(self, key: Key) -> None:
        """Its next failure is a first one again."""
        self._failures.pop(key, None)

    async def take(self) -> Key:
        """The next key; `done` has to follow."""
        key = await self._ready.get()
        self._waiting.discard(key)
        self._working[key] = asyncio.get_running_loop().time()
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
        self._tell()
        return key

    def done(self, key: Key) -> None:
        """The pass over it has ended, however it ended."""
        self._working.pop(key, None)
        if key in self._waiting:
            self._ready.put_nowait(key)

    def oldest(self) -> float:
        """Seconds that the longest pass under way has taken so far."""
        now = asyncio.get_running_loop().time()
        return max((now - since for since in self._working.values()), default=0.0)

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is worked on; appointments may exist."""
        return not self._waiting and not self._working

    def clear(self) -> None:
        """Forget all appointments and everything that waits."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._waiting.clear()
        self._failures.clear()
        while not self._ready.empty():
            self._ready.get_nowait()
        self._tell()

    def _due(self, key: Key) -> None:
        self._timers.pop(key, None)
        self.add(key)

    def _tell(self) -> None:
        self._changed(len(self._waiting), len(self._timers))
