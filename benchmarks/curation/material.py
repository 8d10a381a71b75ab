"""Sessions with planted truth: what a curation must find is known, because it was put there."""

import json
import random
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from pathlib import Path
from typing import Any

import zstandard

from ratchet_api.data import Curation
from ratchet_trainer.curate.pipeline import Settings

VOCABULARY = 20_000
MEMORY = 100_000
UNTIL = datetime(2026, 11, 20, tzinfo=UTC)
HELD_OUT = ["what would you do with the old harbour of a town that has lost its ships and all of its sailors"]
SECRETS = (
    "jane.doe{}@mail.example.com", "+49 30 12{:05d}", "DE89 3704 0044 0532 0130 00", "4111 1111 1111 1111",
    "203.0.113.{:d}", "AKIA{:016d}", "ghp_{:036d}",
)  # fmt: skip


@dataclass
class Truth:
    """Ids of what was planted."""

    exact: set[str] = field(default_factory=set)
    near: set[str] = field(default_factory=set)
    sensitive: set[str] = field(default_factory=set)
    sessions: int = 0
    source: dict[str, str] = field(default_factory=dict)
    """Of what repeats another's words, or nearly: the other's id."""


def settings(curation: Curation) -> Settings:
    """Of a run over these sessions."""
    return Settings(curation, "default", "assistant", UNTIL - timedelta(days=28), UNTIL, timedelta(days=7))


def write(folder: Path, sessions: int, seed: int, files: int = 8) -> Truth:
    """Interactions, each with a thumbs-up: 10 % repeat another's words (one of the last MEMORY), 10 % all but one or
    two in thirty, 10 % hold personal data or a secret. Zipf-distributed words, answers of 20 to 80 of them."""
    source = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(source.choices(letters, k=source.randint(2, 10))) for _ in range(VOCABULARY)]
    weights = list(accumulate(1 / (rank + 10) for rank in range(VOCABULARY)))

    def text(least: int, most: int) -> list[str]:
        return source.choices(words, cum_weights=weights, k=source.randint(least, most))

    truth = Truth(sessions=sessions)
    originals: deque[tuple[list[str], list[str], str]] = deque(maxlen=MEMORY)
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as opened:
        sinks = [_sink(opened, folder / f"{index}.jsonl.zst") for index in range(files)]
        for number in range(sessions):
            id, kind = f"r{number:07d}", source.random() if originals else 1.0
            if kind < 0.1:
                prompt, answer, truth.source[id] = source.choice(originals)
                truth.exact.add(id)
            elif kind < 0.2:
                asked, answered, truth.source[id] = source.choice(originals)
                prompt, answer = list(asked), list(answered)
                answer[source.randrange(len(answer))] = source.choice(words)
                truth.near.add(id)
            else:
                prompt, answer = text(8, 30), text(20, 80)
                if kind < 0.3:
                    answer.insert(len(answer) // 2, source.choice(SECRETS).format(source.randrange(1, 250)))
                    truth.sensitive.add(id)
                else:
                    originals.append((prompt, answer, id))
            lines = _lines(number, sessions, id, prompt, answer)
            sinks[source.randrange(files)].write(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    return truth


def _sink(opened: ExitStack, path: Path) -> Any:
    raw = opened.enter_context(path.open("wb"))
    return opened.enter_context(zstandard.ZstdCompressor().stream_writer(raw))


def _lines(number: int, sessions: int, id: str, prompt: list[str], answer: list[str]) -> Iterator[dict[str, Any]]:
    """An interaction and the verdict on it."""
    second = f"2026-11-{1 + number * 18 // sessions:02d}T{number % 24:02d}:{number % 60:02d}:00Z"
    yield {
        "kind": "interaction", "id": id, "session": f"s{number // 3}", "namespace": "default", "cycle": "assistant",
        "version": "assistant-1", "arm": "stable", "time": second, "principal": f"p{number % 500}",
        "messages": [{"role": "user", "content": " ".join(prompt)}],
        "answer": {"role": "assistant", "content": " ".join(answer)}, "finish_reason": "stop", "status": 200,
        "duration": 1.5, "usage": {"prompt_tokens": len(prompt), "completion_tokens": len(answer)},
    }  # fmt: skip
    yield {
        "kind": "feedback", "id": f"f{number}", "response_id": id, "namespace": "default", "cycle": "assistant",
        "version": "assistant-1", "time": second, "value": "up",
    }  # fmt: skip
