"""Artifacts on a real S3 server: the manifest comes last and once."""

import secrets
from collections.abc import Mapping
from pathlib import Path

import pytest

from ratchet_api.artifacts import Manifest
from ratchet_cli.demo.storage import ArtifactStore, manifest_of
from ratchet_cli.s3 import split
from ratchet_local import S3Access

FILES = {"a.txt": b"one", "folder/b.txt": b"two"}


@pytest.fixture
def uri(s3: S3Access) -> str:
    """A place in a bucket of one's own."""
    bucket = f"test-{secrets.token_hex(4)}"
    s3.create_bucket(bucket)
    return f"s3://{bucket}/some/where"


@pytest.fixture
def store(s3: S3Access) -> ArtifactStore:
    return ArtifactStore(s3.client())


@pytest.mark.parametrize(
    ("uri", "parts"), [("s3://b/x/y", ("b", "x/y")), ("s3://b/x/", ("b", "x")), ("s3://b", ("b", ""))]
)
def test_split(uri: str, parts: tuple[str, str]) -> None:
    assert split(uri) == parts


def test_what_is_put_can_be_read(store: ArtifactStore, uri: str) -> None:
    manifest = manifest_of(FILES, "dataset", numbers={"examples": 2})
    store.put_files(uri, FILES, manifest)
    assert store.read_files(uri) == FILES
    read = store.manifest(uri)
    assert read is not None
    assert (read.digest, read.numbers) == (manifest.digest, {"examples": 2})


def test_a_folder_is_put_with_all_its_files(store: ArtifactStore, uri: str, tmp_path: Path) -> None:
    for name, content in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    store.put_folder(uri, tmp_path, manifest_of(FILES, "adapter"))
    assert store.read_files(uri) == FILES
    assert store.count(uri) == len(FILES) + 1


def test_the_first_writer_wins(store: ArtifactStore, uri: str) -> None:
    first, second = manifest_of(FILES, "dataset"), manifest_of({"c": b"3"}, "dataset")
    store.put_files(uri, FILES, first)
    store.put_files(uri, {"c": b"3"}, second)
    read = store.manifest(uri)
    assert read is not None
    assert read.digest == first.digest


def test_two_writers_at_once_have_one_winner(store: ArtifactStore, uri: str) -> None:
    """The second one has looked before the first one closed its artifact."""

    class Late(ArtifactStore):
        def manifest(self, uri: str) -> Manifest | None:
            return None

    late = Late(store._client)
    first, second = manifest_of(FILES, "dataset"), manifest_of({"c": b"3"}, "dataset")
    store.put_files(uri, FILES, first)
    late.put_files(uri, {"c": b"3"}, second)
    read = store.manifest(uri)
    assert read is not None
    assert read.digest == first.digest


def test_without_a_manifest_there_is_no_artifact(store: ArtifactStore, uri: str) -> None:
    bucket, prefix = split(uri)
    store._client.put_object(Bucket=bucket, Key=f"{prefix}/a.txt", Body=b"one")
    assert store.manifest(uri) is None
    with pytest.raises(FileNotFoundError, match="no artifact"):
        store.read_files(uri)


def test_one_more_file_is_another_digest() -> None:
    """What makes the repackaged champion another version."""
    more: Mapping[str, bytes] = FILES | {"NOTES.md": b"the same weights"}
    assert manifest_of(FILES, "adapter").digest != manifest_of(more, "adapter").digest
