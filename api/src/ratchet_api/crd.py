"""Custom resource definitions, generated from the models: `python -m ratchet_api.crd crds/`.

Room: api. `schema()` and `definition()` are pure; only `main()` writes files.

Kubernetes wants structural schemas: no $ref, no anyOf for "or null", no titles, a type everywhere. Defaults of
nested blocks become `{}` so that the API server fills in the inner defaults itself; status carries no defaults.
"""

import json
import sys
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from ratchet_api.base import Model, format_decimal, format_duration
from ratchet_api.cycle import ImprovementCycle
from ratchet_api.names import API_VERSION, CYCLE_KIND, CYCLE_PLURAL, GROUP, VERSION_KIND, VERSION_PLURAL
from ratchet_api.version import ModelVersion

Schema = dict[str, Any]

_COLUMNS: dict[str, list[tuple[str, str, str]]] = {
    CYCLE_KIND: [
        ("Phase", "string", ".status.phase"),
        ("Champion", "string", ".status.serving.stable.version"),
        ("Candidate", "string", ".status.serving.candidate.version"),
        ("Weight", "integer", ".status.serving.candidate.weight"),
        ("Checks", "string", ".status.rollout.summary"),
        ("Next run", "string", ".status.nextRunTime"),
        ("Age", "date", ".metadata.creationTimestamp"),
    ],
    VERSION_KIND: [
        ("Cycle", "string", ".spec.cycle"),
        ("Phase", "string", ".status.phase"),
        ("Parent", "string", ".spec.parent"),
        ("Examples", "integer", ".status.training.examples"),
        ("Loss", "string", ".status.training.loss"),
        ("Target", "string", ".status.evaluation.target"),
        ("Guardrail", "string", ".status.evaluation.guardrail"),
        ("Age", "date", ".metadata.creationTimestamp"),
    ],
}
# What a field selector may name: the versions of one cycle, also those that a person applied without labels.
_SELECTABLE = {VERSION_KIND: [{"jsonPath": ".spec.cycle"}]}
_SHORT = {CYCLE_KIND: "cycle", VERSION_KIND: "mv"}


class _Defaults(GenerateJsonSchema):
    """Writes defaults as a person would: "5m" rather than ISO 8601, "0.05" rather than a number, no nulls."""

    def encode_default(self, dft: Any) -> Any:
        match dft:
            case timedelta():
                return format_duration(dft)
            case Decimal():
                return format_decimal(dft)
            case Model():
                return dft.dump()
            case list():
                return [self.encode_default(item) for item in dft]
            case _:
                return super().encode_default(dft)


def _inline(node: Any, definitions: Schema, keep_defaults: bool) -> Any:
    if isinstance(node, list):
        return [_inline(item, definitions, keep_defaults) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        target = definitions[node["$ref"].rsplit("/", 1)[1]]
        node = {**target, **{k: v for k, v in node.items() if k != "$ref"}}
    for combinator in ("anyOf", "allOf"):
        branches = [b for b in node.get(combinator, []) if b.get("type") != "null"]
        if len(branches) == 1:
            outer = {k: v for k, v in node.items() if k != combinator}
            if outer.get("default") is None:
                outer.pop("default", None)
            return _inline({**branches[0], **outer}, definitions, keep_defaults)
    return _structural(node, definitions, keep_defaults)


def _structural(node: Schema, definitions: Schema, keep_defaults: bool) -> Schema:
    out: Schema = {}
    for key, value in node.items():
        if key in ("title", "discriminator", "propertyNames"):
            continue
        if key == "default":
            if keep_defaults and value is not None:
                out[key] = {} if isinstance(value, dict) else value
        elif key == "properties":
            out[key] = {name: _inline(child, definitions, keep_defaults) for name, child in value.items()}
        elif key == "additionalProperties":
            if isinstance(value, dict):
                out[key] = _inline(value, definitions, keep_defaults)
        elif key == "const":
            out["enum"] = [value]
        elif key in ("enum", "required", "x-kubernetes-validations", "x-kubernetes-list-map-keys"):
            out[key] = value
        elif key == "description":
            out[key] = " ".join(value.split())
        elif key == "exclusiveMinimum" and isinstance(value, int | float):
            out["minimum"], out["exclusiveMinimum"] = value, True
        else:
            out[key] = _inline(value, definitions, keep_defaults)
    if out.get("x-kubernetes-list-map-keys"):
        _require_keys(out)
    return out


def _require_keys(node: Schema) -> None:
    item = node["items"]
    item["required"] = sorted({*item.get("required", []), *node["x-kubernetes-list-map-keys"]})


def schema(model: type[BaseModel], keep_defaults: bool = True) -> Schema:
    """The structural OpenAPI schema of a model."""
    whole = model.model_json_schema(by_alias=True, mode="validation", schema_generator=_Defaults)
    definitions = whole.pop("$defs", {})
    result: Schema = _inline(whole, definitions, keep_defaults)
    return result


_UNSEEN = {"observedGeneration": 0}
"""status of a new object: generations begin at 1."""


def _block(annotation: object) -> type[BaseModel]:
    if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        raise TypeError(f"{annotation!r} is not a model")
    return annotation


def definition(model: type[ImprovementCycle] | type[ModelVersion], kind: str, plural: str) -> Schema:
    """The whole CustomResourceDefinition of a resource."""
    fields = model.model_fields
    spec, status = _block(fields["spec"].annotation), _block(fields["status"].annotation)
    columns = [{"name": name, "type": kind_, "jsonPath": path} for name, kind_, path in _COLUMNS[kind]]
    names = {"kind": kind, "listKind": f"{kind}List", "plural": plural, "singular": kind.lower(),
             "shortNames": [_SHORT[kind]], "categories": ["ratchet"]}  # fmt: skip
    # Children are named after their object, so its own name has to leave room for their endings.
    name_rule = {
        "rule": "self.metadata.name.size() <= 50 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
        "message": "metadata.name: write at most 50 lower-case letters, digits and dashes, beginning with a letter",
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}", "labels": {"app.kubernetes.io/name": "ratchet"}},
        "spec": {
            "group": GROUP,
            "names": names,
            "scope": "Namespaced",
            "versions": [
                {
                    "name": API_VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": columns,
                    **({"selectableFields": _SELECTABLE[kind]} if kind in _SELECTABLE else {}),
                    "schema": {
                        "openAPIV3Schema": {
                            "type": "object",
                            "description": " ".join((model.__doc__ or "").split()),
                            "required": ["spec"],
                            "x-kubernetes-validations": [name_rule],
                            "properties": {
                                "apiVersion": {"type": "string", "description": "ratchet.dev/v1alpha1"},
                                "kind": {"type": "string", "description": kind},
                                "metadata": {"type": "object"},
                                "spec": schema(spec),
                                # An object that no operator has looked at yet is not finished, also for kstatus.
                                "status": schema(status, keep_defaults=False) | {"default": _UNSEEN},
                            },
                        }
                    },
                }
            ],
        },
    }


def definitions() -> dict[str, Schema]:
    """File name -> CustomResourceDefinition."""
    return {
        f"{GROUP}_{CYCLE_PLURAL}.yaml": definition(ImprovementCycle, CYCLE_KIND, CYCLE_PLURAL),
        f"{GROUP}_{VERSION_PLURAL}.yaml": definition(ModelVersion, VERSION_KIND, VERSION_PLURAL),
    }


def render(document: Schema) -> str:
    """The file's text. JSON is YAML, and needs no library beyond the standard one; one space keeps lines short."""
    head = "# Generated from api/src/ratchet_api by `make crds`; do not edit.\n"
    return head + json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def main(folder: Path) -> None:
    """Writes the files into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, document in definitions().items():
        (folder / name).write_text(render(document))


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        main(Path(argument))
