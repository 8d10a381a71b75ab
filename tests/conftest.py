"""Fixtures that every room's tests share: a real API server, a real S3 server, a namespace of one's own.

A part that cannot start fails the tests that ask for it, with the platform's own sentence; nothing is skipped silently.
"""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from ratchet_local import Platform, PlatformConfig, S3Access

# The machine may be busy, so no example has a deadline; the same examples every time, so that a failure is found by
# whoever made the change. HYPOTHESIS_PROFILE=search looks for new ones.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """etcd, API server, controller manager and scheduler, with our CRDs established. No nodes: the test plays them."""
    state = tmp_path_factory.mktemp("cluster") / "state"
    config = PlatformConfig(state=state, parts=frozenset({"control-plane"}), name="test")
    with Platform(config, progress=print) as platform:
        platform.kubectl("apply", "--server-side", "-f", str(ROOT / "crds"))
        platform.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
        yield platform


@pytest.fixture
def namespace(cluster: Platform) -> Iterator[str]:
    """A namespace that only this test uses."""
    name = f"test-{secrets.token_hex(4)}"
    cluster.kubectl("create", "namespace", name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Access]:
    """A real S3 server that honours conditional writes."""
    state = tmp_path_factory.mktemp("s3") / "state"
    with Platform(PlatformConfig(state=state, parts=frozenset({"s3"}), name="s3"), progress=print) as platform:
        yield platform.s3
