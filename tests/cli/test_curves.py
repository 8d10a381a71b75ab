"""`ratchet tensorboard` against a real S3 server: what is fetched, and what is said when there is nothing."""

import argparse
import struct
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.cli.builders import DIGEST

from ratchet_api.cycle import ImprovementCycle
from ratchet_api.version import ModelVersion
from ratchet_cli.main import parser
from ratchet_cli.oncall import curves
from ratchet_cli.oncall.errors import NotFound, OncallError, Unreachable, UsageError
from ratchet_cli.s3 import split
from ratchet_local import S3Access

SUITES = [{"name": "house", "role": "target", "cases": {"configMap": {"name": "s", "key": "house.jsonl"}}}]


@pytest.fixture
def place(bucket: str) -> str:
    """An adapter's folder."""
    return f"s3://{bucket}/assistant/versions/assistant-7/adapter-0"


def version(name: str, adapter: str | None, cycle: str = "assistant", trained: bool = True) -> ModelVersion:
    made: dict[str, Any] = {"adapter": {"uri": adapter, "digest": DIGEST}}
    if trained:
        made = {"baseModel": {"uri": "s3://m-1/base"}, "dataset": {"uri": "s3://m-1/d", "digest": DIGEST}}
    status = {"artifacts": {"adapter": {"uri": adapter, "digest": DIGEST}}} if adapter else {}
    raw = {"metadata": {"name": name}, "spec": {"cycle": cycle, **made}, "status": status}
    return ModelVersion.model_validate(raw)


def asked(*words: str) -> argparse.Namespace:
    return parser().parse_args(["tensorboard", *words])


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, s3: S3Access) -> dict[str, ModelVersion]:
    """The versions of the cluster."""
    versions: dict[str, ModelVersion] = {}
    spec = {
        "baseModel": {"uri": "s3://m-1/base"},
        "storage": {"uri": "s3://m-1/assistant", "endpoint": s3.endpoint},
        "evaluation": {"suites": SUITES},
    }
    cycle = ImprovementCycle.model_validate({"metadata": {"name": "assistant"}, "spec": spec})
    cluster = SimpleNamespace(version=versions.__getitem__, view=lambda name: SimpleNamespace(cycle=cycle))
    monkeypatch.setattr(curves, "connect", lambda args: nullcontext(cluster))
    return versions


def put(s3: S3Access, uri: str, name: str, content: bytes) -> None:
    bucket, prefix = split(uri)
    s3.client().put_object(Bucket=bucket, Key=f"{prefix}/{name}", Body=content)


def test_the_event_files_of_each_version_get_a_folder(
    s3: S3Access, place: str, shown: dict[str, ModelVersion], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events = struct.pack("<Q", 24) + b"x" * 40
    for name in ("assistant-6", "assistant-7"):
        shown[name] = version(name, f"{place}/{name}")
        put(s3, f"{place}/{name}", "tensorboard/events.out.tfevents.1", events + name.encode())
        put(s3, f"{place}/{name}", "adapter_model.safetensors", b"not fetched")
    assert curves.tensorboard(asked("assistant-6", "assistant-7", "--out", str(tmp_path))) == 0
    found = {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {
        f"{name}/events.out.tfevents.1": events + name.encode() for name in ("assistant-6", "assistant-7")
    }  # fmt: skip
    assert f"tensorboard --logdir {tmp_path}" in capsys.readouterr().out


def test_tensorboard_is_started_on_what_was_fetched(
    s3: S3Access, place: str, shown: dict[str, ModelVersion], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown["assistant-7"] = version("assistant-7", place)
    put(s3, place, "tensorboard/events.out.tfevents.1", b"events")
    started: list[list[str]] = []

    def run(command: list[str], check: bool) -> SimpleNamespace:
        folder = Path(command[command.index("--logdir") + 1])
        assert (folder / "assistant-7" / "events.out.tfevents.1").read_bytes() == b"events"
        started.append(command[1:3])
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(curves.subprocess, "run", run)
    assert curves.tensorboard(asked("assistant-7")) == 0
    assert started == [["-m", "tensorboard.main"]]


@pytest.mark.parametrize(
    ("versions", "error", "words"),
    [
        ([version("a", None)], NotFound, "a has no curves yet: they come with its adapter"),
        ([version("a", "s3://m-1/a", trained=False)], NotFound, "a was not trained here"),
        ([version("a", None), version("b", None, "other")], UsageError, "2 cycles (assistant, other)"),
    ],
    ids=["still training", "given", "two cycles"],
)
def test_what_has_no_curves_says_why(
    versions: list[ModelVersion], error: type[OncallError], words: str, shown: dict[str, ModelVersion], place: str
) -> None:
    shown.update({one.metadata.name: one for one in versions})
    with pytest.raises(error) as caught:
        curves.tensorboard(asked(*shown, "--out", "unused"))
    assert words in str(caught.value)


def test_events_that_are_gone_and_storage_that_cannot_be_read(
    place: str, shown: dict[str, ModelVersion], tmp_path: Path
) -> None:
    shown["gone"] = version("gone", place)
    with pytest.raises(NotFound, match=r"no event files below s3://"):
        curves.tensorboard(asked("gone", "--out", str(tmp_path)))
    shown["lost"] = version("lost", "s3://no-such-bucket-here/a")
    with pytest.raises(Unreachable, match="cannot be read"):
        curves.tensorboard(asked("lost", "--out", str(tmp_path)))
