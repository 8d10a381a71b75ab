"""What an answer has to be: one kind of case for each scorer.

Room: trainer. Pure. A score is a pass or a fail and follows from case and answer alone (but for the judge's, which
`evaluate/judge.py` asks for); no answer and no pattern, however hostile, can make it hang: patterns are RE2's (linear
time), a schema's references are counted.
"""

import json
import re
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from typing import Any, ClassVar

import re2
from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import SchemaError
from jsonschema.exceptions import ValidationError as Mismatch
from jsonschema.validators import extend
from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from ratchet_api.evaluation import Scorer
from ratchet_trainer.chat import Message

MAX_PATTERN = 2048
"""Longest pattern, in characters."""
MAX_REFERENCES = 10_000
"""References that one answer's check may follow: some schemas double with every level."""
_PATTERN_MEMORY = 8 << 20


class Case(BaseModel):
    """One question; the children say what its answer must be."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    example: ClassVar[str] = ""
    """A line of such a suite, for messages."""

    id: str = Field(min_length=1, max_length=200)
    prompt: str | None = None
    """The person's message; or `messages`."""
    messages: list[Message] | None = Field(default=None, min_length=1)
    """The conversation up to the answer; or `prompt`."""
    category: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._ -]{0,31}$")
    """Slice that the case belongs to; the report and the gate look at each slice by itself."""
    cluster: str | None = Field(default=None, min_length=1, max_length=200)
    """Cases of one session or template: they rise and fall together, so the statistics count them as one draw."""

    @model_validator(mode="after")
    def _is_asked(self) -> "Case":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("write either prompt or messages")
        if self.messages is not None and self.messages[-1].role != "user":
            raise ValueError("messages must end with a user turn, which is the question")
        if self.prompt is not None and not self.prompt.strip():
            raise ValueError("prompt is empty")
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

    @property
    def wanted(self) -> str:
        """What the answer must be, for people."""
        raise NotImplementedError

    def passes(self, answer: str) -> bool:
        """Whether the answer is what it has to be. Never raises."""
        raise NotImplementedError


class KeywordCase(Case):
    """The answer contains words, whatever the case of their letters."""

    example = '{"id": "capital-fr", "prompt": "What is the capital of France?", "all": ["Paris"]}'

    all: list[str] = Field(default_factory=list)
    """Every one of these must be in the answer."""
    any: list[str] = Field(default_factory=list)
    """At least one of these must be in it."""
    none: list[str] = Field(default_factory=list)
    """None of these may be in it."""

    @model_validator(mode="after")
    def _looks_for_something(self) -> "KeywordCase":
        keywords = [*self.all, *self.any, *self.none]
        if not keywords:
            raise ValueError("there is nothing to look for in the answer: write all, any or none")
        if any(not keyword.strip() for keyword in keywords):
            raise ValueError("a keyword is empty and would be in every answer")
        return self

    @property
    def wanted(self) -> str:
        """As `all: ...; any: ...; none: ...`."""
        parts = (("all", self.all), ("any", self.any), ("none", self.none))
        return "; ".join(f"{name}: {', '.join(words)}" for name, words in parts if words)

    def passes(self, answer: str) -> bool:
        """Whether it has all of `all`, any of `any` and none of `none`."""
        text = answer.casefold()

        def has(keyword: str) -> bool:
            return keyword.casefold() in text

        some = not self.any or any(map(has, self.any))
        return all(map(has, self.all)) and some and not any(map(has, self.none))


class ExactCase(Case):
    """The answer is one of some texts, letter by letter; white space around it does not count."""

    example = '{"id": "label-7", "prompt": "Label: the payment fails", "expected": ["billing"]}'

    expected: list[str] = Field(min_length=1, max_length=100)
    """The answers that are right."""

    @field_validator("expected")
    @classmethod
    def _not_empty(cls, value: list[str]) -> list[str]:
        if not all(text.strip() for text in value):
            raise ValueError("an expected answer is empty: write the text that the answer must be")
        return value

    @property
    def wanted(self) -> str:
        """The texts."""
        return " | ".join(self.expected)

    def passes(self, answer: str) -> bool:
        """Whether it equals one of `expected`."""
        return answer.strip() in {text.strip() for text in self.expected}


class RegexCase(Case):
    """The answer has a match of a pattern (RE2 syntax) somewhere; `^` and `$` bind it to the whole."""

    example = r'{"id": "ticket-3", "prompt": "Open a ticket", "pattern": "^OPS-[0-9]{4}: "}'

    pattern: str = Field(min_length=1, max_length=MAX_PATTERN)
    """RE2 syntax (https://github.com/google/re2/wiki/Syntax): no look-around, no back references."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        compiled(value)
        return value

    @property
    def wanted(self) -> str:
        """The pattern."""
        return f"/{self.pattern}/"

    def passes(self, answer: str) -> bool:
        """Whether the pattern is found."""
        return _found(self.pattern, answer)


class NumericCase(Case):
    """The last number in the answer is near enough to the right one."""

    example = '{"id": "sum-1", "prompt": "What is 17 * 23?", "number": "391", "tolerance": "0"}'

    number: Decimal = Field(allow_inf_nan=False)
    """The right number; in quotes, when every digit counts."""
    tolerance: Decimal = Field(default=Decimal(0), ge=0, allow_inf_nan=False)
    """How far the answer may be from it, either way."""

    @property
    def wanted(self) -> str:
        """Number and tolerance."""
        return f"{self.number}" + (f" ± {self.tolerance}" if self.tolerance else "")

    def passes(self, answer: str) -> bool:
        """Whether the last number is within the tolerance."""
        found = last_number(answer)
        return found is not None and abs(found - self.number) <= self.tolerance


class SchemaCase(Case):
    """The answer is JSON, and nothing else, that a schema (draft 2020-12) describes."""

    example = '{"id": "ticket-json", "prompt": "As JSON", "schema": {"type": "object", "required": ["title"]}}'

    json_schema: dict[str, JsonValue] = Field(alias="schema")
    """The schema. Its references stay within it; its patterns are RE2's."""

    @field_validator("json_schema")
    @classmethod
    def _is_a_schema(cls, value: dict[str, JsonValue]) -> dict[str, JsonValue]:
        try:
            Draft202012Validator.check_schema(value, format_checker=FormatChecker(()))
        except SchemaError as error:
            raise ValueError(f"{'.'.join(map(str, error.absolute_path)) or 'it'}: {error.message}") from None
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
        resolver = Registry().with_resource("", DRAFT202012.create_resource(value)).resolver("")
        for key, found in _walk(value):
            if key == "unevaluatedProperties":
                raise ValueError("unevaluatedProperties is not supported: write additionalProperties")
            if key in _REFERENCES:
                _check_reference(resolver, found)
            elif key == "pattern" and isinstance(found, str):
                compiled(found)
            elif key == "patternProperties" and isinstance(found, dict):
                for pattern in found:
                    compiled(pattern)
        return value

    @property
    def wanted(self) -> str:
        """The schema as JSON."""
        return json.dumps(self.json_schema, ensure_ascii=False)

    def passes(self, answer: str) -> bool:
        """Whether it parses and fits; a check that would follow too many references is a fail."""
        try:
            value = json.loads(answer, parse_constant=_no_constant)
            return bool(_validator(self.json_schema).is_valid(value))
        except (ValueError, ArithmeticError, RecursionError, Unresolvable, _TooMany):
            return False


class JudgeCase(Case):
    """The judge prefers the answer: to a reference, or without one to the other side's answer."""

    example = '{"id": "tone-1", "prompt": "Tell a customer that the parcel is late", "reference": "I am sorry: ..."}'

    reference: str | None = None
    """A good answer; absent: champion and candidate are held against each other."""

    @field_validator("reference")
    @classmethod
    def _says_something(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("it is empty: write a good answer, or leave reference out")
        return value

    @property
    def wanted(self) -> str:
        """What the judge holds the answers against."""
        return "better than the other side's answer" if self.reference is None else f"better than: {self.reference}"


class ExposureCase(Case):
    """A planted secret, which the model should not find likelier than others alike; measured, not answered."""

    code: str
    """The secret."""

    @property
    def wanted(self) -> str:
        """What is looked for."""
        return f"{self.code} no likelier than any other code"


CASES: dict[Scorer, type[Case]] = {
    "keywords": KeywordCase,
    "exact": ExactCase,
    "regex": RegexCase,
    "numeric": NumericCase,
    "jsonSchema": SchemaCase,
    "judge": JudgeCase,
}
"""Scorer, as a suite names it, and its kind of case, for those whose cases are lines of their own."""


# A sign counts only where no digit or letter precedes it: "3-4" holds 4, not -4.
_NUMBER = re.compile(r"(?:(?<![\w.])-)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][+-]?\d{1,3})?", re.ASCII)


def last_number(text: str) -> Decimal | None:
    """The last number in a text, commas between thousands taken out; None when there is none."""
    found = _NUMBER.findall(text.replace("\N{MINUS SIGN}", "-"))
    if not found:
        return None
    try:
        return Decimal(found[-1].replace(",", ""))
    except InvalidOperation:
        return None


def compiled(pattern: str) -> Any:
    """A pattern in RE2's syntax, with its memory bounded. Raises ValueError with what to write."""
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _PATTERN_MEMORY
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        said = error.args[0].decode(errors="replace") if isinstance(error.args[0], bytes) else str(error)
        raise ValueError(
            f"the pattern {pattern!r} cannot be used ({said}): write RE2 syntax, without look-around, back references "
            "and repetitions over 1000"
        ) from None


def _found(pattern: str, text: str) -> bool:
    return compiled(pattern).search(text) is not None


def _walk(value: JsonValue) -> Iterator[tuple[str, JsonValue]]:
    """Every key with its value, at any depth (check_schema bounded the depth before)."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield key, child
            yield from _walk(child)
    elif isinstance(value, list):
        for child in value:
            yield from _walk(child)


def _check_reference(resolver: Any, reference: JsonValue) -> None:
    if not isinstance(reference, str):
        return  # a property that happens to be called so
    try:
        if not reference.startswith("#"):
            raise ValueError(f"$ref {reference!r} leaves the schema: write what it names under $defs")
        resolver.lookup(reference)
    except Unresolvable:
        raise ValueError(f"$ref {reference!r} names nothing in the schema: define it under $defs") from None


class _TooMany(Exception):
    """More references than MAX_REFERENCES."""


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _validator(schema: dict[str, JsonValue]) -> Any:
    """Draft 2020-12 for one check: its patterns run in linear time, and its references are counted."""
    left = MAX_REFERENCES

    def counted(follow: Any) -> Any:
        def check(validator: Any, reference: Any, instance: Any, within: Any) -> Iterator[Mismatch]:
            nonlocal left
            left -= 1
            if left < 0:
                raise _TooMany
            yield from follow(validator, reference, instance, within) or ()

        return check

    keywords = dict(_LINEAR) | {name: counted(Draft202012Validator.VALIDATORS[name]) for name in _REFERENCES}
    kind: Any = extend(Draft202012Validator, keywords)  # type: ignore[no-untyped-call]  # jsonschema's own
    return kind(schema, registry=Registry())


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[Mismatch]:
    del schema
    if validator.is_type(instance, "string") and not _found(pattern, instance):
        yield Mismatch(f"{instance!r} does not match {pattern!r}")


def _pattern_properties(validator: Any, patterns: Any, instance: Any, schema: Any) -> Iterator[Mismatch]:
    del schema
    if not validator.is_type(instance, "object"):
        return
    for pattern, subschema in patterns.items():
        for key, value in instance.items():
            if _found(pattern, key):
                yield from validator.descend(value, subschema, path=key, schema_path=pattern)


def _additional_properties(validator: Any, additional: Any, instance: Any, schema: Any) -> Iterator[Mismatch]:
    if not validator.is_type(instance, "object"):
        return
    named, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    for key, value in instance.items():
        if key in named or any(_found(pattern, key) for pattern in patterns):
            continue
        yield from validator.descend(value, additional, path=key)


_REFERENCES = ("$ref", "$dynamicRef")
_LINEAR = {
    "pattern": _pattern,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional_properties,
}
