"""What somebody did to an arm of ours, and that it is put back: in words, for an event.

Room: operator, reconcile. Touches nothing: an arm is made what the status says in every pass anyway.
"""

from collections.abc import Iterator, Mapping

from ratchet_api.cycle import Arm, ImprovementCycle
from ratchet_api.names import FIELD_MANAGER
from ratchet_api.reasons import Reason
from ratchet_operator.clients.objects import Deployment
from ratchet_operator.domain.phases import Remark


def of(cycle: ImprovementCycle, deployments: Mapping[str, Deployment], scaled: frozenset[str]) -> list[Remark]:
    """Of each arm in service, by its name in `deployments`; `scaled`: those whose autoscaler says how many pods."""
    serving = cycle.status.serving
    arms = [arm for arm in (serving.stable, serving.candidate) if arm is not None]
    return [Remark(Reason.ARM_RESET, text) for arm in arms for text in _undone(arm, deployments, scaled)]


def _undone(arm: Arm, deployments: Mapping[str, Deployment], scaled: frozenset[str]) -> Iterator[str]:
    present = deployments.get(arm.deployment)
    # The last pass found pods of it, so it had been made.
    if present is None and arm.ready_replicas > 0:
        yield (
            f"Deployment {arm.deployment}, which serves {arm.version}, was deleted; it is made again: "
            "to be rid of a candidate, write the annotation ratchet.dev/abort, and to be rid of all, delete the cycle"
        )
    elif present is not None and arm.deployment not in scaled and present.spec.replicas != max(1, arm.replicas):
        writers = present.metadata.writers("spec", "replicas")
        # A number that is ours and has changed is one that this pass is about to apply.
        if writers and FIELD_MANAGER not in writers:
            yield (
                f"{writers[-1]} scaled Deployment {arm.deployment} to {present.spec.replicas}; it is set back to "
                f"{max(1, arm.replicas)}: change serving.replicas, or give it a HorizontalPodAutoscaler"
            )
