"""Manifests judged before they are applied: field, line, what was wrong, what to write instead.

Room: cli. Pure: text in, problems out. What only the API server can judge (rules across fields, what is there already)
`commands` asks it for by a dry run.
"""

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml
from pydantic import ValidationError

from ratchet_api.base import Model
from ratchet_api.crd import definitions
from ratchet_api.cycle import ImprovementCycleSpec
from ratchet_api.names import CYCLE_KIND, GROUP, GROUP_VERSION, VERSION_KIND
from ratchet_api.version import ModelVersionSpec
from ratchet_cli.oncall.doctor import rows_of

_SPECS: dict[str, type[Model]] = {CYCLE_KIND: ImprovementCycleSpec, VERSION_KIND: ModelVersionSpec}
Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong."""

    file: str
    line: int
    """From 1; 0: of the whole file."""
    subject: str
    """`ImprovementCycle assistant`, or empty."""
    path: str
    """`spec.evaluation.suites[0].margin`, or empty."""
    message: str

    def text(self) -> str:
        """As compilers write it, so that editors find the place."""
        place = f"{self.file}:{self.line}" if self.line else self.file
        return ": ".join(filter(None, (place, self.subject, self.path, self.message)))


@dataclass(frozen=True)
class Document:
    """One object of a file, with the lines of its fields."""

    file: str
    body: Mapping[str, Any]
    node: yaml.Node

    @property
    def kind(self) -> str:
        """Empty when it has none."""
        return str(self.body.get("kind", ""))

    @property
    def name(self) -> str:
        """Empty when it has none."""
        metadata = self.body.get("metadata")
        return str(metadata.get("name", "")) if isinstance(metadata, Mapping) else ""

    @property
    def ours(self) -> bool:
        """Whether it is a resource of ours."""
        return self.kind in _SPECS or str(self.body.get("apiVersion", "")).startswith(f"{GROUP}/")

    def problem(self, path: Path, message: str) -> Problem:
        """Something wrong at a place."""
        return Problem(self.file, line_of(self.node, path), f"{self.kind} {self.name}".strip(), written(path), message)


def read(file: str, text: str) -> tuple[list[Document], list[Problem]]:
    """The objects of a file (lists taken apart), and what is wrong with its YAML."""
    found: list[Document] = []
    try:
        for node in yaml.compose_all(text, Loader=yaml.SafeLoader):
            body = _built(node)
            if body is None:
                continue
            if not isinstance(body, Mapping):
                return found, [
                    Problem(file, node.start_mark.line + 1, "", "", "is no Kubernetes object: write a mapping")
                ]
            found += _taken_apart(file, body, node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark is not None else 0
        return found, [Problem(file, line, "", "", f"is no YAML: {getattr(error, 'problem', None) or error}")]
    return found, []


def _built(node: yaml.Node) -> Any:
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _taken_apart(file: str, body: Mapping[str, Any], node: yaml.Node) -> list[Document]:
    items = child(node, "items")
    if body.get("kind") != "List" or not isinstance(items, yaml.SequenceNode):
        return [Document(file, body, node)]
    pairs = zip(body["items"], items.value, strict=True)
    return [Document(file, one, each) for one, each in pairs if isinstance(one, Mapping)]


def problems(documents: Sequence[Document]) -> list[Problem]:
    """Everything that is wrong with our resources, and with the ConfigMaps in the same files that they name."""
    found: list[Problem] = []
    for document in documents:
        if document.ours:
            found += _of(document)
    return found + list(_references(documents))


def _of(document: Document) -> Iterable[Problem]:
    body = document.body
    if document.kind not in _SPECS:
        close = difflib.get_close_matches(document.kind, _SPECS, 1)
        yield document.problem(("kind",), f"there is no such kind: write {close[0] if close else ' or '.join(_SPECS)}")
        return
    if body.get("apiVersion") != GROUP_VERSION:
        yield document.problem(("apiVersion",), f"write {GROUP_VERSION}")
    if not document.name:
        yield document.problem(("metadata",), "metadata.name is missing: write a name")
    spec = body.get("spec")
    if not isinstance(spec, Mapping):
        yield document.problem(("spec",), "spec is missing: say what it should be")
        return
    try:
        _SPECS[document.kind].model_validate(spec)
    except ValidationError as error:
        for entry in error.errors(include_url=False):
            path: Path = ("spec", *entry["loc"])
            yield document.problem(path, _sentence(document.kind, path, dict(entry)))


def _sentence(kind: str, path: Path, error: Mapping[str, Any]) -> str:
    """A pydantic error in our words: the CRD's own sentence for the field where it has one."""
    schema = _schema(kind, path)
    description = str(schema.get("description", "")).split(". ")[0].strip().rstrip(".") if schema else ""
    match error["type"]:
        case "extra_forbidden":
            parent = _schema(kind, path[:-1]) or {}
            known = list(parent.get("properties", {}))
            close = difflib.get_close_matches(str(path[-1]), known, 1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(known))}"
            return f"there is no such field: {hint}"
        case "missing":
            return f"is missing{f': {description}' if description else ''}"
        case "value_error":
            return str(error["msg"]).removeprefix("Value error, ")
        case "literal_error":
            return f"{error['input']!r} is not one of {error['ctx']['expected']}"
        case _:
            pass
    rules = [rule["message"] for rule in (schema or {}).get("x-kubernetes-validations", [])]
    if rules:
        return f"{error['input']!r}: {rules[0]}"
    said = str(error["msg"])
    return f"{error['input']!r}: {said[0].lower()}{said[1:]}" + (f" ({description})" if description else "")


@cache
def _schemas() -> dict[str, dict[str, Any]]:
    found = {}
    for document in definitions().values():
        schema = document["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        found[str(document["spec"]["names"]["kind"])] = dict(schema)
    return found


def _schema(kind: str, path: Path) -> dict[str, Any] | None:
    """The CRD's schema of a field; None when it has none."""
    schema: Any = _schemas()[kind]
    for part in path:
        if not isinstance(schema, dict):
            return None
        if isinstance(part, int):
            schema = schema.get("items")
        else:
            schema = schema.get("properties", {}).get(part, schema.get("additionalProperties"))
    return schema if isinstance(schema, dict) else None


def _references(documents: Sequence[Document]) -> Iterable[Problem]:
    """Keys and rows of ConfigMaps that are in the same files; those that are elsewhere are `doctor`'s."""
    maps = {d.name: d for d in documents if d.kind == "ConfigMap"}
    for document in documents:
        if document.kind != CYCLE_KIND:
            continue
        for path, reference in _named(document.body):
            if not isinstance(reference, Mapping) or (config_map := maps.get(str(reference.get("name")))) is None:
                continue
            data, key = config_map.body.get("data") or {}, str(reference.get("key"))
            if key not in data:
                there = ", ".join(sorted(data)) or "none"
                yield document.problem(path, f"ConfigMap {config_map.name} has no key {key} (it has: {there})")
                continue
            _, wrong = rows_of(str(data[key]))
            if wrong:
                yield config_map.problem(("data", key), wrong)


def _named(body: Mapping[str, Any]) -> Iterable[tuple[Path, Any]]:
    spec: Any = body.get("spec") or {}
    evaluation = spec.get("evaluation") if isinstance(spec, Mapping) else None
    suites = evaluation.get("suites") if isinstance(evaluation, Mapping) else None
    for index, suite in enumerate(suites if isinstance(suites, list) else []):
        cases = suite.get("cases") if isinstance(suite, Mapping) else None
        if isinstance(cases, Mapping) and "configMap" in cases:
            yield ("spec", "evaluation", "suites", index, "cases", "configMap"), cases["configMap"]
    curation = spec.get("curation") if isinstance(spec, Mapping) else None
    anchors = curation.get("anchors") if isinstance(curation, Mapping) else None
    if isinstance(anchors, Mapping):
        yield ("spec", "curation", "anchors", "configMap"), anchors.get("configMap")


# Places


def child(node: yaml.Node | None, part: str | int) -> yaml.Node | None:
    """The value below a mapping's key or a sequence's index."""
    if isinstance(node, yaml.MappingNode):
        return next((value for key, value in node.value if key.value == part), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        found: yaml.Node = node.value[part]
        return found
    return None


def line_of(node: yaml.Node, path: Path) -> int:
    """The line of the deepest part of the path that is written, from 1."""
    line = node.start_mark.line
    at: yaml.Node | None = node
    for part in path:
        keys = [key for key, _ in at.value if key.value == part] if isinstance(at, yaml.MappingNode) else []
        at = child(at, part)
        if at is None:
            break
        line = keys[0].start_mark.line if keys else at.start_mark.line
    return line + 1


def written(path: Path) -> str:
    """`spec.evaluation.suites[0].margin`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def parsed(path: str) -> Path:
    """The other way round, for what the API server calls a field."""
    parts: list[str | int] = []
    for piece in path.split("."):
        name, *indices = piece.split("[")
        if name:
            parts.append(name)
        parts += [int(i.rstrip("]")) if i.rstrip("]").isdigit() else i.rstrip("]") for i in indices]
    return tuple(parts)


def refused(document: Document, status: str) -> list[Problem]:
    """What the API server said to a dry run: its Status object, as problems at their places."""
    try:
        said = json.loads(status)
        causes = (said.get("details") or {}).get("causes") or []
        message = str(said["message"])
    except (ValueError, KeyError, AttributeError, TypeError):
        return [document.problem((), status.strip())]
    found = []
    for cause in causes:
        path = parsed(str(cause.get("field", "")).removeprefix("<nil>"))
        found.append(document.problem(path, _spoken(document.kind, path, str(cause.get("message", message)))))
    return found or [document.problem((), message)]


def _spoken(kind: str, path: Path, said: str) -> str:
    """The sentence of the rule that was broken, without the value that Kubernetes puts before it."""
    schema = _schema(kind, path) if kind in _SPECS else None
    sentences = [str(rule["message"]) for rule in (schema or {}).get("x-kubernetes-validations", [])]
    return next((sentence for sentence in sentences if sentence in said), said)
