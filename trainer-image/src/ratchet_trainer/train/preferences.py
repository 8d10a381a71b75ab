"""What people preferred, as units of a training: pairs (dpo) and judged answers (kto), and their log-probabilities.

Room: trainer. Pure, given a tokenizer and a model.

The log-probability of an answer is the sum over its tokens, its end-of-turn token included. The reference is the base
model with the adapter off. Its log-probabilities are computed once for each unit, without dropout, and each unit by
itself: so they do not hang on what else is in a step, and a training that is resumed gets the same bits.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ratchet_api.training import Method
from ratchet_trainer.chat import Message
from ratchet_trainer.dataset import first_error, numbered_lines
from ratchet_trainer.errors import DataError
from ratchet_trainer.train.encode import Encoder, Example
from ratchet_trainer.train.loop import Forward, token_losses
from ratchet_trainer.train.packing import pack, plan


@dataclass(frozen=True)
class Pair:
    """Two answers to one conversation."""

    chosen: Example
    rejected: Example

    def __len__(self) -> int:
        return len(self.chosen) + len(self.rejected)

    @property
    def targets(self) -> int:
        """Supervised tokens of both."""
        return self.chosen.targets + self.rejected.targets

    @property
    def sequences(self) -> tuple[Example, Example]:
        """Both."""
        return self.chosen, self.rejected


@dataclass(frozen=True)
class Judged:
    """An answer, and whether somebody liked it."""

    example: Example
    desirable: bool

    def __len__(self) -> int:
        return len(self.example)

    @property
    def targets(self) -> int:
        """Supervised tokens."""
        return self.example.targets

    @property
    def sequences(self) -> tuple[Example]:
        """The one."""
        return (self.example,)


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    role: Literal["assistant"]
    content: str


_Prompt = Annotated[list[Message], Field(min_length=1)]
_Answers = Annotated[list[_Answer], Field(min_length=1, max_length=1)]


class _PairRow(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    prompt: _Prompt
    chosen: _Answers
    rejected: _Answers


class _JudgedRow(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    prompt: _Prompt
    completion: _Answers
    label: bool


def read_preferences(path: Path, method: Method, where: str, encoder: Encoder) -> Sequence[Pair] | Sequence[Judged]:
    """The units of preferences.jsonl; rows that are none are counted in `encoder.left_out`, once a row, and as
    `identical` when both answers of a pair are the same tokens.

    Raises DataError naming the line that cannot be read; UserError when no unit is left.
    """
    units: Sequence[Pair] | Sequence[Judged]
    lines = numbered_lines(path)
    units = list(_pairs(lines, where, encoder)) if method == "dpo" else list(_judged(lines, where, encoder))
    if not units:
        raise encoder.none_left()
    return units


def _pairs(lines: Iterable[tuple[int, bytes]], where: str, encoder: Encoder) -> Iterator[Pair]:
    for number, line in lines:
        try:
            row = _PairRow.model_validate_json(line)
        except ValidationError as error:
            raise _unreadable(where, number, error) from None
        chosen, rejected = _encoded(encoder, row.prompt, row.chosen), _encoded(encoder, row.prompt, row.rejected)
        if isinstance(chosen, str) or isinstance(rejected, str):
            encoder.left_out[chosen if isinstance(chosen, str) else str(rejected)] += 1
        elif chosen.ids == rejected.ids:
            encoder.left_out["identical"] += 1
        else:
            yield Pair(chosen, rejected)


def _judged(lines: Iterable[tuple[int, bytes]], where: str, encoder: Encoder) -> Iterator[Judged]:
    for number, line in lines:
        try:
            row = _JudgedRow.model_validate_json(line)
        except ValidationError as error:
            raise _unreadable(where, number, error) from None
        example = _encoded(encoder, row.prompt, row.completion)
        if isinstance(example, str):
            encoder.left_out[example] += 1
        else:
            yield Judged(example, row.label)


def _unreadable(where: str, number: int, error: ValidationError) -> DataError:
    said = f"{where}, line {number}: {first_error(error)}"
    return DataError(f"{said}; curate the dataset again with the training's method")


def _encoded(encoder: Encoder, prompt: Sequence[Message], answer: Sequence[_Answer]) -> Example | str:
    """Only the last answer counts: the earlier ones are the conversation."""
    context = [turn.model_copy(update={"weight": 0}) if turn.role == "assistant" else turn for turn in prompt]
    return encoder.encode([*context, Message(role="assistant", content=answer[0].content)])


def log_probs(model: Any, sequences: Sequence[Example], forward: Forward) -> torch.Tensor:
    """Of each sequence's answer, in nats, fp32 [sequences]; packed in one pass where the model packs exactly."""
    passes = [sequences] if forward.packed else [[sequence] for sequence in sequences]
    found = list[torch.Tensor]()
    for together in passes:
        with forward.context():
            losses = token_losses(model, pack(together).to(forward.device))
        found += [-part.sum() for part in losses.split([sequence.targets for sequence in together])]
    return torch.stack(found)


@contextlib.contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """Without dropout and without gradients."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def log_probs_of_all(model: Any, sequences: Sequence[Example], micro_batch: int, forward: Forward) -> torch.Tensor:
    """The same of any number, at most `micro_batch` in a pass."""
    return torch.cat([log_probs(model, group, forward) for group in plan(sequences, micro_batch, forward.packed)])


class Reference:
    """The base model's log-probabilities."""

    def __init__(self) -> None:
        # By identity: the units live as long as the training, and the hash of one would go over all of its tokens.
        self._known: dict[int, torch.Tensor] = {}

    def of(self, model: Any, units: Sequence[Pair] | Sequence[Judged], forward: Forward) -> torch.Tensor:
        """[units, sequences of one]."""
        unknown = [unit for unit in units if id(unit) not in self._known]
        if unknown:
            with undisturbed(model), model.disable_adapter():
                for unit in unknown:
                    self._known[id(unit)] = log_probs(model, unit.sequences, forward)
        return torch.stack([self._known[id(unit)] for unit in units])
