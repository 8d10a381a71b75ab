"""A list of tasks for a model: TASKS.yaml, and what came of each.

Room: cli. `parse` is pure; `run_tasks` talks to the model, runs the tasks' own commands and records what was said.
"""

import secrets
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from ratchet_api.base import Duration
from ratchet_cli.collect.chat import interaction_of
from ratchet_cli.collect.collector import WorkSessionCollector
from ratchet_cli.collect.errors import Misused, NoAnswer
from ratchet_cli.collect.judging import Judgement, by_command, by_words
from ratchet_cli.collect.model import Answer, Message, Model, started

_EXAMPLE = '- {id: capital, prompt: "What is the capital of France?", expect: {all: [Paris]}}'


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


Word = Annotated[str, Field(min_length=1, pattern=r"\S")]


class Expect(_Strict):
    """Words of the answer, whatever the case of their letters."""

    all: list[Word] = Field(default_factory=list)
    """Every one of these must be in it."""
    any: list[Word] = Field(default_factory=list)
    """At least one of these must be in it."""
    none: list[Word] = Field(default_factory=list)
    """None of these may be in it."""


def _split(value: object) -> object:
    return shlex.split(value) if isinstance(value, str) else value


class Task(_Strict):
    """One question with its way of judging."""

    id: Annotated[str, Field(min_length=1, max_length=128)]
    prompt: Annotated[str, Field(min_length=1, pattern=r"\S")]
    system: str = ""
    expect: Expect | None = None
    """Words to look for."""
    command: Annotated[list[str], BeforeValidator(_split), Field(min_length=1)] | None = None
    """Program that gets the answer as standard input; exit code 0 is success. A string is split as a shell would, but
    no shell runs it."""
    timeout: Annotated[Duration, Field(strict=False)] | None = None
    """Longest run of the command; 30 s."""

    @model_validator(mode="after")
    def _is_judged(self) -> "Task":
        words = self.expect and (self.expect.all or self.expect.any or self.expect.none)
        if not words and self.command is None:
            raise ValueError("nothing says when it is done: write `expect` (all, any or none) or `command`")
        if self.timeout is not None and self.command is None:
            raise ValueError("`timeout` is the command's: write a `command`, or leave it out")
        return self


class _List(_Strict):
    tasks: Annotated[list[Task], Field(min_length=1)]


def parse(text: str, where: str) -> list[Task]:
    """The tasks of a file: a list, or `tasks:` with a list. Raises Misused naming what is wrong and where."""
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise Misused(f"{where} is no YAML: {' '.join(str(error).split())}") from None
    try:
        tasks = _List.model_validate({"tasks": content} if isinstance(content, list) else content).tasks
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
        said = first["msg"].removeprefix("Value error, ")
        raise Misused(f"{where}: {place or 'the file'}: {said}; a task is {_EXAMPLE}") from None
    seen: set[str] = set()
    for task in tasks:
        if task.id in seen:
            raise Misused(f"{where}: two tasks have the id {task.id}: give each its own")
        seen.add(task.id)
    return tasks


@dataclass(frozen=True)
class Outcome:
    """What came of one task."""

    id: str
    success: bool
    seconds: float
    """Until the whole answer was there."""
    why: str = ""
    """Why it failed."""
    answer: str = ""
    answered: bool = True
    """Whether there was an answer to judge; one that failed altogether says nothing about the model."""
    version: str = ""
    response_id: str = ""
    recorded: bool = False


@dataclass
class Report:
    """All outcomes."""

    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def successful(self) -> int:
        """Tasks that were done."""
        return sum(outcome.success for outcome in self.outcomes)

    @property
    def unanswered(self) -> int:
        """Tasks that got no answer."""
        return sum(not outcome.answered for outcome in self.outcomes)

    def document(self) -> dict[str, Any]:
        """For programs."""
        return {
            "tasks": len(self.outcomes), "successful": self.successful, "unanswered": self.unanswered,
            "outcomes": [asdict(outcome) for outcome in self.outcomes],
        }  # fmt: skip


def run_tasks(
    tasks: Sequence[Task], model: Model, collector: WorkSessionCollector | None, told: Callable[[Outcome], None]
) -> Report:
    """Each task in a conversation of its own, one after the other. Raises OSError when a record cannot be kept."""
    report = Report()
    for task in tasks:
        outcome = _run(task, model, collector)
        report.outcomes.append(outcome)
        told(outcome)
    return report


def _run(task: Task, model: Model, collector: WorkSessionCollector | None) -> Outcome:
    session, answer, trouble = f"task-{secrets.token_hex(8)}", started(), ""
    messages: list[Message] = [{"role": "system", "content": task.system}] if task.system else []
    messages.append({"role": "user", "content": task.prompt})
    try:
        with closing(model.ask(messages, session, answer)) as pieces:
            for _ in pieces:
                pass
    except NoAnswer as error:
        answer.finish_reason, trouble = "error", str(error)
    judgement = Judgement(False, trouble) if trouble else judged(task, answer.text)
    recorded, lost = False, ""
    try:
        recorded = _record(task, model, collector, messages, answer, session, judgement, judge=not trouble)
    except NoAnswer as error:
        lost = str(error)
    why = "; ".join(part for part in (judgement.why, lost) if part)
    return Outcome(
        task.id, judgement.success, round(answer.seconds, 3), why, answer.text, not trouble, answer.version, answer.id,
        recorded,
    )  # fmt: skip


def judged(task: Task, answer: str) -> Judgement:
    """By words, and by the command when the words are right. Raises Misused when the command cannot be started."""
    if task.expect is not None:
        found = by_words(answer, task.expect.all, task.expect.any, task.expect.none)
        if not found.success or task.command is None:
            return found
    assert task.command is not None
    seconds = 30.0 if task.timeout is None else task.timeout.total_seconds()
    try:
        return by_command(answer, task.command, seconds)
    except OSError as error:
        raise Misused(
            f"task {task.id}: command: {task.command[0]} cannot be started ({error.strerror}): name a program that is "
            "on the PATH, or its path"
        ) from None


def _record(
    task: Task, model: Model, collector: WorkSessionCollector | None, messages: Sequence[Message], answer: Answer,
    session: str, judgement: Judgement, judge: bool,
) -> bool:  # fmt: skip
    """Has the exchange and, if it can be judged, the verdict recorded; whether they are. Raises NoAnswer."""
    comment = f"task {task.id}" + (f": {judgement.why}" if judgement.why else "")
    if model.gateway:
        if judge:
            model.judge(answer, judgement.success, comment=comment)
        return judge
    if collector is None:
        return False
    metadata: Mapping[str, Any] = {"task": task.id} | ({"success": judgement.success} if judge else {})
    record = interaction_of(collector, model, messages, answer, session, metadata)
    verdict = [collector.feedback(record, answer.at, judgement.success, comment=comment)] if judge else []
    collector.write(record, *verdict)
    return True
