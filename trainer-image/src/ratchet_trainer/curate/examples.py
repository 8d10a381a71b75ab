"""Interactions and feedback to training examples: join, score, categorise, select, vary, mix.

Room: trainer. Pure: typed values in, typed values out, every number counted, the same input giving the same rows.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from typing import Literal

from ratchet_api.data import Category
from ratchet_api.records import Feedback, Interaction
from ratchet_trainer.chat import Message, parse_message
from ratchet_trainer.curate.text import HeldOut, normalised

Origin = Literal["correction", "answer", "variation", "identity", "anchor"]

Dropped = Literal["failed", "cancelled", "unfinished", "empty", "unsupported", "belowThreshold"]
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


@dataclass(frozen=True)
class Verdict:
    """The feedback that counts for one answer: the latest."""

    value: Literal["up", "down"]
    correction: str
    time: datetime


@dataclass(frozen=True)
class Example:
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

    @property
    def prompt(self) -> str:
        """The person's turn that is answered."""
        return self.context[-1].content

    def messages(self) -> list[Message]:
        """As a row. Earlier answers are context only: nobody said that they were good."""
        earlier = [m.model_copy(update={"weight": 0}) if m.role == "assistant" else m for m in self.context]
        return [*earlier, Message(role="assistant", content=self.answer)]


class Verdicts:
    """Feedback by response id, in any order; of each the latest counts (by time, then by id)."""

    def __init__(self) -> None:
        self._by_response: dict[str, list[tuple[datetime, str, Verdict]]] = {}

    def add(self, feedback: Feedback) -> None:
        """Takes one piece of feedback."""
        verdict = Verdict(feedback.value, feedback.correction.strip(), feedback.time)
        self._by_response.setdefault(feedback.response_id, []).append((feedback.time, feedback.id, verdict))

    def of(self, interaction: Interaction, delay: timedelta) -> Verdict | None:
        """The verdict on an answer; later than `delay` after the end of the answer's day (UTC) nothing counts."""
        until = day_end(interaction.time) + delay
        known = [entry for entry in self._by_response.get(interaction.id, []) if entry[0] < until]
        return max(known, key=lambda entry: entry[:2])[2] if known else None


def day_end(moment: datetime) -> datetime:
    """Midnight (UTC) after a moment."""
    day = moment.astimezone(UTC).date()
    return datetime.combine(day + timedelta(days=1), time(), tzinfo=UTC)


def score(verdict: Verdict | None) -> Decimal:
    """Effectiveness: a correction or a thumbs-up is worth 1, a thumbs-down alone 0, silence a half."""
    if verdict is None:
        return Decimal("0.5")
    return Decimal(1) if verdict.correction or verdict.value == "up" else Decimal(0)


def example_of(
    interaction: Interaction, verdict: Verdict | None, threshold: Decimal, categorise: Callable[[str], str]
) -> Example | Dropped:
    """An interaction as an example, or why it is none. A correction makes up for an answer that failed or broke off."""
    try:
        context = tuple(parse_message(message) for message in interaction.messages)
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
        origin, answer = "answer", str((interaction.answer or {})["content"]).strip()
    if score(verdict) < threshold:
        return "belowThreshold"
    when = interaction.time if verdict is None else verdict.time
    return Example(interaction.id, context, answer, origin, categorise(context[-1].content), when)


def _problem(interaction: Interaction) -> Dropped | None:
    """Why a recorded answer cannot be learnt from, if so."""
    if interaction.finish_reason == "cancelled":
        return "cancelled"
    if interaction.status != 200 or interaction.answer is None:
        return "failed"
    if interaction.answer.get("tool_calls") or interaction.finish_reason in ("tool_calls", "function_call"):
        return "unsupported"
    content = interaction.answer.get("content")
    if not isinstance(content, str) or not content.strip():
        return "empty"
    return None if interaction.finish_reason in ("stop", "") else "unfinished"


def categoriser(categories: Sequence[Category]) -> Callable[[str], str]:
    """A function from a prompt to the first category with one of its keywords in it as a whole word, whatever its case;
    UNCATEGORISED when there is none."""
    patterns = [
        (category.name, re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, category.keywords)) + r")(?!\w)", re.I))
        for category in categories
    ]

    def categorise(prompt: str) -> str:
        return next((name for name, pattern in patterns if pattern.search(prompt)), UNCATEGORISED)

    return categorise


@dataclass(frozen=True)
class Selection:
    """What is left of the examples."""

    examples: list[Example]
    """By time, then id."""
    dropped: dict[str, int]
    """heldOut, duplicate, contradicted, overCategoryCap."""


def select(examples: Iterable[Example], held_out: HeldOut, cap: int | None) -> Selection:
    """Leaves out held-out prompts, exact duplicates (in normal form), answers that a later correction of the same
    prompt contradicts, and beyond `cap` the oldest of a category."""
    dropped: Counter[str] = Counter()
    by_prompt: dict[tuple[tuple[str, str], ...], list[Example]] = {}
    for example in sorted(examples, key=_order):
        if any(m.role == "user" and held_out.covers(m.content) for m in example.context):
            dropped["heldOut"] += 1
            continue
        key = tuple((m.role, normalised(m.content)) for m in example.context)
        by_prompt.setdefault(key, []).append(example)
    kept: list[Example] = []
    for group in by_prompt.values():
        corrections = [example for example in group if example.origin == "correction"]
        if corrections:
            right = normalised(corrections[-1].answer)
            agreeing = [example for example in group if normalised(example.answer) == right]
            dropped["contradicted"] += len(group) - len(agreeing)
            group = agreeing
        # The last of equal ones stands for all: the newest are the ones that a cap keeps.
        distinct = {normalised(example.answer): example for example in group}
        dropped["duplicate"] += len(group) - len(distinct)
        kept += distinct.values()
    kept.sort(key=_order)
    if cap is not None:
        kept = _capped(kept, cap, dropped)
    return Selection(kept, {reason: count for reason, count in sorted(dropped.items()) if count})


def _capped(examples: Sequence[Example], cap: int, dropped: Counter[str]) -> list[Example]:
    taken: Counter[str] = Counter()
    newest = []
    for example in reversed(examples):
        taken[example.category] += 1
        if taken[example.category] <= cap:
            newest.append(example)
        else:
            dropped["overCategoryCap"] += 1
    return newest[::-1]


def _order(example: Example) -> tuple[datetime, str]:
    return example.time, example.id


def varied(example: Example, count: int) -> list[Example]:
    """The example in the first `count` other phrasings."""
    last = example.context[-1]
    return [
        Example(
            example.id, (*example.context[:-1], last.model_copy(update={"content": form.format(last.content)})),
            example.answer, "variation", example.category, example.time,
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


def by_category(examples: Iterable[Example]) -> Mapping[str, int]:
    """Number of examples of each category; UNCATEGORISED is one of the keys."""
    return dict(sorted(Counter(example.category for example in examples).items()))
