"""Many prompts at once, answered greedily: how evaluation asks.

Room: trainer. Touches the model that it is given.
"""

from collections.abc import Callable, Sequence
from typing import Any

from ratchet_trainer.chat import Tokenizer
from ratchet_trainer.generation.conversation import Conversation
from ratchet_trainer.generation.engine import Engine, supported


def answer_all(
    model: Any,
    tokenizer: Tokenizer,
    stops: frozenset[int],
    prompts: Sequence[Sequence[int]],
    max_new: int,
    batch_size: int,
    on_progress: Callable[[int, int], None],
) -> list[str]:
    """The likeliest answer to each prompt, in their order. `on_progress` gets answers done and tokens generated."""
    # Similar lengths side by side: less padding, and the same batches for whoever is asked.
    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
    ask = _by_engine if supported(model.config) else _by_generate
    tokens = ask(model, tokenizer, stops, [prompts[index] for index in order], max_new, batch_size, on_progress)
    answers = [""] * len(prompts)
    for index, found in zip(order, tokens, strict=True):
        answers[index] = tokenizer.decode(found, skip_special_tokens=True).strip()
    return answers


def _by_engine(
    model: Any,
    tokenizer: Tokenizer,
    stops: frozenset[int],
    prompts: Sequence[Sequence[int]],
    max_new: int,
    batch_size: int,
    on_progress: Callable[[int, int], None],
) -> list[list[int]]:
    del tokenizer
    longest = max(len(prompt) for prompt in prompts)
    engine = Engine(model, stops, min(batch_size, len(prompts)), longest + max_new)
    conversations = [Conversation(prompt, max_new) for prompt in prompts]
    for conversation in conversations:
        engine.add(conversation)
    done = generated = 0
    while engine.busy:
        for conversation in engine.step():
            generated += 1
            if conversation.finish is not None:
                done += 1
                on_progress(done, generated)
    return [conversation.tokens for conversation in conversations]


def _by_generate(
    model: Any,
    tokenizer: Tokenizer,
    stops: frozenset[int],
    prompts: Sequence[Sequence[int]],
    max_new: int,
    batch_size: int,
    on_progress: Callable[[int, int], None],
) -> list[list[int]]:
    """By transformers itself, for architectures whose layers do not look at the whole past."""
    import torch

    pad = tokenizer.pad_token_id or 0
    device = next(model.parameters()).device
    results: list[list[int]] = []
    generated = 0
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        width = max(map(len, batch))
        ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in batch], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in batch], device=device)
        with torch.inference_mode():
            output = model.generate(
                input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=max_new, pad_token_id=pad,
                eos_token_id=sorted(stops),
            )  # fmt: skip
        for row in output[:, width:].tolist():
            end = next((index for index, token in enumerate(row) if token in stops), len(row))
            results.append(row[:end])
            generated += end
        on_progress(len(results), generated)
    return results
