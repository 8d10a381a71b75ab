"""Artifacts in object storage: a folder closed by its manifest, written last and only once.

Room: cli. Talks to S3. The trainer has its own; rooms share the format (ratchet_api.artifacts), not the code.
"""

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from botocore.exceptions import ClientError

from ratchet_api.artifacts import MANIFEST, FileEntry, Manifest
from ratchet_cli.s3 import split

_PRECONDITION_FAILED = 412


def manifest_of(files: Mapping[str, bytes], kind: Literal["adapter", "dataset"], **fields: Any) -> Manifest:
    """A manifest for files that are at hand; `fields` are the manifest's other ones."""
    entries = {
        path: FileEntry(sha256=hashlib.sha256(content).hexdigest(), size=len(content))
        for path, content in files.items()
    }
    return Manifest(kind=kind, files=entries, created_at=datetime.now(UTC), **fields)


class ArtifactStore:
    """Reads and writes artifacts by uri."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def put_folder(self, uri: str, folder: Path, manifest: Manifest) -> None:
        """Upload the files that the manifest names, then the manifest. An artifact that is there already stays."""
        bucket, prefix = split(uri)
        if self.manifest(uri) is not None:
            return
        with ThreadPoolExecutor(4) as pool:
            uploads = [
                pool.submit(self._client.upload_file, str(folder / path), bucket, f"{prefix}/{path}")
                for path in manifest.files
            ]
            for upload in uploads:
                upload.result()
        self._close(bucket, prefix, manifest)

    def put_files(self, uri: str, files: Mapping[str, bytes], manifest: Manifest) -> None:
        """The same for files that are at hand."""
        bucket, prefix = split(uri)
        if self.manifest(uri) is not None:
            return
        for path, content in files.items():
            self._client.put_object(Bucket=bucket, Key=f"{prefix}/{path}", Body=content)
        self._close(bucket, prefix, manifest)

    def _close(self, bucket: str, prefix: str, manifest: Manifest) -> None:
        body = manifest.model_dump_json().encode()
        try:
            self._client.put_object(Bucket=bucket, Key=f"{prefix}/{MANIFEST}", Body=body, IfNoneMatch="*")
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] != _PRECONDITION_FAILED:
                raise

    def manifest(self, uri: str) -> Manifest | None:
        """The artifact's manifest; None when it does not exist."""
        content = self.read(f"{uri}/{MANIFEST}")
        return None if content is None else Manifest.model_validate_json(content)

    def read_files(self, uri: str) -> dict[str, bytes]:
        """All files of an artifact. Raises FileNotFoundError when it does not exist."""
        manifest = self.manifest(uri)
        if manifest is None:
            raise FileNotFoundError(f"there is no artifact in {uri}")
        bucket, prefix = split(uri)
        return {
            path: self._client.get_object(Bucket=bucket, Key=f"{prefix}/{path}")["Body"].read()
            for path in manifest.files
        }

    def read(self, uri: str) -> bytes | None:
        """One object, of an artifact or beside one; None when there is none."""
        bucket, key = split(uri)
        try:
            content: bytes = self._client.get_object(Bucket=bucket, Key=key)["Body"].read()
        except self._client.exceptions.NoSuchKey:
            return None
        return content

    def count(self, uri: str) -> int:
        """Number of objects below a uri."""
        bucket, prefix = split(uri)
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/")
        return sum(int(page.get("KeyCount", 0)) for page in pages)
