"""POST /v1/feedback: a verdict on an answer, recorded and, the first one of each answer, counted.

Room: gateway. Writes to the spool through the ledger.
"""

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import orjson
from aiohttp import web

from ratchet_api.base import format_time
from ratchet_gateway.answers import VersionKey
from ratchet_gateway.ask import parse_object
from ratchet_gateway.chat import Routes, error_response, read_body
from ratchet_gateway.errors import BadRequest, GatewayError, NotRecorded, UnknownAnswer
from ratchet_gateway.exchange import Ledger
from ratchet_gateway.routes import Cycle
from ratchet_gateway.settings import Limits

Value = Literal["up", "down"]
_FIELDS = ("response_id", "value", "comment", "correction", "model")
_LONGEST = {"response_id": 256, "comment": 65_536, "correction": 1_048_576, "model": 256}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a client sends."""

    response_id: str
    value: Value
    comment: str = ""
    correction: str = ""
    model: str = ""
    """Names the cycle when the response id is not one of ours; the gateway knows its own."""


def parse_verdict(data: bytes) -> Verdict:
    """Raises BadRequest that names the field and what to write instead."""
    body = parse_object(data)
    for name in body:
        if name not in _FIELDS:
            raise BadRequest(f"{name} is not a field of feedback: write {', '.join(_FIELDS)}", param=name)
    texts = {name: body.get(name) or "" for name in ("response_id", "comment", "correction", "model")}
    for name, text in texts.items():
        if not isinstance(text, str) or len(text) > _LONGEST[name]:
            raise BadRequest(f"{name} must be a string of at most {_LONGEST[name]} characters", param=name)
    if not texts["response_id"]:
        raise BadRequest("response_id is missing: write the id of the answer that you judge", param="response_id")
    value = body.get("value")
    if value not in ("up", "down"):
        raise BadRequest('value must be "up" or "down"', param="value")
    return Verdict(value=value, **texts)


class FeedbackHandler:
    """The handler and what it works with."""

    def __init__(self, routes: Routes, ledger: Ledger, limits: Limits) -> None:
        self._routes = routes
        self._ledger = ledger
        self._limits = limits

    async def handle(self, request: web.Request) -> web.Response:
        """200 with the version when the answer is known; 202 when it is not, and the verdict is only recorded."""
        try:
            return await self._take(parse_verdict(await read_body(request, self._limits)))
        except GatewayError as error:
            return error_response(error)

    async def _take(self, verdict: Verdict) -> web.Response:
        index = self._ledger.answers
        answer = index.find(verdict.response_id)
        key = answer.key if answer is not None else index.version_of(verdict.response_id)
        cycle = self._cycle(verdict, key)
        if key is not None and key[:2] != (cycle.namespace, cycle.name):
            key = None
        now = datetime.now(UTC)
        record = {
            "kind": "feedback",
            "id": f"feedback-{secrets.token_hex(12)}",
            "response_id": verdict.response_id,
            "namespace": cycle.namespace,
            "cycle": cycle.name,
            "version": "" if key is None else key[2],
            "session": "" if answer is None else answer.session,
            "time": format_time(now),
            "value": verdict.value,
            "comment": verdict.comment,
            "correction": verdict.correction,
        }
        if not await self._ledger.record(cycle, now, orjson.dumps(record) + b"\n"):
            raise NotRecorded("the feedback could not be recorded, as the spool is full or broken: try again later")
        if key is not None:
            self._count(verdict, key)
        summary = {name: record[name] for name in ("id", "response_id", "version", "value")}
        status = 202 if key is None else 200
        return web.Response(
            status=status, body=orjson.dumps({"object": "feedback", **summary}), content_type="application/json"
        )

    def _count(self, verdict: Verdict, key: VersionKey) -> None:
        index = self._ledger.answers
        answer = index.find(verdict.response_id) or index.add(verdict.response_id, key, "")
        if index.judge(verdict.response_id, answer):
            self._ledger.metrics.arm(*key).feedback[verdict.value].inc()

    def _cycle(self, verdict: Verdict, key: VersionKey | None) -> Cycle:
        """The cycle whose storage takes the record."""
        table = self._routes.table
        if verdict.model:
            return table.resolve(verdict.model).cycle
        if key is not None and key[:2] in table.cycles:
            return table.cycles[key[:2]]
        if len(table.cycles) == 1:
            return next(iter(table.cycles.values()))
        raise UnknownAnswer(
            f"response_id {verdict.response_id!r} is not an answer of this gateway: add model, the name of its cycle"
        )
