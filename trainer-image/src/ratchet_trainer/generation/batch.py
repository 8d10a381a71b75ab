"""Many prompts at once: how evaluation asks.

Room: trainer. Touches the model that it is given.
"""

from collections.abc import Callable, Sequence
from typing import Any

from ratchet_trainer.chat import Tokenizer
from ratchet_trainer.generation.conversation import Conversation, Sampling
from ratchet_trainer.generation.engine import Engine, supported


def answer_all(
    model: Any,
    tokenizer: Tokenizer,
    stops: frozenset[int],
    prompts: Sequence[Sequence[int]],
    max_new: int,
    batch_size: int,
    on_progress: Callable[[int, int], None],
    temperature: float = 0.0,
    samples: int = 1,
) -> list[list[str]]:
    """For each prompt, in their order, the likeliest answer, or with a temperature `samples` drawn ones.

    `on_progress` gets answers done and tokens generated.
    """
    # Similar lengths side by side: less padding, and the same batches for whoever is asked.
    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
    ask = _by_engine if supported(model.config) else _by_generate
    wanted = [
        Conversation(prompts[index], max_new, Sampling(temperature, seed=(index << 8) + number))
        for index in order
        for number in range(samples)
    ]
    tokens = ask(model, tokenizer, stops, wanted, batch_size, on_progress)
    answers: list[list[str]] = [[] for _ in prompts]
    for place, found in enumerate(tokens):
        answers[order[place // samples]].append(tokenizer.decode(found, skip_special_tokens=True).strip())
    return answers


def _by_engine(
    model: Any,
    tokenizer: Tokenizer,
    stops: frozenset[int],
    conversations: Sequence[Conversation],
    batch_size: int,
    on_progress: Callable[[int, int], None],
) -> list[list[int]]:
    del tokenizer
    longest = max(len(one.prompt) + one.max_new for one in conversations)
    engine = Engine(model, stops, min(batch_size, len(conversations)), longest)
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
    conversations: Sequence[Conversation],
    batch_size: int,
    on_progress: Callable[[int, int], None],
) -> list[list[int]]:
    """By transformers itself, for architectures whose layers do not look at the whole past."""
    import torch

    pad = tokenizer.pad_token_id or 0
    device = next(model.parameters()).device
    results: list[list[int]] = []
    generated = 0
    for start in range(0, len(conversations), batch_size):
        batch = [one.prompt for one in conversations[start : start + batch_size]]
        max_new, sampling = conversations[start].max_new, conversations[start].sampling
        width = max(map(len, batch))
        ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in batch], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in batch], device=device)
        drawn = {"do_sample": True, "temperature": sampling.temperature} if sampling.temperature > 0 else {}
        with torch.inference_mode(), torch.random.fork_rng():
            torch.manual_seed(sampling.seed or 0)
            output = model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=max_new, pad_token_id=pad,
                eos_token_id=sorted(stops), **({"do_sample": False} | drawn),
            )  # fmt: skip
        for row in output[:, width:].tolist():
            end = next((index for index, token in enumerate(row) if token in stops), len(row))
            results.append(row[:end])
            generated += end
        on_progress(len(results), generated)
    return results
