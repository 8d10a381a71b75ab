"""What the chart makes of its values: golden files, refusals, and the contracts with the rooms."""

import json
import os
import re
from pathlib import Path
from typing import Any

import helm_python
import jsonschema
import pytest
import yaml

from ratchet_api.names import GATEWAY_LABELS, GATEWAY_PORT, METRICS_PORT
from ratchet_gateway.__main__ import parser as gateway_parser
from ratchet_gateway.__main__ import settings_of
from ratchet_operator.clients.kube import RESOURCES
from ratchet_operator.manifests import pods
from ratchet_operator.settings import Election
from ratchet_operator.settings import parse as parse_operator

from .conftest import NAMESPACE, PROMETHEUS, Manifest, Render, Values

GOLDEN = Path(__file__).parent / "golden"

CASES: dict[str, Values] = {
    "default": {},
    "namespaces": {"watch": {"namespaces": ["team-a", "team-b"]}},
    "everything": {
        "prometheus": {"url": PROMETHEUS, "credentialsSecret": "prometheus", "headers": {"X-Scope-OrgID": "team-a"}},
        "telemetry": {"otlpEndpoint": "http://otel-collector.observability.svc:4318", "headersSecret": "otel"},
        "images": {"pullSecrets": ["registry"], "operator": {"digest": "sha256:" + "a" * 64}, "vllm": {"tag": "v9"}},
        "operator": {
            "replicas": 2,
            "extraArgs": ["--workers=8"],
            "env": [{"name": "HTTPS_PROXY", "value": "http://proxy.example:3128"}],
            "serviceAccount": {"annotations": {"example.com/role": "operator"}},
            "podAnnotations": {"example.com/note": "yes"},
            "podLabels": {"team": "models"},
            "nodeSelector": {"pool": "system"},
            "tolerations": [{"key": "system", "operator": "Exists"}],
            "affinity": {"nodeAffinity": {}},
            "priorityClassName": "system-cluster-critical",
        },
        "gateway": {
            "replicas": 3,
            "storage": {"credentialsSecret": "storage"},
            "service": {"type": "LoadBalancer", "port": 80, "annotations": {"example.com/internal": "true"}},
            "serviceAccount": {"create": False, "name": "workload-identity"},
            "podDisruptionBudget": {"maxUnavailable": "34%"},
        },
        "security": {"runAsUser": None, "fsGroup": None},
        "metrics": {
            "annotations": False,
            "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
            "rules": {"enabled": True, "labels": {"release": "prometheus"}},
            "dashboard": {"enabled": True, "annotations": {"grafana_folder": "Models"}},
        },
        "networkPolicy": {
            "enabled": True,
            "gatewayFrom": [{"namespaceSelector": {"matchLabels": {"role": "apps"}}}],
            "metricsFrom": [{"namespaceSelector": {"matchLabels": {"role": "monitoring"}}}],
        },
        "admissionPolicies": {"approvals": True, "jobs": True},
    },
    "train-jobs": {"launchers": {"trainJob": {"enabled": True}}, "watch": {"namespaces": ["team-a"]}},
    "spool-claim": {"gateway": {"spool": {"size": "50Gi", "persistentVolumeClaim": {"enabled": True}}}},
}


@pytest.mark.parametrize("name", CASES)
def test_golden(render: Render, name: str) -> None:
    """Rewrite the files with UPDATE_GOLDEN=1, and read the difference before committing it."""
    path = GOLDEN / f"{name}.yaml"
    text = yaml.safe_dump_all(render(CASES[name]).objects, sort_keys=True, width=120)
    if os.environ.get("UPDATE_GOLDEN") == "1":
        path.write_text(text)
    assert list(yaml.safe_load_all(text)) == list(yaml.safe_load_all(path.read_text())), f"{path.name} is stale"


def test_prometheus_has_to_be_named(chart: helm_python.Chart) -> None:
    with pytest.raises(
        helm_python.HelmRenderError, match=r"prometheus\.url is empty: write the base address"
    ) as raised:
        chart.render({}, name="ratchet", namespace=NAMESPACE)
    assert "--set prometheus.url=http://" in str(raised.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"operater": {}}, "operater"),
        ({"operator": {"replica": 2}}, "replica"),
        ({"operator": {"replicas": "two"}}, "replicas"),
        ({"operator": {"replicas": -1}}, "replicas"),
        ({"prometheus": {"url": "prometheus:9090"}}, "url"),
        ({"watch": {"namespaces": ["Team A"]}}, "namespaces"),
        ({"watch": {"namespaces": ["a", "a"]}}, "namespaces"),
        ({"images": {"operator": {"digest": "latest"}}}, "digest"),
        ({"images": {"operator": {"repository": "ratchet/operator@sha256:0"}}}, "repository"),
        ({"gateway": {"service": {"type": "ExternalName"}}}, "type"),
        ({"gateway": {"service": {"port": 70000}}}, "port"),
        ({"gateway": {"spool": {"size": "0"}}}, "size"),
        ({"gateway": {"resources": {"limit": {}}}}, "limit"),
        ({"operator": {"podAnnotations": {"a": True}}}, "podAnnotations"),
        ({"security": {"runAsUser": 0}}, "runAsUser"),
    ],
)
def test_wrong_values_are_refused_by_name(chart: helm_python.Chart, values: Values, words: str) -> None:
    with pytest.raises(helm_python.HelmValuesError, match=re.escape(words)):
        chart.render({"prometheus": {"url": PROMETHEUS}} | values, name="ratchet", namespace=NAMESPACE)


def test_schema_is_a_schema_and_knows_every_value(repository: Path, chart: helm_python.Chart) -> None:
    schema = json.loads((repository / "charts/ratchet/values.schema.json").read_text())
    jsonschema.Draft7Validator.check_schema(schema)

    def check(values: Any, node: Any, path: str) -> None:
        while "$ref" in node:
            node = schema["definitions"][node["$ref"].rsplit("/", 1)[1]]
        if "properties" in node:
            assert node["additionalProperties"] is False, f"{path} takes unknown fields"
            assert set(values) == set(node["properties"]) - {"global", "digest", "tag"} | (
                set(values) & {"digest", "tag"}
            ), f"{path}: values.yaml and values.schema.json differ"
            for name, value in values.items():
                if isinstance(value, dict):
                    check(value, node["properties"][name], f"{path}.{name}")

    check(chart.values, schema, "values")


def test_lint_finds_nothing(repository: Path) -> None:
    report = helm_python.lint(repository / "charts" / "ratchet", {"prometheus": {"url": PROMETHEUS}}, strict=True)
    assert report["errors"] == []
    assert [m for m in report["messages"] if m["severity"] >= 2] == []


def test_chart_carries_the_definitions(chart: helm_python.Chart) -> None:
    assert sorted(crd["name"] for crd in chart.crds) == [
        "crds/ratchet.dev_improvementcycles.yaml", "crds/ratchet.dev_modelversions.yaml",
    ]  # fmt: skip


def test_version_is_the_distribution_s(repository: Path, chart: helm_python.Chart) -> None:
    match = re.search(r'^version = "(.+)"$', (repository / "pyproject.toml").read_text(), re.MULTILINE)
    assert match is not None
    assert chart.metadata["version"] == chart.metadata["appVersion"] == match[1]


# The rooms' contracts


def _arguments(container: Manifest) -> list[str]:
    """The arguments with $(POD_IP) filled in, as a kubelet does."""
    return [argument.replace("$(POD_IP)", "10.1.2.3") for argument in container["args"]]


@pytest.mark.parametrize("name", CASES)
def test_operator_understands_its_arguments(render: Render, name: str) -> None:
    container = render(CASES[name]).container("operator")
    assert container["command"] == ["python", "-m", "ratchet_operator"]
    settings, _ = parse_operator(_arguments(container))
    assert settings.gateway_namespace == NAMESPACE
    assert settings.prometheus_url == PROMETHEUS
    assert settings.election is not None
    assert settings.election.namespace == NAMESPACE
    assert settings.namespaces == tuple(CASES[name].get("watch", {}).get("namespaces", ()))
    assert (settings.health.host, settings.metrics.host) == ("10.1.2.3", "10.1.2.3")
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"health": settings.health.port, "metrics": settings.metrics.port}
    assert settings.metrics.port == METRICS_PORT


@pytest.mark.parametrize("name", CASES)
def test_gateway_understands_its_arguments(render: Render, name: str) -> None:
    rendered = render(CASES[name])
    container = rendered.container("gateway")
    assert container["command"] == ["python", "-m", "ratchet_gateway"]
    settings = settings_of(gateway_parser().parse_args(_arguments(container)), "pod")
    assert (settings.host, settings.port) == ("10.1.2.3", GATEWAY_PORT)
    assert settings.namespaces == tuple(CASES[name].get("watch", {}).get("namespaces", ()))
    size = CASES[name].get("gateway", {}).get("spool", {}).get("size", "4Gi")
    assert settings.spool.limit_bytes == int(size.removesuffix("Gi")) * 1024**3 * 3 // 4
    pod = rendered.only("Deployment", "ratchet-gateway")["spec"]["template"]["spec"]
    shutdown = settings.drain_seconds + settings.grace_seconds + settings.upload_seconds
    assert shutdown < pod["terminationGracePeriodSeconds"]
    assert {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}} in container["env"]


@pytest.mark.parametrize(("size", "limit"), [("64Mi", 48), ("1Gi", 768), ("50Gi", 38400), ("2Ti", 1572864)])
def test_spool_is_limited_below_its_volume(render: Render, size: str, limit: int) -> None:
    """A full emptyDir would have the pod evicted; the gateway has to stop recording before."""
    assert f"--spool-limit-mib={limit}" in render({"gateway": {"spool": {"size": size}}}).container("gateway")["args"]


def test_images_by_tag_and_by_digest(render: Render) -> None:
    plain = parse_operator(_arguments(render().container("operator")))[0].images
    assert plain.trainer == "ratchet/trainer:0.1.0"
    digest = "sha256:" + "b" * 64
    values = {"images": {"trainer": {"repository": "registry.example.com/r/trainer", "tag": "x", "digest": digest}}}
    pinned = parse_operator(_arguments(render(values).container("operator")))[0].images
    assert pinned.trainer == f"registry.example.com/r/trainer@{digest}"


def test_the_operator_finds_the_gateways(render: Render) -> None:
    labels = render().only("Deployment", "ratchet-gateway")["spec"]["template"]["metadata"]["labels"]
    assert GATEWAY_LABELS.items() <= labels.items()


@pytest.mark.parametrize("component", ["operator", "gateway"])
def test_nothing_binds_to_every_address(render: Render, component: str) -> None:
    container = render().container(component)
    assert not [a for a in container["args"] if "0.0.0.0" in a or "[::]" in a]
    assert any("$(POD_IP)" in argument for argument in container["args"])
    assert {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}} in container["env"]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("component", ["operator", "gateway"])
def test_every_mounted_path_is_told_to_the_process(render: Render, component: str, name: str) -> None:
    """The process node has no mounts: it rewrites paths in arguments and environment values."""
    container = render(CASES[name]).container(component)
    told = [*container["args"], *(variable.get("value") for variable in container["env"])]
    for mount in container["volumeMounts"]:
        assert mount["mountPath"] in told, f"{mount['mountPath']} is mounted, but nobody is told"


def test_gateway_listens_where_its_service_points(render: Render) -> None:
    rendered = render({"gateway": {"service": {"port": 80}}})
    container = rendered.container("gateway")
    assert f"--port={GATEWAY_PORT}" in container["args"]
    assert container["ports"] == [{"name": "http", "containerPort": GATEWAY_PORT}]
    port = rendered.only("Service", "ratchet-gateway")["spec"]["ports"][0]
    assert (port["port"], port["targetPort"]) == (80, "http")


@pytest.mark.parametrize(("component", "port"), [("operator", "9090"), ("gateway", "8080")])
def test_prometheus_is_told_where_to_scrape(render: Render, component: str, port: str) -> None:
    def annotations(values: Values) -> dict[str, str]:
        metadata = render(values).only("Deployment", f"ratchet-{component}")["spec"]["template"]["metadata"]
        found: dict[str, str] = metadata.get("annotations", {})
        return found

    assert annotations({}) == {
        "prometheus.io/scrape": "true", "prometheus.io/port": port, "prometheus.io/path": "/metrics",
    }  # fmt: skip
    assert annotations({"metrics": {"annotations": False}}) == {}


@pytest.mark.parametrize("component", ["Deployment", "Service", "PodMonitor", "NetworkPolicy", "PodDisruptionBudget"])
def test_selectors_select_pods_of_the_chart(render: Render, component: str) -> None:
    rendered = render(CASES["everything"])
    pods = [d["spec"]["template"]["metadata"]["labels"] for d in rendered.of("Deployment")]
    found = rendered.of(component)
    assert found
    for thing in found:
        if thing["metadata"]["name"] == "ratchet-workloads":
            continue  # selects what the operator makes, see below
        spec = thing["spec"]
        selector = spec.get("selector", spec.get("podSelector"))
        labels = selector.get("matchLabels", selector)
        assert sum(labels.items() <= pod.items() for pod in pods) == 1, thing["metadata"]["name"]


@pytest.mark.parametrize("watched", [[], ["team-a"]])
def test_pod_monitor_of_stages_and_arms(render: Render, watched: list[str]) -> None:
    values = {"metrics": {"podMonitor": {"enabled": True}}, "watch": {"namespaces": watched}}
    spec = render(values).only("PodMonitor", "ratchet-workloads")["spec"]
    assert spec["namespaceSelector"] == ({"matchNames": watched} if watched else {"any": True})
    labels = pods.labels("assistant", version="assistant-1", arm="true")
    assert spec["selector"]["matchLabels"].items() <= labels.items()
    assert [e["key"] in labels for e in spec["selector"]["matchExpressions"]] == [True]


# Shapes


def test_one_operator_is_replaced_several_are_rolled(render: Render) -> None:
    def strategy(replicas: int) -> str:
        spec = render({"operator": {"replicas": replicas}}).only("Deployment", "ratchet-operator")["spec"]
        assert spec["replicas"] == replicas
        found: str = spec["strategy"]["type"]
        return found

    assert (strategy(1), strategy(2)) == ("Recreate", "RollingUpdate")


def test_gateway_never_has_fewer_pods_than_asked_for(render: Render) -> None:
    spec = render().only("Deployment", "ratchet-gateway")["spec"]
    assert spec["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_disruption_budget_only_when_there_is_something_to_keep(render: Render) -> None:
    assert render().of("PodDisruptionBudget") == []
    assert len(render({"gateway": {"replicas": 2}}).of("PodDisruptionBudget")) == 1


def test_spool_is_bounded_and_optionally_a_claim(render: Render) -> None:
    def spool(values: Values) -> Manifest:
        pod = render(values).only("Deployment", "ratchet-gateway")["spec"]["template"]["spec"]
        found: Manifest = next(volume for volume in pod["volumes"] if volume["name"] == "spool")
        return found

    assert spool({})["emptyDir"] == {"sizeLimit": "4Gi"}
    assert spool(CASES["spool-claim"])["persistentVolumeClaim"] == {"claimName": "ratchet-gateway-spool"}
    existing = {"gateway": {"spool": {"persistentVolumeClaim": {"enabled": True, "existingClaim": "mine"}}}}
    assert spool(existing)["persistentVolumeClaim"] == {"claimName": "mine"}
    assert render(existing).of("PersistentVolumeClaim") == []
    claim = render(CASES["spool-claim"]).only("PersistentVolumeClaim", "ratchet-gateway-spool")
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert claim["spec"]["resources"] == {"requests": {"storage": "50Gi"}}


def test_a_spool_too_small_for_one_segment(chart: helm_python.Chart) -> None:
    values = {"prometheus": {"url": PROMETHEUS}, "gateway": {"spool": {"size": "10Mi"}}}
    with pytest.raises(helm_python.HelmRenderError, match="10Mi is too small; write 64Mi or more"):
        chart.render(values, name="ratchet", namespace=NAMESPACE)


def test_a_claim_cannot_be_shared(chart: helm_python.Chart) -> None:
    values = {
        "prometheus": {"url": PROMETHEUS},
        "gateway": {"replicas": 2, "spool": {"persistentVolumeClaim": {"enabled": True}}},
    }
    with pytest.raises(helm_python.HelmRenderError, match="a claim cannot be shared"):
        chart.render(values, name="ratchet", namespace=NAMESPACE)


def test_gateway_credentials(render: Render) -> None:
    assert "envFrom" not in render().container("gateway")
    container = render({"gateway": {"storage": {"credentialsSecret": "storage"}}}).container("gateway")
    assert container["envFrom"] == [{"secretRef": {"name": "storage"}}]
    assert "envFrom" not in render({"gateway": {"storage": {"credentialsSecret": "s"}}}).container("operator")


def test_names_follow_the_release(render: Render) -> None:
    names = {o["metadata"]["name"] for o in render(release="models").objects}
    assert {"models-ratchet-operator", "models-ratchet-gateway"} <= names
    long = {o["metadata"]["name"] for o in render(release="a" * 53).objects}
    assert max(map(len, long)) <= 63


def test_notes_say_what_is_next(render: Render) -> None:
    notes = render().notes
    assert "http://ratchet-gateway.ratchet-system.svc:8080/v1" in notes
    assert "in every namespace" in notes
    assert "workload identity" not in notes
    assert "credentialsSecret is empty" in notes
    silent = render({"metrics": {"annotations": False}, "watch": {"namespaces": ["a"]}}).notes
    assert "has to be told to scrape" in silent
    assert "serves cycles in a." in silent
    assert "credentialsSecret is empty" not in render({"gateway": {"storage": {"credentialsSecret": "s"}}}).notes


# Permissions


def _rules(render: Render, name: str, values: Values | None = None) -> list[Manifest]:
    return [
        rule
        for role in render(values).of("ClusterRole") + render(values).of("Role")
        if role["metadata"]["name"].startswith(name)
        for rule in role["rules"]
    ]


@pytest.mark.parametrize("name", CASES)
def test_no_wildcards_anywhere(render: Render, name: str) -> None:
    for role in render(CASES[name]).of("ClusterRole") + render(CASES[name]).of("Role"):
        for rule in role["rules"]:
            for key in ("apiGroups", "resources", "verbs"):
                assert "*" not in "".join(rule[key]), role["metadata"]["name"]


def test_operator_may_reach_what_it_uses_and_nothing_else(render: Render) -> None:
    """Both ways: a resource that the operator's client knows is granted, and no other one is."""

    def granted(values: Values) -> set[tuple[str, str]]:
        return {
            (group, resource.split("/")[0])
            for rule in _rules(render, "ratchet-operator", values)
            for group in rule["apiGroups"]
            for resource in rule["resources"]
        }

    used = {(resource.api_version.rpartition("/")[0], resource.plural) for resource in RESOURCES.values()}
    assert granted(CASES["train-jobs"]) == used
    assert granted({}) == {(group, plural) for group, plural in used if group != "trainer.kubeflow.org"}


def test_train_jobs_are_for_those_who_ask(render: Render) -> None:
    assert render().of("ClusterTrainingRuntime") == []
    rules = {
        resource: rule["verbs"]
        for rule in _rules(render, "ratchet-operator", CASES["train-jobs"])
        if rule["apiGroups"] == ["trainer.kubeflow.org"]
        for resource in rule["resources"]
    }
    assert rules == {
        "trainjobs": ["get", "create", "delete"],
        "trainingruntimes": ["get"],
        "clustertrainingruntimes": ["get"],
    }
    others = {"launchers": {"trainJob": {"enabled": True, "runtime": {"create": False}}}}
    assert render(others).of("ClusterTrainingRuntime") == []


def test_operator_may_lead_under_the_lease_that_it_asks_for(render: Render) -> None:
    named = [rule for rule in _rules(render, "ratchet-operator") if rule.get("resourceNames")]
    assert [rule["resourceNames"] for rule in named] == [[Election(namespace="x").name]]


def test_operator_never_writes_people_s_cycles_nor_lists_secrets(render: Render) -> None:
    verbs: dict[str, set[str]] = {}
    for rule in _rules(render, "ratchet-operator"):
        for resource in rule["resources"]:
            verbs.setdefault(resource, set()).update(rule["verbs"])
    assert verbs["improvementcycles"] == {"get", "list", "watch"}
    assert verbs["secrets"] == {"get"}
    assert "delete" not in verbs["modelversions"]


def test_gateway_reads_cycles_and_pods_only(render: Render) -> None:
    for values in (CASES["default"], CASES["namespaces"]):
        for rule in _rules(render, "ratchet-gateway", values):
            assert set(rule["verbs"]) <= {"get", "list", "watch"}
            assert set(rule["resources"]) <= {"improvementcycles", "pods"}


def test_named_namespaces_need_no_cluster_role(render: Render) -> None:
    rendered = render({"watch": {"namespaces": ["team-a", "team-b"]}, "rbac": {"aggregate": False}})
    assert rendered.of("ClusterRole") == rendered.of("ClusterRoleBinding") == []
    for component in ("operator", "gateway"):
        places = [
            r["metadata"]["namespace"] for r in rendered.of("Role") if r["metadata"]["name"] == f"ratchet-{component}"
        ]
        assert places == ["team-a", "team-b"]


def test_every_binding_binds_a_role_to_an_account_of_the_chart(render: Render) -> None:
    for values in CASES.values():
        rendered = render(values)
        roles = {(r["kind"], r["metadata"]["name"]) for r in rendered.of("Role") + rendered.of("ClusterRole")}
        accounts = {"ratchet-operator", "ratchet-gateway", "workload-identity"}
        for binding in rendered.of("RoleBinding") + rendered.of("ClusterRoleBinding"):
            assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) in roles
            assert [(s["kind"], s["namespace"]) for s in binding["subjects"]] == [("ServiceAccount", NAMESPACE)]
            assert binding["subjects"][0]["name"] in accounts


def test_rbac_can_be_left_to_somebody_else(render: Render) -> None:
    rendered = render({"rbac": {"create": False, "aggregate": False}})
    assert [o["kind"] for o in rendered.objects if "Role" in o["kind"]] == []
