"""The one record of what people and the model said, as it lies in `sessions/dt=YYYY-MM-DD/*.jsonl.zst`.

Room: api. Pure; touches nothing. Written by the gateway, read by the curate stage. One JSON object a line.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from ratchet_api.base import Time

SESSIONS_PREFIX = "sessions"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Interaction(_Record):
    """One request and its answer."""

    kind: Literal["interaction"] = "interaction"
    id: str
    """The answer's id, as the client got it (`chatcmpl-...`); what feedback refers to."""
    session: str
    """Conversation that it belongs to."""
    namespace: str
    """Namespace of the cycle."""
    cycle: str
    """Name of the cycle."""
    version: str
    """ModelVersion that answered."""
    arm: Literal["stable", "candidate", "pinned"]
    """How the version was chosen."""
    time: Time
    """When the request arrived."""
    principal: str = ""
    """SHA-256 of the caller's identity, when one is known."""
    messages: list[dict[str, Any]]
    """The request's messages, as OpenAI's chat completions take them."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    """The request's other fields (temperature, max_tokens, ...)."""
    answer: dict[str, Any] | None = None
    """The assistant's message; None when the request failed. A broken-off stream keeps what was sent."""
    finish_reason: str = ""
    """stop, length, ...; `cancelled` when the client went away."""
    status: int
    """HTTP status answered to the client."""
    usage: dict[str, Any] | None = None
    """Token counts, as the server gave them."""
    stream: bool = False
    """Whether the answer was streamed."""
    duration: float
    """Seconds from the request's arrival to the answer's end."""
    time_to_first_token: float | None = None
    """Seconds to the first non-empty content; streaming only."""


class Feedback(_Record):
    """A verdict of a person or a check on one answer. The latest one of a response id counts."""

    kind: Literal["feedback"] = "feedback"
    id: str
    """Its own id."""
    response_id: str
    """Id of the answer that it judges."""
    namespace: str
    cycle: str
    version: str
    session: str = ""
    time: Time
    """When it was given."""
    value: Literal["up", "down"]
    """The verdict."""
    comment: str = ""
    """Free text of the person."""
    correction: str = ""
    """What the answer should have been."""


Record = Annotated[Interaction | Feedback, Field(discriminator="kind")]
RECORD: TypeAdapter[Interaction | Feedback] = TypeAdapter(Record)
