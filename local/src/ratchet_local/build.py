"""Finds the platform's binaries, or builds them from pinned Go modules into a cache.

Room: local. Touches the cache folder, the Go toolchain and, when Go is missing, pip.

Order of search for each tool: `KUBEBUILDER_ASSETS`, the cache, PATH, a build; a ready one must have a fitting version.
The cache key digests everything that decides the result: go.mod, go.sum, flags, target platform.
"""

import fcntl
import hashlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ratchet_local.errors import BuildError
from ratchet_local.toolchain import cache_folder, find_go

Progress = Callable[[str], None]

MINIMUM_FREE_BYTES = 2 << 30
TICK_SECONDS = 10.0


@dataclass(frozen=True)
class Tool:
    """One binary: how to build it, and how to recognise a ready one that will do."""

    name: str
    package: str
    version_pattern: str
    """Must be found in what `NAME --version` prints."""
    expectation: str
    """How long a cold build takes on two cores, for the person who waits."""


@dataclass(frozen=True)
class Module:
    """A Go module of `local/go` whose tools we build."""

    name: str
    tools: tuple[Tool, ...]
    flags: tuple[str, ...]

    def tool(self, name: str) -> Tool:
        return next(tool for tool in self.tools if tool.name == name)


_VERSION = "k8s.io/component-base/version"
_KUBERNETES_VERSION = "v1.37.2"
_PROMETHEUS_VERSION = "3.16.0"

KUBERNETES = Module(
    "kubernetes",
    (
        Tool("etcd", "go.etcd.io/etcd/server/v3", r"etcd Version: 3\.(6|7|8|9)\.", "20 s"),
        Tool("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver", r"Kubernetes v1\.37\.", "7 min"),
        Tool(
            "kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager", r"Kubernetes v1\.37\.", "3 min"
        ),
        Tool("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler", r"Kubernetes v1\.37\.", "30 s"),
    ),
    (
        "-trimpath",
        "-buildvcs=false",
        "-ldflags",
        f"-s -w -X {_VERSION}.gitVersion={_KUBERNETES_VERSION} -X {_VERSION}.gitMajor=1 -X {_VERSION}.gitMinor=37",
    ),
)
PROMETHEUS = Module(
    "prometheus",
    (
        Tool("prometheus", "github.com/prometheus/prometheus/cmd/prometheus", r"prometheus, version 3\.", "2 min"),
        Tool("promtool", "github.com/prometheus/prometheus/cmd/promtool", r"promtool, version 3\.", "30 s"),
    ),
    (
        "-trimpath",
        "-buildvcs=false",
        "-tags",
        # Some discovery modules cannot be had from the public proxy; ours is the only one needed.
        "remove_all_sd,enable_kubernetes_sd",
        "-ldflags",
        f"-s -w -X github.com/prometheus/common/version.Version={_PROMETHEUS_VERSION}",
    ),
)
REGISTRY = Module(
    "registry",
    (Tool("registry", "github.com/distribution/distribution/v3/cmd/registry", r"distribution/v3", "1 min"),),
    ("-trimpath", "-buildvcs=false", "-ldflags", "-s -w"),
)
MODULES = (KUBERNETES, PROMETHEUS, REGISTRY)


def module_folder(module: Module) -> Path:
    """Where the module's go.mod lies: beside the package in a checkout, inside it in an installed wheel."""
    here = Path(__file__).resolve()
    for root in (here.parents[2] / "go", here.parent / "go"):
        if (root / module.name / "go.mod").is_file():
            return root / module.name
    raise BuildError(f"the Go module {module.name!r} is not part of this installation: install Ratchet from a checkout")


def cache_key(module: Module, folder: Path) -> str:
    """Hex digest of everything that decides the module's binaries."""
    digest = hashlib.sha256()
    for part in (
        (folder / "go.mod").read_bytes(),
        (folder / "go.sum").read_bytes(),
        "\0".join(module.flags).encode(),
        f"{platform.system()}/{platform.machine()}".encode(),
    ):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()[:32]


def installed(name: str) -> Path | None:
    """A program of the venv that runs us (wheels put kubectl and weed there), else of PATH."""
    beside = Path(sys.executable).parent / name
    if beside.is_file() and os.access(beside, os.X_OK):
        return beside
    found = shutil.which(name)
    return Path(found) if found else None


def require_installed(name: str, package: str) -> Path:
    """`installed`, or a BuildError that names the Python package to install."""
    found = installed(name)
    if found is None:
        raise BuildError(f"{name} is missing: install the Python package {package!r}, or put {name} on PATH")
    return found


def _fits(binary: Path, tool: Tool) -> bool:
    try:
        answer = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return re.search(tool.version_pattern, answer.stdout + answer.stderr) is not None


def find_ready(tool: Tool, place: str, progress: Progress) -> Path | None:
    """A ready binary in `place` (KUBEBUILDER_ASSETS or PATH) in a version that fits; says so when it does not fit."""
    if place == "KUBEBUILDER_ASSETS":
        assets = os.environ.get(place)
        found = Path(assets) / tool.name if assets else None
    else:
        path = shutil.which(tool.name)
        found = Path(path) if path else None
    if found is None or not found.is_file():
        return None
    if _fits(found, tool):
        return found
    progress(f"{tool.name} in {place} has another version than the one needed, so it is not used")
    return None


def ensure(names: Iterable[str], progress: Progress = lambda line: None) -> dict[str, Path]:
    """Paths of the named tools, built first where needed.

    Raises BuildError in one sentence: no compiler, no disk space, no download, or what the compiler said.
    """
    result: dict[str, Path] = {}
    missing: dict[Module, list[Tool]] = {}
    for name in names:
        module = next(module for module in MODULES if any(tool.name == name for tool in module.tools))
        tool = module.tool(name)
        folder = module_folder(module)
        cached = cache_folder() / "bin" / cache_key(module, folder) / name
        if ready := find_ready(tool, "KUBEBUILDER_ASSETS", progress):
            result[name] = ready
        elif cached.is_file():
            result[name] = cached
        elif ready := find_ready(tool, "PATH", progress):
            result[name] = ready
        else:
            missing.setdefault(module, []).append(tool)
    for module, tools in missing.items():
        result |= _build(module, tools, progress)
    return result


def _build(module: Module, tools: list[Tool], progress: Progress) -> dict[str, Path]:
    folder = module_folder(module)
    target = cache_folder() / "bin" / cache_key(module, folder)
    target.mkdir(parents=True, exist_ok=True)
    built: dict[str, Path] = {}
    with _locked(target / ".lock", progress):
        todo = [tool for tool in tools if not (target / tool.name).is_file()]
        go = find_go(progress) if todo else None
        for number, tool in enumerate(todo, 1):
            assert go is not None
            _check_space(target)
            label = f"building {tool.name} ({number} of {len(todo)}; about {tool.expectation} the first time)"
            _build_tool(go, module, folder, tool, target, progress, label)
        for tool in tools:
            built[tool.name] = target / tool.name
    return built


def _build_tool(
    go: Path, module: Module, folder: Path, tool: Tool, target: Path, progress: Progress, label: str
) -> None:
    with tempfile.TemporaryDirectory(prefix=".building-", dir=target) as scratch:
        output = Path(scratch) / tool.name
        command = [str(go), "build", *module.flags, "-o", str(output), tool.package]
        _run(command, folder, progress, label, tool)
        # A rename within one folder is atomic: a binary is there whole or not at all.
        output.replace(target / tool.name)


def _run(command: list[str], folder: Path, progress: Progress, label: str, tool: Tool) -> None:
    environment = os.environ | {
        "CGO_ENABLED": "0",
        "GOFLAGS": "-mod=readonly",
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
    }
    started = time.monotonic()
    progress(label)
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said,
            start_new_session=True,
        )  # fmt: skip
        try:
            while True:
                try:
                    code = process.wait(TICK_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    progress(f"{label}: {_elapsed(time.monotonic() - started)} so far")
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        said.seek(0)
        text = said.read()
    if code != 0:
        raise BuildError(explain(tool.name, text, code))
    progress(f"built {tool.name} in {_elapsed(time.monotonic() - started)}")


def explain(name: str, text: str, code: int) -> str:
    """What a failed `go build` said, as one sentence for a person."""
    lines = [line for line in text.strip().splitlines() if not line.startswith(("go: downloading", "#"))]
    last = lines[-1].strip() if lines else f"exit code {code}"
    lowered = text.lower()
    if "no space left on device" in lowered:
        return f"building {name} failed: the disk is full: free 6 GB, or point RATCHET_CACHE and GOCACHE elsewhere"
    if code in (-signal.SIGKILL, 137) or "signal: killed" in lowered:
        return f"building {name} failed: the compiler was killed, probably for lack of memory; it needs about 3 GB"
    if any(word in lowered for word in ("dial tcp", "no such host", "i/o timeout", "proxyconnect", "reading http")):
        return f"building {name} failed: a Go module could not be downloaded (check the network and GOPROXY): {last}"
    return f"building {name} failed: {last}"


def _elapsed(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _check_space(folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < MINIMUM_FREE_BYTES:
        raise BuildError(
            f"only {free >> 20} MB are free where the binaries are built: free 2 GB or point RATCHET_CACHE elsewhere"
        )


@contextmanager
def _locked(path: Path, progress: Progress) -> Iterator[None]:
    """Hold an exclusive lock on the file; says so while another builder holds it."""
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("another process builds the same binaries: waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
