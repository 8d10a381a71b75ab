"""Conditions of both resources, as Kubernetes' metav1.Condition.

Room: api. Pure; touches nothing.
"""

from collections.abc import Iterable
from typing import Literal

from ratchet_api.base import Observed, Time
from ratchet_api.reasons import ConditionType, Reason

ConditionStatus = Literal["True", "False", "Unknown"]


class Condition(Observed):
    """One observation. `lastTransitionTime` is when `status` last changed, not when it was last looked at."""

    type: str
    """A ConditionType."""
    status: ConditionStatus
    """True, False or Unknown."""
    reason: str
    """A Reason."""
    message: str = ""
    """One sentence for a person."""
    observed_generation: int = 0
    """Generation of the spec that this speaks of."""
    last_transition_time: Time
    """When status last changed."""


def find(conditions: Iterable[Condition], kind: ConditionType) -> Condition | None:
    """The condition of that type, if there is one."""
    return next((c for c in conditions if c.type == kind), None)


def is_true(conditions: Iterable[Condition], kind: ConditionType) -> bool:
    """Whether the condition is there and True."""
    found = find(conditions, kind)
    return found is not None and found.status == "True"


def merged(
    conditions: Iterable[Condition],
    kind: ConditionType,
    status: ConditionStatus | bool,
    reason: Reason | str,
    message: str,
    generation: int,
    now: Time,
) -> list[Condition]:
    """`conditions` with one set; its transition time moves only if its status changes. Sorted by type."""
    if isinstance(status, bool):
        status = "True" if status else "False"
    old = find(conditions, kind)
    since = old.last_transition_time if old is not None and old.status == status else now
    new = Condition(
        type=str(kind), status=status, reason=str(reason), message=message[:32768], observed_generation=generation,
        last_transition_time=since,
    )  # fmt: skip
    return sorted([c for c in conditions if c.type != kind] + [new], key=lambda c: c.type)
