"""A Deployment that people own, as far as the operator reads it.

Room: operator, clients. Pure; touches nothing. Its pod template is kept as it is, for a companion is cloned from it.
"""

from typing import Any

from pydantic import Field, model_validator

from ratchet_api.names import VERSION_LABEL
from ratchet_operator.clients.objects import Deployment, DeploymentSpec, Kubernetes
from ratchet_operator.clients.transport import JSON


class Requirement(Kubernetes):
    """One expression of a selector."""

    key: str


class Selector(Kubernetes):
    """By which labels pods are found."""

    match_labels: dict[str, str] = Field(default_factory=dict)
    match_expressions: list[Requirement] = Field(default_factory=list)

    @property
    def keys(self) -> set[str]:
        """All labels that it looks at."""
        return {*self.match_labels, *(one.key for one in self.match_expressions)}


class WorkloadSpec(DeploymentSpec):
    """Its spec."""

    selector: Selector = Selector()


class Workload(Deployment):
    """A Deployment that serving.workload names."""

    spec: WorkloadSpec = WorkloadSpec()
    pod_template: JSON = Field(default_factory=dict)
    """`spec.template`, whole."""

    @model_validator(mode="before")
    @classmethod
    def _keep_template(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "podTemplate" in value:
            return value
        return value | {"podTemplate": (value.get("spec") or {}).get("template") or {}}

    @property
    def version(self) -> str | None:
        """Version that its pod template names."""
        labels = (self.pod_template.get("metadata") or {}).get("labels") or {}
        found = labels.get(VERSION_LABEL)
        return str(found) if found else None

    @property
    def container_names(self) -> list[str]:
        """Names of the template's containers."""
        return [container.name for container in self.spec.template.spec.containers]
