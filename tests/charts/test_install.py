"""The chart installed: operator and gateway run as pods under their own service accounts, and their rights suffice."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from ratchet_local import Platform, PlatformConfig

from .conftest import NAMESPACE, Render, Rendered, Values

pytestmark = [pytest.mark.apiserver, pytest.mark.slow]

QUICK: Values = {"gateway": {"shutdown": {"drainSeconds": 0}}, "rbac": {"aggregate": False}}

CYCLE = {
    "apiVersion": "ratchet.dev/v1alpha1",
    "kind": "ImprovementCycle",
    "metadata": {"name": "assistant"},
    "spec": {
        "baseModel": {"uri": "s3://models/base"},
        "storage": {"uri": "s3://ratchet/assistant", "credentialsSecret": {"name": "storage"}},
        "evaluation": {
            "suites": [
                {"name": "house", "role": "target", "cases": {"configMap": {"name": "suites", "key": "a.jsonl"}}}
            ]
        },
        "serving": {"runtime": "transformers", "replicas": 2},
    },
}


@pytest.fixture(scope="module")
def platform(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A control plane with a node that runs pods, and our CRDs."""
    state = tmp_path_factory.mktemp("installed") / "state"
    config = PlatformConfig(state=state, parts=frozenset({"control-plane", "node"}), name="installed")
    with Platform(config, progress=print) as running:
        running.kubectl("apply", "--server-side", "-f", str(repository / "crds"))
        running.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
        yield running


MISSING_SECRET = '--for=jsonpath={.status.conditions[?(@.type=="Stalled")].reason}=MissingSecret'


def _install(platform: Platform, rendered: Rendered) -> None:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}}
    platform.kubectl("apply", "-f", "-", input=yaml.safe_dump_all([namespace, *rendered.objects]))
    for component in ("operator", "gateway"):
        platform.kubectl("rollout", "status", f"deployment/ratchet-{component}", "-n", NAMESPACE, "--timeout=180s")


def _never_forbidden(platform: Platform) -> None:
    for component in ("operator", "gateway"):
        log = platform.kubectl("logs", f"deployment/ratchet-{component}", "-n", NAMESPACE, "--tail=-1").lower()
        assert "forbidden" not in log, log
        assert "lacks a rule" not in log, log


def test_installed_chart_works_with_its_own_rights(platform: Platform, render: Render) -> None:
    _install(platform, render(QUICK))

    # What is missing is said: the operator has read the cycle, asked for the Secret and written the status.
    platform.kubectl("apply", "-f", "-", input=json.dumps(CYCLE))
    platform.kubectl("wait", "cycle/assistant", MISSING_SECRET, "--timeout=120s")

    # And it goes on by itself: a version, an arm with its fetch input, a budget for the arm's two pods.
    platform.kubectl("create", "secret", "generic", "storage", "--from-literal=AWS_ACCESS_KEY_ID=a")
    for child in ("mv/assistant-0", "deployment/assistant-0-arm", "pdb/assistant-0-arm"):
        platform.kubectl("wait", "--for=create", child, "--timeout=120s")
    assert platform.kubectl("get", "mv/assistant-0", "-o", "jsonpath={.spec.cycle}") == "assistant"

    _never_forbidden(platform)

    # Deleting the cycle takes its children along, without the operator's help.
    platform.kubectl("delete", "cycle/assistant", "--wait=true")
    platform.kubectl("wait", "--for=delete", "deployment/assistant-0-arm", "mv/assistant-0", "--timeout=120s")


def test_named_namespaces_are_served_with_roles_there_only(platform: Platform, render: Render) -> None:
    everywhere, named = render(QUICK), render(QUICK | {"watch": {"namespaces": ["team-a"]}})
    platform.kubectl("create", "namespace", "team-a")
    cluster_wide = [
        f"{o['kind']}/{o['metadata']['name']}" for o in everywhere.objects if o["kind"].startswith("Cluster")
    ]
    platform.kubectl("delete", "--ignore-not-found", *cluster_wide)
    _install(platform, named)
    for namespace in ("default", "team-a"):
        platform.kubectl(
            "apply", "-n", namespace, "-f", "-", input=json.dumps(CYCLE | {"metadata": {"name": "scoped"}})
        )
    platform.kubectl("wait", "cycle/scoped", "-n", "team-a", MISSING_SECRET, "--timeout=120s")
    assert platform.kubectl("get", "cycle/scoped", "-n", "default", "-o", "jsonpath={.status.conditions}") == ""
    _never_forbidden(platform)
