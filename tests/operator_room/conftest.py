"""Fixtures of the operator's tests."""

import importlib.util
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from ratchet_local import Platform
from ratchet_operator.clients.transport import Api


def _load(name: str, file: str) -> ModuleType:
    """--import-mode=importlib has no sys.path of test folders: helper modules are loaded under names of their own."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(file))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


_WORLD = _load("operator_world", "world.py")
_FAKE = _load("operator_fake", "fake.py")
_load("operator_neighbours", "neighbours.py")
_load("operator_stories", "stories.py")
_load("operator_gitserver", "gitserver.py")
_load("operator_forges", "forges.py")
_load("operator_shop", "shop.py")

if TYPE_CHECKING:
    from world import World


GATEWAY_API = ("sigs.k8s.io/gateway-api@v1.6.3", "h1:lKpJa5bGlraC/QeACvCpsHLdmO6y0iKfzVl6gzaFEYc=")
"""The module whose CRDs are installed, and its digest as in a go.sum."""


@pytest.fixture(scope="session")
def gateway_api(install_crds: Callable[[tuple[str, str], Mapping[str, str]], None]) -> None:
    """The real HTTPRoute, from the standard channel."""
    name = "httproutes.gateway.networking.k8s.io"
    install_crds(GATEWAY_API, {name: "config/crd/standard/gateway.networking.k8s.io_httproutes.yaml"})


@pytest.fixture
async def api(cluster: Platform, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    """The real transport, as administrator."""
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    transport = await Api.connect()
    yield transport
    await transport.close()


@pytest.fixture
async def world(api: Api, namespace: str) -> "World":
    """A namespace with its fakes."""
    made: World = _WORLD.World(api, namespace)
    await made.established()
    return made


@pytest.fixture
def fake_world() -> "World":
    """A namespace in an API server that is a dict: for stories that are told a hundred times, and for its faults."""
    made: World = _WORLD.World(_FAKE.FakeApi(), "default")
    return made
