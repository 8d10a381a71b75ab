"""Versions made by hand: what is written for them, and that an adapter is trained once only."""

import secrets
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.cli.builders import DIGEST, cycle, version, view

from ratchet_api.data import AdapterRef, DatasetRef
from ratchet_api.version import ModelVersionSpec
from ratchet_cli.demo import handmade
from ratchet_cli.demo.settings import Settings
from ratchet_cli.demo.storage import ArtifactStore, manifest_of
from ratchet_cli.demo.tale import Tale
from ratchet_cli.people import bad_material
from ratchet_local import S3Access

ADAPTER = {"adapter_model.safetensors": b"weights", "adapter_config.json": b"{}"}


@pytest.fixture
def elsewhere(s3: S3Access, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Where people keep what they made; the cache is one's own as well."""
    bucket = f"test-{secrets.token_hex(4)}"
    s3.create_bucket(bucket)
    monkeypatch.setattr(handmade, "ELSEWHERE", f"s3://{bucket}/elsewhere")
    monkeypatch.setenv("RATCHET_CACHE", str(tmp_path / "cache"))
    return f"s3://{bucket}/elsewhere"


@pytest.fixture
def tale(s3: S3Access, tmp_path: Path) -> Tale:
    """As much of a story as these functions use."""
    lines: list[str] = []
    champion = version("assistant-1", run=1, phase="Serving")
    made = SimpleNamespace(
        settings=Settings(state=tmp_path, checkout=tmp_path),
        screen=SimpleNamespace(say=lines.append, command=lines.append, block=lines.append),
        store=ArtifactStore(s3.client()),
        cluster=SimpleNamespace(read=lambda: view(champion)),
        version=lambda number: f"assistant-{number}",
        base_model_digest=DIGEST,
        lines=lines,
    )
    return cast(Tale, made)


@pytest.fixture
def trained(tale: Tale, elsewhere: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what was really trained; the training itself takes no time."""
    names: list[str] = []

    def train(tale: Tale, name: str, dataset: DatasetRef, settings: Any) -> AdapterRef:
        names.append(name)
        manifest = manifest_of(ADAPTER, "adapter", inputs={"dataset": dataset.digest})
        uri = f"{elsewhere}/versions/{name}/0/adapter"
        tale.store.put_files(uri, ADAPTER, manifest)
        return AdapterRef(uri=uri, digest=manifest.digest)

    monkeypatch.setattr(handmade, "_train_elsewhere", train)
    return names


def forget(s3: S3Access, uri: str) -> None:
    """What a fresh platform's S3 server knows: nothing."""
    bucket = uri.removeprefix("s3://").partition("/")[0]
    client = s3.client()
    for entry in client.list_objects_v2(Bucket=bucket).get("Contents", []):
        client.delete_object(Bucket=bucket, Key=entry["Key"])


def test_an_adapter_is_trained_once_and_then_taken_from_the_cache(
    tale: Tale, trained: list[str], s3: S3Access, elsewhere: str
) -> None:
    first = handmade.forgetful_adapter(tale)
    forget(s3, elsewhere)
    second = handmade.forgetful_adapter(tale)
    assert trained == ["forgetful"]
    assert second == first
    assert tale.store.read_files(second.uri) == ADAPTER
    assert "trained by an earlier demonstration" in cast(Any, tale).lines[-1]


def _another_base(tale: Tale, monkeypatch: pytest.MonkeyPatch) -> None:
    tale.base_model_digest = "sha256:" + "cd" * 32


def _other_rows(tale: Tale, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bad_material, "FORGETFUL_ROWS", 8)


def _other_settings(tale: Tale, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = bad_material.FORGETFUL_HYPERPARAMETERS.model_copy(update={"seed": 1})
    monkeypatch.setattr(bad_material, "FORGETFUL_HYPERPARAMETERS", settings)


@pytest.mark.parametrize("change", [_another_base, _other_rows, _other_settings], ids=lambda c: c.__name__)
def test_another_recipe_is_trained_anew(
    tale: Tale,
    trained: list[str],
    s3: S3Access,
    elsewhere: str,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Tale, pytest.MonkeyPatch], None],
) -> None:
    handmade.forgetful_adapter(tale)
    forget(s3, elsewhere)
    change(tale, monkeypatch)
    handmade.forgetful_adapter(tale)
    assert trained == ["forgetful", "forgetful"]


def test_a_repackaged_champion_has_its_files_and_another_digest(tale: Tale, elsewhere: str) -> None:
    manifest = manifest_of(ADAPTER, "adapter")
    tale.store.put_files(f"{elsewhere}/champion", ADAPTER, manifest)
    champion = version("assistant-1", run=1)
    spec = champion.spec.model_copy(update={"adapter": AdapterRef(uri=f"{elsewhere}/champion", digest=manifest.digest)})
    cast(Any, tale).cluster.read = lambda: view(champion.model_copy(update={"spec": spec}))
    adapter = handmade.repackaged_champion(tale, "assistant-1")
    assert adapter.digest != manifest.digest
    assert ADAPTER.items() <= tale.store.read_files(adapter.uri).items()


def test_a_careless_evaluation_has_target_suites_alone_and_compares_with_the_base(tale: Tale) -> None:
    manifest = handmade.finished_version(tale, "assistant-x", AdapterRef(uri="s3://ratchet/x", digest=DIGEST))
    spec = ModelVersionSpec.model_validate(manifest["spec"])
    assert spec.champion == "assistant-0"
    assert spec.evaluation is not None
    assert {suite.role for suite in spec.evaluation.suites} == {"target"}
    assert spec.evaluation.min_improvement == cycle().spec.evaluation.min_improvement


def test_a_recipe_is_judged_as_the_cycle_says(tale: Tale, elsewhere: str) -> None:
    dataset = handmade.disliked_dataset(tale)
    spec = ModelVersionSpec.model_validate(handmade.recipe_version(tale, "assistant-y", dataset)["spec"])
    assert (spec.dataset, spec.evaluation, spec.champion) == (dataset, None, None)
    rows = tale.store.read_files(dataset.uri)["train.jsonl"].splitlines()
    assert len(rows) == len(bad_material.disliked(tale.settings.seed))
