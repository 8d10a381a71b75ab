"""Reference pages, generated from the vocabulary: `python -m ratchet_api.reference docs/`.

Room: api. `fields_page()` and `reasons_page()` are pure but for reading this package's own source; only `main()`
writes files.

The fields are taken from the custom resource definitions, i.e. from what the API server enforces; the reasons from the
enumerations' source, because Python keeps no docstrings of enumeration members.
"""

import ast
import inspect
import json
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from ratchet_api import reasons
from ratchet_api.crd import Schema, definitions
from ratchet_api.names import ABORT_ANNOTATION, RUN_ANNOTATION

_HEAD = "<!-- Generated from api/src/ratchet_api by `make docs`; do not edit. -->\n"
_LONG = 80  # characters of a default in a table


@dataclass(frozen=True)
class Member:
    """One member of an enumeration as its source shows it."""

    value: str
    """What is written into a status."""
    meaning: str
    """Its docstring, on one line."""
    group: str
    """The last comment above it that stands on a line of its own; empty before the first."""


def members(enumeration: type[StrEnum]) -> list[Member]:
    """Members with their docstrings, in the order of the source. Raises ValueError for one without a docstring."""
    source = textwrap.dedent(inspect.getsource(enumeration))
    lines = source.splitlines()
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    found = []
    for statement, following in zip(body.body, [*body.body[1:], None], strict=True):
        if not isinstance(statement, ast.Assign):
            continue
        target = statement.targets[0]
        assert isinstance(target, ast.Name)
        if not (isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)):
            raise ValueError(f"{enumeration.__name__}.{target.id} has no docstring below it: say what it means")
        comments = [line.strip()[1:].strip() for line in lines[: statement.lineno] if line.strip().startswith("#")]
        meaning = " ".join(str(following.value.value).split())
        found.append(Member(enumeration[target.id].value, meaning, comments[-1] if comments else ""))
    return found


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [header, ("---",) * len(header), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def reasons_page() -> str:
    """Condition types and reasons, grouped as in the source."""
    parts = [
        _HEAD,
        "# Conditions and reasons\n",
        "What `kubectl describe cycle` and `kubectl describe mv` say, and what a person does about it. "
        "Events carry the same reasons.\n",
        "## Condition types\n",
        _table(("Type", "Meaning"), [(f"`{m.value}`", m.meaning) for m in members(reasons.ConditionType)]),
    ]
    entries = members(reasons.Reason)
    for group in dict.fromkeys(entry.group for entry in entries):
        rows = [(f"`{m.value}`", m.meaning) for m in entries if m.group == group]
        parts += [f"## {group or 'Reasons'}\n", _table(("Reason", "Meaning"), rows)]
    return "\n".join(parts)


def _bounds(node: Schema) -> str:
    low, high = node.get("minimum"), node.get("maximum")
    if low is not None and high is not None:
        return f", {low} to {high}"
    if low is not None:
        return f", at least {low}"
    return "" if high is None else f", at most {high}"


def _kind(node: Schema) -> str:
    """A field's type in words."""
    if "enum" in node:
        return " or ".join(f"`{value}`" for value in node["enum"])
    match node.get("type"):
        case "array":
            most = f", at most {node['maxItems']}" if "maxItems" in node else ""
            least = f", at least {node['minItems']}" if "minItems" in node else ""
            return f"list of {_kind(node['items'])}{least}{most}"
        case "object" if "additionalProperties" in node:
            return f"map to {_kind(node['additionalProperties'])}"
        case "object":
            return "block"
        case "string" if node.get("format") == "date-time":
            return "time"
        case kind:
            return f"{kind}{_bounds(node)}"


def _default(node: Schema, required: bool) -> str:
    if required:
        return "**required**"
    if "default" not in node or node["default"] == {}:
        return ""
    text = json.dumps(node["default"])
    return f"`{text}`" if len(text) <= _LONG else "below"


def _long_defaults(node: Schema) -> str:
    """Defaults that are too long for a cell of the table, an entry a line."""
    text = ""
    for name, child in node["properties"].items():
        default = child.get("default")
        if isinstance(default, list) and len(json.dumps(default)) > _LONG:
            entries = ",\n".join(f" {json.dumps(entry)}" for entry in default)
            text += f"\nDefault of `{name}`:\n\n```json\n[\n{entries}\n]\n```\n"
    return text


def _messages(node: Schema) -> list[str]:
    return [rule["message"] for rule in node.get("x-kubernetes-validations", [])]


def _spec_row(name: str, node: Schema, required: bool) -> tuple[str, ...]:
    hint = "" if _nested(node) is not None else "".join(f" *({message})*" for message in _messages(node))
    return f"`{name}`", _kind(node), _default(node, required), node.get("description", "") + hint


def _status_row(name: str, node: Schema) -> tuple[str, ...]:
    return f"`{name}`", _kind(node), node.get("description", "")


def _nested(node: Schema) -> Schema | None:
    """The block inside a field: itself, a list's item or a map's value."""
    inner = node
    while inner.get("type") == "array" or "additionalProperties" in inner:
        inner = inner["items"] if inner.get("type") == "array" else inner["additionalProperties"]
    return inner if "properties" in inner else None


def _blocks(path: str, node: Schema) -> Iterator[tuple[str, Schema]]:
    """A block and all blocks below it, outer ones first."""
    yield path, node
    for name, child in node["properties"].items():
        inner = _nested(child)
        if inner is not None:
            suffix = "[]" if child.get("type") == "array" else ""
            yield from _blocks(f"{path}.{name}{suffix}", {"x-kubernetes-validations": [], **inner, "_field": child})


def _spec_section(path: str, node: Schema) -> str:
    required = set(node.get("required", []))
    rows = [_spec_row(name, child, name in required) for name, child in node["properties"].items()]
    text = f"### {path}\n\n{node.get('description', '')}\n\n{_table(('Field', 'Type', 'Default', 'Meaning'), rows)}"
    text += _long_defaults(node)
    messages = list(dict.fromkeys(_messages(node) + _messages(node.get("_field", node))))
    if messages:
        text += "\nRefused at apply otherwise:\n\n" + "".join(f"- {message}\n" for message in messages)
    return text


def _status_section(path: str, node: Schema) -> str:
    rows = [_status_row(name, child) for name, child in node["properties"].items()]
    return f"### {path}\n\n{node.get('description', '')}\n\n{_table(('Field', 'Type', 'Meaning'), rows)}"


def fields_page() -> str:
    """Every field of both resources, as the API server enforces them."""
    parts = [
        _HEAD,
        "# Fields of the resources\n",
        'Decimals are strings (`"0.05"`), durations too (`"30s"`, `"5m"`, `"1h30m"`). An unknown field is refused. '
        "`kubectl explain cycle.spec.rollout` says the same as this page.\n",
        "## Annotations that a person may set on an ImprovementCycle\n",
        _table(
            ("Annotation", "Meaning"),
            [
                (f"`{RUN_ANNOTATION}`", "Any new value starts one run now."),
                (f"`{ABORT_ANNOTATION}`", "The name of the candidate version to roll back now."),
            ],
        ),
    ]
    for document in definitions().values():
        whole = document["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        names = document["spec"]["names"]
        parts.append(f"## {names['kind']}\n\n{whole['description']} Short name `{names['shortNames'][0]}`.\n")
        parts += [f"- {message}\n" for message in _messages(whole)]
        for block, section in (("spec", _spec_section), ("status", _status_section)):
            parts += [section(path, node) for path, node in _blocks(block, whole["properties"][block])]
    return "\n".join(parts)


def pages() -> dict[str, str]:
    """File name -> text."""
    return {"reference.md": fields_page(), "reasons.md": reasons_page()}


def main(folder: Path) -> None:
    """Writes the pages into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
