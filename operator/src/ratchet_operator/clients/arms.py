"""Whether an arm's pods serve a version under its name: each lists it, and has answered one token by it.

Room: operator, clients.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ratchet_operator.clients.http import Http, NoAnswer

SECONDS = 5.0
TOKEN_SECONDS = 10.0
"""For one token of a server that may be busy, or be about to warm up."""
REMEMBERED = 4096
"""Servers of which it is remembered that they have answered."""


@dataclass(frozen=True)
class Server:
    """One pod of an arm, since its server started."""

    address: str
    start: str
    """Another one after every restart: what a server could do before says nothing then."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="ignore")

    id: str


class _Models(BaseModel):
    model_config = ConfigDict(extra="ignore")

    data: list[_Model] = Field(default_factory=list)


class _Completion(BaseModel):
    model_config = ConfigDict(extra="ignore")

    choices: list[dict[str, object]] = Field(min_length=1)


class Arms:
    """Asks the servers themselves, for being ready does not say what is served."""

    def __init__(self, http: Http) -> None:
        self._http = http
        self._answered: dict[tuple[str, str], None] = {}
        """(start, model) of servers that have answered, the oldest first."""

    async def serves(self, servers: Sequence[Server], port: int, model_name: str) -> bool | None:
        """Whether all of them list the model and have answered by it; None when one cannot say, or there is none."""
        if not servers:
            return None
        answers = await asyncio.gather(*(self._serves(server, port, model_name) for server in servers))
        if any(answer is False for answer in answers):
            return False
        return None if any(answer is None for answer in answers) else True

    async def _serves(self, server: Server, port: int, model_name: str) -> bool | None:
        host = f"[{server.address}]" if ":" in server.address else server.address
        url, known = f"http://{host}:{port}/v1", (server.start, model_name)
        listed = await self._lists(url, model_name)
        if not listed or known in self._answered:
            return listed
        answered = await self._answers(url, model_name)
        if answered:
            self._answered[known] = None
            if len(self._answered) > REMEMBERED:
                del self._answered[next(iter(self._answered))]
        return answered

    async def _lists(self, url: str, model_name: str) -> bool | None:
        try:
            status, body = await self._http.get(f"{url}/models", SECONDS)
            if status != 200:
                return None
            return any(model.id == model_name for model in _Models.model_validate(body).data)
        except (NoAnswer, ValidationError):
            return None

    async def _answers(self, url: str, model_name: str) -> bool | None:
        messages = [{"role": "user", "content": "Hello"}]
        body = {"model": model_name, "messages": messages, "max_tokens": 1, "temperature": 0}
        try:
            status, said = await self._http.post(f"{url}/chat/completions", TOKEN_SECONDS, body)
            if status != 200:
                return False if status == 404 else None
            return bool(_Completion.model_validate(said).choices)
        except (NoAnswer, ValidationError):
            return None
