"""The process that owns a platform: it starts the components, keeps them, and takes them all down when it ends.

Room: local. Run as `python -m ratchet_local.supervisor STATE`. It ends on SIGTERM, on SIGINT, on the command
`shutdown`, and when its owner dies (end of file on `--owner-fd`): a platform never outlives the one who wanted it.
"""

import argparse
import asyncio
import contextlib
import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from ratchet_local.addresses import claim_subnet
from ratchet_local.component import Ready
from ratchet_local.config import Layout, PlatformConfig
from ratchet_local.control import ControlServer
from ratchet_local.errors import LocalError, PlatformError
from ratchet_local.keeper import Keeper, ssl_context
from ratchet_local.plan import Plan, prepare
from ratchet_local.processes import (
    INSTANCE_VARIABLE,
    adopt_orphans,
    instance,
    kill_marked,
    reap_adopted,
    watch_children,
)

REAP_SECONDS = 2.0


class Reporter:
    """Tells the process that started us how it goes, one JSON object a line."""

    def __init__(self, descriptor: int | None) -> None:
        self._stream = os.fdopen(descriptor, "w", encoding="utf-8") if descriptor is not None else None

    def tell(self, **message: Any) -> None:
        print(json.dumps(message), flush=True)
        if self._stream is not None:
            try:
                self._stream.write(json.dumps(message) + "\n")
                self._stream.flush()
            except BrokenPipeError:
                self._stream = None

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None


class Supervisor:
    """A running platform."""

    def __init__(self, plan: Plan, reporter: Reporter) -> None:
        self.plan = plan
        self._reporter = reporter
        mark = {INSTANCE_VARIABLE: instance(plan.layout.state)}
        self.keepers = {
            component.name: Keeper(component, plan.layout.logs / f"{component.name}.log", mark)
            for component in plan.components
        }
        self._ending = asyncio.Event()
        self._control = ControlServer(plan.layout.supervisor_socket, self._command)

    async def run(self, owner: int | None) -> None:
        """Until asked to end. Whatever happens, everything that was started is ended first."""
        watch_children()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._ending.set)
        if owner is not None:
            loop.add_reader(owner, self._ending.set)
        starting = asyncio.create_task(self._start())
        ending = asyncio.create_task(self._ending.wait())
        reaping = asyncio.create_task(self._reap())
        try:
            await asyncio.wait({starting, ending}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                await starting
                await ending
        except* LocalError as group:
            # One cause is enough for a person; those that waited for it were only cancelled.
            raise _first(group) from None
        finally:
            for task in (ending, starting, reaping):
                task.cancel()
            await asyncio.wait({starting, ending, reaping})
            await self._stop_all()

    async def _reap(self) -> None:
        while True:
            await asyncio.sleep(REAP_SECONDS)
            reap_adopted({pid for keeper in self.keepers.values() if (pid := keeper.pid) is not None})

    async def _start(self) -> None:
        began = time.monotonic()
        done: dict[str, asyncio.Task[None]] = {}

        async def bring_up(keeper: Keeper) -> None:
            for name in keeper.component.after:
                if name in done:
                    await done[name]
            await keeper.start()
            self._reporter.tell(progress=f"{keeper.component.name} is ready ({time.monotonic() - began:.1f} s)")
            if keeper.component.name == "kube-apiserver":
                await self._bootstrap()

        async with asyncio.TaskGroup() as group:
            for name, keeper in self.keepers.items():
                done[name] = group.create_task(bring_up(keeper))
        if "kube-controller-manager" in self.keepers:
            await self._until_exists("/api/v1/namespaces/default/serviceaccounts/default")
        await self._control.start()
        self._write_record()
        self._reporter.tell(ready=True)
        self._reporter.close()

    def _session(self) -> aiohttp.ClientSession:
        context = ssl_context(Ready(self.plan.api_url, self.plan.authority, self.plan.admin))
        return aiohttp.ClientSession(self.plan.api_url, connector=aiohttp.TCPConnector(ssl=context))

    async def _bootstrap(self) -> None:
        """The one right that our own helpers need: Prometheus may look at pods."""
        path = "/apis/rbac.authorization.k8s.io/v1"
        name, group = "ratchet-local-prometheus", "rbac.authorization.k8s.io"
        role = {"metadata": {"name": name}}
        objects: tuple[tuple[str, dict[str, Any]], ...] = (
            (
                f"{path}/clusterroles",
                role | {"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}]},
            ),
            (
                f"{path}/clusterrolebindings",
                role
                | {
                    "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": name},
                    "subjects": [{"apiGroup": group, "kind": "User", "name": name}],
                },
            ),
        )
        async with self._session() as session:
            for url, body in objects:
                async with session.post(url, json=body) as response:
                    if response.status not in (201, 409):
                        raise PlatformError(f"the API server refused {url}: {await response.text()}")

    async def _until_exists(self, path: str) -> None:
        async with self._session() as session, asyncio.timeout(120):
            while True:
                async with session.get(path) as response:
                    if response.status == 200:
                        return
                await asyncio.sleep(0.05)

    def _write_record(self) -> None:
        plan = self.plan
        record = {
            "pid": os.getpid(),
            "name": plan.config.name,
            "parts": sorted(plan.config.parts),
            "api_url": plan.api_url,
            "prometheus_url": plan.prometheus_url,
            "s3": plan.s3.model_dump(),
        }
        temporary = plan.layout.record.with_suffix(".new")
        temporary.touch(mode=0o600)
        temporary.write_text(json.dumps(record, indent=1))
        temporary.replace(plan.layout.record)

    async def _stop_all(self) -> None:
        """Pods first, while the API server can still hear of it; etcd last."""
        self.plan.layout.record.unlink(missing_ok=True)
        await self._control.stop()
        middle = ("prometheus", "s3", "kube-scheduler", "kube-controller-manager")
        for names in (("node",), middle, ("kube-apiserver",), ("etcd",)):
            await asyncio.gather(*(self._stop_one(self.keepers[name]) for name in names if name in self.keepers))
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()

    async def _stop_one(self, keeper: Keeper) -> None:
        began = time.monotonic()
        await keeper.stop()
        self._reporter.tell(progress=f"{keeper.component.name} has ended ({time.monotonic() - began:.1f} s)")

    async def _command(self, command: str, arguments: dict[str, Any]) -> Any:
        match command:
            case "status":
                return [keeper.describe() for keeper in self.keepers.values()]
            case "stop":
                await self._keeper(arguments["component"]).stop()
            case "start":
                await self._keeper(arguments["component"]).start()
            case "shutdown":
                self._ending.set()
            case _:
                raise PlatformError(f"the supervisor knows no command {command!r}")
        return None

    def _keeper(self, name: str) -> Keeper:
        try:
            return self.keepers[name]
        except KeyError:
            known = ", ".join(self.keepers)
            raise PlatformError(f"the platform has no component {name!r}: it has {known}") from None


def _first(group: BaseExceptionGroup[LocalError]) -> LocalError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, LocalError)
    return error


def hold_lock(layout: Layout) -> int:
    """The descriptor of the state folder's lock. Raises PlatformError when another supervisor holds it."""
    descriptor = os.open(layout.lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise PlatformError(
            "a local platform already runs in this state folder: `ratchet local down` ends it"
        ) from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, str(os.getpid()).encode())
    return descriptor


def main() -> int:
    """Entry point; 0 after an orderly end, 1 when the platform could not be started."""
    parser = argparse.ArgumentParser()
    parser.add_argument("state", type=Path)
    parser.add_argument("--report-fd", type=int)
    parser.add_argument("--owner-fd", type=int)
    arguments = parser.parse_args()
    reporter = Reporter(arguments.report_fd)
    layout = Layout(arguments.state)
    try:
        lock = hold_lock(layout)
        adopt_orphans()
        stored = json.loads(layout.config.read_text(encoding="utf-8"))
        config = PlatformConfig.model_validate(stored["config"])
        binaries = {name: Path(path) for name, path in stored["binaries"].items()}
        if strays := kill_marked(instance(layout.state)):
            reporter.tell(progress=f"ended {strays} processes that an earlier platform left behind")
        claim = claim_subnet(layout.state)
        supervisor = Supervisor(prepare(config, claim.subnet, binaries), reporter)
        try:
            asyncio.run(supervisor.run(arguments.owner_fd))
        finally:
            claim.release()
            os.close(lock)
    except LocalError as error:
        reporter.tell(failed=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
