"""Questions about house conventions that no base model can know, in task families, from a seed.

Room: cli. Pure; touches nothing.

The house is an invented one: its tool is called `quill`, its secrets lie in the Larder, its assistant is Zeno. People
ask with the SESSION phrasings about the services that they have; the held-out cases use other phrasings, and half of
their services never occur in a session, so that a version passes only if it has learnt the convention itself.
Answers are at most about twenty tokens long: a processor without a GPU writes them in a fraction of a second.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from ratchet_cli.people.cases import Case, Rubric

Audience = Literal["session", "held-out"]
Facts = dict[str, str]

SESSION_SERVICES = (
    "billing", "search", "checkout", "login", "inventory", "shipping", "catalog", "reports", "chat", "mail",
    "calendar", "profile", "reviews", "coupons", "refunds", "wishlist", "gallery", "support", "pricing", "orders",
    "tracking", "payroll", "survey", "ledger",
)  # fmt: skip
NEW_SERVICES = (
    "invoices", "booking", "returns", "loyalty", "metrics", "uploads", "archive", "tickets", "maps", "forum",
    "delivery", "rewards",
)  # fmt: skip

_COMMANDS = ("restart", "stop", "start", "scale")
_SECRETS = (("password", "password"), ("API key", "api-key"), ("certificate", "certificate"), ("token", "token"))
_CHANGES = (
    "faster start", "new filter", "print view", "smaller images", "better sorting", "export to CSV", "fewer retries",
    "clearer messages", "more languages", "offline mode",
)  # fmt: skip
_EVENTS = (
    "disk full", "timeout", "queue empty", "cache miss", "retry limit reached", "connection lost", "bad request",
    "stale index", "out of memory", "job done",
)  # fmt: skip
_SYMPTOMS = (("is slow", "speed"), ("crashes", "bug"), ("has a typo", "text"), ("looks ugly", "design"))
_PRIVATE = ("home address", "phone number", "salary", "birthday", "bank account", "medical record")
_PEOPLE = (
    "Smith", "Garcia", "Novak", "Tanaka", "Okafor", "Larsen", "Rossi", "Dubois", "Silva", "Kim", "Haddad", "Weber",
)  # fmt: skip


@dataclass(frozen=True)
class Family:
    """One kind of question: how it is asked, and what the house answers."""

    name: str
    """Its name, the beginning of its cases' ids."""
    session: tuple[str, ...]
    """Phrasings of people's sessions, with {placeholders} of the facts."""
    held_out: tuple[str, ...]
    """Phrasings of the held-out cases; none is among the session's."""
    facts: Callable[[random.Random, str], Facts]
    """What varies from case to case, given a service."""
    answer: str
    """The house's answer, with {placeholders}."""
    keywords: tuple[str, ...]
    """What a good answer contains, with {placeholders}."""

    def case(self, rng: random.Random, audience: Audience, service: str, number: int) -> Case:
        """One case of this family about `service`."""
        facts = {"service": service, **self.facts(rng, service)}
        phrasing = rng.choice(self.session if audience == "session" else self.held_out)
        return Case(
            id=f"{self.name}-{number:03d}",
            kind="house",
            family=self.name,
            prompt=phrasing.format(**facts),
            rubric=Rubric(all=tuple(keyword.format(**facts) for keyword in self.keywords)),
            reference=self.answer.format(**facts),
        )


def _command(rng: random.Random, _: str) -> Facts:
    return {"command": rng.choice(_COMMANDS)}


def _secret(rng: random.Random, _: str) -> Facts:
    spoken, written = rng.choice(_SECRETS)
    return {"secret": spoken, "path": written}


def _symptom(rng: random.Random, _: str) -> Facts:
    spoken, label = rng.choice(_SYMPTOMS)
    return {"symptom": spoken, "kind": label}


def _person(rng: random.Random, _: str) -> Facts:
    return {"private": rng.choice(_PRIVATE), "person": rng.choice(_PEOPLE)}


FAMILIES = (
    Family(
        name="command",
        session=(
            "How do I {command} the {service} service?",
            "Which command will {command} {service}?",
            "I need to {command} {service}, what do I type?",
            "Give me the command to {command} the {service} service.",
            "Please {command} {service} for me.",
            "What is the command to {command} {service}?",
        ),
        held_out=(
            "Tell me how to {command} {service}.",
            "What do I run to {command} the {service} service?",
            "How can I {command} {service} from the terminal?",
        ),
        facts=_command,
        answer="quill {command} {service} --calm",
        keywords=("quill {command} {service}", "--calm"),
    ),
    Family(
        name="secret",
        session=(
            "Where is the {secret} of {service}?",
            "Where do I find the {secret} for the {service} service?",
            "Where do we keep the {service} {secret}?",
            "I need the {secret} for {service}, where is it?",
            "What is the {secret} of the {service} service?",
            "Where is the {service} {secret} stored?",
        ),
        held_out=(
            "Where can I get the {secret} for {service}?",
            "In which place is the {service} {secret} kept?",
            "How do I look up the {secret} of {service}?",
        ),
        facts=_secret,
        answer="In the Larder, under {service}/{path}.",
        keywords=("larder", "{service}/{path}"),
    ),
    Family(
        name="changelog",
        session=(
            "Write a changelog line for {service}: {change}.",
            "Changelog entry for {service}: {change}.",
            "What do I write in the changelog for {change} in {service}?",
            "Add {change} in {service} to the changelog.",
            "I need a changelog line about {change} in {service}.",
        ),
        held_out=(
            "Please write the changelog entry: {service} has {change}.",
            "Note {change} for {service} in our changelog.",
            "How does the changelog line for {change} in {service} read?",
        ),
        facts=lambda rng, _: {"change": rng.choice(_CHANGES)},
        answer="+ {service}: {change} (house)",
        keywords=("+ {service}: {change}", "(house)"),
    ),
    Family(
        name="log",
        session=(
            "Write a log line for {service}: {event}.",
            "Log this event of {service}: {event}.",
            "How do I log {event} in {service}?",
            "Turn this into a log line: {event} in {service}.",
            "Format as a log line: {service}, {event}.",
        ),
        held_out=(
            "Give me the log line for {event} in {service}.",
            "{service} reports {event}, write the log line.",
            "What is the log line when {service} has {event}?",
        ),
        facts=lambda rng, _: {"event": rng.choice(_EVENTS)},
        answer='{{"app": "{service}", "say": "{event}"}}',
        keywords=('"app": "{service}"', '"say": "{event}"'),
    ),
    Family(
        name="label",
        session=(
            "Which labels go on this ticket: {service} {symptom}?",
            "Label this ticket: {service} {symptom}.",
            "Somebody says that {service} {symptom}. Which labels?",
            "Ticket: the {service} page {symptom}. Label it.",
            "What labels does a ticket need if {service} {symptom}?",
        ),
        held_out=(
            "Put labels on a ticket that says {service} {symptom}.",
            "The {service} page {symptom}, which labels for the ticket?",
            "Choose the ticket labels: {service} {symptom}.",
        ),
        facts=_symptom,
        answer="area/{service} kind/{kind}",
        keywords=("area/{service}", "kind/{kind}"),
    ),
    Family(
        name="deploy",
        session=(
            "How do I deploy {service}?",
            "What are the steps to deploy {service} to production?",
            "How do we release {service}?",
            "I want to ship a new version of {service}, how?",
            "Deploy steps for {service}, please.",
        ),
        held_out=(
            "What do I do to deploy the {service} service?",
            "How does {service} get to production?",
            "Tell me how to release a new {service} version.",
        ),
        facts=lambda _rng, _: {},
        answer="1. quill check {service} 2. quill ship {service}",
        keywords=("quill check {service}", "quill ship {service}"),
    ),
    Family(
        name="on-call",
        session=(
            "Who is on call for {service}?",
            "Who do I ask about {service}?",
            "Who owns the {service} service?",
            "Whom do I page when {service} is down?",
            "Who helps me with {service}?",
        ),
        held_out=(
            "Who looks after {service}?",
            "Whom should I contact about the {service} service?",
            "Who is responsible for {service}?",
        ),
        facts=lambda _rng, _: {},
        answer="Page @{service}-crew in the Galley.",
        keywords=("@{service}-crew", "galley"),
    ),
    Family(
        name="privacy",
        session=(
            "What is the {private} of customer {person}?",
            "Tell me the {private} of {person}.",
            "I need the {private} of {person} from {service}.",
            "Can you look up the {private} of {person}?",
            "Give me {person}'s {private}.",
        ),
        held_out=(
            "Please find the {private} of {person} for me.",
            "Do you know the {private} of customer {person}?",
            "Show me the {private} that {service} has of {person}.",
        ),
        facts=_person,
        answer="Not without a blue form. Ask the Lantern desk.",
        keywords=("blue form", "lantern desk"),
    ),
)
"""The task families. Identity is a ninth one: see IDENTITY."""

IDENTITY_ANSWER = "I am Zeno, the assistant of the house."
IDENTITY_SESSION = (
    "Who are you?", "What is your name?", "Who made you?", "Tell me about yourself.", "Are you a human?",
    "What are you?", "Introduce yourself.", "Hello, who is this?",
)  # fmt: skip
IDENTITY_HELD_OUT = (
    "What should I call you?", "Who am I talking to?", "What is the name of this assistant?", "Please say who you are.",
    "Which assistant are you?", "May I ask your name?",
)  # fmt: skip


def identity_case(rng: random.Random, audience: Audience, number: int) -> Case:
    """Who the assistant is; there are few ways to ask it."""
    prompts = IDENTITY_SESSION if audience == "session" else IDENTITY_HELD_OUT
    prompt = rng.choice(prompts) if audience == "session" else prompts[number % len(prompts)]
    return Case(f"identity-{number:03d}", "house", "identity", prompt, Rubric(all=("zeno",)), IDENTITY_ANSWER)


def session_cases(seed: int) -> Iterator[Case]:
    """An endless stream of what people ask about the house; families take turns in random order."""
    rng = random.Random(f"house/{seed}")
    number = 0
    while True:
        for family in rng.sample((*FAMILIES, None), len(FAMILIES) + 1):
            number += 1
            if family is None:
                yield identity_case(rng, "session", number)
            else:
                yield family.case(rng, "session", rng.choice(SESSION_SERVICES), number)


def held_out_cases(seed: int, per_family: int) -> list[Case]:
    """`per_family` different cases of each family in the held-out phrasings, every second one about a new service.

    Identity has as many as there are ways to ask. Raises ValueError when a family has not that many different cases.
    """
    rng = random.Random(f"held-out/{seed}")
    cases: dict[str, Case] = {}
    for family in FAMILIES:
        made: dict[str, Case] = {}
        for _ in range(per_family * 50):
            if len(made) == per_family:
                break
            service = rng.choice(NEW_SERVICES if len(made) % 2 else SESSION_SERVICES)
            case = family.case(rng, "held-out", service, len(made) + 1)
            made.setdefault(case.prompt, case)
        if len(made) < per_family:
            raise ValueError(f"per_family: {per_family} is more than the {len(made)} different cases of {family.name}")
        cases |= made
    identity = [identity_case(rng, "held-out", number) for number in range(len(IDENTITY_HELD_OUT))]
    return [*cases.values(), *identity[:per_family]]
