"""The ground that the story stands on: local platform, bucket, base model, Secrets, the chart.

Room: cli. Starts processes, writes to S3 and to the API server, and into the state folder.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from ratchet_api.artifacts import MANIFEST, Manifest
from ratchet_cli.demo.chart import install
from ratchet_cli.demo.cluster import Cluster
from ratchet_cli.demo.errors import DemoError, Unprepared
from ratchet_cli.demo.screen import Screen
from ratchet_cli.demo.settings import Settings
from ratchet_cli.demo.storage import ArtifactStore
from ratchet_local import NotRunning, Platform, PlatformConfig
from ratchet_local.model import smollm2

BUCKET = "ratchet"
MODEL_URI = f"s3://{BUCKET}/models/smollm2-135m-instruct"
SYSTEM_NAMESPACE = "ratchet-system"
SECRET = "storage"


@contextmanager
def running(settings: Settings, screen: Screen, stay: Callable[[], bool]) -> Iterator[Platform]:
    """A fresh platform, ended with the block unless it was to be kept and `stay()` says so then.

    `require_nobody_else` comes first: what lies in the folder goes.
    """
    shutil.rmtree(settings.platform_state, ignore_errors=True)
    platform = Platform(PlatformConfig(state=settings.platform_state, name="demo"), progress=screen.say)
    platform.up(detach=settings.keep)
    try:
        yield platform
    finally:
        if not (settings.keep and stay()):
            screen.say("taking the platform down")
            platform.down()


def without_proxies() -> None:
    """Everything that is asked from here on is on this machine: a proxy of the environment must not see it."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        os.environ.pop(name, None)
        os.environ.pop(name.upper(), None)


def require_nobody_else(state: Path) -> None:
    """Raises Unprepared when a platform runs in this folder: its data, and the last story's results, are its own."""
    try:
        Platform.attach(state)
    except (NotRunning, FileNotFoundError):
        return
    raise Unprepared(
        f"a platform still runs in {state}: end it with `ratchet local down --state '{state}'`, then start again"
    )


def put_base_model(platform: Platform, screen: Screen) -> Manifest:
    """The base model in the bucket, as a folder closed by its manifest."""
    platform.s3.create_bucket(BUCKET)
    screen.say("preparing the base model SmolLM2-135M-Instruct (downloaded and converted once, then cached)")
    folder = smollm2(progress=screen.say)
    manifest = Manifest.model_validate_json((folder / MANIFEST).read_text(encoding="utf-8"))
    store = ArtifactStore(platform.s3.client())
    store.put_folder(MODEL_URI, folder, manifest)
    size = sum(entry.size for entry in manifest.files.values())
    screen.say(f"base model in {MODEL_URI}: {size / 1e6:.0f} MB, {manifest.digest[:19]}…")
    return manifest


def prepare_namespaces(platform: Platform, namespace: str) -> None:
    """Namespaces (ours under the restricted Pod Security Standard) and the Secret with storage access in both."""
    restricted = {
        f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn", "audit")
    }  # fmt: skip
    access = platform.s3
    secret_data = {
        "AWS_ACCESS_KEY_ID": access.access_key,
        "AWS_SECRET_ACCESS_KEY": access.secret_key,
        "AWS_ENDPOINT_URL": access.endpoint,
    }
    objects: list[dict[str, Any]] = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM_NAMESPACE, "labels": restricted}}
    ]
    objects += [
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": SECRET, "namespace": where},
            "stringData": secret_data,
        }
        for where in (SYSTEM_NAMESPACE, namespace)
    ]
    platform.kubectl("label", "--overwrite", "namespace", namespace, *(f"{k}={v}" for k, v in restricted.items()))
    platform.kubectl("apply", "--server-side", "-f", "-", input=yaml.safe_dump_all(objects))


def install_chart(platform: Platform, settings: Settings, screen: Screen) -> None:
    """The Helm chart itself, as a release in its own namespace; returns when operator and gateway are ready."""
    values = chart_values(platform.prometheus_url)
    path = settings.state / "values.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    screen.command(f"helm install ratchet charts/ratchet --namespace {SYSTEM_NAMESPACE} --values {path.name} --wait")
    try:
        install(platform, settings.chart, "ratchet", SYSTEM_NAMESPACE, path, settings.patience(180))
    except DemoError as error:
        cluster = Cluster(platform.kubeconfig, SYSTEM_NAMESPACE, settings.cycle)
        raise DemoError(str(error), cluster.diagnosis([SYSTEM_NAMESPACE])) from None


def chart_values(prometheus_url: str) -> dict[str, Any]:
    """What a one-machine install says differently from the chart's defaults."""
    return {
        "prometheus": {"url": prometheus_url},
        # Production seals a segment of sessions each 30 s; a demonstration wants to see them in the bucket sooner.
        "gateway": {"storage": {"credentialsSecret": SECRET}, "extraArgs": ["--segment-seconds", "5"]},
    }
