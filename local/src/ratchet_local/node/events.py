"""Kubernetes events, worded as a kubelet words them, repeated ones counted.

Room: local. Talks to the API server.
"""

import asyncio
import contextlib
import datetime
import uuid
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Literal

from ratchet_local.node.client import TRANSPORT_ERRORS, Api, ApiError

EventType = Literal["Normal", "Warning"]
REMEMBERED = 1000


@dataclass
class _Seen:
    name: str
    count: int


class Events:
    """Sends events in the background; what cannot be sent within a few tries is dropped, as everywhere."""

    def __init__(self, api: Api, node_name: str) -> None:
        self._api = api
        self._node = node_name
        self._queue: asyncio.Queue[tuple[dict[str, str], EventType, str, str]] = asyncio.Queue(maxsize=1000)
        self._seen: OrderedDict[tuple[str, ...], _Seen] = OrderedDict()

    def emit(self, reference: dict[str, str], kind: EventType, reason: str, message: str) -> None:
        """Queue an event about an object (`Pod.reference()`)."""
        with contextlib.suppress(asyncio.QueueFull):
            self._queue.put_nowait((reference, kind, reason, message[:1000]))

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            reference, kind, reason, message = await self._queue.get()
            try:
                await self._send(reference, kind, reason, message)
            except ApiError:
                continue  # the namespace is going away, most likely
            except TRANSPORT_ERRORS:
                await asyncio.sleep(1)

    async def _send(self, reference: dict[str, str], kind: EventType, reason: str, message: str) -> None:
        namespace = reference.get("namespace", "default")
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        key = (reference["uid"], reference.get("fieldPath", ""), reason, message)
        seen = self._seen.get(key)
        if seen is not None:
            seen.count += 1
            body: dict[str, Any] = {"count": seen.count, "lastTimestamp": now}
            await self._api.patch(f"/api/v1/namespaces/{namespace}/events/{seen.name}", body)
            return
        name = f"{reference['name'][:200]}.{uuid.uuid4().hex[:16]}"
        await self._api.post(
            f"/api/v1/namespaces/{namespace}/events",
            {
                "metadata": {"name": name, "namespace": namespace},
                "involvedObject": reference,
                "reason": reason,
                "message": message,
                "type": kind,
                "source": {"component": "kubelet", "host": self._node},
                "reportingComponent": "kubelet",
                "reportingInstance": self._node,
                "firstTimestamp": now,
                "lastTimestamp": now,
                "count": 1,
            },
        )
        self._seen[key] = _Seen(name, 1)
        while len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
