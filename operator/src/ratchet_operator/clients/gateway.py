"""Which weights the gateway has in force: asked of every ready pod, believed only when all agree.

Room: operator, clients.
"""

import asyncio
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ratchet_api.names import GATEWAY_LABELS, GATEWAY_PORT
from ratchet_operator.clients.http import Http, NoAnswer
from ratchet_operator.clients.kube import Kube
from ratchet_operator.clients.objects import Pod

SECONDS = 3.0


class Routes(BaseModel):
    """Answer of `GET /routes`: the weights that one gateway pod has in force."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    cycles: dict[str, dict[str, int]] = Field(default_factory=dict)
    """`namespace/cycle` -> version -> percent."""


class RoutesPort(Protocol):
    """Who knows what the gateways have in force."""

    async def routes(self) -> list[Routes] | None:
        """See Gateway.routes."""
        ...


class Gateway:
    """Reads back that a weight took effect."""

    def __init__(self, http: Http, kube: Kube, namespace: str, port: int = GATEWAY_PORT) -> None:
        self._http = http
        self._kube = kube
        self._namespace = namespace
        self._port = port

    async def routes(self) -> list[Routes] | None:
        """Routes of all ready gateway pods; None when one of them does not answer, or there is none."""
        labels = ",".join(f"{key}={value}" for key, value in GATEWAY_LABELS.items())
        pods = [pod for pod in await self._kube.select(Pod, self._namespace, labels) if pod.ready and pod.status.pod_ip]
        if not pods:
            return None
        answers = await asyncio.gather(*(self._ask(pod.status.pod_ip) for pod in pods))
        found = [answer for answer in answers if answer is not None]
        return found if len(found) == len(answers) else None

    async def _ask(self, address: str) -> Routes | None:
        host = f"[{address}]" if ":" in address else address
        try:
            status, body = await self._http.get(f"http://{host}:{self._port}/routes", SECONDS)
            return Routes.model_validate(body) if status == 200 else None
        except (NoAnswer, ValidationError):
            return None


class SharedRoutes:
    """One answer for all who ask within some seconds: of cycles that rest, for it may be a little old."""

    def __init__(self, inner: RoutesPort, seconds: float) -> None:
        self._inner = inner
        self._seconds = seconds
        self._lock = asyncio.Lock()
        self._answer: list[Routes] | None = None
        self._until = 0.0

    async def routes(self) -> list[Routes] | None:
        """See Gateway.routes."""
        async with self._lock:
            asked = asyncio.get_running_loop().time()
            if asked >= self._until:
                self._answer = await self._inner.routes()
                self._until = asked + self._seconds
            return self._answer


def weight_in_force(routes: list[Routes] | None, cycle: str, version: str) -> int | None:
    """Percent of the sessions that every gateway pod sends to the version of `namespace/cycle`; None when unknown.

    A pod that knows the cycle but not the version sends it nothing.
    """
    if routes is None:
        return None
    weights = {answer.cycles[cycle].get(version, 0) if cycle in answer.cycles else None for answer in routes}
    return weights.pop() if len(weights) == 1 else None
