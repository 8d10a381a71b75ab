"""One run of one container: a process in a session of its own, its output, its end.

Room: local. Touches the process and its log file.
"""

import asyncio
import contextlib
import datetime
import os
import signal
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ratchet_local.node.logs import LogFile
from ratchet_local.processes import INSTANCE_VARIABLE, die_with_parent, send, session_members

CONTAINER_VARIABLE = "RATCHET_LOCAL_CONTAINER"
DRAIN_SECONDS = 2.0
INHERITED = ("LANG", "LC_ALL", "TZ", "HF_HUB_OFFLINE", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE",
             "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")  # fmt: skip
"""What containers see of this machine's environment, beside PATH."""


@dataclass(frozen=True)
class Launch:
    """Everything needed to start a container's process."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path
    mark: str
    """The platform's instance mark."""


class StartError(Exception):
    """The command could not be executed at all."""


class ContainerProcess:
    """A started container. Its first process leads a session; when it ends, the whole session is killed."""

    def __init__(self, process: asyncio.subprocess.Process, container_id: str, log: LogFile) -> None:
        self._process = process
        self.container_id = container_id
        self.log = log
        self.started_at = datetime.datetime.now(datetime.UTC)
        self.out_of_memory = False
        self._pumps = [
            asyncio.create_task(self._pump(name, stream), name=f"log {container_id}")
            for name, stream in (("stdout", process.stdout), ("stderr", process.stderr))
            if stream is not None
        ]

    @classmethod
    async def start(cls, launch: Launch, log: LogFile) -> "ContainerProcess":
        """Start it. Raises StartError when the command does not exist or may not be run."""
        container_id = uuid.uuid4().hex
        env = dict(launch.env) | {CONTAINER_VARIABLE: container_id, INSTANCE_VARIABLE: launch.mark}
        program = resolve_program(launch.argv[0], env.get("PATH", os.defpath), launch.cwd)
        try:
            process = await asyncio.create_subprocess_exec(
                *launch.argv,
                executable=program,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=env,
                cwd=launch.cwd,
                start_new_session=True,
                preexec_fn=die_with_parent(),
            )
        except OSError as error:
            raise StartError(f'exec: "{launch.argv[0]}": {error.strerror or error}') from error
        return cls(process, container_id, log)

    @property
    def session(self) -> int:
        """The id of the session, which is that of the first process."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    async def wait(self) -> int:
        """Until the first process has ended and nothing of the container is left; the exit code as a shell tells it."""
        code = await self._process.wait()
        self.kill()
        _, pending = await asyncio.wait(self._pumps, timeout=DRAIN_SECONDS)
        for pump in pending:  # a process that left the session still holds the pipe
            pump.cancel()
        if not self.log.finished:
            self.log.finish()
        return code if code >= 0 else 128 - code

    def terminate(self) -> None:
        """SIGTERM to the first process, as a container runtime does; it may tell its children."""
        if self.alive:
            send(self.session, signal.SIGTERM)
            self.resume()

    def kill(self) -> None:
        """SIGKILL to everything in the session."""
        for pid in session_members(self.session):
            send(pid, signal.SIGKILL)

    def pause(self) -> None:
        for pid in session_members(self.session):
            send(pid, signal.SIGSTOP)

    def resume(self) -> None:
        for pid in session_members(self.session):
            send(pid, signal.SIGCONT)

    async def _pump(self, name: str, stream: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await stream.read(65536):
                self.log.feed(name, data)


def resolve_program(name: str, path: str, cwd: Path) -> str:
    """The file to execute: a path as it is, a bare name from the container's own PATH. Raises StartError."""
    if "/" in name:
        found = str(cwd / name)
        if os.path.isfile(found):
            return found
        raise StartError(f'exec: "{name}": stat {name}: no such file or directory')
    for folder in path.split(os.pathsep):
        candidate = os.path.join(folder, name)
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return candidate
    raise StartError(f'exec: "{name}": executable file not found in $PATH')


async def run_once(launch: Launch, seconds: float) -> tuple[int, str]:
    """Run a command to its end in a container's surroundings (exec probes, hooks): exit code and output.

    Raises TimeoutError, after killing it, when it takes longer; StartError when it cannot be run.
    """
    program = resolve_program(launch.argv[0], launch.env.get("PATH", os.defpath), launch.cwd)
    process = await asyncio.create_subprocess_exec(
        *launch.argv,
        executable=program,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=dict(launch.env) | {INSTANCE_VARIABLE: launch.mark},
        cwd=launch.cwd,
        start_new_session=True,
        preexec_fn=die_with_parent(),
    )
    try:
        async with asyncio.timeout(seconds):
            output, _ = await process.communicate()
    finally:
        for pid in session_members(process.pid):
            send(pid, signal.SIGKILL)
        await process.wait()
    code = process.returncode or 0
    return (code if code >= 0 else 128 - code), output.decode(errors="replace")
