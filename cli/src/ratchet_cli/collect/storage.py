"""Where collected records go: a folder, or object storage by way of a folder.

Room: cli. Talks to S3 (with the credentials of the environment) and touches the folder.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ratchet_cli.collect.errors import Misused, NotStored
from ratchet_cli.collect.segments import finished, waiting
from ratchet_cli.s3 import client, split

_SCHEME = "s3://"


class Destination(Protocol):
    """Takes segments that are finished."""

    @property
    def folder(self) -> Path:
        """Where they are written."""
        ...

    def send(self) -> None:
        """Brings what is finished to its place. Raises NotStored."""
        ...


@dataclass(frozen=True)
class Folder:
    """Segments stay where they are written."""

    folder: Path

    def send(self) -> None:
        """Nothing is left to do."""


class Bucket:
    """Segments are written to a folder of this machine and leave it once the bucket has them."""

    def __init__(self, uri: str, spool: Path | None, endpoint: str | None) -> None:
        """`uri` is s3://bucket/prefix; what waits lies in `spool`, by default below $XDG_STATE_HOME. Raises Misused."""
        bucket, prefix = split(uri)
        if not bucket:
            raise Misused(f'out: {uri!r} names no bucket: write "s3://bucket/prefix"')
        self._bucket, self._prefix, self._uri = bucket, prefix, uri
        self._client: Any = None
        self._endpoint = endpoint
        digest = hashlib.sha256(f"{uri}\n{endpoint or ''}".encode()).hexdigest()[:16]
        self._folder = spool or _state_home() / "ratchet" / "collect" / digest

    @property
    def folder(self) -> Path:
        """Where segments wait."""
        return self._folder

    def send(self) -> None:
        """Uploads what is finished, also what an earlier process left. The same segment twice is the same object.

        Raises NotStored, after which the rest waits for the next time.
        """
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            for segment in finished(self.folder):
                if segment.content:
                    key = "/".join(part for part in (self._prefix, segment.key) if part)
                    self._s3().put_object(Bucket=self._bucket, Key=key, Body=segment.content)
                segment.path.unlink(missing_ok=True)
        except (BotoCoreError, Boto3Error, ClientError, ValueError) as error:
            raise NotStored(
                f"{waiting(self.folder)} segments could not be sent to {self._uri} ({error}): they wait in "
                f"{self.folder} for the next collector with this `out`; look at the bucket, at AWS_ENDPOINT_URL and at "
                "the credentials"
            ) from error

    def _s3(self) -> Any:
        if self._client is None:
            self._client = client(self._endpoint)
        return self._client


def destination(out: str | os.PathLike[str], spool: Path | None = None, endpoint: str | None = None) -> Destination:
    """Where `out` points to: a folder, or s3://bucket/prefix. Raises Misused."""
    text = os.fspath(out)
    if text.startswith(_SCHEME):
        return Bucket(text, spool, endpoint)
    if not text or "://" in text:
        raise Misused(f'out: {text!r} is neither a folder nor object storage: write a path or "s3://bucket/prefix"')
    return Folder(Path(text).expanduser())


def _state_home() -> Path:
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
