"""The aliases champion and challenger in MLflow, in the background: no pass and no decision waits for them.

Room: operator, reconcile. Level-based: what the aliases should be follows from the status alone, and a server is told
when that differs from what it was told last, when it failed, and now and then in any case. All of the memory may be
lost at any moment: then it is asked again, and nothing is changed that is right already.
"""

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Protocol

from ratchet_api.base import ObjectMeta
from ratchet_api.cycle import ImprovementCycleStatus
from ratchet_api.reasons import Reason
from ratchet_api.tracking import CHALLENGER, CHAMPION, CREDENTIAL_KEYS, Mlflow, registered_model
from ratchet_operator.clients.kube import Kube
from ratchet_operator.clients.mlflow import NotTold
from ratchet_operator.errors import NotLeading, OperatorError
from ratchet_operator.reconcile.background import BUG, Background, Key

if TYPE_CHECKING:
    from ratchet_operator.reconcile.cycle import CyclePass

Aliases = Mapping[str, str | None]
KIND = "aliases in MLflow"
FIRST_BACKOFF = 2.0
LAST_BACKOFF = 300.0
AGAIN = 600.0
"""Seconds after which a server is looked at although nothing has changed: somebody else may have."""


class RegistryPort(Protocol):
    """See clients.mlflow."""

    async def point(self, url: str, login: Mapping[str, str], model: str, wanted: Aliases) -> None:
        """Raises NotTold."""
        ...


def aliases(status: ImprovementCycleStatus) -> dict[str, str | None]:
    """Digests of the adapters that serve and that are being rolled out; None for the bare base model, or nobody."""
    serving = status.serving
    stable, candidate = serving.stable, serving.candidate
    return {
        CHAMPION: (stable.digest or None) if stable is not None else None,
        CHALLENGER: (candidate.digest or None) if candidate is not None else None,
    }


@dataclass
class _Books:
    """Of one cycle."""

    uid: str
    told: tuple[Mlflow, Aliases] | None = None
    """What was asked for last, be it done or not."""
    due: datetime | None = None
    failures: int = 0
    trouble: str = ""
    telling: str = ""
    """The trouble that a pass has taken up, which may still be begun anew."""
    said: str = ""
    """The trouble that people were told of."""


def _everybody() -> None:
    """The only operator there is."""


class Registrar:
    """What has come of earlier rounds, and the next one."""

    def __init__(
        self, kube: Kube, registry: RegistryPort, background: Background, guard: Callable[[], None] = _everybody
    ) -> None:
        self._kube = kube
        self._registry = registry
        self._guard = guard
        """Raises NotLeading when this process must not act."""
        self._background = background
        self._books: dict[Key, _Books] = {}

    def news(self, key: Key, uid: str) -> str:
        """A trouble that nobody was told of yet; empty when there is none."""
        books = self._books.get(key)
        if books is None or books.uid != uid or books.trouble == books.said:
            return ""
        books.telling = books.trouble
        return books.trouble

    def heard(self, key: Key, uid: str) -> None:
        """The pass that asked for news has been written."""
        books = self._books.get(key)
        if books is not None and books.uid == uid and books.telling:
            books.said, books.telling = books.telling, ""

    def point(self, meta: ObjectMeta, mlflow: Mlflow, wanted: Aliases, now: datetime) -> datetime | None:
        """Begin a round if one is due; returns when the next one is."""
        key = (meta.namespace, meta.name)
        books = self._books.get(key)
        if books is None or books.uid != meta.uid:
            books = self._books[key] = _Books(meta.uid)
        if self._background.busy(key, KIND):
            return None  # its end looks again
        if books.told == (mlflow, wanted) and books.due is not None and now < books.due:
            return books.due
        work = partial(self._attempt, meta, mlflow, wanted)
        after = partial(self._settle, books, (mlflow, wanted), now)
        self._background.begin(key, KIND, work, after, bug=BUG)
        return None

    def forget(self, key: Key) -> None:
        """The cycle is gone, or names no MLflow any more."""
        self._books.pop(key, None)

    def _settle(self, books: _Books, told: tuple[Mlflow, Aliases], now: datetime, trouble: str) -> None:
        books.told = told
        books.trouble = trouble
        books.failures = books.failures + 1 if trouble else 0
        delay = min(LAST_BACKOFF, FIRST_BACKOFF * 2 ** min(books.failures - 1, 16)) if trouble else AGAIN
        books.due = now + timedelta(seconds=delay)
        if not trouble:
            books.said = ""

    async def _attempt(self, meta: ObjectMeta, mlflow: Mlflow, wanted: Aliases) -> str:
        """Empty, or what went wrong."""
        try:
            login = await self._login(meta.namespace, mlflow)
            self._guard()
            await self._registry.point(mlflow.url, login, registered_model(meta.namespace, meta.name), wanted)
        except NotTold as error:
            return f"tracking.mlflow: {mlflow.url}: {error}"
        except NotLeading:
            raise
        except OperatorError as error:
            return f"tracking.mlflow.credentialsSecret cannot be read: {error}"
        return ""

    async def _login(self, namespace: str, mlflow: Mlflow) -> dict[str, str]:
        if mlflow.credentials_secret is None:
            return {}
        name = mlflow.credentials_secret.name
        data = await self._kube.secret_data(namespace, name)
        if data is None:
            raise NotTold(f"credentialsSecret: there is no Secret {name} in namespace {namespace}: create it")
        try:
            token, user, password = (base64.b64decode(data.get(key, ""), validate=True).decode().strip()
                                     for key in CREDENTIAL_KEYS)  # fmt: skip
        except (binascii.Error, UnicodeDecodeError):
            raise NotTold(f"credentialsSecret: a key of Secret {name} is not text") from None
        if user:
            return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}
        return {"Authorization": f"Bearer {token}"} if token else {}


def advance(this: "CyclePass") -> None:
    """Say what is wrong with the server, once."""
    meta, registrar = this.before.metadata, this.ctx.registrar
    text = registrar.news((meta.namespace, meta.name), meta.uid) if registrar is not None else ""
    if text:
        this.tell(True, Reason.TRACKING_FAILED, text)


def act(this: "CyclePass") -> None:
    """Have the aliases moved, once the status that they follow from is written."""
    meta, tracking, registrar = this.before.metadata, this.before.spec.tracking, this.ctx.registrar
    if registrar is None:
        return
    registrar.heard((meta.namespace, meta.name), meta.uid)
    if tracking is None:
        registrar.forget((meta.namespace, meta.name))
        return
    this.wake.append(registrar.point(meta, tracking.mlflow, aliases(this.status), this.now))
