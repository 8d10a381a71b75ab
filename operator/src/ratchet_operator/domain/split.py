"""Which weight a rollout has next, and how long it keeps the present one at least.

Room: operator/domain. Pure. Steps are found by weight, not by index, because a person may edit them while the rollout
is going on; an A/B test keeps the weight that it began with.
"""

from datetime import timedelta

from ratchet_api.cycle import RolloutStatus
from ratchet_api.rollout import Rollout
from ratchet_operator.domain import ab_test


def following(status: RolloutStatus, spec: Rollout) -> tuple[int, int] | None:
    """(index of the step, its weight) that comes next; None: the bake, with all of the traffic."""
    if status.known_good:
        return None
    if spec.strategy == "abTest":
        return (0, ab_test.test_of(spec).weight) if status.weight == 0 else None
    return next(((i, step.weight) for i, step in enumerate(spec.steps) if step.weight > status.weight), None)


def min_time(status: RolloutStatus, spec: Rollout) -> timedelta:
    """Shortest stay at the present weight."""
    if spec.strategy == "abTest":
        return timedelta(0)
    return max((step.min_time for step in spec.steps if step.weight == status.weight), default=timedelta(0))
