"""Simulated people: they ask through the stock `openai` client, judge by a rubric and send their verdict.

Room: cli. Talks HTTP to the gateway that it is given, nothing else.

The load is open-loop: questions fall due as a Poisson process, whether or not earlier ones are answered, as they do
with real people; only when everybody waits for an answer is a due question shed (and counted). A person holds a short
conversation under one session id and is then followed by another one, so that sessions spread over the arms. What is
asked and how it is judged follows from the seed and the question's number alone, not from timing.
"""

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from json import JSONDecodeError
from typing import Any

from openai import APIStatusError, AsyncOpenAI, OpenAIError

from ratchet_cli.people.cases import Case
from ratchet_cli.people.general import live_general_cases
from ratchet_cli.people.house import session_cases
from ratchet_cli.people.tally import Exchange, Failed, Snapshot, Tally

VERSION_HEADER = "x-ratchet-version"
SESSION_HEADER = "x-session-id"
_LONGEST_WAIT = 0.25
"""Seconds after which a waiting generator looks whether its rate was changed."""


@dataclass(frozen=True)
class Habits:
    """How people behave."""

    mix: float = 0.5
    """Share of house questions; the rest are general ones."""
    correction_share: float = 0.75
    """Share of the thumbs-down that carry a correction."""
    noise: float = 0.03
    """Share of the verdicts that are the wrong way round."""
    stream_share: float = 0.25
    """Share of the answers that are streamed."""
    questions: int = 3
    """Longest conversation, in questions; the shortest has one."""
    max_tokens: int = 28
    """Longest answer that they ask for."""

    def __post_init__(self) -> None:
        for name in ("mix", "correction_share", "noise", "stream_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not a share; write a number between 0 and 1")
        for name in ("questions", "max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is too small; write 1 or more")


@dataclass(frozen=True)
class Question:
    """What one person asks, and how they will judge the answer."""

    case: Case
    stream: bool
    mistaken: bool
    """The verdict will be the wrong way round."""
    corrects: bool
    """A thumbs-down will carry a correction."""


def questions(seed: int, habits: Habits) -> Iterator[Question]:
    """An endless stream of what people ask, the same for the same seed and habits."""
    rng = random.Random(f"people/{seed}")
    house, general = session_cases(seed), live_general_cases(seed)
    while True:
        case = next(house) if rng.random() < habits.mix else next(general)
        yield Question(
            case=case,
            stream=rng.random() < habits.stream_share,
            mistaken=rng.random() < habits.noise,
            corrects=rng.random() < habits.correction_share,
        )


@dataclass(frozen=True)
class _Answer:
    id: str
    text: str
    version: str
    seconds: float


class BrokenAnswerError(Exception):
    """The gateway answered, but not with an answer."""


@dataclass
class _Person:
    session: str
    left: int


class People:
    """A number of people who talk to a cycle through its gateway."""

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        seed: int = 1,
        rate: float = 6.0,
        people: int = 24,
        timeout: float = 60.0,
        window: timedelta = timedelta(seconds=20),
        api_key: str = "not-needed",
        mix: float = Habits.mix,
        correction_share: float = Habits.correction_share,
        noise: float = Habits.noise,
        stream_share: float = Habits.stream_share,
        max_tokens: int = Habits.max_tokens,
    ) -> None:
        """`base_url` is the gateway's, with /v1; `model` the cycle's name; `people` bounds the questions under way.

        Raises ValueError naming an argument that makes no sense.
        """
        if people < 1:
            raise ValueError(f"people: {people} is too few; write 1 or more")
        self._base_url, self._model, self._timeout, self._api_key = base_url, model, timeout, api_key
        self._habits = Habits(mix, correction_share, noise, stream_share, max_tokens=max_tokens)
        self._questions = questions(seed, self._habits)
        self._rng = random.Random(f"arrivals/{seed}")
        self._idle = [self._newcomer() for _ in range(people)]
        self._tally = Tally(window)
        self.rate = rate

    @property
    def rate(self) -> float:
        """Questions a second; 0 is silence. May be set while they talk, from any thread."""
        return self._rate

    @rate.setter
    def rate(self, rate: float) -> None:
        if not 0 <= rate < 1000:
            raise ValueError(f"rate: {rate} is not a number of questions a second; write one from 0 to below 1000")
        self._rate = rate

    @property
    def failures(self) -> list[Failed]:
        """Every failure so far, oldest first. May be read from any thread."""
        return self._tally.failures()

    @property
    def exchanges(self) -> list[Exchange]:
        """Everything that was asked, answered and judged so far. May be read from any thread."""
        return self._tally.exchanges()

    def snapshot(self) -> Snapshot:
        """Live counters. May be called from any thread."""
        return self._tally.snapshot(datetime.now(UTC))

    async def run_until(self, stop: asyncio.Event) -> None:
        """Talk until `stop` is set, then wait for the answers under way. No failed request ends it."""
        client = AsyncOpenAI(base_url=self._base_url, api_key=self._api_key, timeout=self._timeout, max_retries=0)
        async with client, asyncio.TaskGroup() as conversations:
            async for _ in self._arrivals(stop):
                if not self._idle:
                    self._tally.shed()
                    continue
                person = self._idle.pop(self._rng.randrange(len(self._idle)))
                conversations.create_task(self._exchange(client, person, next(self._questions)))

    async def _arrivals(self, stop: asyncio.Event) -> AsyncIterator[None]:
        """One item for each question that falls due. The gap is drawn in units of 1 / rate, so that a change of the
        rate takes effect within _LONGEST_WAIT."""
        gap = self._rng.expovariate(1.0)
        loop = asyncio.get_running_loop()
        last = loop.time()
        while not stop.is_set():
            wait = _LONGEST_WAIT if self._rate == 0 else min(gap / self._rate, _LONGEST_WAIT)
            try:
                await asyncio.wait_for(stop.wait(), wait)
            except TimeoutError:
                now = loop.time()
                gap -= (now - last) * self._rate
                last = now
            while gap <= 0 and not stop.is_set():
                yield
                gap += self._rng.expovariate(1.0)

    async def _exchange(self, client: AsyncOpenAI, person: _Person, question: Question) -> None:
        self._tally.sent()
        at, began = datetime.now(UTC), asyncio.get_running_loop().time()
        version: str | None = None
        try:
            answer = await self._ask(client, person.session, question)
            version = answer.version
            good = question.case.rubric.accepts(answer.text)
            up = good != question.mistaken
            corrects = not up and question.corrects
            await self._judge(client, answer.id, up, question.case.reference if corrects else "")
        except (OpenAIError, BrokenAnswerError, JSONDecodeError) as error:
            if isinstance(error, APIStatusError):
                version = version or error.response.headers.get(VERSION_HEADER)
            self._tally.failed(Failed(at, reason_of(error), version, asyncio.get_running_loop().time() - began))
        else:
            exchange = Exchange(
                at=at, session=person.session, kind=question.case.kind, prompt=question.case.prompt,
                answer=answer.text, version=answer.version, good=good, up=up, corrected=corrects,
                seconds=answer.seconds, stream=question.stream,
            )  # fmt: skip
            self._tally.answered(exchange)
        finally:
            person.left -= 1
            self._idle.append(person if person.left > 0 else self._newcomer())

    async def _ask(self, client: AsyncOpenAI, session: str, question: Question) -> _Answer:
        began = asyncio.get_running_loop().time()
        request: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": "user", "content": question.case.prompt}],
            "max_tokens": self._habits.max_tokens,
            "temperature": 0,
            "extra_headers": {SESSION_HEADER: session},
        }
        if question.stream:
            identity, text, headers = await _streamed(client, request)
        else:
            raw = await client.chat.completions.with_raw_response.create(**request)
            completion, headers = raw.parse(), raw.headers
            if not completion.choices or completion.choices[0].finish_reason is None:
                raise BrokenAnswerError("an answer without a finished choice")
            identity, text = completion.id, completion.choices[0].message.content or ""
        version = headers.get(VERSION_HEADER)
        if not version:
            raise BrokenAnswerError(f"an answer without the header {VERSION_HEADER}")
        return _Answer(identity, text, version, asyncio.get_running_loop().time() - began)

    async def _judge(self, client: AsyncOpenAI, response_id: str, up: bool, correction: str) -> None:
        body = {"response_id": response_id, "value": "up" if up else "down"}
        if correction:
            body["correction"] = correction
        await client.post("/feedback", cast_to=object, body=body)

    def _newcomer(self) -> _Person:
        session = uuid.UUID(int=self._rng.getrandbits(128), version=4)
        return _Person(session=f"person-{session}", left=self._rng.randint(1, self._habits.questions))


async def _streamed(client: AsyncOpenAI, request: dict[str, Any]) -> tuple[str, str, Mapping[str, str]]:
    """Id, text and headers of a streamed answer. Raises BrokenAnswerError when it breaks off before its end."""
    parts: list[str] = []
    identity, finished = "", False
    async with _stream(client, request) as (chunks, headers):
        async for chunk in chunks:
            identity = identity or chunk.id
            for choice in chunk.choices:
                parts.append(choice.delta.content or "")
                finished = finished or choice.finish_reason is not None
    if not finished:
        raise BrokenAnswerError(f"a stream that broke off after {len(''.join(parts))} characters")
    return identity, "".join(parts), headers


@asynccontextmanager
async def _stream(client: AsyncOpenAI, request: dict[str, Any]) -> AsyncIterator[tuple[Any, Mapping[str, str]]]:
    async with client.chat.completions.with_streaming_response.create(**request, stream=True) as raw:
        yield await raw.parse(), raw.headers


def reason_of(error: Exception) -> str:
    """A failure in one line: what a person would note down."""
    if isinstance(error, APIStatusError):
        return f"HTTP {error.status_code}: {error.message.removeprefix(f'Error code: {error.status_code} - ')}"[:300]
    cause = f" ({type(error.__cause__).__name__}: {error.__cause__})" if error.__cause__ is not None else ""
    name = "" if isinstance(error, BrokenAnswerError) else f"{type(error).__name__}: "
    return f"{name}{error}{cause}"[:300]
