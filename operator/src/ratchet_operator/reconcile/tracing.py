"""Spans on their way to the collector, in the background: no pass waits for one, none is lost to a collector's outage.

Room: operator, reconcile. What has ended is domain.traces'. Nothing is written down: a new process finds the same spans
in the statuses, under the same ids.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Protocol

from ratchet_operator.clients.otlp import Unexported
from ratchet_operator.domain.traces import Span
from ratchet_operator.errors import NotLeading

log = logging.getLogger(__name__)
Key = tuple[str, str]
Mark = tuple[str, datetime]
"""A span's id and its end: a stage that is done again ends again."""
FIRST_BACKOFF, LAST_BACKOFF = 1.0, 60.0
"""Seconds between two attempts while the collector fails."""


class CollectorPort(Protocol):
    """See clients.otlp."""

    async def export(self, spans: Sequence[Span]) -> None:
        """One attempt. Raises Unexported."""
        ...


class Tracer:
    """What is to be told, and what was. A cycle's entry is its last pass', so there is never much."""

    def __init__(self, collector: CollectorPort, guard: Callable[[], None] = lambda: None) -> None:
        self._collector = collector
        self._guard = guard
        """Raises NotLeading when this process must not speak."""
        self._wanted: dict[Key, tuple[Span, ...]] = {}
        self._told: dict[Key, frozenset[Mark]] = {}
        self._work: asyncio.Task[None] | None = None

    def note(self, key: Key, spans: tuple[Span, ...]) -> None:
        """The cycle's spans that have ended, told before or not."""
        marks = frozenset(map(_mark, spans))
        told = self._told[key] = self._told.get(key, frozenset()) & marks
        if told == marks:
            self._wanted.pop(key, None)
            return
        self._wanted[key] = spans
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._send(), name="spans to the collector")

    def forget(self, key: Key) -> None:
        """The cycle is gone. What has ended is told all the same."""
        self._told.pop(key, None)

    async def idle(self) -> None:
        """Until nothing is left to tell."""
        if self._work is not None:
            await self._work

    async def close(self) -> None:
        """End; what was not told is found again by the next process."""
        if self._work is not None:
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)

    async def _send(self) -> None:
        failures = 0
        while self._wanted:
            key, spans = next(iter(self._wanted.items()))
            told = self._told.get(key, frozenset())
            fresh = [span for span in spans if _mark(span) not in told]
            try:
                self._guard()
                await self._collector.export(fresh)
            except NotLeading:
                self._wanted.clear()
                return
            except Unexported as error:
                if not error.final:
                    failures += 1
                    if failures == 1:
                        log.warning("spans cannot be exported and wait: %s", error.message)
                    await asyncio.sleep(min(LAST_BACKOFF, FIRST_BACKOFF * 2 ** min(failures - 1, 8)))
                    continue
                log.warning("%d spans of %s/%s are given up: %s", len(fresh), *key, error.message)
            if failures:
                log.info("spans are exported again")
                failures = 0
            told = self._told[key] = self._told.get(key, frozenset()) | frozenset(map(_mark, fresh))
            if told.issuperset(map(_mark, self._wanted.get(key, ()))):
                self._wanted.pop(key, None)


def _mark(span: Span) -> Mark:
    return span.id, span.ended
