"""One run of one container: a process in a session of its own, its output, its end.

Room: local. Touches the process and its log file.
"""

import asyncio
import contextlib
import datetime
import os
import signal
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ratchet_local.node.logs import LogFile
from ratchet_local.processes import INSTANCE_VARIABLE, die_with_parent, marked, send, session_members

CONTAINER_VARIABLE = "RATCHET_LOCAL_CONTAINER"
DRAIN_SECONDS = 2.0
MAX_OUTPUT = 10 * 1024
"""Bytes of a probe's or hook's output that anybody will read."""
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
    """A started container. Its first process leads a session; when it ends, everything it has started is killed.

    Output comes through pipes of our own: asyncio's would make `wait` last as long as any grandchild holds one.
    """

    def __init__(self, process: asyncio.subprocess.Process, container_id: str, log: LogFile, pipes: list[int]) -> None:
        self._process = process
        self.container_id = container_id
        self.log = log
        self.started_at = datetime.datetime.now(datetime.UTC)
        self.out_of_memory = False
        self._drained = asyncio.Event()
        self._pipes = dict(zip(pipes, ("stdout", "stderr"), strict=True))
        for pipe in pipes:
            os.set_blocking(pipe, False)
            asyncio.get_running_loop().add_reader(pipe, self._read, pipe)

    @classmethod
    async def start(cls, launch: Launch, log: LogFile) -> "ContainerProcess":
        """Start it. Raises StartError when the command does not exist or may not be run."""
        container_id = uuid.uuid4().hex
        env = dict(launch.env) | {CONTAINER_VARIABLE: container_id, INSTANCE_VARIABLE: launch.mark}
        program = resolve_program(launch.argv[0], env.get("PATH", os.defpath), launch.cwd)
        (out_read, out_write), (error_read, error_write) = os.pipe(), os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *launch.argv,
                executable=program,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out_write,
                stderr=error_write,
                env=env,
                cwd=launch.cwd,
                start_new_session=True,
                preexec_fn=die_with_parent(),
            )
        except OSError as error:
            os.close(out_read)
            os.close(error_read)
            raise StartError(f'exec: "{launch.argv[0]}": {error.strerror or error}') from error
        finally:
            os.close(out_write)
            os.close(error_write)
        return cls(process, container_id, log, [out_read, error_read])

    def _read(self, pipe: int) -> None:
        try:
            data = os.read(pipe, 65536)
        except BlockingIOError:
            return
        if data:
            self.log.feed(self._pipes[pipe], data)
        else:
            self._close(pipe)

    def _close(self, pipe: int) -> None:
        if self._pipes.pop(pipe, None) is not None:
            asyncio.get_running_loop().remove_reader(pipe)
            os.close(pipe)
        if not self._pipes:
            self._drained.set()

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
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._drained.wait(), DRAIN_SECONDS)
        for pipe in list(self._pipes):
            self._close(pipe)
        if not self.log.finished:
            self.log.finish()
        return code if code >= 0 else 128 - code

    def terminate(self) -> None:
        """SIGTERM to the first process, as a container runtime does; it may tell its children."""
        if self.alive:
            send(self.session, signal.SIGTERM)
            self.resume()

    def kill(self) -> None:
        """SIGKILL to everything that the container has started, also what has left its session."""
        for pid in {*session_members(self.session), *marked(self.container_id, CONTAINER_VARIABLE)}:
            send(pid, signal.SIGKILL)

    def pause(self) -> None:
        for pid in session_members(self.session):
            send(pid, signal.SIGSTOP)

    def resume(self) -> None:
        for pid in session_members(self.session):
            send(pid, signal.SIGCONT)


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
    with tempfile.TemporaryFile() as said:
        process = await asyncio.create_subprocess_exec(
            *launch.argv,
            executable=program,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            env=dict(launch.env) | {INSTANCE_VARIABLE: launch.mark},
            cwd=launch.cwd,
            start_new_session=True,
            preexec_fn=die_with_parent(),
        )
        try:
            async with asyncio.timeout(seconds):
                code = await process.wait()
        finally:
            for pid in session_members(process.pid):
                send(pid, signal.SIGKILL)
            await process.wait()
        said.seek(0)
        output = said.read(MAX_OUTPUT).decode(errors="replace")
    return (code if code >= 0 else 128 - code), output
