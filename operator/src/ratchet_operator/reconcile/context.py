"""What a reconcile is given: the ports to the world, the settings and the clock.

Room: operator, reconcile.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Protocol, TypeVar

from ratchet_api.announcements import Announcement
from ratchet_api.reasons import Reason
from ratchet_operator.clients.arms import Server
from ratchet_operator.clients.events import Events
from ratchet_operator.clients.gateway import Routes, SharedRoutes
from ratchet_operator.clients.kube import Kube
from ratchet_operator.clients.mirror import Looking, Mirror
from ratchet_operator.domain.analysis import ArmReadings
from ratchet_operator.domain.phases import Remark
from ratchet_operator.domain.queries import ArmQueries
from ratchet_operator.errors import Forbidden, Stalling
from ratchet_operator.metrics import Metrics
from ratchet_operator.reconcile.background import Background
from ratchet_operator.reconcile.courier import Courier
from ratchet_operator.reconcile.desk import Desk
from ratchet_operator.reconcile.registrar import Registrar
from ratchet_operator.reconcile.tracing import Tracer
from ratchet_operator.settings import Settings


class PrometheusPort(Protocol):
    """See clients.prometheus."""

    async def arm(self, queries: ArmQueries) -> ArmReadings:
        """All readings of one arm."""
        ...

    async def number(self, query: str) -> float | None:
        """One number, or None."""
        ...


class GatewayPort(Protocol):
    """See clients.gateway."""

    async def routes(self) -> list[Routes] | None:
        """What all ready gateway pods have in force."""
        ...


class ArmsPort(Protocol):
    """See clients.arms."""

    async def serves(self, servers: Sequence[Server], port: int, model_name: str) -> bool | None:
        """Whether all of them serve the model."""
        ...


def utc_now() -> datetime:
    """The clock."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Context:
    """Ports, settings, clock."""

    kube: Kube
    events: Events
    prometheus: PrometheusPort
    gateway: GatewayPort
    arms: ArmsPort
    settings: Settings
    metrics: Metrics
    background: Background
    """Where the next three do what no pass waits for."""
    desk: Desk
    """Visits to Git servers."""
    courier: Courier
    """Deliveries of notices."""
    registrar: Registrar | None = None
    """Aliases in MLflow; None where there is no network to one."""
    tracer: Tracer | None = None
    """Spans to a collector; None when nobody asked for them."""
    now: Callable[[], datetime] = field(default=utc_now)
    refused: dict[str, Remark] = field(default_factory=dict)
    """What the API server refused to make of an object's children, by the object's uid, until it is made: found out
    after the status was written, and said in the next pass."""
    said: dict[str, frozenset[Announcement]] = field(default_factory=dict)
    """Recent announcements that this process has posted, by the object's uid: forgotten, they are posted again."""
    judging: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held from reading what the versions spent of a suite's error rate until that one more has is written."""
    asked: dict[str, datetime] = field(default_factory=dict)
    """When live progress was last asked for, by uid: a brake only, forgotten without loss."""

    def looking(self, mirror: Mirror, instance: str) -> "Context":
        """For passes that only look: reads come from the mirror, and what would write raises Unsettled."""
        kube = self.kube.over(lambda transport: Looking(mirror, transport))
        gateway = SharedRoutes(self.gateway, self.settings.pace.shared)
        return replace(self, kube=kube, events=Events(kube, instance), gateway=gateway)


def soonest(now: datetime, *moments: datetime | float | None) -> float | None:
    """Seconds until the first of some moments (a datetime, or seconds from now); None when there is none."""
    delays = [
        max(0.0, (moment - now).total_seconds()) if isinstance(moment, datetime) else moment
        for moment in moments
        if moment is not None
    ]
    return min(delays, default=None)


T = TypeVar("T")


class Acts:
    """The writes at the end of a pass: one that the API server refuses does not keep the others from being done."""

    def __init__(self) -> None:
        self.refused: Remark | None = None

    async def attempt(self, act: Awaitable[T]) -> T | None:
        """Do it. Only a refusal is caught (None): whatever may pass by itself ends the pass, which is then repeated."""
        try:
            return await act
        except Stalling as error:
            self.refused = self.refused or Remark(error.reason, error.message)
        except Forbidden as error:
            text = f"the operator may not do what it has to; its Role lacks a rule: {error}"
            self.refused = self.refused or Remark(Reason.INFRASTRUCTURE_ERROR, text)
        return None

    def settle(self, ctx: Context, uid: str) -> float | None:
        """Remember the refusal, or that there is none any more; returns 0 when that is news."""
        before = ctx.refused.pop(uid, None)
        if self.refused is not None:
            ctx.refused[uid] = self.refused
        return 0.0 if before != self.refused else None
