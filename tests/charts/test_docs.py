"""What README and docs/ tell people to type and to write is true."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import helm_python
import jsonschema
import pytest
import yaml

from ratchet_api.artifacts import MANIFEST, Manifest
from ratchet_api.crd import definitions
from ratchet_api.cycle import ImprovementCycle
from ratchet_api.version import ModelVersion
from ratchet_local import S3Access

PAGES = [
    "README.md",
    "docs/install.md",
    "docs/images.md",
    "docs/architecture.md",
    "docs/reference.md",
    "docs/reasons.md",
    "docs/gitops-health.md",
    "docs/observability.md",
    "docs/faults.md",
    "examples/gitops/README.md",
    "examples/gitops/argocd/README.md",
    "examples/gitops/flux/README.md",
]
KINDS = {"ImprovementCycle": ImprovementCycle, "ModelVersion": ModelVersion}


def blocks(text: str, language: str) -> list[str]:
    """Fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def indented(text: str) -> str:
    """Everything that is typed: indented code."""
    return "\n".join(line for line in text.splitlines() if line.startswith("    "))


@pytest.fixture(params=PAGES)
def page(request: pytest.FixtureRequest, repository: Path) -> tuple[Path, str]:
    """A page and its text."""
    path = repository / str(request.param)
    return path, path.read_text()


def test_links_lead_somewhere(page: tuple[Path, str]) -> None:
    path, text = page
    targets = [target for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in target]
    assert [target for target in targets if not (path.parent / target).exists()] == []


def test_make_targets_exist(page: tuple[Path, str], repository: Path) -> None:
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", (repository / "Makefile").read_text(), re.MULTILINE))
    asked = set(re.findall(r"`make ([a-z0-9]+)|^    make ([a-z0-9]+)", page[1], re.MULTILINE))
    assert {first or second for first, second in asked} <= targets


def test_paths_that_are_typed_exist(page: tuple[Path, str], repository: Path) -> None:
    typed = re.findall(r"(?<![\w/.-])((?:scripts|charts|examples|crds|docs)/[\w./-]*)", indented(page[1]))
    assert [name for name in typed if not (repository / name).exists()] == []


def test_resources_in_yaml_blocks_are_valid(page: tuple[Path, str], repository: Path) -> None:
    whole = {d["spec"]["names"]["kind"]: d["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
             for d in definitions().values()}  # fmt: skip
    found = [d for block in blocks(page[1], "yaml") for d in yaml.safe_load_all(block) if "kind" in d]
    for document in found:
        KINDS[document["kind"]].model_validate(document)
        jsonschema.Draft202012Validator(whole[document["kind"]]).validate(document)
    assert found or page[0] != repository / "README.md"


def test_values_in_the_install_page_are_the_chart_s(repository: Path, chart: helm_python.Chart) -> None:
    text = (repository / "docs/install.md").read_text()
    [values] = [yaml.safe_load(block) for block in blocks(text, "yaml") if block.startswith("# values.yaml")]
    chart.validate_schema(values)
    assert chart.render(values, name="ratchet", namespace="ratchet-system")
    for name in re.findall(r"^\| `([a-zA-Z.]+)(?:: \w+)?` \|", text, re.MULTILINE):
        node: Any = chart.values
        for part in name.split("."):
            assert part in node, f"{name} is no value of the chart"
            node = node[part]


def test_annotations_are_those_of_the_vocabulary(page: tuple[Path, str]) -> None:
    from ratchet_api import names
    from ratchet_api.promotion import Gate

    used = set(re.findall(r"ratchet\.dev/[a-z0-9-]+", page[1]))
    known = {value for key, value in vars(names).items() if key.endswith(("_LABEL", "_ANNOTATION"))}
    known |= {names.approval_annotation(gate) for gate in get_args(Gate)}
    assert used <= known | {names.GROUP_VERSION, "ratchet.dev/stage"}


@pytest.mark.slow
def test_the_install_page_s_upload_makes_a_model_that_verifies(repository: Path, tmp_path: Path, s3: S3Access) -> None:
    text = (repository / "docs/install.md").read_text()
    [typed] = re.findall(r"^    \.ratchet/venv/bin/python (-m ratchet_trainer publish .*)$", text, re.MULTILINE)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights")
    s3.create_bucket("published")
    environment = os.environ | {
        "AWS_ACCESS_KEY_ID": s3.access_key, "AWS_SECRET_ACCESS_KEY": s3.secret_key, "AWS_ENDPOINT_URL": s3.endpoint,
    }  # fmt: skip
    arguments = [
        {"FOLDER": str(model), "s3://BUCKET/PREFIX": "s3://published/models/tiny"}.get(word, word)
        for word in typed.split()
    ]
    answer = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    body = s3.client().get_object(Bucket="published", Key=f"models/tiny/{MANIFEST}")["Body"].read()
    manifest = Manifest.model_validate(json.loads(body))
    assert (manifest.kind, sorted(manifest.files)) == ("model", ["config.json", "model.safetensors"])
    assert manifest.digest in answer.stdout
