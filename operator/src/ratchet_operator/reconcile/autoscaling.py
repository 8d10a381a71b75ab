"""Arms that a HorizontalPodAutoscaler scales: found, left in peace, handed over without a gap.

Room: operator, reconcile.
"""

from collections.abc import Mapping, Sequence

from ratchet_api.cycle import Arm, ImprovementCycle
from ratchet_api.names import FIELD_MANAGER
from ratchet_api.reasons import Reason
from ratchet_operator.clients.objects import Deployment
from ratchet_operator.clients.traffic import HorizontalPodAutoscaler
from ratchet_operator.domain.phases import Remark
from ratchet_operator.reconcile.context import Context

HANDOVER = f"{FIELD_MANAGER}-handover"
"""Field manager that holds an arm's number of pods between us and the autoscaler: a field that its last manager stops
applying is set back to its default, which would leave one pod (kubernetes.io, Server-Side Apply, Transferring
ownership)."""

Scalers = Mapping[str, Sequence[str]]
"""Deployment -> names of the autoscalers that target it."""


async def find(ctx: Context, namespace: str) -> Scalers:
    """All of a namespace."""
    found: dict[str, list[str]] = {}
    for scaler in await ctx.kube.select(HorizontalPodAutoscaler, namespace):
        target = scaler.spec.scale_target_ref
        if target.kind == "Deployment" and scaler.metadata.deletion_timestamp is None:
            found.setdefault(target.name, []).append(scaler.metadata.name)
    return {name: sorted(scalers) for name, scalers in found.items()}


def conflict(cycle: ImprovementCycle, arms: Sequence[Arm | None], scalers: Scalers) -> Remark | None:
    """Two who would scale one arm."""
    for arm in arms:
        names = scalers.get(arm.deployment, ()) if arm is not None else ()
        if arm is None or not names:
            continue
        if cycle.spec.serving.router == "replicas":
            text = (
                f"HorizontalPodAutoscaler {names[0]} scales {arm.deployment}, whose number of pods is the split with "
                "serving.router: replicas: delete it, or write router: gateway or httpRoute"
            )
            return Remark(Reason.SCALER_CONFLICT, text)
        if len(names) > 1:
            text = f"HorizontalPodAutoscalers {' and '.join(names)} both scale {arm.deployment}: keep one of them"
            return Remark(Reason.SCALER_CONFLICT, text)
    return None


async def hand_over(ctx: Context, present: Deployment) -> None:
    """Before we stop applying an arm's number of pods: somebody else holds what it is."""
    meta = present.metadata
    managers = meta.managers("spec", "replicas")
    if FIELD_MANAGER not in managers or HANDOVER in managers:
        return
    manifest = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": meta.name, "namespace": meta.namespace},
        "spec": {"replicas": present.spec.replicas},
    }
    await ctx.kube.apply(manifest, manager=HANDOVER)
