"""Where a cycle's model and data come from, and how sessions become a dataset.

Room: api. Pure; touches nothing.
"""

from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints, WithJsonSchema

from ratchet_api.base import (
    ArtifactURI,
    Digest,
    Duration,
    Fraction,
    Model,
    Name,
    ObjectName,
    Text,
    matches,
    rule,
    rules,
)

MODEL_URI_PATTERN = (
    r"^(hf://[A-Za-z0-9._-]+/[A-Za-z0-9._-]+@[A-Za-z0-9._-]+"
    r"|s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/[A-Za-z0-9!_.*'()=/-]+"
    r"|pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/[A-Za-z0-9._/-]*)?"
    r"|file:///[^ ]+)$"
)
ModelURI = Annotated[
    str,
    StringConstraints(pattern=MODEL_URI_PATTERN),
    WithJsonSchema(
        matches(
            MODEL_URI_PATTERN,
            'write the model as "hf://org/name@revision" (the revision is required), "s3://bucket/prefix", '
            '"pvc://claim/path" or "file:///path/in/the/image"',
            1024,
        )
    ),
]


class BaseModelRef(Model):
    """The open-weight model that is served and improved."""

    uri: ModelURI
    """hf://org/name@revision, s3://bucket/prefix, pvc://claim/path or file:///path/in/the/image."""
    digest: Digest | None = None
    """Digest of the model's files (as `manifest.json` has it); when given, nothing else is loaded."""


class SecretRef(Model):
    """A Secret in the cycle's namespace."""

    name: ObjectName
    """Name of the Secret."""


class Storage(Model):
    """Object storage of the cycle: sessions, datasets, versions."""

    uri: ArtifactURI
    """s3://bucket/prefix below which everything of this cycle lives."""
    endpoint: (
        Annotated[
            str,
            StringConstraints(pattern=r"^https?://[^ ]+$"),
            WithJsonSchema(matches(r"^https?://[^ ]+$", 'write the endpoint as "https://host:port"')),
        ]
        | None
    ) = None
    """Endpoint of an S3-compatible server; absent means AWS, or AWS_ENDPOINT_URL of the credentials Secret."""
    region: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,32}$", max_length=32)] = "us-east-1"
    """Region of the bucket."""
    credentials_secret: SecretRef | None = None
    """Secret whose keys (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, optionally AWS_ENDPOINT_URL) the stages get as
    environment; absent means workload identity."""


class ConfigMapKey(Model):
    """One key of a ConfigMap in the cycle's namespace."""

    name: ObjectName
    """Name of the ConfigMap."""
    key: Annotated[str, StringConstraints(pattern=r"^[-._a-zA-Z0-9]{1,253}$", max_length=253)]
    """Key whose value is the file's content."""


class Sessions(Model):
    """Which recorded sessions a run looks at."""

    window: Duration = timedelta(days=28)
    """How far back from the start of the run interactions are read."""
    feedback_delay: Duration = timedelta(days=7)
    """How much longer than an interaction's own day its feedback is looked for."""


class Category(Model):
    """A category of interactions, recognised by keywords in the person's message."""

    name: Name
    """Name of the category, as it appears in the dataset's statistics."""
    keywords: list[Text] = Field(min_length=1, max_length=64)
    """Case-insensitive; one whole-word match is enough."""


DEFAULT_CATEGORIES = [
    Category(
        name="security",
        keywords=["secret", "password", "token", "vulnerability", "permission", "encrypt", "auth", "security"],
    ),
    Category(
        name="documentation",
        keywords=["document", "documentation", "readme", "docstring", "changelog", "explain", "describe"],
    ),
    Category(
        name="deployment", keywords=["deploy", "deployment", "release", "rollout", "kubernetes", "docker", "helm"]
    ),
    Category(name="format", keywords=["format", "json", "yaml", "table", "markdown", "csv", "lint", "style"]),
    Category(name="error", keywords=["error", "exception", "traceback", "fail", "failed", "bug", "crash", "fix"]),
]


class Anchors(Model):
    """General examples mixed into the training set so that the model does not forget what it knew."""

    config_map: ConfigMapKey
    """JSONL of {"messages": [...]} rows."""
    fraction: Fraction = Decimal("0.2")
    """Share of the final training set that is anchors (as many as there are, each at most once)."""


class Identity(Model):
    """A question and an answer about who the assistant is; always in the training set."""

    prompt: Text
    """The person's message."""
    answer: Text
    """The answer the model must give."""


class Curation(Model):
    """How interactions become training examples."""

    threshold: Fraction = Decimal("0.9")
    """Interactions with a lower effectiveness score are left out: a thumbs-up or a correction scores 1.0, none 0.5, a
    thumbs-down 0."""
    categories: list[Category] = Field(default=DEFAULT_CATEGORIES, max_length=32)
    """Categories by keywords; an interaction takes the first that matches, others are uncategorised and counted."""
    max_per_category: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Upper bound of examples of one category, the newest kept; absent means no bound."""
    variations: Annotated[int, Field(ge=0, le=5)] = 5
    """How many of the five phrasings of each prompt are added to the original one."""
    identity: list[Identity] = Field(default_factory=list, max_length=64)
    """Examples that are always in the training set."""
    anchors: Anchors | None = None
    """The mix against forgetting."""
    max_line_bytes: Annotated[int, Field(ge=1024, le=67_108_864)] = 1_048_576
    """A longer line of the sessions is quarantined, in bytes."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!has(self.categories) || self.categories.all(c, self.categories.exists_one(d, d.name == c.name))",
                "curation.categories: two categories have one name; give each its own",
            )
        )
    )


class DatasetRef(Model):
    """A curated dataset in storage."""

    uri: ArtifactURI
    """Folder of the dataset."""
    digest: Digest
    """Digest that its manifest has."""


class AdapterRef(Model):
    """A finished LoRA adapter in storage."""

    uri: ArtifactURI
    """Folder with adapter_config.json, adapter_model.safetensors and manifest.json."""
    digest: Digest
    """Digest that its manifest has; an adapter with another one is refused before it serves."""


Precision = Literal["auto", "fp32", "bf16"]
