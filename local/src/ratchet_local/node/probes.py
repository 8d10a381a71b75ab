"""Probes: when a series of good and bad answers changes a verdict, and how to ask once.

Room: local. `Verdict` is pure; `ask` touches the network or starts a process through the function it is given.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

import aiohttp

from ratchet_local.node.model import Container, HttpGet, Probe

ProbeKind = Literal["startup", "readiness", "liveness"]
ExecRunner = Callable[[list[str], float], Awaitable[tuple[int, str]]]
"""Runs a command in the container's surroundings: (argv, seconds) to (exit code, output). Raises TimeoutError."""


@dataclass
class Verdict:
    """The verdict of one probe, which changes only after enough equal answers in a row."""

    success_threshold: int
    failure_threshold: int
    value: bool
    """Before the first answer: liveness good, readiness and startup bad."""
    _last: bool | None = None
    _run: int = 0

    @classmethod
    def of(cls, kind: ProbeKind, probe: Probe) -> "Verdict":
        return cls(probe.success_threshold, probe.failure_threshold, value=kind == "liveness")

    def observe(self, good: bool) -> bool:
        """Count one answer. True when it decides: enough equal ones in a row (again each time beyond that)."""
        self._run = self._run + 1 if good == self._last else 1
        self._last = good
        if self._run < (self.success_threshold if good else self.failure_threshold):
            return False
        self.value = good
        return True


@dataclass(frozen=True)
class Answer:
    """One look: good or not, and what was seen."""

    good: bool
    text: str = ""


def resolve_port(container: Container, port: int | str) -> int:
    """A port number, or a named port of the container. Raises ValueError when there is none of that name."""
    if isinstance(port, int):
        return port
    for candidate in container.ports:
        if candidate.name == port:
            return candidate.container_port
    if port.isdigit():
        return int(port)
    raise ValueError(f"couldn't find port: {port}")


async def ask(
    probe: Probe, container: Container, pod_ip: str, session: aiohttp.ClientSession, run: ExecRunner
) -> Answer:
    """Ask once, within the probe's timeout."""
    seconds = float(probe.timeout_seconds)
    if probe.http_get is not None:
        return await http_answer(probe.http_get, container, pod_ip, session, seconds)
    if probe.tcp_socket is not None:
        host = probe.tcp_socket.host or pod_ip
        try:
            port = resolve_port(container, probe.tcp_socket.port)
            async with asyncio.timeout(seconds):
                _, writer = await asyncio.open_connection(host, port)
        except (OSError, ValueError) as error:
            return Answer(False, f"dial tcp {host}:{probe.tcp_socket.port}: {_words(error)}")
        writer.close()
        return Answer(True)
    if probe.exec is not None:
        try:
            code, output = await run(probe.exec.command, seconds)
        except TimeoutError:
            return Answer(False, f'command timed out: "{" ".join(probe.exec.command)}" timed out after {seconds:g}s')
        except OSError as error:
            return Answer(False, f"exec: {_words(error)}")
        return Answer(code == 0, output.strip())
    return Answer(True)


async def http_answer(
    action: HttpGet, container: Container, pod_ip: str, session: aiohttp.ClientSession, seconds: float
) -> Answer:
    """GET; every status from 200 to 399 is good."""
    host = action.host or pod_ip
    try:
        port = resolve_port(container, action.port)
    except ValueError as error:
        return Answer(False, str(error))
    path = action.path if action.path.startswith("/") else f"/{action.path}"
    url = f"{action.scheme.lower()}://{host}:{port}{path}"
    headers = {"User-Agent": "kube-probe/1.37"} | {header.name: header.value for header in action.http_headers}
    try:
        async with session.get(
            url, headers=headers, timeout=aiohttp.ClientTimeout(total=seconds), allow_redirects=False, ssl=False
        ) as response:
            if 200 <= response.status < 400:
                return Answer(True)
            return Answer(False, f"HTTP probe failed with statuscode: {response.status}")
    except TimeoutError:
        return Answer(False, f'Get "{url}": context deadline exceeded (no answer within {seconds:g}s)')
    except (aiohttp.ClientError, OSError) as error:
        return Answer(False, f'Get "{url}": {_words(error)}')


def _words(error: BaseException) -> str:
    cause = getattr(error, "os_error", error)
    return getattr(cause, "strerror", None) or str(cause) or type(error).__name__
