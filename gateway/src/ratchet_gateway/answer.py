"""What an arm answers: whole or as a stream of server-sent events, with our id and the asked-for model name put in.

Room: gateway. Pure; touches nothing. Time is told by the caller.

The answer's id is the gateway's own, because feedback refers to it and must not meet two answers. It is also sent to
the arm as X-Request-Id; a server that takes that (vLLM does) then uses the very same id in its logs.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from ratchet_gateway.errors import ArmFailed, error_object

DONE = b"data: [DONE]\n\n"


@dataclass(slots=True)
class Answer:
    """What is known of an answer: what metrics and the record need."""

    message: dict[str, Any] | None = None
    """The assistant's message of choice 0."""
    finish_reason: str = ""
    """Why choice 0 ended; empty while it has not."""
    usage: dict[str, Any] | None = None
    """Token counts."""
    first_content: float | None = None
    """Time of the first non-empty content; streams only."""


def read_whole(data: bytes, answer_id: str, model: str) -> tuple[Answer, bytes]:
    """A whole chat completion and what the client gets of it. Raises ArmFailed when it is none."""
    try:
        body = orjson.loads(data)
        choice = body["choices"][0]
        message = choice["message"]
    except (orjson.JSONDecodeError, KeyError, IndexError, TypeError):
        raise ArmFailed("the model's server sent something that is not a chat completion") from None
    if not isinstance(message, dict):
        raise ArmFailed("the model's server sent a chat completion without a message")
    body["id"], body["model"] = answer_id, model
    usage = body.get("usage")
    answer = Answer(
        message=message,
        finish_reason=_text(choice.get("finish_reason")) or "stop",
        usage=usage if isinstance(usage, dict) else None,
    )
    return answer, orjson.dumps(body)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


@dataclass(slots=True)
class Stream:
    """A stream on its way through: bytes of the arm in, bytes for the client out.

    Where the arm's bytes are cut does not matter. `[DONE]` is held back, so that the caller can make the record
    durable first.
    """

    answer_id: str
    model: str
    include_usage: bool
    """Whether the client asked for the last chunk with the token counts."""
    max_line: int
    answer: Answer = field(default_factory=Answer)
    done: bool = False
    """The arm said [DONE]."""
    failed: str = ""
    """The arm's error, when it sent one in the stream."""
    gaps: list[float] = field(default_factory=list)
    """Seconds between chunks with content, since the caller last emptied it."""
    _rest: bytes = b""
    _parts: list[str] = field(default_factory=list)
    _extra: dict[str, Any] = field(default_factory=dict)
    _tools: dict[int, dict[str, Any]] = field(default_factory=dict)
    _last_content: float | None = None

    def feed(self, data: bytes, now: float) -> bytes:
        """What the client gets for these bytes. Raises ArmFailed when they are no event stream."""
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > self.max_line or any(len(line) > self.max_line for line in lines):
            raise ArmFailed(f"the model's server sent a line of more than {self.max_line} bytes")
        out: list[bytes] = []
        contents = 0
        for line in lines:
            if not line.startswith(b"data:"):
                if line.startswith(b":"):
                    out.append(line.rstrip(b"\r") + b"\n\n")
                continue
            value = line[5:].strip()
            if value == b"[DONE]":
                self.done = True
            elif value and not self.done:
                event, has_content = self._event(value)
                contents += has_content
                if event is not None:
                    out.append(b"data: " + orjson.dumps(event) + b"\n\n")
        if contents:
            self._count(contents, now)
        return b"".join(out)

    def _event(self, value: bytes) -> tuple[dict[str, Any] | None, bool]:
        """(the chunk for the client or None, whether it has content)."""
        try:
            chunk = orjson.loads(value)
        except orjson.JSONDecodeError:
            raise ArmFailed("the model's server sent an event that is not JSON") from None
        if not isinstance(chunk, dict):
            raise ArmFailed("the model's server sent an event that is not a JSON object")
        if "error" in chunk:
            error = chunk["error"]
            self.failed = _text(error.get("message") if isinstance(error, dict) else error) or "unknown error"
            return error_object(self.failed, "server_error", None, ArmFailed.code), False
        chunk["id"], chunk["model"] = self.answer_id, self.model
        has_content = self._choices(chunk.get("choices"))
        usage = chunk.get("usage")
        if isinstance(usage, dict):
            self.answer.usage = usage
            if not self.include_usage and not chunk.get("choices"):
                return None, False
        if not self.include_usage:
            chunk.pop("usage", None)
        return chunk, has_content

    def _choices(self, choices: object) -> bool:
        has_content = False
        for choice in choices if isinstance(choices, list) else ():
            if not isinstance(choice, dict):
                raise ArmFailed("the model's server sent a chunk whose choices are not objects")
            delta = choice.get("delta")
            first = choice.get("index", 0) == 0
            if isinstance(delta, dict):
                has_content |= self._delta(delta, first)
            if first and choice.get("finish_reason"):
                self.answer.finish_reason = _text(choice["finish_reason"])
        return has_content

    def _delta(self, delta: dict[str, Any], first: bool) -> bool:
        content = delta.get("content")
        found = False
        if isinstance(content, str) and content:
            found = True
            if first:
                self._parts.append(content)
        for key, value in delta.items():
            if key in ("role", "content") or not value:
                continue
            found = True
            if not first:
                continue
            if key == "tool_calls" and isinstance(value, list):
                self._tool_calls(value)
            elif isinstance(value, str):
                self._extra[key] = _text(self._extra.get(key)) + value
            else:
                self._extra[key] = value
        return found

    def _tool_calls(self, calls: list[Any]) -> None:
        """Joins the pieces of tool calls: names and ids come whole, arguments in parts."""
        for call in calls:
            if not isinstance(call, dict):
                continue
            index = call.get("index")
            whole = self._tools.setdefault(index if isinstance(index, int) else 0, {"type": "function", "function": {}})
            whole.update({key: value for key, value in call.items() if key in ("id", "type") and value})
            function = call.get("function")
            for key, value in function.items() if isinstance(function, dict) else ():
                if isinstance(value, str):
                    whole["function"][key] = _text(whole["function"].get(key)) + value

    def _count(self, contents: int, now: float) -> None:
        """Chunks that arrived together share the time since the last ones."""
        since, steps = self._last_content, contents
        if since is None:
            self.answer.first_content = since = now
            steps -= 1
        self._last_content = now
        self.gaps.extend([(now - since) / contents] * steps)

    def close(self) -> Answer:
        """The answer as far as it came, with its message put together."""
        if self._parts or self._extra or self._tools or self.answer.finish_reason:
            message: dict[str, Any] = {"role": "assistant", "content": "".join(self._parts), **self._extra}
            if self._tools:
                message["tool_calls"] = [self._tools[index] for index in sorted(self._tools)]
            self.answer.message = message
        return self.answer

    @property
    def complete(self) -> bool:
        """Whether the arm ended its answer properly."""
        return not self.failed and (self.done or bool(self.answer.finish_reason))


def error_event(message: str, code: str | None) -> bytes:
    """An error inside a stream that has begun, as OpenAI's clients understand it."""
    return b"data: " + orjson.dumps(error_object(message, "server_error", None, code)) + b"\n\n"


def readable_error(data: bytes, model_name: str, model: str) -> str | None:
    """The message of an arm's error object, with the model's public name in it; None when there is none."""
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    for candidate in _error_messages(body):
        if isinstance(candidate, str) and candidate:
            return candidate.replace(model_name, model)
    return None


def _error_messages(body: Any) -> Iterator[Any]:
    if isinstance(body, dict):
        error = body.get("error")
        yield error.get("message") if isinstance(error, dict) else error
        yield body.get("message")
        yield body.get("detail")
