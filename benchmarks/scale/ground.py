"""What the benchmark of many objects stands on: an API server that is full of cycles at rest, and stubs of their arms.

One cycle with its versions is led to rest by the operator's own reconcilers, in the API server in a dict of the tests;
then it is copied a thousand times into a real one, children and statuses included. The platform's controllers are
ended before: nothing makes pods, and nothing changes by itself.
"""

import asyncio
import copy
import importlib.util
import json
import resource as limits
import sys
import threading
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from aiohttp import web

from ratchet_api.cycle import ImprovementCycle
from ratchet_api.names import ARM_LABEL, ARM_PORT, CYCLE_KIND, GATEWAY_LABELS, GATEWAY_PORT, VERSION_KIND
from ratchet_api.version import ModelVersion
from ratchet_operator.clients.kube import RESOURCES
from ratchet_operator.clients.transport import JSON, AlreadyExists, Api
from ratchet_operator.errors import Conflict, Unavailable
from ratchet_operator.manifests.arms import ArmRequest, deployment

ROOT = Path(__file__).resolve().parents[2]
NAME = "assistant"
GATEWAY_ADDRESS = "127.77.0.1"
TRAINER_IMAGE, VLLM_IMAGE = "ratchet/trainer", "vllm"
TRIES = 10
AT_ONCE = 12
"""Requests under way while objects are made."""
COPIED = (CYCLE_KIND, VERSION_KIND, "Deployment", "Pod")


def _tests() -> tuple[Any, Any, Any]:
    """The tests' world: (world, fake, stories)."""
    for file in ("world", "fake", "neighbours", "stories"):
        name = f"operator_{file}"
        spec = importlib.util.spec_from_file_location(name, ROOT / "tests" / "operator_room" / f"{file}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules["operator_world"], sys.modules["operator_fake"], sys.modules["operator_stories"]


async def template(versions: int) -> list[JSON]:
    """All objects of one cycle at rest, of whose versions the last serves."""
    worlds, fakes, stories = _tests()
    world = worlds.World(fakes.FakeApi(), "default")
    world.clock.ahead = -timedelta(hours=2)
    await stories.serving(world)
    for number in range(1, versions):
        letter = "0123456789abcdef"[number]
        await world.annotate("run", letter)
        await world.settle()
        await world.finish("curate", worlds.curated(letter))
        await world.settle()
        await world.finish("train", worlds.trained(letter))
        await world.settle()
        await world.finish("evaluate", worlds.evaluated())
        await stories.champion(world, f"{NAME}-{number}")
    return [
        copy.deepcopy(body)
        for body in world.raw.objects.values()
        if body["kind"] in COPIED and (body["kind"] != "Pod" or ARM_LABEL in body["metadata"]["labels"])
    ]


def renamed(value: Any, name: str) -> Any:
    """With another name of the cycle, wherever it is said."""
    if isinstance(value, dict):
        return {renamed(key, name): renamed(inner, name) for key, inner in value.items()}
    if isinstance(value, list):
        return [renamed(inner, name) for inner in value]
    return value.replace(NAME, name) if isinstance(value, str) else value


def with_uids(value: Any, uids: Mapping[str, str]) -> Any:
    """With the uids that the API server has given, in place of those of the template."""
    if isinstance(value, dict):
        return {key: with_uids(inner, uids) for key, inner in value.items()}
    if isinstance(value, list):
        return [with_uids(inner, uids) for inner in value]
    return uids.get(value, value) if isinstance(value, str) else value


def address(number: int) -> str:
    """Of a cycle's only pod."""
    return f"127.78.{number // 250}.{number % 250 + 1}"


class Crowd:
    """Copies of a template."""

    def __init__(self, api: Api, namespace: str, objects: list[JSON]) -> None:
        self._api = api
        self._namespace = namespace
        self._objects = sorted(objects, key=lambda body: COPIED.index(body["kind"]))
        stable = next(body for body in objects if body["kind"] == CYCLE_KIND)["status"]["serving"]["stable"]
        self._stable = str(stable["version"])

    def serves(self, number: int) -> str:
        """Name of the champion of a cycle."""
        return str(renamed(self._stable, self.name(number)))

    def name(self, number: int) -> str:
        """Of a cycle."""
        return f"cycle-{number:04}"

    async def make(self, cycles: int) -> None:
        """All of them."""
        numbers = iter(range(cycles))

        async def worker() -> None:
            for number in numbers:
                await self._copy(number)

        await asyncio.gather(*(worker() for _ in range(AT_ONCE)))

    async def _copy(self, number: int) -> None:
        uids: dict[str, str] = {}
        made: list[tuple[str, JSON, JSON]] = []
        for thing in self._objects:
            body = renamed(thing, self.name(number))
            kind, meta, status = body["kind"], body["metadata"], body.pop("status", None)
            kept = {key: meta[key] for key in ("name", "labels", "annotations", "ownerReferences") if key in meta}
            body["metadata"] = kept | {"namespace": self._namespace}
            if kind == "Pod":
                self._pod(body, status, number)
            if kind == "Deployment":
                status = {"observedGeneration": 1, "replicas": 1, "readyReplicas": 1, "updatedReplicas": 1}
            if kind == "Deployment":
                body = self._arm(made)
            path = RESOURCES[kind].path(self._namespace)
            stored = await self._post(path, with_uids(body, uids))
            uids[meta["uid"]] = stored["metadata"]["uid"]
            made.append((f"{path}/{kept['name']}/status", stored, status))
        for path, stored, status in made:
            await self._insist("put", path, stored | {"status": with_uids(status, uids)})

    async def _post(self, path: str, body: JSON) -> JSON:
        try:
            return await self._insist("post", path, body)
        except AlreadyExists:  # its answer came too late the first time
            return await self._insist("get", f"{path}/{body['metadata']['name']}")

    async def _insist(self, method: str, path: str, body: JSON | None = None) -> JSON:
        """A machine that is full answers late; here that is no result."""
        for _ in range(TRIES):
            try:
                return await self._api.request(method, path, body, {"fieldManager": "ratchet"} if body else None)
            except Unavailable as error:
                print(error, flush=True)
            except Conflict as error:
                if method != "put" or isinstance(error, AlreadyExists):
                    raise
                return {}  # its answer came too late the first time, too
        raise SystemExit(f"{method} {path}: not in {TRIES} attempts")

    def _arm(self, made: list[tuple[str, JSON, JSON]]) -> JSON:
        """Built by the operator's own hands from what was made so far, so that it finds nothing to correct."""
        cycle = ImprovementCycle.model_validate(made[0][1])
        version = next(
            ModelVersion.model_validate(stored | {"status": status})
            for _, stored, status in made
            if stored["kind"] == VERSION_KIND and stored["metadata"]["name"].endswith(self._stable.removeprefix(NAME))
        )
        rank = (version.spec.training or cycle.spec.training.recipe).lora.rank
        name, adapter = version.metadata.name, version.adapter
        return deployment(ArmRequest(cycle, name, adapter, rank, TRAINER_IMAGE, VLLM_IMAGE, 1))

    def _pod(self, body: JSON, status: JSON, number: int) -> None:
        del body["metadata"]["ownerReferences"]  # a ReplicaSet, of which there is none here
        body["spec"] = {"containers": [{"name": "server", "image": "stub"}], "nodeName": "nowhere"}
        status["podIP"], status["podIPs"] = address(number), [{"ip": address(number)}]

    async def surroundings(self) -> None:
        """What the cycles name, and a gateway's pod."""
        post = self._api.request
        for body in (
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "storage"}},
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "suites"}, "data": {"house.jsonl": "{}"}},
        ):
            await post("post", RESOURCES[str(body["kind"])].path(self._namespace), body)
        meta = {"name": "gateway", "labels": GATEWAY_LABELS}
        spec = {"containers": [{"name": "gateway", "image": "stub"}], "nodeName": "nowhere"}
        path = RESOURCES["Pod"].path(self._namespace)
        made = await post("post", path, {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec})
        status = {
            "phase": "Running",
            "podIP": GATEWAY_ADDRESS,
            "podIPs": [{"ip": GATEWAY_ADDRESS}],
            "conditions": [{"type": "Ready", "status": "True"}],
        }
        await post("put", f"{path}/gateway/status", made | {"status": status})


class Stubs:
    """A gateway, and an arm on an address of its own for every cycle, in a thread."""

    def __init__(self, crowd: Crowd, namespace: str, cycles: int) -> None:
        self._routes = json.dumps(
            {"cycles": {f"{namespace}/{crowd.name(number)}": {crowd.serves(number): 100} for number in range(cycles)}}
        )
        self._models = {address(number): crowd.serves(number) for number in range(cycles)}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> "Stubs":
        soft, hard = limits.getrlimit(limits.RLIMIT_NOFILE)
        limits.setrlimit(limits.RLIMIT_NOFILE, (min(hard, max(soft, 8192)), hard))
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._serve(), self._loop).result(120)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _serve(self) -> None:
        gateway, arms = web.Server(self._gateway), web.Server(self._arm)
        await self._loop.create_server(gateway, GATEWAY_ADDRESS, GATEWAY_PORT)
        await self._loop.create_server(arms, list(self._models), ARM_PORT)

    async def _gateway(self, request: web.BaseRequest) -> web.Response:
        return web.Response(text=self._routes, content_type="application/json")

    async def _arm(self, request: web.BaseRequest) -> web.Response:
        assert request.transport is not None
        model = self._models[request.transport.get_extra_info("sockname")[0]]
        if request.method == "POST":
            return web.json_response({"choices": [{"text": "x"}]})
        return web.json_response({"object": "list", "data": [{"id": model, "object": "model"}]})
