"""What a client asks for: a chat completion request, parsed at the edge.

Room: gateway. Pure; touches nothing.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import orjson

from ratchet_gateway.errors import BadRequest

SESSION_HEADER = "x-session-id"
_MAX_SESSION = 512
_PRINTABLE = "".join(chr(code) for code in range(0x20, 0x7F))
_NOT_PARAMETERS = frozenset({"model", "messages", "stream", "stream_options"})


@dataclass(frozen=True, slots=True)
class Ask:
    """A request that has the shape of a chat completion. What it means beyond that is the arm's business."""

    model: str
    """The model's name as the client wrote it."""
    messages: list[dict[str, Any]]
    """The conversation so far."""
    stream: bool
    """Whether the answer is to be streamed."""
    include_usage: bool
    """Whether the client wants the token counts as the stream's last chunk."""
    session: str
    """The conversation that it belongs to; printable ASCII."""
    fields: dict[str, Any]
    """The whole body, as it came."""

    def payload(self, model_name: str) -> bytes:
        """The body for an arm whose server calls the model `model_name`.

        A stream's token counts are always asked for, because metrics and records need them.
        """
        body = {**self.fields, "model": model_name}
        if self.stream:
            body["stream_options"] = {**(self.fields.get("stream_options") or {}), "include_usage": True}
        return orjson.dumps(body)

    def parameters(self) -> dict[str, Any]:
        """The request's other fields, for the record."""
        return {key: value for key, value in self.fields.items() if key not in _NOT_PARAMETERS}


def parse_object(data: bytes) -> dict[str, Any]:
    """A JSON object. Raises BadRequest with a sentence that says what is wrong."""
    if not data.strip():
        raise BadRequest("the body is empty: send a JSON object")
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise BadRequest(f"the body is a JSON {_kind(body)}: send an object")
    return body


def parse_ask(data: bytes, session_header: str | None) -> Ask:
    """A chat completion request. Raises BadRequest that names the field and what to write instead."""
    body = parse_object(data)
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise BadRequest('model is missing: write the name of a cycle, such as "assistant"', param="model")
    stream = body.get("stream")
    if not isinstance(stream, bool | None):
        raise BadRequest(f"stream is a {_kind(stream)}: write true or false", param="stream")
    options = body.get("stream_options")
    if not isinstance(options, dict | None):
        raise BadRequest(
            f'stream_options is a {_kind(options)}: write an object such as {{"include_usage": true}}',
            param="stream_options",
        )
    if options is not None and not stream:
        raise BadRequest("stream_options needs stream: true; add it, or remove stream_options", param="stream_options")
    return Ask(
        model=model,
        messages=_messages(body.get("messages")),
        stream=bool(stream),
        include_usage=bool((options or {}).get("include_usage")),
        session=_session(body, session_header),
        fields=body,
    )


def _messages(messages: object) -> list[dict[str, Any]]:
    if not isinstance(messages, list) or not messages:
        raise BadRequest(
            'messages must be a list with at least one message, such as [{"role": "user", "content": "Hello"}]',
            param="messages",
        )
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise BadRequest(
                f"messages[{index}] is a {_kind(message)}: write an object with role and content", param="messages"
            )
        if not isinstance(message.get("role"), str) or not message["role"]:
            raise BadRequest(f'messages[{index}].role is missing: write "user", for example', param="messages")
    return messages


def _session(body: Mapping[str, Any], header: str | None) -> str:
    """The x-session-id header, else `user`, else `metadata.session_id`, else a new id."""
    if header:
        return _canonical(header, SESSION_HEADER)
    user = body.get("user")
    if user:
        return _canonical(user, "user")
    metadata = body.get("metadata")
    if isinstance(metadata, dict) and metadata.get("session_id"):
        return _canonical(metadata["session_id"], "metadata.session_id")
    return f"session-{secrets.token_hex(12)}"


def _canonical(session: object, field: str) -> str:
    """One spelling that can be a header's value, so that a client that echoes it stays in its conversation."""
    if not isinstance(session, str):
        raise BadRequest(f"{field} is a {_kind(session)}: write a string", param=field)
    if not (session.isascii() and session.isprintable()):
        session = quote(session.encode("utf-8", "surrogateescape"), safe=_PRINTABLE)
    session = session.strip()
    if not session or len(session) > _MAX_SESSION:
        raise BadRequest(f"{field} must have 1 to {_MAX_SESSION} characters, and has {len(session)}", param=field)
    return session


def _kind(value: object) -> str:
    """JSON's word for a value's type."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "list" if isinstance(value, list) else "object"
