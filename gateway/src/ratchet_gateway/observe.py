"""What the gateway reads of cycles and pods, and how a routing table is made of it.

Room: gateway. Pure; touches nothing. Objects are read leniently: a field of a newer operator must not stop routing.
"""

from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from ratchet_api.base import ObjectMeta, Observed
from ratchet_api.cycle import Arm as ArmStatus
from ratchet_api.cycle import ServingStatus
from ratchet_api.names import ARM_LABEL, CYCLE_LABEL, VERSION_LABEL
from ratchet_gateway.routes import Arm, Cycle, CycleKey, Pod, Storage, Table, chat_url

POD_SELECTOR = f"{ARM_LABEL}=true"


class _Storage(Observed):
    uri: str
    endpoint: str | None = None
    region: str = "us-east-1"


class _Spec(Observed):
    storage: _Storage


class _Former(Observed):
    version: str


class _Status(Observed):
    serving: ServingStatus = Field(default_factory=ServingStatus)
    rejected: list[_Former] = Field(default_factory=list)
    last_good: list[_Former] = Field(default_factory=list)


class CycleView(Observed):
    """The parts of an ImprovementCycle that routing and recording go by."""

    metadata: ObjectMeta
    spec: _Spec
    status: _Status = Field(default_factory=_Status)

    @property
    def key(self) -> CycleKey:
        return self.metadata.namespace, self.metadata.name


class _PodCondition(Observed):
    type: str
    status: str


class _PodStatus(Observed):
    phase: str = ""
    pod_ip: str = Field("", alias="podIP")
    conditions: list[_PodCondition] = Field(default_factory=list)


class PodView(Observed):
    """The parts of a Pod that routing goes by."""

    metadata: ObjectMeta
    status: _PodStatus = Field(default_factory=_PodStatus)

    @property
    def ready(self) -> bool:
        """Running, ready and not on its way out."""
        return (
            self.metadata.deletion_timestamp is None
            and self.status.phase == "Running"
            and bool(self.status.pod_ip)
            and any(c.type == "Ready" and c.status == "True" for c in self.status.conditions)
        )

    @property
    def arm(self) -> tuple[str, str, str]:
        """(namespace, cycle, version) by its labels."""
        labels = self.metadata.labels
        return self.metadata.namespace, labels.get(CYCLE_LABEL, ""), labels.get(VERSION_LABEL, "")


PodKey = tuple[str, str, int]
"""(uid, address, port): what makes a pod another one to its load counter."""


@dataclass(frozen=True, slots=True)
class _Builder:
    pods: Mapping[tuple[str, str, str], list[PodView]]
    known: MutableMapping[PodKey, Pod]
    used: set[PodKey]

    def cycle(self, view: CycleView) -> Cycle:
        serving, storage = view.status.serving, view.spec.storage
        former = [entry.version for entry in (*view.status.rejected, *view.status.last_good)]
        former += [entry.version for entry in serving.retired]
        return Cycle(
            namespace=view.metadata.namespace,
            name=view.metadata.name,
            storage=Storage(storage.uri, storage.endpoint, storage.region),
            stable=None if serving.stable is None else self.arm(view.key, serving.stable),
            candidate=None if serving.candidate is None else self.arm(view.key, serving.candidate),
            former=tuple(dict.fromkeys(former)),
        )

    def arm(self, key: CycleKey, status: ArmStatus) -> Arm:
        views = self.pods.get((*key, status.version), [])
        weight = min(100, max(0, status.weight))
        return Arm(status.version, status.model_name, weight, tuple(self.pod(view, status.port) for view in views))

    def pod(self, view: PodView, port: int) -> Pod:
        key = (view.metadata.uid, view.status.pod_ip, port)
        self.used.add(key)
        pod = self.known.get(key)
        if pod is None:
            pod = self.known[key] = Pod(view.metadata.name, chat_url(view.status.pod_ip, port))
        return pod


def build_table(cycles: Iterable[CycleView], pods: Iterable[PodView], known: MutableMapping[PodKey, Pod]) -> Table:
    """The routing table of what is there now. `known` carries the pods' load counters from table to table; pods that
    are gone are taken out of it."""
    ready: dict[tuple[str, str, str], list[PodView]] = {}
    for view in pods:
        if view.ready:
            ready.setdefault(view.arm, []).append(view)
    builder = _Builder(ready, known, set())
    table = Table({view.key: builder.cycle(view) for view in cycles})
    for key in [key for key in known if key not in builder.used]:
        del known[key]
    return table


def parse_cycle(raw: Any) -> CycleView:
    """Raises pydantic's ValidationError."""
    return CycleView.model_validate(raw)


def parse_pod(raw: Any) -> PodView:
    """Raises pydantic's ValidationError."""
    return PodView.model_validate(raw)
