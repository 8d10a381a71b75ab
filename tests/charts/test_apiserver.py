"""The chart against the real API server: accepted without a warning, and exactly the permissions that are needed."""

import json
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from ratchet_local import CommandError, Platform

from .conftest import Render
from .test_render import CASES

pytestmark = [pytest.mark.apiserver, pytest.mark.slow]

Question = tuple[str, ...]
"""Verb, resource (with subresource), API group, and perhaps a name."""

RESTRICTED = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn", "audit")}


@pytest.fixture
def restricted(cluster: Platform) -> Iterator[str]:
    """A namespace that enforces the restricted Pod Security Standard."""
    name = f"restricted-{secrets.token_hex(4)}"
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": RESTRICTED}}
    cluster.kubectl("apply", "-f", "-", input=json.dumps(body))
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


def _list(objects: list[dict[str, Any]]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})


@pytest.mark.parametrize("name", CASES)
def test_accepted_without_a_warning(cluster: Platform, restricted: str, render: Render, name: str) -> None:
    """Strict field validation refuses a field that Kubernetes does not know; warnings are errors."""
    values = CASES[name] | {"watch": {"namespaces": [restricted]}} if "watch" in CASES[name] else CASES[name]
    # The Prometheus operator's, whose rules are run by promtool, and Kubeflow Trainer's (test_train_jobs).
    foreign = ("PodMonitor", "PrometheusRule", "ClusterTrainingRuntime")
    objects = [o for o in render(values, namespace=restricted).objects if o["kind"] not in foreign]
    answer = cluster.kubectl(
        "apply", "--dry-run=server", "--server-side", "--validate=strict", "--warnings-as-errors", "-f", "-",
        input=_list(objects),
    )  # fmt: skip
    assert answer.count("serverside-applied") == len(objects)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("component", ["operator", "gateway"])
def test_pods_are_admitted_where_the_standard_is_enforced(
    cluster: Platform, restricted: str, render: Render, component: str, name: str
) -> None:
    """A Deployment is only warned about; the pods themselves are refused."""
    template = render(CASES[name], namespace=restricted).only("Deployment", f"ratchet-{component}")["spec"]["template"]
    pod = template | {"apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"] | {"name": "probe"}}
    pod["metadata"]["namespace"] = restricted
    # Admission needs the account and the class; what is proven here is the pod's security.
    pod["spec"] = pod["spec"] | {"serviceAccountName": "default", "priorityClassName": ""}
    accounts = cluster.kubectl("wait", "--for=create", "serviceaccount/default", "-n", restricted, "--timeout=60s")
    assert "condition met" in accounts
    apply = ("apply", "--dry-run=server", "--warnings-as-errors", "-f", "-")
    assert "created" in cluster.kubectl(*apply, input=json.dumps(pod))
    pod["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
    with pytest.raises(CommandError, match="violates PodSecurity"):
        cluster.kubectl(*apply, input=json.dumps(pod))


@dataclass(frozen=True)
class Account:
    """A service account and where it works."""

    cluster: Platform
    user: str

    def granted(self, namespace: str, questions: list[Question]) -> list[Question]:
        """Those of the questions that the API server's authorizer answers with yes."""
        reviews = []
        for verb, resource, group, *name in questions:
            kind, _, part = resource.partition("/")
            attributes = {
                "verb": verb, "group": group, "resource": kind, "subresource": part, "namespace": namespace,
                "name": "".join(name),
            }  # fmt: skip
            spec = {"user": self.user, "groups": ["system:serviceaccounts"], "resourceAttributes": attributes}
            api = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview"}
            reviews.append({**api, "spec": spec})
        template = "jsonpath={.status.allowed} "
        answers = self.cluster.kubectl("create", "-f", "-", "-o", template, input=_list(reviews)).split()
        assert len(answers) == len(questions)
        return [question for question, answer in zip(questions, answers, strict=True) if answer == "true"]

    def may(self, verb: str, resource: str, namespace: str, group: str = "", name: str = "") -> bool:
        """One question."""
        return self.granted(namespace, [(verb, resource, group, name)]) != []


@pytest.fixture
def installed(cluster: Platform, restricted: str, namespace: str, render: Render) -> tuple[str, str, str]:
    """The chart's roles for one watched namespace: (home, watched, not watched)."""
    values = {"watch": {"namespaces": [namespace]}}
    rendered = render(values, namespace=restricted)
    kinds = ("Role", "RoleBinding", "ServiceAccount")
    cluster.kubectl("apply", "-f", "-", input=_list([o for kind in kinds for o in rendered.of(kind)]))
    return restricted, namespace, "default"


OPERATOR_MAY: list[Question] = [
    *[(verb, "improvementcycles", "ratchet.dev") for verb in ("get", "list", "watch")],
    *[(verb, "modelversions", "ratchet.dev") for verb in ("get", "list", "watch", "create")],
    ("update", "improvementcycles/status", "ratchet.dev"),
    ("patch", "improvementcycles/status", "ratchet.dev"),
    ("update", "modelversions/status", "ratchet.dev"),
    *[(verb, "jobs", "batch") for verb in ("get", "list", "watch", "create")],
    *[(verb, "deployments", "apps") for verb in ("get", "list", "watch", "create", "patch", "delete")],
    *[(verb, "configmaps", "") for verb in ("get", "create", "delete")],
    *[(verb, "poddisruptionbudgets", "policy") for verb in ("get", "create", "patch", "delete")],
    *[(verb, "pods", "") for verb in ("get", "list", "watch")],
    *[(verb, "services", "") for verb in ("get", "create", "patch")],
    ("list", "endpointslices", "discovery.k8s.io"),
    *[(verb, "httproutes", "gateway.networking.k8s.io") for verb in ("get", "patch")],
    *[(verb, "horizontalpodautoscalers", "autoscaling") for verb in ("list", "watch")],
    ("get", "secrets", ""),
    ("create", "events", "events.k8s.io"),
]
OPERATOR_MAY_NOT: list[Question] = [
    *[(verb, "improvementcycles", "ratchet.dev") for verb in ("create", "update", "patch", "delete")],
    *[(verb, "modelversions", "ratchet.dev") for verb in ("update", "patch", "delete")],
    *[(verb, "configmaps", "") for verb in ("update", "patch")],
    *[(verb, "secrets", "") for verb in ("list", "watch", "create", "update", "patch", "delete")],
    *[(verb, "pods", "") for verb in ("create", "delete", "patch")],
    *[(verb, "services", "") for verb in ("list", "watch", "update", "delete")],
    *[(verb, "httproutes", "gateway.networking.k8s.io") for verb in ("create", "update", "delete")],
    *[(verb, "horizontalpodautoscalers", "autoscaling") for verb in ("create", "patch", "update", "delete")],
    ("create", "pods/exec", ""),
    ("get", "nodes", ""),
    ("create", "clusterrolebindings", "rbac.authorization.k8s.io"),
    ("create", "serviceaccounts/token", ""),
    ("*", "*", "*"),
]


GATEWAY_MAY: list[Question] = [
    (verb, resource, group)
    for verb in ("get", "list", "watch")
    for resource, group in (("improvementcycles", "ratchet.dev"), ("pods", ""))
]
GATEWAY_MAY_NOT: list[Question] = [
    *[(verb, "improvementcycles", "ratchet.dev") for verb in ("create", "update", "patch", "delete")],
    ("update", "improvementcycles/status", "ratchet.dev"),
    *[("get", resource, "") for resource in ("secrets", "configmaps", "services", "nodes", "pods/log")],
    ("get", "modelversions", "ratchet.dev"),
    ("create", "events", "events.k8s.io"),
    ("delete", "pods", ""),
    ("*", "*", "*"),
]


@pytest.mark.parametrize(
    ("component", "may", "may_not"),
    [("operator", OPERATOR_MAY, OPERATOR_MAY_NOT), ("gateway", GATEWAY_MAY, GATEWAY_MAY_NOT)],
)
def test_permissions(
    cluster: Platform, installed: tuple[str, str, str], component: str, may: list[Question], may_not: list[Question]
) -> None:
    home, watched, other = installed
    account = Account(cluster, f"system:serviceaccount:{home}:ratchet-{component}")
    assert account.granted(watched, may) == may
    assert account.granted(watched, may_not) == []
    assert account.granted(other, may) == [], "reaches beyond the namespaces that it watches"


def test_operator_at_home(cluster: Platform, installed: tuple[str, str, str]) -> None:
    home, watched, _ = installed
    operator = Account(cluster, f"system:serviceaccount:{home}:ratchet-operator")
    group = "coordination.k8s.io"
    assert operator.may("create", "leases", home, group)
    assert operator.may("update", "leases", home, group, "ratchet-operator")
    assert not operator.may("update", "leases", home, group, "somebody-elses")
    assert not operator.may("create", "leases", watched, group)
    assert operator.may("list", "pods", home), "it asks the gateway's pods for the weights in force"
    assert not operator.may("get", "secrets", home)


def test_people_with_the_built_in_roles(cluster: Platform, namespace: str, render: Render) -> None:
    """view reads cycles and versions, edit writes them, by aggregation."""
    rendered = render()
    roles = [role for role in rendered.of("ClusterRole") if "rbac" in json.dumps(role["metadata"]["labels"])]
    assert len(roles) == 2
    cluster.kubectl("apply", "-f", "-", input=_list(roles))
    for role in ("view", "edit"):
        cluster.kubectl(
            "create", "rolebinding", f"a-{role}er", f"--clusterrole={role}", f"--user={role}er", "-n", namespace
        )
    viewer, editor = Account(cluster, "viewer"), Account(cluster, "editer")
    deadline = time.monotonic() + 120
    # The controller that aggregates works in its own time; each question takes a process, so this loop is no busy one.
    while not (
        viewer.may("list", "modelversions", namespace, "ratchet.dev")
        and editor.may("patch", "modelversions", namespace, "ratchet.dev")
    ):
        assert time.monotonic() < deadline, "the built-in roles have not taken up ours"
    for resource in ("improvementcycles", "modelversions"):
        assert viewer.may("list", resource, namespace, "ratchet.dev")
        assert not viewer.may("create", resource, namespace, "ratchet.dev")
        assert editor.may("list", resource, namespace, "ratchet.dev")
        assert editor.may("patch", resource, namespace, "ratchet.dev")
        assert not editor.may("patch", f"{resource}/status", namespace, "ratchet.dev")
