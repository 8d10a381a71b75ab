"""The training loop: LoRA on every linear layer, exact loss per supervised token, reproducible.

Room: trainer. Touches the model that it is given; reports through the callback it is given.

Loss of a supervised step = sum over the supervised tokens of all its examples / their number, whatever the split into
forward passes; so micro-batch and accumulation trade memory for time and change nothing else (but the dropout).
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch.nn.functional import cross_entropy

from ratchet_api.training import Hyperparameters
from ratchet_trainer.errors import DataError, Preempted
from ratchet_trainer.train.attention import PACKED
from ratchet_trainer.train.divergence import Watch, not_finite
from ratchet_trainer.train.encode import Example
from ratchet_trainer.train.interrupt import uninterrupted
from ratchet_trainer.train.objective import Figures, Objective, Unit
from ratchet_trainer.train.packing import PackedBatch, pack, plan
from ratchet_trainer.train.record import StepRecord

if TYPE_CHECKING:
    from ratchet_trainer.train.team import Team

SPEED_STEPS = 20
"""Speed is a mean over this many last steps; the reported loss over as many, but over no more than a fifth of all."""


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
        target_modules=hyper.lora.target, use_rslora=hyper.lora.rank_stabilized, bias="none", task_type="CAUSAL_LM",
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
    return token_losses(model, batch).sum()


def token_losses(model: Any, batch: PackedBatch) -> torch.Tensor:
    """Cross entropy of each of the batch's T supervised tokens, fp32 [T]."""
    assert batch.layout is None or model.config._attn_implementation == PACKED
    layout = {} if batch.layout is None else {"packed_layout": batch.layout}
    logits = model(
        input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, logits_to_keep=batch.predictors,
        **layout,
    ).logits[0]  # fmt: skip
    return cross_entropy(logits.float(), batch.targets, reduction="none")


def packs_exactly(model: Any, examples: Sequence[Example], device: torch.device) -> bool:
    """Whether packed examples get the same losses as they get alone by the model's own attention, and stay the same to
    the bit whatever their neighbour says. Layers that look at other tokens by other means than attention (recurrent
    ones, convolutions) know nothing of examples; such a model is trained one example a pass."""
    sample = sorted(examples, key=len)[: min(3, len(examples))]
    if len(sample) < 2:
        return False
    model.eval()
    own = model.config._attn_implementation
    with torch.no_grad():
        alone = torch.cat([token_losses(model, pack([example]).to(device)) for example in sample])
        if not switch_attention(model, PACKED):
            return False
        batch = pack(sample).to(device)
        together = token_losses(model, batch)
        after_first = together[sample[0].targets :]
        undisturbed = torch.equal(after_first, token_losses(model, _disturbed(batch))[sample[0].targets :])
        switch_attention(model, own)
    tolerance = 1e-3 if next(model.parameters()).dtype == torch.float32 else 2e-2
    return undisturbed and float((alone - together).abs().sum()) <= tolerance * float(alone.sum())


def _disturbed(batch: PackedBatch) -> PackedBatch:
    """The batch with other words in its first example."""
    assert batch.layout is not None
    ids, first = batch.input_ids.clone(), slice(batch.layout.prefix, batch.layout.prefix + batch.layout.rests[0])
    ids[0, first] = torch.where(ids[0, first] > 0, ids[0, first] - 1, 1)
    return replace(batch, input_ids=ids)


def switch_attention(model: Any, implementation: str) -> bool:
    """Another attention function of transformers' registry, by its name; False when the model knows no other."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    base.set_attn_implementation(implementation)
    return bool(model.config._attn_implementation == implementation)


def learning_rate(step: int, steps: int, warmup_ratio: float, peak: float) -> float:
    """Rate of step `step` (from 0): linear rise over the warm-up, then a cosine to zero (Loshchilov and Hutter 2017,
    arXiv:1608.03983)."""
    warmup = math.ceil(warmup_ratio * steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    rest = max(1, steps - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / rest))


_U = TypeVar("_U", bound=Unit)


def steps_of(examples: int, hyper: Hyperparameters) -> int:
    """Optimiser steps of the whole training."""
    return hyper.epochs * math.ceil(examples / (hyper.micro_batch * hyper.accumulation))


def batches(examples: Sequence[_U], hyper: Hyperparameters) -> Iterator[list[_U]]:
    """The examples (or pairs) of each optimiser step: every epoch in another order, the same for the same seed."""
    size = hyper.micro_batch * hyper.accumulation
    generator = torch.Generator().manual_seed(hyper.seed)
    for _ in range(hyper.epochs):
        order = torch.randperm(len(examples), generator=generator).tolist()
        for start in range(0, len(order), size):
            yield [examples[index] for index in order[start : start + size]]


@dataclass(frozen=True)
class Snapshot:
    """A training between two steps: with it the rest gives the same bytes as if it had never been interrupted."""

    last: StepRecord
    """The last step done."""
    tensors: dict[str, torch.Tensor]
    """Adapter, AdamW's moments and step counts, states of the random generators; by `kind/name`."""
    recent: list[tuple[float, int, float]]
    """Loss, supervised tokens and seconds of the last steps."""

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return self.last.step


class Keeper(Protocol):
    """Who keeps snapshots."""

    def offer(self, snapshot: Callable[[], Snapshot]) -> None:
        """After each step: takes a snapshot when one is due."""

    def rescue(self, snapshot: Callable[[], Snapshot]) -> None:
        """The training has to leave now."""


class _State:
    """Model, optimiser and what a snapshot has of them."""

    def __init__(self, model: Any, hyper: Hyperparameters, device: torch.device) -> None:
        self._named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.trainable = list(self._named.values())
        self.optimizer = torch.optim.AdamW(self.trainable, lr=0.0, weight_decay=float(hyper.weight_decay))
        self._device = device
        self.last: StepRecord | None = None
        self.recent: list[tuple[float, int, float]] = []
        self._random = self._random_state()

    def apply(self, rate: float) -> None:
        """One optimiser step with the gradients that there are."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @property
    def step(self) -> int:
        """Steps done."""
        return 0 if self.last is None else self.last.step

    def finished(self, record: StepRecord, recent: list[tuple[float, int, float]]) -> None:
        """A step is over."""
        self.last, self.recent = record, recent
        # Kept here and not read later: an interrupted step has drawn from the generators already.
        self._random = self._random_state()

    def _random_state(self) -> dict[str, torch.Tensor]:
        states = {"random/cpu": torch.get_rng_state()}
        if self._device.type == "cuda":
            states["random/device"] = torch.cuda.get_rng_state(self._device)
        return states

    def snapshot(self) -> Snapshot:
        """All of it, as it was after the last whole step, of which there is at least one."""
        assert self.last is not None
        tensors = dict(self._random)
        for name, parameter in self._named.items():
            tensors[f"parameter/{name}"] = parameter.detach()
            tensors |= {f"{kind}/{name}": value for kind, value in self.optimizer.state[parameter].items()}
        return Snapshot(self.last, tensors, self.recent)

    def restore(self, snapshot: Snapshot) -> None:
        """As it was. Raises DataError for a snapshot of another model."""
        kinds = ("parameter", *_MOMENTS)
        wanted = {f"{kind}/{name}" for kind in kinds for name in self._named} | set(self._random)
        if set(snapshot.tensors) != wanted:
            raise DataError(f"the checkpoint of step {snapshot.step} is of another model: remove it")
        with torch.no_grad():
            for name, parameter in self._named.items():
                parameter.copy_(snapshot.tensors[f"parameter/{name}"])
                moments = {kind: snapshot.tensors[f"{kind}/{name}"].clone() for kind in _MOMENTS}
                state = {k: v if k == "step" else v.to(parameter.device) for k, v in moments.items()}
                self.optimizer.state[parameter] = state
        torch.set_rng_state(snapshot.tensors["random/cpu"])
        if "random/device" in snapshot.tensors:
            torch.cuda.set_rng_state(snapshot.tensors["random/device"], self._device)
        self.last, self.recent = snapshot.last, list(snapshot.recent)
        self._random = self._random_state()


_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW remembers of a parameter."""


def ready(model: Any, packed: bool) -> None:
    """For training, with attention that keeps packed examples apart if they are packed."""
    if packed:
        switch_attention(model, PACKED)
    model.train()


def run(
    model: Any,
    examples: Sequence[Unit],
    hyper: Hyperparameters,
    forward: Forward,
    on_step: Callable[[StepRecord], None],
    keeper: Keeper | None = None,
    resume: Snapshot | None = None,
    team: "Team | None" = None,
    objective: Objective | None = None,
    look: Callable[[int], None] = lambda step: None,
) -> StepRecord:
    """Trains the adapter of `model` and gives back the last step's record, its loss being the mean of the last steps.
    Without an `objective` the training is supervised.

    With `resume` it goes on from there; with `team` other ranks compute a share of each gradient. `look` is called
    between steps, with the number of those that are done, the first time before there is any. When it is told to leave
    (Preempted), `keeper` gets the state after the last whole step first. Raises UserError when the loss is no number
    any more, or rises for good.
    """
    state = _State(model, hyper, forward.device)
    if resume is not None:
        state.restore(resume)
    steps = steps_of(len(examples), hyper)
    ready(model, forward.packed)
    began = time.monotonic() - (0.0 if state.last is None else state.last.seconds)
    watch = Watch(steps, hyper)
    step = _Step(state, model, hyper, forward, steps, began, on_step, team, objective or Supervised())
    try:
        look(state.step)
        for batch in islice(batches(examples, hyper), state.step, None):
            record = step.take(batch)
            watch.look(record)
            if keeper is not None and record.step < steps:
                keeper.offer(state.snapshot)
            look(record.step)
    except Preempted:
        if keeper is not None and state.step:
            keeper.rescue(state.snapshot)
        raise
    assert state.last is not None
    return _with_mean_loss(state.last, state.recent[-math.ceil(steps / 5) :])


@dataclass(frozen=True)
class _Step:
    """What every optimiser step goes by."""

    state: _State
    model: Any
    hyper: Hyperparameters
    forward: Forward
    steps: int
    began: float
    on_step: Callable[[StepRecord], None]
    team: "Team | None"
    objective: Objective

    def take(self, batch: Sequence[Unit]) -> StepRecord:
        """One; what it changes is changed as a whole, or not at all."""
        state, hyper, step = self.state, self.hyper, self.state.step
        rate = learning_rate(step, self.steps, float(hyper.warmup_ratio), float(hyper.learning_rate))
        started = time.monotonic()
        tokens = sum(example.targets for example in batch)
        figures = self._gradient(batch)
        loss = figures.loss
        norm = float(torch.nn.utils.clip_grad_norm_(state.trainable, float(hyper.max_grad_norm) or math.inf))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise not_finite(step + 1, rate, loss, norm, hyper)
        with uninterrupted():
            state.apply(rate)
            now = time.monotonic()
            recent = [*state.recent, (loss, tokens, now - started)][-SPEED_STEPS:]
            busy = sum(entry[2] for entry in recent)
            record = StepRecord(
                step + 1, self.steps, loss, rate, norm, tokens, sum(entry[1] for entry in recent) / max(busy, 1e-9),
                now - self.began, busy / len(recent) * (self.steps - step - 1), figures.rewards,
            )  # fmt: skip
            state.finished(record, recent)
            self.on_step(record)
        return record

    def _gradient(self, batch: Sequence[Unit]) -> Figures:
        if self.team is None:
            return self.objective.backward(self.model, batch, batch, self.hyper.micro_batch, self.forward)
        self.team.begin(self.state.step, self.state.trainable)
        mine = self.team.share(batch)
        return self.team.sum(self.objective.backward(self.model, mine, batch, self.hyper.micro_batch, self.forward))


class Supervised(Objective):
    """Cross entropy of the answers."""

    def parts(
        self, model: Any, mine: Sequence[Example], batch: Sequence[Example], micro_batch: int, forward: Forward
    ) -> Iterator[tuple[torch.Tensor, Figures]]:
        """See Objective."""
        tokens = sum(example.targets for example in batch)
        for group in plan(mine, micro_batch, forward.packed):
            with forward.context():
                loss = batch_loss(model, pack(group).to(forward.device)) / tokens
            yield loss, Figures(float(loss.detach()))


def _with_mean_loss(record: StepRecord, recent: Sequence[tuple[float, int, float]]) -> StepRecord:
    tokens = sum(entry[1] for entry in recent)
    mean = sum(entry[0] * entry[1] for entry in recent) / tokens
    return StepRecord(
        record.step, record.steps, mean, record.learning_rate, record.gradient_norm, record.tokens,
        record.tokens_per_second, record.seconds, 0.0, record.rewards,
    )  # fmt: skip
