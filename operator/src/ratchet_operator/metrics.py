"""The operator's own Prometheus metrics.

Room: operator. One registry per process object, so that tests do not share counters.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from ratchet_api.cycle import ImprovementCycleStatus
from ratchet_api.names import CYCLE_KIND
from ratchet_operator.snapshots import Snapshots


class Metrics:
    """Every series that the operator exports."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self.reconciles = Counter(
            "ratchet_operator_reconciles_total",
            "Passes over an object, by how they ended.",
            ["kind", "result"],
            registry=self.registry,
        )
        self.duration = Histogram(
            "ratchet_operator_reconcile_duration_seconds",
            "Length of a pass over an object.",
            ["kind"],
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=self.registry,
        )
        self.queued = Gauge("ratchet_operator_queue_depth", "Objects that wait for a worker.", registry=self.registry)
        self.delayed = Gauge(
            "ratchet_operator_queue_delayed", "Objects that are looked at again later.", registry=self.registry
        )
        self.writes = Counter(
            "ratchet_operator_writes_total",
            "Writes to the API server, by verb and kind.",
            ["verb", "kind"],
            registry=self.registry,
        )
        self.rollouts = Counter(
            "ratchet_operator_rollouts_total",
            "Rollouts that have ended, by outcome and reason.",
            ["cycle_namespace", "cycle", "outcome", "reason"],
            registry=self.registry,
        )
        self.runs = Counter(
            "ratchet_operator_runs_total", "Runs that have ended, by outcome.",
            ["cycle_namespace", "cycle", "outcome"], registry=self.registry,
        )  # fmt: skip
        self.stalled = Gauge(
            "ratchet_operator_stalled", "1 for each object that waits for a person.",
            ["kind", "object_namespace", "name"], registry=self.registry,
        )  # fmt: skip
        self._stalled: set[tuple[str, str, str]] = set()
        self.leader = Gauge("ratchet_operator_leader", "1 while this process leads.", registry=self.registry)
        self._cycles = Snapshots()
        self.registry.register(self._cycles)

    def cycle(self, namespace: str, name: str, status: ImprovementCycleStatus | None, stalled: bool = False) -> None:
        """Note how a cycle stands; None: there is no such cycle any more."""
        self.stall(CYCLE_KIND, namespace, name, stalled if status is not None else None)
        self._cycles.note(namespace, name, status)

    def lead(self, leads: bool) -> None:
        """Note whether this process leads. One that does not must not go on exporting what it saw when it did."""
        self.leader.set(leads)
        if not leads:
            self._cycles.clear()
            for where in sorted(self._stalled):
                self.stall(*where, None)

    def stall(self, kind: str, namespace: str, name: str, stalled: bool | None) -> None:
        """Note whether an object waits for a person; None: there is no such object any more."""
        where = (kind, namespace, name)
        if stalled is not None:
            self._stalled.add(where)
            self.stalled.labels(*where).set(stalled)
        elif where in self._stalled:
            self._stalled.discard(where)
            self.stalled.remove(*where)
