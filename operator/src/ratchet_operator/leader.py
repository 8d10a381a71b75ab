"""Leader election by a Lease: one of several operators acts, the others only observe.

Room: operator. Writes the Lease through clients.kube.

As in client-go, expiry is judged by our own monotonic clock since we saw the Lease change last, so that clocks of
different nodes need not agree. The holder itself stops acting `renew_deadline` after it *began* its last successful
renewal, which is before anybody else may begin.

A Lease whose holder is known to be dead need not be waited for, because a regression does not wait either: it is taken
at once when an earlier process of our own pod holds it, or when its time is over by our clock and its pod is gone.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from ratchet_api.base import format_time
from ratchet_operator.clients.kube import Kube
from ratchet_operator.clients.objects import Lease, Pod
from ratchet_operator.errors import NotLeading, OperatorError
from ratchet_operator.settings import Election

log = logging.getLogger(__name__)


class Leader:
    """Knows whether this process may act now."""

    def __init__(
        self,
        election: Election | None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._election = election
        self._clock = clock
        self._wall = wall
        self._until = float("inf") if election is None else 0.0
        self._seen: tuple[str, float] | None = None
        """Resource version of the Lease, and when we saw it first."""
        self._acting = asyncio.Event()
        self._on_change: Callable[[bool], None] = lambda leads: None
        if election is None:
            self._acting.set()

    @property
    def acting(self) -> bool:
        """Whether writes are allowed now."""
        return self._clock() < self._until

    def guard(self) -> None:
        """Raises NotLeading unless writes are allowed now."""
        if not self.acting:
            raise NotLeading("another operator leads, or the Lease could not be renewed in time")

    async def wait(self) -> None:
        """Until this process may act."""
        while not self.acting:
            self._acting.clear()
            await self._acting.wait()

    def on_change(self, tell: Callable[[bool], None]) -> None:
        """`tell` is called with True when we begin to lead, with False when we cease to."""
        self._on_change = tell

    async def run(self, kube: Kube) -> None:
        """Take the Lease when it is free, and renew it, for ever."""
        election = self._election
        if election is None:
            self._on_change(True)
            return
        led = False
        while True:
            begun = self._clock()
            try:
                # An answer that comes later than this could not be believed any more.
                async with asyncio.timeout(election.renew_deadline):
                    held = await self._acquire(kube, election)
            except (OperatorError, TimeoutError) as error:
                log.warning("the Lease could not be renewed: %s", error)
                held = None
            if held is not None:
                self._until = begun + election.renew_deadline if held else 0.0
            if self.acting != led:
                led = self.acting
                log.info("%s %s", election.identity, "leads" if led else "does not lead any more")
                self._on_change(led)
            if led:
                self._acting.set()
            await asyncio.sleep(min(election.retry, max(0.05, self._until - self._clock())) if led else election.retry)

    async def release(self, kube: Kube) -> None:
        """Give the Lease up, so that a successor need not wait for its expiry."""
        election = self._election
        if election is None or not self.acting:
            return
        self._until = 0.0
        try:
            lease = await kube.get(Lease, election.namespace, election.name)
            if lease is not None and lease.spec.holder_identity == election.identity:
                await kube.replace_lease(_manifest(election, lease, holder="", seconds=1))
        except OperatorError as error:
            log.warning("the Lease could not be released: %s", error)

    async def _acquire(self, kube: Kube, election: Election) -> bool:
        """One attempt: True held, False somebody else's."""
        lease = await kube.get(Lease, election.namespace, election.name)
        if lease is None:
            await kube.create_lease(_manifest(election, None, election.identity, round(election.duration)))
            return True
        ours = lease.spec.holder_identity == election.identity
        if not (ours or self._free(lease, election) or await self._orphaned(kube, lease, election)):
            return False
        await kube.replace_lease(_manifest(election, lease, election.identity, round(election.duration)))
        return True

    def _free(self, lease: Lease, election: Election) -> bool:
        version = lease.metadata.resource_version
        if self._seen is None or self._seen[0] != version:
            self._seen = (version, self._clock())
        waits = max(election.duration, float(lease.spec.lease_duration_seconds))
        return not lease.spec.holder_identity or self._clock() - self._seen[1] > waits

    async def _orphaned(self, kube: Kube, lease: Lease, election: Election) -> bool:
        """Whether its holder is known to be dead."""
        pod, found, _ = lease.spec.holder_identity.partition("_")
        if not found:
            return False
        # The containers of a pod run one after the other.
        if pod == election.identity.partition("_")[0]:
            return True
        waits = timedelta(seconds=max(election.duration, float(lease.spec.lease_duration_seconds)))
        renewed = lease.spec.renew_time
        over = renewed is not None and self._wall() - renewed > waits
        return over and await kube.get(Pod, election.namespace, pod) is None


def _manifest(election: Election, lease: Lease | None, holder: str, seconds: int) -> dict[str, Any]:
    now = format_time(datetime.now(UTC))
    same = lease is not None and lease.spec.holder_identity == holder
    acquired = lease.spec.acquire_time if lease is not None and same else None
    transitions = lease.spec.lease_transitions if lease is not None else 0
    manifest: dict[str, Any] = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": election.name, "namespace": election.namespace},
        "spec": {
            "holderIdentity": holder,
            "leaseDurationSeconds": max(1, seconds),
            "acquireTime": format_time(acquired) if acquired is not None else now,
            "renewTime": now,
            "leaseTransitions": transitions if same or lease is None else transitions + 1,
        },
    }
    if lease is not None:
        manifest["metadata"]["resourceVersion"] = lease.metadata.resource_version
    return manifest
