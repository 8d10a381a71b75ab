"""`ratchet lineage CYCLE --erased` against a real S3 server: who learnt from the words of those who withdrew."""

import argparse
import json
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from ratchet_api.cycle import ImprovementCycle
from ratchet_api.erasures import Erased, Subject
from ratchet_api.version import ModelVersion
from ratchet_cli.main import parser
from ratchet_cli.oncall import withdrawn
from ratchet_cli.oncall.errors import NotFound, UsageError
from ratchet_local import S3Access

ONE, OTHER = "a" * 64, "b" * 64
SUITES = [{"name": "house", "role": "target", "cases": {"configMap": {"name": "s", "key": "house.jsonl"}}}]
Put = Callable[[str, str], None]


def version(name: str, dataset: str, phase: str) -> ModelVersion:
    spec = {"cycle": "assistant", "dataset": {"uri": "s3://m-1/d", "digest": f"sha256:{dataset}"}}
    return ModelVersion.model_validate({"metadata": {"name": name}, "spec": spec, "status": {"phase": phase}})


@pytest.fixture
def put(s3: S3Access, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Put:
    """Writes an object below the storage of the cycle `assistant`, which the commands find."""
    storage = {"uri": f"s3://{bucket}/assistant", "endpoint": s3.endpoint}
    spec = {"baseModel": {"uri": "s3://m-1/base"}, "storage": storage, "evaluation": {"suites": SUITES}}
    cycle = ImprovementCycle.model_validate({"metadata": {"name": "assistant"}, "spec": spec})
    versions = (version("assistant-6", ONE, "Superseded"), version("assistant-7", ONE, "Serving"))
    cluster = SimpleNamespace(view=lambda name: SimpleNamespace(cycle=cycle, versions=versions))
    monkeypatch.setattr(withdrawn, "connect", lambda args: nullcontext(cluster))

    def write(key: str, text: str) -> None:
        s3.client().put_object(Bucket=bucket, Key=f"assistant/{key}", Body=text.encode())

    return write


def asked(*words: str) -> argparse.Namespace:
    return parser().parse_args(["lineage", "assistant", *words])


def filled(put: Put) -> None:
    subjects = [{"id": "c1", "session": "s1", "principal": "p1"}, {"id": "c2", "session": "s2"}, {"id": "c3"}]
    put(f"datasets/{ONE}/subjects.jsonl", "".join(json.dumps(one) + "\n" for one in subjects))
    put(f"datasets/{ONE}/train.jsonl", "not read")
    put(f"datasets/{OTHER}/subjects.jsonl", json.dumps({"id": "c9", "session": "s9"}) + "\n")
    manifest = {"kind": "adapter", "inputs": {"dataset": f"sha256:{ONE}"}}
    put("versions/assistant-2/0/adapter/manifest.json", json.dumps(manifest))
    put("versions/assistant-2/0/report/manifest.json", json.dumps(manifest))


def test_who_is_on_the_list_is_found_in_datasets_versions_and_adapters(
    put: Put, capsys: pytest.CaptureFixture[str]
) -> None:
    filled(put)
    put("erasures.jsonl", '{"principal": "p1", "why": "asked"}\n{"session": "s2"}\n')
    assert withdrawn.show(asked("--erased")) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[:4] == [
        "1 of 2 datasets hold something of 1 people and 1 sessions",
        f"dataset sha256:{ONE}: 2 examples from 2 sessions",
        "  version assistant-6  Superseded",
        "  version assistant-7  Serving",
    ]
    assert "/assistant/versions/assistant-2/0/adapter\n" in said, "its version is gone, what it learnt is not"
    assert "/report" not in said
    assert said.splitlines()[-1].startswith("assistant-7 takes sessions now: `ratchet run` trains anew without them")


def test_for_programs(put: Put, capsys: pytest.CaptureFixture[str]) -> None:
    filled(put)
    assert withdrawn.show(asked("--session", "s9", "-o", "json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(one["dataset"], one["sessions"], one["versions"]) for one in found] == [(f"sha256:{OTHER}", ["s9"], [])]


def test_nobody_found_is_said(put: Put, capsys: pytest.CaptureFixture[str]) -> None:
    filled(put)
    assert withdrawn.show(asked("--principal", "p2")) == 0
    assert capsys.readouterr().out == "none of 2 datasets holds anything of 1 people and 0 sessions\n"


def test_no_list_and_a_broken_list_are_told_apart(put: Put) -> None:
    with pytest.raises(NotFound, match="nobody has withdrawn"):
        withdrawn.show(asked("--erased"))
    put("erasures.jsonl", "{}\n")
    with pytest.raises(UsageError, match=r"line 1 is no entry of an erasure list: write"):
        withdrawn.show(asked("--erased"))


@pytest.mark.parametrize(("wanted", "found"), [(Erased(), 0), (Erased(sessions=frozenset({""})), 0)])
def test_who_is_not_known_is_nobody(wanted: Erased, found: int) -> None:
    datasets: dict[str, Any] = {"sha256:" + ONE: [Subject(id="c3")]}
    assert len(withdrawn.affected(wanted, datasets, (), ())) == found
