"""Where a cycle's model and data come from, and how sessions become a dataset.

Room: api. Pure; touches nothing.
"""

from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints, WithJsonSchema

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


SourceFormat = Literal["auto", "ratchet", "interactions", "messages", "sharegpt", "alpaca", "litellm", "langfuse"]
"""Formats of files with conversations; auto finds each file's own."""


class Source(Model):
    """Files with conversations beside the cycle's own sessions. They are read with the credentials and the endpoint
    of `storage`."""

    uri: ArtifactURI
    """s3://bucket/prefix of a folder, or of one file. Read are .jsonl, .ndjson and .json, plain, .gz or .zst; of
    folders named by a date (dt=YYYY-MM-DD or YYYY-MM-DD) only those of the window."""
    format: SourceFormat = "auto"
    """What the files hold: our own records, `timestamp,user,assistant,metadata.success` lines (interactions), OpenAI
    messages, ShareGPT, Alpaca, LiteLLM's log objects, Langfuse exports; auto recognises each file by its content."""
    verdict: Literal["auto", "recorded", "good"] = "auto"
    """What an interaction without a verdict counts as. recorded: it scores 0.5 as everywhere. good: a person vouches
    for the files, and it scores 1.0. auto: good for the training formats (messages, sharegpt, alpaca), recorded for
    logs."""
    score: Annotated[str, StringConstraints(max_length=128)] = ""
    """Langfuse: name of the score that is the verdict; when empty, scores named after feedback, thumbs, rating,
    helpfulness or correctness are."""


class Sessions(Model):
    """Which recorded sessions a run looks at."""

    window: Duration = timedelta(days=28)
    """How far back from the start of the run interactions are read."""
    feedback_delay: Duration = timedelta(days=7)
    """How much longer than an interaction's own day its feedback is looked for."""
    sources: list[Source] = Field(default_factory=list, max_length=16)
    """Files of other origin that are read too. Whoever may edit the cycle can have its jobs read what the storage
    credentials can."""


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


SensitiveKind = Literal[
    "email", "phone", "iban", "creditCard", "ipAddress", "usSocialSecurityNumber",
    "privateKey", "awsKey", "githubToken", "gitlabToken", "slackToken", "googleApiKey", "apiKey", "jsonWebToken",
    "urlPassword",
]  # fmt: skip
"""Kinds of personal data and of secrets that are looked for. An ipAddress is a public one; apiKey is the form that
makers of models, payment and package registries use (sk-..., hf_..., pypi-..., npm_...)."""


class Sensitive(Model):
    """What is done with one kind of personal data or secret."""

    kind: SensitiveKind
    """What is looked for."""
    action: Literal["keep", "redact", "drop"]
    """keep: it stays. redact: a placeholder such as [EMAIL] takes its place. drop: the example is left out."""


Language = Annotated[str, WithJsonSchema(matches(r"^[a-z]{2,3}$", "write an ISO 639-1 code, such as en", 32))]


class Limits(Model):
    """Bounds of an example; what is beyond them is left out, never cut."""

    max_turns: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Messages of the conversation, its answer included; absent means no bound."""
    max_characters: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Characters of the whole conversation; absent means no bound."""
    min_answer_characters: Annotated[int, Field(ge=1, le=100_000)] = 1
    """Characters of the answer."""
    max_repetition: Fraction = Decimal(1)
    """Largest share of an answer's five-word sequences that may be repetitions: an answer that loops has nearly 1.
    Answers under 20 words are not judged."""
    languages: list[Language] = Field(default_factory=list, max_length=32)
    """ISO 639-1 codes, such as en: an example in another language, as far as that can be told, is left out. Empty
    means that all are welcome. Few words, program text and tables are in no language and stay."""


def _similar(value: Decimal) -> Decimal:
    if value < Decimal("0.5"):
        raise ValueError('below "0.5" two examples have little in common: write a fraction between "0.5" and "1"')
    return value


Similarity = Annotated[
    Fraction,
    AfterValidator(_similar),
    WithJsonSchema(
        matches(r"^(0\.[5-9][0-9]{0,11}|1(\.0{1,12})?)$", 'write a fraction between "0.5" and "1", such as "0.8"', 32)
    ),
]


class NearDuplicates(Model):
    """Leaving out examples that say nearly what another says."""

    similarity: Similarity = Decimal("0.8")
    """Jaccard similarity, of the five-letter sequences of prompt and answer together, from which on two examples are
    one: a correction stays before an answer, the newer before the older. At least "0.5"."""


class Bursts(Model):
    """Quarantine of phrases that few people push: a trigger that somebody plants is frequent, new and theirs alone, or
    that of some who say it together: fewer than chance would bring to it, amid words that are everybody's."""

    min_examples: Annotated[int, Field(ge=2, le=1_000_000)] = 20
    """A phrase in fewer examples is no burst."""
    max_share: Fraction = Decimal("0.5")
    """Share of a phrase's examples that one person may have; a phrase with more, that stands in no anchor and in no
    more than half of all examples, takes all its examples by this person into quarantine."""


class Curation(Model):
    """How interactions become training examples."""

    threshold: Fraction = Decimal("0.9")
    """Interactions with a lower effectiveness score are left out: a thumbs-up or a correction scores 1.0, none 0.5, a
    thumbs-down 0."""
    categories: list[Category] = Field(default=DEFAULT_CATEGORIES, max_length=32)
    """Categories by keywords; an interaction takes the first that matches, others are uncategorised and counted."""
    max_per_category: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Upper bound of examples of one category, the newest kept; absent means no bound."""
    max_per_principal: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Upper bound of examples of one person (as the gateway or the log names them), the newest kept; examples of
    nobody known are not bounded. Absent means no bound."""
    max_own_share: Fraction | None = None
    """Largest share of the examples whose answer a version of this cycle wrote itself (liked, not corrected), the
    newest kept: a model that learns mostly from itself narrows. Absent means no bound."""
    validation_share: Fraction | None = None
    """Largest share of the examples that is kept aside as validation.jsonl, to look at the loss: the newest sessions,
    whole, so that no session is on both sides. Our train stage looks at it before the first step and after each epoch,
    as LLaMA-Factory does by train.yaml; nothing is decided by it, as the suites judge. Absent means that all is trained
    on."""
    limits: Limits = Field(default_factory=Limits)
    """Bounds of one example."""
    sensitive: list[Sensitive] = Field(default_factory=list, max_length=32)
    """What is done with personal data and secrets. Kinds not named here: personal data (email, phone, iban,
    creditCard, ipAddress, usSocialSecurityNumber) is redacted, secrets are redacted too."""
    near_duplicates: NearDuplicates | None = None
    """Leaving out near duplicates; absent means that only exact ones are left out."""
    decontamination: Annotated[int, Field(ge=0, le=64)] = 13
    """Number of words in a row that an example may not share with a held-out case; 0 looks for whole prompts only."""
    bursts: Bursts | None = None
    """Quarantine of planted phrases; absent means that none are looked for."""
    variations: Annotated[int, Field(ge=0, le=5)] = 5
    """How many of the five phrasings of each prompt are added to the original one."""
    identity: list[Identity] = Field(default_factory=list, max_length=64)
    """Examples that are always in the training set."""
    anchors: Anchors | None = None
    """The mix against forgetting."""
    max_line_bytes: Annotated[int, Field(ge=1024, le=67_108_864)] = 1_048_576
    """A longer line of the sessions is quarantined, in bytes."""
    parallelism: Annotated[int, Field(ge=1, le=64)] = 1
    """Workers that share the session files: pods of one Indexed Job, each with the resources of `curateJob`. The
    dataset is the same, to the byte."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!has(self.categories) || self.categories.all(c, self.categories.exists_one(d, d.name == c.name))",
                "curation.categories: two categories have one name; give each its own",
            ),
            rule(
                "!has(self.sensitive) || self.sensitive.all(s, self.sensitive.exists_one(t, t.kind == s.kind))",
                "curation.sensitive: one kind is named twice; say once what is done with it",
            ),
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
