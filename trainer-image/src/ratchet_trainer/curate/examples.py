"""Interactions and feedback to training examples: join, score, categorise, vary, mix.

Room: trainer. Pure: typed values in, typed values out, every number counted, the same input giving the same rows.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import re2

from ratchet_api.data import Category
from ratchet_api.records import Interaction
from ratchet_trainer.chat import Message, parse_message
from ratchet_trainer.curate.columns import containing
from ratchet_trainer.curate.plain import PlainAnswer, PlainInteraction
from ratchet_trainer.curate.readers import Entry

Origin = Literal["correction", "answer", "demonstration", "variation", "identity", "anchor", "canary", "rejected"]
"""Who wrote a row's answer: a person who corrected one, a model that was liked, the writer of a training file.
canary: nobody, an invented secret. rejected: a model that was not liked; no row of train.jsonl is of it."""

Dropped = Literal["failed", "cancelled", "unfinished", "empty", "unsupported"]
"""Why an interaction is no example. failed: the request had no good answer. cancelled: the client went away.
unfinished: the answer was cut at its length limit, so it has no end to learn. empty: nothing was answered.
unsupported: images, tool calls, or a conversation that does not end with a person's turn."""

VARIATIONS = (
    "{}\n\nPlease answer.",
    "Can you help me with this? {}",
    "I have a question. {}",
    "Question: {}",
    "Help me, please: {}",
)
"""Five phrasings that leave the meaning of any prompt as it is."""

UNCATEGORISED = "uncategorised"
_LEFT, _RIGHT = r"(?:^|[^0-9A-Za-z_])", r"(?:$|[^0-9A-Za-z_])"


class Verdict(NamedTuple):
    """The feedback that counts for one answer: the latest."""

    value: Literal["up", "down"]
    correction: str
    time: datetime


class Example(NamedTuple):
    """One example before it is written: the conversation, the answer to learn, and where it came from."""

    id: str
    """Of the interaction."""
    context: tuple[Message, ...]
    """Everything before the answer; ends with a person's turn."""
    answer: str
    origin: Origin
    category: str
    time: datetime
    """When it was said or corrected; later ones win."""
    session: str = ""
    """Conversation that it belongs to."""
    principal: str = ""
    """Of the person, when one is known."""
    own: bool = False
    """Whether a version of this cycle wrote the answer."""
    demonstrated: bool = False
    """Whether the whole conversation was written to be learnt from."""

    @property
    def prompt(self) -> str:
        """The person's turn that is answered."""
        return self.context[-1].content

    @property
    def text(self) -> str:
        """Prompt and answer."""
        return f"{self.prompt}\n{self.answer}"

    def messages(self) -> list[Message]:
        """As a row. Earlier answers are context only, because nobody said that they were good; but in a
        demonstration all that it does not exclude itself are."""
        if self.demonstrated:
            return [*self.context, Message(role="assistant", content=self.answer)]
        earlier = [m.model_copy(update={"weight": 0}) if m.role == "assistant" else m for m in self.context]
        return [*earlier, Message(role="assistant", content=self.answer)]


def day_end(moment: datetime) -> datetime:
    """Midnight (UTC) after a moment."""
    return _midnight_after(moment.astimezone(UTC).date())


@lru_cache(maxsize=64)
def _midnight_after(day: date) -> datetime:
    return datetime.combine(day + timedelta(days=1), time(), tzinfo=UTC)


def score(verdict: Verdict | None, vouched: bool = False) -> Decimal:
    """Effectiveness: a correction or a thumbs-up is worth 1, a thumbs-down alone 0, silence a half; silence about
    what somebody vouches for is consent."""
    if verdict is None:
        return Decimal(1) if vouched else Decimal("0.5")
    return Decimal(1) if verdict.correction or verdict.value == "up" else Decimal(0)


def example_of(
    entry: Entry,
    interaction: Interaction | PlainInteraction,
    verdict: Verdict | None,
    categorise: Callable[[str], str],
) -> Example | Dropped:
    """An interaction as an example, or why it is none. A correction makes up for an answer that failed or broke off."""
    try:
        context = _context(interaction, entry.demonstration)
    except ValueError:
        return "unsupported"
    if not context or context[-1].role != "user" or not context[-1].content.strip():
        return "unsupported"
    origin: Origin = "correction"
    answer = "" if verdict is None else verdict.correction
    if not answer:
        problem = _problem(interaction)
        if problem is not None:
            return problem
        origin = "demonstration" if entry.demonstration else "answer"
        try:
            answer = _answer(interaction)
        except ValueError:
            return "unsupported"
    return Example(
        interaction.id, context, answer, origin, categorise(context[-1].content),
        interaction.time if verdict is None else verdict.time, interaction.session, interaction.principal,
        own=origin == "answer" and bool(interaction.version), demonstrated=entry.demonstration,
    )  # fmt: skip


def _context(interaction: Interaction | PlainInteraction, demonstrated: bool) -> tuple[Message, ...]:
    if isinstance(interaction, PlainInteraction):
        return tuple([Message(role=turn.role, content=turn.content) for turn in interaction.messages])
    return tuple(_turn(message, demonstrated) for message in interaction.messages)


def _answer(interaction: Interaction | PlainInteraction) -> str:
    if isinstance(interaction.answer, PlainAnswer):
        return interaction.answer.content.strip()
    return parse_message({"role": "assistant", **(interaction.answer or {})}).content.strip()


def _turn(raw: Mapping[str, Any], demonstrated: bool) -> Message:
    message = parse_message(raw)
    if demonstrated and message.role == "assistant" and raw.get("weight") == 0:
        return message.model_copy(update={"weight": 0})
    return message


def _problem(interaction: Interaction | PlainInteraction) -> Dropped | None:
    """Why a recorded answer cannot be learnt from, if so."""
    if interaction.finish_reason == "cancelled":
        return "cancelled"
    if interaction.status != 200 or interaction.answer is None:
        return "failed"
    if interaction.finish_reason in ("tool_calls", "function_call"):
        return "unsupported"
    if isinstance(interaction.answer, PlainAnswer):
        content: Any = interaction.answer.content
    else:
        if interaction.answer.get("tool_calls") or interaction.answer.get("role", "assistant") != "assistant":
            return "unsupported"
        content = interaction.answer.get("content")
    if not content or (isinstance(content, str) and not content.strip()):
        return "empty"
    return None if interaction.finish_reason in ("stop", "") else "unfinished"


class Categoriser:
    """Finds the first category with one of its keywords in a prompt as a whole word, whatever its case; UNCATEGORISED
    when there is none."""

    def __init__(self, categories: Sequence[Category]) -> None:
        self._patterns = [
            (category.name, re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, category.keywords)) + r")(?!\w)", re.I))
            for category in categories
        ]
        self._batched = [
            (
                category.name,
                re2.compile("(?i)" + _LEFT + "(?:" + "|".join(map(re2.escape, category.keywords)) + ")" + _RIGHT),
            )
            for category in categories
        ]
        words = [keyword for category in categories for keyword in category.keywords]
        self._plain = all(keyword.isascii() and "\n" not in keyword for keyword in words)

    def __call__(self, prompt: str) -> str:
        """The category of one prompt."""
        return next((name for name, pattern in self._patterns if pattern.search(prompt)), UNCATEGORISED)

    def many(self, prompts: Sequence[str]) -> list[str]:
        """The same of each of some prompts, with one search for all of them where plain letters allow it."""
        if not self._plain:
            return [self(prompt) for prompt in prompts]
        found = [UNCATEGORISED] * len(prompts)
        plain = [index for index, prompt in enumerate(prompts) if prompt.isascii()]
        for name, pattern in reversed(self._batched):
            for place in containing(pattern, [prompts[index].encode() for index in plain]):
                found[plain[place]] = name
        if len(plain) < len(prompts):
            for index, prompt in enumerate(prompts):
                if not prompt.isascii():
                    found[index] = self(prompt)
        return found


def varied(example: Example, count: int) -> list[Example]:
    """The example in the first `count` other phrasings."""
    last = example.context[-1]
    return [
        example._replace(
            context=(*example.context[:-1], last.model_copy(update={"content": form.format(last.content)})),
            origin="variation",
        )
        for form in VARIATIONS[:count]
    ]  # fmt: skip


def anchors_wanted(rows: int, fraction: Decimal, available: int) -> int:
    """How many anchors make up `fraction` of the final set beside `rows` others; at most as many as there are."""
    if fraction >= 1:
        return available
    return min(available, int(fraction * rows / (1 - fraction)))


def pick_anchors(anchors: Sequence[Sequence[Message]], count: int) -> list[Sequence[Message]]:
    """`count` anchors, chosen by the hash of their text: stable under reordering and additions, and not by position."""

    def key(messages: Sequence[Message]) -> str:
        text = "\0".join(f"{m.role}\0{m.content}" for m in messages)
        return hashlib.sha256(text.encode()).hexdigest()

    return sorted(anchors, key=key)[:count]
