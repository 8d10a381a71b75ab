"""The parts of Services, EndpointSlices, HTTPRoutes and HorizontalPodAutoscalers that the operator reads.

Room: operator, clients. Pure; touches nothing. Of an HTTPRoute the rules are kept as they are, because they are written
back whole: its lists are atomic (sigs.k8s.io/gateway-api, config/crd/standard).
"""

import copy
from typing import Any

from pydantic import Field

from ratchet_operator.clients.objects import Kubernetes, ManagedMeta, Meta, StatusCondition
from ratchet_operator.clients.transport import JSON


class ServicePort(Kubernetes):
    """One port of a Service."""

    name: str = ""
    port: int


class ServiceSpec(Kubernetes):
    """Spec of a Service, as far as drift is looked for."""

    selector: dict[str, str] = Field(default_factory=dict)
    ports: list[ServicePort] = Field(default_factory=list)


class Service(Kubernetes):
    """A Service of the arms."""

    metadata: ManagedMeta
    spec: ServiceSpec = ServiceSpec()


class TargetRef(Kubernetes):
    """What an endpoint is."""

    kind: str = ""
    name: str = ""


class EndpointConditions(Kubernetes):
    """State of an endpoint. Absent means ready."""

    ready: bool = True


class Endpoint(Kubernetes):
    """One endpoint."""

    conditions: EndpointConditions = EndpointConditions()
    target_ref: TargetRef = TargetRef()


class EndpointSlice(Kubernetes):
    """Some endpoints of a Service."""

    metadata: Meta
    endpoints: list[Endpoint] = Field(default_factory=list)

    @property
    def ready_pods(self) -> set[str]:
        """Names of the pods behind it that are ready."""
        return {e.target_ref.name for e in self.endpoints if e.conditions.ready and e.target_ref.kind == "Pod"}


class ScaleTarget(Kubernetes):
    """What is scaled."""

    kind: str = ""
    name: str = ""


class AutoscalerSpec(Kubernetes):
    """Spec of a HorizontalPodAutoscaler."""

    scale_target_ref: ScaleTarget = ScaleTarget()


class HorizontalPodAutoscaler(Kubernetes):
    """Who scales what."""

    metadata: Meta
    spec: AutoscalerSpec = AutoscalerSpec()


class ParentRef(Kubernetes):
    """Where a route attaches: most often a Gateway."""

    group: str = "gateway.networking.k8s.io"
    kind: str = "Gateway"
    namespace: str = ""
    name: str = ""
    section_name: str = ""
    port: int | None = None


class RouteCondition(StatusCondition):
    """What a parent's controller says."""

    observed_generation: int = 0


class RouteParent(Kubernetes):
    """What one controller says about one parent."""

    parent_ref: ParentRef = ParentRef()
    controller_name: str = ""
    conditions: list[RouteCondition] = Field(default_factory=list)

    def condition(self, kind: str) -> RouteCondition | None:
        """The condition of that type."""
        return next((c for c in self.conditions if c.type == kind), None)


class RouteSpec(Kubernetes):
    """Spec of an HTTPRoute."""

    parent_refs: list[ParentRef] = Field(default_factory=list)
    rules: list[JSON] = Field(default_factory=list)


class RouteStatus(Kubernetes):
    """Status of an HTTPRoute."""

    parents: list[RouteParent] = Field(default_factory=list)


class HTTPRoute(Kubernetes):
    """A route of the Gateway API."""

    metadata: ManagedMeta
    spec: RouteSpec = RouteSpec()
    status: RouteStatus = RouteStatus()

    def rule(self, wanted: str | None) -> int | None:
        """Index of the rule of that name or number; None for the only one. None when there is none, or several."""
        rules = self.spec.rules
        if wanted is None:
            return 0 if len(rules) == 1 else None
        named = [index for index, rule in enumerate(rules) if rule.get("name") == wanted]
        if named:
            return named[0]
        return int(wanted) if wanted.isdigit() and int(wanted) < len(rules) else None

    def weights(self, rule: int) -> dict[str, int]:
        """Backend -> weight in a rule; Services of the route's namespace by name, others as `kind namespace/name`."""
        found: dict[str, int] = {}
        for backend in self.spec.rules[rule].get("backendRefs") or []:
            name = self._backend(backend)
            found[name] = found.get(name, 0) + int(backend.get("weight", 1))
        return found

    def weighed(self, rule: int, weights: dict[str, int]) -> list[JSON]:
        """All rules, with other weights for some Services of one rule and nothing else changed."""
        rules = copy.deepcopy(self.spec.rules)
        left = dict(weights)
        for backend in rules[rule]["backendRefs"]:
            name = self._backend(backend)
            if name in weights:
                # Named twice, for example for two ports, the first carries it.
                backend["weight"] = left.pop(name, 0)
        return rules

    def _backend(self, backend: dict[str, Any]) -> str:
        kind, namespace = backend.get("kind", "Service"), backend.get("namespace", self.metadata.namespace)
        if kind == "Service" and not backend.get("group") and namespace == self.metadata.namespace:
            return str(backend["name"])
        return f"{kind} {namespace}/{backend['name']}"

    def said(self, parent: ParentRef) -> list[RouteParent]:
        """What controllers say about one of the parents."""

        def key(ref: ParentRef) -> tuple[object, ...]:
            namespace = ref.namespace or self.metadata.namespace
            return ref.group, ref.kind, namespace, ref.name, ref.section_name, ref.port

        return [entry for entry in self.status.parents if key(entry.parent_ref) == key(parent)]
