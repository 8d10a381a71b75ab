"""Deliveries of notices, in the background: one at a time for each receiver of a cycle, while its passes go on.

Room: operator, reconcile. What was delivered waits here until a pass has struck it off the status. All of it may be
lost at any moment: what the status still owes is sent again, under the same id.
"""

import base64
import binascii
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Protocol

from ratchet_api.base import ObjectMeta
from ratchet_api.notifications import URL_PATTERN, Notice, Notification, SecretKey
from ratchet_operator.clients.kube import Kube
from ratchet_operator.clients.webhooks import Undelivered
from ratchet_operator.domain import letters
from ratchet_operator.domain.letters import Letter
from ratchet_operator.errors import NotLeading, OperatorError
from ratchet_operator.reconcile.background import BUG, Background, Key

FIRST_BACKOFF = 1.0
LAST_BACKOFF = 300.0
"""Seconds between two attempts at a receiver that fails."""
FAILED: Undelivered | None = Undelivered(BUG)


class SenderPort(Protocol):
    """See clients.webhooks."""

    async def send(self, letter: Letter) -> None:
        """One attempt. Raises Undelivered."""
        ...


def _everybody() -> None:
    """The only operator there is."""


@dataclass
class _Books:
    """Of one cycle."""

    uid: str
    settled: dict[tuple[str, str], str] = field(default_factory=dict)
    troubles: dict[str, str] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    due: dict[str, tuple[Notification, datetime]] = field(default_factory=dict)
    """When a receiver is tried again, unless a person has changed it meanwhile."""


class Courier:
    """What has come of earlier deliveries, and the next ones."""

    def __init__(
        self, kube: Kube, sender: SenderPort, background: Background, guard: Callable[[], None] = _everybody
    ) -> None:
        self._kube = kube
        self._sender = sender
        self._guard = guard
        """Raises NotLeading when this process must not speak."""
        self._background = background
        self._books: dict[Key, _Books] = {}

    def _of(self, key: Key, uid: str) -> _Books:
        books = self._books.get(key)
        if books is None or books.uid != uid:
            books = self._books[key] = _Books(uid)
        return books

    def settled(self, key: Key, uid: str, outbox: Sequence[Notice]) -> Mapping[tuple[str, str], str]:
        """(notice, receiver) -> empty when delivered, else why never; forgets what the outbox has struck off."""
        if not outbox and key not in self._books:
            return {}
        books, owed = self._of(key, uid), {(notice.id, name) for notice in outbox for name in notice.pending}
        books.settled = {pair: why for pair, why in books.settled.items() if pair in owed}
        return books.settled

    def troubles(self, key: Key, uid: str) -> Mapping[str, str]:
        """Receiver -> what is wrong with it."""
        return self._of(key, uid).troubles if key in self._books else {}

    def deliver(
        self, key: Key, meta: ObjectMeta, sinks: Sequence[Notification], outbox: Sequence[Notice], now: datetime
    ) -> datetime | None:
        """Begin what is due; returns when the next attempt is."""
        books = self._of(key, meta.uid)
        later = []
        for sink in sinks:
            owed = [n for n in outbox if sink.name in n.pending and (n.id, sink.name) not in books.settled]
            kind = f"notices to {sink.name}"
            if not owed or self._background.busy(key, kind):
                continue
            changed, due = books.due.get(sink.name, (sink, now))
            if changed == sink and due > now:
                later.append(due)
                continue
            work = partial(self._attempt, books, meta, sink, owed, now)
            self._background.begin(key, kind, work, partial(self._settle, books, sink, now), bug=FAILED)
        return min(later, default=None)

    def forget(self, key: Key) -> None:
        """The cycle is gone."""
        self._books.pop(key, None)

    def _settle(self, books: _Books, sink: Notification, now: datetime, trouble: Undelivered | None) -> None:
        if trouble is None:
            for book in (books.troubles, books.failures, books.due):
                book.pop(sink.name, None)
            return
        failures = books.failures.get(sink.name, 0)
        delay = max(trouble.after, min(LAST_BACKOFF, FIRST_BACKOFF * 2 ** min(failures, 16)))
        books.failures[sink.name] = failures + 1
        books.troubles[sink.name] = trouble.message
        books.due[sink.name] = (sink, now + timedelta(seconds=delay))

    async def _attempt(
        self, books: _Books, meta: ObjectMeta, sink: Notification, owed: Sequence[Notice], now: datetime
    ) -> Undelivered | None:
        """Oldest first; one that the receiver refuses for good does not keep the others."""
        try:
            url = await self._url(meta.namespace, sink)
            key = await self._secret(meta.namespace, "hmacSecret", sink.hmac_secret)
            for notice in owed:
                letter = self._letter(meta, sink, notice, url, key, now)
                self._guard()
                try:
                    await self._sender.send(letter)
                    books.settled[notice.id, sink.name] = ""
                except Undelivered as error:
                    if not error.final:
                        raise
                    books.settled[notice.id, sink.name] = error.message
        except Undelivered as error:
            return error
        except NotLeading:
            raise
        except OperatorError as error:
            return Undelivered(f"its Secret cannot be read: {error}")
        return None

    def _letter(
        self, meta: ObjectMeta, sink: Notification, notice: Notice, url: str, key: str | None, now: datetime
    ) -> Letter:
        if sink.type == "Slack":
            return letters.slack(meta, notice, url)
        try:
            return letters.webhook(meta, notice, url, key, now)
        except ValueError as error:
            raise Undelivered(f"hmacSecret: the key {error}") from None

    async def _url(self, namespace: str, sink: Notification) -> str:
        url = sink.url or await self._secret(namespace, "urlSecret", sink.url_secret) or ""
        if not re.fullmatch(URL_PATTERN, url):
            raise Undelivered("urlSecret: it holds no http(s) address without a user or a password")
        return url

    async def _secret(self, namespace: str, field: str, wanted: SecretKey | None) -> str | None:
        if wanted is None:
            return None
        data = await self._kube.secret_data(namespace, wanted.name) or {}
        if wanted.key not in data:
            raise Undelivered(f"{field}: there is no Secret {wanted.name} with the key {wanted.key}: create it")
        try:
            return base64.b64decode(data[wanted.key], validate=True).decode().strip()
        except (binascii.Error, UnicodeDecodeError):
            raise Undelivered(f"{field}: the key {wanted.key} of Secret {wanted.name} is not text") from None
