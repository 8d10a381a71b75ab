"""What a person may say about the pods of a stage or an arm.

Room: api. Pure; touches nothing.
"""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints, WithJsonSchema

from ratchet_api.base import Model, ObjectName, rule, rules

_QUANTITY = r"^([+]?[0-9]+(\.[0-9]*)?|\.[0-9]+)(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi|[eE][+-]?[0-9]+)?$"
Quantity = Annotated[
    str,
    StringConstraints(pattern=_QUANTITY, max_length=32),
    WithJsonSchema({"type": "string", "maxLength": 32, "pattern": _QUANTITY}),
]
"""A Kubernetes quantity that is not negative, as a string: "1", "500m", "8Gi"."""

LabelValue = Annotated[str, StringConstraints(max_length=1024)]


class Resources(Model):
    """Compute resources of the main container, as Kubernetes takes them."""

    requests: dict[str, Quantity] = Field(default_factory=dict, max_length=16)
    """Amounts reserved, for example {"cpu": "2", "memory": "8Gi"}."""
    limits: dict[str, Quantity] = Field(default_factory=dict, max_length=16)
    """Upper bounds, for example {"nvidia.com/gpu": "1"}."""


class Toleration(Model):
    """A taint that the pods accept."""

    key: Annotated[str, StringConstraints(max_length=316)] = ""
    """Taint key; empty with operator Exists tolerates every taint."""
    operator: Literal["Equal", "Exists"] = "Equal"
    """Equal compares the value, Exists ignores it."""
    value: Annotated[str, StringConstraints(max_length=63)] | None = None
    """Taint value for operator Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect to tolerate; absent means every effect."""
    toleration_seconds: Annotated[int, Field(ge=0)] | None = None
    """Seconds that a NoExecute taint is tolerated."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "self.operator == 'Exists' || has(self.key) && self.key != ''",
                'a toleration with operator Equal needs a key: name the taint, or write operator: "Exists"',
            )
        )
    )


class PodOverrides(Model):
    """Scheduling and identity of the pods; everything else of them belongs to the operator."""

    node_selector: dict[str, LabelValue] = Field(default_factory=dict, max_length=32)
    """Labels that the node must have."""
    tolerations: list[Toleration] = Field(default_factory=list, max_length=32)
    """Taints that the pods accept."""
    annotations: dict[str, LabelValue] = Field(default_factory=dict, max_length=32)
    """Annotations added to the pods."""
    labels: dict[str, Annotated[str, StringConstraints(max_length=63)]] = Field(default_factory=dict, max_length=32)
    """Labels added to the pods; those under ratchet.dev/ cannot be replaced."""
    service_account_name: ObjectName | None = None
    """Service account of the pods, for workload identity; absent means the namespace's default one, without a token."""
    priority_class_name: ObjectName | None = None
    """PriorityClass of the pods."""
    runtime_class_name: ObjectName | None = None
    """RuntimeClass of the pods, for example nvidia."""
    image_pull_secrets: list[ObjectName] = Field(default_factory=list, max_length=8)
    """Names of Secrets with registry credentials."""
