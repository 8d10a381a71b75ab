"""What the operator exports of each cycle: gauges that follow from its status alone.

Room: operator. Pure but for the dict of what was seen last; prometheus_client asks for it at each scrape.

All of it is read from the status, so that a restart or another leader exports the same; counters, which begin anew with
each process, cannot tell of a rollback that happened just before. A moment is exported as a moment: `time() - x` is
exact at the time of the query, a number of seconds would be as old as the last pass.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from ratchet_api.cycle import ImprovementCycleStatus, RolloutStatus

CYCLE = ("cycle_namespace", "cycle")


@dataclass(frozen=True)
class Family:
    """One metric of a cycle: name, meaning, and its labels besides those of CYCLE."""

    name: str
    help: str
    labels: tuple[str, ...] = ()


PHASE = Family("ratchet_operator_cycle_phase", "1 for the phase that the cycle is in.", ("phase",))
CONDITION = Family(
    "ratchet_operator_cycle_condition", "1 if the condition is True, 0 if it is False or Unknown.", ("condition",)
)
CHAMPION = Family("ratchet_operator_champion_info", "1 for the version that serves as champion.", ("version",))
SINCE = Family(
    "ratchet_operator_champion_since_timestamp_seconds",
    "When the newest champion was proven to serve; none: the cycle has never served.",
)
READY = Family("ratchet_operator_arm_ready_replicas", "Pods of the arm that are ready and list the model.", ("arm",))
WANTED = Family("ratchet_operator_arm_replicas", "Pods of the arm that are wanted.", ("arm",))
ASKED = Family("ratchet_operator_candidate_weight_percent", "Share of the sessions asked for the candidate.")
OBSERVED = Family("ratchet_operator_candidate_observed_weight_percent", "Share that is seen to be in force.")
HELD = Family(
    "ratchet_operator_rollout_held_since_timestamp_seconds", "Since when the rollout is held; none: it is not."
)
AWAITING = Family(
    "ratchet_operator_rollout_awaiting_since_timestamp_seconds",
    "Since when the promotion waits for a person's approval; none: it does not.",
)
STARTED = Family("ratchet_operator_rollout_started_timestamp_seconds", "When the rollout under way began.", ("phase",))
RUNNING = Family("ratchet_operator_run_started_timestamp_seconds", "When the run under way began.", ("stage",))
ENDED = Family("ratchet_operator_run_ended_timestamp_seconds", "When the last run ended, and how.", ("outcome",))
LAST = Family(
    "ratchet_operator_history_last_timestamp_seconds",
    "When a run or rollout last ended so, of those that status.history still has.",
    ("outcome",),
)
REJECTED = Family("ratchet_operator_rejected_digests", "Digests that are not tried again.")
FAMILIES = (
    PHASE, CONDITION, CHAMPION, SINCE, READY, WANTED, ASKED, OBSERVED, HELD, AWAITING, STARTED, RUNNING,
    ENDED, LAST, REJECTED,
)  # fmt: skip

Sample = tuple[Family, tuple[str, ...], float]


def samples(status: ImprovementCycleStatus) -> Iterator[Sample]:
    """Every value that a status gives: (family, its labels' values, value)."""
    yield PHASE, (status.phase,), 1
    for condition in status.conditions:
        yield CONDITION, (condition.type,), float(condition.status == "True")
    serving, run = status.serving, status.run
    if serving.stable is not None:
        yield CHAMPION, (serving.stable.version,), 1
    if status.last_good:
        yield SINCE, (), status.last_good[-1].at.timestamp()
    for role, arm in (("stable", serving.stable), ("candidate", serving.candidate)):
        if arm is not None:
            yield READY, (role,), arm.ready_replicas
            yield WANTED, (role,), arm.replicas
    if status.rollout is not None and status.rollout.phase != "Done":
        yield from _rollout(status.rollout)
        if serving.candidate is not None and serving.candidate.observed_weight is not None:
            yield OBSERVED, (), serving.candidate.observed_weight
    if run is not None and run.finished_at is None:
        yield RUNNING, (run.stage,), run.started_at.timestamp()
    if run is not None and run.finished_at is not None and run.outcome is not None:
        yield ENDED, (run.outcome,), run.finished_at.timestamp()
    last: dict[str, datetime] = {}
    for entry in status.history:
        last[entry.outcome] = max(entry.at, last.get(entry.outcome, entry.at))
    for outcome, at in last.items():
        yield LAST, (outcome,), at.timestamp()
    yield REJECTED, (), len(status.rejected)


def _rollout(rollout: RolloutStatus) -> Iterator[Sample]:
    yield ASKED, (), rollout.weight
    yield STARTED, (rollout.phase,), rollout.started_at.timestamp()
    if rollout.held_since is not None:
        yield HELD, (), rollout.held_since.timestamp()
    if rollout.awaiting_since is not None:
        yield AWAITING, (), rollout.awaiting_since.timestamp()


class Snapshots(Collector):
    """The status that was last written or found of each cycle."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], ImprovementCycleStatus] = {}

    def note(self, namespace: str, name: str, status: ImprovementCycleStatus | None) -> None:
        """This is how the cycle stands; None: there is no such cycle any more."""
        if status is None:
            self._seen.pop((namespace, name), None)
        else:
            self._seen[namespace, name] = status

    def clear(self) -> None:
        """Another process leads, and exports how things go on."""
        self._seen.clear()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """What Prometheus reads."""
        families = {f.name: GaugeMetricFamily(f.name, f.help, labels=[*CYCLE, *f.labels]) for f in FAMILIES}
        for where, status in sorted(self._seen.items()):
            for family, labels, value in samples(status):
                families[family.name].add_metric([*where, *labels], value)
        yield from families.values()
