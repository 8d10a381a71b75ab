"""How likely a model finds given continuations of one text.

Room: trainer. Touches the model that it is given.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ratchet_trainer.generation.engine import supported

_TOKENS_AT_ONCE = 512
"""New tokens of one forward pass: their logits, over the whole vocabulary, bound the memory."""


def log_likelihoods(model: Any, context: Sequence[int], continuations: Sequence[Sequence[int]]) -> list[float]:
    """For each continuation the sum of its tokens' log-probabilities after `context`, in nats.

    The context is computed once, and so is what continuations share but for their last token, which is only looked up.
    Raises ValueError for an empty context or continuation: nothing precedes the first token.
    """
    if not context or not all(continuations):
        raise ValueError("context and continuations need at least one token each")
    beginnings: dict[tuple[int, ...], list[int]] = {}
    for index, tokens in enumerate(continuations):
        beginnings.setdefault(tuple(tokens[:-1]), []).append(index)
    found = [0.0] * len(continuations)
    with torch.inference_mode():
        read = _reader(model, context)
        for batch in _batches(sorted(beginnings, key=len)):
            logits = read(batch)  # [beginnings, tokens + 1, vocabulary]: after the context, and after each token
            # A row's normalisers; not all of its log-probabilities, of which hardly any is asked for.
            whole = logits.logsumexp(-1)
            for row, beginning in enumerate(batch):
                places = torch.arange(len(beginning) + 1)
                for index in beginnings[beginning]:
                    tokens = torch.tensor(list(continuations[index]))
                    found[index] = float((logits[row, places, tokens] - whole[row]).sum())
    return found


def _batches(beginnings: Sequence[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
    """Of equal length each, so that nothing is padded."""
    batch: list[tuple[int, ...]] = []
    for beginning in beginnings:
        room = max(1, _TOKENS_AT_ONCE // (len(beginning) + 1))
        if batch and (len(batch) >= room or len(batch[0]) != len(beginning)):
            yield batch
            batch = []
        batch.append(beginning)
    if batch:
        yield batch


def _reader(model: Any, context: Sequence[int]) -> Any:
    """Beginnings of equal length to logits as float32 on the CPU."""
    from transformers import DynamicCache

    device = next(model.parameters()).device
    if not supported(model.config):
        # Layers that do not look at the whole past have no state that could be repeated: each text by itself.
        def whole(batch: Sequence[tuple[int, ...]]) -> torch.Tensor:
            ids = torch.tensor([[*context, *beginning] for beginning in batch], device=device)
            logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
            return logits[:, len(context) - 1 :].float().cpu()

        return whole

    cache = DynamicCache()
    ids = torch.tensor([list(context)], device=device)
    first: torch.Tensor = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits

    def after(batch: Sequence[tuple[int, ...]]) -> torch.Tensor:
        before = first.float().cpu().expand(len(batch), 1, -1)
        if not batch[0]:
            return before
        mine = copy.deepcopy(cache)
        mine.batch_repeat_interleave(len(batch))
        logits = model(input_ids=torch.tensor(batch, device=device), past_key_values=mine, use_cache=True).logits
        return torch.cat([before, logits.float().cpu()], dim=1)

    return after
