"""The custom resource definitions: committed files are current, every field is described and bounded."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from ratchet_api.crd import Schema, definitions, render
from ratchet_api.cycle import CRON_PATTERN
from ratchet_api.names import CYCLE_PLURAL, GROUP, VERSION_PLURAL

CYCLE = definitions()[f"{GROUP}_{CYCLE_PLURAL}.yaml"]
VERSION = definitions()[f"{GROUP}_{VERSION_PLURAL}.yaml"]
BOTH = [pytest.param(CYCLE, id="ImprovementCycle"), pytest.param(VERSION, id="ModelVersion")]

# Keywords that apiextensions/v1 refuses, or takes and does not mean what JSON schema means.
FORBIDDEN = {"$ref", "$defs", "definitions", "title", "const", "patternProperties", "propertyNames", "discriminator"}


def whole(document: Schema) -> Schema:
    schema: Schema = document["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def walk(node: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """Every schema node below (and with) this one, with its path."""
    yield path, node
    for name, child in node.get("properties", {}).items():
        yield from walk(child, f"{path}.{name}")
    if "items" in node:
        yield from walk(node["items"], f"{path}[]")
    if isinstance(node.get("additionalProperties"), dict):
        yield from walk(node["additionalProperties"], f"{path}{{}}")


def fields(document: Schema) -> Iterator[tuple[str, Schema]]:
    """Every named field of spec and status."""
    for path, node in walk(whole(document)):
        for name, child in node.get("properties", {}).items():
            if path or name != "metadata":
                yield f"{path}.{name}", child


@pytest.mark.parametrize("folder", ["crds", "charts/ratchet/crds"])
def test_committed_definitions_are_what_the_models_say(repository: Path, folder: str) -> None:
    wanted = {name: render(document) for name, document in definitions().items()}
    assert sorted(path.name for path in (repository / folder).iterdir()) == sorted(wanted)
    stale = [name for name, text in wanted.items() if (repository / folder / name).read_text() != text]
    assert stale == [], "run `make crds`"


@pytest.mark.parametrize("document", BOTH)
def test_every_field_is_described(document: Schema) -> None:
    assert [path for path, node in fields(document) if not node.get("description", "").strip()] == []


@pytest.mark.parametrize("document", BOTH)
def test_descriptions_are_sentences_not_artefacts(document: Schema) -> None:
    """One line each, and none of them a leftover of pydantic's own docstrings."""
    odd = [p for p, n in fields(document) if "\n" in n["description"] or n["description"].startswith("Usage docs")]
    assert odd == []


@pytest.mark.parametrize("document", BOTH)
def test_every_list_is_bounded(document: Schema) -> None:
    assert [p for p, n in walk(whole(document)) if n.get("type") == "array" and "maxItems" not in n] == []


@pytest.mark.parametrize("document", BOTH)
def test_every_map_of_a_spec_is_bounded(document: Schema) -> None:
    spec = whole(document)["properties"]["spec"]
    assert [p for p, n in walk(spec) if "additionalProperties" in n and "maxProperties" not in n] == []


@pytest.mark.parametrize("document", BOTH)
def test_every_string_of_a_spec_is_bounded(document: Schema) -> None:
    spec = whole(document)["properties"]["spec"]
    unbounded = [p for p, n in walk(spec) if n.get("type") == "string" and not {"maxLength", "enum"} & n.keys()]
    assert unbounded == []


@pytest.mark.parametrize("document", BOTH)
def test_every_number_of_a_spec_is_bounded_from_below(document: Schema) -> None:
    spec = whole(document)["properties"]["spec"]
    assert [p for p, n in walk(spec) if n.get("type") == "integer" and "minimum" not in n] == []


@pytest.mark.parametrize("document", BOTH)
def test_schema_is_structural(document: Schema) -> None:
    for path, node in walk(whole(document)):
        assert "type" in node, f"{path} has no type"
        assert not FORBIDDEN & node.keys(), f"{path}: {FORBIDDEN & node.keys()}"
        assert not {"anyOf", "oneOf", "allOf"} & node.keys(), f"{path} has alternatives"
        assert not ("properties" in node and "additionalProperties" in node), f"{path} mixes both"


@pytest.mark.parametrize("document", BOTH)
def test_there_are_no_floats(document: Schema) -> None:
    assert [path for path, node in walk(whole(document)) if node.get("type") == "number"] == []


@pytest.mark.parametrize("document", BOTH)
def test_status_has_no_defaults(document: Schema) -> None:
    """A default in a status would be an assertion of something that nobody observed; the one there is says that nobody
    has looked yet, so that a new object is not finished for kstatus."""
    status = whole(document)["properties"]["status"]
    assert status["default"] == {"observedGeneration": 0}
    assert [path for path, node in walk(status) if "default" in node and node is not status] == []


@pytest.mark.parametrize("document", BOTH)
def test_required_fields_have_no_default(document: Schema) -> None:
    for path, node in walk(whole(document)):
        for name in node.get("required", []):
            assert "default" not in node["properties"][name] or "x-kubernetes-list-map-keys" in node, f"{path}.{name}"


@pytest.mark.parametrize("document", BOTH)
def test_defaults_are_valid(document: Schema) -> None:
    checked = 0
    for path, node in walk(whole(document)):
        default = node.get("default")
        if default is None or default == {}:  # {} is filled in by the API server, from the inner defaults
            continue
        checked += 1
        jsonschema.Draft202012Validator(node).validate(default), path
    assert checked > 5 or document is VERSION


@pytest.mark.parametrize("document", BOTH)
def test_rules_have_a_sentence(document: Schema) -> None:
    rules = [(path, rule) for path, node in walk(whole(document)) for rule in node.get("x-kubernetes-validations", [])]
    assert len(rules) > 10
    for path, rule in rules:
        assert set(rule) == {"rule", "message"}, path
        assert len(rule["message"].split()) >= 3, f"{path}: {rule['message']!r} is no sentence"
        assert len(rule["message"]) <= 2048, path


@pytest.mark.parametrize("document", BOTH)
def test_conditions_are_a_map_by_type(document: Schema) -> None:
    node = whole(document)["properties"]["status"]["properties"]["conditions"]
    assert (node["x-kubernetes-list-type"], node["x-kubernetes-list-map-keys"]) == ("map", ["type"])
    assert {"type", "status", "reason", "lastTransitionTime"} <= set(node["items"]["required"])


@pytest.mark.parametrize("document", BOTH)
def test_status_is_a_subresource(document: Schema) -> None:
    version = document["spec"]["versions"][0]
    assert version["subresources"] == {"status": {}}
    assert (version["served"], version["storage"]) == (True, True)


def _resolve(schema: Schema, path: str) -> Schema:
    node: Any = schema
    for name in path.removeprefix(".").split("."):
        node = node["properties"][name]
    resolved: Schema = node
    return resolved


@pytest.mark.parametrize("document", BOTH)
def test_printer_columns_point_at_fields_of_their_type(document: Schema) -> None:
    columns = document["spec"]["versions"][0]["additionalPrinterColumns"]
    assert columns[-1]["jsonPath"] == ".metadata.creationTimestamp"
    for column in columns[:-1]:
        node = _resolve(whole(document), column["jsonPath"])
        assert node["type"] == ("string" if column["type"] == "date" else column["type"]), column["name"]


def test_printer_columns_tell_the_story() -> None:
    names = {d["spec"]["names"]["kind"]: [c["name"] for c in d["spec"]["versions"][0]["additionalPrinterColumns"]]
             for d in (CYCLE, VERSION)}  # fmt: skip
    assert names["ImprovementCycle"][:5] == ["Phase", "Champion", "Candidate", "Weight", "Checks"]
    assert {"Cycle", "Phase", "Parent", "Examples", "Loss", "Target", "Guardrail"} <= set(names["ModelVersion"])


def test_short_names() -> None:
    assert CYCLE["spec"]["names"]["shortNames"] == ["cycle"]
    assert VERSION["spec"]["names"]["shortNames"] == ["mv"]


def test_a_definition_fits_into_the_annotation_of_a_client_side_apply() -> None:
    """kubectl apply (client-side) copies the whole object into an annotation, of which there may be 256 KiB in all."""
    for name, document in definitions().items():
        assert len(json.dumps(document)) < 200_000, name


def test_cron_pattern_is_one_that_the_api_server_can_compile() -> None:
    """CEL's matches() is RE2: no look-around, no back-references."""
    assert not any(token in CRON_PATTERN for token in ("(?=", "(?!", "(?<", r"\1"))


def test_generation_is_deterministic() -> None:
    assert {k: render(v) for k, v in definitions().items()} == {k: render(v) for k, v in definitions().items()}
