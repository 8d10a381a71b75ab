"""Exports: a version's model in formats that other runtimes load, and where they are uploaded to.

Room: api. Pure; touches nothing.
"""

from typing import Annotated, Literal, get_args

from pydantic import ConfigDict, Field, StringConstraints, WithJsonSchema

from ratchet_api.base import Model, Observed, Signed, matches, rule, rules
from ratchet_api.data import SecretRef
from ratchet_api.promotion import ApiUrl
from ratchet_api.training import StageJob

ExportFormat = Literal["safetensors", "gguf-f16", "gguf-q8_0", "gguf-q4_k_m", "mlx"]
EXPORT_FORMATS: tuple[ExportFormat, ...] = get_args(ExportFormat)

_WORD = r"[A-Za-z0-9]([A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
HUB_REPOSITORY_PATTERN = rf"^{_WORD}/{_WORD}$"
_PART = r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*"
OCI_REPOSITORY_PATTERN = rf"^([A-Za-z0-9-]+\.)*[A-Za-z0-9-]+(:[0-9]{{1,5}})?(/{_PART})+$"
LICENSE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9.+() -]{0,126}$"

HubRepository = Annotated[
    str,
    StringConstraints(pattern=HUB_REPOSITORY_PATTERN, max_length=200),
    WithJsonSchema(matches(HUB_REPOSITORY_PATTERN, 'write the model\'s name at the hub as "organisation/name"', 200)),
]
OciRepository = Annotated[
    str,
    StringConstraints(pattern=OCI_REPOSITORY_PATTERN, max_length=255),
    WithJsonSchema(
        matches(
            OCI_REPOSITORY_PATTERN,
            'write registry and repository without scheme and tag, such as "registry.example.com/models/assistant"',
            255,
        )
    ),
]
License = Annotated[
    str,
    StringConstraints(pattern=LICENSE_PATTERN, max_length=128),
    WithJsonSchema(matches(LICENSE_PATTERN, 'write an SPDX expression, such as "Apache-2.0"', 128)),
]


class HubUpload(Model):
    """A repository at a model hub that speaks the Hugging Face protocol."""

    repository: HubRepository
    """organisation/name; it is created when it does not exist."""
    private: bool = True
    """Whether a repository that is created is private; one that exists is left as it is."""
    endpoint: ApiUrl | None = None
    """Address of the hub; absent means huggingface.co."""
    token_secret: SecretRef
    """Secret whose key HF_TOKEN may write to the repository."""


class OciUpload(Model):
    """A repository in a container registry: each format becomes an artifact of the CNCF model format (ModelPack)."""

    repository: OciRepository
    """Registry and repository, without scheme and tag."""
    plain_http: bool = False
    """Speaks http instead of https: for a registry inside the cluster."""
    credentials_secret: SecretRef | None = None
    """Secret of type kubernetes.io/dockerconfigjson; absent means that the registry asks for no login."""


class Export(StageJob):
    """The export stage: a Job of its own, beside the rollout and never in its way."""

    formats: Annotated[
        list[ExportFormat],
        Field(
            min_length=1,
            max_length=len(EXPORT_FORMATS),
            json_schema_extra=rules(
                rule("self.all(f, self.exists_one(g, g == f))", "export.formats: name each format once")
            ),
        ),
    ]
    """safetensors: base and adapter merged; gguf-*: for llama.cpp, in 16, 8 or about 4.5 bits; mlx: for Apple's MLX."""
    when: Literal["Promoted", "Accepted", "Asked"] = "Promoted"
    """Promoted: once it is the champion; Accepted: as soon as the gate accepts it; Asked: only when a person asks. The
    annotation ratchet.dev/export (`ratchet export VERSION`) asks at any time."""
    license: License | None = None
    """SPDX expression of the exported model's licence, for card and artifact; an upload needs it."""
    hub: HubUpload | None = None
    """Upload to a model hub, with a model card; absent means none."""
    oci: OciUpload | None = None
    """Upload to a container registry; absent means none."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "has(self.license) || !(has(self.hub) || has(self.oci))",
                'export.license: what is uploaded says its licence: write an SPDX expression, such as "Apache-2.0"',
            )
        )
    )


class Exported(Observed):
    """One format of a version, in storage, after it was loaded again and compared with base and adapter."""

    format: ExportFormat
    """Which."""
    uri: str
    """Folder in storage."""
    digest: str
    """Digest that its manifest has."""
    bytes: int
    """Size of its files."""
    error: Signed
    """Root mean square difference of its logits from those of base and adapter, over the spread of the latter."""
    effect: Signed
    """Share of the adapter's effect on the logits that it shows: 1 is all of it, 0 is the bare base model."""
    agreement: Signed
    """Share of the positions at which it would say the same token."""


class HubRevision(Observed):
    """What was uploaded to a hub."""

    repository: str
    """organisation/name."""
    revision: str
    """The commit."""
    tag: str
    """The tag on it: the version's name."""


class OciArtifact(Observed):
    """One format in a registry."""

    format: ExportFormat
    """Which."""
    digest: str
    """Digest of its manifest in the registry: REPOSITORY@DIGEST pulls it."""
    tag: str
    """Its tag."""


class ExportResult(Observed):
    """What an export brought."""

    formats: list[Exported] = Field(default_factory=list, max_length=8)
    """The formats in storage."""
    hub: HubRevision | None = None
    """At the hub."""
    oci: list[OciArtifact] = Field(default_factory=list, max_length=8)
    """In the registry."""
