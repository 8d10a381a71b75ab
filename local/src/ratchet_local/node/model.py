"""The parts of a Pod that the node reads, as typed values.

Room: local. Pure. Unknown fields are dropped here: what a kubelet would honour and we cannot is refused in `admission`.
"""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel


class Part(BaseModel):
    """A block of a pod: camelCase, immutable, lenient about fields that are not ours."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)


def _or_empty(value: object) -> object:
    return {} if value is None else value


Map = Annotated[dict[str, str], BeforeValidator(_or_empty)]


class KeySelector(Part):
    name: str = ""
    key: str
    optional: bool = False


class FieldRef(Part):
    field_path: str


class ResourceFieldRef(Part):
    resource: str
    container_name: str = ""
    divisor: str = "0"


class EnvSource(Part):
    field_ref: FieldRef | None = None
    resource_field_ref: ResourceFieldRef | None = None
    config_map_key_ref: KeySelector | None = None
    secret_key_ref: KeySelector | None = None


class EnvVar(Part):
    name: str
    value: str = ""
    value_from: EnvSource | None = None


class ObjectRef(Part):
    name: str = ""
    optional: bool = False


class EnvFrom(Part):
    prefix: str = ""
    config_map_ref: ObjectRef | None = None
    secret_ref: ObjectRef | None = None


class KeyToPath(Part):
    key: str
    path: str
    mode: int | None = None


class ConfigMapSource(Part):
    name: str = ""
    items: list[KeyToPath] = Field(default_factory=list)
    optional: bool = False
    default_mode: int = 0o644


class SecretSource(Part):
    secret_name: str = ""
    name: str = ""
    """Projected sources call it so."""
    items: list[KeyToPath] = Field(default_factory=list)
    optional: bool = False
    default_mode: int = 0o644


class DownwardItem(Part):
    path: str
    field_ref: FieldRef | None = None
    resource_field_ref: ResourceFieldRef | None = None
    mode: int | None = None


class DownwardSource(Part):
    items: list[DownwardItem] = Field(default_factory=list)
    default_mode: int = 0o644


class TokenSource(Part):
    path: str
    audience: str = ""
    expiration_seconds: int = 3600


class ProjectedPart(Part):
    config_map: ConfigMapSource | None = None
    secret: SecretSource | None = None
    downward_api: DownwardSource | None = Field(default=None, alias="downwardAPI")
    service_account_token: TokenSource | None = None


class ProjectedSource(Part):
    sources: list[ProjectedPart] = Field(default_factory=list)
    default_mode: int = 0o644


class EmptyDirSource(Part):
    medium: str = ""
    size_limit: str | None = None


class HostPathSource(Part):
    path: str
    type: str = ""


class Volume(Part):
    name: str
    config_map: ConfigMapSource | None = None
    secret: SecretSource | None = None
    empty_dir: EmptyDirSource | None = None
    projected: ProjectedSource | None = None
    downward_api: DownwardSource | None = Field(default=None, alias="downwardAPI")
    host_path: HostPathSource | None = None


class VolumeMount(Part):
    name: str
    mount_path: str
    sub_path: str = ""
    sub_path_expr: str = ""
    read_only: bool = False


class HttpHeader(Part):
    name: str
    value: str


class HttpGet(Part):
    port: int | str
    path: str = "/"
    host: str = ""
    scheme: Literal["HTTP", "HTTPS"] = "HTTP"
    http_headers: list[HttpHeader] = Field(default_factory=list)


class TcpSocket(Part):
    port: int | str
    host: str = ""


class Exec(Part):
    command: list[str] = Field(default_factory=list)


class Sleep(Part):
    seconds: int


class Probe(Part):
    http_get: HttpGet | None = None
    tcp_socket: TcpSocket | None = None
    exec: Exec | None = None
    grpc: dict[str, Any] | None = None
    initial_delay_seconds: int = 0
    timeout_seconds: int = 1
    period_seconds: int = 10
    success_threshold: int = 1
    failure_threshold: int = 3
    termination_grace_period_seconds: int | None = None


class LifecycleAction(Part):
    exec: Exec | None = None
    http_get: HttpGet | None = None
    sleep: Sleep | None = None


class Lifecycle(Part):
    post_start: LifecycleAction | None = None
    pre_stop: LifecycleAction | None = None


class Port(Part):
    container_port: int
    name: str = ""


class Resources(Part):
    limits: Map = Field(default_factory=dict)
    requests: Map = Field(default_factory=dict)


class SecurityContext(Part):
    privileged: bool = False


class Container(Part):
    name: str
    image: str
    image_pull_policy: str = "IfNotPresent"
    command: list[str] = Field(default_factory=list)
    args: list[str] = Field(default_factory=list)
    working_dir: str = ""
    env: list[EnvVar] = Field(default_factory=list)
    env_from: list[EnvFrom] = Field(default_factory=list)
    ports: list[Port] = Field(default_factory=list)
    resources: Resources = Field(default_factory=Resources)
    volume_mounts: list[VolumeMount] = Field(default_factory=list)
    startup_probe: Probe | None = None
    readiness_probe: Probe | None = None
    liveness_probe: Probe | None = None
    lifecycle: Lifecycle | None = None
    termination_message_path: str = "/dev/termination-log"
    termination_message_policy: Literal["File", "FallbackToLogsOnError"] = "File"
    security_context: SecurityContext | None = None
    restart_policy: str | None = None


RestartPolicy = Literal["Always", "OnFailure", "Never"]


class ReadinessGate(Part):
    condition_type: str


class PodSpec(Part):
    containers: list[Container]
    init_containers: list[Container] = Field(default_factory=list)
    ephemeral_containers: list[Container] = Field(default_factory=list)
    volumes: list[Volume] = Field(default_factory=list)
    restart_policy: RestartPolicy = "Always"
    node_name: str = ""
    service_account_name: str = "default"
    automount_service_account_token: bool = True
    termination_grace_period_seconds: int = 30
    active_deadline_seconds: int | None = None
    hostname: str = ""
    host_network: bool = False
    readiness_gates: list[ReadinessGate] = Field(default_factory=list)


class Metadata(Part):
    name: str
    namespace: str
    uid: str
    generation: int = 0
    labels: Map = Field(default_factory=dict)
    annotations: Map = Field(default_factory=dict)
    creation_timestamp: datetime
    deletion_timestamp: datetime | None = None
    deletion_grace_period_seconds: int | None = None


class Running(Part):
    started_at: datetime


class Terminated(Part):
    exit_code: int
    reason: str = ""
    message: str = ""
    started_at: datetime | None = None
    finished_at: datetime | None = None
    container_id: str = Field(default="", alias="containerID")
    signal: int | None = None


class Waiting(Part):
    reason: str = ""
    message: str = ""


class ContainerState(Part):
    waiting: Waiting | None = None
    running: Running | None = None
    terminated: Terminated | None = None


class ContainerStatus(Part):
    name: str
    restart_count: int = 0
    state: ContainerState = Field(default_factory=ContainerState)
    last_state: ContainerState = Field(default_factory=ContainerState)
    container_id: str = Field(default="", alias="containerID")


class Condition(Part):
    type: str
    status: str
    reason: str = ""
    message: str = ""
    last_transition_time: datetime | None = None


class PodStatus(Part):
    phase: str = "Pending"
    reason: str = ""
    pod_ip: str = Field(default="", alias="podIP")
    start_time: datetime | None = None
    conditions: list[Condition] = Field(default_factory=list)
    container_statuses: list[ContainerStatus] = Field(default_factory=list)
    init_container_statuses: list[ContainerStatus] = Field(default_factory=list)


class Pod(Part):
    metadata: Metadata
    spec: PodSpec
    status: PodStatus = Field(default_factory=PodStatus)

    @property
    def key(self) -> str:
        """namespace/name, for people."""
        return f"{self.metadata.namespace}/{self.metadata.name}"

    def reference(self, field_path: str | None = None) -> dict[str, str]:
        """An event's `involvedObject`."""
        reference = {
            "apiVersion": "v1",
            "kind": "Pod",
            "namespace": self.metadata.namespace,
            "name": self.metadata.name,
            "uid": self.metadata.uid,
        }
        return reference | ({"fieldPath": field_path} if field_path else {})
