"""Visits to Git servers and forges: one at a time for each cycle, while its passes go on.

Room: operator, reconcile. What a visit has found waits here for the next pass, which writes it into the status. All of
it may be lost at any moment: the next visit finds what the last one made.
"""

from dataclasses import dataclass
from datetime import datetime
from functools import partial
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
from ratchet_operator.reconcile.background import BUG, Background, Key

KIND = "proposal"
FAILED: Seen | Trouble = Trouble(Reason.INTERNAL_ERROR, f"{BUG}; tried again")


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


class Desk:
    """Findings that wait, and when each cycle's last visit began."""

    def __init__(self, kube: Kube, proposer: ProposerPort, background: Background) -> None:
        self._kube = kube
        self._proposer = proposer
        self._background = background
        self._findings: dict[Key, Finding] = {}
        self._begun: dict[Key, datetime] = {}

    def take(self, key: Key) -> Finding | None:
        """The finding that waits; it does so once."""
        return self._findings.pop(key, None)

    def busy(self, key: Key) -> bool:
        """Whether a visit goes on, or has found something that no pass has taken yet."""
        return self._background.busy(key, KIND) or key in self._findings

    def begun(self, key: Key) -> datetime | None:
        """When the last visit of this process began."""
        return self._begun.get(key)

    def start(self, key: Key, errand: Errand, now: datetime) -> None:
        """Begin a visit in the background."""
        self._begun[key] = now
        after = partial(self._file, key, errand.proposal)
        self._background.begin(key, KIND, partial(self._attempt, errand), after, bug=FAILED)

    def _file(self, key: Key, proposal: Proposal, seen: Seen | Trouble) -> None:
        self._findings[key] = Finding(proposal, seen)

    def forget(self, key: Key) -> None:
        """The cycle is gone."""
        self._findings.pop(key, None)
        self._begun.pop(key, None)

    async def _attempt(self, errand: Errand) -> Seen | Trouble:
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
            raise
        except Forbidden as error:
            return Trouble(Reason.INFRASTRUCTURE_ERROR, f"the operator's Role lacks a rule: {error}")
        except OperatorError as error:
            return Trouble(Reason.FORGE_UNAVAILABLE, f"the Secret {name} cannot be read: {error}")
