"""Held-out suites: reading and checking their cases.

Room: trainer. Touches the suites' folder, nothing else. Used by evaluate (to ask them) and curate (to keep them out).
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ratchet_api.evaluation import Suite
from ratchet_trainer.chat import Message
from ratchet_trainer.dataset import first_error, numbered_lines
from ratchet_trainer.errors import UserError

_EXAMPLE = '{"id": "capital-fr", "prompt": "What is the capital of France?", "all": ["Paris"]}'


class Case(BaseModel):
    """One question and what its answer must contain."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1)
    prompt: str | None = None
    """The person's message; or `messages`."""
    messages: list[Message] | None = Field(default=None, min_length=1)
    """The conversation up to the answer; or `prompt`."""
    all: list[str] = Field(default_factory=list)
    """Every one of these must be in the answer, whatever its case."""
    any: list[str] = Field(default_factory=list)
    """At least one of these must be in it."""
    none: list[str] = Field(default_factory=list)
    """None of these may be in it."""

    @model_validator(mode="after")
    def _makes_sense(self) -> "Case":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("write either prompt or messages")
        if self.messages is not None and self.messages[-1].role != "user":
            raise ValueError("messages must end with a user turn, which is the question")
        if self.prompt is not None and not self.prompt.strip():
            raise ValueError("prompt is empty")
        keywords = [*self.all, *self.any, *self.none]
        if not keywords:
            raise ValueError("there is nothing to look for in the answer: write all, any or none")
        if any(not keyword.strip() for keyword in keywords):
            raise ValueError("a keyword is empty and would be in every answer")
        return self

    @property
    def conversation(self) -> list[Message]:
        """What the model is asked."""
        if self.messages is not None:
            return self.messages
        return [Message(role="user", content=self.prompt or "")]

    @property
    def question(self) -> str:
        """The person's turn that is answered: what must not be trained on."""
        return self.conversation[-1].content

    def passes(self, answer: str) -> bool:
        """Whether an answer has all of `all`, any of `any` and none of `none`, whatever the case of the letters."""
        text = answer.casefold()

        def has(keyword: str) -> bool:
            return keyword.casefold() in text

        some = not self.any or any(map(has, self.any))
        return all(map(has, self.all)) and some and not any(map(has, self.none))


def read_suite(suite: Suite, folder: Path | None) -> list[Case]:
    """The cases of a suite, in their order. Raises UserError naming suite, line and what to write."""
    if folder is None:
        raise UserError(f"suite {suite.name} needs its cases: say where they are by --suites DIR")
    path = folder / f"{suite.name}.jsonl"
    if not path.is_file():
        raise UserError(f"suite {suite.name}: {path.name} is not among the mounted suites; name its ConfigMap and key")
    cases: dict[str, Case] = {}
    for number, line in numbered_lines(path):
        try:
            case = Case.model_validate_json(line)
        except ValidationError as error:
            raise UserError(
                f"suite {suite.name}, line {number}: {first_error(error)}; a case looks like {_EXAMPLE}"
            ) from None
        if case.id in cases:
            raise UserError(f"suite {suite.name}, line {number}: the id {case.id!r} is taken; give each case its own")
        cases[case.id] = case
    if not cases:
        raise UserError(f"suite {suite.name} has no cases: write one JSON object a line, such as {_EXAMPLE}")
    return list(cases.values())
