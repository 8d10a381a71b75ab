"""The life of one pod on this node, from the first volume to the last process.

Room: local. Owns the pod's folder, address, containers and status.
"""

import asyncio
import contextlib
import datetime
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ratchet_local.node.admission import refusal
from ratchet_local.node.client import TRANSPORT_ERRORS, ApiError, insist
from ratchet_local.node.container import MINIMUM_GRACE, ContainerRunner
from ratchet_local.node.context import NodeContext, PodContext
from ratchet_local.node.logs import LogFile
from ratchet_local.node.model import Condition, Container, ContainerStatus, Pod
from ratchet_local.node.process import ContainerProcess
from ratchet_local.node.reporter import StatusReporter
from ratchet_local.node.status import (
    ContainerView,
    Disruption,
    Ended,
    Override,
    Phase,
    PodFacts,
    Waits,
    ended_of,
    final_phase,
    phase,
    pod_status,
)
from ratchet_local.node.volumes import PodVolumes, VolumeError

REFRESH_SECONDS = 5.0
"""Between looks at mounted ConfigMaps, Secrets and tokens (a kubelet: a minute)."""
LOST = "The container could not be located when the pod was terminated"


@dataclass(frozen=True)
class Stop:
    """Why a pod is ended from outside, and how much time its containers get."""

    why: Literal["deleted", "removed", "deadline", "preempted", "shutdown"]
    grace: float


class PodWorker:
    """Runs one pod. Feed it with newer versions by `update`; await `run` until the pod is gone."""

    def __init__(self, node: NodeContext, pod: Pod) -> None:
        self._node = node
        self._root = node.settings.pods / pod.metadata.uid[:8]
        self._started_at = pod.status.start_time or datetime.datetime.now(datetime.UTC)
        self._final: Phase | None = None
        self._override: Override | None = None
        self._disruption: Disruption | None = None
        self._network_ready = False
        self._stop: Stop | None = None
        self._stopped = asyncio.Event()
        self._deleted = asyncio.Event()
        self._conditions = {condition.type: condition for condition in pod.status.conditions}
        address = "" if _finished(pod) else node.addresses.take(pod.status.pod_ip or None)
        self._holds_address = bool(address)
        volumes = PodVolumes(pod, self._root / "volumes", address, node.facts, node.api)
        self.context = PodContext(node, pod, self._root, address, volumes)
        self._reporter = StatusReporter(node.api, pod, self._status)
        self._inits = self._runners(pod.spec.init_containers, pod.status.init_container_statuses)
        self._mains = self._runners(pod.spec.containers, pod.status.container_statuses)

    @property
    def pod(self) -> Pod:
        return self.context.pod

    # From outside

    def update(self, pod: Pod) -> None:
        """A newer version of the same pod was seen."""
        self.context.pod = pod
        self.context.volumes.pod = pod
        self._reporter.changed()
        if pod.metadata.deletion_timestamp is not None:
            grace = pod.metadata.deletion_grace_period_seconds
            self.stop(Stop("deleted", float(30 if grace is None else grace)))
            self._deleted.set()

    def removed(self) -> None:
        """The pod has vanished from the API server (deleted by force)."""
        self.stop(Stop("removed", MINIMUM_GRACE))
        self._deleted.set()

    def preempt(self) -> None:
        """Give way to a more important pod."""
        message = f"{self._node.settings.name}: preempting to accommodate a higher priority pod"
        self._disruption = Disruption("PreemptionByScheduler", message)
        self._override = Override("Preempting", "Preempted in order to admit a higher priority pod")
        self.stop(Stop("preempted", float(self.pod.spec.termination_grace_period_seconds)))

    def stop(self, stop: Stop) -> None:
        """End the containers. A later call may only shorten the grace period."""
        if self._stop is None or stop.why in ("removed", "shutdown") or stop.grace < self._stop.grace:
            self._stop = stop
        self._stopped.set()

    @property
    def over(self) -> bool:
        """All containers have ended for good."""
        return self._final is not None

    def running(self) -> list[tuple[Container, ContainerProcess]]:
        """Containers that have a process now."""
        return [(runner.container, runner.process) for runner in self._all() if runner.process is not None]

    def processes(self) -> list[ContainerProcess]:
        """The processes of its running containers."""
        return [process for _, process in self.running()]

    def log_of(self, container: str, previous: bool) -> LogFile | None:
        """A container's log. Raises LookupError when the pod has no such container."""
        for runner in (*self._inits, *self._mains):
            if runner.container.name == container:
                logs = runner.logs[:-1] if previous else runner.logs
                return logs[-1] if logs else None
        raise LookupError(f'container "{container}" in pod "{self.pod.metadata.name}" is not available')

    def waiting_reason(self, container: str) -> str:
        """Why a container has no log yet."""
        for runner in (*self._inits, *self._mains):
            if runner.container.name == container and isinstance(runner.view.state, Waits):
                return runner.view.state.reason
        return "Unknown"

    # Life

    async def run(self) -> None:
        """Until the pod object is gone, or the node shuts down."""
        reporting = asyncio.create_task(self._reporter.run(), name=f"report {self.pod.key}")
        try:
            if _finished(self.pod):
                self._final = "Succeeded" if self.pod.status.phase == "Succeeded" else "Failed"
            else:
                await self._live()
                if self._shutting_down():
                    return
                await self._reporter.flush()
                self._give_address_back()
            await self._until_deleted()
            if not self._shutting_down():
                await self._remove()
        finally:
            reporting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reporting
            self._give_address_back()

    def _give_address_back(self) -> None:
        """Once only: another pod may have it already. The status keeps naming it."""
        if self._holds_address:
            self._holds_address = False
            self._node.addresses.release(self.context.pod_ip)

    def _shutting_down(self) -> bool:
        return self._stop is not None and self._stop.why == "shutdown"

    async def _until_deleted(self) -> None:
        while not self._deleted.is_set() and not self._shutting_down():
            self._stopped.clear()
            deleted = asyncio.create_task(self._deleted.wait())
            stopped = asyncio.create_task(self._stopped.wait())
            await asyncio.wait({deleted, stopped}, return_when=asyncio.FIRST_COMPLETED)
            deleted.cancel()
            stopped.cancel()

    async def _remove(self) -> None:
        """Nothing of it runs any more: tell the API server, then forget it."""
        assert self._stop is not None
        if self._stop.why != "removed":
            await self._reporter.flush()
            metadata = self.pod.metadata
            with contextlib.suppress(ApiError):
                await insist(
                    self._node.api.delete,
                    f"/api/v1/namespaces/{metadata.namespace}/pods/{metadata.name}",
                    {"gracePeriodSeconds": 0, "preconditions": {"uid": metadata.uid}},
                )
        shutil.rmtree(self._root, ignore_errors=True)

    async def abandon(self) -> None:
        """Our own bug: leave nothing running, and say that the pod has failed."""
        for process in self.processes():
            process.kill()
        self._finish("Failed", Override("NodeError", "the process node failed on this pod; see the node's log"))
        await self._reporter.flush()

    async def _live(self) -> None:
        why = refusal(self.pod)
        if why is not None:
            self.context.event("Warning", "Failed", why.message)
            self._finish("Failed", why)
            return
        if self._stop is not None:  # deleted before it was ever seen
            await self._end_all()
            self._finish("Failed")
            return
        working = asyncio.create_task(self._work(), name=f"work {self.pod.key}")
        stopping = asyncio.create_task(self._stopped.wait())
        deadline = asyncio.create_task(self._deadline())
        try:
            await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (working, stopping, deadline):
                task.cancel()
            await asyncio.wait({working, stopping, deadline})
        if self._stop is None:
            working.result()
            self._finish(phase(self.pod.spec.restart_policy, self._views(self._inits), self._views(self._mains)))
            return
        await self._end_all()
        self._finish(final_phase(self._views((*self._inits, *self._mains))))

    def _finish(self, final: Phase, override: Override | None = None) -> None:
        self._override = override or self._override
        self._final = "Failed" if self._override else final
        self._reporter.changed()

    async def _work(self) -> None:
        if all(runner.resting for runner in self._mains):  # they ended, or were lost, before the node restarted
            return
        await self._mount()
        self._network_ready = True
        self._reporter.changed()
        refreshing = asyncio.create_task(self._refresh(), name=f"refresh {self.pod.key}")
        try:
            for runner in self._inits:
                if not await runner.run_to_success():
                    return
            for runner in self._mains:
                if isinstance(runner.view.state, Waits):
                    runner.view.state = Waits("ContainerCreating")
            async with asyncio.TaskGroup() as group:
                for runner in self._mains:
                    group.create_task(runner.run(), name=f"run {self.pod.key}/{runner.container.name}")
        finally:
            refreshing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await refreshing

    async def _mount(self) -> None:
        self._root.mkdir(parents=True, exist_ok=True)
        delay, said = 0.1, ""
        while True:
            try:
                await self.context.volumes.set_up()
                return
            except TRANSPORT_ERRORS:
                pass
            except VolumeError as error:
                if delay >= 0.5 and str(error) != said:  # the first tries may only be ahead of the authorizer's cache
                    said = str(error)
                    self.context.event("Warning", "FailedMount", said)
            await asyncio.sleep(delay)
            delay = min(delay * 2, 2.0)

    async def _refresh(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            with contextlib.suppress(VolumeError, ApiError, *TRANSPORT_ERRORS):
                await self.context.volumes.refresh()

    async def _deadline(self) -> None:
        seconds = self.pod.spec.active_deadline_seconds
        if seconds is None:
            return
        passed = (datetime.datetime.now(datetime.UTC) - self._started_at).total_seconds()
        await asyncio.sleep(max(0.0, seconds - passed))
        self._override = Override("DeadlineExceeded", "Pod was active on the node longer than the specified deadline")
        self.context.event("Normal", "DeadlineExceeded", self._override.message)
        self.stop(Stop("deadline", float(self.pod.spec.termination_grace_period_seconds)))

    async def _end_all(self) -> None:
        """End all containers at once; a shorter grace period that comes meanwhile takes effect."""
        assert self._stop is not None
        current = self._stop
        while True:
            self._stopped.clear()
            ending = asyncio.gather(
                *(runner.end(current.grace, f"Stopping container {runner.container.name}") for runner in self._all())
            )
            hurried = asyncio.create_task(self._stopped.wait())
            await asyncio.wait((ending, hurried), return_when=asyncio.FIRST_COMPLETED)
            hurried.cancel()
            if ending.done():
                ending.result()
                break
            if self._stop is current:
                await ending
                break
            current = self._stop
            ending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await ending
        for runner in self._all():
            self._locate(runner)

    @staticmethod
    def _locate(runner: ContainerRunner) -> None:
        """A container that never ran, or was between two runs, must not be left waiting in a finished pod."""
        view = runner.view
        if isinstance(view.state, Ended):
            return
        now = datetime.datetime.now(datetime.UTC)
        view.state = view.last or Ended(137, "ContainerStatusUnknown", now, now, view.container_id, LOST)
        view.ready = view.started = False

    # Status

    def _all(self) -> tuple[ContainerRunner, ...]:
        return (*self._inits, *self._mains)

    @staticmethod
    def _views(runners: Sequence[ContainerRunner]) -> list[ContainerView]:
        return [runner.view for runner in runners]

    def _runners(self, containers: list[Container], seen: list[ContainerStatus]) -> list[ContainerRunner]:
        statuses = {status.name: status for status in seen}
        waiting = Waits("PodInitializing" if self.pod.spec.init_containers else "ContainerCreating")
        return [
            ContainerRunner(
                self.context, container, _view(container, statuses.get(container.name), waiting, _finished(self.pod)),
                self._reporter.changed,
            )
            for container in containers
        ]  # fmt: skip

    def _status(self) -> dict[str, Any]:
        inits, mains = self._views(self._inits), self._views(self._mains)
        current = self._final or phase(self.pod.spec.restart_policy, inits, mains)
        if self._final is None and current in ("Succeeded", "Failed"):
            current = "Running"  # final only when everything has been ended and cleared away
        facts = PodFacts(
            host_ip=self._node.settings.address,
            pod_ip=self.context.pod_ip,
            started_at=self._started_at,
            network_ready=self._network_ready,
            override=self._override if self._final else None,
            disruption=self._disruption,
        )
        now = datetime.datetime.now(datetime.UTC)
        status = pod_status(self.pod, current, facts, inits, mains, now, self._conditions)
        for entry in status["conditions"]:
            self._conditions[entry["type"]] = Condition.model_validate(
                {key: value for key, value in entry.items() if value is not None}
            )
        return status


def _finished(pod: Pod) -> bool:
    return pod.status.phase in ("Succeeded", "Failed")


def _view(container: Container, seen: ContainerStatus | None, waiting: Waits, finished: bool) -> ContainerView:
    """A container as it was before this node process started: what ran then is lost and counts as one more restart."""
    view = ContainerView(container.name, container.image, waiting)
    if seen is None:
        return view
    now = datetime.datetime.now(datetime.UTC)
    view.restarts, view.container_id = seen.restart_count, seen.container_id
    if seen.last_state.terminated is not None:
        view.last = ended_of(seen.last_state.terminated, now)
    if seen.state.terminated is not None:
        view.state = ended_of(seen.state.terminated, now)
    elif seen.state.running is not None and not finished:
        lost = Ended(137, "ContainerStatusUnknown", seen.state.running.started_at, now, seen.container_id, LOST)
        view.state = lost
    return view


def remove_leftovers(pods: Path, keep: set[str]) -> None:
    """Folders of pods that no longer exist."""
    if pods.is_dir():
        for folder in pods.iterdir():
            if folder.name not in keep:
                shutil.rmtree(folder, ignore_errors=True)
