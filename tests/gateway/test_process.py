"""The real thing: `python -m ratchet_gateway`, a real API server and a real S3 server, asked by the stock client."""

import asyncio
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from openai import AsyncOpenAI

from ratchet_api.names import ARM_LABEL, CYCLE_LABEL, VERSION_LABEL
from ratchet_local import Platform, S3Access

from .support import PATIENCE, FakeArm, MakeArm, becomes, free_port, read_interactions

TIME = "2026-11-22T00:00:00.000000Z"
HELLO: Any = [{"role": "user", "content": "Hello"}]


class Cluster:
    """A cycle and its arms' pods, as the operator and the kubelet would have them."""

    def __init__(self, platform: Platform, namespace: str) -> None:
        self._platform = platform
        self._namespace = namespace

    async def kubectl(self, *args: str, input: dict[str, Any] | None = None) -> None:
        text = None if input is None else json.dumps(input)
        await asyncio.to_thread(self._platform.kubectl, "-n", self._namespace, *args, input=text)

    async def status(self, kind: str, name: str, status: dict[str, Any]) -> None:
        patch = json.dumps({"status": status})
        await self.kubectl("patch", kind, name, "--subresource=status", "--type=merge", "-p", patch)

    async def cycle(self, access: S3Access, bucket: str) -> None:
        suite = {"name": "t", "role": "target", "cases": {"configMap": {"name": "suites", "key": "t.jsonl"}}}
        spec = {
            "baseModel": {"uri": "s3://models/base"},
            "storage": {"uri": f"s3://{bucket}/assistant", "endpoint": access.endpoint},
            "evaluation": {"suites": [suite]},
        }
        body = {"apiVersion": "ratchet.dev/v1alpha1", "kind": "ImprovementCycle", "metadata": {"name": "assistant"}}
        await self.kubectl("apply", "-f", "-", input={**body, "spec": spec})

    async def serve(self, stable: FakeArm, candidate: FakeArm, weight: int) -> None:
        def entry(arm: FakeArm, share: int) -> dict[str, Any]:
            names = {"version": arm.model_name, "deployment": f"{arm.model_name}-arm", "modelName": arm.model_name}
            return {**names, "port": arm.port, "weight": share, "since": TIME}

        serving = {"stable": entry(stable, 100 - weight), "candidate": entry(candidate, weight)}
        await self.status("cycle", "assistant", {"serving": serving})

    async def pod(self, arm: FakeArm) -> None:
        name = f"{arm.model_name}-0"
        labels = {CYCLE_LABEL: "assistant", VERSION_LABEL: arm.model_name, ARM_LABEL: "true"}
        spec = {"containers": [{"name": "server", "image": "server"}], "schedulerName": "nobody"}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec}
        await self.kubectl("apply", "-f", "-", input=body)
        ready = {"type": "Ready", "status": "True", "lastTransitionTime": "2026-11-22T00:00:00Z"}
        address = {"podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]}
        await self.status("pod", name, {"phase": "Running", **address, "conditions": [ready]})


@contextlib.asynccontextmanager
async def gateway(port: int, folder: Path, namespace: str, environment: dict[str, str]) -> AsyncIterator[Any]:
    command = [sys.executable, "-m", "ratchet_gateway", "--host", "127.0.0.1", "--port", str(port), "--spool"]
    command += [str(folder), "--namespace", namespace, "--drain-seconds", "0"]
    process = await asyncio.create_subprocess_exec(*command, env=environment)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def routes(http: aiohttp.ClientSession) -> Any:
    try:
        async with http.get("/routes") as response:
            return (await response.json())["cycles"]
    except aiohttp.ClientError:
        return None


async def until_routes(http: aiohttp.ClientSession, key: str, weights: dict[str, int]) -> None:
    async def look() -> Any:
        return ((await routes(http)) or {}).get(key)

    await becomes(look, weights)


async def versions(client: AsyncOpenAI) -> set[str]:
    """Versions that answer 40 sessions."""
    found = set()
    for number in range(40):
        headers = {"x-session-id": f"session-{number}"}
        raw = await client.chat.completions.with_raw_response.create(
            model="assistant", messages=HELLO, extra_headers=headers
        )
        found.add(raw.headers["x-ratchet-version"])
    return found


@pytest.mark.apiserver
async def test_from_the_cluster_to_the_bucket(
    cluster: Platform, namespace: str, s3: S3Access, make_arm: MakeArm, tmp_path: Path
) -> None:
    bucket, port = f"gateway-{secrets.token_hex(4)}", free_port()
    s3.create_bucket(bucket)
    stable, candidate = await make_arm("assistant-1"), await make_arm("assistant-2")
    scene, key = Cluster(cluster, namespace), f"{namespace}/assistant"
    await scene.cycle(s3, bucket)
    environment = {**os.environ, **s3.env(), "KUBECONFIG": str(cluster.kubeconfig), "POD_NAME": "gateway-0"}
    environment.pop("AWS_ENDPOINT_URL")  # the cycle names it
    async with (
        gateway(port, tmp_path / "spool", namespace, environment) as process,
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http,
        AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=0) as client,
    ):
        await until_routes(http, key, {})
        await scene.serve(stable, candidate, 50)
        for arm in (stable, candidate):
            await scene.pod(arm)
        await until_routes(http, key, {"assistant-1": 50, "assistant-2": 50})
        await becomes(lambda: _status(http), 200)
        async with http.get("/readyz") as response:
            assert response.status == 200
        assert await versions(client) == {"assistant-1", "assistant-2"}
        await scene.serve(stable, candidate, 0)
        await until_routes(http, key, {"assistant-1": 100, "assistant-2": 0})
        assert await versions(client) == {"assistant-1"}
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), PATIENCE) == 0
    records = await asyncio.to_thread(read_interactions, s3, bucket)
    assert len([record for record in records if record.status == 200]) >= 80
    assert {record.namespace for record in records} == {namespace}
    pages = s3.client().list_objects_v2(Bucket=bucket)["Contents"]
    assert all("/dt=" in entry["Key"] and "/gateway-0-" in entry["Key"] for entry in pages)


async def _status(http: aiohttp.ClientSession) -> int:
    """Status of an answer by the candidate: the last pod to be seen."""
    async with http.post(
        "/v1/chat/completions", json={"model": "assistant@assistant-2", "messages": HELLO}
    ) as response:
        return response.status


def test_without_a_cluster_it_says_so_and_ends(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("KUBE")}
    environment |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y"}
    command = [sys.executable, "-m", "ratchet_gateway", "--host", "127.0.0.1", "--port", "0", "--spool", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 78
    assert "ratchet_gateway: " in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
