"""Conversations and their rendering by a model's chat template: one way for training, evaluation and serving.

Room: trainer. Pure, given a tokenizer.

The template decides everything, its default system prompt included; a model that was trained on one rendering and is
asked in another has learnt for nothing. Templates write the beginning-of-sequence token themselves, so the text is
encoded without special tokens (no double BOS).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from ratchet_trainer.errors import UserError

Role = Literal["system", "user", "assistant"]


class Message(BaseModel):
    """One turn of a conversation, text only."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Role
    content: str
    weight: Literal[0, 1] | None = None
    """On assistant turns: 0 keeps a turn as context without training on it (as in OpenAI's fine-tuning format)."""


class Row(BaseModel):
    """One line of a dataset's train.jsonl."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    messages: list[Message] = Field(min_length=1)


class Tokenizer(Protocol):
    """What is used of a transformers tokenizer."""

    chat_template: Any
    eos_token_id: int | None
    pad_token_id: int | None
    all_special_tokens: list[str]

    def apply_chat_template(self, conversation: Any, *, tokenize: bool, add_generation_prompt: bool) -> Any: ...
    def __call__(self, text: str, *, add_special_tokens: bool) -> Any: ...
    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str: ...


class TemplateError(ValueError):
    """The chat template refuses a conversation, for example because of its order of roles."""


def parse_message(raw: Mapping[str, Any]) -> Message:
    """An OpenAI message as text. Raises ValueError for anything that is not text (images, tool calls, ...)."""
    role, content = raw.get("role"), raw.get("content")
    if role == "developer":
        role = "system"
    if role not in ("system", "user", "assistant"):
        raise ValueError(f"role {role!r} is not supported; use system, user or assistant")
    if raw.get("tool_calls") or raw.get("function_call"):
        raise ValueError("tool calls are not supported")
    if isinstance(content, list):
        content = "".join(_part(part) for part in content)
    if not isinstance(content, str):
        raise ValueError("content must be a string or a list of text parts")
    return Message(role=role, content=content)


def _part(part: object) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        text: str = part["text"]
        return text
    raise ValueError("content parts other than text are not supported")


def check_template(tokenizer: Tokenizer, model: str) -> None:
    """Raises UserError when the model has no chat template."""
    if not tokenizer.chat_template:
        raise UserError(
            f"{model} has no chat template, so it is no chat model: name an instruction-tuned model in baseModel.uri, "
            "or add chat_template.jinja to its folder"
        )


def render(tokenizer: Tokenizer, messages: Iterable[Message], answer_next: bool) -> str:
    """The conversation as the template writes it; `answer_next` opens the assistant's next turn.

    Raises TemplateError.
    """
    from jinja2 import TemplateError as JinjaError

    plain = [{"role": m.role, "content": m.content} for m in messages]
    try:
        text = tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=answer_next)
    except (JinjaError, ValueError, TypeError) as error:
        raise TemplateError(str(error)) from None
    assert isinstance(text, str)
    return text


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of rendered text."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def prompt_ids(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """What the model sees before it answers. Raises TemplateError."""
    return encode(tokenizer, render(tokenizer, messages, answer_next=True))


def stop_ids(tokenizer: Tokenizer, generation_config: Any) -> frozenset[int]:
    """Tokens that end a turn: the tokenizer's and those of the model's generation settings."""
    configured = getattr(generation_config, "eos_token_id", None)
    ids = {tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])}
    return frozenset(i for i in ids if isinstance(i, int))
