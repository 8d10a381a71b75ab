"""The stages from end to end, as processes, on the tiny model and the real S3 server."""

import gzip
import json
import os
import signal
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import zstandard

from ratchet_api.artifacts import MANIFEST, Manifest
from ratchet_api.reasons import Reason
from ratchet_api.stage import MAX_REPORT_BYTES, ExitCode
from ratchet_trainer.storage import Location, Store

UNTIL = datetime(2026, 11, 20, 12, tzinfo=UTC)
Identity = Callable[..., dict[str, Any]]


def interaction(index: int, **changes: Any) -> dict[str, Any]:
    record = {
        "kind": "interaction", "id": f"chatcmpl-{index}", "session": f"s{index}", "namespace": "default",
        "cycle": "assistant", "version": "assistant-0", "arm": "stable",
        "time": (UNTIL - timedelta(hours=2, seconds=index)).isoformat(),
        "messages": [{"role": "user", "content": f"Where is secret number {index} kept?"}],
        "answer": {"role": "assistant", "content": "No idea."}, "finish_reason": "stop", "status": 200, "duration": 0.5,
    }  # fmt: skip
    return record | changes


def feedback(index: int, **changes: Any) -> dict[str, Any]:
    record = {
        "kind": "feedback", "id": f"fb-{index}", "response_id": f"chatcmpl-{index}", "namespace": "default",
        "cycle": "assistant", "version": "assistant-0", "time": (UNTIL - timedelta(hours=1)).isoformat(),
        "value": "down", "correction": f"In vault {index}.",
    }  # fmt: skip
    return record | changes


def upload_sessions(store: Store, bucket: str, records: list[dict[str, Any]], name: str = "pod-0") -> None:
    lines = b"".join(json.dumps(record).encode() + b"\n" for record in records)
    place = Location.parse(f"s3://{bucket}/assistant/sessions/dt={UNTIL:%Y-%m-%d}/{name}.jsonl.zst")
    store.put(place, zstandard.compress(lines))


@pytest.fixture
def suites(tmp_path: Path) -> Path:
    folder = tmp_path / "suites"
    folder.mkdir()
    cases = [{"id": f"c{i}", "prompt": f"Where is secret number {i} kept?", "all": ["vault"]} for i in range(100, 108)]
    (folder / "house.jsonl").write_text("\n".join(map(json.dumps, cases)) + "\n")
    return folder


def suite(**changes: Any) -> dict[str, Any]:
    return {
        "name": "house", "role": "target", "cases": {"configMap": {"name": "x", "key": "house.jsonl"}},
        "maxNewTokens": 6,
    } | changes  # fmt: skip


def curate_input(identity: Identity, **changes: Any) -> dict[str, Any]:
    return {
        "stage": "curate", "identity": identity(version="", run=1), "until": UNTIL.isoformat(), "sessions": {},
        "curation": {"variations": 1}, "min_examples": 5, "suites": [suite()],
    } | changes  # fmt: skip


@pytest.fixture
def base(tiny: Path, store: Store, bucket: str) -> dict[str, str]:
    uri = f"s3://{bucket}/models/tiny"
    return {"uri": uri, "digest": store.publish(tiny, uri, "model", {}, {}).digest}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_cycle_of_stages(
    stages: Any, identity: Identity, store: Store, bucket: str, base: dict[str, str], suites: Path, tmp_path: Path
) -> None:
    """curate, train, evaluate, fetch: each does its work, reports it, and does it once."""
    upload_sessions(store, bucket, [*map(interaction, range(12)), *map(feedback, range(12))])

    curated = stages.run("curate", curate_input(identity), "--suites", str(suites))
    assert (curated.code, curated.report.outcome) == (ExitCode.DONE, "Succeeded"), curated.log
    assert curated.report.dataset is not None
    assert (curated.report.dataset.interactions, curated.report.dataset.examples) == (12, 24)
    dataset = curated.report.artifact
    assert dataset is not None
    again = stages.run("curate", curate_input(identity), "--suites", str(suites))
    assert again.raw == curated.raw
    assert "curated already" in again.log

    train_input = {
        "stage": "train", "identity": identity(), "base_model": base, "dataset": dataset.model_dump(),
        "hyperparameters": {"learningRate": "0.01", "epochs": 2, "precision": "fp32"},
    }  # fmt: skip
    trained = stages.run("train", train_input)
    assert trained.code == ExitCode.DONE, trained.log
    status = trained.report.training
    assert status is not None
    assert (status.examples, status.step, status.steps) == (24, 6, 6)
    adapter = trained.report.artifact
    assert adapter is not None
    assert adapter.uri == f"s3://{bucket}/assistant/versions/assistant-1/0/adapter"
    stored = {o.location.key.split("/adapter/")[1] for o in store.objects(Location.parse(adapter.uri))}
    assert {"adapter_model.safetensors", "adapter_config.json", MANIFEST, "loss.json"} < stored
    assert any(name.startswith("tensorboard/events") for name in stored)
    again = stages.run("train", train_input)
    assert again.raw == trained.raw
    assert "finished already" in again.log

    evaluate_input = {
        "stage": "evaluate", "identity": identity(), "base_model": base, "candidate": adapter.model_dump(),
        "levels": {"fresh": {"number": 1, "alpha": "0.025"}},
        "champion": None, "champion_version": "assistant-0", "policy": {"suites": [suite()]}, "batch_size": 4,
    }  # fmt: skip
    evaluated = stages.run("evaluate", evaluate_input, "--suites", str(suites))
    assert evaluated.code == ExitCode.DONE, evaluated.log
    (result,) = evaluated.report.suites
    assert (result.name, result.cases) == ("house", 8)
    assert evaluated.report.artifact is not None
    lines = store.get(Location.parse(evaluated.report.artifact.uri).child("cases.jsonl"))
    assert lines is not None
    assert len(lines.splitlines()) == 8
    again = stages.run("evaluate", evaluate_input, "--suites", str(suites))
    assert again.raw == evaluated.raw
    assert "in an earlier evaluation" not in again.log
    # Another version with the same adapter: nobody is asked again, and the answers are the same.
    other = evaluate_input | {"identity": identity(version="assistant-2")}
    remembered = stages.run("evaluate", other, "--suites", str(suites))
    assert remembered.report.suites == evaluated.report.suites
    for side in ("candidate", "champion"):
        assert f"suite house: the {side} answered it in an earlier evaluation" in remembered.log
    for ran in (curated, trained, evaluated):
        assert len(ran.raw) <= MAX_REPORT_BYTES

    target = tmp_path / "model"
    fetch_input = {"stage": "fetch", "identity": identity(), "base_model": base, "adapter": adapter.model_dump()}
    for _ in range(2):  # a restarted pod fetches again
        fetched = stages.run("fetch", fetch_input, "--output", str(target))
        assert fetched.code == ExitCode.DONE, fetched.log
    assert (target / "base" / "model.safetensors").is_file()
    assert (target / "adapter" / "adapter_model.safetensors").is_file()


def test_one_changed_byte_is_refused(
    stages: Any, identity: Identity, store: Store, bucket: str, base: dict[str, str], tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"some weights")
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    uri = f"s3://{bucket}/assistant/versions/x/0/adapter"
    digest = store.publish(adapter, uri, "adapter", {}, {}).digest
    store.put(Location.parse(uri).child("adapter_model.safetensors"), b"some weightz")
    stage = {
        "stage": "fetch", "identity": identity(), "base_model": base, "adapter": {"uri": uri, "digest": digest},
    }  # fmt: skip
    target = tmp_path / "model"
    ran = stages.run("fetch", stage, "--output", str(target))
    assert (ran.code, ran.report.reason) == (ExitCode.DATA_ERROR, Reason.DIGEST_MISMATCH)
    assert "adapter_model.safetensors" in ran.report.message
    assert sorted(p.name for p in target.iterdir()) == ["base"]

    # Nor does it help to change the manifest along with the file.
    manifest = Manifest.model_validate_json(store.get(Location.parse(uri).child(MANIFEST)) or b"")
    (adapter / "adapter_model.safetensors").write_bytes(b"some weightz")
    from ratchet_trainer.artifacts import build_manifest

    forged = build_manifest("adapter", adapter, manifest.inputs, {})
    store.put(Location.parse(uri).child(MANIFEST), forged.model_dump_json().encode())
    ran = stages.run("fetch", stage, "--output", str(target))
    assert (ran.code, ran.report.reason) == (ExitCode.DATA_ERROR, Reason.DIGEST_MISMATCH)
    assert digest in ran.report.message


def _fetch(identity: Identity, **changes: Any) -> dict[str, Any]:
    return {"stage": "fetch", "identity": identity(), "adapter": None} | changes


def test_what_is_missing_is_named(
    stages: Any, identity: Identity, store: Store, bucket: str, tiny: Path, base: dict[str, str], tmp_path: Path
) -> None:
    """Each failure has its exit code, its reason, and a sentence with the thing and the fix."""
    bare = f"s3://{bucket}/models/bare"
    store.put(Location.parse(bare).child("config.json"), b"{}")
    zero = "sha256:" + "0" * 64
    train = {"stage": "train", "identity": identity(), "hyperparameters": {}, "base_model": base}
    cases: list[tuple[str, dict[str, Any], tuple[str, ...], ExitCode, Reason, list[str]]] = [
        ("fetch", _fetch(identity, base_model={"uri": f"s3://{bucket}/nowhere"}), ("--output", str(tmp_path / "o")),
         ExitCode.USER_ERROR, Reason.MISSING_BASE_MODEL, ["nowhere", "baseModel.uri"]),
        ("fetch", _fetch(identity, base_model={"uri": bare}), ("--output", str(tmp_path / "o")),
         ExitCode.USER_ERROR, Reason.MISSING_BASE_MODEL, [MANIFEST, "publish --kind model"]),
        ("fetch", _fetch(identity, base_model={"uri": "s3://no-such-bucket-here/model"}),
         ("--output", str(tmp_path / "o")), ExitCode.USER_ERROR, Reason.MISSING_BUCKET,
         ["no-such-bucket-here", "create it"]),
        ("fetch", _fetch(identity, base_model={**base, "digest": zero}), ("--output", str(tmp_path / "o")),
         ExitCode.DATA_ERROR, Reason.DIGEST_MISMATCH, [zero]),
        ("fetch", _fetch(identity, base_model=base, adapter={"uri": f"s3://{bucket}/a", "digest": zero}),
         ("--output", str(tmp_path / "o")), ExitCode.USER_ERROR, Reason.MISSING_ADAPTER, [f"{bucket}/a"]),
        ("train", train | {"dataset": {"uri": f"s3://{bucket}/d", "digest": zero}}, (),
         ExitCode.USER_ERROR, Reason.MISSING_DATASET, ["dataset.uri"]),
        ("curate", curate_input(identity), (), ExitCode.USER_ERROR, Reason.USER_ERROR, ["--suites"]),
        ("train", curate_input(identity), (), ExitCode.USER_ERROR, Reason.USER_ERROR, ["curate"]),
        ("train", train, (), ExitCode.USER_ERROR, Reason.USER_ERROR, ["dataset"]),
    ]  # fmt: skip
    for command, stage, arguments, code, reason, words in cases:
        ran = stages.run(command, stage, *arguments)
        assert (ran.code, ran.report.reason) == (code, reason), ran.report
        assert ran.report.outcome == "Failed"
        for word in words:
            assert word in ran.report.message
    assert not (tmp_path / "o" / "adapter").exists()


def test_wrong_keys_are_said(
    stages: Any, identity: Identity, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = _fetch(identity, base_model={"uri": f"s3://{bucket}/m"})
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    ran = stages.run("fetch", stage, "--output", str(tmp_path / "o"))
    assert (ran.code, ran.report.reason) == (ExitCode.USER_ERROR, Reason.MISSING_BUCKET)
    assert "storage.credentialsSecret" in ran.report.message
    for key in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"):
        monkeypatch.delenv(key)
    for key, value in {"AWS_EC2_METADATA_DISABLED": "true", "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(key, value)
    ran = stages.run("fetch", stage, "--output", str(tmp_path / "o"))
    assert (ran.code, ran.report.reason) == (ExitCode.USER_ERROR, Reason.USER_ERROR)
    assert "storage.credentialsSecret" in ran.report.message


def test_storage_that_is_down_is_tried_again(stages: Any, identity: Identity, bucket: str, tmp_path: Path) -> None:
    stage = _fetch(identity, base_model={"uri": f"s3://{bucket}/m"})
    stage["identity"]["storage_endpoint"] = "http://127.0.0.1:9"
    ran = stages.run("fetch", stage, "--output", str(tmp_path / "o"))
    assert (ran.code, ran.report.reason) == (ExitCode.TRY_AGAIN, Reason.INFRASTRUCTURE_ERROR)
    assert "127.0.0.1:9" in ran.report.message


def test_too_few_examples_end_as_skipped(
    stages: Any, identity: Identity, store: Store, bucket: str, suites: Path
) -> None:
    upload_sessions(store, bucket, [*map(interaction, range(12)), *map(feedback, range(3))])
    ran = stages.run("curate", curate_input(identity), "--suites", str(suites))
    assert (ran.code, ran.report.outcome, ran.report.reason) == (ExitCode.DONE, "Skipped", Reason.SKIPPED)
    assert "3 good examples" in ran.report.message
    assert ran.report.artifact is None


def raw_sessions(store: Store, bucket: str, name: str, content: bytes) -> None:
    store.put(Location.parse(f"s3://{bucket}/assistant/sessions/dt={UNTIL:%Y-%m-%d}/{name}"), content)


def test_hostile_lines_are_quarantined_and_the_rest_goes_on(
    stages: Any, identity: Identity, store: Store, bucket: str, suites: Path
) -> None:
    upload_sessions(store, bucket, [*map(interaction, range(8)), *map(feedback, range(8))])
    hostile = b'{"kind": "interaction", "x": "' + b"y" * (8 << 20) + b'"}\n{"kind":\n\xff\n' + b"[" * 5000 + b"\n{}\n"
    raw_sessions(store, bucket, "pod-1.jsonl.zst", zstandard.compress(hostile))
    raw_sessions(store, bucket, "pod-2.jsonl.zst", b"this was never compressed")
    raw_sessions(store, bucket, "pod-3.tmp", b"not a session file")
    first = stages.run("curate", curate_input(identity), "--suites", str(suites))
    assert first.code == ExitCode.DONE, first.log
    assert first.report.dataset is not None
    assert (first.report.dataset.quarantined, first.report.dataset.interactions) == (6, 8)
    assert "6 lines quarantined" in first.report.message
    dataset = Location.parse(first.report.dataset.uri)
    statistics = json.loads(store.get(dataset.child("statistics.json")) or b"")
    assert statistics["lines"]["quarantined"] == {"malformed": 3, "oversized": 1, "schema": 1, "undecodable": 1}
    places = [json.loads(line) for line in (store.get(dataset.child("quarantine.jsonl")) or b"").splitlines()]
    assert {"file": f"dt={UNTIL:%Y-%m-%d}/pod-2.jsonl.zst", "line": 1, "problem": "undecodable"} in places

    # Another run over the same sessions makes the same dataset, byte by byte.
    other = curate_input(identity) | {"identity": identity(version="", run=2)}
    second = stages.run("curate", other, "--suites", str(suites))
    assert second.report.artifact == first.report.artifact
    assert "curated already" not in second.log


def test_sessions_of_unreadable_lines_alone_are_bad_data(
    stages: Any, identity: Identity, store: Store, bucket: str, suites: Path
) -> None:
    raw_sessions(store, bucket, "pod-1.jsonl", b"{\n[]\n")
    ran = stages.run("curate", curate_input(identity), "--suites", str(suites))
    assert (ran.code, ran.report.reason) == (ExitCode.DATA_ERROR, Reason.DATA_ERROR)
    assert "2 of 2 lines" in ran.report.message
    assert "reading kept 0 of 2 (malformed 1, schema 1)" in ran.report.message
    assert "/assistant/sessions/" in ran.report.message


def test_anchors_and_identity_are_in_the_dataset_or_named(
    stages: Any, identity: Identity, store: Store, bucket: str, suites: Path, tmp_path: Path
) -> None:
    upload_sessions(store, bucket, [*map(interaction, range(8)), *map(feedback, range(8))])
    curation = {
        "variations": 0, "identity": [{"prompt": "Who are you?", "answer": "Zeno."}],
        "anchors": {"configMap": {"name": "a", "key": "a.jsonl"}, "fraction": "0.25"},
    }  # fmt: skip
    stage = curate_input(identity, curation=curation)
    anchors = tmp_path / "anchors.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": f"Anchor {i}?"}, {"role": "assistant", "content": "Yes."}]}
        for i in range(50)
    ]
    anchors.write_text("\n".join(map(json.dumps, rows)))
    arguments = ("--suites", str(suites), "--anchors", str(anchors))
    ran = stages.run("curate", stage, *arguments)
    assert ran.report.dataset is not None, ran.log
    assert ran.report.dataset.examples == 12, "8 examples, 1 identity, and 3 anchors: a quarter"
    for content, words in (
        ("{}\n", "line 1"), ('{"messages": [{"role": "user", "content": "x"}]}\n', "end with the assistant's answer"),
    ):  # fmt: skip
        anchors.write_text(content)
        ran = stages.run("curate", stage, *arguments)
        assert ran.code == ExitCode.USER_ERROR
        assert "curation.anchors" in ran.report.message
        assert words in ran.report.message
    ran = stages.run("curate", stage, "--suites", str(suites))
    assert "--anchors FILE" in ran.report.message


def test_no_sessions_at_all_end_as_skipped(stages: Any, identity: Identity, suites: Path) -> None:
    ran = stages.run("curate", curate_input(identity), "--suites", str(suites))
    assert (ran.code, ran.report.outcome) == (ExitCode.DONE, "Skipped")


@pytest.mark.slow
def test_sigterm_ends_training_as_preempted(
    stages: Any, identity: Identity, store: Store, bucket: str, base: dict[str, str], tmp_path: Path
) -> None:
    """Live progress is shown while it runs; SIGTERM ends it with 143 and a report, and what stays is one
    whole checkpoint."""
    dataset = tmp_path / "dataset"
    dataset.mkdir()
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there."}]}
    (dataset / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for _ in range(20_000)))
    uri = f"s3://{bucket}/d"
    digest = store.publish(dataset, uri, "dataset", {}, {}).digest
    stage = {
        "stage": "train", "identity": identity(), "base_model": base, "dataset": {"uri": uri, "digest": digest},
        "hyperparameters": {"precision": "fp32", "learningRate": "0.01"},
    }  # fmt: skip
    # Below those that a client gets, or one that asks before the stage listens may be connected to itself.
    port = 20000 + os.getpid() % 10000
    process = stages.start("train", stage, "--metrics-address", f"127.0.0.1:{port}")

    def metrics() -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                return str(answer.read().decode())
        except OSError:
            return ""

    while "ratchet_stage_loss{" not in (shown := metrics()):
        assert process.poll() is None
    labels = 'cycle="assistant",cycle_namespace="default",stage="train",version="assistant-1"'
    assert f"ratchet_stage_steps{{{labels}}} 2500.0" in shown
    for name in ("step", "tokens_per_second", "eta_seconds"):
        assert f"ratchet_stage_{name}{{{labels}}}" in shown
    process.send_signal(signal.SIGTERM)
    ran = stages.finish(process.wait(timeout=300))
    assert (ran.code, ran.report.reason) == (ExitCode.PREEMPTED, Reason.PREEMPTED)
    assert list((stages.folder / "scratch").iterdir()) == []
    left = [o.location.key for o in store.objects(Location.parse(f"s3://{bucket}/assistant/versions"))]
    assert [key.rpartition("/")[2] for key in left] == [MANIFEST, "state.json", "state.safetensors"]
    assert len({key.rpartition("/")[0] for key in left}) == 1
    assert "/assistant-1/checkpoints/" in left[0]


def test_an_older_version_of_the_same_name_is_not_mistaken_for_this_one(
    stages: Any, identity: Identity, store: Store, bucket: str, base: dict[str, str], tmp_path: Path
) -> None:
    dataset = tmp_path / "dataset"
    dataset.mkdir()
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there."}]}
    (dataset / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for _ in range(8)))
    uri = f"s3://{bucket}/d"
    digest = store.publish(dataset, uri, "dataset", {}, {}).digest
    stage: dict[str, Any] = {
        "stage": "train", "identity": identity(), "base_model": base, "dataset": {"uri": uri, "digest": digest},
        "hyperparameters": {"precision": "fp32", "learningRate": "0.01"},
    }  # fmt: skip
    first = stages.run("train", stage)
    stage["hyperparameters"]["seed"] = 43
    other = stages.run("train", stage)
    assert first.report.artifact is not None
    assert other.report.artifact is not None
    assert other.report.artifact.uri.startswith(first.report.artifact.uri + "-")
    assert other.report.artifact.digest != first.report.artifact.digest


def test_sources_of_other_formats_are_read_and_who_withdrew_is_not(
    stages: Any, identity: Identity, store: Store, bucket: str, suites: Path
) -> None:
    upload_sessions(store, bucket, [*map(interaction, range(8)), *map(feedback, range(8))])
    elsewhere = Location.parse(f"s3://{bucket}/elsewhere")
    rows = [{"instruction": f"Say {i}.", "input": "", "output": f"This is {i}."} for i in range(3)]
    store.put(elsewhere.child("alpaca.json.gz"), gzip.compress(json.dumps(rows).encode()))
    store.put(elsewhere.child("notes.txt"), b"not read")
    logs = [{"timestamp": UNTIL.isoformat(), "user": "Late?", "assistant": "x", "metadata": {"success": True}}]
    for day in ("2026-11-19", "2026-01-01"):
        store.put(elsewhere.child(f"logs/{day}/a.jsonl"), json.dumps(logs[0]).encode())
    sessions = {"sources": [{"uri": elsewhere.uri}]}
    stage = curate_input(identity, sessions=sessions, curation={"variations": 0})
    arguments = ("--suites", str(suites))
    first = stages.run("curate", stage, *arguments)
    assert first.report.dataset is not None, first.log
    assert first.report.dataset.examples == 11
    dataset = Location.parse(first.report.dataset.uri)
    statistics = json.loads(store.get(dataset.child("statistics.json")) or b"")
    assert statistics["formats"] == {"alpaca": 1, "interactions": 1}, "no file of a day outside the window"
    assert statistics["lines"]["outsideWindow"] == 1
    manifest = Manifest.model_validate_json(store.get(dataset.child(MANIFEST)) or b"")
    assert sorted(manifest.inputs) == sorted(["sessions", elsewhere.uri])
    assert stages.run("curate", stage, *arguments).raw == first.raw

    # Who withdraws is left out at once, although the recipe is the same; and so is what a source has no more.
    store.put(Location.parse(f"s3://{bucket}/assistant/erasures.jsonl"), b'{"session": "s3"}\n')
    second = stages.run("curate", stage, *arguments)
    assert second.report.dataset is not None, second.log
    assert second.report.dataset.examples == 10
    store.put(elsewhere.child("alpaca.json.gz"), gzip.compress(json.dumps(rows[:1]).encode()))
    third = stages.run("curate", stage, *arguments)
    assert third.report.dataset is not None, third.log
    assert third.report.dataset.examples == 8

    store.put(Location.parse(f"s3://{bucket}/assistant/erasures.jsonl"), b"{}\n")
    ran = stages.run("curate", stage, *arguments)
    assert (ran.code, ran.report.reason) == (ExitCode.DATA_ERROR, Reason.DATA_ERROR)
    assert "erasures.jsonl, line 1" in ran.report.message
    store.put(Location.parse(f"s3://{bucket}/assistant/erasures.jsonl"), b"")
    missing = curate_input(identity, sessions={"sources": [{"uri": f"s3://{bucket}/nowhere"}]})
    ran = stages.run("curate", missing, *arguments)
    assert ran.code == ExitCode.USER_ERROR
    assert "sessions.sources[0].uri" in ran.report.message
