"""What the on-call commands look at: one cycle and its versions at one moment, and how commands are to be typed.

Room: cli. Pure.
"""

import shlex
from dataclasses import dataclass, field

from ratchet_api.conditions import find
from ratchet_api.cycle import ImprovementCycle, RolloutStatus, RunStatus
from ratchet_api.names import RUN_ANNOTATION
from ratchet_api.reasons import ConditionType
from ratchet_api.version import ModelVersion, StageStatus


@dataclass(frozen=True)
class Where:
    """How a command that we propose reaches the same cluster and namespace as the present one."""

    program: str = "ratchet"
    """What the person typed: `ratchet` or `kubectl ratchet`."""
    namespace: str = ""
    """Empty: the namespace of the kubeconfig's context, which need not be written."""
    context: str = ""
    kubeconfig: str = ""

    def ratchet(self, command: str) -> str:
        """A command of ours."""
        return f"{self.program} {command}{self._options()}"

    def kubectl(self, command: str) -> str:
        """A command of kubectl."""
        return f"kubectl {command}{self._options()}"

    def _options(self) -> str:
        given = (("-n", self.namespace), ("--context", self.context), ("--kubeconfig", self.kubeconfig))
        return "".join(f" {option} {shlex.quote(value)}" for option, value in given if value)


@dataclass(frozen=True)
class View:
    """One cycle and its versions."""

    cycle: ImprovementCycle
    versions: tuple[ModelVersion, ...] = ()
    """Of this cycle, the oldest first."""
    where: Where = field(default_factory=Where)

    @property
    def name(self) -> str:
        """Of the cycle."""
        return self.cycle.metadata.name

    def version(self, name: str | None) -> ModelVersion | None:
        """The version of that name, if there is one."""
        return next((v for v in self.versions if v.metadata.name == name), None)

    @property
    def run(self) -> RunStatus | None:
        """The run that goes on."""
        run = self.cycle.status.run
        return run if run is not None and run.finished_at is None else None

    @property
    def rollout(self) -> RolloutStatus | None:
        """The rollout that goes on."""
        rollout = self.cycle.status.rollout
        return rollout if rollout is not None and rollout.phase != "Done" else None

    @property
    def run_is_asked_for(self) -> bool:
        """Whether a person has asked for a run that the operator has not begun yet."""
        asked = self.cycle.metadata.annotations.get(RUN_ANNOTATION, "")
        run = self.cycle.status.run
        return bool(asked) and asked != (run.request if run is not None else "")

    @property
    def unread(self) -> bool:
        """Whether the operator has not acted on the present spec yet."""
        return self.cycle.metadata.generation > self.cycle.status.observed_generation

    @property
    def bystanders(self) -> list[ModelVersion]:
        """Versions that are on their way without being the run's: applied by a person."""
        run = self.run
        on_their_way = ("Pending", "Training", "Evaluating", "Accepted", "Canary", "Baking")
        return [
            v
            for v in self.versions
            if v.status.phase in on_their_way and (run is None or v.metadata.name != run.version) and not is_returned(v)
        ]


def awaits_pointer(cycle: ImprovementCycle, version: ModelVersion) -> bool:
    """Whether it is accepted, and serving.version names another one."""
    pointer = cycle.spec.serving.version
    return version.status.phase == "Accepted" and pointer not in (None, version.metadata.name)


def is_root(version: ModelVersion) -> bool:
    """Whether it is the bare base model."""
    return version.spec.run == 0 and version.spec.dataset is None and version.spec.adapter is None


def is_returned(version: ModelVersion) -> bool:
    """Whether its rollout ended without blame: nothing happens with it by itself any more."""
    stalled = find(version.status.conditions, ConditionType.STALLED)
    return version.status.outcome == "Returned" and stalled is not None and stalled.status == "True"


def stage_of(version: ModelVersion | None, name: str) -> StageStatus | None:
    """Status of one stage of a version."""
    if version is None:
        return None
    return next((entry for entry in version.status.stages if entry.stage == name), None)


def open_stage(view: View) -> StageStatus | None:
    """The run's stage that has not ended."""
    run = view.run
    if run is None:
        return None
    stages = [run.curate, *(version.status.stages if (version := view.version(run.version)) else [])]
    return next((stage for stage in stages if stage is not None and stage.finished_at is None), None)
