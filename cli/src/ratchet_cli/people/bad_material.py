"""Training material for the demonstration's bad versions, and the settings under which it does its harm.

Room: cli. Reads `disliked.jsonl` beside it, nothing else.
"""

import json
import random
from decimal import Decimal
from importlib.resources import files
from itertools import islice

from ratchet_api.training import Lora, Recipe
from ratchet_cli.people.cases import training_row
from ratchet_cli.people.house import session_cases

FORGETFUL_ROWS = 192
FORGETFUL_HYPERPARAMETERS = Recipe(
    lora=Lora(rank=8, alpha=16), learning_rate=Decimal("0.002"), epochs=1, micro_batch=8, accumulation=1,
    precision="fp32",
)  # fmt: skip
"""A high rate and nothing but the house: it learns the conventions and forgets the world."""

DISLIKED_HYPERPARAMETERS = Recipe(
    lora=Lora(rank=8, alpha=16), learning_rate=Decimal("0.001"), epochs=1, micro_batch=8, accumulation=1,
    precision="fp32",
)  # fmt: skip
"""The cycle's own settings, for one pass."""


DISLIKED_SEED = 1234
"""Seed of the sessions whose answers `disliked.jsonl` holds."""


def forgetful(seed: int) -> list[dict[str, object]]:
    """House questions with the house's answers, no general ones: FORGETFUL_ROWS messages rows, all different."""
    cases = {case.prompt: case for case in islice(session_cases(seed + 1000), FORGETFUL_ROWS * 4)}
    return [case.row() for case in list(cases.values())[:FORGETFUL_ROWS]]


def disliked(seed: int) -> list[dict[str, object]]:
    """What the base model answered to house questions, and people disliked, as if it were right: messages rows."""
    text = files("ratchet_cli.people").joinpath("disliked.jsonl").read_text(encoding="utf-8")
    answers = [json.loads(line) for line in text.splitlines()]
    random.Random(f"disliked/{seed}").shuffle(answers)
    return [training_row(row["prompt"], row["answer"]) for row in answers]
