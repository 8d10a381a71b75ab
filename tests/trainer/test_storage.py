"""Artifacts in and out of a real S3 server, and base models from wherever the spec says."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ratchet_api.artifacts import Manifest
from ratchet_api.data import AdapterRef, BaseModelRef
from ratchet_api.reasons import Reason
from ratchet_trainer.artifacts import build_manifest, parse_manifest
from ratchet_trainer.cli import main
from ratchet_trainer.errors import DataError, DigestMismatch, Missing, StageError, UserError
from ratchet_trainer.metrics import parse_address
from ratchet_trainer.models import fetch_adapter, fetch_base, resolve_base
from ratchet_trainer.storage import Location, Store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "artifact"
    (made / "below").mkdir(parents=True)
    (made / "a.txt").write_text("a")
    (made / "below" / "b ü.txt").write_text("b")
    (made / ".hidden").write_text("not part of it")
    return made


def test_there_and_back(store: Store, bucket: str, folder: Path, tmp_path: Path) -> None:
    uri = f"s3://{bucket}/x"
    beside = tmp_path / "logs"
    beside.mkdir()
    (beside / "loss.json").write_text("[]")
    made = store.publish(folder, uri, "dataset", {"base": "d"}, {"rows": 2}, beside=[beside])
    assert sorted(made.files) == ["a.txt", "below/b ü.txt"]
    assert store.get(Location.parse(uri).child("loss.json")) == b"[]"
    assert store.manifest(uri, "dataset") == made
    got = store.fetch(uri, "dataset", made.digest, tmp_path / "back")
    assert got == made
    assert (tmp_path / "back" / "below" / "b ü.txt").read_text() == "b"
    assert not (tmp_path / "back" / ".hidden").exists()
    with pytest.raises(DataError, match="kind dataset, not adapter"):
        store.fetch(uri, "adapter", None, tmp_path / "other")


def test_of_two_writers_one_wins(store: Store, bucket: str, tmp_path: Path) -> None:
    """Both give back the winner's manifest, whose files are what it says."""
    uri = f"s3://{bucket}/race"
    results: list[Manifest] = []

    def write(name: str) -> None:
        folder = tmp_path / name
        folder.mkdir()
        (folder / f"{name}.txt").write_text(name)
        results.append(store.publish(folder, uri, "dataset", {}, {}))

    threads = [threading.Thread(target=write, args=(f"w{index}",)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({manifest.digest for manifest in results}) == 1
    store.fetch(uri, "dataset", results[0].digest, tmp_path / "back")


def test_a_finished_artifact_is_not_written_over(store: Store, bucket: str, folder: Path, tmp_path: Path) -> None:
    uri = f"s3://{bucket}/x"
    first = store.publish(folder, uri, "dataset", {}, {})
    (folder / "a.txt").write_text("changed")
    assert store.publish(folder, uri, "dataset", {}, {}) == first
    store.fetch(uri, "dataset", first.digest, tmp_path / "back")


def test_a_half_written_artifact_does_not_exist(store: Store, bucket: str, folder: Path, tmp_path: Path) -> None:
    uri = f"s3://{bucket}/half"
    store.put(Location.parse(uri).child("a.txt"), b"a")
    with pytest.raises(Missing, match=r"no manifest\.json") as raised:
        store.fetch(uri, "dataset", None, tmp_path / "back")
    assert raised.value.reason == Reason.MISSING_DATASET
    made = store.publish(folder, uri, "dataset", {}, {})
    (folder / "a.txt").unlink()
    store._client.delete_object(Bucket=bucket, Key="half/a.txt")
    with pytest.raises(Missing, match=r"half/a\.txt is missing"):
        store.fetch(uri, "dataset", made.digest, tmp_path / "back")
    assert not (tmp_path / "back").exists()
    assert not list(tmp_path.glob(".fetching-*"))


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/../../b", "a\\b", "manifest.json", ""])
def test_a_manifest_cannot_reach_outside_its_folder(folder: Path, name: str) -> None:
    manifest = build_manifest("dataset", folder, {}, {}).model_dump(mode="json")
    manifest["files"] = {name: manifest["files"]["a.txt"]}
    with pytest.raises(DataError, match="outside its folder"):
        parse_manifest(json.dumps(manifest).encode(), "s3://x", "dataset")


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b"[]", b'{"kind": "dataset"}'])
def test_a_manifest_that_is_none(data: bytes) -> None:
    with pytest.raises(DataError, match="is no manifest"):
        parse_manifest(data, "s3://x", "dataset")


class _Unconditional(BaseHTTPRequestHandler):
    """A server that has PutObject, but not on conditions."""

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        refused = "If-None-Match" in self.headers
        body = b"<Error><Code>NotImplemented</Code><Message>no such header</Message></Error>" if refused else b""
        self.send_response(501 if refused else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


def test_a_server_without_conditional_writes_is_refused_by_name(bucket: str) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Unconditional) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            endpoint = f"http://127.0.0.1:{server.server_port}"
            store, place = Store(endpoint, "us-east-1"), Location(bucket, "manifest.json")
            assert store.put(place, b"{}")
            with pytest.raises(UserError, match=f"the server at {endpoint} refuses conditional writes"):
                store.put(place, b"{}", only_if_absent=True)
        finally:
            server.shutdown()
            thread.join()


def test_listing(store: Store, bucket: str) -> None:
    for key in ("sessions/dt=2026-11-02/b", "sessions/dt=2026-11-02/a", "sessions/dt=2026-11-10/c", "sessionsx/d"):
        store.put(Location(bucket, key), b"12")
    root = Location.parse(f"s3://{bucket}/sessions/")
    assert store.folders(root) == ["dt=2026-11-02", "dt=2026-11-10"]
    found = [(o.location.key, o.size) for o in store.objects(root)]
    assert found == [(f"sessions/dt=2026-11-{k}", 2) for k in ("02/a", "02/b", "10/c")]
    assert list(store.objects(root.child("nothing"))) == []
    assert not store.put(Location(bucket, "sessionsx/d"), b"other", only_if_absent=True)
    assert store.get(Location(bucket, "sessionsx/d")) == b"12"


def test_a_missing_bucket_is_said_whatever_is_asked(store: Store, tmp_path: Path, folder: Path) -> None:
    uri = "s3://no-such-bucket-at-all/x"
    place = Location.parse(uri)
    for action in (
        lambda: store.get(place), lambda: store.put(place, b""), lambda: list(store.objects(place)),
        lambda: store.folders(place), lambda: store.publish(folder, uri, "dataset", {}, {}),
        lambda: store._upload(folder / "a.txt", place),
    ):  # fmt: skip
        with pytest.raises(Missing, match="no-such-bucket-at-all") as raised:
            action()
        assert raised.value.reason == Reason.MISSING_BUCKET


def test_locations() -> None:
    assert Location.parse("s3://b/c/d/").uri == "s3://b/c/d"
    assert Location.parse("s3://b").child("x").key == "x"
    with pytest.raises(UserError, match="s3://bucket/prefix"):
        Location.parse("http://b/c")


def test_endpoints_that_are_none() -> None:
    with pytest.raises(UserError, match=r"storage\.endpoint"):
        Store("no address", "us-east-1")


@pytest.mark.parametrize("text", ["9090", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:99999", ""])
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="IP:PORT"):
        parse_address(text)


def test_addresses() -> None:
    assert parse_address("127.0.5.3:9090") == ("127.0.5.3", 9090)
    assert parse_address("[::1]:9090") == ("::1", 9090)


# -- base models and adapters


def ref(uri: str, digest: str | None = None) -> BaseModelRef:
    return BaseModelRef(uri=uri, digest=digest)


def test_a_base_model_from_every_place_is_the_same(
    store: Store, bucket: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """s3, a mounted claim, a folder of the image and the hub: the same files, the same digest, a copy when fetched."""
    import huggingface_hub

    asked: list[tuple[str, str]] = []

    def snapshot_download(repository: str, *, revision: str, local_dir: Path, allow_patterns: list[str]) -> str:
        asked.append((repository, revision))
        assert "*.safetensors" in allow_patterns
        assert not any(".bin" in pattern for pattern in allow_patterns)
        (local_dir / ".cache").mkdir(parents=True)
        for path in tiny.iterdir():
            (local_dir / path.name).write_bytes(path.read_bytes())
        return str(local_dir)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    uri = f"s3://{bucket}/tiny"
    digest = store.publish(tiny, uri, "model", {}, {}).digest
    (tmp_path / "claim").symlink_to(tiny.parent)
    uris = [uri, f"file://{tiny}", f"pvc://models/{tiny.name}", "hf://org/tiny@abc123"]
    for index, place in enumerate(uris):
        target = tmp_path / "fetched" / str(index)
        assert fetch_base(ref(place, digest), store, target, tmp_path / "claim") == digest
        assert (target / "model.safetensors").read_bytes() == (tiny / "model.safetensors").read_bytes()
        found = resolve_base(ref(place), store, tmp_path / "read" / str(index), tmp_path / "claim")
        assert found.digest == digest
        with pytest.raises(DigestMismatch):
            fetch_base(ref(place, "sha256:" + "1" * 64), store, tmp_path / "bad", tmp_path / "claim")
        assert not (tmp_path / "bad").exists()
    assert set(asked) == {("org/tiny", "abc123")}


def test_the_hub_s_errors_are_said(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx2
    import huggingface_hub
    from huggingface_hub import errors

    response = httpx2.Response(404, request=httpx2.Request("GET", "http://hub"))
    cases: list[tuple[Exception, Reason, str]] = [
        (errors.RepositoryNotFoundError("x", response=response), Reason.MISSING_BASE_MODEL, "correct the name"),
        (errors.RevisionNotFoundError("x", response=response), Reason.MISSING_BASE_MODEL, "revision"),
        (errors.GatedRepoError("x", response=response), Reason.MISSING_BASE_MODEL, "HF_TOKEN"),
        (errors.OfflineModeIsEnabled("x"), Reason.MISSING_BASE_MODEL, "HF_HUB_OFFLINE"),
        (errors.LocalEntryNotFoundError("x"), Reason.INFRASTRUCTURE_ERROR, "check the way to the hub"),
        (errors.HfHubHTTPError("x", response=response), Reason.INFRASTRUCTURE_ERROR, "check the way to the hub"),
        (httpx2.ConnectError("x"), Reason.INFRASTRUCTURE_ERROR, "check the way to the hub"),
        (ConnectionError("x"), Reason.INFRASTRUCTURE_ERROR, "check the way to the hub"),
    ]
    for error, reason, words in cases:

        def fail(*_: Any, error: Exception = error, **__: Any) -> str:
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
        with pytest.raises(StageError, match=words) as raised:
            resolve_base(ref("hf://org/tiny@abc"), store, tmp_path / "hub", None)
        assert raised.value.reason == reason


def test_models_that_are_refused(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    uri = f"file://{folder}"
    with pytest.raises(Missing, match="no folder"):
        resolve_base(ref(uri), store, tmp_path / "x", None)
    folder.mkdir()
    with pytest.raises(Missing, match=r"config\.json"):
        resolve_base(ref(uri), store, tmp_path / "x", None)
    (folder / "config.json").write_text("{}")
    with pytest.raises(Missing, match="safetensors"):
        resolve_base(ref(uri), store, tmp_path / "x", None)
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(UserError, match=r"run code.*save_pretrained"):
        resolve_base(ref(uri), store, tmp_path / "x", None)
    with pytest.raises(UserError, match="--pvc-root"):
        resolve_base(ref("pvc://claim/x"), store, tmp_path / "x", None)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"adapter_config.json": '{"peft_type": "LORA"}', "adapter_model.bin": "x"}, "no pickled weights"),
        ({"adapter_config.json": '{"peft_type": "LORA"}', "adapter_model.safetensors": "x", "x.pt": "x"}, "no pickled"),
        ({"adapter_config.json": '{"peft_type": "IA3"}', "adapter_model.safetensors": "x"}, "only LORA"),
        ({"adapter_config.json": "[]", "adapter_model.safetensors": "x"}, "no peft configuration"),
        ({"adapter_model.safetensors": "x"}, "no peft configuration"),
    ],
)
def test_adapters_that_are_refused(
    store: Store, bucket: str, tmp_path: Path, files: dict[str, str], words: str
) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(content)
    uri = f"s3://{bucket}/a"
    digest = store.publish(folder, uri, "adapter", {}, {}).digest
    with pytest.raises(DataError, match=words):
        fetch_adapter(AdapterRef(uri=uri, digest=digest), store, tmp_path / "there")
    assert not (tmp_path / "there").exists()


def test_publish_on_the_command_line(
    bucket: str, store: Store, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"s3://{bucket}/models/tiny"
    assert main(["publish", "--kind", "model", "--input", str(tiny), "--output", uri]) == 0
    digest = capsys.readouterr().out.strip()
    assert store.fetch(uri, "model", digest, tmp_path / "back").digest == digest
    assert main(["publish", "--kind", "model", "--input", str(tiny / "no"), "--output", uri]) == 64


def test_an_adapter_of_another_base_is_said(tiny: Path, tmp_path: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from ratchet_api.training import Hyperparameters
    from ratchet_trainer.loading import load_adapters, load_model, merged
    from ratchet_trainer.train.loop import add_lora
    from ratchet_trainer.train.stage import _save

    for name, changes in {"wider": {"hidden_size": 48}, "deeper": {"num_hidden_layers": 3}}.items():
        fields = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "vocab_size": 400}
        config = LlamaConfig(num_attention_heads=4, num_key_value_heads=2, **(fields | changes))
        _save(add_lora(LlamaForCausalLM(config), Hyperparameters()), tmp_path / name, "other")
        for load in (lambda base, folder: load_adapters(base, {"candidate": folder}), merged):
            base = load_model(tiny, "tiny", torch.device("cpu"), torch.float32)
            with pytest.raises(DataError, match=r"adapter does not fit.*trained on another"):
                load(base, tmp_path / name)
