"""The cluster view against the real API server."""

import json

import pytest
import urllib3
from tests.cli.builders import DIGEST

from ratchet_cli.demo.cluster import Cluster, View
from ratchet_local import Platform

pytestmark = pytest.mark.apiserver

CYCLE = {
    "apiVersion": "ratchet.dev/v1alpha1",
    "kind": "ImprovementCycle",
    "metadata": {"name": "assistant"},
    "spec": {
        "baseModel": {"uri": "s3://ratchet/models/base"},
        "storage": {"uri": "s3://ratchet/assistant"},
        "evaluation": {
            "suites": [
                {"name": "house", "role": "target", "cases": {"configMap": {"name": "suites", "key": "house.jsonl"}}}
            ]
        },
    },
}


def model_version(name: str, cycle: str) -> dict[str, object]:
    adapter = {"uri": "s3://ratchet/adapter", "digest": DIGEST}
    return {
        "apiVersion": "ratchet.dev/v1alpha1",
        "kind": "ModelVersion",
        "metadata": {"name": name},
        "spec": {"cycle": cycle, "adapter": adapter},
    }


def apply(cluster: Platform, namespace: str, *objects: dict[str, object]) -> None:
    items = {"apiVersion": "v1", "kind": "List", "items": objects}
    cluster.kubectl("apply", "-n", namespace, "-f", "-", input=json.dumps(items))


def test_it_follows_a_cycle_and_its_versions(cluster: Platform, namespace: str) -> None:
    seen: list[View] = []
    with Cluster(cluster.kubeconfig, namespace, "assistant") as followed:
        followed.observers.append(seen.append)
        apply(cluster, namespace, CYCLE, model_version("mine", "assistant"), model_version("other", "another"))
        with followed.changed:
            assert followed.changed.wait_for(lambda: followed.view.cycle is not None and followed.view.versions, 60)
        assert set(followed.view.versions) == {"mine"}
    assert seen[-1] == followed.view


def test_it_survives_an_api_server_that_is_away(cluster: Platform, namespace: str) -> None:
    with Cluster(cluster.kubeconfig, namespace, "assistant") as followed:
        cluster.stop("kube-apiserver")
        try:
            with pytest.raises(urllib3.exceptions.HTTPError):
                followed.read()
        finally:
            cluster.start("kube-apiserver")
        apply(cluster, namespace, CYCLE)
        with followed.changed:
            assert followed.changed.wait_for(lambda: followed.view.cycle is not None, 60)


def test_the_diagnosis_says_what_is_not_well(cluster: Platform, namespace: str) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "lonely"},
        "spec": {"nodeSelector": {"nowhere": "1"}, "containers": [{"name": "main", "image": "ratchet/trainer"}]},
    }
    cluster.kubectl("wait", "-n", namespace, "--for=create", "serviceaccount/default", "--timeout=60s")
    apply(cluster, namespace, CYCLE, pod)
    cluster.kubectl("wait", "-n", namespace, "--for=condition=PodScheduled=False", "pod/lonely", "--timeout=60s")
    followed = Cluster(cluster.kubeconfig, namespace, "assistant")
    known = followed.diagnosis([namespace])
    assert "ImprovementCycle assistant: phase Initializing" in known
    assert f"pod {namespace}/lonely: Pending" in known
    assert "PodScheduled=False Unschedulable" in known
    assert Cluster(cluster.kubeconfig, namespace, "nobody").diagnosis([]).startswith("cycle nobody: does not exist")


def test_without_a_gateway_pod_there_is_no_address(cluster: Platform, namespace: str) -> None:
    assert Cluster(cluster.kubeconfig, namespace, "assistant").gateway_url(namespace) is None
