"""Work that no pass waits for: visits to forges, deliveries of notices, aliases; one at a time of a kind and cycle.

Room: operator, reconcile. asyncio only. Nothing here outlives the process: whoever begins work finds out from the
status what is still to be done.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from ratchet_operator.errors import NotLeading

log = logging.getLogger(__name__)
Key = tuple[str, str]
"""Namespace and name of a cycle."""
T = TypeVar("T")
BUG = "a bug of the operator: its log has the traceback"
"""What people are told of work that ended so."""


def _nobody(cycle: Key) -> None:
    """Whoever looks anyway need not be told."""


class Background:
    """What goes on beside the passes."""

    def __init__(self, done: Callable[[Key], None] = _nobody) -> None:
        self._done = done
        """Told whose work has ended: the cycle is worth a look."""
        self._tasks: dict[tuple[Key, str], asyncio.Task[None]] = {}

    def busy(self, cycle: Key, kind: str) -> bool:
        """Whether work of this kind goes on for the cycle."""
        return (cycle, kind) in self._tasks

    def begin(
        self, cycle: Key, kind: str, work: Callable[[], Coroutine[Any, Any, T]], after: Callable[[T], None], *, bug: T
    ) -> None:
        """Have `after` told what comes of the work, unless another operator leads then.

        `bug` is what it is told of work that raises anything else: one bug must not take the operator down.
        The cycle must not be busy with this kind.
        """
        one = cycle, kind
        self._tasks[one] = asyncio.create_task(self._run(one, work, after, bug), name=f"{kind} of {'/'.join(cycle)}")

    async def _run(
        self, one: tuple[Key, str], work: Callable[[], Coroutine[Any, Any, T]], after: Callable[[T], None], bug: T
    ) -> None:
        cycle, kind = one
        try:
            found = await work()
        except NotLeading:
            return
        except Exception:
            log.exception("a bug in the %s of %s/%s", kind, *cycle)
            found = bug
        finally:
            del self._tasks[one]
        after(found)
        self._done(cycle)

    async def idle(self) -> None:
        """Until nothing goes on. Raises what an `after` may have raised."""
        await asyncio.gather(*self._tasks.values())

    def cancel(self) -> None:
        """End everything, without waiting for it."""
        for task in self._tasks.values():
            task.cancel()

    async def close(self) -> None:
        """End everything."""
        tasks = list(self._tasks.values())
        self.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
