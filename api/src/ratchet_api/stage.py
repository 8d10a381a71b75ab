"""The contract between the operator and the trainer image: what a stage is told, and what it reports.

Room: api. Pure; touches nothing.

The input is one JSON file (names.STAGE_FILE) from an immutable ConfigMap. The report is JSON of at most
MAX_REPORT_BYTES, written to the container's termination message; big things go to storage and are referred to by
digest. Exit codes are those of sysexits.h where it has one.
"""

from datetime import timedelta
from enum import IntEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from ratchet_api.base import Digest, Duration, Observed, Signed, Time
from ratchet_api.cycle import DatasetNumbers
from ratchet_api.data import AdapterRef, BaseModelRef, Curation, DatasetRef, Sessions
from ratchet_api.evaluation import EvaluationPolicy, Suite
from ratchet_api.export import ExportFormat, ExportResult, HubUpload, OciUpload
from ratchet_api.training import Method, Recipe
from ratchet_api.version import Artifact, Provenance, SuiteResult, TrainingStatus

MAX_REPORT_BYTES = 4096


class ExitCode(IntEnum):
    """Exit codes of a stage; the Job's podFailurePolicy and the operator's retries go by them."""

    DONE = 0
    USER_ERROR = 64
    """EX_USAGE: bad settings; not retried."""
    DATA_ERROR = 65
    """EX_DATAERR: bad data; not retried."""
    BUG = 70
    """EX_SOFTWARE: not retried."""
    TRY_AGAIN = 75
    """EX_TEMPFAIL: infrastructure; retried."""
    KILLED = 137
    """SIGKILL, as a rule out of memory; retried once, smaller."""
    PREEMPTED = 143
    """SIGTERM; started again for free."""


class StageIdentity(BaseModel):
    """Whom a stage works for; labels its metrics and provenance."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    namespace: str
    cycle: str
    run: int | None = None
    version: str = ""
    attempt: int = 0
    storage_uri: str
    """s3://bucket/prefix of the cycle."""
    storage_endpoint: str | None = None
    """None: AWS_ENDPOINT_URL of the environment, or AWS."""
    storage_region: str = "us-east-1"


class _Input(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    identity: StageIdentity


class CurateInput(_Input):
    """sessions -> dataset."""

    stage: Literal["curate"] = "curate"
    until: Time
    """End of the window of sessions: the run's start."""
    sessions: Sessions
    curation: Curation
    base_model: BaseModelRef | None = None
    """What the dataset's train.yaml trains; nothing else of the dataset depends on it."""
    method: Method = "sft"
    """What it will be trained by: dpo and kto need what people preferred, and minExamples counts that."""
    min_examples: int
    suites: list[Suite]
    """Held-out cases (mounted below names.SUITES_DIR) that must never be in the training set. Anchors, if the curation
    names any, are mounted as names.ANCHORS_FILE."""


class TrainInput(_Input):
    """dataset -> adapter."""

    stage: Literal["train"] = "train"
    base_model: BaseModelRef
    dataset: DatasetRef
    hyperparameters: Recipe
    checkpoint_interval: Duration = timedelta(minutes=10)
    """Zero: only at SIGTERM."""


class Level(BaseModel):
    """What one version's look at the cases of a target may cost."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    """The look's, from 1: how many versions of the cycle these cases judge with it."""
    alpha: Signed
    """Its error rate: p has to be below it, and the bound is one-sided at 1 - alpha."""


class Levels(BaseModel):
    """What looks may cost, by what the cases ask. The operator decides it; only the stage can tell which cases these
    are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fresh: Level
    """For cases that judged no other version of the cycle."""
    known: dict[str, Level] = Field(default_factory=dict)
    """For others, by the digest of their suite's result."""

    def of(self, digest: str) -> Level:
        """For the cases with that digest."""
        return self.known.get(digest, self.fresh)


class EvaluateInput(_Input):
    """candidate and champion -> report. None as an adapter means the bare base model."""

    stage: Literal["evaluate"] = "evaluate"
    base_model: BaseModelRef
    candidate: AdapterRef | None
    champion: AdapterRef | None
    champion_version: str
    policy: EvaluationPolicy
    """Suites' cases are mounted below names.SUITES_DIR."""
    levels: Levels
    """At which error rate targets are judged."""
    dataset: DatasetRef | None = None
    """What the candidate was trained on, whose canaries scorer exposure looks for; None: it came finished."""
    batch_size: int


class ExportInput(_Input):
    """base and adapter -> the model in other formats, here and elsewhere."""

    stage: Literal["export"] = "export"
    base_model: BaseModelRef
    adapter: AdapterRef
    formats: list[ExportFormat]
    license: str | None = None
    hub: HubUpload | None = None
    oci: OciUpload | None = None
    dataset_digest: Digest | None = None
    """For the card: what it was trained on; None when the adapter came finished."""
    champion: str = ""
    """For the card: what it was compared with."""
    suites: list[SuiteResult] = Field(default_factory=list)
    """For the card: how it did."""


class FetchInput(_Input):
    """Init container of an arm: base (and adapter) into names.MODEL_DIR, verified against their digests."""

    stage: Literal["fetch"] = "fetch"
    base_model: BaseModelRef
    adapter: AdapterRef | None


StageInput = Annotated[
    CurateInput | TrainInput | EvaluateInput | ExportInput | FetchInput, Field(discriminator="stage")
]
STAGE_INPUT: TypeAdapter[CurateInput | TrainInput | EvaluateInput | ExportInput | FetchInput] = TypeAdapter(StageInput)

StageOutcome = Literal["Succeeded", "Skipped", "Failed"]


class StageReport(Observed):
    """What a stage says at its end. Exactly the numbers that a decision or a person needs."""

    stage: Literal["curate", "train", "evaluate", "export", "fetch"]
    """Which stage speaks."""
    outcome: StageOutcome
    """Skipped: fewer good examples than asked for (curate only)."""
    reason: str
    """A Reason."""
    message: str = ""
    """One sentence; for a failure, with the fix in it."""
    partial: bool = False
    """curate by several workers: this one's shard is done, and another one's report is the stage's."""
    artifact: Artifact | None = None
    """train: the adapter; evaluate: the report; curate: the dataset."""
    dataset: DatasetNumbers | None = None
    """curate: its numbers."""
    training: TrainingStatus | None = None
    """train: its numbers."""
    suites: list[SuiteResult] = Field(default_factory=list, max_length=16)
    """evaluate: one result a suite."""
    export: ExportResult | None = None
    """export: what it brought."""
    provenance: Provenance | None = None
    """What it was made from."""

    def encode(self) -> bytes:
        """Compact JSON within MAX_REPORT_BYTES; a long message is shortened, numbers never are.

        Raises ValueError when even without a message it is too long.
        """
        for length in (len(self.message), 1024, 256, 0):
            short = self.model_copy(update={"message": self.message[:length]})
            data = short.model_dump_json(by_alias=True, exclude_none=True, exclude_defaults=True).encode()
            if len(data) <= MAX_REPORT_BYTES:
                return data
        raise ValueError(f"a stage report of {len(data)} bytes is over the limit of {MAX_REPORT_BYTES}")


def digest_hex(digest: Digest) -> str:
    """The hexadecimal part of a digest, for a folder's name."""
    return digest.removeprefix("sha256:")


def dataset_uri(storage_uri: str, digest: Digest) -> str:
    """Folder of a dataset."""
    return f"{storage_uri.rstrip('/')}/datasets/{digest_hex(digest)}"


def attempt_uri(storage_uri: str, version: str, attempt: int, artifact: Literal["adapter", "report"]) -> str:
    """Folder of what one attempt of a version's stage makes."""
    return f"{storage_uri.rstrip('/')}/versions/{version}/{attempt}/{artifact}"


def export_uri(storage_uri: str, version: str, adapter: Digest, export_format: str) -> str:
    """Folder of one format of a version, over all attempts; the adapter's digest tells equal names apart."""
    return f"{storage_uri.rstrip('/')}/versions/{version}/exports/{digest_hex(adapter)[:12]}/{export_format}"


def checkpoints_uri(storage_uri: str, version: str) -> str:
    """Folder of the checkpoints of a version's training, over all attempts."""
    return f"{storage_uri.rstrip('/')}/versions/{version}/checkpoints"
