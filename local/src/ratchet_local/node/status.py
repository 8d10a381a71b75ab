"""What a pod's status says, computed from what its containers do.

Room: local. Pure: the clock is an argument.
"""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ratchet_local.node.model import Condition, Pod, RestartPolicy, Terminated

Phase = Literal["Pending", "Running", "Succeeded", "Failed"]


@dataclass(frozen=True)
class Waits:
    reason: str
    message: str = ""


@dataclass(frozen=True)
class Runs:
    started_at: datetime.datetime


@dataclass(frozen=True)
class Ended:
    exit_code: int
    reason: str
    started_at: datetime.datetime
    finished_at: datetime.datetime
    container_id: str
    message: str = ""


State = Waits | Runs | Ended


@dataclass
class ContainerView:
    """One container as the status shows it."""

    name: str
    image: str
    state: State
    last: Ended | None = None
    restarts: int = 0
    ready: bool = False
    started: bool = False
    container_id: str = ""


@dataclass(frozen=True)
class Override:
    """A reason from outside the containers that makes the pod Failed: deadline, preemption, refusal."""

    reason: str
    message: str


@dataclass(frozen=True)
class Disruption:
    """Why a pod is taken away through no fault of its own (condition DisruptionTarget)."""

    reason: str
    message: str


@dataclass(frozen=True)
class PodFacts:
    """What the status says about the pod as a whole."""

    host_ip: str
    pod_ip: str
    started_at: datetime.datetime
    network_ready: bool
    override: Override | None = None
    disruption: Disruption | None = None


def format_time(moment: datetime.datetime) -> str:
    """RFC 3339 in UTC with seconds, as Kubernetes writes times."""
    return moment.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def phase(policy: RestartPolicy, inits: Sequence[ContainerView], mains: Sequence[ContainerView]) -> Phase:
    """A kubelet's rules: init containers first, then what the main containers add up to."""
    for view in inits:
        match view.state:
            case Ended(exit_code=0):
                continue
            case Ended() if policy == "Never":
                return "Failed"
            case _:
                return "Pending"
    running = sum(isinstance(view.state, Runs) for view in mains)
    ended = [view.state for view in mains if isinstance(view.state, Ended)]
    again = sum(isinstance(view.state, Waits) and view.last is not None for view in mains)
    if len(mains) - running - len(ended) - again > 0:
        return "Pending"
    if running or policy == "Always" or again:
        return "Running"
    if all(state.exit_code == 0 for state in ended):
        return "Succeeded"
    return "Failed" if policy == "Never" else "Running"


def final_phase(views: Sequence[ContainerView]) -> Phase:
    """The phase of a pod that was ended from outside: Succeeded only if every container ended well."""
    states = [view.state for view in views]
    return "Succeeded" if all(isinstance(state, Ended) and state.exit_code == 0 for state in states) else "Failed"


def pod_status(
    pod: Pod,
    current: Phase,
    facts: PodFacts,
    inits: Sequence[ContainerView],
    mains: Sequence[ContainerView],
    now: datetime.datetime,
    sent: Mapping[str, Condition],
) -> dict[str, Any]:
    """The status block to write. `sent` are the conditions so far: an unchanged one keeps its transition time."""
    current = "Failed" if facts.override else current
    status: dict[str, Any] = {
        "phase": current,
        "observedGeneration": pod.metadata.generation,
        "startTime": format_time(facts.started_at),
        "hostIP": facts.host_ip,
        "hostIPs": [{"ip": facts.host_ip}],
        "conditions": [_stamp(condition, now, sent) for condition in _conditions(pod, current, facts, inits, mains)],
        "initContainerStatuses": [_container(view) for view in inits],
        "containerStatuses": [_container(view) for view in mains],
        "reason": facts.override.reason if facts.override else None,
        "message": facts.override.message if facts.override else None,
    }
    if facts.pod_ip:
        status |= {"podIP": facts.pod_ip, "podIPs": [{"ip": facts.pod_ip}]}
    return status


def _conditions(
    pod: Pod, current: Phase, facts: PodFacts, inits: Sequence[ContainerView], mains: Sequence[ContainerView]
) -> list[Condition]:
    finished = current in ("Succeeded", "Failed")
    pending = [view.name for view in inits if not (isinstance(view.state, Ended) and view.state.exit_code == 0)]
    unready = [view.name for view in mains if not view.ready]
    initialized = _condition("Initialized", not pending, "ContainersNotInitialized", "incomplete", pending)
    if finished and current == "Succeeded":
        initialized = Condition(type="Initialized", status="True", reason="PodCompleted")
    containers = _condition("ContainersReady", not unready and not finished, "ContainersNotReady", "unready", unready)
    if finished:
        why = "PodCompleted" if current == "Succeeded" else "PodFailed"
        containers = containers.model_copy(update={"reason": why, "message": ""})
    ready = containers.model_copy(update={"type": "Ready"})
    if ready.status == "True" and (gate := _closed_gate(pod)):
        ready = Condition(
            type="Ready", status="False", reason="ReadinessGatesNotReady",
            message=f'corresponding condition of pod readiness gate "{gate}" does not exist or is not True.',
        )  # fmt: skip
    network = Condition(
        type="PodReadyToStartContainers", status="True" if facts.network_ready and not finished else "False"
    )
    found = [network, initialized, ready, containers]
    if facts.disruption:
        why, message = facts.disruption.reason, facts.disruption.message
        found.append(Condition(type="DisruptionTarget", status="True", reason=why, message=message))
    return found


def _closed_gate(pod: Pod) -> str | None:
    true = {condition.type for condition in pod.status.conditions if condition.status == "True"}
    return next((gate.condition_type for gate in pod.spec.readiness_gates if gate.condition_type not in true), None)


def _condition(kind: str, good: bool, reason: str, adjective: str, names: list[str]) -> Condition:
    if good:
        return Condition(type=kind, status="True")
    return Condition(
        type=kind, status="False", reason=reason,
        message=f"containers with {adjective} status: [{' '.join(names)}]" if names else "",
    )  # fmt: skip


def _stamp(condition: Condition, now: datetime.datetime, sent: Mapping[str, Condition]) -> dict[str, Any]:
    before = sent.get(condition.type)
    same = before is not None and before.status == condition.status and before.last_transition_time is not None
    moment = before.last_transition_time if same and before and before.last_transition_time else now
    return {
        "type": condition.type,
        "status": condition.status,
        "reason": condition.reason or None,
        "message": condition.message or None,
        "lastProbeTime": None,
        "lastTransitionTime": format_time(moment),
    }


def _container(view: ContainerView) -> dict[str, Any]:
    return {
        "name": view.name,
        "image": view.image,
        "imageID": f"process://{view.image}" if view.container_id else "",
        "containerID": view.container_id,
        "restartCount": view.restarts,
        "ready": view.ready,
        "started": view.started,
        "state": _state(view.state),
        "lastState": _state(view.last) if view.last else {},
    }


def _state(state: State) -> dict[str, Any]:
    match state:
        case Waits(reason, message):
            return {"waiting": {"reason": reason} | ({"message": message} if message else {})}
        case Runs(started_at):
            return {"running": {"startedAt": format_time(started_at)}}
        case Ended():
            return {
                "terminated": {
                    "exitCode": state.exit_code,
                    "reason": state.reason,
                    "startedAt": format_time(state.started_at),
                    "finishedAt": format_time(state.finished_at),
                    "containerID": state.container_id,
                }
                | ({"message": state.message} if state.message else {})
            }


def ended_of(seen: Terminated, fallback: datetime.datetime) -> Ended:
    """A terminated state that was read back from the API server."""
    return Ended(
        exit_code=seen.exit_code,
        reason=seen.reason,
        started_at=seen.started_at or fallback,
        finished_at=seen.finished_at or fallback,
        container_id=seen.container_id,
        message=seen.message,
    )
