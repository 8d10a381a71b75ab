"""One request and its answer: what is counted and recorded when it is over.

Room: gateway. `interaction` is pure; `Ledger` counts in the metrics, remembers the answer and writes to the spool.
"""

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache

import orjson

from ratchet_api.base import format_time
from ratchet_gateway.answer import Answer
from ratchet_gateway.answers import AnswerIndex, new_id
from ratchet_gateway.ask import Ask
from ratchet_gateway.metrics import ArmMetrics, Metrics
from ratchet_gateway.routes import Choice, Cycle
from ratchet_gateway.segments import Destination
from ratchet_gateway.spool import Spool

CLIENT_GONE = 499
"""Status for a request whose client went away; nobody receives it (nginx' convention)."""
CANCELLED, BROKEN = "cancelled", "error"


@dataclass(slots=True)
class Exchange:
    """One request on its way."""

    ask: Ask
    cycle: Cycle
    choice: Choice
    """The arm that answers; changes when a candidate cannot be reached."""
    time: datetime
    """When the request arrived."""
    arrived: float
    """The same on the monotonic clock."""
    principal: str = ""
    answer_id: str = ""
    answer: Answer = field(default_factory=Answer)
    delivered: bool = False
    """Whether the client got the answer's id."""

    @property
    def version(self) -> str:
        return self.choice.arm.version


@lru_cache(maxsize=4096)
def hash_identity(authorization: str | None) -> str:
    """SHA-256 of the caller's credentials; empty when there are none."""
    credentials = (authorization or "").partition(" ")[2].strip()
    return hashlib.sha256(credentials.encode("utf-8", "surrogateescape")).hexdigest() if credentials else ""


def interaction(exchange: Exchange, status: int, ended: float) -> bytes:
    """The line of ratchet_api.records.Interaction for an exchange that has ended."""
    ask, answer = exchange.ask, exchange.answer
    first = answer.first_content
    record = {
        "kind": "interaction",
        "id": exchange.answer_id,
        "session": ask.session,
        "namespace": exchange.cycle.namespace,
        "cycle": exchange.cycle.name,
        "version": exchange.version,
        "arm": exchange.choice.how,
        "time": format_time(exchange.time),
        "principal": exchange.principal,
        "messages": ask.messages,
        "parameters": ask.parameters(),
        "answer": answer.message,
        "finish_reason": answer.finish_reason,
        "status": status,
        "usage": answer.usage,
        "stream": ask.stream,
        "duration": round(ended - exchange.arrived, 6),
        "time_to_first_token": None if first is None else round(first - exchange.arrived, 6),
    }
    return orjson.dumps(record) + b"\n"


class Ledger:
    """Where exchanges end."""

    def __init__(self, metrics: Metrics, spool: Spool, answers: AnswerIndex) -> None:
        self.metrics = metrics
        self.answers = answers
        self._spool = spool

    def arm(self, exchange: Exchange) -> ArmMetrics:
        """The series of the exchange's version."""
        return self.metrics.arm(exchange.cycle.namespace, exchange.cycle.name, exchange.version)

    def name(self, exchange: Exchange) -> str:
        """Gives the exchange an id that belongs to its version."""
        key = (exchange.cycle.namespace, exchange.cycle.name, exchange.version)
        exchange.answer_id = new_id(self.answers.know(key))
        return exchange.answer_id

    def settle(self, exchange: Exchange, status: int, ended: float) -> asyncio.Future[bool]:
        """Counts an exchange that has ended and records it; the future says whether the record is durable.

        A client that goes away while it is waited for cancels the waiting, not the record.
        """
        arm = self.arm(exchange)
        _count(arm, exchange, status, ended)
        if not exchange.answer_id:
            self.name(exchange)
        if exchange.delivered:
            key = (exchange.cycle.namespace, exchange.cycle.name, exchange.version)
            self.answers.add(exchange.answer_id, key, exchange.ask.session)
        kept = self._append(exchange.cycle, exchange.time, interaction(exchange, status, ended))
        kept.add_done_callback(_tally(arm))
        return asyncio.shield(kept)

    def record(self, cycle: Cycle, time: datetime, line: bytes) -> asyncio.Future[bool]:
        """Writes one record of a cycle to the spool, below the day of `time`; the future is as that of `settle`."""
        return asyncio.shield(self._append(cycle, time, line))

    def _append(self, cycle: Cycle, time: datetime, line: bytes) -> asyncio.Future[bool]:
        storage = cycle.storage
        destination = Destination(cycle.namespace, cycle.name, storage.uri, storage.endpoint, storage.region)
        return self._spool.append(destination, time.strftime("%Y-%m-%d"), line)


def _tally(arm: ArmMetrics) -> Callable[[asyncio.Future[bool]], None]:
    def done(kept: asyncio.Future[bool]) -> None:
        arm.interactions["spooled" if kept.result() else "dropped"].inc()

    return done


def _count(arm: ArmMetrics, exchange: Exchange, status: int, ended: float) -> None:
    """A failed request has no duration: errors are fast, and would make a broken version look quick."""
    answer = exchange.answer
    arm.requests(status).inc()
    if answer.finish_reason:
        arm.finish(answer.finish_reason).inc()
    if status in (200, CLIENT_GONE):
        arm.duration.observe(ended - exchange.arrived)
    if answer.first_content is not None:
        arm.first_token.observe(answer.first_content - exchange.arrived)
    if answer.usage is not None:
        for counter, name in ((arm.prompt_tokens, "prompt_tokens"), (arm.completion_tokens, "completion_tokens")):
            count = answer.usage.get(name)
            if isinstance(count, int) and count > 0:
                counter.inc(count)
