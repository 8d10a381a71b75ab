"""What a training will take: by an earlier training of the same cycle, else by the preset's sizes.

Room: operator/domain. Pure.
"""

from collections.abc import Iterable
from datetime import datetime
from decimal import ROUND_HALF_UP, Decimal

from ratchet_api.cycle import DatasetNumbers
from ratchet_api.presets import PRESETS, Price, Training
from ratchet_api.training import Method
from ratchet_api.version import ModelVersion, TrainingEstimate

CHARACTERS_PER_TOKEN = 4
"""Usual for English text; other languages and code have fewer, so that they take longer than estimated."""
FLOPS_OF_A_FORWARD_PASS = 2
FLOPS_PER_WEIGHT_AND_TOKEN = 6
"""2 forward, 2 for the gradient of the activations (none for the frozen weights), 2 for the second forward pass of
gradient checkpointing. Kaplan et al. 2020, arXiv:2001.08361, section 2.1, for the 2."""
LOADED_BYTES_PER_SECOND = 500e6
"""Assumed when the base model, two bytes a weight, is fetched and loaded."""


def of(training: Training, dataset: DatasetNumbers, versions: Iterable[ModelVersion]) -> TrainingEstimate | None:
    """The estimate for a training on `dataset`; None without a GPU, or when neither sizes nor an earlier training are
    known. An earlier training counts when it had the same recipe; the time grows with the examples."""
    gpus = _gpus(training)
    if not gpus or not dataset.examples:
        return None
    measured = max((found for v in versions if (found := _measured(v, training)) is not None), default=None)
    if measured is not None:
        _, name, hours, examples = measured
        basis = f"{name} trained {hours:.2f} hours on {examples} examples"
        return _estimate(gpus, hours * dataset.examples / examples * gpus, training.price, basis)
    if training.preset is None or not dataset.characters:
        return None
    preset = PRESETS[training.preset]
    tokens = dataset.characters / CHARACTERS_PER_TOKEN
    epochs = preset.hyperparameters.epochs
    flops = _flops_per_token(training.method, epochs) * preset.parameters * tokens
    work = flops / (preset.peak * preset.utilisation * gpus)
    hours = (work + 2 * preset.parameters / LOADED_BYTES_PER_SECOND) / 3600
    basis = f"preset {training.preset}: {preset.parameters / 1e9:.0f} billion weights, "
    basis += f"about {tokens * epochs:.0f} tokens"
    if training.method != "sft":
        basis += f" and what {training.method} compares them with"
    return _estimate(gpus, hours * gpus, training.price, basis)


def _flops_per_token(method: Method, epochs: int) -> int:
    """Per weight and token of the dataset. dpo and kto ask the base model about each answer once; in each epoch kto
    also asks adapter and base about as many mismatched ones."""
    reference = 0 if method == "sft" else FLOPS_OF_A_FORWARD_PASS
    mismatched = 2 * FLOPS_OF_A_FORWARD_PASS if method == "kto" else 0
    return (FLOPS_PER_WEIGHT_AND_TOKEN + mismatched) * epochs + reference


def words(said: TrainingEstimate) -> str:
    """`about 0.8 GPU-hours, 2.00 USD; preset small: ...`."""
    cost = f", {said.cost} {said.currency}" if said.cost is not None else ""
    return f"about {said.gpu_hours} GPU-hours{cost}; {said.basis}"


def _gpus(training: Training) -> int:
    """GPUs of the Job or of all nodes, whatever their vendor: `nvidia.com/gpu`, `amd.com/gpu`."""
    resources = training.job.resources
    amounts = resources.requests | resources.limits
    each = sum(int(amount) for name, amount in amounts.items() if name.endswith("/gpu") and amount.isdecimal())
    return each * training.nodes


def _measured(version: ModelVersion, training: Training) -> tuple[datetime, str, float, int] | None:
    """When it ended, name, hours and examples of a finished training with the same recipe."""
    done = next((entry for entry in version.status.stages if entry.stage == "train"), None)
    seen = version.status.training
    if done is None or done.finished_at is None or seen is None or not seen.examples or not seen.seconds:
        return None
    if version.spec.training != training.recipe:
        return None
    return done.finished_at, version.metadata.name, seen.seconds / 3600, seen.examples


def _estimate(gpus: int, gpu_hours: float, price: Price | None, basis: str) -> TrainingEstimate:
    hours = _rounded(Decimal(gpu_hours))
    cost = None if price is None else _rounded(Decimal(gpu_hours) * price.per_gpu_hour)
    currency = None if price is None else price.currency
    return TrainingEstimate(gpus=gpus, gpu_hours=hours, cost=cost, currency=currency, basis=basis)


def _rounded(value: Decimal) -> Decimal:
    """To the hundredth, and never to nothing."""
    return max(Decimal("0.01"), value.quantize(Decimal("0.01"), ROUND_HALF_UP))
