"""A model behind the OpenAI API: a cycle's gateway, or any server that speaks it.

Room: cli. Talks HTTP to the address that it is given.
"""

import getpass
import os
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx2
from openai import APIConnectionError, APIStatusError, APITimeoutError, OpenAI, OpenAIError

from ratchet_cli.collect.errors import Misused, NoAnswer

VERSION_HEADER = "x-ratchet-version"
SESSION_HEADER = "x-session-id"
_OWNER = "ratchet"
"""Who owns the models of a gateway, as /v1/models says."""
Message = Mapping[str, str]


@dataclass
class Answer:
    """One answer, whole or as far as it came."""

    at: datetime
    """When it was asked for."""
    id: str = ""
    version: str = ""
    """Of the cycle; empty when the server is no gateway."""
    parts: list[str] = field(default_factory=list)
    finish_reason: str = ""
    seconds: float = 0.0
    """To its end."""
    seconds_to_first: float | None = None

    @property
    def text(self) -> str:
        """All of it so far."""
        return "".join(self.parts)


class Model:
    """One model of one server. Raises NoAnswer."""

    def __init__(self, url: str, timeout: float = 300.0) -> None:
        """`url` may end with /v1 or not. To a gateway, the API key ($OPENAI_API_KEY, else the name of this machine's
        user) is who is speaking; it records only its hash. Raises Misused."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Misused(f'--url: {url!r} is no address: write it as "http://host:port"')
        self.base = url.rstrip("/").removesuffix("/v1") + "/v1"
        self.who = os.environ.get("OPENAI_API_KEY") or _user()
        self.name = ""
        self.gateway = False
        """Whether the server records what it answers, and takes verdicts."""
        self._client = OpenAI(base_url=self.base, api_key=self.who, timeout=timeout, max_retries=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def choose(self, wanted: Sequence[str], name: str | None = None) -> None:
        """Looks who answers, and takes the model: `name`, or the first of `wanted` that a gateway knows, or the only
        one that another server has. Raises NoAnswer or Misused."""
        try:
            found = list(self._client.models.list())
        except APIStatusError as error:
            if error.status_code in (404, 405):
                found = []  # not every server lists what it has
            else:
                raise NoAnswer(f"{self.base} answered {error.status_code}: {_said(error)}") from None
        except (OpenAIError, httpx2.HTTPError) as error:
            raise NoAnswer(_unreachable(self.base, error)) from None
        names = [model.id for model in found]
        self.gateway = bool(found) and all(model.owned_by == _OWNER for model in found)
        if self.gateway:
            chosen = [name] if name else [each for each in wanted if each in names]
            if not chosen or chosen[0] not in names:
                raise Misused(f"{self.base} serves no {name or wanted[-1]}: it has {', '.join(names)}")
            self.name = chosen[0]
        elif name or len(names) == 1:
            self.name = name or names[0]
        elif names and not set(wanted) & set(names):
            raise Misused(f"--model: {self.base} has {', '.join(names)}: name one of them")
        else:
            self.name = next((each for each in wanted if each in names), wanted[-1])

    def ask(self, messages: Sequence[Message], session: str, answer: Answer) -> Generator[str]:
        """The answer in pieces, as they come; `answer` is filled meanwhile. Raises NoAnswer, also in the middle."""
        began = time.monotonic()
        try:
            asked: Any = [dict(message) for message in messages]
            stream = self._client.chat.completions.create(
                model=self.name, messages=asked, stream=True, extra_headers={SESSION_HEADER: session}
            )
            answer.version = stream.response.headers.get(VERSION_HEADER, "")
            with stream:
                for chunk in stream:
                    answer.id = chunk.id or answer.id
                    for choice in chunk.choices[:1]:
                        answer.finish_reason = choice.finish_reason or answer.finish_reason
                        if choice.delta.content:
                            if answer.seconds_to_first is None:
                                answer.seconds_to_first = time.monotonic() - began
                            answer.parts.append(choice.delta.content)
                            yield choice.delta.content
        except APIStatusError as error:
            raise NoAnswer(f"{self.name} answered {error.status_code}: {_said(error)}") from None
        except (OpenAIError, httpx2.HTTPError) as error:
            broken = f"{self.name} broke off its answer" if answer.parts else _unreachable(self.base, error)
            raise NoAnswer(broken) from None
        finally:
            answer.seconds = time.monotonic() - began
        if not answer.finish_reason:
            raise NoAnswer(f"{self.name} broke off its answer")

    def judge(self, answer: Answer, success: bool, correction: str = "", comment: str = "") -> None:
        """Sends a verdict to the gateway. Raises NoAnswer."""
        verdict = {
            "response_id": answer.id, "value": "up" if success else "down", "model": self.name,
            **{key: text for key, text in (("correction", correction), ("comment", comment)) if text},
        }  # fmt: skip
        try:
            self._client.post("/feedback", body=verdict, cast_to=object)
        except APIStatusError as error:
            raise NoAnswer(f"the verdict was not taken: {error.status_code}, {_said(error)}") from None
        except (OpenAIError, httpx2.HTTPError) as error:
            raise NoAnswer(f"the verdict was not taken: {_unreachable(self.base, error)}") from None


def started() -> Answer:
    """An answer that is asked for now."""
    return Answer(datetime.now(UTC))


def _said(error: APIStatusError) -> str:
    body: Any = error.body
    message = body.get("message") if isinstance(body, dict) else None
    return str(message or error.message)


def _unreachable(base: str, error: Exception) -> str:
    if isinstance(error, APITimeoutError):
        return f"{base} did not answer in time"
    if isinstance(error, APIConnectionError | httpx2.HTTPError):
        return f"{base} cannot be reached ({error.__cause__ or error}): look whether it runs, or write another --url"
    return f"{base}: {error}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "somebody"
