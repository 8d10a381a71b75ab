"""`WorkSessionCollector`: what was asked, what was answered and whether it was good, as records that curation reads.

Room: cli. Touches the folder or the bucket that it is given. Usable from a notebook: it needs pydantic, and boto3 for a
bucket.
"""

import hashlib
import logging
import os
import re
import secrets
import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError

from ratchet_api.records import Feedback, Interaction
from ratchet_cli.collect.errors import CollectError, Misused, NotStored
from ratchet_cli.collect.segments import Segments
from ratchet_cli.collect.storage import destination

log = logging.getLogger(__name__)
_Record = TypeVar("_Record", Interaction, Feedback)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_SEGMENT_BYTES = 8 << 20
_SEGMENT_SECONDS = 300.0


class WorkSessionCollector:
    """Collects one work session. A record is on disk once the call returns; the last segment goes to its place when
    the collector is closed, which leaving its `with` block does. May be used by several threads."""

    def __init__(
        self, name: str, out: str | os.PathLike[str] = "work-sessions", *, cycle: str = "", namespace: str = "",
        principal: str = "", endpoint: str | None = None, spool: Path | None = None,
        segment_bytes: int = _SEGMENT_BYTES, segment_seconds: float = _SEGMENT_SECONDS,
    ) -> None:  # fmt: skip
        """`name` begins the segments' names. `out` is a folder or s3://bucket/prefix.

        To write straight into a cycle's own sessions, `out` is its `storage.uri`, and `cycle` and `namespace` are its
        own; elsewhere they may be empty, as a source's records are taken for those of the cycle that names it.
        `principal` is who asks: it is recorded as its SHA-256. `endpoint` is that of a server which is not AWS
        (AWS_ENDPOINT_URL); `spool` is where segments wait for the bucket.

        Raises CollectError.
        """
        if not _NAME.fullmatch(name):
            raise Misused(f"name: {name!r} cannot begin a file's name: write up to 63 letters, digits, '.', '_' or '-'")
        self.name = name
        self.session = f"{name}-{secrets.token_hex(6)}"
        """Conversation of the records that name none of their own."""
        self._cycle, self._namespace, self._principal = cycle, namespace, hashed(principal)
        self._destination = destination(out, spool, endpoint)
        self._segments = Segments(self._destination.folder, name, segment_bytes, segment_seconds)
        self._lock = threading.Lock()
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except NotStored as failed:
            if error is None:
                raise
            # What the block died of is what the person has to see; the records wait on disk.
            log.warning("%s", failed)

    def record(
        self, user: str, assistant: str, metadata: Mapping[str, Any] | None = None, *,
        history: Sequence[Mapping[str, str]] = (), time: datetime | None = None,
    ) -> str:  # fmt: skip
        """One exchange; its id, for a verdict that comes later.

        `metadata.success` (True or False) is the verdict, `metadata.correction` what the answer should have been,
        `metadata.comment` free text about it; `session` and `principal` say whose it is. All but the principal stands
        in the record as it is. `history` are the messages before, as OpenAI's chat takes them. `time` is now.

        Raises Misused for what cannot be recorded; OSError when the disk takes no more.
        """
        said = dict(metadata or {})
        success, correction, comment = _verdict_of(said)
        principal = said.pop("principal", "")
        at = datetime.now(UTC) if time is None else time
        interaction = self.interaction(
            [*history, {"role": "user", "content": user}], assistant, at,
            session=str(said.get("session") or self.session), parameters={"metadata": said} if said else {},
            principal=hashed(str(principal)) if principal else self._principal,
        )  # fmt: skip
        verdict = [] if success is None and not correction else [
            self.feedback(interaction, at, bool(success), correction, comment)
        ]  # fmt: skip
        self.write(interaction, *verdict)
        return interaction.id

    def judge(self, interaction: Interaction | str, success: bool, correction: str = "", comment: str = "") -> None:
        """A verdict on an exchange, later or again: the latest one counts. `interaction` is what `record` gave.

        Raises Misused or OSError, as `record` does.
        """
        self.write(self.feedback(interaction, datetime.now(UTC), success, correction, comment))

    def interaction(
        self, messages: Sequence[Mapping[str, Any]], answer: str | None, at: datetime, **fields: Any
    ) -> Interaction:
        """A record that is not yet written; no version of a cycle answered it. Raises Misused."""
        said = None if answer is None else {"role": "assistant", "content": answer}
        defaults: dict[str, Any] = {
            "id": f"{self.name}-{secrets.token_hex(12)}", "session": self.session, "namespace": self._namespace,
            "cycle": self._cycle, "version": "", "arm": "pinned", "time": at, "principal": self._principal,
            "messages": [dict(message) for message in messages], "answer": said, "finish_reason": "stop",
            "status": 200, "duration": 0.0,
        }  # fmt: skip
        return _made(Interaction, defaults | fields)

    def write(self, *records: Interaction | Feedback) -> None:
        """Records together: all of them are durable, or none. Raises Misused or OSError."""
        try:
            lines = b"".join(record.model_dump_json().encode() + b"\n" for record in records)
        except (PydanticSerializationError, ValueError) as error:
            raise Misused(f"this cannot be recorded, as it cannot be written as JSON: {error}") from None
        with self._lock:
            if self._closed:
                raise CollectError(f"the collector {self.name} is closed: make another one")
            if self._segments.append(lines, records[0].time):
                self._send_quietly()

    def flush(self) -> None:
        """Ends the present segment and brings it to its place. Raises NotStored."""
        with self._lock:
            self._segments.close()
            self._destination.send()

    def close(self) -> None:
        """The same, and the end. Raises NotStored when the bucket does not take what waits; it is not lost."""
        with self._lock:
            self._closed = True
            self._segments.close()
            self._destination.send()

    def _send_quietly(self) -> None:
        try:
            self._destination.send()
        except NotStored as error:
            log.warning("%s", error)

    def feedback(
        self, interaction: Interaction | str, at: datetime, success: bool, correction: str = "", comment: str = ""
    ) -> Feedback:
        """A verdict that is not yet written. Raises Misused."""
        id, session = (interaction, "") if isinstance(interaction, str) else (interaction.id, interaction.session)
        value: Literal["up", "down"] = "up" if success else "down"
        return _made(
            Feedback,
            {
                "id": f"feedback-{secrets.token_hex(12)}", "response_id": id,
                "namespace": self._namespace, "cycle": self._cycle, "version": "", "time": at, "value": value,
                "session": session, "comment": comment, "correction": correction,
            },
        )  # fmt: skip


def hashed(principal: str) -> str:
    """A person as the gateway records it; empty for nobody."""
    return hashlib.sha256(principal.encode("utf-8", "surrogateescape")).hexdigest() if principal else ""


def _verdict_of(metadata: Mapping[str, Any]) -> tuple[bool | None, str, str]:
    success = metadata.get("success")
    if not isinstance(success, bool | None):
        raise Misused(f"metadata.success: {success!r} is no verdict: write True or False, or leave it out")
    texts = {name: metadata.get(name) or "" for name in ("correction", "comment")}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise Misused(f"metadata.{name}: {text!r} is no text: write a string, or leave it out")
    return success, texts["correction"], texts["comment"]


def _made(kind: type[_Record], fields: Mapping[str, Any]) -> _Record:
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the record"
        raise Misused(f"{place}: {first['msg']}; correct what is recorded") from None
