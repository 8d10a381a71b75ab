"""The process itself: watches, leader election, probes, metrics, signals. Real API server, real processes."""

import asyncio
import os
import signal
import socket
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest
from operator_world import World, cycle_manifest

from ratchet_local import Platform
from ratchet_operator.clients.objects import Lease

pytestmark = pytest.mark.apiserver


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Running:
    """One operator process."""

    name: str
    process: asyncio.subprocess.Process
    health: int
    metrics: int
    log: IO[str]

    async def get(self, path: str, port: int | None = None) -> tuple[int, str]:
        """(status, body); status 0 while nothing listens."""

        def fetch() -> tuple[int, str]:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port or self.health}{path}", timeout=10) as answer:
                    return answer.status, answer.read().decode()
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, error.read().decode()
            except OSError:
                return 0, ""

        return await asyncio.to_thread(fetch)

    async def ready(self) -> bool:
        return (await self.get("/readyz"))[0] == 200

    async def leads(self) -> bool:
        return "ratchet_operator_leader 1.0" in (await self.get("/metrics", self.metrics))[1]


@asynccontextmanager
async def operator(world: World, name: str, elect: bool = True) -> AsyncIterator[Running]:
    health, metrics = free_port(), free_port()
    arguments = [
        sys.executable, "-m", "ratchet_operator", "run",
        "--gateway-namespace", world.namespace, "--namespace", world.namespace,
        "--prometheus-url", "http://127.0.0.1:1", "--trainer-image", "ratchet/trainer", "--vllm-image", "vllm",
        "--health-address", f"127.0.0.1:{health}", "--metrics-address", f"127.0.0.1:{metrics}",
    ]  # fmt: skip
    if elect:
        arguments += ["--leader-election-namespace", world.namespace]
    environment = os.environ | {"POD_NAME": name}
    with tempfile.TemporaryFile("w+") as log:
        process = await asyncio.create_subprocess_exec(*arguments, env=environment, stderr=log, stdout=log)
        try:
            yield Running(name, process, health, metrics, log)
        except BaseException:
            log.seek(0)
            print(f"--- log of {name}\n{log.read()[-6000:]}")
            raise
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def wait(what: Callable[[], Awaitable[bool]], seconds: float = 90.0) -> None:
    async with asyncio.timeout(seconds):
        while not await what():  # noqa: ASYNC110 - another process is asked, it tells nobody
            await asyncio.sleep(0.1)


async def test_events_lead_to_a_served_base_model(world: World) -> None:
    await world.storage()
    async with operator(world, "alone", elect=False) as running:
        await wait(running.ready)
        await world.apply(cycle_manifest(world.namespace))

        async def deployed() -> bool:
            return list(await world.deployments()) == ["assistant-0-arm"]

        await wait(deployed)

        async def described() -> bool:
            return (await world.version("assistant-0")).status.observed_generation == 1

        await wait(described)
        body = (await running.get("/metrics", running.metrics))[1]
        assert 'ratchet_operator_reconciles_total{kind="ImprovementCycle",result="done"}' in body
        assert (await running.get("/healthz"))[0] == 200
        running.process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(running.process.wait(), 60) == 0


async def test_one_of_two_acts_and_the_other_takes_over(world: World) -> None:
    await world.storage()
    async with operator(world, "first") as first:
        await wait(first.leads)
        async with operator(world, "second") as second:
            await wait(second.ready)
            assert not await second.leads()
            await world.apply(cycle_manifest(world.namespace))

            async def deployed() -> bool:
                return list(await world.deployments()) == ["assistant-0-arm"]

            await wait(deployed)
            assert not any(line.startswith("ratchet_operator_writes_total") for line in await lines(second))
            first.process.kill()
            await first.process.wait()
            await wait(second.leads)
            await world.apply(cycle_manifest(world.namespace, serving={"runtime": "transformers", "replicas": 2}))

            async def scaled() -> bool:
                found = (await world.deployments()).get("assistant-0-arm")
                return found is not None and found.spec.replicas == 2

            await wait(scaled)
            second.process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(second.process.wait(), 60) == 0
        lease = await world.kube.get(Lease, world.namespace, "ratchet-operator")
        assert lease is not None
        assert lease.spec.holder_identity == "", "a Lease that was given up makes nobody wait"


async def lines(running: Running) -> list[str]:
    return (await running.get("/metrics", running.metrics))[1].splitlines()


async def test_without_access_it_says_so(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "KUBECONFIG"}
    arguments = ["--gateway-namespace", "x", "--prometheus-url", "http://127.0.0.1:1", "--trainer-image", "x"]
    arguments += ["--vllm-image", "x", "--health-address", "127.0.0.1:1", "--metrics-address", "127.0.0.1:1"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ratchet_operator", "run", *arguments, env=environment, stderr=asyncio.subprocess.PIPE
    )
    _, said = await process.communicate()
    assert process.returncode == 2
    assert "no access to Kubernetes" in said.decode()
    assert "Traceback" not in said.decode()


async def test_an_outage_of_the_api_server_is_survived(cluster: Platform, world: World) -> None:
    """The process lives on, says that it cannot act, and takes up its work when the API server is back."""
    await world.storage()
    async with operator(world, "patient") as running:
        await wait(running.leads)
        await asyncio.to_thread(cluster.stop, "kube-apiserver")
        try:

            async def does_not_lead() -> bool:
                return not await running.leads()

            await wait(does_not_lead)
            assert (await running.get("/healthz"))[0] == 200, "a restart would not help"
        finally:
            await asyncio.to_thread(cluster.start, "kube-apiserver")
        await wait(running.leads)
        await world.established()
        await world.apply(cycle_manifest(world.namespace))

        async def deployed() -> bool:
            return list(await world.deployments()) == ["assistant-0-arm"]

        await wait(deployed)
        assert running.process.returncode is None
