"""Attention over packed examples: each example by itself, so that it sees exactly what it would see alone.

Room: trainer. Adds one attention function to transformers' registry (its AttentionInterface); touches nothing else.

A mask over the whole pack would cost the square of its length, and would know nothing of a model's own sliding windows
and score caps. So each example's queries, keys and values are taken out of the pack, with those of the common prefix
before them, and go through causal attention of their own; the linear layers see the whole pack at once.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

PACKED = "ratchet_packed"
"""Name of the function in the registry."""


@dataclass(frozen=True)
class Layout:
    """Where the examples of a pack are: [prefix][rest of example 1][rest of example 2]..."""

    prefix: int
    """Tokens that all begin with."""
    rests: tuple[int, ...]
    """Tokens of each example after them."""


def packed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    packed_layout: Layout | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """[1, L, heads, size] from queries [1, heads, L, size] and keys and values [1, kv heads, L, size]; without a layout
    plainly causal. The signature is the registry's."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return _causal(q, k, v, scaling, dropout, sliding_window, softcap)

    if packed_layout is None:
        return attend(query, key, value).transpose(1, 2).contiguous(), None
    prefix, outputs = packed_layout.prefix, []
    parts = [tensor.split((prefix, *packed_layout.rests), dim=2) for tensor in (query, key, value)]
    for index in range(1, len(packed_layout.rests) + 1):
        # The prefix' queries go along although their answer is the same each time: a square needs no mask.
        whole = attend(*(torch.cat([part[0], part[index]], dim=2) for part in parts))
        outputs.append(whole if index == 1 else whole[:, :, prefix:])
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(PACKED, packed_attention)


def _causal(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, dropout: float,
    window: int | None, softcap: float | None,
) -> torch.Tensor:  # fmt: skip
    """Each position sees itself and what is before it, `window` positions in all."""
    length = query.shape[2]
    if softcap is None and (window is None or length <= window):
        return scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True, scale=scaling)
    seen = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
    if window is not None:
        seen = seen.triu(1 - window)
    if softcap is None:
        return scaled_dot_product_attention(query, key, value, attn_mask=seen, dropout_p=dropout, scale=scaling)
    # Gemma 2's cap on the scores (arXiv:2408.00118, section 2), which no fused kernel of torch has.
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = (torch.tanh(scores / softcap) * softcap).masked_fill(~seen, float("-inf"))
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return torch.dropout(weights, dropout, train=True) @ value if dropout else weights @ value
