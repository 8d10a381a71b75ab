"""The Dockerfiles: what can be said without building. docs/images.md tells what was built, and how."""

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from ratchet_operator.manifests.pods import USER

IMAGES = {"operator": "operator", "gateway": "gateway", "trainer": "trainer-image"}


@pytest.fixture(params=sorted(IMAGES))
def image(request: pytest.FixtureRequest) -> str:
    """Each image's name."""
    name: str = request.param
    return name


@pytest.fixture
def dockerfile(repository: Path, image: str) -> str:
    """Its Dockerfile."""
    return (repository / IMAGES[image] / "Dockerfile").read_text()


def test_base_is_an_argument_of_every_stage(dockerfile: str) -> None:
    assert re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE) == ["${BASE}", "${BASE}"]
    assert re.search(r"^ARG BASE=\S+$", dockerfile, re.MULTILINE)


def test_runs_as_the_user_that_the_manifests_name(repository: Path, dockerfile: str) -> None:
    final = dockerfile.rpartition("FROM ")[2]
    assert f"USER {USER}:{USER}" in final
    values = (repository / "charts/ratchet/values.yaml").read_text()
    assert f"runAsUser: {USER}" in values


def test_dependencies_come_by_hash_from_the_image_s_own_lock(repository: Path, image: str, dockerfile: str) -> None:
    assert f"COPY requirements-{image}.lock " in dockerfile
    assert "--require-hashes" in dockerfile
    assert "--only-binary :all:" in dockerfile
    lock = (repository / f"requirements-{image}.lock").read_text()
    assert "--hash=sha256:" in lock
    assert not re.search(r"^--(index-url|extra-index-url|find-links)", lock, re.MULTILINE)


def test_locks_agree_with_the_one_of_the_checkout(repository: Path, image: str) -> None:
    """An image runs the very versions that the tests ran with."""

    def pins(name: str) -> set[str]:
        return set(re.findall(r"^([a-z0-9][a-z0-9._-]*==\S+)", (repository / name).read_text(), re.MULTILINE))

    assert pins(f"requirements-{image}.lock") <= pins("requirements.lock")


def test_holds_one_room_and_the_vocabulary(repository: Path, image: str, dockerfile: str) -> None:
    assert f"COPY api/src {IMAGES[image]}/src " in dockerfile
    assert f'ENTRYPOINT ["python", "-m", "ratchet_{image}"]' in dockerfile
    assert (repository / IMAGES[image] / "src" / f"ratchet_{image}" / "__main__.py").is_file()


def test_build_context_holds_what_is_copied_and_little_else(repository: Path, dockerfile: str) -> None:
    lines = (repository / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    allowed = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        source
        for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.MULTILINE)
        for source in sources.split()
    }
    assert copied
    assert copied <= allowed


def test_where_packages_come_from_stays_out_of_the_image(dockerfile: str) -> None:
    assert "--mount=type=secret,id=pip," in dockerfile
    assert not re.search(r"https?://", dockerfile)
    assert not re.search(r"^(ENV|ARG) .*(INDEX|PIP_|PROXY)", dockerfile, re.MULTILINE)


@pytest.mark.parametrize("script", ["images.sh", "debian-base.sh"])
def test_scripts_can_be_run(repository: Path, script: str) -> None:
    path = repository / "scripts" / script
    assert path.stat().st_mode & stat.S_IXUSR
    bash = shutil.which("bash")
    assert bash is not None
    subprocess.run([bash, "-n", path], check=True)


def engine(folder: Path, name: str, works: bool = True) -> None:
    """A stand-in for a container engine that writes down what it is asked."""
    path = folder / name
    status = 0 if works else 1
    path.write_text(f'#!/bin/sh\n[ "$1" = info ] && exit {status}\necho {name} "$@" >> "$CALLS"\n')
    path.chmod(0o755)


def build(repository: Path, folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """scripts/images.sh with only the engines of the folder to be found."""
    for tool in ("bash", "sed", "head", "dirname"):
        found = shutil.which(tool)
        assert found is not None
        (folder / tool).symlink_to(found)
    clean = {k: v for k, v in os.environ.items() if k not in ("PIP_CERT", "SSL_CERT_FILE", "PIP_CONFIG_FILE", "ENGINE")}
    return subprocess.run(
        [repository / "scripts/images.sh", *arguments],
        env=clean | {"PATH": str(folder), "CALLS": str(folder / "calls")} | environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_first_engine_that_works_builds_all_three(repository: Path, tmp_path: Path) -> None:
    engine(tmp_path, "docker", works=False)
    engine(tmp_path, "podman")
    engine(tmp_path, "buildah")
    answer = build(repository, tmp_path, REPOSITORY="registry.example.com/r", TAG="7", BASE="mine", PIP_CERT="/ca.pem")
    assert answer.returncode == 0, answer.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [call.split()[0] for call in calls] == ["podman"] * 3
    for call, (image, folder) in zip(calls, IMAGES.items(), strict=True):
        assert f"--file {folder}/Dockerfile --tag registry.example.com/r/{image}:7 ." in call
        assert "--build-arg BASE=mine" in call
        assert "--secret id=certificates,src=/ca.pem" in call
        assert "id=pip" not in call


def test_one_image_with_a_named_engine(repository: Path, tmp_path: Path) -> None:
    engine(tmp_path, "docker")
    engine(tmp_path, "buildah")
    answer = build(repository, tmp_path, "gateway", ENGINE="buildah")
    assert answer.returncode == 0, answer.stderr
    [call] = (tmp_path / "calls").read_text().splitlines()
    assert call.startswith("buildah build")
    assert "ratchet/gateway:0.1.0" in call


def test_no_engine_and_unknown_images_are_said(repository: Path, tmp_path: Path) -> None:
    answer = build(repository, tmp_path)
    assert answer.returncode == 1
    assert "none of these works here: docker podman buildah" in answer.stderr
    other = tmp_path / "other"
    other.mkdir()
    engine(other, "docker")
    answer = build(repository, other, "operater")
    assert answer.returncode == 1
    assert "there is no image operater: write operator, gateway or trainer" in answer.stderr
