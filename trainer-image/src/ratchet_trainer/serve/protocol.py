"""OpenAI's chat completions: requests in, answers and errors out.

Room: trainer. Pure.
"""

import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ratchet_trainer.chat import Message, parse_message


class ApiError(Exception):
    """An error as OpenAI's API words it."""

    def __init__(
        self, status: int, message: str, kind: str = "invalid_request_error", param: str | None = None,
        code: str | None = None, retry_after: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class StreamOptions(BaseModel):
    """What a stream carries beside text."""

    model_config = ConfigDict(extra="ignore")

    include_usage: bool = False


class ChatRequest(BaseModel):
    """The fields of a request that this runtime knows. Fields that would change the answer and are not supported are
    refused unless they have the value that changes nothing; others (`user`, `metadata`, ...) do not matter here."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    model: str
    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: int | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logprobs: Literal[False] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    response_format: dict[str, Any] | None = None

    @property
    def limit(self) -> int | None:
        """Longest answer in tokens, if the request says so."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def stops(self) -> list[str]:
        """Texts that end the answer."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])


_UNSUPPORTED = {"n", "presence_penalty", "frequency_penalty", "logprobs", "logit_bias", "tools"}


def parse_request(body: bytes) -> ChatRequest:
    """A request. Raises ApiError (400) naming the field."""
    try:
        request = ChatRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        if first["loc"] and first["loc"][0] in _UNSUPPORTED:
            raise ApiError(400, f"{field} is not supported by this runtime: leave it out", param=field) from None
        raise ApiError(400, f"{field or 'the body'}: {first['msg']}", param=field or None) from None
    if request.response_format is not None and request.response_format.get("type") != "text":
        text = 'response_format is not supported by this runtime: leave it out, or write {"type": "text"}'
        raise ApiError(400, text, param="response_format")
    return request


def parse_messages(request: ChatRequest) -> list[Message]:
    """The conversation. Raises ApiError (400) naming the message."""
    messages = []
    for index, raw in enumerate(request.messages):
        try:
            messages.append(parse_message(raw))
        except ValueError as error:
            raise ApiError(400, f"messages.{index}: {error}", param=f"messages.{index}") from None
    return messages


def usage(prompt: int, completion: int) -> dict[str, int]:
    """Token counts."""
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def completion(answer_id: str, model: str, text: str, finish: str, counts: dict[str, int]) -> dict[str, Any]:
    """A whole answer."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
    return _head(answer_id, model, "chat.completion") | {"choices": [choice], "usage": counts}


def chunk(answer_id: str, model: str, created: int, delta: dict[str, str], finish: str | None) -> dict[str, Any]:
    """A piece of a streamed answer."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return _head(answer_id, model, "chat.completion.chunk", created) | {"choices": [choice]}


def usage_chunk(answer_id: str, model: str, created: int, counts: dict[str, int]) -> dict[str, Any]:
    """The last piece of a streamed answer, when the request asks for it."""
    return _head(answer_id, model, "chat.completion.chunk", created) | {"choices": [], "usage": counts}


def _head(answer_id: str, model: str, kind: str, created: int | None = None) -> dict[str, Any]:
    return {"id": answer_id, "object": kind, "created": created or int(time.time()), "model": model}


def model_list(names: Sequence[str], created: int) -> dict[str, Any]:
    """/v1/models: the one model, under each of its names."""
    models = [{"id": name, "object": "model", "created": created, "owned_by": "ratchet"} for name in names]
    return {"object": "list", "data": models}
