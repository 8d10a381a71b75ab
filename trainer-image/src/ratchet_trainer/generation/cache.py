"""Keys and values of many conversations at once, each in a slot of its own.

Room: trainer. Pure, but for the memory that it holds.

transformers' own caches grow by copying and keep all rows equally long. Here every slot has room for `capacity` tokens
and its own length, so that a conversation joins or leaves a batch without the others noticing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache

_LEAST_TOKENS = 128


@dataclass(frozen=True)
class Window:
    """What one forward pass writes and sees: rows `first .. first + len(starts)` of the slots."""

    first: int
    starts: Sequence[int]
    """Per row, how many tokens it had before."""
    lengths: Sequence[int]
    """Per row, how many tokens are new; they stand at the right end of the pass's columns."""
    seen: int
    """How many tokens of the slots are looked at: the longest row, new tokens included."""


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
        self._window = Window(0, (), (), 0)
        self._rows = torch.zeros(0, dtype=torch.long)
        self._columns = torch.zeros(0, dtype=torch.long)

    def open(self, window: Window, device: torch.device) -> None:
        """Says where the next forward pass writes."""
        self._window = window
        count = len(window.starts)
        self._grow(window.first + count, window.seen)
        self._rows = torch.arange(window.first, window.first + count, device=device)
        self._columns = torch.tensor(window.starts, device=device)

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

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores a layer's new keys and values [rows, heads, columns, size]; gives back all that the rows may see."""
        if layer_idx == len(self._layers):
            _, heads, _, size = key_states.shape
            slots, tokens = self._room
            shape = (2, slots, heads, tokens, size)
            self._layers.append(torch.zeros(shape, dtype=key_states.dtype, device=key_states.device))
        stored, window = self._layers[layer_idx], self._window
        for which, new in ((0, key_states), (1, value_states)):
            if new.shape[2] == 1:
                stored[which][self._rows, :, self._columns] = new[:, :, 0]
                continue
            for row, (start, length) in enumerate(zip(window.starts, window.lengths, strict=True)):
                stored[which, window.first + row, :, start : start + length] = new[row, :, new.shape[2] - length :]
        rows = slice(window.first, window.first + len(window.starts))
        return stored[0, rows, :, : window.seen], stored[1, rows, :, : window.seen]

    def copy(self, source: int, target: int, length: int) -> None:
        """The first `length` tokens of one slot into another."""
        if not length:
            return  # A conversation that waits to be read may hold a slot that there is no memory for yet.
        self._grow(target + 1, length)
        for stored in self._layers:
            stored[:, target, :, :length] = stored[:, source, :, :length]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Asked for by models that work out positions themselves; ours are always given."""
        return 0
