"""General questions that everybody can judge: live traffic, the guardrail suite and the anchors, disjoint.

Room: cli. Reads `general.jsonl` beside it, nothing else.

The questions were chosen by asking the base model: about nine in ten are those that it answers well, the rest it does
not, and none of a training's questions is in the suite. The answers of the anchors are the base model's own words, so
that training on them keeps what it knew and teaches nothing new.
"""

import json
import random
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Literal

from ratchet_cli.people.cases import Case, Rubric

Use = Literal["live", "suite", "anchor"]


@cache
def general_cases(use: Use) -> tuple[Case, ...]:
    """All general questions of one use, in the order of the file."""
    lines = files("ratchet_cli.people").joinpath("general.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["use"] == use]
    return tuple(
        Case(
            id=f"general-{number:03d}",
            kind="general",
            family="general",
            prompt=row["prompt"],
            rubric=Rubric(any=tuple(row["any"])),
            reference=row["answer"],
        )
        for number, row in enumerate(rows, 1)
    )


def live_general_cases(seed: int) -> Iterator[Case]:
    """An endless stream of what people ask about the world: all questions once in random order, then again."""
    rng = random.Random(f"general/{seed}")
    questions = general_cases("live")
    while True:
        yield from rng.sample(questions, len(questions))
