"""Continuous batching: conversations join a running batch, leave it when they end, and share common beginnings.

Room: trainer. Touches the model that it is given. Not thread-safe: one thread drives it.

Every step is one forward pass: a token of each conversation that is being answered and, when some wait, a piece of
their prompts. Tokens whose keys are in a slot already (the template's system prompt, an earlier turn of the
conversation) are copied instead of computed.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from ratchet_trainer.generation.cache import ATTENTION, SlotCache
from ratchet_trainer.generation.conversation import Conversation, Sampling

PREFILL_TOKENS = 256
"""Prompt tokens computed in one step beside the running answers: bounds how long these wait for their next token."""
MIN_SHARED = 8
"""Shorter common beginnings are computed anew."""

_UNUSED_MASK = torch.ones(1, 1, 1, 1, dtype=torch.bool)
"""A mask of four dimensions is handed on as it is, so no other one is made; `slot_attention` has its own."""


class Sampler:
    """Chooses the next tokens of one conversation."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed % (1 << 63))

    def pick(self, logits: torch.Tensor) -> int:
        """A token, from logits [vocabulary]."""
        if self._sampling.temperature <= 0:
            return int(logits.argmax())
        weights = torch.softmax(logits.float().cpu() / self._sampling.temperature, dim=-1)
        if self._sampling.top_p >= 1:
            return int(torch.multinomial(weights, 1, generator=self._generator))
        weights, order = weights.sort(descending=True)
        # A token stays when what is likelier than it does not reach top_p yet (Holtzman et al. 2020,
        # arXiv:1904.09751); the likeliest always stays.
        weights[weights.cumsum(-1) - weights >= self._sampling.top_p] = 0
        return int(order[torch.multinomial(weights, 1, generator=self._generator)])


def supported(config: Any) -> bool:
    """Whether a model's layers all look at the whole past, which is what the slots hold."""
    types = getattr(config, "layer_types", None)
    if types is not None:
        return set(types) == {"full_attention"}
    return getattr(config, "sliding_window", None) is None and not getattr(config, "is_encoder_decoder", False)


class Engine:
    """Answers conversations together. `capacity` bounds prompt and answer of one, in tokens."""

    def __init__(self, model: Any, stops: Iterable[int], slots: int, capacity: int) -> None:
        self._model = model
        model.set_attn_implementation(ATTENTION)
        self._device = next(model.parameters()).device
        self._stops = frozenset(stops)
        self._cache = SlotCache(slots, capacity)
        self._held: list[list[int]] = [[] for _ in range(slots)]
        """Per slot, the tokens whose keys and values are valid there; they outlive their conversation."""
        self._rows: list[Conversation] = []
        """Conversation in each slot: first those being answered, then those whose prompt is being read."""
        self._samplers: list[Sampler] = []
        """Of each conversation in a slot."""
        self._answering = 0
        self.waiting: deque[Conversation] = deque()

    @property
    def active(self) -> int:
        """Conversations in slots."""
        return len(self._rows)

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._rows or self.waiting)

    def add(self, conversation: Conversation) -> None:
        """Queues one. Raises ValueError when it cannot fit."""
        if not conversation.prompt:
            raise ValueError("the prompt is empty")
        if len(conversation.prompt) + 1 > self._cache.capacity:
            limit = self._cache.capacity - 1
            raise ValueError(f"the prompt has {len(conversation.prompt)} tokens; {limit} is the most")
        conversation.max_new = min(conversation.max_new, self._cache.capacity - len(conversation.prompt))
        self.waiting.append(conversation)

    def step(self) -> list[Conversation]:
        """Moves every conversation on by a token or a piece of its prompt, in one forward pass; gives back those that
        got a token or came to their end."""
        with torch.inference_mode():
            self._drop_cancelled()
            pieces = [[row.tokens[-1]] for row in self._rows[: self._answering]]
            pieces += self._pieces_to_read()
            if not pieces:
                return []
            logits = self._forward(pieces)
            # Only a group's last prompt may be longer than the step, so those that are answered stay in front.
            while self._answering < len(pieces) and not self._unread(self._answering):
                self._answering += 1
            return self._take({slot: logits[slot] for slot in range(self._answering)})

    def _drop_cancelled(self) -> None:
        for index in range(len(self._rows) - 1, -1, -1):
            if self._rows[index].cancelled:
                self._remove(index)
        if any(conversation.cancelled for conversation in self.waiting):
            self.waiting = deque(conversation for conversation in self.waiting if not conversation.cancelled)

    def _pieces_to_read(self) -> list[list[int]]:
        """What is read of the prompts in this step, for the slots behind those that are answered."""
        first, room = self._answering, PREFILL_TOKENS
        pieces: list[list[int]] = []
        if len(self._rows) > first:  # the one whose prompt was too long for the step before
            pieces.append(self._piece(first, room))
        while self.waiting and len(self._rows) < self._cache.slots:
            room = PREFILL_TOKENS - sum(map(len, pieces))
            conversation = self.waiting[0]
            source, shared = self._beginning(conversation)
            # What it shares with one that is read in this very step is there for the copying in the next one.
            if any(_common(row.prompt, conversation.prompt) >= shared + MIN_SHARED for row in self._rows[first:]):
                break
            if room <= 0:
                break
            self._admit(self.waiting.popleft(), source, shared)
            pieces.append(self._piece(len(self._rows) - 1, room))
        return pieces

    def _beginning(self, conversation: Conversation) -> tuple[int, int]:
        """The slot that holds most of the prompt's beginning, and how much of it is worth copying. The last token is
        always computed: it says what comes next."""
        shared = [_common(tokens, conversation.prompt[:-1]) for tokens in self._held]
        source = max(range(len(shared)), key=shared.__getitem__)
        return source, shared[source] if shared[source] >= MIN_SHARED else 0

    def _admit(self, conversation: Conversation, source: int, shared: int) -> None:
        slot = len(self._rows)
        if shared and source != slot:
            self._cache.copy(source, slot, shared)
        self._held[slot] = list(conversation.prompt[:shared])
        self._rows.append(conversation)
        self._samplers.append(Sampler(conversation.sampling))

    def _unread(self, slot: int) -> int:
        """Tokens of the prompt that are still to be computed."""
        return len(self._rows[slot].prompt) - len(self._held[slot])

    def _piece(self, slot: int, length: int) -> list[int]:
        start = len(self._held[slot])
        return list(self._rows[slot].prompt[start : start + length])

    def _forward(self, pieces: Sequence[Sequence[int]]) -> torch.Tensor:
        """New tokens of the slots from the first on; gives back the logits after each slot's last one, [slots, V]."""
        lengths = [len(piece) for piece in pieces]
        positions = self._cache.open([len(held) for held in self._held[: len(pieces)]], lengths, self._device)
        output = self._model(
            input_ids=torch.tensor([[token for piece in pieces for token in piece]], device=self._device),
            position_ids=positions, attention_mask=_UNUSED_MASK, past_key_values=self._cache, slots=self._cache,
            use_cache=True, logits_to_keep=torch.tensor(lengths, device=self._device).cumsum(0) - 1,
        )  # fmt: skip
        for held, piece in zip(self._held, pieces, strict=False):
            held += piece
        logits: torch.Tensor = output.logits[0]
        return logits

    def _take(self, logits: dict[int, torch.Tensor]) -> list[Conversation]:
        """Next tokens from logits by slot; conversations that end leave their slots."""
        touched = []
        for slot in sorted(logits, reverse=True):
            conversation = self._rows[slot]
            touched.append(conversation)
            token = self._samplers[slot].pick(logits[slot])
            if token in self._stops:
                conversation.finish = "stop"
            else:
                conversation.tokens.append(token)
                if len(conversation.tokens) >= conversation.max_new:
                    conversation.finish = "length"
            if conversation.finish is not None:
                self._remove(slot)
        return touched

    def _remove(self, slot: int) -> None:
        """Frees a slot; the last answered conversation moves into it, and the last one being read behind those."""
        if slot < self._answering:
            self._move(self._answering - 1, slot)
            slot = self._answering - 1
            self._answering -= 1
        self._move(len(self._rows) - 1, slot)
        self._rows.pop()
        self._samplers.pop()

    def _move(self, source: int, target: int) -> None:
        if source == target:
            return
        self._cache.copy(source, target, len(self._held[source]))
        self._held[target] = list(self._held[source])
        self._rows[target] = self._rows[source]
        self._samplers[target] = self._samplers[source]


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning."""
    length = 0
    for left, right in zip(a, b, strict=False):
        if left != right:
            break
        length += 1
    return length
