"""The node as a whole: watches the pods bound to it and gives each a worker.

Room: local. The only place where workers come and go.
"""

import asyncio
import contextlib
import traceback
from typing import Any

import aiohttp
from pydantic import ValidationError

from ratchet_local.addresses import PodAddresses
from ratchet_local.control import ControlServer
from ratchet_local.errors import LocalError
from ratchet_local.node.client import TRANSPORT_ERRORS, Api, ApiError
from ratchet_local.node.context import NodeContext
from ratchet_local.node.environment import NodeFacts
from ratchet_local.node.events import Events
from ratchet_local.node.faults import MemoryGuard, Throttle
from ratchet_local.node.kubelet_api import KubeletApi
from ratchet_local.node.model import Pod
from ratchet_local.node.pod import PodWorker, Stop, remove_leftovers
from ratchet_local.node.registration import Registration
from ratchet_local.node.resources import node_memory
from ratchet_local.node.settings import Settings
from ratchet_local.processes import instance

SHUTDOWN_GRACE = 5.0


class Agent:
    """Runs until `stop` is set."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._api = Api(settings)
        facts = NodeFacts(settings.name, settings.address, settings.cpus, node_memory())
        self._context = NodeContext(
            settings=settings,
            api=self._api,
            events=Events(self._api, settings.name),
            addresses=PodAddresses(settings.subnet),
            facts=facts,
            mark=instance(settings.instance_state),
            probe_session=aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True)),
        )
        self._registration = Registration(self._api, settings, facts)
        self._workers: dict[str, PodWorker] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._throttle = Throttle(self._workers.values)
        self._guard = MemoryGuard(self._context, self._workers.values)
        self._kubelet = KubeletApi(settings, self._find)
        self._control = ControlServer(settings.socket, self._command)

    async def run(self, stop: asyncio.Event) -> None:
        """Register, serve, watch; on `stop` end all containers and leave."""
        await self._registration.register()
        version = await self._list()
        await self._kubelet.start()
        await self._control.start()
        background = [
            asyncio.create_task(coroutine)
            for coroutine in (
                self._watch(version),
                self._registration.keep(),
                self._context.events.run(),
                self._throttle.run(),
                self._guard.run(),
            )
        ]
        stopping = asyncio.create_task(stop.wait())
        try:
            done, _ = await asyncio.wait({*background, stopping}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # none of them ends by itself, unless by a bug that must be seen
        finally:
            for task in (*background, stopping):
                task.cancel()
            await asyncio.gather(*background, stopping, return_exceptions=True)
            await self._shut_down()

    async def _shut_down(self) -> None:
        await self._control.stop()
        for worker in self._workers.values():
            worker.stop(Stop("shutdown", SHUTDOWN_GRACE))
        if self._tasks:
            await asyncio.wait(self._tasks.values())
        await self._kubelet.stop()
        await self._context.probe_session.close()
        await self._api.close()

    # Pods

    async def _list(self) -> str:
        listed = await self._api.get("/api/v1/pods", fieldSelector=f"spec.nodeName={self._settings.name}")
        assert listed is not None
        pods = [self._parse(item) for item in listed["items"]]
        present = {pod.metadata.uid for pod in pods if pod is not None}
        for uid, worker in self._workers.items():
            if uid not in present:
                worker.removed()
        if not self._workers:
            remove_leftovers(self._settings.pods, {uid[:8] for uid in present})
        for pod in pods:
            self._seen(pod)
        return str(listed["metadata"]["resourceVersion"])

    async def _watch(self, version: str) -> None:
        selector = f"spec.nodeName={self._settings.name}"
        while True:
            try:
                async for event in self._api.watch("/api/v1/pods", version, fieldSelector=selector):
                    version = event["object"]["metadata"]["resourceVersion"]
                    if event["type"] == "DELETED":
                        self._gone(event["object"]["metadata"]["uid"])
                    elif event["type"] != "BOOKMARK":
                        self._seen(self._parse(event["object"]))
            except ApiError as error:
                if error.status != 410:
                    print(f"watching pods: {error}", flush=True)
                version = await self._list_again()
            except TRANSPORT_ERRORS as error:
                print(f"watching pods: {error!r}", flush=True)
                version = await self._list_again()

    async def _list_again(self) -> str:
        while True:
            await asyncio.sleep(0.5)
            try:
                return await self._list()
            except (ApiError, *TRANSPORT_ERRORS) as error:
                print(f"listing pods: {error!r}", flush=True)

    @staticmethod
    def _parse(item: dict[str, Any]) -> Pod | None:
        try:
            return Pod.model_validate(item)
        except ValidationError as error:
            print(f"pod {item['metadata']['name']} cannot be read: {error}", flush=True)
            return None

    def _seen(self, pod: Pod | None) -> None:
        if pod is None:
            return
        uid = pod.metadata.uid
        worker = self._workers.get(uid)
        if worker is None:
            try:
                worker = self._workers[uid] = PodWorker(self._context, pod)
            except LookupError as error:  # seen again with its next change
                self._context.events.emit(pod.reference(), "Warning", "FailedCreatePodSandBox", str(error))
                return
            self._tasks[uid] = asyncio.create_task(self._run(uid, worker), name=f"pod {pod.key}")
        worker.update(pod)

    def _gone(self, uid: str) -> None:
        worker = self._workers.get(uid)
        if worker is not None:
            worker.removed()

    async def _run(self, uid: str, worker: PodWorker) -> None:
        try:
            await worker.run()
        except Exception:  # noqa: BLE001  # one pod's bug must not take the others down; it is printed, and the pod is failed
            traceback.print_exc()
            await worker.abandon()
        finally:
            self._workers.pop(uid, None)
            self._tasks.pop(uid, None)

    def _find(self, namespace: str, name: str) -> PodWorker | None:
        for worker in self._workers.values():
            if (worker.pod.metadata.namespace, worker.pod.metadata.name) == (namespace, name):
                return worker
        return None

    # Commands

    async def _command(self, command: str, arguments: dict[str, Any]) -> Any:
        match command:
            case "preempt":
                worker = self._find(arguments["namespace"], arguments["pod"])
                if worker is None or worker.over:
                    raise LocalError(f'no pod "{arguments["namespace"]}/{arguments["pod"]}" runs on the process node')
                worker.preempt()
                return None
            case "throttle":
                try:
                    return self._throttle.set(arguments["selector"], float(arguments["share"]))
                except ValueError as error:
                    raise LocalError(str(error)) from error
            case _:
                raise LocalError(f"the process node knows no command {command!r}")


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Run the node until `stop` is set."""
    with contextlib.suppress(asyncio.CancelledError):
        await Agent(settings).run(stop)
