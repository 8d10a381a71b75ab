"""Typed reads and guarded writes of Kubernetes objects.

Room: operator, clients. Every write passes the guard first, so that a process that does not lead cannot act.
"""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ratchet_api.base import ObjectMeta
from ratchet_api.cycle import ImprovementCycle, ImprovementCycleStatus
from ratchet_api.names import CYCLE_PLURAL, FIELD_MANAGER, GROUP_VERSION, VERSION_PLURAL
from ratchet_api.version import ModelVersion, ModelVersionStatus
from ratchet_operator.clients.objects import Lease, Meta, Secret
from ratchet_operator.clients.transport import JSON, AlreadyExists, NotFound, Transport
from ratchet_operator.errors import Conflict, InvalidObject, Waiting
from ratchet_operator.metrics import Metrics

PAGE = 500
"""Objects of one page of a long list: what has to be held in memory at a time."""
T = TypeVar("T", bound=BaseModel)
METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"


@dataclass(frozen=True)
class Resource:
    """Where objects of a kind live in the API."""

    api_version: str
    """`v1` or `group/version`."""
    plural: str
    """Lower-case plural."""

    def path(self, namespace: str, name: str = "", part: str = "") -> str:
        """URL path of the collection (of all namespaces if `namespace` is empty), an object, or its part `status`."""
        root = "api" if "/" not in self.api_version else "apis"
        scope = f"namespaces/{namespace}" if namespace else ""
        return "/" + "/".join(piece for piece in (root, self.api_version, scope, self.plural, name, part) if piece)


RESOURCES: dict[str, Resource] = {
    "ImprovementCycle": Resource(GROUP_VERSION, CYCLE_PLURAL),
    "ModelVersion": Resource(GROUP_VERSION, VERSION_PLURAL),
    "Pod": Resource("v1", "pods"),
    "ConfigMap": Resource("v1", "configmaps"),
    "Secret": Resource("v1", "secrets"),
    "Job": Resource("batch/v1", "jobs"),
    "TrainJob": Resource("trainer.kubeflow.org/v1alpha1", "trainjobs"),
    "TrainingRuntime": Resource("trainer.kubeflow.org/v1alpha1", "trainingruntimes"),
    "ClusterTrainingRuntime": Resource("trainer.kubeflow.org/v1alpha1", "clustertrainingruntimes"),
    "Deployment": Resource("apps/v1", "deployments"),
    "Workload": Resource("apps/v1", "deployments"),
    "PodDisruptionBudget": Resource("policy/v1", "poddisruptionbudgets"),
    "Lease": Resource("coordination.k8s.io/v1", "leases"),
    "Event": Resource("events.k8s.io/v1", "events"),
    "Service": Resource("v1", "services"),
    "EndpointSlice": Resource("discovery.k8s.io/v1", "endpointslices"),
    "HTTPRoute": Resource("gateway.networking.k8s.io/v1", "httproutes"),
    "HorizontalPodAutoscaler": Resource("autoscaling/v2", "horizontalpodautoscalers"),
}


def _unguarded() -> None:
    """The only operator there is."""


class Kube:
    """What reconcilers use; see Transport for the errors of every method."""

    def __init__(
        self, transport: Transport, guard: Callable[[], None] = _unguarded, metrics: Metrics | None = None
    ) -> None:
        self._transport = transport
        self._may_write = guard
        """Raises NotLeading when this process must not write."""
        self._metrics = metrics

    def over(self, wrap: Callable[[Transport], Transport]) -> "Kube":
        """The same with another transport around this one's; what it does is not counted."""
        return Kube(wrap(self._transport), self._may_write)

    def _guard(self, verb: str, kind: str) -> None:
        self._may_write()
        if self._metrics is not None:
            self._metrics.writes.labels(verb, kind).inc()

    async def get(self, kind: type[T], namespace: str, name: str) -> T | None:
        """The object, or None. Raises InvalidObject when it cannot be read as its type."""
        # A Secret's content is none of our business: ask for its metadata only.
        accept = METADATA_ONLY if kind is Secret else None
        try:
            raw = await self._transport.request("get", RESOURCES[kind.__name__].path(namespace, name), accept=accept)
        except NotFound:
            return None
        return parse(kind, raw)

    async def secret_data(self, namespace: str, name: str) -> dict[str, str] | None:
        """A Secret's content, base64, or None: for those that promotion.git, notifications and tracking name, only."""
        try:
            raw = await self._transport.request("get", RESOURCES["Secret"].path(namespace, name))
        except NotFound:
            return None
        return dict(raw.get("data") or {})

    async def select(self, kind: type[T], namespace: str, labels: str = "", fields: str = "") -> list[T]:
        """Objects of a namespace that match label and field selectors; those that cannot be read are left out."""
        query = {"labelSelector": labels, "fieldSelector": fields}
        raw = await self._transport.request(
            "get", RESOURCES[kind.__name__].path(namespace), query={k: v for k, v in query.items() if v}
        )
        found = []
        for item in raw.get("items") or []:
            try:
                found.append(parse(kind, item))
            except InvalidObject:
                continue  # its own reconcile says so in its status
        return found

    async def pages(self, kind: str, namespace: str, labels: str = "") -> AsyncIterator[list[JSON]]:
        """All objects of a kind as they come, a page at a time; `namespace` empty: of all namespaces."""
        query = {"limit": str(PAGE)} | ({"labelSelector": labels} if labels else {})
        while True:
            raw = await self._transport.request("get", RESOURCES[kind].path(namespace), query=query)
            yield list(raw.get("items") or ())
            more = (raw.get("metadata") or {}).get("continue")
            if not more:
                return
            query["continue"] = more

    async def apply(self, manifest: JSON, manager: str = FIELD_MANAGER, force: bool = True) -> None:
        """Server-side apply: creates it, or makes these fields so and nobody else's.

        Without `force`, raises Conflict when another manager says otherwise about one of them.
        """
        self._guard("apply", manifest["kind"])
        meta = manifest["metadata"]
        await self._transport.request(
            "patch",
            RESOURCES[manifest["kind"]].path(meta["namespace"], meta["name"]),
            body=manifest,
            query={"fieldManager": manager, "force": "true" if force else "false"},
            content_type="application/apply-patch+yaml",
        )

    async def write_route_rules(self, meta: ObjectMeta, rules: list[JSON]) -> None:
        """Replace an HTTPRoute's rules, and nothing else of it, unless it has changed since it was read (Conflict)."""
        self._guard("patch", "HTTPRoute")
        await self._transport.request(
            "patch",
            RESOURCES["HTTPRoute"].path(meta.namespace, meta.name),
            body={"metadata": {"resourceVersion": meta.resource_version}, "spec": {"rules": rules}},
            query={"fieldManager": FIELD_MANAGER},
            content_type="application/merge-patch+json",
        )

    async def create(self, manifest: JSON, owner: str | None = None) -> bool:
        """Create it; False when it is there already. `owner`: uid that an object in its place must be owned by.

        Raises Waiting when an object of that name belongs to an earlier owner that is being collected.
        """
        self._guard("create", manifest["kind"])
        meta = manifest["metadata"]
        resource = RESOURCES[manifest["kind"]]
        try:
            await self._transport.request(
                "post", resource.path(meta["namespace"]), body=manifest, query={"fieldManager": FIELD_MANAGER}
            )
        except AlreadyExists:
            if owner is not None:
                await self._check_owner(resource, meta["namespace"], meta["name"], owner)
            return False
        return True

    async def _check_owner(self, resource: Resource, namespace: str, name: str, owner: str) -> None:
        meta = await self._metadata(resource, namespace, name)
        if meta is None:
            raise Waiting(f"{resource.plural} {name} vanished while it was looked at", 0.5)
        if not meta.owned_by(owner):
            raise Waiting(f"{resource.plural} {name} belongs to an earlier owner; waiting until it is collected", 2.0)

    async def delete(self, kind: type[BaseModel] | str, namespace: str, name: str, uid: str | None = None) -> bool:
        """Delete it with its dependants, in the background; False when it is not there.

        `uid`: of the object that was seen, so that a request which arrives late cannot hit its successor (Conflict).
        """
        name_of_kind = kind if isinstance(kind, str) else kind.__name__
        self._guard("delete", name_of_kind)
        resource = RESOURCES[name_of_kind]
        body: JSON = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if uid is not None:
            body["preconditions"] = {"uid": uid}
        try:
            await self._transport.request("delete", resource.path(namespace, name), body=body)
        except NotFound:
            return False
        return True

    async def exists(self, kind: str, namespace: str, name: str) -> bool:
        """Whether there is an object of that name, whoever owns it."""
        return await self._metadata(RESOURCES[kind], namespace, name) is not None

    async def delete_child(self, kind: str, namespace: str, name: str, owner: str) -> bool:
        """Delete it if the object with the uid `owner` owns it; False when there is no such child.

        What takes its place in between is left alone (Conflict).
        """
        meta = await self._metadata(RESOURCES[kind], namespace, name)
        return meta is not None and meta.owned_by(owner) and await self.delete(kind, namespace, name, meta.uid)

    async def _metadata(self, resource: Resource, namespace: str, name: str) -> Meta | None:
        try:
            raw = await self._transport.request("get", resource.path(namespace, name), accept=METADATA_ONLY)
        except NotFound:
            return None
        return Meta.model_validate(raw["metadata"])

    async def write_cycle_status(self, cycle: ImprovementCycle, status: ImprovementCycleStatus) -> ImprovementCycle:
        """Replace the status unless the object has changed since it was read (Conflict)."""
        return parse(ImprovementCycle, await self._write_status("ImprovementCycle", cycle.metadata, status.dump()))

    async def write_version_status(self, version: ModelVersion, status: ModelVersionStatus) -> ModelVersion:
        """Replace the status unless the object has changed since it was read (Conflict)."""
        return parse(ModelVersion, await self._write_status("ModelVersion", version.metadata, status.dump()))

    async def write_conditions(self, kind: str, meta: ObjectMeta, conditions: list[JSON]) -> None:
        """Only the conditions, of an object whose other parts cannot be read."""
        self._guard("status", kind)
        body = {
            "metadata": {"resourceVersion": meta.resource_version},
            "status": {"conditions": conditions, "observedGeneration": meta.generation},
        }
        path = RESOURCES[kind].path(meta.namespace, meta.name, "status")
        await self._change("patch", path, body, "application/merge-patch+json")

    async def _write_status(self, kind: str, meta: ObjectMeta, status: JSON) -> JSON:
        self._guard("status", kind)
        resource = RESOURCES[kind]
        # PUT on the status subresource takes nothing but the status; the spec stays whoever's it is.
        body = {
            "apiVersion": resource.api_version,
            "kind": kind,
            "metadata": {"name": meta.name, "namespace": meta.namespace, "resourceVersion": meta.resource_version},
            "status": status,
        }
        return await self._change("put", resource.path(meta.namespace, meta.name, "status"), body)

    async def _change(self, method: str, path: str, body: JSON, content_type: str | None = None) -> JSON:
        """Of an object that was read before: one that has been deleted since is a Conflict like any other change."""
        try:
            return await self._transport.request(
                method, path, body=body, query={"fieldManager": FIELD_MANAGER}, content_type=content_type
            )
        except NotFound as error:
            raise Conflict(f"{error}: deleted since it was read") from error

    # The Lease is written by those who do not lead yet, so these two do not ask the guard.

    async def create_lease(self, manifest: JSON) -> Lease:
        """Raises AlreadyExists when another process was faster."""
        path = RESOURCES["Lease"].path(manifest["metadata"]["namespace"])
        return parse(Lease, await self._transport.request("post", path, body=manifest))

    async def replace_lease(self, manifest: JSON) -> Lease:
        """Raises Conflict when another process was faster."""
        meta = manifest["metadata"]
        path = RESOURCES["Lease"].path(meta["namespace"], meta["name"])
        return parse(Lease, await self._transport.request("put", path, body=manifest))

    async def create_event(self, manifest: JSON) -> None:
        """Tell people; an event of that name that is there already says it."""
        self._guard("create", "Event")
        path = RESOURCES["Event"].path(manifest["metadata"]["namespace"])
        try:
            await self._transport.request("post", path, body=manifest)
        except AlreadyExists:
            return


def parse(kind: type[T], raw: JSON) -> T:
    """Raw JSON to its type. Raises InvalidObject with the first field that does not fit."""
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        conditions: Any = (raw.get("status") or {}).get("conditions") or []
        raise InvalidObject(
            f"{field}: {first['msg']}", ObjectMeta.model_validate(raw["metadata"]), list(conditions)
        ) from error
