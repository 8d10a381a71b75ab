"""Visits to Git servers and forges: one at a time for each cycle, while its passes go on.

Room: operator, reconcile. What a visit has found waits here for the next pass, which writes it into the status. All of
it may be lost at any moment: the next visit finds what the last one made.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from ratchet_api.promotion import Proposal
from ratchet_api.reasons import Reason
from ratchet_operator.clients.git import credentials
from ratchet_operator.clients.git.credentials import Credentials
from ratchet_operator.clients.git.proposer import Errand
from ratchet_operator.clients.git.trouble import Trouble
from ratchet_operator.clients.kube import Kube
from ratchet_operator.domain.proposal import Seen
from ratchet_operator.errors import Forbidden, NotLeading, OperatorError

log = logging.getLogger(__name__)
Key = tuple[str, str]


class ProposerPort(Protocol):
    """See clients.git.proposer."""

    async def visit(self, errand: Errand, credentials: Credentials) -> Seen:
        """Do what is missing. Raises Trouble."""
        ...


@dataclass(frozen=True)
class Finding:
    """What a visit has found."""

    proposal: Proposal
    """As it was when the visit began."""
    seen: Seen | Trouble


def _nobody(key: Key) -> None:
    """Whoever looks anyway need not be told."""


class Desk:
    """Visits under way, findings that wait, and when each cycle's last visit began."""

    def __init__(self, kube: Kube, proposer: ProposerPort, done: Callable[[Key], None] = _nobody) -> None:
        self._kube = kube
        self._proposer = proposer
        self._done = done
        self._visits: dict[Key, asyncio.Task[None]] = {}
        self._findings: dict[Key, Finding] = {}
        self._begun: dict[Key, datetime] = {}

    def take(self, key: Key) -> Finding | None:
        """The finding that waits; it does so once."""
        return self._findings.pop(key, None)

    def busy(self, key: Key) -> bool:
        """Whether a visit goes on, or has found something that no pass has taken yet."""
        return key in self._visits or key in self._findings

    def begun(self, key: Key) -> datetime | None:
        """When the last visit of this process began."""
        return self._begun.get(key)

    def start(self, key: Key, errand: Errand, now: datetime) -> None:
        """Begin a visit in the background."""
        self._begun[key] = now
        self._visits[key] = asyncio.create_task(self._visit(key, errand), name=f"proposal of {'/'.join(key)}")

    def forget(self, key: Key) -> None:
        """The cycle is gone."""
        self._findings.pop(key, None)
        self._begun.pop(key, None)

    async def idle(self) -> None:
        """Until no visit goes on. Raises what no visit may raise."""
        await asyncio.gather(*self._visits.values())

    async def close(self) -> None:
        """End all visits."""
        visits = list(self._visits.values())
        for visit in visits:
            visit.cancel()
        await asyncio.gather(*visits, return_exceptions=True)

    async def _visit(self, key: Key, errand: Errand) -> None:
        try:
            found = await self._attempt(errand)
            if found is not None:
                self._findings[key] = Finding(errand.proposal, found)
        finally:
            del self._visits[key]
        self._done(key)

    async def _attempt(self, errand: Errand) -> Seen | Trouble | None:
        name = errand.git.credentials_secret.name
        try:
            data = await self._kube.secret_data(errand.namespace, name)
            if data is None:
                text = f"promotion.git.credentialsSecret: there is no Secret {name} in namespace {errand.namespace}"
                return Trouble(Reason.MISSING_SECRET, f"{text}: create it with token, or username and password")
            return await self._proposer.visit(errand, credentials.read(data, name, errand.git.forge))
        except Trouble as trouble:
            return trouble
        except NotLeading:
            return None
        except Forbidden as error:
            return Trouble(Reason.INFRASTRUCTURE_ERROR, f"the operator's Role lacks a rule: {error}")
        except OperatorError as error:
            return Trouble(Reason.FORGE_UNAVAILABLE, f"the Secret {name} cannot be read: {error}")
        except Exception:
            # A bug in one cycle's visit must not take the operator down.
            log.exception("a bug in the proposal of %s/%s", errand.namespace, errand.cycle)
            return Trouble(Reason.INTERNAL_ERROR, "a bug of the operator: its log has the traceback; tried again")
