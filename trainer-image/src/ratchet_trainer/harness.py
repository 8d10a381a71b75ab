"""Tasks of lm-evaluation-harness (EleutherAI): a task's YAML and its documents to cases.

Room: trainer. Pure. Source of the format and of what it means: lm-eval 0.4.13, `docs/task_guide.md`,
`lm_eval/api/task.py` and `lm_eval/api/metrics.py`, as it runs with `--apply_chat_template` (a chat model is asked as it
is served). `tests/trainer/harness_by_lm_eval.py` holds scores of the real one against ours.

Nothing of a task is run: its templates are rendered in Jinja's sandbox, `!function` is refused, and patterns are RE2's.
What would change a score and is not known here is refused by name.
"""

import ast
import json
import string
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import yaml
from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import SandboxedEnvironment
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ratchet_api.evaluation import Suite
from ratchet_trainer.chat import Message
from ratchet_trainer.dataset import first_error
from ratchet_trainer.errors import UserError
from ratchet_trainer.scorers import Case, compiled

EXAMPLE = '{"question": "What is 17 + 4?", "choices": ["20", "21"], "answer": 1}'
_PATTERN_LIMIT = 16


class Comparison(BaseModel):
    """How exact_match compares an answer with what it must be."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ignore_case: bool = False
    ignore_punctuation: bool = False
    ignore_numbers: bool = False
    regexes_to_ignore: list[str] = Field(default_factory=list, max_length=_PATTERN_LIMIT)

    @field_validator("regexes_to_ignore")
    @classmethod
    def _compile(cls, value: list[str]) -> list[str]:
        for pattern in value:
            compiled(pattern)
        return value

    def normalised(self, text: str) -> str:
        """What is compared of a text. White space around it does not count, as with every scorer."""
        for pattern in self.regexes_to_ignore:
            text = str(compiled(pattern).sub("", text))
        text = text.lower() if self.ignore_case else text
        gone = string.punctuation if self.ignore_punctuation else ""
        gone += string.digits if self.ignore_numbers else ""
        return text.translate(str.maketrans("", "", gone)).strip()


class Metric(Comparison):
    """An entry of `metric_list`."""

    metric: Literal["acc", "acc_norm", "acc_bytes", "exact_match"]
    aggregation: Literal["mean"] = "mean"
    higher_is_better: Literal[True] = True


class ChoiceCase(Case):
    """The likeliest of some continuations is a right one; measured, not answered."""

    choices: list[str] = Field(min_length=2)
    right: list[int] = Field(min_length=1)
    """Numbers of the right ones, from 0."""
    metric: Literal["acc", "acc_norm", "acc_bytes"] = "acc"
    """acc: by log-likelihood; acc_norm: by that for each character; acc_bytes: for each byte of UTF-8."""

    @property
    def wanted(self) -> str:
        """The right ones, and what they are chosen from."""
        return f"{' or '.join(self.choices[place] for place in self.right)}, of: {' | '.join(self.choices)}"

    def chosen(self, likelihoods: Sequence[float]) -> str:
        """The choice that a model takes, by the log-likelihoods of all; of equal ones the first."""
        lengths = {
            "acc": [1] * len(self.choices),
            "acc_norm": [len(choice) for choice in self.choices],
            "acc_bytes": [len(choice.encode()) for choice in self.choices],
        }[self.metric]
        best = max(range(len(lengths)), key=lambda place: likelihoods[place] / lengths[place])
        return self.choices[best]

    def passes(self, answer: str) -> bool:
        """Whether it is one of the right choices."""
        return answer in [self.choices[place] for place in self.right]


class UntilCase(Case):
    """The answer, up to a text that ends it, is one of some texts."""

    targets: list[str] = Field(min_length=1)
    until: list[str]
    comparison: Comparison

    @property
    def wanted(self) -> str:
        """The texts."""
        return " | ".join(self.targets)

    def passes(self, answer: str) -> bool:
        """Whether it equals one of them, as the task compares."""
        for end in filter(None, self.until):
            answer = answer.split(end)[0]
        return self.comparison.normalised(answer) in map(self.comparison.normalised, self.targets)


class Generation(BaseModel):
    """`generation_kwargs`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    until: str | list[str] | None = None
    do_sample: Literal[False] = False
    temperature: float = Field(default=0, ge=0, le=0)
    max_gen_toks: int | None = None


class Task(BaseModel):
    """What of a task's YAML is known here. The first block describes where lm-eval would get the documents from, which
    here are the suite's cases."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str | None = None
    task_alias: str | None = None
    tag: str | list[str] | None = None
    group: str | list[str] | None = None
    metadata: dict[str, Any] | None = None
    dataset_path: str | None = None
    dataset_name: str | None = None
    dataset_kwargs: dict[str, Any] | None = None
    training_split: str | None = None
    validation_split: str | None = None
    test_split: str | None = None
    fewshot_split: str | None = None

    output_type: Literal["multiple_choice", "generate_until"] = "generate_until"
    doc_to_text: str
    doc_to_target: str | int | list[int]
    doc_to_choice: str | list[str] | None = None
    description: str = ""
    target_delimiter: str = " "
    """Not written before a choice, as the template opens the answer: lm-eval leaves it out, too."""
    fewshot_delimiter: str = "\n\n"
    num_fewshot: Literal[0] | None = None
    generation_kwargs: Generation | None = None
    metric_list: list[Metric] = Field(min_length=1)

    @model_validator(mode="after")
    def _fits(self) -> "Task":
        if len(self.metric_list) > 1:
            names = ", ".join(metric.metric for metric in self.metric_list)
            raise ValueError(f"metric_list has {names}: keep the one that the gate shall decide by")
        choices = self.output_type == "multiple_choice"
        wanted = ("acc", "acc_norm", "acc_bytes") if choices else ("exact_match",)
        if self.metric.metric not in wanted:
            raise ValueError(f"metric_list: write {' or '.join(wanted)} for output_type {self.output_type}")
        if choices != (self.doc_to_choice is not None):
            raise ValueError("doc_to_choice: write it with output_type: multiple_choice, and only then")
        if choices and self.generation_kwargs is not None:
            raise ValueError("generation_kwargs: nothing is generated with output_type: multiple_choice")
        return self

    @property
    def metric(self) -> Metric:
        """The one that decides."""
        return self.metric_list[0]

    @property
    def until(self) -> list[str]:
        """Texts at which an answer is cut."""
        given = None if self.generation_kwargs is None else self.generation_kwargs.until
        return [self.fewshot_delimiter] if given is None else [given] if isinstance(given, str) else given


def read_task(text: bytes, suite: Suite) -> Task:
    """A task's YAML. Raises UserError naming suite, field and what to write."""
    where = f"suite {suite.name}, cases.task"
    try:
        found = yaml.safe_load(text)
    except yaml.constructor.ConstructorError as error:
        raise UserError(
            f"{where}: {error.problem}; Python of a task is not run: write the field as a template or as a field's name"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{where} is no YAML: {str(error).splitlines()[0]}") from None
    try:
        task = Task.model_validate(found)
    except ValidationError as error:
        raise UserError(f"{where}: {first_error(error)}; a task of one suite has the fields {_KNOWN}") from None
    generation = task.generation_kwargs
    if generation is not None and generation.max_gen_toks not in (None, suite.max_new_tokens):
        raise UserError(
            f"{where}: generation_kwargs.max_gen_toks is {generation.max_gen_toks}, and the suite's maxNewTokens "
            f"{suite.max_new_tokens}: write one number into both"
        )
    return task


_KNOWN = ", ".join(
    name for name in ("output_type", "doc_to_text", "doc_to_target", "doc_to_choice", "description",
                      "generation_kwargs", "metric_list")
)  # fmt: skip


def cases_of(task: Task, suite: Suite, lines: Sequence[tuple[int, bytes]]) -> list[Case]:
    """A case for each document, by its line. Raises UserError naming suite, line and what to write."""
    found: list[Case] = []
    for number, line in lines:
        where = f"suite {suite.name}, line {number}"
        try:
            document = json.loads(line)
        except (ValueError, RecursionError):
            raise UserError(f"{where} is no JSON: write one document a line, such as {EXAMPLE}") from None
        if not isinstance(document, dict):
            raise UserError(f"{where} is no JSON object: write one document a line, such as {EXAMPLE}")
        try:
            found.append(_case(task, document, f"{number}"))
        except ValidationError as error:
            raise UserError(f"{where}: {first_error(error)}") from None
        except (TemplateError, ValueError, TypeError, SyntaxError, OverflowError, RecursionError, MemoryError) as error:
            raise UserError(f"{where}: {error}; look at the task's templates and at the document") from None
    return found


def _case(task: Task, document: Mapping[str, Any], name: str) -> Case:
    question = _rendered(task.doc_to_text, document, "doc_to_text")
    if not isinstance(question, str):
        raise ValueError(f"doc_to_text gives {question!r}, no text")
    turns = [Message(role="user", content=question)]
    description = _rendered(task.description, document, "description") if task.description else ""
    if description:
        turns.insert(0, Message(role="system", content=str(description)))
    if task.output_type == "multiple_choice":
        if question.isdigit():
            raise ValueError("doc_to_text gives a choice's number (one context a choice), which is not supported")
        choices = _choices(task, document)
        right = _right(_target(task, document), choices)
        metric = task.metric.metric
        assert metric != "exact_match", "checked with the task"
        return ChoiceCase(id=name, messages=turns, choices=choices, right=right, metric=metric)
    target = _target(task, document)
    targets = [str(one) for one in target] if isinstance(target, list) else [str(target)]
    comparison = Comparison(**task.metric.model_dump(include=set(Comparison.model_fields)))
    return UntilCase(id=name, messages=turns, targets=targets, until=task.until, comparison=comparison)


def _choices(task: Task, document: Mapping[str, Any]) -> list[str]:
    given = task.doc_to_choice
    found: Any = given
    if isinstance(given, str):
        rendered = _rendered(given, document, "doc_to_choice")
        found = ast.literal_eval(rendered) if isinstance(rendered, str) else rendered
    if not (isinstance(found, list) and len(found) > 1 and all(isinstance(one, str) and one for one in found)):
        raise ValueError(f"doc_to_choice gives {found!r}, no list of two texts or more")
    if len(set(found)) < len(found):
        raise ValueError(f"doc_to_choice gives {found!r}, in which two are alike")
    return found


def _target(task: Task, document: Mapping[str, Any]) -> Any:
    """As lm-eval reads it: a field's value, or a template whose digits are a choice's number."""
    given = task.doc_to_target
    if not isinstance(given, str) or given in document:
        return _rendered(given, document, "doc_to_target") if isinstance(given, str) else given
    text = str(_rendered(given, document, "doc_to_target"))
    if text.isdigit() and task.doc_to_choice is not None:
        return int(text)
    if len(text) >= 2 and text[0] == "[" and text[-1] == "]":
        try:
            return ast.literal_eval(text)
        except (SyntaxError, ValueError):
            return text
    return text


def _right(target: Any, choices: Sequence[str]) -> list[int]:
    wanted = target if isinstance(target, list) else [target]
    if any(isinstance(one, bool) for one in wanted):
        raise ValueError(f"doc_to_target gives {target!r}; write a choice or its number, from 0")
    places = [choices.index(one) if isinstance(one, str) and one in choices else one for one in wanted]
    if not places or not all(isinstance(place, int) and 0 <= place < len(choices) for place in places):
        raise ValueError(f"doc_to_target gives {target!r}, which is none of {len(choices)} choices, counted from 0")
    return sorted(set(places))


def _replaced(text: str, pattern: str, repl: str, count: int = 0) -> str:
    return str(compiled(pattern).sub(repl, text, count=count))


_TEMPLATES = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
_TEMPLATES.filters["regex_replace"] = _replaced


def _rendered(template: str, document: Mapping[str, Any], field: str) -> Any:
    """A field of the document by its name, or a template over all of them."""
    if template in document:
        return document[template]
    try:
        return _TEMPLATES.from_string(template).render(**document)
    except TemplateError as error:
        raise ValueError(f"{field}: {error.message}") from None
