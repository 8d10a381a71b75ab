"""Writes a pod's status to the API server whenever it changes.

Room: local. Talks to the API server.
"""

import asyncio
import json
from collections.abc import Callable
from typing import Any

from ratchet_local.node.client import Api, ApiError, insist
from ratchet_local.node.model import Pod

MERGE_SECONDS = 0.02
"""Changes that come together are written together."""


class StatusReporter:
    """Coalesces changes into patches; survives an API server that is away."""

    def __init__(self, api: Api, pod: Pod, compute: Callable[[], dict[str, Any]]) -> None:
        self._api = api
        self._path = f"/api/v1/namespaces/{pod.metadata.namespace}/pods/{pod.metadata.name}/status"
        self._uid = pod.metadata.uid
        self._compute = compute
        self._dirty = asyncio.Event()
        self._sent = ""
        self._lock = asyncio.Lock()

    def changed(self) -> None:
        """Something may be different."""
        self._dirty.set()

    async def run(self) -> None:
        """Write changes until cancelled."""
        while True:
            await self._dirty.wait()
            await asyncio.sleep(MERGE_SECONDS)
            await self.flush()

    async def flush(self) -> None:
        """Write now what has changed; returns when the API server has it or no longer knows the pod."""
        async with self._lock:
            self._dirty.clear()
            status = self._compute()
            text = json.dumps(status, sort_keys=True)
            if text == self._sent:
                return
            try:
                await insist(self._api.patch, self._path, {"metadata": {"uid": self._uid}, "status": status})
            except ApiError as error:
                if error.status not in (404, 409):
                    print(f"status of {self._path}: {error}", flush=True)
                return
            self._sent = text
