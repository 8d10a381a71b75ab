"""A gateway in this process in front of arms that do as they are told."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ratchet_gateway.routes import Table
from ratchet_gateway.service import Service, StaticTable
from ratchet_gateway.settings import Limits, Settings, SpoolSettings

from .support import PATIENCE, FakeArm, Front, MakeArm, MakeFront, MemoryStore


@pytest.fixture
async def make_arm() -> AsyncIterator[MakeArm]:
    """Starts pods: `await make_arm("assistant-1", "text")`."""
    arms: list[FakeArm] = []

    async def make(model_name: str, text: str = "") -> FakeArm:
        arm = FakeArm(model_name, text or f"I am {model_name}")
        await arm.start()
        arms.append(arm)
        return arm

    yield make
    for arm in arms:
        await arm.stop()


@pytest.fixture
async def make_front(tmp_path: Path) -> AsyncIterator[MakeFront]:
    """Starts gateways: `await make_front(table, limits=..., spool=...)`."""
    fronts: list[Front] = []

    async def make(
        table: Table, *, store: Any = None, limits: Limits | None = None, folder: Path | None = None, **spool: Any
    ) -> Front:
        options = {"segment_seconds": 3600.0, "retry_seconds": (0.05, 0.2), **spool}
        settings = Settings(
            host="127.0.0.1",
            port=0,
            spool=SpoolSettings(folder=folder or tmp_path / f"spool-{len(fronts)}", writer="gateway-test", **options),
            limits=limits or Limits(),
            grace_seconds=PATIENCE,
            upload_seconds=PATIENCE,
        )
        service = Service(settings, store or MemoryStore(), lambda publish, metrics: StaticTable(table, publish))
        await service.start()
        front = Front(service, service.gateway.store)
        fronts.append(front)
        return front

    yield make
    for front in fronts:
        await front.close()
