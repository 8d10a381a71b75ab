"""Keeps one component running: starts it, waits until it is ready, restarts it when it dies, ends it.

Room: local. Touches the component's process and log file.
"""

import asyncio
import contextlib
import os
import signal
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp

from ratchet_local.component import Component, Ready
from ratchet_local.errors import ComponentError
from ratchet_local.processes import die_with_parent, send_group

POLL_SECONDS = 0.05
RESTART_SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0)
INHERITED = ("PATH", "LANG", "LC_ALL", "HOME", "USER", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR", "VIRTUAL_ENV",
             "HF_HUB_OFFLINE", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS",
             "OMP_WAIT_POLICY")  # fmt: skip


def ssl_context(ready: Ready) -> ssl.SSLContext:
    """Trusts the platform's authority only; shows the client certificate if there is one."""
    context = ssl.create_default_context(cafile=str(ready.authority))
    if ready.client is not None:
        context.load_cert_chain(ready.client.cert, ready.client.key)
    return context


class Keeper:
    """Owns the process of one component."""

    def __init__(self, component: Component, log: Path, mark: Mapping[str, str]) -> None:
        self.component = component
        self.log = log
        self.restarts = 0
        self._mark = dict(mark)
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None
        self._wanted = False
        self._ready = False

    @property
    def pid(self) -> int | None:
        """Of its newest process, ended or not."""
        return self._process.pid if self._process is not None else None

    def describe(self) -> dict[str, Any]:
        """Name, state, process id and restarts, for `ratchet local status`."""
        running = self._process is not None and self._process.returncode is None
        return {
            "name": self.component.name,
            "state": ("ready" if self._ready else "starting") if running else ("failed" if self._wanted else "stopped"),
            "pid": self._process.pid if running and self._process else None,
            "restarts": self.restarts,
        }

    async def start(self) -> None:
        """Start it and wait until it is ready. Raises ComponentError with the end of its log when it is not in time."""
        if self._wanted:
            return
        self._wanted = True
        await self._spawn()
        try:
            await self._until_ready()
        except BaseException:
            self._wanted = False
            await self._end()
            raise
        self._watch = asyncio.create_task(self._keep(), name=f"keep {self.component.name}")

    async def stop(self) -> None:
        """End it: SIGTERM to its group, then SIGKILL after its grace period."""
        self._wanted = False
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
            self._watch = None
        await self._end()

    async def _spawn(self) -> None:
        self._sweep()
        environment = {key: os.environ[key] for key in INHERITED if key in os.environ}
        with self.log.open("ab") as log:
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *self.component.command,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment | dict(self.component.env) | self._mark,
                    cwd=self.log.parent,
                    start_new_session=True,
                    preexec_fn=die_with_parent(self.component.death_signal),
                )
            except OSError as error:
                raise ComponentError(f"{self.component.name} could not be started: {error}") from error

    async def _until_ready(self) -> None:
        ready, process = self.component.ready, self._process
        assert process is not None
        deadline = time.monotonic() + self.component.ready_seconds
        connector = aiohttp.TCPConnector(ssl=ssl_context(ready)) if ready.authority else aiohttp.TCPConnector()
        timeout = aiohttp.ClientTimeout(total=10)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            while True:
                if process.returncode is not None:
                    raise ComponentError(
                        f"{self.component.name} ended with code {process.returncode} while starting: {self._tail()}"
                    )
                try:
                    async with session.get(ready.url) as response:
                        if response.status in ready.statuses:
                            break
                        said = f"HTTP {response.status}"
                except (aiohttp.ClientError, TimeoutError, OSError) as error:
                    said = str(error)
                if time.monotonic() > deadline:
                    raise ComponentError(
                        f"{self.component.name} was not ready after {self.component.ready_seconds:.0f} s ({said}); "
                        f"see {self.log.name} in the state folder's logs: {self._tail()}"
                    )
                await asyncio.sleep(POLL_SECONDS)
        self._ready = True

    def _tail(self) -> str:
        with self.log.open("rb") as handle:
            handle.seek(max(0, self.log.stat().st_size - 4000))
            lines = handle.read().decode(errors="replace").strip().splitlines()
        return " | ".join(lines[-3:]) or "it printed nothing"

    async def _keep(self) -> None:
        while True:
            assert self._process is not None
            await self._process.wait()
            self._ready = False
            send_group(self._process.pid, signal.SIGKILL)
            delay = RESTART_SECONDS[min(self.restarts, len(RESTART_SECONDS) - 1)]
            self.restarts += 1
            await asyncio.sleep(delay)
            try:
                await self._spawn()
                await self._until_ready()
            except ComponentError as error:
                print(f"{self.component.name}: {error}", flush=True)
                await self._end()

    async def _end(self) -> None:
        process, self._ready = self._process, False
        if process is None:
            return
        if process.returncode is None:
            send_group(process.pid, signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), self.component.grace_seconds)
            except TimeoutError:
                send_group(process.pid, signal.SIGKILL)
                await process.wait()
        send_group(process.pid, signal.SIGKILL)
        self._sweep()

    def _sweep(self) -> None:
        for path in self.component.litter:
            path.unlink(missing_ok=True)
