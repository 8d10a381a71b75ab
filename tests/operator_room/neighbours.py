"""Who else writes while the operator works: the endpoint slice controller, a Gateway API controller, people's tools.

They write by plain requests, so they stand beside the fake API server and the real one alike.
"""

import contextlib
from dataclasses import dataclass, field
from typing import Any

from operator_world import World, resource

from ratchet_operator.clients.kube import RESOURCES
from ratchet_operator.clients.traffic import HTTPRoute, Service
from ratchet_operator.clients.transport import JSON, AlreadyExists, NotFound

ROUTE = "chat"
BY_VERSION = 'version="{{ version }}"'
METRICS = [
    {"name": "errors", "kind": "proportion", "minSamples": 20} | {k: f"{k}{{{BY_VERSION}}}" for k in ("bad", "all")}
]
"""Not the gateway's: it sees nothing of this traffic."""


def route_manifest(namespace: str, weights: tuple[int, int] = (1, 0), **spec: Any) -> JSON:
    """What a person keeps in Git, with things in it that are none of the operator's business."""
    backends = [
        {"name": f"assistant-{role}", "port": 8000, "weight": weight}
        for role, weight in zip(("stable", "candidate"), weights, strict=True)
    ]
    backends[0]["filters"] = [
        {"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "x-arm", "value": "stable"}]}}
    ]
    rule = {
        "matches": [{"path": {"type": "PathPrefix", "value": "/v1"}}],
        "timeouts": {"request": "300s"},
        "backendRefs": backends,
    }
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": ROUTE, "namespace": namespace},
        "spec": {"parentRefs": [{"name": "gate"}], "hostnames": ["chat.example.com"], "rules": [rule], **spec},
    }


def by_route(**target: str) -> JSON:
    """serving of a cycle whose traffic an HTTPRoute splits."""
    return {"runtime": "transformers", "router": "httpRoute", "httpRoute": {"name": ROUTE, **target}}


@dataclass
class Neighbours:
    """Call it between the operator's passes."""

    world: World
    accepts: bool = True
    """Whether the gateway takes the route."""
    silent: bool = False
    """Whether the gateway's controller is down."""
    acknowledged: list[tuple[int, ...]] = field(default_factory=list)
    """Weights that were in force, one after the other."""

    async def __call__(self) -> None:
        for service in await self.world.kube.select(Service, self.world.namespace):
            await self._endpoints(service)
        for route in await self.routes():
            if not self.silent:
                await self._acknowledge(route)

    async def routes(self) -> list[HTTPRoute]:
        with contextlib.suppress(NotFound):
            return await self.world.kube.select(HTTPRoute, self.world.namespace)
        return []

    async def route(self) -> HTTPRoute:
        found = await self.world.kube.get(HTTPRoute, self.world.namespace, ROUTE)
        assert found is not None
        return found

    async def weights(self) -> tuple[int, int]:
        found = (await self.route()).weights(0)
        return found["assistant-stable"], found["assistant-candidate"]

    async def _endpoints(self, service: Service) -> None:
        selector = service.spec.selector
        pods = [pod for pod in await self.world.pods(**selector) if pod.metadata.deletion_timestamp is None]
        # EndpointSlices refuse the loopback addresses that the pods have.
        endpoints = [
            {
                "addresses": [f"10.0.0.{number}"],
                "conditions": {"ready": pod.ready},
                "targetRef": {"kind": "Pod", "name": pod.metadata.name, "namespace": self.world.namespace},
            }
            for number, pod in enumerate(pods, start=1)
        ]
        name = service.metadata.name
        slices = RESOURCES["EndpointSlice"]
        body: JSON = {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "addressType": "IPv4",
            "metadata": {
                "name": name,
                "namespace": self.world.namespace,
                "labels": {"kubernetes.io/service-name": name},
            },
            "endpoints": endpoints,
        }
        try:
            await self.world.raw.request("post", slices.path(self.world.namespace), body)
        except AlreadyExists:
            path = slices.path(self.world.namespace, name)
            await self.world.raw.request(
                "patch", path, {"endpoints": endpoints}, content_type="application/merge-patch+json"
            )

    async def _acknowledge(self, route: HTTPRoute) -> None:
        generation = route.metadata.generation
        there = {service.metadata.name for service in await self.world.kube.select(Service, self.world.namespace)}
        resolved = all(set(route.weights(number)) <= there for number in range(len(route.spec.rules)))
        said = {"Accepted": self.accepts, "ResolvedRefs": resolved}
        if route.status.parents and all(
            (found := entry.condition(kind)) is not None
            and (found.observed_generation, found.status) == (generation, str(good))
            for entry in route.status.parents
            for kind, good in said.items()
        ):
            return
        conditions = [
            {
                "type": kind,
                "status": str(good),
                "reason": kind if good else "Refused",
                "message": "",
                "observedGeneration": generation,
                "lastTransitionTime": "2026-11-23T00:00:00Z",
            }
            for kind, good in said.items()
        ]
        parents = [
            {"parentRef": {"name": ref.name}, "controllerName": "example.com/gate", "conditions": conditions}
            for ref in route.spec.parent_refs
        ]
        path = resource("HTTPRoute").path(self.world.namespace, route.metadata.name, "status")
        await self.world.raw.request(
            "patch", path, {"status": {"parents": parents}}, content_type="application/merge-patch+json"
        )
        if all(said.values()):
            self.acknowledged.append(tuple(route.weights(0).values()))
