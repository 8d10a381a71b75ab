"""The life of one container: starts, probes, restarts, end.

Room: local. Owns the container's process; says what it sees through its `ContainerView`.
"""

import asyncio
import contextlib
import datetime
import time
from collections.abc import Callable

from ratchet_local.config import find_image
from ratchet_local.node.backoff import Backoff
from ratchet_local.node.client import TRANSPORT_ERRORS, ApiError
from ratchet_local.node.context import PodContext
from ratchet_local.node.environment import ConfigError
from ratchet_local.node.launch import Prepared, prepare
from ratchet_local.node.logs import LogFile
from ratchet_local.node.model import Container, LifecycleAction, Probe
from ratchet_local.node.probes import Answer, ProbeKind, Verdict, ask, http_answer
from ratchet_local.node.process import ContainerProcess, StartError, run_once
from ratchet_local.node.status import ContainerView, Ended, Runs, Waits

RETRY_SECONDS = (0.1, 0.2, 0.5, 1.0)
"""Between looks at a configuration that is not complete yet."""
MESSAGE_BYTES = 4096
MINIMUM_GRACE = 2.0
"""What a kubelet leaves to a container after its preStop hook has used up the grace period."""


class ContainerRunner:
    """Runs one container of a pod, again and again if its pod wants that."""

    def __init__(
        self, context: PodContext, container: Container, view: ContainerView, changed: Callable[[], None]
    ) -> None:
        self.container = container
        self.view = view
        self.process: ContainerProcess | None = None
        self.logs: list[LogFile] = []
        """The present run's log last, the one before it first; older ones are gone."""
        self._context = context
        self._changed = changed
        self._prepared: Prepared | None = None
        self._backoff = Backoff(*context.node.settings.backoff_seconds)

    # Running

    async def run_to_success(self) -> bool:
        """An init container: True once it has ended with 0, False when its pod does not try again."""
        if isinstance(self.view.state, Ended):  # before the node restarted; the pod's folder is still there
            if self.view.state.exit_code == 0 or self._context.pod.spec.restart_policy == "Never":
                return self.view.state.exit_code == 0
            await self._pause(self.view.state)
        while True:
            ended = await self._once()
            if ended.exit_code == 0:
                return True
            if self._context.pod.spec.restart_policy == "Never":
                return False
            await self._pause(ended)

    async def run(self) -> None:
        """A main container: until its pod's restart policy has it rest."""
        if isinstance(self.view.state, Ended) and not self.resting:
            await self._pause(self.view.state)
        while not self.resting:
            ended = await self._once()
            if not self.resting:
                await self._pause(ended)

    @property
    def resting(self) -> bool:
        """It has ended and its pod does not want it again."""
        policy, state = self._context.pod.spec.restart_policy, self.view.state
        if not isinstance(state, Ended):
            return False
        return policy == "Never" or (policy == "OnFailure" and state.exit_code == 0)

    async def _pause(self, ended: Ended) -> None:
        delay = self._backoff.after_exit((ended.finished_at - ended.started_at).total_seconds())
        self.view.last = ended
        if delay > 0:
            name, metadata = self.container.name, self._context.pod.metadata
            pod = f"{metadata.name}_{metadata.namespace}({metadata.uid})"
            event = f"Back-off restarting failed container {name} in pod {pod}"
            self._context.event("Warning", "BackOff", event, self.container)
            message = f"back-off {delay:g}s restarting failed container={name} pod={pod}"
            self._show(Waits("CrashLoopBackOff", message))
            await asyncio.sleep(delay)
        self.view.restarts += 1

    async def _once(self) -> Ended:
        """One run from start to end; the view ends up as Ended."""
        prepared = await self._until_prepared()
        self._prepared = prepared
        log = self._new_log()
        try:
            process = await self._start(prepared, log)
        except StartError as error:
            log.finish()
            return self._could_not_start(str(error))
        self._context.event("Normal", "Started", "Container started", self.container)
        self._show(Runs(process.started_at))
        probing = asyncio.create_task(self._probe(process, prepared), name=f"probe {self.container.name}")
        try:
            code = await process.wait()
        finally:
            probing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await probing
        return self._ended(process, prepared, code)

    async def _start(self, prepared: Prepared, log: LogFile) -> ContainerProcess:
        starting = asyncio.create_task(ContainerProcess.start(prepared.launch, log))
        try:
            process = await asyncio.shield(starting)
        except asyncio.CancelledError:
            with contextlib.suppress(StartError):
                self._adopt(await starting)  # whoever cancelled us must find it, to end it
            raise
        self._adopt(process)
        return process

    def _adopt(self, process: ContainerProcess) -> None:
        self.process = process
        self.view.container_id = f"process://{process.container_id}"
        self._context.node.processes[process.container_id] = process
        if not isinstance(self.view.state, Runs):
            self._show(Runs(process.started_at))

    def _new_log(self) -> LogFile:
        log = LogFile(self._context.root / "logs" / self.container.name / f"{self.view.restarts}.log")
        for old in self.logs[:-1]:
            old.path.unlink(missing_ok=True)
        self.logs = [*self.logs[-1:], log]
        return log

    async def _until_prepared(self) -> Prepared:
        """Wait, visibly, for an image that runs here and for a complete configuration."""
        image = find_image(self._context.node.settings.images, self.container.image)
        if image is None:
            await self._no_image()
        assert image is not None
        attempt, said = 0, ""
        while True:
            try:
                return await prepare(self._context, self.container, image)
            except (ConfigError, ApiError, *TRANSPORT_ERRORS) as error:
                message = str(error)
            delay = RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)]
            attempt += 1
            if delay == RETRY_SECONDS[-1]:
                self._show(Waits("CreateContainerConfigError", message))
                if message != said:
                    self._context.event("Warning", "Failed", f"Error: {message}", self.container)
                    said = message
            await asyncio.sleep(delay)

    async def _no_image(self) -> None:
        """Nothing here runs this image: wait like a kubelet, for ever (the map of images does not change)."""
        name = self.container.image
        known = ", ".join(self._context.node.settings.images)
        cause = f'failed to pull image "{name}": the process node runs no such image; it knows {known}'
        self._context.event("Warning", "Failed", cause[0].upper() + cause[1:], self.container)
        self._context.event("Warning", "Failed", "Error: ErrImagePull", self.container)
        self._show(Waits("ErrImagePull", cause))
        await asyncio.sleep(1)
        self._context.event("Normal", "BackOff", f'Back-off pulling image "{name}"', self.container)
        self._show(Waits("ImagePullBackOff", f'Back-off pulling image "{name}": ErrImagePull: {cause}'))
        await asyncio.Event().wait()

    # Ending

    def _could_not_start(self, why: str) -> Ended:
        self._context.event("Warning", "Failed", f"Error: {why}", self.container)
        now = datetime.datetime.now(datetime.UTC)
        code = 127 if "not found" in why or "no such file" in why else 126
        ended = Ended(code, "StartError", now, now, self.view.container_id, why)
        self._show(ended)
        return ended

    def _ended(self, process: ContainerProcess, prepared: Prepared, code: int) -> Ended:
        self._context.node.processes.pop(process.container_id, None)
        self.process = None
        reason = "OOMKilled" if process.out_of_memory else "Completed" if code == 0 else "Error"
        ended = Ended(
            exit_code=137 if process.out_of_memory else code,
            reason=reason,
            started_at=process.started_at,
            finished_at=datetime.datetime.now(datetime.UTC),
            container_id=self.view.container_id,
            message=self._termination_message(process, prepared, code),
        )
        self._show(ended)
        return ended

    def _termination_message(self, process: ContainerProcess, prepared: Prepared, code: int) -> str:
        with prepared.termination_log.open("rb") as handle:
            handle.seek(0, 2)
            handle.seek(max(0, handle.tell() - MESSAGE_BYTES))
            message = handle.read().decode(errors="replace")
        if not message and code != 0 and self.container.termination_message_policy == "FallbackToLogsOnError":
            return process.log.tail_text()
        return message

    async def end(self, grace: float, why: str) -> None:
        """End the container's process, if it runs: preStop hook, SIGTERM, and SIGKILL after `grace` seconds."""
        process, prepared = self.process, self._prepared
        if process is None or prepared is None:
            return
        self._context.event("Normal", "Killing", why, self.container)
        deadline = time.monotonic() + grace
        hook = self.container.lifecycle.pre_stop if self.container.lifecycle else None
        if hook is not None and grace > 0:
            await self._hook(hook, prepared, grace, "PreStop")
        process.terminate()
        waiting = asyncio.create_task(process.wait())
        left = max(deadline - time.monotonic(), min(MINIMUM_GRACE, grace))
        try:
            await asyncio.wait({waiting}, timeout=left)
        finally:
            process.kill()
        code = await waiting
        if isinstance(self.view.state, Runs):
            self._ended(process, prepared, code)

    async def _hook(self, action: LifecycleAction, prepared: Prepared, seconds: float, name: str) -> bool:
        said = ""
        if action.exec is not None:
            try:
                code, output = await run_once(prepared.command(action.exec.command), seconds)
                said = "" if code == 0 else f"exited with {code}: {output.strip()}"
            except (StartError, TimeoutError) as error:
                said = str(error) or "timed out"
        elif action.http_get is not None:
            answer = await http_answer(
                action.http_get, self.container, self._context.pod_ip, self._context.node.probe_session, seconds
            )
            said = "" if answer.good else answer.text
        elif action.sleep is not None:
            await asyncio.sleep(min(action.sleep.seconds, seconds))
        if said:
            self._context.event("Warning", f"Failed{name}Hook", f"{name}Hook failed: {said}", self.container)
        return not said

    # Probing

    async def _probe(self, process: ContainerProcess, prepared: Prepared) -> None:
        container = self.container
        post_start = container.lifecycle.post_start if container.lifecycle else None
        if post_start is not None and not await self._hook(post_start, prepared, 3600, "PostStart"):
            await self._kill_unhealthy("FailedPostStartHook", None)
            return
        if container.startup_probe is not None and not await self._watch(
            "startup", container.startup_probe, process, prepared
        ):
            return
        self.view.started = True
        if container.readiness_probe is None:
            self.view.ready = True
        self._changed()
        async with asyncio.TaskGroup() as group:
            if container.readiness_probe is not None:
                group.create_task(self._watch("readiness", container.readiness_probe, process, prepared))
            if container.liveness_probe is not None:
                group.create_task(self._watch("liveness", container.liveness_probe, process, prepared))

    async def _watch(self, kind: ProbeKind, probe: Probe, process: ContainerProcess, prepared: Prepared) -> bool:
        """Probe until the container ends; a startup probe only until it has passed (True) or failed (False)."""
        verdict = Verdict.of(kind, probe)
        began = process.started_at
        delay = probe.initial_delay_seconds - (datetime.datetime.now(datetime.UTC) - began).total_seconds()
        await asyncio.sleep(max(0.0, delay))
        while process.alive:
            answer = await self._ask(probe, prepared)
            if not answer.good:
                self._context.event(
                    "Warning", "Unhealthy", f"{kind.capitalize()} probe failed: {answer.text}", self.container
                )
            if verdict.observe(answer.good):
                if kind == "readiness":
                    self._set_ready(verdict.value)
                elif verdict.value and kind == "startup":
                    return True
                elif not verdict.value:
                    await self._kill_unhealthy(f"failed {kind} probe", probe)
                    return False
            await asyncio.sleep(probe.period_seconds)
        return False

    async def _ask(self, probe: Probe, prepared: Prepared) -> Answer:
        async def run(argv: list[str], seconds: float) -> tuple[int, str]:
            try:
                return await run_once(prepared.command(argv), seconds)
            except StartError as error:
                return 126, str(error)

        return await ask(probe, self.container, self._context.pod_ip, self._context.node.probe_session, run)

    async def _kill_unhealthy(self, why: str, probe: Probe | None) -> None:
        grace = self._context.pod.spec.termination_grace_period_seconds
        if probe is not None and probe.termination_grace_period_seconds is not None:
            grace = probe.termination_grace_period_seconds
        process = self.process
        if process is None:
            return
        again = self._context.pod.spec.restart_policy != "Never"
        self._context.event(
            "Normal", "Killing",
            f"Container {self.container.name} {why}{', will be restarted' if again else ''}", self.container,
        )  # fmt: skip
        process.terminate()
        await asyncio.sleep(grace)  # cancelled when the process has ended
        process.kill()

    def _set_ready(self, ready: bool) -> None:
        if self.view.ready != ready:
            self.view.ready = ready
            self._changed()

    def _show(self, state: Waits | Runs | Ended) -> None:
        self.view.state = state
        if not isinstance(state, Runs):
            self.view.ready = False
            self.view.started = False
        self._changed()
