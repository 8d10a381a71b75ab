"""What base and adapter say to a few prompts, token by token: what every export is held against.

Room: trainer/export. Touches the device. Imports torch when it is called.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ratchet_trainer.chat import Message, TemplateError, Tokenizer, encode, render
from ratchet_trainer.errors import ExportDiffers, UserError
from ratchet_trainer.export.compare import Logits, Said

PROMPTS = (
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "How do I reverse a list in Python?",
    "Explain in one sentence why the sky is blue.",
    "Wie spät ist es in Tokio, wenn es in Berlin 12:30 Uhr ist?",
    "Summarise: the meeting on 3 March was moved to 17:45, room B-204.",
)
ANSWER_TOKENS = 16
ODD = "Line 1\n\n  indented\t3 33 333.5 — naïve café, Привет, 你好, 🚀 don't WE'LL x=y+1;"
"""Where tokenizers that only look alike part ways."""


@dataclass(frozen=True)
class Probe:
    """Texts, their tokens, and what is said about them."""

    texts: tuple[str, ...]
    """Rendered prompts, and one of everything."""
    tokens: tuple[list[int], ...]
    """Token ids of `texts`."""
    sequences: tuple[tuple[list[int], int], ...]
    """(prompt and the adapter's own greedy answer, position from which logits count)."""
    said: Said

    def check_tokens(self, tokenize: Callable[[str], list[int]], form: str) -> None:
        """Raises ExportDiffers when an exported tokenizer cuts a text differently."""
        for text, wanted in zip(self.texts, self.tokens, strict=True):
            if tokenize(text) != wanted:
                head = text[:40].replace("\n", " ")
                raise ExportDiffers(f"{form}: its tokenizer cuts {head!r} differently: take it out of export.formats")


def ask(switch: Callable[[str], AbstractContextManager[Any]], tokenizer: Tokenizer, name: str) -> Probe:
    """Probes a model with the adapter `candidate` on, and bare (see loading.load_adapters). Raises UserError when the
    template refuses."""
    try:
        texts = [render(tokenizer, [Message(role="user", content=text)], answer_next=True) for text in PROMPTS]
    except TemplateError as error:
        raise UserError(f"{name}: its chat template refuses a plain question: {error}") from None
    prompts = [encode(tokenizer, text) for text in texts]
    with switch("candidate") as model:
        sequences = tuple((_answered(model, ids), len(ids) - 1) for ids in prompts)
        adapter = logits_of(lambda ids: _forward(model, ids), sequences)
    with switch("bare") as model:
        base = logits_of(lambda ids: _forward(model, ids), sequences)
    texts.append(ODD)
    return Probe(tuple(texts), (*prompts, encode(tokenizer, ODD)), sequences, Said(adapter, base))


def logits_of(forward: Callable[[list[int]], Logits], sequences: tuple[tuple[list[int], int], ...]) -> Logits:
    """The logits that count, of all sequences, one below the other."""
    return np.concatenate([forward(ids)[first:] for ids, first in sequences]).astype(np.float32)


def of_model(model: Any, probe: Probe) -> Logits:
    """A transformers model's logits."""
    return logits_of(lambda ids: _forward(model, ids), probe.sequences)


def _forward(model: Any, ids: list[int]) -> Logits:
    import torch

    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0]
    found: Logits = logits.float().cpu().numpy()
    return found


def _answered(model: Any, prompt: list[int]) -> list[int]:
    """Prompt and greedy answer; whether a turn ends early does not matter here."""
    ids = list(prompt)
    for _ in range(ANSWER_TOKENS):
        ids.append(int(_forward(model, ids)[-1].argmax()))
    return ids
