"""The parts of Kubernetes' own objects that the operator reads.

Room: operator, clients. Pure; touches nothing. Never written back.
"""

from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from ratchet_api.base import ObjectMeta

EARLIEST = datetime.min.replace(tzinfo=UTC)


class Kubernetes(BaseModel):
    """Base: camelCase in JSON, everything else that is there is ignored."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _absent_is_null(cls, value: Any) -> Any:
        """Go writes `null` for an empty list or map in some places."""
        return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


class OwnerReference(Kubernetes):
    """One owner."""

    kind: str
    name: str
    uid: str
    controller: bool = False


class Meta(ObjectMeta):
    """Metadata with the owners."""

    owner_references: list[OwnerReference] = Field(default_factory=list)

    def owned_by(self, uid: str) -> bool:
        """Whether the object with that uid is an owner."""
        return any(owner.uid == uid for owner in self.owner_references)


class ManagedFields(Kubernetes):
    """What one manager has written."""

    manager: str = ""
    operation: str = ""
    subresource: str = ""
    time: datetime | None = None
    fields: dict[str, Any] = Field(default_factory=dict, alias="fieldsV1")


class ManagedMeta(Meta):
    """Metadata with the managers of the fields."""

    managed_fields: list[ManagedFields] = Field(default_factory=list)

    def managers(self, *path: str) -> list[str]:
        """Names of those who own a field of the object itself, the latest writer last."""
        return self._owners([entry for entry in self.managed_fields if not entry.subresource], path)

    def writers(self, *path: str) -> list[str]:
        """The same, and those who wrote it by a subresource (`kubectl scale`)."""
        return self._owners(self.managed_fields, path)

    def _owners(self, entries: list[ManagedFields], path: tuple[str, ...]) -> list[str]:
        owners = [entry for entry in entries if _has(entry.fields, path)]
        return [entry.manager for entry in sorted(owners, key=lambda entry: entry.time or EARLIEST)]


def _has(fields: dict[str, Any], path: tuple[str, ...]) -> bool:
    for part in path:
        if f"f:{part}" not in fields:
            return False
        fields = fields[f"f:{part}"]
    return True


class StatusCondition(Kubernetes):
    """Condition of a pod, a Job or a Deployment."""

    type: str
    status: str
    reason: str = ""
    message: str = ""
    last_transition_time: datetime | None = None


class Terminated(Kubernetes):
    """How a container ended."""

    exit_code: int
    reason: str = ""
    message: str = ""
    finished_at: datetime | None = None


class WaitingState(Kubernetes):
    """Why a container does not run yet."""

    reason: str = ""
    message: str = ""


class ContainerState(Kubernetes):
    """Exactly one of them, or none."""

    waiting: WaitingState | None = None
    terminated: Terminated | None = None


class ContainerStatus(Kubernetes):
    """State of one container."""

    name: str
    ready: bool = False
    restart_count: int = 0
    state: ContainerState = Field(default_factory=ContainerState)
    last_state: ContainerState = Field(default_factory=ContainerState)

    @property
    def ended(self) -> Terminated | None:
        """The latest end of it, be it running again or not."""
        return self.state.terminated or self.last_state.terminated


class PodStatus(Kubernetes):
    """Status of a pod."""

    phase: str = "Pending"
    reason: str = ""
    message: str = ""
    pod_ip: str = Field(default="", alias="podIP")
    conditions: list[StatusCondition] = Field(default_factory=list)
    init_container_statuses: list[ContainerStatus] = Field(default_factory=list)
    container_statuses: list[ContainerStatus] = Field(default_factory=list)


class Pod(Kubernetes):
    """A pod of a stage, an arm or the gateway."""

    metadata: Meta
    status: PodStatus = Field(default_factory=PodStatus)

    def condition(self, kind: str) -> StatusCondition | None:
        """The condition of that type."""
        return next((c for c in self.status.conditions if c.type == kind), None)

    @property
    def ready(self) -> bool:
        """Ready and not on its way out."""
        found = self.condition("Ready")
        return found is not None and found.status == "True" and self.metadata.deletion_timestamp is None

    @property
    def containers(self) -> list[ContainerStatus]:
        """Init containers first."""
        return [*self.status.init_container_statuses, *self.status.container_statuses]

    @property
    def start(self) -> str:
        """Another one whenever one of its containers was started again."""
        return f"{self.metadata.uid}/{sum(container.restart_count for container in self.containers)}"


class JobStatus(Kubernetes):
    """Status of a Job."""

    conditions: list[StatusCondition] = Field(default_factory=list)
    start_time: datetime | None = None
    active: int = 0
    succeeded: int = 0
    failed: int = 0


class JobSpec(Kubernetes):
    """Spec of a Job, as far as others than the operator change it."""

    suspend: bool = False


class Job(Kubernetes):
    """A stage's Job."""

    metadata: Meta
    spec: JobSpec = Field(default_factory=JobSpec)
    status: JobStatus = Field(default_factory=JobStatus)

    def condition(self, kind: str) -> StatusCondition | None:
        """The condition of that type, if it is True."""
        return next((c for c in self.status.conditions if c.type == kind and c.status == "True"), None)


class TrainJob(Job):
    """A train stage's TrainJob: its conditions Complete, Failed and Suspended and its `suspend` are those of a Job."""


class Container(Kubernetes):
    """A container of a pod template, as far as drift is looked for."""

    name: str
    image: str = ""


class PodTemplateSpec(Kubernetes):
    containers: list[Container] = Field(default_factory=list)


class PodTemplate(Kubernetes):
    spec: PodTemplateSpec = Field(default_factory=PodTemplateSpec)


class DeploymentSpec(Kubernetes):
    """Spec of a Deployment, as far as drift is looked for."""

    replicas: int = 1
    template: PodTemplate = Field(default_factory=PodTemplate)


class DeploymentStatus(Kubernetes):
    """Status of a Deployment."""

    observed_generation: int = 0
    replicas: int = 0
    updated_replicas: int = 0
    ready_replicas: int = 0
    conditions: list[StatusCondition] = Field(default_factory=list)


class Deployment(Kubernetes):
    """An arm's Deployment."""

    metadata: ManagedMeta
    spec: DeploymentSpec = Field(default_factory=DeploymentSpec)
    status: DeploymentStatus = Field(default_factory=DeploymentStatus)


class ConfigMap(Kubernetes):
    """A ConfigMap."""

    metadata: Meta
    data: dict[str, str] = Field(default_factory=dict)
    binary_data: dict[str, str] = Field(default_factory=dict)

    @property
    def keys(self) -> set[str]:
        """Names of all keys."""
        return {*self.data, *self.binary_data}


class Secret(Kubernetes):
    """That a Secret exists; its content is not asked for, see Kube.secret_data."""

    metadata: Meta


class LeaseSpec(Kubernetes):
    """Who leads."""

    holder_identity: str = ""
    lease_duration_seconds: int = 0
    acquire_time: datetime | None = None
    renew_time: datetime | None = None
    lease_transitions: int = 0


class Lease(Kubernetes):
    """The leader's Lease."""

    metadata: Meta
    spec: LeaseSpec = Field(default_factory=LeaseSpec)
