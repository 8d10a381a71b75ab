"""Base types of the resources: strict camelCase models, decimals, durations, digests and URIs.

Room: api. Pure; touches nothing.

Kubernetes resources carry no floats, so fractions are decimal strings ("0.05") and times are
durations ("90s", "5m", "1h30m"). In Python they are `decimal.Decimal` and `datetime.timedelta`.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
    WithJsonSchema,
)
from pydantic.alias_generators import to_camel


class Model(BaseModel):
    """A strict, immutable block of a resource. Unknown fields are refused; JSON names are camelCase."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True, use_attribute_docstrings=True
    )

    def dump(self) -> dict[str, Any]:
        """JSON-ready dict with camelCase keys, without unset optionals."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class Observed(Model):
    """A block of a status: read leniently, because an older or newer operator may have written it."""

    model_config = ConfigDict(extra="ignore")


def rule(expression: str, message: str) -> dict[str, str]:
    """One CEL rule of a CRD (`x-kubernetes-validations`), with the sentence that the person reads."""
    return {"rule": expression, "message": message}


def rules(*entries: Mapping[str, str]) -> dict[str, Any]:
    """`json_schema_extra` for a field or a model that carries CEL rules."""
    return {"x-kubernetes-validations": [dict(entry) for entry in entries]}


def matches(pattern: str, message: str, max_length: int = 512) -> dict[str, Any]:
    """JSON schema of a string that must match `pattern`; the API server answers with `message` otherwise."""
    escaped = pattern.replace("\\", "\\\\").replace("'", "\\'")
    return {"type": "string", "maxLength": max_length, **rules(rule(f"self.matches('{escaped}')", message))}


_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = r"^([0-9]+(ms|s|m|h|d))+$"


def parse_duration(value: object) -> object:
    """`"1h30m"` to a timedelta. Raises ValueError with an example in it for anything else."""
    if isinstance(value, timedelta):
        return value
    if not isinstance(value, str) or not re.fullmatch(_DURATION, value):
        raise ValueError(f'{value!r} is not a duration: write a number with a unit, such as "30s", "5m" or "6h"')
    return timedelta(seconds=sum(int(n) * _UNITS[u] for n, u in re.findall(r"([0-9]+)(ms|s|m|h|d)", value)))


def format_duration(value: timedelta) -> str:
    """A timedelta as the shortest exact string of `parse_duration`'s form."""
    milliseconds = round(value.total_seconds() * 1000)
    parts = []
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, milliseconds = divmod(milliseconds, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


Duration = Annotated[
    timedelta,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, when_used="json"),
    WithJsonSchema(matches(_DURATION, 'write a duration: a number with a unit, such as "30s", "5m" or "6h"', 32)),
]


def _decimal(value: object) -> object:
    if isinstance(value, float):
        raise ValueError(f'{value!r} must be quoted: write "{value}"')
    return value


def format_decimal(value: Decimal) -> str:
    """A Decimal in plain notation, never with an exponent."""
    return format(value, "f")


_PLACES = Decimal(1).scaleb(-12)


def format_rounded(value: Decimal) -> str:
    """A measured Decimal in plain notation, rounded to the 12 places that the schema allows (a p value of 3E-21)."""
    exponent = value.as_tuple().exponent
    return format(value.quantize(_PLACES) if isinstance(exponent, int) and exponent < -12 else value, "f")


_UNSIGNED = r"^[0-9]{1,12}(\.[0-9]{1,12})?$"

Unsigned = Annotated[
    Decimal,
    BeforeValidator(_decimal),
    Field(ge=0),
    PlainSerializer(format_decimal, when_used="json"),
    WithJsonSchema(matches(_UNSIGNED, 'write a decimal that is not negative, in quotes, such as "0.05"', 32)),
]
"""A decimal >= 0, written as a string."""

Fraction = Annotated[
    Decimal,
    BeforeValidator(_decimal),
    Field(ge=0, le=1),
    PlainSerializer(format_decimal, when_used="json"),
    WithJsonSchema(
        matches(r"^(0(\.[0-9]{1,12})?|1(\.0{1,12})?)$", 'write a fraction between "0" and "1", such as "0.9"', 32)
    ),
]
"""A decimal in [0, 1], written as a string."""

Signed = Annotated[
    Decimal,
    BeforeValidator(_decimal),
    PlainSerializer(format_rounded, when_used="json"),
    WithJsonSchema(matches(r"^-?[0-9]{1,12}(\.[0-9]{1,12})?$", 'write a decimal in quotes, such as "-1.5"', 32)),
]

DIGEST_PATTERN = r"^sha256:[0-9a-f]{64}$"
Digest = Annotated[
    str,
    StringConstraints(pattern=DIGEST_PATTERN),
    WithJsonSchema(matches(DIGEST_PATTERN, 'write a digest as "sha256:" and 64 hexadecimal digits', 71)),
]

NAME_PATTERN = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
Name = Annotated[
    str,
    StringConstraints(pattern=NAME_PATTERN),
    WithJsonSchema(matches(NAME_PATTERN, "write a name of lower-case letters, digits and dashes, at most 63 long", 63)),
]
ObjectName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?$", max_length=253)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=1024)]

ARTIFACT_URI_PATTERN = r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9!_.*'()=/-]*)?$"
ArtifactURI = Annotated[
    str,
    StringConstraints(pattern=ARTIFACT_URI_PATTERN),
    WithJsonSchema(matches(ARTIFACT_URI_PATTERN, 'write an object storage uri as "s3://bucket/prefix"', 1024)),
]


def _time(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError("a time must carry its zone")
    return value


def format_time(value: datetime) -> str:
    """RFC 3339 in UTC with microseconds, the form that every status timestamp has."""
    return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


Time = Annotated[
    datetime,
    AfterValidator(_time),
    PlainSerializer(format_time, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]


class ObjectMeta(BaseModel):
    """The parts of Kubernetes metadata that Ratchet reads. Never written back."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)

    name: str
    namespace: str = "default"
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None
