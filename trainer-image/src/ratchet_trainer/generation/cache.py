"""Keys and values of many conversations at once, each in a slot of its own, and the attention over them.

Room: trainer. Pure, but for the memory that it holds; importing it teaches transformers one attention function.

transformers' own caches grow by copying, keep all rows equally long and make every pass a rectangle. Here every slot
has its own length, and one forward pass takes the new tokens of all conversations in a single row, a token of one
beside a whole prompt of another: no padding, and the weights are read once for all.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "ratchet_slots"
"""Name under which a model finds `slot_attention`."""

_LEAST_TOKENS = 128


class SlotCache(Cache):  # type: ignore[misc]  # transformers ships no types
    """Per layer [2, slots, heads, tokens, head size].

    Slots and tokens grow by doubling as they are needed: room for the longest conversation in every slot would be
    gigabytes that hardly anybody uses.
    """

    def __init__(self, slots: int, capacity: int) -> None:
        super().__init__(layers=[])
        self.slots = slots
        """At most."""
        self.capacity = capacity
        """Tokens of a slot, at most."""
        self._room = (0, 0)
        """Slots and tokens that there is memory for."""
        self._layers: list[torch.Tensor] = []
        self.starts: Sequence[int] = ()
        """Of the pass under way: how many tokens each slot has had before, from slot 0 on."""
        self.lengths: Sequence[int] = ()
        """How many new ones it gets; they stand in this order in the pass's one row."""
        self._slot_of = torch.zeros(0, dtype=torch.long)
        self._place_of = torch.zeros(0, dtype=torch.long)
        self._mask = torch.zeros(0, dtype=torch.bool)

    def open(self, starts: Sequence[int], lengths: Sequence[int], device: torch.device) -> torch.Tensor:
        """Says what the next forward pass brings; gives back the tokens' positions [1, tokens]."""
        self.starts, self.lengths = starts, lengths
        self._grow(len(starts), max(s + n for s, n in zip(starts, lengths, strict=True)))
        pairs = [(slot, start + new) for slot, (start, length) in enumerate(zip(starts, lengths, strict=True))
                 for new in range(length)]  # fmt: skip
        self._slot_of, self._place_of = torch.tensor(pairs, device=device).unbind(1)
        singles = self.singles
        seen = max((start + 1 for start in starts[:singles]), default=0)
        had = torch.tensor(starts[:singles], device=device)
        self._mask = (torch.arange(seen, device=device) <= had[:, None])[:, None, None]
        return self._place_of[None]

    @property
    def singles(self) -> int:
        """How many slots from the first one on get exactly one token."""
        return next((slot for slot, length in enumerate(self.lengths) if length != 1), len(self.lengths))

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores a layer's new keys and values [1, heads, tokens, size]; `attend` looks at them where they lie."""
        if layer_idx == len(self._layers):
            _, heads, _, size = key_states.shape
            slots, tokens = self._room
            shape = (2, slots, heads, tokens, size)
            self._layers.append(torch.zeros(shape, dtype=key_states.dtype, device=key_states.device))
        stored = self._layers[layer_idx]
        stored[0][self._slot_of, :, self._place_of] = key_states[0].transpose(0, 1)
        stored[1][self._slot_of, :, self._place_of] = value_states[0].transpose(0, 1)
        return key_states, value_states

    def attend(self, query: torch.Tensor, layer_idx: int, scale: float | None) -> torch.Tensor:
        """Attention of the new tokens [1, query heads, tokens, size] to their own slots; [1, tokens, heads, size].

        Query heads that share a key head are laid side by side as if they were more tokens, so that nothing is copied.
        """
        keys, values = self._layers[layer_idx]
        _, query_heads, tokens, size = query.shape
        heads = keys.shape[1]
        # [tokens, key heads, query heads of each, size]
        grouped = query[0].transpose(0, 1).reshape(tokens, heads, query_heads // heads, size)
        out = torch.empty_like(grouped)
        singles = self.singles
        if singles:
            seen = self._mask.shape[-1]
            out[:singles] = scaled_dot_product_attention(
                grouped[:singles],
                keys[:singles, :, :seen],
                values[:singles, :, :seen],
                attn_mask=self._mask,
                scale=scale,
            )
        place = singles
        for slot in range(singles, len(self.lengths)):
            length, seen = self.lengths[slot], self.starts[slot] + self.lengths[slot]
            out[place : place + length] = _read(
                grouped[place : place + length], keys[slot, :, :seen], values[slot, :, :seen], scale
            )
            place += length
        return out.reshape(1, tokens, query_heads, size)

    def copy(self, source: int, target: int, length: int) -> None:
        """The first `length` tokens of one slot into another."""
        if not length:
            return
        self._grow(target + 1, length)
        for stored in self._layers:
            stored[:, target, :, :length] = stored[:, source, :, :length]

    def _grow(self, slots: int, tokens: int) -> None:
        have_slots, have_tokens = self._room
        if slots > have_slots:
            have_slots = min(self.slots, max(slots, 2 * have_slots))
        if tokens > have_tokens:
            have_tokens = min(self.capacity, max(tokens, 2 * have_tokens, _LEAST_TOKENS))
        if (have_slots, have_tokens) == self._room:
            return
        self._room = (have_slots, have_tokens)
        for index, old in enumerate(self._layers):
            two, rows, heads, columns, size = old.shape
            new = old.new_zeros((two, have_slots, heads, have_tokens, size))
            new[:, :rows, :, :columns] = old
            self._layers[index] = new

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Asked for by models that work out positions themselves; ours are always given."""
        return 0


def _read(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float | None) -> torch.Tensor:
    """A piece of a prompt, [n, heads, group, size], against all that its slot holds by now, [heads, seen, size]."""
    length, heads, group, size = query.shape
    seen = keys.shape[1]
    rows = torch.arange(seen - length, seen, device=query.device)
    mask = torch.arange(seen, device=query.device) <= rows[:, None]
    flat = query.permute(1, 2, 0, 3).reshape(1, heads, group * length, size)
    found = scaled_dot_product_attention(flat, keys[None], values[None], attn_mask=mask.repeat(group, 1), scale=scale)
    return found.reshape(heads, group, length, size).permute(2, 0, 1, 3)


def slot_attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None,
    scaling: float | None = None, slots: SlotCache | None = None, **kwargs: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """What transformers calls in every layer. Without slots it is transformers' own."""
    if slots is None:
        result: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return result
    if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
        raise NotImplementedError("attention with soft caps or sinks")
    return slots.attend(query, module.layer_idx, scaling), None


AttentionInterface.register(ATTENTION, slot_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
