"""Several examples in one forward pass: packed side by side, their common beginning computed once.

Room: trainer. Pure; torch tensors in, torch tensors out.

The sequence is [prefix][rest of example 1][rest of example 2]...; position ids continue from the prefix in every rest,
and the layout tells attention which is whose. So every example sees exactly what it would see alone.
The prefix ends before the token that predicts the first supervised one, of any example. Only the hidden states that
predict a supervised token are given to the output head.
"""

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import TypeVar

import torch

from ratchet_trainer.train.attention import Layout
from ratchet_trainer.train.encode import Example

MAX_PACKED_TOKENS = 4096
"""Longest packed sequence, because a pass holds the activations of all of it; longer examples go by themselves."""


@dataclass(frozen=True)
class PackedBatch:
    """Input of one forward pass. L: length of the packed sequence, T: number of supervised tokens."""

    input_ids: torch.Tensor
    """int64 [1, L]"""
    position_ids: torch.Tensor
    """int64 [1, L]"""
    layout: Layout | None
    """Whose each token is; None for a single example, which is plainly causal."""
    predictors: torch.Tensor
    """int64 [T]: positions in the sequence whose output predicts ..."""
    targets: torch.Tensor
    """int64 [T]: ... these tokens."""

    def to(self, device: torch.device) -> "PackedBatch":
        """The same on a device."""
        return PackedBatch(
            self.input_ids.to(device), self.position_ids.to(device), self.layout, self.predictors.to(device),
            self.targets.to(device),
        )  # fmt: skip


def common_prefix(examples: Sequence[Example]) -> int:
    """How many leading tokens all examples share and none needs for predicting its first supervised token."""
    limit = min(example.first_target - 1 for example in examples)
    first = examples[0].ids
    length = 0
    while length < limit and all(example.ids[length] == first[length] for example in examples):
        length += 1
    return length


def pack(examples: Sequence[Example]) -> PackedBatch:
    """One forward pass over the examples."""
    prefix = common_prefix(examples) if len(examples) > 1 else 0
    ids = list(examples[0].ids[:prefix])
    positions = list(range(prefix))
    predictors: list[int] = []
    targets: list[int] = []
    for example in examples:
        offset = len(ids) - prefix
        ids += example.ids[prefix:]
        positions += range(prefix, len(example))
        for index, supervised in enumerate(example.supervised):
            if supervised:
                predictors.append(offset + index - 1)
                targets.append(example.ids[index])
    return PackedBatch(
        torch.tensor([ids]),
        torch.tensor([positions]),
        Layout(prefix, tuple(len(example) - prefix for example in examples)) if len(examples) > 1 else None,
        torch.tensor(predictors),
        torch.tensor(targets),
    )


_Unit = TypeVar("_Unit", bound=Sized)


def plan(examples: Sequence[_Unit], micro_batch: int, packed: bool) -> list[list[_Unit]]:
    """Splits the examples (or pairs) of an optimiser step into forward passes of at most `micro_batch` of them and
    MAX_PACKED_TOKENS tokens (a single longer one goes alone); one a pass when `packed` is off."""
    passes: list[list[_Unit]] = []
    tokens = 0
    for example in examples:
        full = not passes or len(passes[-1]) >= (micro_batch if packed else 1)
        if full or tokens + len(example) > MAX_PACKED_TOKENS:
            passes.append([])
            tokens = 0
        passes[-1].append(example)
        tokens += len(example)
    return passes
