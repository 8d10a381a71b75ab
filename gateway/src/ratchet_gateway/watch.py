"""Cycles and arm pods from the API server, as a routing table that follows them.

Room: gateway. Reads from Kubernetes (list and watch of improvementcycles and pods, nothing else).

Each resource is listed once and then watched from there; a watch that ends is taken up where it was, one that is too
old (410) is listed anew. While the API server is away, the last table stays in force.
"""

import asyncio
import logging
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

import aiohttp
import orjson
from kubernetes.aio import client, config
from pydantic import ValidationError

from ratchet_api.base import ObjectMeta
from ratchet_api.names import API_VERSION, CYCLE_PLURAL, GROUP
from ratchet_gateway.metrics import Metrics
from ratchet_gateway.observe import POD_SELECTOR, CycleView, PodKey, PodView, build_table, parse_cycle, parse_pod
from ratchet_gateway.routes import Pod, Table

log = logging.getLogger(__name__)
_WATCH_SECONDS = 60
"""The server ends a watch after this time. Short, so that a connection that died unnoticed cannot leave old weights in
force for long."""
_GRACE_SECONDS = 10.0
_PAUSES = (0.2, 10.0)

View = TypeVar("View", CycleView, PodView)
Query = Callable[..., Awaitable[Any]]


class Expired(Exception):
    """The resource version to watch from is too old."""


class ApiError(Exception):
    """The API server refused; the message is its own."""


class Reflector(Generic[View]):
    """One resource in one namespace (or all), kept in `items` by uid."""

    def __init__(self, name: str, query: Query, parse: Callable[[Any], View], changed: Callable[[], None]) -> None:
        self.name = name
        self.items: dict[str, View] = {}
        self.synced = False
        self._query = query
        self._parse: Callable[[Any], View] = parse
        self._changed = changed
        self._version = ""

    async def run(self, connected: Callable[[bool], None]) -> None:
        """Lists and watches for ever. `connected` hears whether the API server answers."""
        failures = 0
        while True:
            try:
                if not self._version:
                    await self._list()
                connected(True)
                failures = 0
                await self._watch()
            except Expired:
                self._version = ""
            except (ApiError, aiohttp.ClientError, TimeoutError, OSError) as error:
                connected(False)
                failures += 1
                pause = min(_PAUSES[1], _PAUSES[0] * 2.0 ** min(failures, 10)) * random.uniform(0.75, 1.25)
                log.warning("%s cannot be read (%s): the last routes stay; next try in %.1f s", self.name, error, pause)
                await asyncio.sleep(pause)

    async def _list(self) -> None:
        response = await self._query(_request_timeout=30.0)
        try:
            body = orjson.loads(await response.read())
        finally:
            response.release()
        if body.get("kind") == "Status":
            _refuse(body)
        items: dict[str, View] = {}
        for raw in body["items"]:
            self._keep(items, raw)
        self.items = items
        self._version = body["metadata"]["resourceVersion"]
        self.synced = True
        self._changed()

    async def _watch(self) -> None:
        response = await self._query(
            watch=True,
            resource_version=self._version,
            allow_watch_bookmarks=True,
            timeout_seconds=_WATCH_SECONDS,
            _request_timeout=_WATCH_SECONDS + _GRACE_SECONDS,
        )
        try:
            async for event in _events(response):
                self._take(event)
        finally:
            _cut(response)

    def _take(self, event: dict[str, Any]) -> None:
        kind, raw = event.get("type"), event.get("object", event)
        if kind == "ERROR" or kind is None:
            _refuse(raw)
        self._version = raw["metadata"]["resourceVersion"]
        if kind == "DELETED":
            self.items.pop(raw["metadata"]["uid"], None)
        elif kind in ("ADDED", "MODIFIED"):
            self._keep(self.items, raw)
        else:
            return
        self._changed()

    def _keep(self, items: dict[str, View], raw: Any) -> None:
        """An object that cannot be understood keeps the form in which it last could."""
        meta = ObjectMeta.model_validate(raw["metadata"])
        try:
            items[meta.uid] = self._parse(raw)
        except ValidationError as error:
            log.error("%s %s/%s cannot be understood and is ignored: %s", self.name, meta.namespace, meta.name, error)
            if meta.uid in self.items:
                items[meta.uid] = self.items[meta.uid]


def _cut(response: aiohttp.ClientResponse) -> None:
    """Ends a watch at once: a polite end of TLS would wait for the server, which may be gone."""
    transport = None if response.connection is None else response.connection.transport
    if transport is not None:
        transport.abort()
    response.close()


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    rest = b""
    async for data in response.content.iter_any():
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if line:
                yield orjson.loads(line)
    if rest.strip():
        yield orjson.loads(rest)


def _refuse(status: dict[str, Any]) -> None:
    if status.get("code") == 410:
        raise Expired
    raise ApiError(f"{status.get('code')}: {status.get('message')}")


class ClusterRoutes:
    """The routing table of a cluster, published at every change once all first lists are in."""

    def __init__(self, namespaces: Sequence[str], publish: Callable[[Table], None], metrics: Metrics) -> None:
        """`namespaces` empty means all."""
        self._namespaces = namespaces
        self._publish = publish
        self._metrics = metrics
        self._known: dict[PodKey, Pod] = {}
        self._cycles: list[Reflector[CycleView]] = []
        self._pods: list[Reflector[PodView]] = []
        self._scheduled = False

    @property
    def synced(self) -> bool:
        """Whether all first lists are in."""
        return bool(self._cycles) and all(r.synced for r in self._cycles) and all(r.synced for r in self._pods)

    async def run(self) -> None:
        """Follows the cluster until it is cancelled. KUBECONFIG if set, else in-cluster."""
        configuration = await load_configuration()
        async with client.ApiClient(configuration) as api:
            runs = []
            for namespace in self._namespaces or ("",):
                cycles = Reflector(CYCLE_PLURAL, _cycles_of(api, namespace), parse_cycle, self._schedule)
                pods = Reflector("pods", _pods_of(api, namespace), parse_pod, self._schedule)
                self._cycles.append(cycles)
                self._pods.append(pods)
                runs += [cycles.run(self._gauge("cycles", namespace)), pods.run(self._gauge("pods", namespace))]
            async with asyncio.TaskGroup() as group:
                for coroutine in runs:
                    group.create_task(coroutine)

    def _gauge(self, resource: str, namespace: str) -> Callable[[bool], None]:
        return self._metrics.watch_up.labels(resource, namespace).set

    def _schedule(self) -> None:
        """Changes that arrive together make one table."""
        if not self._scheduled and self.synced:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._rebuild)

    def _rebuild(self) -> None:
        self._scheduled = False
        cycles = [view for reflector in self._cycles for view in reflector.items.values()]
        pods = [view for reflector in self._pods for view in reflector.items.values()]
        self._publish(build_table(cycles, pods, self._known))


async def load_configuration() -> client.Configuration:
    """KUBECONFIG if set, else the service account of the pod. Raises ConfigException."""
    configuration = client.Configuration()
    path = os.environ.get("KUBECONFIG")
    if path:
        await config.load_kube_config(config_file=path, client_configuration=configuration)
    else:
        config.load_incluster_config(client_configuration=configuration)
    return configuration


def _cycles_of(api: client.ApiClient, namespace: str) -> Query:
    objects = client.CustomObjectsApi(api)
    if namespace:
        return lambda **options: objects.list_namespaced_custom_object_without_preload_content(
            GROUP, API_VERSION, namespace, CYCLE_PLURAL, **options
        )
    return lambda **options: objects.list_cluster_custom_object_without_preload_content(
        GROUP, API_VERSION, CYCLE_PLURAL, **options
    )


def _pods_of(api: client.ApiClient, namespace: str) -> Query:
    core = client.CoreV1Api(api)
    if namespace:
        return lambda **options: core.list_namespaced_pod_without_preload_content(
            namespace, label_selector=POD_SELECTOR, **options
        )
    return lambda **options: core.list_pod_for_all_namespaces_without_preload_content(
        label_selector=POD_SELECTOR, **options
    )
