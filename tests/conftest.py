"""Fixtures that every room's tests share: a real API server, a real S3 server, a namespace of one's own.

A part that cannot start fails the tests that ask for it, with the platform's own sentence; nothing is skipped silently.
"""

import json
import os
import secrets
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import settings

from ratchet_local import Platform, PlatformConfig, S3Access
from ratchet_local.toolchain import find_go

# The machine may be busy, so no example has a deadline; the same examples every time, so that a failure is found by
# whoever made the change. HYPOTHESIS_PROFILE=search looks for new ones.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))

ROOT = Path(__file__).resolve().parent.parent

TRAINER = ("github.com/kubeflow/trainer/v2@v2.3.0", "h1:Je+e7zvTLzB4qW09J1fB7pZrqvPtWuGng2NqdN5p5QU=")
"""Kubeflow Trainer (Apache 2.0), whose CRDs are installed, and its digest as in a go.sum."""

Install = Callable[[tuple[str, str], Mapping[str, str]], None]


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


@pytest.fixture(scope="session")
def install_crds(cluster: Platform, tmp_path_factory: pytest.TempPathFactory) -> Install:
    """Installs definitions (name -> file in the module) of a Go module (address, digest as in a go.sum)."""

    def install(pinned: tuple[str, str], files: Mapping[str, str]) -> None:
        module, digest = pinned
        answer = subprocess.run(
            [find_go(print), "mod", "download", "-json", module],
            cwd=tmp_path_factory.mktemp("module"),
            # The digest is held against ours below.
            env=os.environ | {"GOSUMDB": "off", "GOTOOLCHAIN": "local", "GOWORK": "off", "GOFLAGS": "-mod=mod"},
            capture_output=True,
            text=True,
            check=False,
        )
        found = json.loads(answer.stdout or "{}")
        assert found.get("Sum") == digest, f"{module} cannot be had: {found.get('Error') or answer.stderr or found}"
        for name, file in files.items():
            cluster.kubectl("apply", "--server-side", "-f", str(Path(found["Dir"]) / file))
            # A definition that is a moment old has conditions: null, which --for=condition cannot read.
            named = f"--for=jsonpath={{.status.acceptedNames.plural}}={name.partition('.')[0]}"
            cluster.kubectl("wait", named, f"crd/{name}", "--timeout=60s")
            cluster.kubectl("wait", "--for=condition=Established", f"crd/{name}", "--timeout=60s")

    return install


@pytest.fixture(scope="session")
def kubeflow(install_crds: Install) -> None:
    """The real TrainJob, TrainingRuntime and ClusterTrainingRuntime."""
    plurals = ("trainjobs", "trainingruntimes", "clustertrainingruntimes")
    folder = "manifests/base/crds/trainer.kubeflow.org"
    install_crds(TRAINER, {f"{one}.trainer.kubeflow.org": f"{folder}_{one}.yaml" for one in plurals})


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
