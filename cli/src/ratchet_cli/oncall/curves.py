"""`ratchet tensorboard`: the curves of trainings, fetched from storage and shown.

Room: cli. Reads the cycle's storage with the credentials of the environment, and starts TensorBoard.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ratchet_api.version import ModelVersion
from ratchet_cli.oncall.commands import connect
from ratchet_cli.oncall.errors import REACHED, NotFound, Unreachable, UsageError
from ratchet_cli.s3 import client, split

EVENTS = "tensorboard/"
"""Folder of the event files, beside the adapter."""


def tensorboard(args: argparse.Namespace) -> int:
    """Exit code of TensorBoard, which runs until it is interrupted; 0 when the files were only asked for."""
    if args.out is None and find_spec("tensorboard") is None:
        raise UsageError('TensorBoard is not installed here: pip install "ratchet[trainer]", or write --out DIR')
    with connect(args) as cluster:
        versions = [cluster.version(name) for name in args.names]
        cycles = {version.spec.cycle for version in versions}
        if len(cycles) > 1:
            raise UsageError(f"the versions belong to {len(cycles)} cycles ({', '.join(sorted(cycles))}): name one's")
        storage = cluster.view(cycles.pop()).cycle.spec.storage
    s3 = client(args.endpoint or storage.endpoint, storage.region)
    with tempfile.TemporaryDirectory(prefix="ratchet-tensorboard-") as scratch:
        folder = Path(scratch if args.out is None else args.out)
        for version in versions:
            files = fetch(s3, version, folder / version.metadata.name)
            print(f"{version.metadata.name}: {files} event file{'s' if files != 1 else ''}")
        if args.out is not None:
            print(f"tensorboard --logdir {folder}")
            return REACHED
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", str(args.port)]
        return subprocess.run(command, check=False).returncode


@contextmanager
def reading(uri: str) -> Iterator[None]:
    """Errors of the storage's client as Unreachable, with what mends them."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, Boto3Error, ClientError) as error:
        raise Unreachable(
            f"{uri} cannot be read ({error}): set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY as in the "
            "cycle's Secret, and --endpoint when storage has another address from here"
        ) from error


def fetch(s3: Any, version: ModelVersion, folder: Path) -> int:
    """The event files of a version's training in `folder`; how many. Raises NotFound, Unreachable."""
    name, adapter = version.metadata.name, version.status.artifacts.adapter
    if version.spec.dataset is None:
        raise NotFound(f"{name} was not trained here, so it has no curves: its adapter was given")
    if adapter is None:
        raise NotFound(
            f"{name} has no curves yet: they come with its adapter; meanwhile `ratchet get {name}` shows step and loss"
        )
    bucket, prefix = split(adapter.uri)
    place = f"{prefix}/{EVENTS}"
    with reading(adapter.uri):
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=place)
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        for key in keys:
            path = folder / Path(key).name
            path.parent.mkdir(parents=True, exist_ok=True)
            s3.download_file(bucket, key, str(path))
    if not keys:
        raise NotFound(f"there are no event files below s3://{bucket}/{place}: were they removed?")
    return len(keys)
