"""Sealed segments to object storage, in a thread of its own.

Room: gateway. Touches the spool folder and S3.

Each pass looks at what lies in the spool and carries on from there: closed segments are sealed, sealed ones are
uploaded under their own names and deleted afterwards. A pass that is cut off anywhere is safely done again: the same
name gets the same bytes. A destination that fails is left alone for a while, longer each time, without holding up the
others; its records wait on disk.
"""

import logging
import random
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from ratchet_gateway import segments
from ratchet_gateway.metrics import Metrics
from ratchet_gateway.segments import Census, Destination
from ratchet_gateway.spool import Room

log = logging.getLogger(__name__)


class ObjectStore(Protocol):
    """Where segments go."""

    def put(self, destination: Destination, key: str, body: bytes) -> None:
        """Store an object. Raises StoreError."""
        ...


class StoreError(Exception):
    """An object could not be stored; the message says why and what to do."""


class S3Store:
    """S3 by boto3. Credentials, and the endpoint when the cycle names none, come from the environment as usual."""

    def __init__(self, endpoint: str | None) -> None:
        """`endpoint` is for cycles that name none; None means AWS."""
        self._endpoint = endpoint
        self._session = boto3.session.Session()
        self._clients: dict[tuple[str | None, str], Any] = {}
        self._client(endpoint, "us-east-1")  # loads botocore's models now, not beside the first requests

    def put(self, destination: Destination, key: str, body: bytes) -> None:
        try:
            client = self._client(destination.endpoint or self._endpoint, destination.region)
            client.put_object(Bucket=destination.bucket, Key=key, Body=body, ContentType="application/zstd")
        except ClientError as error:
            raise StoreError(_explain(destination, error)) from error
        except (BotoCoreError, ValueError) as error:  # ValueError: an endpoint that is no URL
            raise StoreError(f"storage of {destination.namespace}/{destination.cycle}: {error}") from error

    def _client(self, endpoint: str | None, region: str) -> Any:
        where = (endpoint, region)
        if where not in self._clients:
            self._clients[where] = self._session.client(
                "s3",
                endpoint_url=endpoint,
                region_name=region,
                config=Config(
                    connect_timeout=3,
                    read_timeout=30,
                    retries={"total_max_attempts": 1},  # the uploader has its own patience
                    # Servers other than AWS's rarely have wildcard names, and many know no trailing checksums.
                    s3={"addressing_style": "path" if endpoint else "auto"},
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                ),
            )
        return self._clients[where]


def _explain(destination: Destination, error: ClientError) -> str:
    code = str(error.response.get("Error", {}).get("Code", "unknown"))
    name = f"{destination.namespace}/{destination.cycle}"
    fixes = {
        "NoSuchBucket": f"bucket {destination.bucket} does not exist: create it, or correct storage.uri",
        "AccessDenied": f"access to bucket {destination.bucket} is denied: let the gateway's credentials write there",
        "InvalidAccessKeyId": "the access key is unknown: correct the gateway's storage Secret",
        "SignatureDoesNotMatch": "the secret key is wrong: correct the gateway's storage Secret",
    }
    return f"storage of {name}: {fixes.get(code, f'{code}: {error}')}"


class Uploader:
    """The background thread. `wake` it when there are closed segments; `stop` it at the end."""

    def __init__(
        self, root: Path, store: ObjectStore, room: Room, metrics: Metrics, retry_seconds: tuple[float, float]
    ) -> None:
        self._root = root
        self._store = store
        self._room = room
        self._metrics = metrics
        self._retry_seconds = retry_seconds
        self._failures: dict[str, int] = {}
        self._due: dict[str, float] = {}
        self._counted: dict[Path, Census] = {}
        """Censuses of segments that were sealed and are not uploaded yet."""
        self._woken = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="uploader", daemon=True)

    def start(self) -> None:
        """Begin with what an earlier process left."""
        self._woken.set()
        self._thread.start()

    def wake(self) -> None:
        """There may be something to do."""
        self._woken.set()

    def stop(self, seconds: float) -> bool:
        """Try everything once more, at most so long; says whether the spool is empty."""
        self._stopping.set()
        self._woken.set()
        self._thread.join(seconds)
        return not self._thread.is_alive() and self._room.used == 0

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._woken.wait(self._pause())
            self._woken.clear()
            try:
                self._pass()
            except Exception:  # a bug must not end the thread: records would pile up unseen
                log.exception("the uploader failed; it goes on in %s s", self._retry_seconds[1])
                self._stopping.wait(self._retry_seconds[1])
                self._woken.set()
        self._due.clear()
        self._pass()

    def _pause(self) -> float | None:
        return max(0.0, min(self._due.values()) - time.monotonic()) if self._due else None

    def _pass(self) -> None:
        try:
            places = list(segments.destinations(self._root))
        except OSError as error:
            log.error("the spool folder cannot be read: %s", error)
            return
        for destination, home in places:
            if self._due.get(destination.key, 0.0) > time.monotonic():
                continue
            try:
                self._deliver(destination, home)
            except (StoreError, OSError) as error:
                self._postpone(destination, error)
            else:
                self._due.pop(destination.key, None)
                if self._failures.pop(destination.key, 0):
                    log.info("storage of %s/%s takes records again", destination.namespace, destination.cycle)

    def _postpone(self, destination: Destination, error: Exception) -> None:
        first, longest = self._retry_seconds
        failures = self._failures[destination.key] = self._failures.get(destination.key, 0) + 1
        pause = min(longest, first * 2.0 ** min(failures - 1, 16)) * random.uniform(0.75, 1.25)
        self._due[destination.key] = time.monotonic() + pause
        self._metrics.upload_failures.labels(destination.namespace, destination.cycle).inc()
        log.warning("%s; records wait on disk, next try in %.1f s", error, pause)

    def _deliver(self, destination: Destination, home: Path) -> None:
        """Raises StoreError when storage does not take a segment, OSError when the spool cannot be read."""
        closed, ready = segments.waiting(home)
        ready += [path for path in map(self._seal, closed) if path is not None]
        for path in sorted(ready):
            self._put(destination, path)
        segments.remove_empty_days(home, datetime.now(UTC).date().isoformat())

    def _seal(self, closed: Path) -> Path | None:
        """The sealed segment, or the closed one when the disk is too full for another; None when it held nothing."""
        raw = closed.read_bytes()
        content, census = segments.read_lines(raw)
        if census.unreadable:
            log.error("%d damaged lines in %s are left out", census.unreadable, closed.name)
        if not content:
            closed.unlink()
            self._room.add(-len(raw))
            return None
        packed = segments.compress(content)
        try:
            sealed = segments.seal(closed, packed)
        except OSError as error:
            log.warning("segment %s stays uncompressed: %s", closed.name, error)
            return closed
        self._room.add(len(packed) - len(raw))
        self._counted[sealed] = census
        return sealed

    def _put(self, destination: Destination, path: Path) -> None:
        body = path.read_bytes()
        size, name = len(body), path.name
        census = self._counted.get(path)
        if name.endswith(segments.SEALED):
            census = census or segments.read_sealed(body)  # sealed by an earlier process
        else:
            content, census = segments.read_lines(body)
            body, name = segments.compress(content), name + ".zst"
        self._store.put(destination, destination.object_key(path.with_name(name)), body)
        path.unlink()
        self._counted.pop(path, None)
        self._room.add(-size)
        for version, count in census.interactions.items():
            self._metrics.arm(destination.namespace, destination.cycle, version).interactions["uploaded"].inc(count)
