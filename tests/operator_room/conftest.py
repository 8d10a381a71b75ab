"""Fixtures of the operator's tests."""

import importlib.util
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ratchet_local import Platform
from ratchet_operator.clients.transport import Api

# --import-mode=importlib has no sys.path of test folders; the helper module is loaded under a name of its own.
_SPEC = importlib.util.spec_from_file_location("operator_world", Path(__file__).with_name("world.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
_WORLD = importlib.util.module_from_spec(_SPEC)
sys.modules["operator_world"] = _WORLD
_SPEC.loader.exec_module(_WORLD)

if TYPE_CHECKING:
    from world import World


@pytest.fixture
async def api(cluster: Platform, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    """The real transport, as administrator."""
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    transport = await Api.connect()
    yield transport
    await transport.close()


@pytest.fixture
async def world(cluster: Platform, api: Api, namespace: str) -> "World":
    """A namespace with its fakes."""
    made: World = _WORLD.World(cluster, api, namespace)
    await made.established()
    return made
