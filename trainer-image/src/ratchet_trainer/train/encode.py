"""Rows to tokens, with the mask of what is learnt: the assistant's words and the token that ends its turn.

Room: trainer. Pure, given a tokenizer.

Few templates carry generation markers, so the mask is derived by rendering prefixes: the conversation up to the
assistant's turn (opened for an answer) must be a prefix of the conversation with that turn. What is between is the
answer. Prompt and answer are encoded apart, because that is how they meet when the model answers.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ratchet_trainer.chat import Message, Row, TemplateError, Tokenizer, encode, render
from ratchet_trainer.errors import UserError


@dataclass(frozen=True)
class Example:
    """One training example: token ids, and for each whether it is learnt."""

    ids: tuple[int, ...]
    supervised: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def targets(self) -> int:
        """Number of supervised tokens."""
        return sum(self.supervised)

    @property
    def sequences(self) -> "tuple[Example]":
        """As a unit of a training."""
        return (self,)

    @property
    def first_target(self) -> int:
        """Index of the first supervised token; never 0, because nothing precedes index 0."""
        return self.supervised.index(True)


@dataclass(frozen=True)
class Encoded:
    """A dataset ready for training."""

    examples: list[Example]
    left_out: dict[str, int] = field(default_factory=dict)
    """Why rows were left out: tooLong, specialTokens, noAnswer, template."""


class PrefixError(ValueError):
    """The template rewrites what came before, so that no part of its text can be called the answer."""


def encode_row(tokenizer: Tokenizer, messages: Sequence[Message], stops: frozenset[int]) -> Example:
    """Tokens and mask of one conversation.

    Raises TemplateError, PrefixError, or ValueError when there is no assistant turn to learn from.
    """
    done, ids, mask = "", [], []
    for index, message in enumerate(messages):
        if message.role != "assistant" or message.weight == 0:
            continue
        prompt = render(tokenizer, messages[:index], answer_next=True)
        whole = render(tokenizer, messages[: index + 1], answer_next=False)
        if not (prompt.startswith(done) and whole.startswith(prompt)):
            raise PrefixError(f"turn {index}")
        context = encode(tokenizer, prompt[len(done) :])
        answer, rest = _until_stop(encode(tokenizer, whole[len(prompt) :]), stops, tokenizer.eos_token_id)
        ids += context + answer + rest
        mask += [False] * len(context) + [True] * len(answer) + [False] * len(rest)
        done = whole
    mask[:1] = [False]  # nothing precedes the first token
    if not any(mask):
        raise ValueError("there is no assistant turn to learn from")
    end = len(mask) - mask[::-1].index(True)
    return Example(tuple(ids[:end]), tuple(mask[:end]))


def _until_stop(tokens: list[int], stops: frozenset[int], eos: int | None) -> tuple[list[int], list[int]]:
    """An answer up to and with its last end-of-turn token, and what the template writes after it."""
    for index in range(len(tokens) - 1, -1, -1):
        if tokens[index] in stops:
            return tokens[: index + 1], tokens[index + 1 :]
    # A template that closes no turn would teach the model never to stop.
    return (tokens if eos is None else [*tokens, eos]), []


class Encoder:
    """Conversations to examples; those that are none are counted by reason."""

    def __init__(self, tokenizer: Tokenizer, stops: frozenset[int], cutoff: int, model: str) -> None:
        """`cutoff`: tokens of the longest example; `model`: what messages call the base."""
        self._tokenizer, self._stops, self._cutoff, self._model = tokenizer, stops, cutoff, model
        self._special = [token for token in tokenizer.all_special_tokens if token]
        self._said = ""
        self.left_out: Counter[str] = Counter()

    def encode(self, messages: Sequence[Message]) -> Example | str:
        """The example, or why there is none: tooLong (more than `cutoff` tokens: left out, never cut), specialTokens
        (text with special tokens of the model, which could open and close turns), noAnswer, template. Raises UserError
        when the template rewrites history."""
        if any(token in message.content for message in messages for token in self._special):
            return "specialTokens"
        try:
            example = encode_row(self._tokenizer, messages, self._stops)
        except PrefixError:
            raise UserError(
                f"the chat template of {self._model} rewrites earlier turns (rendering a conversation up to the answer "
                "is no prefix of the whole), so the answer cannot be masked: use a base model with an append-only "
                "template"
            ) from None
        except TemplateError as error:
            self._said = self._said or f" (the template says: {error})"
            return "template"
        except ValueError:
            return "noAnswer"
        return "tooLong" if len(example) > self._cutoff else example

    def none_left(self) -> UserError:
        """The error when there is no example at all."""
        counts = ", ".join(f"{reason} {count}" for reason, count in sorted(self.left_out.items()))
        return UserError(
            f"no row of the dataset can be trained on: {counts or 'the dataset is empty'}{self._said}; cutoff is "
            f"{self._cutoff} tokens, raise it if tooLong"
        )


def encode_rows(tokenizer: Tokenizer, rows: Iterable[Row], stops: frozenset[int], cutoff: int, model: str) -> Encoded:
    """All rows that can be learnt from. Raises UserError when none is left, or when the template rewrites history."""
    encoder = Encoder(tokenizer, stops, cutoff, model)
    examples: list[Example] = []
    for row in rows:
        example = encoder.encode(row.messages)
        if isinstance(example, Example):
            examples.append(example)
        else:
            encoder.left_out[example] += 1
    if not examples:
        raise encoder.none_left()
    return Encoded(examples, dict(encoder.left_out))
