"""Faults on request: slow pods, and the guard that ends containers which use too much memory.

Room: local. Stops, continues and kills containers' processes.
"""

import asyncio
from collections.abc import Callable, Iterable

from ratchet_local.node.context import NodeContext
from ratchet_local.node.environment import quantity
from ratchet_local.node.pod import PodWorker
from ratchet_local.node.process import ContainerProcess
from ratchet_local.node.resources import over_limit, sessions
from ratchet_local.node.selectors import Matcher, parse_selector

PERIOD_SECONDS = 0.25
SAMPLE_SECONDS = 0.5

Workers = Callable[[], Iterable[PodWorker]]


class Throttle:
    """Takes a share of the time from matching pods by stopping and continuing their processes, until told otherwise."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._rules: dict[str, tuple[Matcher, float]] = {}
        self._active = asyncio.Event()

    def set(self, selector: str, share: float) -> int:
        """Set or, with 0, end the throttle of a selector; returns how many pods match now. Raises ValueError."""
        matcher = parse_selector(selector)
        if not 0 <= share <= 0.99:
            raise ValueError(f"share {share} is out of range: write the share of time to take away, from 0 to 0.99")
        if share == 0:
            self._rules.pop(selector, None)
        else:
            self._rules[selector] = (matcher, share)
        if self._rules:
            self._active.set()
        else:
            self._active.clear()
        return sum(matcher(worker.pod.metadata.labels) for worker in self._workers())

    async def run(self) -> None:
        """Until cancelled; nothing is left stopped."""
        while True:
            await self._active.wait()
            stopped = [(process, share) for worker in self._workers() if (share := self._share(worker))
                       for process in worker.processes()]  # fmt: skip
            try:
                for process, _ in stopped:
                    process.pause()
                passed = 0.0
                for process, share in sorted(stopped, key=lambda pair: pair[1]):
                    await asyncio.sleep(share * PERIOD_SECONDS - passed)
                    passed = share * PERIOD_SECONDS
                    process.resume()
            finally:
                for process, _ in stopped:
                    process.resume()
            await asyncio.sleep(PERIOD_SECONDS - passed)

    def _share(self, worker: PodWorker) -> float:
        labels = worker.pod.metadata.labels
        return max((share for matcher, share in self._rules.values() if matcher(labels)), default=0.0)


class MemoryGuard:
    """Ends containers that hold more memory than their limit, as a kernel's cgroup would."""

    def __init__(self, node: NodeContext, workers: Workers) -> None:
        self._node = node
        self._workers = workers

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)
            limited = list(self._limited())
            if not limited:
                continue
            members = sessions()
            for worker, name, process, limit in limited:
                pids = members.get(process.session, [])
                if pids and over_limit(pids, limit):
                    process.out_of_memory = True
                    process.kill()
                    worker.context.event(
                        "Warning", "OOMKilling", f"Container {name} used more memory than its limit of {limit} bytes"
                    )

    def _limited(self) -> Iterable[tuple[PodWorker, str, ContainerProcess, int]]:
        for worker in self._workers():
            for container, process in worker.running():
                if limit := container.resources.limits.get("memory"):
                    yield worker, container.name, process, int(quantity(limit))
