"""Object storage: artifacts in and out, sessions in, with errors that say what to mend.

Room: trainer. The only module that talks to S3 (boto3). Credentials come from the environment (AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, or workload identity), the endpoint from the stage's input or AWS_ENDPOINT_URL.

An artifact is read through its manifest only, and every byte is checked before the folder gets its final name. It is
written files first, manifest.json last and only if there is none (`If-None-Match: *`): of two writers one wins, and
the other takes the winner's artifact for its own result.
"""

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    PartialCredentialsError,
)

from ratchet_api.artifacts import MANIFEST, Manifest
from ratchet_api.reasons import Reason
from ratchet_api.stage import StageIdentity
from ratchet_trainer.artifacts import Kind, build_manifest, check_digest, check_file, parse_manifest
from ratchet_trainer.errors import Missing, TryAgain, UserError

log = logging.getLogger("ratchet")

_NO_BUCKET = {"NoSuchBucket"}
_FORBIDDEN = {
    "AccessDenied", "403", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AllAccessDisabled",
    "ExpiredToken", "InvalidToken", "AuthorizationHeaderMalformed",
}  # fmt: skip
_ABSENT = {"NoSuchKey", "404", "NotFound"}
_UNKNOWN = {"NotImplemented", "501"}
_TAKEN = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409"}

_PIECE = 1 << 20

Input = Literal["model", "dataset", "adapter", "checkpoint", "part"]
"""Kinds that stages read."""

_MISSING: dict[Input, tuple[Reason, str, str]] = {
    "model": (Reason.MISSING_BASE_MODEL, "base model", "baseModel.uri"),
    "dataset": (Reason.MISSING_DATASET, "dataset", "dataset.uri"),
    "adapter": (Reason.MISSING_ADAPTER, "adapter", "adapter.uri"),
    "checkpoint": (Reason.INFRASTRUCTURE_ERROR, "checkpoint", "nothing"),
    "part": (Reason.INFRASTRUCTURE_ERROR, "part", "nothing"),
}


@dataclass(frozen=True)
class Location:
    """A folder or an object in storage."""

    bucket: str
    key: str

    @classmethod
    def parse(cls, uri: str) -> "Location":
        """`s3://bucket/prefix`; slashes at the end do not matter. Raises UserError for anything else."""
        if not uri.startswith("s3://"):
            raise UserError(f'{uri!r} is not in object storage: write it as "s3://bucket/prefix"')
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        return cls(bucket, key.strip("/"))

    def child(self, name: str) -> "Location":
        """The object or folder of that name below this one."""
        return Location(self.bucket, f"{self.key}/{name}" if self.key else name)

    @property
    def uri(self) -> str:
        """As `s3://bucket/key`."""
        return f"s3://{self.bucket}/{self.key}"


@dataclass(frozen=True)
class StoredObject:
    """One object of a listing."""

    location: Location
    size: int
    """Bytes."""
    etag: str
    """What the server calls this content."""


class Store:
    """Object storage behind one endpoint."""

    def __init__(self, endpoint: str | None, region: str) -> None:
        self._endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        config = Config(
            retries={"max_attempts": 5, "mode": "standard"},
            connect_timeout=10,
            read_timeout=60,
            # Names of buckets are no host names on most servers that are not AWS.
            s3={"addressing_style": "path" if self._endpoint else "auto"},
        )
        try:
            # A session of one's own: boto3's default one keeps the first credentials that it saw.
            session = boto3.session.Session(region_name=region)
            self._client = session.client("s3", endpoint_url=self._endpoint, config=config)
        except ValueError as error:
            raise UserError(f'storage.endpoint: {error}; write it as "https://host:port"') from None

    @classmethod
    def of(cls, identity: StageIdentity) -> "Store":
        """The storage of a cycle."""
        return cls(identity.storage_endpoint, identity.storage_region)

    def get(self, location: Location) -> bytes | None:
        """An object's content; None when it is not there. Raises Missing (bucket) or TryAgain."""
        with self._errors(location):
            try:
                body = self._client.get_object(Bucket=location.bucket, Key=location.key)["Body"]
                data: bytes = body.read()
                return data
            except ClientError as error:
                if _code(error) in _ABSENT:
                    return None
                raise

    def put(self, location: Location, data: bytes, only_if_absent: bool = False) -> bool:
        """Writes an object; False when it is there already and `only_if_absent` was asked for. Raises UserError for
        a server that has no such condition."""
        condition = {"IfNoneMatch": "*"} if only_if_absent else {}
        with self._errors(location):
            try:
                self._client.put_object(Bucket=location.bucket, Key=location.key, Body=data, **condition)
            except ClientError as error:
                if only_if_absent and _code(error) in _TAKEN:
                    return False
                if only_if_absent and _code(error) in _UNKNOWN:
                    raise UserError(
                        f"storage: the server at {self._endpoint or 'AWS'} refuses conditional writes (PutObject with "
                        "If-None-Match), which keep two writers apart: use a version that has them, or another server"
                    ) from None
                raise
        return True

    def head(self, location: Location) -> StoredObject | None:
        """An object as a listing has it; None when it is not there."""
        with self._errors(location):
            try:
                found = self._client.head_object(Bucket=location.bucket, Key=location.key)
            except ClientError as error:
                if _code(error) in _ABSENT:
                    return None
                raise
        return StoredObject(location, int(found["ContentLength"]), found["ETag"])

    def objects(self, folder: Location) -> Iterator[StoredObject]:
        """Every object below a folder, in the order of its keys (UTF-8)."""
        prefix = f"{folder.key}/" if folder.key else ""
        with self._errors(folder):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=folder.bucket, Prefix=prefix)
            for page in pages:
                for entry in page.get("Contents", []):
                    yield StoredObject(Location(folder.bucket, entry["Key"]), int(entry["Size"]), entry["ETag"])

    def folders(self, folder: Location) -> list[str]:
        """Names of the folders directly below one."""
        prefix = f"{folder.key}/" if folder.key else ""
        names: list[str] = []
        with self._errors(folder):
            paginator = self._client.get_paginator("list_objects_v2")
            for page in paginator.paginate(Bucket=folder.bucket, Prefix=prefix, Delimiter="/"):
                names += [entry["Prefix"].removeprefix(prefix).rstrip("/") for entry in page.get("CommonPrefixes", [])]
        return sorted(names)

    def download(self, location: Location, path: Path) -> bool:
        """An object into a file; False when it is not there."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._errors(location):
            try:
                self._client.download_file(location.bucket, location.key, str(path))
            except ClientError as error:
                if _code(error) in _ABSENT:
                    return False
                raise
        return True

    def download_as_listed(self, found: StoredObject, path: Path) -> bool:
        """An object into a file; False when it is not there, or is another one than when it was listed."""
        path.parent.mkdir(parents=True, exist_ok=True)
        place = found.location
        with self._errors(place):
            try:
                body = self._client.get_object(Bucket=place.bucket, Key=place.key, IfMatch=found.etag)["Body"]
                with path.open("wb") as out:
                    shutil.copyfileobj(body, out, _PIECE)
            except ClientError as error:
                if _code(error) in _ABSENT | _TAKEN:
                    return False
                raise
        return path.stat().st_size == found.size

    def manifest(self, uri: str, kind: Kind) -> Manifest | None:
        """The manifest that closes an artifact; None when there is no finished artifact."""
        data = self.get(Location.parse(uri).child(MANIFEST))
        return None if data is None else parse_manifest(data, uri, kind)

    def place(self, uri: str, kind: Kind, recipe: str) -> tuple[str, Manifest | None]:
        """Where the artifact of a recipe lies or will lie, and its manifest if it is finished.

        That is `uri`, unless the artifact of another recipe lies there (an older object of the same name left it):
        artifacts are never overwritten.
        """
        found = self.manifest(uri, kind)
        if found is not None and found.inputs.get("recipe") != recipe:
            uri = f"{uri}-{recipe.removeprefix('sha256:')[:12]}"
            found = self.manifest(uri, kind)
        if found is not None:
            log.info("%s is finished already", uri)
        return uri, found

    def fetch(
        self, uri: str, kind: Input, expected: str | None, target: Path, check: Callable[[Path], None] | None = None
    ) -> Manifest:
        """An artifact into the folder `target`, which comes to be only when every byte was checked (and `check`, given
        the folder's temporary place, raised nothing).

        Raises Missing, DigestMismatch, DataError or TryAgain; then nothing is left behind.
        """
        data = self.get(Location.parse(uri).child(MANIFEST))
        if data is None:
            raise self._missing(uri, kind)
        manifest = parse_manifest(data, uri, kind)
        check_digest(manifest, expected, uri)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetching-", dir=target.parent) as scratch:
            folder = Path(scratch) / "artifact"
            folder.mkdir(mode=0o755)
            for name, entry in manifest.files.items():
                if not self.download(Location.parse(uri).child(name), folder / name):
                    raise Missing(
                        _MISSING[kind][0],
                        f"{uri}/{name} is missing although {MANIFEST} names it: write the artifact again",
                    )
                check_file(folder / name, name, entry, uri)
            (folder / MANIFEST).write_bytes(data)
            if check is not None:
                check(folder)
            shutil.rmtree(target, ignore_errors=True)
            folder.rename(target)
        return manifest

    def publish(
        self,
        folder: Path,
        uri: str,
        kind: Kind,
        inputs: Mapping[str, str],
        numbers: Mapping[str, int | float | str],
        beside: Sequence[Path] = (),
    ) -> Manifest:
        """A folder as an artifact at `uri`, closed by its manifest. Gives back the manifest that is in force: the
        other writer's if it came first.

        Files in the folders `beside` are put into the same place without being part of the artifact (logs, plots: they
        carry times, and would change its digest).
        """
        if (finished := self.manifest(uri, kind)) is not None:
            return finished
        place = Location.parse(uri)
        manifest = build_manifest(kind, folder, inputs, numbers)
        for root in beside:
            for path in sorted(p for p in root.rglob("*") if p.is_file()):
                self._upload(path, place.child(path.relative_to(root).as_posix()))
        for name in manifest.files:
            self._upload(folder / name, place.child(name))
        if self.put(place.child(MANIFEST), manifest.model_dump_json(indent=1).encode() + b"\n", only_if_absent=True):
            return manifest
        winner = self.manifest(uri, kind)
        if winner is None:
            raise TryAgain(f"{uri}/{MANIFEST} came and went while it was written: run the stage again")
        return winner

    def remove(self, folder: Location) -> None:
        """Deletes everything below a folder; manifests first, so that what is half gone does not exist."""
        found = [entry.location for entry in self.objects(folder)]
        for location in sorted(found, key=lambda entry: (not entry.key.endswith(f"/{MANIFEST}"), entry.key)):
            with self._errors(location):
                self._client.delete_object(Bucket=location.bucket, Key=location.key)

    def _upload(self, path: Path, location: Location) -> None:
        with self._errors(location):
            self._client.upload_file(str(path), location.bucket, location.key)

    def _missing(self, uri: str, kind: Input) -> Missing:
        reason, noun, field = _MISSING[kind]
        place = Location.parse(uri)
        if next(iter(self.objects(place)), None) is None:
            return Missing(reason, f"there is no {noun} at {uri}: put it there, or correct {field}")
        return Missing(
            reason,
            f"{uri} has files but no {MANIFEST}, so it is not a finished {noun}: publish it with "
            f"`python -m ratchet_trainer publish --kind {kind} --input FOLDER --output {uri}`, or correct {field}",
        )

    @contextmanager
    def _errors(self, location: Location) -> Iterator[None]:
        try:
            yield
        except ClientError as error:
            _raise_typed(error, location)
        except (NoCredentialsError, PartialCredentialsError):
            raise UserError(
                f"there are no credentials for s3://{location.bucket}: name a Secret with AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY in storage.credentialsSecret, or give the pods a workload identity"
            ) from None
        except boto3.exceptions.S3UploadFailedError as error:
            cause = error.__context__
            if isinstance(cause, ClientError):
                _raise_typed(cause, location)
            raise TryAgain(f"writing {location.uri} failed: {error}") from error
        except BotoCoreError as error:
            where = self._endpoint or "AWS"
            raise TryAgain(
                f"the object storage at {where} does not answer ({type(error).__name__}): check that it is up, and "
                "storage.endpoint or AWS_ENDPOINT_URL of the credentials Secret"
            ) from error


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _raise_typed(error: ClientError, location: Location) -> NoReturn:
    code = _code(error)
    if code in _NO_BUCKET:
        raise Missing(
            Reason.MISSING_BUCKET,
            f"the bucket {location.bucket} does not exist: create it, or correct storage.uri",
        ) from None
    if code in _FORBIDDEN:
        raise Missing(
            Reason.MISSING_BUCKET,
            f"{location.uri} may not be accessed ({code}): correct the keys in the Secret that "
            "storage.credentialsSecret names, or grant them read and write access to the bucket",
        ) from None
    if code in _ABSENT:
        text = f"{location.uri} does not exist: create it, or correct storage.uri"
        raise Missing(Reason.MISSING_BUCKET, text) from None
    raise TryAgain(f"the object storage failed at {location.uri} ({code or error}): it is tried again") from error
