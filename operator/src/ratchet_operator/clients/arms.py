"""Whether an arm's pods serve a version under its name.

Room: operator, clients.
"""

import asyncio

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ratchet_operator.clients.http import Http, NoAnswer

SECONDS = 5.0


class _Model(BaseModel):
    model_config = ConfigDict(extra="ignore")

    id: str


class _Models(BaseModel):
    model_config = ConfigDict(extra="ignore")

    data: list[_Model] = Field(default_factory=list)


class Arms:
    """Asks the servers themselves, for being ready does not say what is served."""

    def __init__(self, http: Http) -> None:
        self._http = http

    async def serves(self, addresses: list[str], port: int, model_name: str) -> bool | None:
        """Whether all pods at these IPs list the model; None when one does not answer, or there is none."""
        if not addresses:
            return None
        answers = await asyncio.gather(*(self._lists(address, port, model_name) for address in addresses))
        if any(answer is False for answer in answers):
            return False
        return None if any(answer is None for answer in answers) else True

    async def _lists(self, address: str, port: int, model_name: str) -> bool | None:
        host = f"[{address}]" if ":" in address else address
        try:
            status, body = await self._http.get(f"http://{host}:{port}/v1/models", SECONDS)
            if status != 200:
                return None
            return any(model.id == model_name for model in _Models.model_validate(body).data)
        except (NoAnswer, ValidationError):
            return None
