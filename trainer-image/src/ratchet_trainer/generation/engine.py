"""Continuous batching: conversations join a running batch, leave it when they end, and share common beginnings.

Room: trainer. Touches the model that it is given. Not thread-safe: one thread drives it.

Every step is one forward pass for the conversations that are being answered (a token each) and, when some wait, one
for a piece of their prompts. Tokens whose keys are in a slot already (the template's system prompt, an earlier turn of
the conversation) are copied instead of computed.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from ratchet_trainer.generation.cache import SlotCache, Window
from ratchet_trainer.generation.conversation import Conversation, Sampling

PREFILL_TOKENS = 512
"""Prompt tokens computed between two steps of the running answers: bounds how long they stand still."""
MIN_SHARED = 8
"""Shorter common beginnings are computed anew."""


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
        """Moves every conversation on by a token or a piece of its prompt; gives back those that got a token or came to
        their end (twice, when both its first and its second token came)."""
        with torch.inference_mode():
            self._drop_cancelled()
            return self._read_prompts() + self._answer()

    def _drop_cancelled(self) -> None:
        for index in range(len(self._rows) - 1, -1, -1):
            if self._rows[index].cancelled:
                self._remove(index)
        if any(conversation.cancelled for conversation in self.waiting):
            self.waiting = deque(conversation for conversation in self.waiting if not conversation.cancelled)

    def _read_prompts(self) -> list[Conversation]:
        first = self._answering
        group: list[int] = []
        if len(self._rows) > first:  # the one whose prompt was too long for the step before
            group.append(min(PREFILL_TOKENS, self._unread(first)))
        while self.waiting and len(self._rows) < self._cache.slots:
            conversation = self.waiting[0]
            source, shared = self._beginning(conversation)
            length = min(PREFILL_TOKENS, len(conversation.prompt) - shared)
            if group and (len(group) + 1) * max(length, *group) > PREFILL_TOKENS:
                break
            # What it shares with one that is read in this very step is there for the copying in the next one.
            if any(_common(row.prompt, conversation.prompt) >= shared + MIN_SHARED for row in self._rows[first:]):
                break
            self._admit(self.waiting.popleft(), source, shared)
            group.append(length)
        if not group:
            return []
        logits = self._forward(first, [self._piece(first + row, length) for row, length in enumerate(group)])
        read = [row for row in range(len(group)) if not self._unread(first + row)]
        # Only a group's first prompt can be longer than the step, and then it is alone: those that are answered stay
        # in front.
        self._answering += len(read)
        return self._take({first + row: logits[row] for row in read})

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

    def _answer(self) -> list[Conversation]:
        # A conversation that has just been read has its first token already, which goes in here too.
        if not self._answering:
            return []
        logits = self._forward(0, [[row.tokens[-1]] for row in self._rows[: self._answering]])
        return self._take(dict(enumerate(logits)))

    def _forward(self, first: int, pieces: Sequence[Sequence[int]]) -> torch.Tensor:
        """New tokens of the rows from slot `first` on; gives back the logits after each row's last one, [rows, V]."""
        starts = [len(self._held[first + row]) for row in range(len(pieces))]
        lengths = [len(piece) for piece in pieces]
        width, seen = max(lengths), max(s + n for s, n in zip(starts, lengths, strict=True))
        ids = [[0] * (width - len(piece)) + list(piece) for piece in pieces]
        # Columns left of a row's new tokens are padding: they look at token 0, are written nowhere, and nobody looks
        # at them.
        positions = torch.tensor(
            [[max(0, start + column - (width - length)) for column in range(width)]
             for start, length in zip(starts, lengths, strict=True)], device=self._device,
        )  # fmt: skip
        mask = torch.arange(seen, device=self._device)[None, None, :] <= positions[:, :, None]
        self._cache.open(Window(first, starts, lengths, seen), self._device)
        output = self._model(
            input_ids=torch.tensor(ids, device=self._device), position_ids=positions, attention_mask=mask[:, None],
            past_key_values=self._cache, use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        for row, piece in enumerate(pieces):
            self._held[first + row] += piece
        logits: torch.Tensor = output.logits[:, -1]
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
