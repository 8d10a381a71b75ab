"""The platform around the node: Prometheus, S3, faults, several side by side, and that nothing is left behind."""

import json
import signal
import subprocess
import sys
import textwrap
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest
from botocore.exceptions import ClientError

from ratchet_local import (
    AlreadyRunning,
    ImageEnv,
    LocalError,
    NotRunning,
    Platform,
    PlatformConfig,
    PlatformError,
    S3Access,
)
from ratchet_local.processes import instance, marked

from .conftest import Cluster, condition, container_of, python_pod, until
from .test_pods import flag, server_pod

pytestmark = pytest.mark.apiserver


def ask(platform: Platform, query: str) -> list[dict[str, Any]]:
    """The series that a Prometheus query answers with."""
    url = f"{platform.prometheus_url}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    with urllib.request.urlopen(url, timeout=30) as answer:
        result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return result


def test_prometheus_scrapes_annotated_pods(here: Cluster) -> None:
    annotations = {"prometheus.io/scrape": "true", "prometheus.io/port": "8080", "prometheus.io/path": "/numbers"}
    labels = {"ratchet.dev/cycle": "assistant", "ratchet.dev/version": "assistant-3", "ratchet.dev/stage": "train"}
    here.apply(server_pod("measured", metadata={"annotations": annotations, "labels": labels}), server_pod("unasked"))
    query = f'served_total{{namespace="{here.namespace}"}}'
    (series,) = here.until(lambda: ask(here.platform, query), "the series")
    assert series["value"][1] == "7"
    expected = {
        "pod": "measured", "ratchet_cycle": "assistant", "ratchet_version": "assistant-3", "ratchet_stage": "train",
        "cycle": "own",
    }  # fmt: skip
    assert expected.items() <= series["metric"].items()


def test_s3_conditional_writes_and_credentials(platform: Platform) -> None:
    platform.s3.create_bucket("proofs")
    platform.s3.create_bucket("proofs")
    client = platform.s3.client()
    first = client.put_object(Bucket="proofs", Key="a/manifest.json", Body=b"one", IfNoneMatch="*")
    with pytest.raises(ClientError, match="PreconditionFailed"):
        client.put_object(Bucket="proofs", Key="a/manifest.json", Body=b"two", IfNoneMatch="*")
    assert client.get_object(Bucket="proofs", Key="a/manifest.json")["Body"].read() == b"one"
    client.put_object(Bucket="proofs", Key="a/manifest.json", Body=b"three", IfMatch=first["ETag"])
    with pytest.raises(ClientError, match="PreconditionFailed"):
        client.put_object(Bucket="proofs", Key="a/manifest.json", Body=b"four", IfMatch=first["ETag"])
    with pytest.raises(ClientError) as missing:
        client.put_object(Bucket="no-such-bucket", Key="a", Body=b"")
    assert missing.value.response["Error"]["Code"] == "NoSuchBucket"
    stranger = platform.s3.model_copy(update={"secret_key": "wrong"}).client()
    with pytest.raises(ClientError, match=r"SignatureDoesNotMatch|AccessDenied|InvalidAccessKeyId"):
        stranger.list_objects_v2(Bucket="proofs")
    with pytest.raises(ValueError, match="too short"):
        platform.s3.create_bucket("ab")


def test_many_buckets(s3: S3Access) -> None:
    """Every bucket is a collection with volumes of its own: their number must not hang on the free disk."""
    client = s3.client()
    for number in range(80):
        s3.create_bucket(f"many-{number}")
        client.put_object(Bucket=f"many-{number}", Key="a", Body=b"one")


def test_outage_of_s3_and_prometheus(platform: Platform) -> None:
    platform.s3.create_bucket("outage")
    client = platform.s3.client()
    client.put_object(Bucket="outage", Key="kept", Body=b"kept")
    platform.stop("s3")
    with pytest.raises(Exception, match="Could not connect"):
        client.get_object(Bucket="outage", Key="kept")
    platform.start("s3")
    read = until(lambda: _read(client, "outage", "kept"), "the object after the outage", 60)
    assert read == b"kept"
    platform.stop("prometheus")
    with pytest.raises(OSError, match="refused"):
        ask(platform, "up")
    platform.start("prometheus")
    ask(platform, "up")
    with pytest.raises(LocalError, match="has no component 'etdc': it has etcd"):
        platform.stop("etdc")


def _read(client: Any, bucket: str, key: str) -> bytes | None:
    try:
        body: bytes = client.get_object(Bucket=bucket, Key=key)["Body"].read()
    except ClientError:
        return None
    return body


SPIN = """
import sys, time
while True:
    until, turns = time.monotonic() + 0.5, 0
    gaps, last = 0.0, time.monotonic()
    while (now := time.monotonic()) < until:
        if now - last > 0.05:
            gaps += now - last
        last = now
        time.sleep(0.001)
    if now - last > 0.05:
        gaps += now - last
    print(f"{gaps:.3f}", flush=True)
"""


def test_throttle_by_labels_until_cleared(here: Cluster) -> None:
    selector = f"ratchet.dev/version=assistant-3,room={here.namespace}"
    labels = {"ratchet.dev/version": "assistant-3", "room": here.namespace}
    assert here.platform.throttle(selector, 0.9) == 0
    here.apply(
        python_pod("slow", SPIN, metadata={"labels": labels}),
        python_pod("quick", SPIN, metadata={"labels": labels | {"ratchet.dev/version": "assistant-2"}}),
    )

    def stopped(name: str) -> list[float]:
        """Seconds that the pod was not running, in each of its last three half seconds."""
        lines = [float(line) for line in here.kubectl("logs", name, "--tail=3").split()]
        return lines if len(lines) == 3 else []

    here.pod_until("slow", lambda s: s["phase"] == "Running")
    here.pod_until("quick", lambda s: s["phase"] == "Running")
    here.until(lambda: (t := stopped("slow")) and min(t) > 0.3, "the pod to be slow")
    assert min(here.until(lambda: stopped("quick"), "the other pod")) < 0.2
    assert here.platform.throttle(selector, 0) == 1
    here.until(lambda: (t := stopped("slow")) and min(t) < 0.2, "the pod to be quick again")
    with pytest.raises(LocalError, match=r"from 0 to 0\.99"):
        here.platform.throttle(selector, 2)
    with pytest.raises(LocalError, match="label requirement"):
        here.platform.throttle("a>b", 0.5)


def test_node_restart_resumes_pods(here: Cluster) -> None:
    here.apply(
        server_pod("lasting"),
        python_pod("once", "import time; print('up', flush=True); time.sleep(600)"),
        python_pod("done", "print('finished')"),
    )
    here.pod_until("lasting", lambda s: condition(s, "Ready")["status"] == "True")
    here.pod_until("once", lambda s: condition(s, "Ready")["status"] == "True")
    here.pod_until("done", lambda s: s["phase"] == "Succeeded")
    here.platform.stop("node")
    here.platform.start("node")
    status = here.pod_until(
        "lasting", lambda s: container_of(s)["restartCount"] == 1 and condition(s, "Ready")["status"] == "True"
    )
    assert container_of(status)["lastState"]["terminated"]["reason"] == "ContainerStatusUnknown"
    assert here.pod_until("once", lambda s: s["phase"] == "Failed")
    assert here.get("pod", "done")["status"]["phase"] == "Succeeded"  # type: ignore[index]
    here.kubectl("delete", "pod", "lasting", "once", "done")


def test_outage_of_the_api_server_leaves_containers_alone(here: Cluster) -> None:
    probe = {"httpGet": {"port": 8080, "path": "/"}, "periodSeconds": 1, "failureThreshold": 1}
    here.apply(
        server_pod("steady", container={"readinessProbe": probe}),
        python_pod(
            "brief",
            WAIT_FOR_FLAG,
            "/flags/bad",
            container={"volumeMounts": [{"name": "flags", "mountPath": "/flags"}]},
            volumes=[{"name": "flags", "emptyDir": {}}],
        ),
    )
    here.pod_until("steady", lambda s: condition(s, "Ready")["status"] == "True")
    here.pod_until("brief", lambda s: s["phase"] == "Running")
    unready, ending = flag(here, "steady"), flag(here, "brief")
    here.platform.stop("kube-apiserver")
    unready.touch()
    ending.touch()
    here.platform.start("kube-apiserver")
    here.pod_until("brief", lambda s: s["phase"] == "Succeeded")
    status = here.pod_until("steady", lambda s: condition(s, "Ready")["status"] == "False")
    assert container_of(status)["restartCount"] == 0
    here.apply(python_pod("newcomer", "print('hello')"))
    here.pod_until("newcomer", lambda s: s["phase"] == "Succeeded")


WAIT_FOR_FLAG = "import pathlib, sys, time\nwhile not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.05)"


@pytest.fixture
def small(tmp_path: Path) -> PlatformConfig:
    """A platform without Prometheus and S3."""
    return PlatformConfig(
        state=tmp_path / "a state folder",
        parts=frozenset({"control-plane", "node"}),
        images={"test/python": ImageEnv(path=[Path(sys.executable).parent])},
    )


DAEMON = "import os, time; os.fork() or os.setsid() or os.fork(); print('up', flush=True); time.sleep(1000)"


def test_beside_another_down_leaves_nothing(platform: Platform, small: PlatformConfig) -> None:
    with Platform(small) as second:
        assert second.api_url != platform.api_url
        with pytest.raises(AlreadyRunning, match="ratchet local down"):
            Platform(small).up()
        cluster = Cluster(second, "default")
        cluster.apply(python_pod("forks", DAEMON, terminationGracePeriodSeconds=60))
        cluster.pod_until("forks", lambda s: s["phase"] == "Running")
        cluster.until(lambda: cluster.kubectl("logs", "forks"), "its output")
        assert len(list(marked(instance(small.state)))) >= 8
        with pytest.raises(PlatformError, match='without the part "s3"'):
            _ = second.s3
        attached = Platform.attach(small.state)
        assert attached.api_url == second.api_url
        assert {c["state"] for c in attached.components()} == {"ready"}
    assert list(marked(instance(small.state))) == []
    with pytest.raises(NotRunning, match="ratchet local up"):
        Platform.attach(small.state)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_owner_dies_and_takes_everything_along(small: PlatformConfig, tmp_path: Path, number: signal.Signals) -> None:
    script = tmp_path / "owner.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import time
            from pathlib import Path
            from ratchet_local import Platform, PlatformConfig
            with Platform(PlatformConfig(state=Path({str(small.state)!r}), parts=frozenset({{"control-plane"}}))):
                print("up", flush=True)
                time.sleep(1000)
            """
        )
    )
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "up\n"
        supervisor = psutil.Process(Platform.attach(small.state)._running()["pid"])
        owner.send_signal(number)
        owner.wait(30)
    supervisor.wait(60)
    until(lambda: not list(marked(instance(small.state))), "all processes to end", 30)


def test_interrupted_while_starting_leaves_nothing(small: PlatformConfig) -> None:
    command = [
        sys.executable,
        "-m",
        "ratchet_cli",
        "local",
        "up",
        "--state",
        str(small.state),
        "--parts",
        "control-plane",
    ]
    # Tests that run in the background have Ctrl-C ignored, and children inherit that.
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as starting:
        assert starting.stdout is not None
        assert starting.stderr is not None
        assert "etcd is ready" in starting.stdout.readline()
        starting.send_signal(signal.SIGINT)
        assert starting.wait(120) == 130
        assert "nothing was left running" in starting.stderr.read()
    assert list(marked(instance(small.state))) == []


def test_supervisor_killed_and_a_fresh_start_cleans_up(small: PlatformConfig) -> None:
    platform = Platform(small)
    platform.up(detach=True)
    cluster = Cluster(platform, "default")
    cluster.apply(python_pod("forks", DAEMON, restartPolicy="Always"))
    cluster.pod_until("forks", lambda s: s["phase"] == "Running")
    cluster.until(lambda: cluster.kubectl("logs", "forks"), "its output")
    supervisor = psutil.Process(platform._running()["pid"])
    supervisor.kill()
    until(lambda: not supervisor.is_running() or supervisor.status() == psutil.STATUS_ZOMBIE, "its end", 30)
    with pytest.raises(NotRunning):
        Platform.attach(small.state)
    said: list[str] = []
    with Platform(small, progress=said.append) as again:
        cluster = Cluster(again, "default")
        cluster.pod_until("forks", lambda s: s["containerStatuses"][0]["restartCount"] == 1 and s["phase"] == "Running")
    assert list(marked(instance(small.state))) == []


def test_component_that_cannot_start_is_named(small: PlatformConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = small.state.parent / "bin"
    broken.mkdir()
    etcd = broken / "etcd"
    etcd.write_text(
        '#!/bin/sh\ncase "$1" in --version) echo "etcd Version: 3.7.3";; *) echo "disk on fire"; exit 3;; esac\n'
    )
    etcd.chmod(0o755)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(broken))
    began = time.monotonic()
    with pytest.raises(PlatformError, match="etcd ended with code 3 while starting: disk on fire"):
        Platform(small).up()
    assert time.monotonic() - began < 60
    assert list(marked(instance(small.state))) == []
