"""A whole local platform for the tests of this room, in a state folder whose path has a space."""

import json
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ratchet_local import ImageEnv, Platform, PlatformConfig


class Cluster:
    """A platform and a namespace of one's own, with waiting that tells what was seen last."""

    def __init__(self, platform: Platform, namespace: str) -> None:
        self.platform = platform
        self.namespace = namespace

    def kubectl(self, *args: str, input: str | None = None) -> str:
        return self.platform.kubectl("-n", self.namespace, *args, input=input)

    def apply(self, *objects: dict[str, Any]) -> None:
        self.kubectl("apply", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        out = self.kubectl("get", kind, name, "--ignore-not-found", "-o", "json")
        return json.loads(out) if out.strip() else None

    def events(self, name: str) -> list[tuple[str, str]]:
        items = json.loads(self.kubectl("get", "events", "-o", "json"))["items"]
        return [(e["reason"], e["message"]) for e in items if e["involvedObject"]["name"] == name]

    def until(self, look: Callable[[], Any], what: str, seconds: float = 90.0) -> Any:
        """The first true result of `look`; fails with its last one when none comes."""
        return until(look, what, seconds)

    def pod_until(self, name: str, good: Callable[[dict[str, Any]], Any], seconds: float = 90.0) -> dict[str, Any]:
        """The pod's status once `good` holds for it."""

        def look() -> dict[str, Any] | None:
            pod = self.get("pod", name)
            nonlocal last
            last = pod["status"] if pod else None
            return last if last is not None and good(last) else None

        last: dict[str, Any] | None = None
        try:
            return until(look, f"pod {name}", seconds)  # type: ignore[return-value]
        except TimeoutError:
            pytest.fail(f"pod {name} was last seen as {json.dumps(last, indent=1)}\nevents: {self.events(name)}")


def until(look: Callable[[], Any], what: str, seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while True:
        result = look()
        if result:
            return result
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds} s; last seen: {result!r}")
        time.sleep(0.1)


def python_pod(name: str, code: str, *args: str, **spec: Any) -> dict[str, Any]:
    """A pod with one container `main` that runs a piece of Python."""
    container = {"name": "main", "image": "test/python", "command": ["python", "-c", code, *args]}
    container |= spec.pop("container", {})
    metadata = {"name": name} | spec.pop("metadata", {})
    policy = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 5}
    spec = policy | {"containers": [container]} | spec
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def container_of(status: dict[str, Any], name: str = "main") -> dict[str, Any]:
    found = [c for c in status.get("containerStatuses", []) if c["name"] == name]
    return found[0] if found else {"state": {}, "lastState": {}, "restartCount": 0}


def condition(status: dict[str, Any], kind: str) -> dict[str, Any]:
    return next((c for c in status.get("conditions", []) if c["type"] == kind), {"status": "Absent"})


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Everything, with two pretended GPUs."""
    config = PlatformConfig(
        state=tmp_path_factory.mktemp("local") / "with a space",
        gpus=2,
        name="room",
        images={"test/python": ImageEnv(path=[Path(sys.executable).parent], env={"FROM_IMAGE": "yes"})},
    )
    with Platform(config, progress=print) as running:
        yield running


@pytest.fixture
def here(platform: Platform) -> Iterator[Cluster]:
    """The platform with a fresh namespace."""
    namespace = f"room-{secrets.token_hex(4)}"
    platform.kubectl("create", "namespace", namespace)
    cluster = Cluster(platform, namespace)
    cluster.until(lambda: cluster.get("serviceaccount", "default"), "default service account")
    yield cluster
    platform.kubectl("delete", "namespace", namespace, "--wait=false")
