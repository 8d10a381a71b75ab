"""What the benchmark of rollbacks stands on: the local platform with the chart, a cycle of stubs, and a crowd."""

import asyncio
import json
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from ratchet_api.artifacts import Manifest
from ratchet_api.cycle import ImprovementCycle, RolloutStatus
from ratchet_api.names import API_VERSION, GROUP, GROUP_VERSION, VERSION_LABEL, VERSION_PLURAL
from ratchet_cli.demo.chart import install
from ratchet_cli.demo.cluster import Cluster
from ratchet_cli.demo.platform import SYSTEM_NAMESPACE, chart_values, prepare_namespaces, without_proxies
from ratchet_cli.demo.storage import ArtifactStore, manifest_of
from ratchet_local import ImageEnv, Platform, PlatformConfig

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
STATE = ROOT / ".ratchet" / "benchmark-rollback"
BUCKET, CYCLE, NAMESPACE = "rollback", "bench", "default"
POLL = 0.05
"""Seconds between two looks at the gateway's weights: the resolution of every figure."""


class Weights:
    """What the gateway has in force, looked at all the time, with the moment of each change."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/routes"
        self._seen: dict[str, int] = {}
        self.changes: list[tuple[float, str, int]] = []
        """(monotonic time, version, percent)."""

    async def follow(self, session: aiohttp.ClientSession) -> None:
        while True:
            try:
                async with session.get(self._url) as answer:
                    body = await answer.json()
            except aiohttp.ClientError:
                body = None
            if body is not None:
                now, weights = time.monotonic(), body["cycles"].get(f"{NAMESPACE}/{CYCLE}", {})
                for version in weights.keys() | self._seen.keys():
                    percent = weights.get(version, 0)
                    if self._seen.get(version, 0) != percent:
                        self.changes.append((now, version, percent))
                        self._seen[version] = percent
            await asyncio.sleep(POLL)

    def of(self, version: str) -> int:
        """In force now."""
        return self._seen.get(version, 0)

    def after(self, moment: float, version: str) -> list[tuple[float, int]]:
        """(seconds since `moment`, percent) of every change of a version's weight after it."""
        return [(at - moment, percent) for at, name, percent in list(self.changes) if name == version and at > moment]


class Crowd:
    """Sessions of one question each, at a steady rate, from a thread of its own."""

    def __init__(self, url: str, rate: float) -> None:
        self.rate = rate
        self.weights = Weights(url)
        self.sent = 0
        self.codes: dict[int, int] = {}
        self._url = f"{url}/v1/chat/completions"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),), daemon=True)
        self._ending = False

    def __enter__(self) -> "Crowd":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending = True
        self._thread.join(30)

    async def _run(self) -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(20)) as session:
            following = asyncio.create_task(self.weights.follow(session))
            asking: set[asyncio.Task[None]] = set()
            while not self._ending:
                task = asyncio.create_task(self._ask(session))
                asking.add(task)
                task.add_done_callback(asking.discard)
                await asyncio.sleep(1 / self.rate)
            following.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    async def _ask(self, session: aiohttp.ClientSession) -> None:
        self.sent += 1
        body = {"model": CYCLE, "messages": [{"role": "user", "content": "yes?"}]}
        try:
            async with session.post(self._url, json=body) as answer:
                await answer.read()
                code = answer.status
        except (aiohttp.ClientError, TimeoutError):
            code = 0
        self.codes[code] = self.codes.get(code, 0) + 1


class Ground:
    """The platform and the cycle on it."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.cluster = Cluster(platform.kubeconfig, NAMESPACE, CYCLE)
        self.store = ArtifactStore(platform.s3.client())
        self._made = 0

    def until(self, what: str, condition: Callable[[], Any], seconds: float = 120.0, pause: float = 0.2) -> Any:
        """Waits for a truth. Raises SystemExit with the cluster's own words."""
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            if time.monotonic() > deadline:
                raise SystemExit(f"{what}: not within {seconds:.0f} s\n{self.cluster.diagnosis([NAMESPACE])}")
            time.sleep(pause)
        return found

    def cycle(self) -> ImprovementCycle:
        """As the API server has it now."""
        found = self.cluster.read().cycle
        assert found is not None
        return found

    def rollout(self, version: str) -> RolloutStatus | None:
        """The rollout of a version, as the cycle's status has it."""
        status = self.cycle().status.rollout
        return status if status is not None and status.version == version else None

    def apply_cycle(self, rollout: dict[str, Any]) -> None:
        """The cycle with these settings of its rollout."""
        cases = json.dumps({"id": "one", "prompt": "yes?", "expect": {"all": ["yes"]}})
        where = {"configMap": {"name": "suites", "key": "one.jsonl"}}
        objects = [
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "suites"}, "data": {"one.jsonl": cases}},
            {
                "apiVersion": GROUP_VERSION,
                "kind": "ImprovementCycle",
                "metadata": {"name": CYCLE},
                "spec": {
                    "baseModel": {"uri": f"s3://{BUCKET}/base"},
                    "storage": {
                        "uri": f"s3://{BUCKET}/{CYCLE}",
                        "endpoint": self.platform.s3.endpoint,
                        "credentialsSecret": {"name": "storage"},
                    },
                    "evaluation": {"suites": [{"name": "one", "role": "target", "cases": where}]},
                    # No node has one: the versions' evaluation is written into their status instead of done.
                    "training": {"resources": {"limits": {"nvidia.com/gpu": "1"}}},
                    "serving": {"runtime": "vllm", "image": "bench/vllm:1"},
                    "rollout": rollout,
                },
            },
        ]
        self.platform.kubectl("apply", "-f", "-", input=yaml.safe_dump_all(objects))

    def accepted_version(self) -> str:
        """A new version with a new adapter, whose evaluation is said to have ended well."""
        self._made += 1
        name = f"trial-{self._made}"
        files = {
            "adapter_model.safetensors": name.encode(),
            "adapter_config.json": b'{"peft_type": "LORA", "r": 8}',
        }
        manifest = manifest_of(files, "adapter")
        uri = f"s3://{BUCKET}/adapters/{name}"
        self.store.put_files(uri, files, manifest)
        spec = {"cycle": CYCLE, "adapter": {"uri": uri, "digest": manifest.digest}}
        document = {"apiVersion": GROUP_VERSION, "kind": "ModelVersion", "metadata": {"name": name}, "spec": spec}
        self.platform.kubectl("apply", "-f", "-", input=yaml.safe_dump(document))
        self.until(f"{name} is looked at", lambda: self._phase(name))
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        accepted = {
            "type": "Accepted",
            "status": "True",
            "reason": "GatePassed",
            "message": "written by the benchmark",
            "lastTransitionTime": now,
            "observedGeneration": 1,
        }

        def said() -> bool:
            version = self.cluster.read().versions[name]
            if any(c.type == "Accepted" and c.status == "True" for c in version.status.conditions):
                return True
            written = version.model_dump(mode="json", by_alias=True, exclude_none=True)["status"]
            conditions = [c for c in written.get("conditions", []) if c["type"] != "Accepted"] + [accepted]
            stages = [{"stage": "evaluate", "startedAt": now, "finishedAt": now}]
            body = {"status": {"conditions": conditions, "stages": stages, "evaluation": {"champion": f"{CYCLE}-0"}}}
            self.cluster.objects.patch_namespaced_custom_object_status(
                GROUP, API_VERSION, NAMESPACE, VERSION_PLURAL, name, body
            )
            return False

        self.until(f"{name} is Accepted", said)
        return name

    def _phase(self, name: str) -> str:
        return self.cluster.read().versions[name].status.phase

    def fault(self, version: str, order: dict[str, Any]) -> float:
        """Breaks the version's server; the moment."""
        pods = self.cluster.core.list_namespaced_pod(NAMESPACE, label_selector=f"{VERSION_LABEL}={version}").items
        # A pod that the test before this one ended may still be listed.
        living = [pod for pod in pods if any(c.type == "Ready" and c.status == "True" for c in pod.status.conditions)]
        moment = time.monotonic()
        asyncio.run(_post([f"http://{pod.status.pod_ip}:8000/fault" for pod in living], order))
        return moment

    def annotate(self, annotation: str) -> None:
        """On the cycle."""
        self.platform.kubectl("annotate", "cycle", CYCLE, "--overwrite", annotation)


async def _post(urls: list[str], order: dict[str, Any]) -> None:
    async with aiohttp.ClientSession() as session:
        for url in urls:
            try:
                async with session.post(url, json=order):
                    pass
            except aiohttp.ServerDisconnectedError:
                assert "exit" in order


@contextmanager
def ground(say: Callable[[str], None]) -> Iterator[Ground]:
    """A fresh platform with the chart and a base model."""
    shutil.rmtree(STATE, ignore_errors=True)
    STATE.mkdir(parents=True)
    venv = Path(sys.executable).parent
    images = {"bench/*": ImageEnv(path=[HERE / "bin", venv], env={"PYTHONUNBUFFERED": "1"})}
    config = PlatformConfig(state=STATE / "platform", name="bench", images=images)
    with Platform(config, progress=say) as platform:
        without_proxies()
        platform.s3.create_bucket(BUCKET)
        prepare_namespaces(platform, NAMESPACE)
        values = STATE / "values.yaml"
        values.write_text(yaml.safe_dump(chart_values(platform.prometheus_url)))
        install(platform, ROOT / "charts" / "ratchet", "ratchet", SYSTEM_NAMESPACE, values, 300)
        made = Ground(platform)
        files = {"config.json": b"{}", "model.safetensors": b"none"}
        entries = manifest_of(files, "adapter").files
        base = Manifest(kind="model", files=entries, created_at=datetime.now(UTC) - timedelta(seconds=1))
        made.store.put_files(f"s3://{BUCKET}/base", files, base)
        yield made
