"""Live progress of a train stage, read from Prometheus like any other metric.

Room: operator, reconcile. For people only: nothing is decided by it, and an outage of Prometheus is no error.
"""

import asyncio
from datetime import datetime
from decimal import Decimal

from ratchet_api import metrics
from ratchet_api.cycle import ImprovementCycle
from ratchet_api.version import ModelVersion, TrainingStatus
from ratchet_operator.reconcile.context import Context


async def training(
    ctx: Context, version: ModelVersion, cycle: ImprovementCycle, now: datetime
) -> TrainingStatus | None:
    """Numbers of the running train stage; None when it is too early to ask again, or nothing is known."""
    meta = version.metadata
    last = ctx.asked.get(meta.uid)
    if last is not None and (now - last).total_seconds() < ctx.settings.pace.training:
        return None
    ctx.asked[meta.uid] = now
    labels = f'cycle_namespace="{meta.namespace}",cycle="{cycle.metadata.name}",version="{meta.name}",stage="train"'
    names = (
        metrics.STAGE_STEP,
        metrics.STAGE_STEPS,
        metrics.STAGE_LOSS,
        metrics.STAGE_VALIDATION_LOSS,
        metrics.STAGE_TOKENS_PER_SECOND,
        metrics.STAGE_ETA,
    )
    step, steps, loss, aside, speed, eta = await asyncio.gather(
        *(ctx.prometheus.number(f"max({name}{{{labels}}})") for name in names)
    )
    if step is None:
        return None
    known = version.status.training or TrainingStatus()
    fresh = {
        "step": int(step),
        "steps": None if steps is None else int(steps),
        "loss": None if loss is None else Decimal(f"{loss:.4f}"),
        "validation_loss": None if aside is None else Decimal(f"{aside:.4f}"),
        "tokens_per_second": None if speed is None else round(speed),
        "eta_seconds": None if eta is None else round(eta),
    }
    return known.model_copy(update={name: value for name, value in fresh.items() if value is not None})
