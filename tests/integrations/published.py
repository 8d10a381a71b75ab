"""Schemas that Argo CD and Flux publish, from their Go modules, each pinned; Go checks what it fetches.

They are fetched once into Go's module cache, like everything that the local platform is built from.
"""

import json
import subprocess
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from ratchet_local.toolchain import find_go

_FLUX, _BASES = "github.com/fluxcd", "config/crd/bases"
SOURCES: dict[tuple[str, str], tuple[str, str]] = {
    ("argoproj.io/v1alpha1", "Application"): (
        "github.com/argoproj/argo-cd/v3@v3.5.0",
        "manifests/crds/application-crd.yaml",
    ),
    ("argoproj.io/v1alpha1", "AppProject"): (
        "github.com/argoproj/argo-cd/v3@v3.5.0",
        "manifests/crds/appproject-crd.yaml",
    ),
    ("kustomize.toolkit.fluxcd.io/v1", "Kustomization"): (
        f"{_FLUX}/kustomize-controller@v1.9.1",
        f"{_BASES}/kustomize.toolkit.fluxcd.io_kustomizations.yaml",
    ),
    ("helm.toolkit.fluxcd.io/v2", "HelmRelease"): (
        f"{_FLUX}/helm-controller@v1.6.1",
        f"{_BASES}/helm.toolkit.fluxcd.io_helmreleases.yaml",
    ),
    ("source.toolkit.fluxcd.io/v1", "GitRepository"): (
        f"{_FLUX}/source-controller@v1.9.1",
        f"{_BASES}/source.toolkit.fluxcd.io_gitrepositories.yaml",
    ),
    ("source.toolkit.fluxcd.io/v1", "OCIRepository"): (
        f"{_FLUX}/source-controller@v1.9.1",
        f"{_BASES}/source.toolkit.fluxcd.io_ocirepositories.yaml",
    ),
}


@cache
def _module(name: str) -> Path:
    """Folder of a Go module. Fails with Go's own words when it cannot be had."""
    with tempfile.TemporaryDirectory() as nowhere:
        command = [str(find_go(print)), "mod", "download", "-json", name]
        answer = subprocess.run(command, cwd=nowhere, capture_output=True, text=True, timeout=600, check=False)
    assert answer.returncode == 0, f"{name}: {answer.stderr.strip() or answer.stdout.strip()}"
    return Path(json.loads(answer.stdout)["Dir"])


@cache
def _schema(api_version: str, kind: str) -> dict[str, Any]:
    module, path = SOURCES[api_version, kind]
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # half a megabyte of YAML
    definition = yaml.load((_module(module) / path).read_text(), Loader=loader)
    assert definition["spec"]["names"]["kind"] == kind
    [version] = [v for v in definition["spec"]["versions"] if v["name"] == api_version.rpartition("/")[2]]
    strict: dict[str, Any] = _strict(version["schema"]["openAPIV3Schema"])
    strict["properties"]["metadata"] = {"type": "object"}
    return strict


def _strict(node: Any) -> Any:
    """The schema as the API server applies it with strict field validation: unknown fields are refused."""
    if isinstance(node, list):
        return [_strict(entry) for entry in node]
    if not isinstance(node, Mapping):
        return node
    made = {key: _strict(value) for key, value in node.items()}
    closed = made.get("type") == "object" and not made.get("x-kubernetes-preserve-unknown-fields")
    if closed and isinstance(made.get("properties"), dict):
        made.setdefault("additionalProperties", False)
    if made.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
    return made


def problems(document: Mapping[str, Any]) -> list[str]:
    """What the published schema says against an object."""
    schema = _schema(document["apiVersion"], document["kind"])
    found = jsonschema.Draft202012Validator(schema).iter_errors(document)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in found]
