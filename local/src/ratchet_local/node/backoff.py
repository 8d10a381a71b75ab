"""How long a crashed container waits before it starts again.

Room: local. Pure: the clock is an argument.
"""

from dataclasses import dataclass


@dataclass
class Backoff:
    """Doubles from `first` to `longest` seconds; forgotten after a run of `twice longest`, as in a kubelet."""

    first: float
    longest: float
    _delay: float = 0.0

    def after_exit(self, ran_seconds: float) -> float:
        """Seconds to wait after a container that ran so long has ended: 0 the first time."""
        if ran_seconds >= 2 * self.longest and self._delay:
            self._delay = 0.0
        delay = self._delay
        self._delay = min(self.longest, max(self.first, self._delay * 2))
        return delay
