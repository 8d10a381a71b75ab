"""The chart's admission policies and roles for people, on the real API server as people who are impersonated."""

import copy
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ratchet_api.names import CYCLE_LABEL, RUN_LABEL, STAGE_LABEL, VERSION_LABEL, approval_annotation
from ratchet_local import CommandError, Platform

from .conftest import NAMESPACE, Manifest, Render

OPERATOR = f"system:serviceaccount:{NAMESPACE}:ratchet-operator"
ON = {"admissionPolicies": {"approvals": True, "jobs": True}}
DIGEST = "sha256:" + "7" * 64
GATES = ("Training", "Canary", "Promotion")


def _list(objects: list[Manifest]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})


# Rendered


def policies(render: Render, **values: Any) -> set[str]:
    return {o["metadata"]["name"] for o in render(values).of("ValidatingAdmissionPolicy")}


def test_off_by_default_and_each_by_its_switch(render: Render) -> None:
    assert policies(render) == set()
    assert policies(render, admissionPolicies={"approvals": True}) == {"ratchet-approvals", "ratchet-promotion"}
    assert policies(render, admissionPolicies={"jobs": True}) == {"ratchet-jobs"}


def test_every_policy_is_bound_and_only_where_the_operator_works(render: Render) -> None:
    rendered = render(ON | {"watch": {"namespaces": ["a", "b"]}})
    bound = {o["spec"]["policyName"]: o["spec"] for o in rendered.of("ValidatingAdmissionPolicyBinding")}
    assert set(bound) == {o["metadata"]["name"] for o in rendered.of("ValidatingAdmissionPolicy")}
    for spec in bound.values():
        assert spec["validationActions"] == ["Deny"]
        [names] = spec["matchResources"]["namespaceSelector"]["matchExpressions"]
        assert names == {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["a", "b"]}
    for binding in render(ON).of("ValidatingAdmissionPolicyBinding"):
        assert "matchResources" not in binding["spec"]


def test_they_name_what_the_rooms_name(render: Render) -> None:
    rendered = render(ON)
    approvals = json.dumps(rendered.only("ValidatingAdmissionPolicy", "ratchet-approvals"))
    assert all(f"'{approval_annotation(gate)}'" in approvals for gate in GATES)
    jobs = json.dumps(rendered.only("ValidatingAdmissionPolicy", "ratchet-jobs"))
    assert all(f"'{label}'" in jobs for label in (CYCLE_LABEL, VERSION_LABEL, STAGE_LABEL, RUN_LABEL))
    assert OPERATOR in jobs
    other = render(ON | {"operator": {"serviceAccount": {"create": False, "name": "mine"}}})
    assert f"{NAMESPACE}:mine" in json.dumps(other.only("ValidatingAdmissionPolicy", "ratchet-jobs"))


# On the API server

EDITOR, APPROVER, VIEWER = "erin", "ann", "vic"
As = Callable[..., str]


def version(namespace: str, name: str = "mine", **annotations: str) -> Manifest:
    meta: Manifest = {"name": name, "namespace": namespace}
    if annotations:
        meta["annotations"] = annotations
    spec = {"cycle": "assistant", "adapter": {"uri": "s3://ratchet/mine", "digest": DIGEST}}
    return {"apiVersion": "ratchet.dev/v1alpha1", "kind": "ModelVersion", "metadata": meta, "spec": spec}


def cycle(namespace: str) -> Manifest:
    cases = {"configMap": {"name": "suites", "key": "target.jsonl"}}
    spec = {
        "baseModel": {"uri": "s3://ratchet/base"},
        "storage": {"uri": "s3://ratchet/assistant"},
        "evaluation": {"suites": [{"name": "house", "role": "target", "cases": cases}]},
        "promotion": {"mode": "Approval"},
    }
    meta = {"name": "assistant", "namespace": namespace}
    return {"apiVersion": "ratchet.dev/v1alpha1", "kind": "ImprovementCycle", "metadata": meta, "spec": spec}


def job(namespace: str, name: str, **labels: str) -> Manifest:
    container = {"name": "main", "image": "example.com/work"}
    template = {"spec": {"restartPolicy": "Never", "containers": [container]}}
    meta = {"name": name, "namespace": namespace, "labels": labels}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": {"suspend": True, "template": template}}


def train_job(namespace: str, name: str, **labels: str) -> Manifest:
    meta = {"name": name, "namespace": namespace, "labels": labels}
    spec = {"runtimeRef": {"name": "ratchet"}}
    return {"apiVersion": "trainer.kubeflow.org/v1alpha1", "kind": "TrainJob", "metadata": meta, "spec": spec}


@pytest.fixture
def people(cluster: Platform, kubeflow: None, namespace: str, render: Render) -> Iterator[As]:
    """kubectl as somebody, in a namespace where the roles are bound and the policies are in force."""
    rendered = render(copy.deepcopy(ON) | {"watch": {"namespaces": [namespace]}})
    kinds = ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding", "ClusterRole")
    # Without the labels that aggregate, so that what is bound here is what is tested.
    objects = [copy.deepcopy(o) for kind in kinds for o in rendered.of(kind)]
    for found in objects:
        found["metadata"].pop("labels", None)
    cluster.kubectl("apply", "-f", "-", input=_list(objects))
    roles = {EDITOR: ("view", "edit"), APPROVER: ("approver",), VIEWER: ("view",)}
    for user, names in roles.items():
        for name in names:
            cluster.kubectl(
                "create", "rolebinding", f"{user}-{name}", f"--clusterrole=ratchet-{name}", f"--user={user}",
                "-n", namespace,
            )  # fmt: skip
    cluster.kubectl(
        "create", "role", "jobs", "--verb=create,get,patch,update",
        "--resource=jobs.batch,trainjobs.trainer.kubeflow.org", "-n", namespace,
    )  # fmt: skip
    for user in (EDITOR, OPERATOR):
        name = f"jobs-{user.rpartition(':')[2]}"
        cluster.kubectl("create", "rolebinding", name, "--role=jobs", f"--user={user}", "-n", namespace)

    def run(user: str, *words: str, body: Manifest | None = None) -> str:
        return cluster.kubectl(
            *words, "-n", namespace, f"--as={user}", input=None if body is None else json.dumps(body)
        )

    _until_in_force(cluster, namespace)
    yield run
    for kind in kinds[:2]:
        names = [o["metadata"]["name"] for o in rendered.of(kind)]
        cluster.kubectl("delete", kind.lower(), *names)


def _until_in_force(cluster: Platform, namespace: str) -> None:
    """The API server takes policies up in its own time; each question takes a process, so this loop is no busy one."""
    forged = job(namespace, "probe", **{STAGE_LABEL: "train"})
    marked = version(namespace, "probe", **{approval_annotation("Canary"): DIGEST})
    unnamed = cycle(namespace)
    cluster.kubectl("create", "-f", "-", input=json.dumps(unnamed))
    patch = ("patch", "cycle", "assistant", "-n", namespace, "--type=merge", "--dry-run=server", f"--as={EDITOR}", "-p")
    create = ("create", "--dry-run=server", "-f", "-")
    questions: list[tuple[tuple[str, ...], str | None]] = [
        (create, json.dumps(forged)),
        ((*create, f"--as={EDITOR}"), json.dumps(marked)),
        ((*patch, '{"spec": {"promotion": {"mode": "Automatic"}}}'), None),
    ]
    deadline = time.monotonic() + 60
    for words, body in questions:
        while not _is_refused_by_policy(cluster, words, body):
            assert time.monotonic() < deadline, f"no policy refuses {words}"
    cluster.kubectl("delete", "cycle", "assistant", "-n", namespace)


def _is_refused_by_policy(cluster: Platform, words: tuple[str, ...], body: str | None) -> bool:
    try:
        cluster.kubectl(*words, input=body)
    except CommandError as error:
        return "ValidatingAdmissionPolicy" in str(error)
    return False


@pytest.mark.apiserver
@pytest.mark.slow
def test_only_approvers_approve(cluster: Platform, people: As, namespace: str) -> None:
    people(EDITOR, "create", "-f", "-", body=version(namespace))
    people(EDITOR, "annotate", "mv", "mine", "example.com/note=hello")
    for gate in GATES:
        mark = f"{approval_annotation(gate)}={DIGEST}"
        with pytest.raises(CommandError) as refused:
            people(EDITOR, "annotate", "mv", "mine", mark)
        words = str(refused.value)
        assert f"erin may not change {approval_annotation(gate)}" in words
        assert "RoleBinding to the ClusterRole ratchet-approver" in words
        people(APPROVER, "annotate", "mv", "mine", mark)
        with pytest.raises(CommandError, match="may not change"):
            people(EDITOR, "annotate", "mv", "mine", f"{approval_annotation(gate)}-")
    people(EDITOR, "annotate", "mv", "mine", "--overwrite", "example.com/note=still mine")
    with pytest.raises(CommandError, match="may not change"):
        people(EDITOR, "create", "-f", "-", body=version(namespace, "b", **{approval_annotation("Canary"): DIGEST}))
    found = json.loads(cluster.kubectl("get", "mv", "mine", "-n", namespace, "-o", "json"))
    assert {found["metadata"]["annotations"][approval_annotation(gate)] for gate in GATES} == {DIGEST}


@pytest.mark.apiserver
@pytest.mark.slow
def test_an_approver_approves_and_nothing_else(people: As, namespace: str) -> None:
    people(EDITOR, "create", "-f", "-", body=version(namespace))
    people(APPROVER, "get", "mv,cycle")
    for words in (("delete", "mv", "mine"), ("create", "-f", "-")):
        with pytest.raises(CommandError, match=r"cannot (delete|create)"):
            people(APPROVER, *words, body=version(namespace, "other") if words[0] == "create" else None)
    with pytest.raises(CommandError, match="cannot patch"):
        people(VIEWER, "annotate", "mv", "mine", f"{approval_annotation('Canary')}={DIGEST}")


@pytest.mark.apiserver
@pytest.mark.slow
def test_whoever_may_not_approve_may_not_switch_approvals_off(cluster: Platform, people: As, namespace: str) -> None:
    people(EDITOR, "create", "-f", "-", body=cycle(namespace))
    merge = ("patch", "cycle", "assistant", "--type=merge", "-p")
    people(EDITOR, *merge, '{"spec": {"suspend": true}}')
    with pytest.raises(CommandError) as refused:
        people(EDITOR, *merge, '{"spec": {"promotion": {"mode": "Automatic"}}}')
    assert "spec.promotion: erin may not change who has to approve" in str(refused.value)
    with pytest.raises(CommandError, match=r"spec\.promotion"):
        people(EDITOR, *merge, '{"spec": {"promotion": null}}')
    cluster.kubectl(*merge, '{"spec": {"promotion": {"expiry": "1d"}}}', "-n", namespace)


@pytest.mark.apiserver
@pytest.mark.slow
def test_only_the_operator_makes_jobs_that_look_like_its_own(people: As, namespace: str) -> None:
    ours = {CYCLE_LABEL: "assistant", STAGE_LABEL: "train"}
    with pytest.raises(CommandError) as refused:
        people(EDITOR, "create", "-f", "-", body=job(namespace, "forged", **ours))
    words = str(refused.value)
    assert "ratchet.dev/cycle, ratchet.dev/stage of a Job may be set by the operator of Ratchet only" in words
    assert "leave the labels out" in words
    people(EDITOR, "create", "-f", "-", body=job(namespace, "plain", team="models"))
    with pytest.raises(CommandError, match="may be set by the operator of Ratchet only"):
        people(EDITOR, "label", "job", "plain", f"{STAGE_LABEL}=train")
    people(OPERATOR, "create", "-f", "-", body=job(namespace, "real", **ours))
    people(EDITOR, "annotate", "job", "real", "example.com/note=seen")
    with pytest.raises(CommandError, match="may be set by the operator of Ratchet only"):
        people(EDITOR, "label", "job", "real", f"{STAGE_LABEL}-")


@pytest.mark.apiserver
@pytest.mark.slow
def test_a_training_that_is_handed_over_is_guarded_like_a_job(people: As, namespace: str) -> None:
    ours = {CYCLE_LABEL: "assistant", STAGE_LABEL: "train"}
    with pytest.raises(CommandError, match="of a TrainJob may be set by the operator of Ratchet only"):
        people(EDITOR, "create", "-f", "-", body=train_job(namespace, "forged", **ours))
    people(OPERATOR, "create", "-f", "-", body=train_job(namespace, "real", **ours))
    with pytest.raises(CommandError, match="may be set by the operator of Ratchet only"):
        people(EDITOR, "label", "trainjob", "real", f"{STAGE_LABEL}-")
    people(EDITOR, "create", "-f", "-", body=train_job(namespace, "plain", team="models"))
