"""What the simulated people met: counts, windows and failures, safe to read from another thread.

Room: cli. Pure but for a lock; it is told the time.
"""

import math
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from ratchet_cli.people.cases import Kind


@dataclass(frozen=True)
class Exchange:
    """One question, its answer and the verdict on it."""

    at: datetime
    """When the question was sent, UTC."""
    session: str
    """Conversation that it belongs to."""
    kind: Kind
    """house or general."""
    prompt: str
    """The question."""
    answer: str
    """What came back."""
    version: str
    """ModelVersion that answered, as the gateway says it."""
    good: bool
    """Whether the rubric accepts the answer; the verdict may differ from it."""
    up: bool
    """The verdict that was sent."""
    corrected: bool
    """Whether a correction went with it."""
    seconds: float
    """From sending the question to the end of the answer."""
    stream: bool
    """Whether the answer was streamed."""


@dataclass(frozen=True)
class Failed:
    """A question or a feedback that got no proper answer."""

    at: datetime
    """When the question was sent, UTC."""
    reason: str
    """What went wrong, such as `HTTP 503: no arm is ready`."""
    version: str | None = None
    """ModelVersion that should have answered, when it is known."""
    seconds: float = 0.0
    """Until it was known to have failed."""


@dataclass(frozen=True)
class Seen:
    """What people thought of one version."""

    up: int = 0
    """Thumbs up."""
    down: int = 0
    """Thumbs down."""
    recent_up: int = 0
    """Thumbs up of the window."""
    recent_down: int = 0
    """Thumbs down of the window."""
    p50: float = math.nan
    """Median seconds of an answer in the window; NaN when there is none."""
    p95: float = math.nan
    """95th percentile of them."""

    @property
    def up_share(self) -> float:
        """Share of thumbs up of all verdicts; NaN when there is none."""
        return _share(self.up, self.down)

    @property
    def recent_up_share(self) -> float:
        """Share of thumbs up of the window's verdicts; NaN when there is none."""
        return _share(self.recent_up, self.recent_down)


@dataclass(frozen=True)
class Snapshot:
    """Live counters."""

    sent: int
    """Questions sent."""
    answered: int
    """Of them: answered, and judged with success."""
    failed: int
    """Of them: failed, or their feedback did. The rest is under way."""
    shed: int
    """Questions that were due but not sent, since everybody was waiting for an answer."""
    corrected: int
    """Verdicts with a correction."""
    versions: Mapping[str, Seen] = field(default_factory=dict)
    """By version."""

    @property
    def under_way(self) -> int:
        """Questions without an outcome yet."""
        return self.sent - self.answered - self.failed


class Tally:
    """Counts of everything, and the details of the last `window`."""

    def __init__(self, window: timedelta) -> None:
        self._window = window
        self._lock = threading.Lock()
        self._sent = self._shed = self._corrected = self._answered = 0
        self._failures: list[Failed] = []
        self._exchanges: list[Exchange] = []
        self._verdicts: dict[str, list[int]] = {}
        self._recent: deque[Exchange] = deque()

    def sent(self) -> None:
        """A question was sent."""
        with self._lock:
            self._sent += 1

    def shed(self) -> None:
        """A question was due, but nobody was free to ask it."""
        with self._lock:
            self._shed += 1

    def failed(self, failure: Failed) -> None:
        """A question that was sent has failed."""
        with self._lock:
            self._failures.append(failure)

    def answered(self, exchange: Exchange) -> None:
        """A question that was sent is answered and judged."""
        with self._lock:
            self._answered += 1
            self._corrected += exchange.corrected
            self._exchanges.append(exchange)
            self._verdicts.setdefault(exchange.version, [0, 0])[not exchange.up] += 1
            self._recent.append(exchange)

    def failures(self) -> list[Failed]:
        """Every failure, oldest first."""
        with self._lock:
            return list(self._failures)

    def exchanges(self) -> list[Exchange]:
        """Every exchange, in the order in which they ended."""
        with self._lock:
            return list(self._exchanges)

    def snapshot(self, now: datetime) -> Snapshot:
        """Counters now; the window ends at `now`."""
        with self._lock:
            while self._recent and self._recent[0].at < now - self._window:
                self._recent.popleft()
            recent = [e for e in self._recent if e.at >= now - self._window]
            versions = {
                version: _seen(up, down, [e for e in recent if e.version == version])
                for version, (up, down) in self._verdicts.items()
            }
            return Snapshot(
                sent=self._sent, answered=self._answered, failed=len(self._failures), shed=self._shed,
                corrected=self._corrected, versions=versions,
            )  # fmt: skip


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest value with at least `share` of all at or below it (nearest rank); NaN when there are none."""
    ranked = sorted(values)
    if not ranked:
        return math.nan
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)]


def _seen(up: int, down: int, recent: list[Exchange]) -> Seen:
    recent_up = sum(e.up for e in recent)
    seconds = [e.seconds for e in recent]
    return Seen(up, down, recent_up, len(recent) - recent_up, percentile(seconds, 0.5), percentile(seconds, 0.95))


def _share(up: int, down: int) -> float:
    return up / (up + down) if up + down else math.nan
