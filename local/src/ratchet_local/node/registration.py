"""The Node object and its Lease: how the cluster learns that we are here and alive.

Room: local. Talks to the API server.
"""

import asyncio
import datetime
import os
import platform
from typing import Any

from ratchet_local.node.client import TRANSPORT_ERRORS, Api, ApiError, insist
from ratchet_local.node.environment import NodeFacts
from ratchet_local.node.settings import Settings

LEASE_SECONDS = 40
RENEW_SECONDS = 10.0
MAX_PODS = 200
"""Fewer than there are pod addresses: pods that are on their way out still hold theirs."""
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def node_object(settings: Settings, facts: NodeFacts) -> dict[str, Any]:
    """The Node without its status. Room for pods, cores and GPUs as configured; memory is the machine's."""
    architecture = _ARCHITECTURES.get(platform.machine(), platform.machine())
    labels = {
        "kubernetes.io/hostname": settings.name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": architecture,
        "node.kubernetes.io/instance-type": "process",
    }
    if settings.gpus:
        labels["nvidia.com/gpu.present"] = "true"
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": settings.name, "labels": labels}}


def node_status(settings: Settings, facts: NodeFacts, now: str, since: str) -> dict[str, Any]:
    """Addresses, capacity and conditions. `since` is when the conditions last changed."""
    amounts = {
        "cpu": str(facts.cpus),
        "memory": str(facts.memory_bytes),
        "pods": str(MAX_PODS),
        "ephemeral-storage": "100Gi",
    }
    if settings.gpus:
        amounts["nvidia.com/gpu"] = str(settings.gpus)
    conditions = [("Ready", "True", "KubeletReady", "the process node is posting ready status")]
    for kind, reason in (
        ("MemoryPressure", "KubeletHasSufficientMemory"),
        ("DiskPressure", "KubeletHasNoDiskPressure"),
        ("PIDPressure", "KubeletHasSufficientPID"),
    ):
        conditions.append((kind, "False", reason, "not measured by the process node"))
    return {
        "addresses": [
            {"type": "InternalIP", "address": settings.address},
            {"type": "Hostname", "address": settings.name},
        ],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": settings.port}},
        "capacity": amounts,
        "allocatable": amounts,
        "nodeInfo": {
            "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
            "bootID": "",
            "containerRuntimeVersion": "process://1",
            "kernelVersion": os.uname().release,
            "kubeProxyVersion": "",
            "kubeletVersion": "v1.37.2-process",
            "machineID": "",
            "operatingSystem": "linux",
            "osImage": "none: containers are processes",
            "systemUUID": "",
        },
        "conditions": [
            {
                "type": kind, "status": status, "reason": reason, "message": message,
                "lastHeartbeatTime": now, "lastTransitionTime": since,
            }
            for kind, status, reason, message in conditions
        ],
    }  # fmt: skip


class Registration:
    """Registers the node and keeps it alive."""

    def __init__(self, api: Api, settings: Settings, facts: NodeFacts) -> None:
        self._api, self._settings, self._facts = api, settings, facts
        self._since = _now()
        self._lease = f"/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{settings.name}"
        self._node = f"/api/v1/nodes/{settings.name}"

    async def register(self) -> None:
        """Create or take over the Node, then say that it is ready."""
        body = node_object(self._settings, self._facts)
        try:
            await insist(self._api.post, "/api/v1/nodes", body)
        except ApiError as error:
            if error.status != 409:
                raise
            await insist(self._api.patch, self._node, {"metadata": {"labels": body["metadata"]["labels"]}})
        await self._renew()
        await self._post_status()

    async def keep(self) -> None:
        """Renew the lease, and now and then the status, until cancelled."""
        beats = 0
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            beats += 1
            try:
                await self._renew()
                if beats % 6 == 0:
                    await self._post_status()
            except (ApiError, *TRANSPORT_ERRORS) as error:
                print(f"heartbeat failed, will be tried again: {error}", flush=True)

    async def _post_status(self) -> None:
        status = node_status(self._settings, self._facts, _now(), self._since)
        await insist(self._api.patch, f"{self._node}/status", {"status": status})

    async def _renew(self) -> None:
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = {"holderIdentity": self._settings.name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": now}
        try:
            await self._api.patch(self._lease, {"spec": spec}, "application/merge-patch+json")
        except ApiError as error:
            if error.status != 404:
                raise
            lease = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": self._settings.name, "namespace": "kube-node-lease"},
                "spec": spec,
            }
            await self._api.post("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases", lease)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
