"""The training loop: LoRA on every linear layer, exact loss per supervised token, reproducible.

Room: trainer. Touches the model that it is given; reports through the callback it is given.

Loss of an optimiser step = sum over the supervised tokens of all its examples / their number, whatever the split into
forward passes; so micro-batch and accumulation trade memory for time and change nothing else (but the dropout).
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from ratchet_api.training import Hyperparameters
from ratchet_trainer.errors import UserError
from ratchet_trainer.train.encode import Example
from ratchet_trainer.train.packing import PackedBatch, pack, plan

SPEED_STEPS = 20
"""Speed is a mean over this many last steps; the reported loss over as many, but over no more than a fifth of all."""


@dataclass(frozen=True)
class StepRecord:
    """One optimiser step."""

    step: int
    """From 1."""
    steps: int
    loss: float
    """Mean over the step's supervised tokens."""
    learning_rate: float
    gradient_norm: float
    """Before clipping."""
    tokens: int
    """Supervised tokens of the step."""
    tokens_per_second: float
    """Supervised tokens, over the last steps."""
    seconds: float
    """Since the first step began."""
    eta: float
    """Seconds that remain."""


@dataclass(frozen=True)
class Forward:
    """How a forward pass is run."""

    device: torch.device
    packed: bool
    """Whether this architecture gets packed examples right."""
    autocast: torch.dtype | None = None

    def context(self) -> contextlib.AbstractContextManager[Any]:
        """Autocast, where it is wanted."""
        if self.autocast is None:
            return contextlib.nullcontext()
        autocast: contextlib.AbstractContextManager[Any] = torch.autocast(self.device.type, dtype=self.autocast)
        return autocast


def add_lora(model: Any, hyper: Hyperparameters) -> Any:
    """The model with a fresh adapter on every linear layer but the head (Hu et al. 2021, arXiv:2106.09685), seeded.

    The adapter's weights are fp32 whatever the base's dtype is.
    """
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(hyper.seed)
    config = LoraConfig(
        r=hyper.lora.rank, lora_alpha=hyper.lora.alpha, lora_dropout=float(hyper.lora.dropout),
        target_modules=hyper.lora.target, bias="none", task_type="CAUSAL_LM",
    )  # fmt: skip
    return get_peft_model(model, config, autocast_adapter_dtype=True)


def checkpoint(model: Any) -> None:
    """Switches gradient checkpointing on: activations are computed again instead of kept, half the memory for about
    half as much time again. The embeddings' output has to ask for gradients, because no weight below the first adapter
    does."""
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()


def batch_loss(model: Any, batch: PackedBatch) -> torch.Tensor:
    """Sum of the cross entropy over the batch's supervised tokens, in fp32."""
    logits = model(
        input_ids=batch.input_ids, position_ids=batch.position_ids, attention_mask=batch.mask, use_cache=False,
        logits_to_keep=batch.predictors,
    ).logits[0]  # fmt: skip
    return cross_entropy(logits.float(), batch.targets, reduction="sum")


def packs_exactly(model: Any, examples: Sequence[Example], device: torch.device) -> bool:
    """Whether packed examples get the same loss as they get alone. Attention that is not plainly causal (sliding
    windows, recurrent layers) ignores our mask; such a model is trained one example a pass."""
    sample = sorted(examples, key=len)[: min(3, len(examples))]
    if len(sample) < 2:
        return False
    model.eval()
    with torch.no_grad():
        alone = sum(float(batch_loss(model, pack([example]).to(device))) for example in sample)
        together = float(batch_loss(model, pack(sample).to(device)))
    tolerance = 1e-3 if next(model.parameters()).dtype == torch.float32 else 2e-2
    return abs(alone - together) <= tolerance * abs(alone)


def learning_rate(step: int, steps: int, warmup_ratio: float, peak: float) -> float:
    """Rate of step `step` (from 0): linear rise over the warm-up, then a cosine to zero (Loshchilov and Hutter 2017,
    arXiv:1608.03983)."""
    warmup = math.ceil(warmup_ratio * steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    rest = max(1, steps - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / rest))


def steps_of(examples: int, hyper: Hyperparameters) -> int:
    """Optimiser steps of the whole training."""
    return hyper.epochs * math.ceil(examples / (hyper.micro_batch * hyper.accumulation))


def _batches(examples: Sequence[Example], hyper: Hyperparameters) -> Iterator[list[Example]]:
    size = hyper.micro_batch * hyper.accumulation
    generator = torch.Generator().manual_seed(hyper.seed)
    for _ in range(hyper.epochs):
        order = torch.randperm(len(examples), generator=generator).tolist()
        for start in range(0, len(order), size):
            yield [examples[index] for index in order[start : start + size]]


def run(
    model: Any,
    examples: Sequence[Example],
    hyper: Hyperparameters,
    forward: Forward,
    on_step: Callable[[StepRecord], None],
) -> StepRecord:
    """Trains the adapter of `model` and gives back the last step's record, its loss being the mean of the last steps.

    Raises UserError when the loss is no number any more.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=0.0, weight_decay=float(hyper.weight_decay))
    steps = steps_of(len(examples), hyper)
    limit = float(hyper.max_grad_norm) or math.inf
    model.train()
    began = time.monotonic()
    recent: list[tuple[float, int, float]] = []
    record: StepRecord | None = None
    for step, batch in enumerate(_batches(examples, hyper)):
        rate = learning_rate(step, steps, float(hyper.warmup_ratio), float(hyper.learning_rate))
        for group in optimizer.param_groups:
            group["lr"] = rate
        started = time.monotonic()
        loss, tokens = _backward(model, batch, hyper.micro_batch, forward)
        norm = float(torch.nn.utils.clip_grad_norm_(trainable, limit))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise _diverged(step + 1, rate, loss, norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        now = time.monotonic()
        recent = [*recent, (loss, tokens, now - started)][-SPEED_STEPS:]
        busy = sum(entry[2] for entry in recent)
        record = StepRecord(
            step + 1, steps, loss, rate, norm, tokens, sum(entry[1] for entry in recent) / max(busy, 1e-9),
            now - began, busy / len(recent) * (steps - step - 1),
        )  # fmt: skip
        on_step(record)
    assert record is not None
    return _with_mean_loss(record, recent[-math.ceil(steps / 5) :])


def _backward(model: Any, batch: Sequence[Example], micro_batch: int, forward: Forward) -> tuple[float, int]:
    """Gradients of one optimiser step; gives back its mean loss and number of supervised tokens."""
    tokens = sum(example.targets for example in batch)
    total = 0.0
    for group in plan(batch, micro_batch, forward.packed):
        with forward.context():
            loss = batch_loss(model, pack(group).to(forward.device)) / tokens
        loss.backward()
        total += float(loss.detach())
    return total, tokens


def _with_mean_loss(record: StepRecord, recent: Sequence[tuple[float, int, float]]) -> StepRecord:
    tokens = sum(entry[1] for entry in recent)
    mean = sum(entry[0] * entry[1] for entry in recent) / tokens
    return StepRecord(
        record.step, record.steps, mean, record.learning_rate, record.gradient_norm, record.tokens,
        record.tokens_per_second, record.seconds, 0.0,
    )  # fmt: skip


def _diverged(step: int, rate: float, loss: float, norm: float) -> UserError:
    what = "loss" if not math.isfinite(loss) else "gradient"
    return UserError(
        f"the {what} is {loss if what == 'loss' else norm} at step {step} (learning rate {rate:.2g}): lower "
        'training.hyperparameters.learningRate (a tenth is a good start), or write precision: "fp32"'
    )
