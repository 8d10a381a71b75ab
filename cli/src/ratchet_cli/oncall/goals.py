"""Whether a cycle has come to where somebody waits for it: `ratchet status --wait --for GOAL`.

Room: cli. Pure.
"""

from dataclasses import dataclass
from typing import Literal

from ratchet_api.conditions import find
from ratchet_api.cycle import RolloutDecision
from ratchet_api.reasons import ConditionType
from ratchet_api.version import ModelVersion
from ratchet_cli.oncall.view import View, awaits_pointer

Goal = Literal["ready", "idle", "promoted"]
State = Literal["Reached", "Failed", "Waiting"]


@dataclass(frozen=True)
class Standing:
    """How far it is, and the sentence for the log of a pipeline."""

    state: State
    message: str


def standing(view: View, goal: Goal, version: str | None = None) -> Standing:
    """How far a cycle is from a goal.

    ready: the champion serves. idle: nothing goes on. promoted: the present (or last) run's version, or `version`, is
    champion and has stood its bake. A cycle that stands still on something missing has failed each of them.
    """
    cycle = view.cycle
    if cycle.metadata.deletion_timestamp is not None:
        return Standing("Failed", f"{view.name} is being deleted")
    if not cycle.status.conditions:
        return Standing("Waiting", "no operator has looked at it yet")
    if view.unread:
        return Standing("Waiting", "the operator has not read the latest change of the spec yet")
    match goal:
        case "ready":
            return _ready(view)
        case "idle":
            return _idle(view)
        case "promoted":
            return _promoted_version(view, version) if version is not None else _promoted(view)


def _stalled(view: View) -> Standing | None:
    found = find(view.cycle.status.conditions, ConditionType.STALLED)
    if found is None or found.status != "True":
        return None
    return Standing("Failed", f"{view.name} is stalled, {found.reason}: {found.message}")


def _ready(view: View) -> Standing:
    found = find(view.cycle.status.conditions, ConditionType.READY)
    words = found.message if found is not None else "not looked at yet"
    if found is not None and found.status == "True":
        return Standing("Reached", words)
    return _stalled(view) or Standing("Waiting", words)


def _idle(view: View) -> Standing:
    if stalled := _stalled(view):
        return stalled
    ready = _ready(view)
    if view.cycle.spec.suspend and (view.run_is_asked_for or view.run or view.rollout):
        return Standing("Failed", f"{view.name} is suspended: what goes on does not end before it is resumed")
    if view.run_is_asked_for:
        return Standing("Waiting", "the run that was asked for has not begun yet")
    busy = _busy(view)
    if busy is not None:
        return Standing("Waiting", busy)
    return ready


def _busy(view: View) -> str | None:
    if view.rollout is not None:
        return f"{view.rollout.version} is rolled out: {view.rollout.phase}, {view.rollout.weight} %"
    if view.run is not None:
        return f"run {view.run.number} is {view.run.stage.lower()}"
    waiting = [v.metadata.name for v in view.bystanders if not _is_stuck(v) and not awaits_pointer(view.cycle, v)]
    return f"{', '.join(waiting)} is on its way" if waiting else None


def _is_stuck(version: ModelVersion) -> bool:
    found = find(version.status.conditions, ConditionType.STALLED)
    return found is not None and found.status == "True"


def _promoted(view: View) -> Standing:
    """Of the run that goes on or is asked for, else of the last one."""
    run = view.cycle.status.run
    if view.cycle.spec.suspend and (view.run_is_asked_for or view.run is not None):
        return Standing("Failed", f"{view.name} is suspended: its run does not go on before it is resumed")
    if view.run_is_asked_for and view.run is None:
        return _stalled(view) or Standing("Waiting", "the run that was asked for has not begun yet")
    if run is None:
        return Standing("Failed", f"{view.name} has had no run: type `{view.where.ratchet(f'run {view.name}')}` first")
    if run.outcome == "Accepted" and run.version is not None:
        return _promoted_version(view, run.version)
    if run.finished_at is not None:
        message = f"run {run.number} ended as {run.outcome}: {run.message}"
        return Standing("Reached" if run.outcome == "Promoted" else "Failed", message)
    if run.version is not None and view.version(run.version) is not None:
        return _promoted_version(view, run.version)
    return _stalled(view) or Standing("Waiting", f"run {run.number} is {run.stage.lower()}")


def _promoted_version(view: View, name: str) -> Standing:
    version = view.version(name)
    if version is None:
        return Standing("Waiting", f"there is no version {name} yet")
    rollout, phase = view.cycle.status.rollout, version.status.phase
    if rollout is not None and rollout.version == name and rollout.phase != "Done":
        if rollout.decision is not None:
            return Standing("Failed", _decided(name, rollout.decision))
        return _stalled(view) or Standing(
            "Waiting", f"{name}: {rollout.phase}, {rollout.weight} %: {rollout.summary}".rstrip(": ")
        )
    if phase in ("Serving", "Superseded"):
        return Standing("Reached", f"{name} is champion" if phase == "Serving" else f"{name} was champion")
    stuck = find(version.status.conditions, ConditionType.STALLED)
    if stuck is not None and stuck.status == "True":
        return Standing("Failed", f"{name} is {phase.lower()}, {stuck.reason}: {stuck.message}")
    rejected = find(version.status.conditions, ConditionType.REJECTED)
    if rejected is not None and rejected.status == "True":
        return Standing("Failed", f"{name} is rejected, {rejected.reason}: {rejected.message}")
    if version.status.outcome in ("RolledBack", "Returned"):
        return Standing("Failed", f"{name} ended as {version.status.outcome}")
    if awaits_pointer(view.cycle, version):
        pointer = view.cycle.spec.serving.version
        return Standing("Waiting", f"{name} is accepted; serving.version names {pointer}, and has to name it")
    return _stalled(view) or Standing("Waiting", f"{name} is {phase.lower()}")


def _decided(name: str, decision: RolloutDecision) -> str:
    return f"{name} ended as {decision.outcome}, {decision.reason}: {decision.message}"
