"""How versions are served: runtime, replicas, resources, and who splits the traffic.

Room: api. Pure; touches nothing.
"""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from ratchet_api.base import Model, Name, ObjectName, rule, rules
from ratchet_api.names import child_name
from ratchet_api.pods import PodOverrides, Resources

Router = Literal["gateway", "httpRoute", "replicas"]


class HttpRoute(Model):
    """The Gateway API route, in the cycle's namespace, whose weights the operator sets. Everything else of it stays
    whoever's it is."""

    name: ObjectName
    """Name of the HTTPRoute."""
    rule: ObjectName | None = None
    """Which of its rules: the rule's name, or its index from 0 in quotes; absent means the only one."""
    stable_service: Name | None = None
    """Service of the champion's arm; absent means the cycle's name with -stable. Made by the operator; one that is
    there already must have no selector."""
    candidate_service: Name | None = None
    """Service of the candidate's arm; absent means the cycle's name with -candidate. Made in the same way."""


class ReplicaSplit(Model):
    """One Service over both arms, whose pods' numbers are the split."""

    service: Name | None = None
    """Name of the Service; absent means the cycle's name. Made by the operator; one that is there already must have no
    selector."""
    max_surge: Annotated[int, Field(ge=1, le=1000)] = 1
    """Pods of both arms together that may run beyond serving.replicas while their numbers change."""


class Workload(Model):
    """A Deployment of yours that serves the champion. The operator applies only the fields that name the version; the
    other version of a rollout runs in a companion cloned from its pod template."""

    kind: Literal["Deployment"] = "Deployment"
    """Kind of it."""
    name: ObjectName
    """Its name, in the cycle's namespace."""
    container: Name | None = None
    """The container that serves the model; absent means the only one."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """Port of the OpenAI API in its pods."""


_OF_ARMS = ("runtime", "replicas", "resources", "pod", "maxModelLen", "extraArgs", "image")
_NOT_SAID = " && ".join(
    # The API server fills in these three by itself.
    ["self.runtime == 'vllm'", "self.replicas == 1", "(!has(self.extraArgs) || self.extraArgs.size() == 0)"]
    + [f"!has(self.{field})" for field in ("resources", "pod", "maxModelLen", "image")]
)


class Serving(Model):
    """The serving target of a cycle. Every version gets a Deployment (an arm) of its own, unless workload names one."""

    runtime: Literal["vllm", "transformers"] = "vllm"
    """vllm needs a GPU; transformers serves small models on CPU."""
    version: Name | None = None
    """The pointer that Git may hold: only this version is rolled out, and one that served before returns at once,
    without training, gate and steps. Absent: every accepted version gets its rollout."""
    replicas: Annotated[int, Field(ge=1, le=1000)] = 1
    """Pods of each arm; with router: replicas, of both arms together. An arm that a HorizontalPodAutoscaler targets is
    left to it."""
    router: Router = "gateway"
    """Who splits the traffic: Ratchet's gateway, by session; an HTTPRoute of the Gateway API, by request; or the number
    of pods of each arm behind one Service, by connection."""
    http_route: HttpRoute | None = None
    """For router: httpRoute."""
    replica_split: ReplicaSplit | None = None
    """For router: replicas."""
    workload: Workload | None = None
    """A Deployment that you have already, to be served in place."""
    keep_serving: bool = True
    """When the cycle is deleted, workload goes on serving the champion; false: it becomes again what it was before."""
    resources: Resources = Field(default_factory=Resources)
    """Compute resources of the serving container."""
    pod: PodOverrides = Field(default_factory=PodOverrides)
    """Placement and identity of the arms' pods."""
    max_model_len: Annotated[int, Field(ge=64, le=16_777_216)] | None = None
    """Longest prompt and answer together, in tokens; absent means what the model supports."""
    extra_args: list[Annotated[str, StringConstraints(min_length=1, max_length=256)]] = Field(
        default_factory=list, max_length=64
    )
    """Further arguments of the runtime's server, appended as they are."""
    image: Annotated[str, StringConstraints(pattern=r"^[^\s]{1,512}$", max_length=512)] | None = None
    """Image of the runtime; absent means the operator's default for it."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "(has(self.router) && self.router == 'httpRoute') == has(self.httpRoute)",
                "serving.httpRoute and serving.router: httpRoute go together: write both, with the route's name, "
                "or neither",
            ),
            rule(
                "!has(self.httpRoute) || !has(self.httpRoute.stableService) || !has(self.httpRoute.candidateService) "
                "|| self.httpRoute.stableService != self.httpRoute.candidateService",
                "serving.httpRoute: stableService and candidateService are the same; give each arm its own Service",
            ),
            rule(
                "!has(self.replicaSplit) || has(self.router) && self.router == 'replicas'",
                "serving.replicaSplit belongs to serving.router: replicas; write that router, or leave it out",
            ),
            rule(
                "!has(self.router) || self.router != 'replicas' || has(self.replicas) && self.replicas >= 2",
                "serving.router: replicas splits the traffic by the number of pods: write serving.replicas: 2 or more",
            ),
            rule(
                "!has(self.workload) || !has(self.router) || self.router == 'gateway'",
                "serving.workload goes with serving.router: gateway; write that router, or leave workload out",
            ),
            rule(
                f"!has(self.workload) || {_NOT_SAID}",
                f"serving.workload says itself what runs: leave out {', '.join(_OF_ARMS[:-1])} and {_OF_ARMS[-1]}",
            ),
            rule(
                "self.keepServing || has(self.workload)",
                "serving.keepServing: false belongs to serving.workload; name the Deployment, or leave it out",
            ),
        )
    )

    def stable_service(self, cycle: str) -> str:
        """router httpRoute: name of the champion's Service."""
        chosen = self.http_route.stable_service if self.http_route is not None else None
        return chosen or child_name(cycle, "stable")

    def candidate_service(self, cycle: str) -> str:
        """router httpRoute: name of the candidate's Service."""
        chosen = self.http_route.candidate_service if self.http_route is not None else None
        return chosen or child_name(cycle, "candidate")

    def shared_service(self, cycle: str) -> str:
        """router replicas: name of the Service over both arms."""
        chosen = self.replica_split.service if self.replica_split is not None else None
        return chosen or cycle

    @property
    def max_surge(self) -> int:
        """router replicas: pods beyond `replicas` while numbers change."""
        return self.replica_split.max_surge if self.replica_split is not None else 1
