"""`ratchet lineage CYCLE --erased`: which datasets hold the words of those who withdrew, and who learnt from them.

Room: cli. Reads the cycle's storage with the credentials of the environment; changes nothing.
"""

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from ratchet_api.data import Storage
from ratchet_api.erasures import ERASURES, SUBJECTS, Erased, Subject, parse_erasures
from ratchet_api.version import ModelVersion
from ratchet_cli.oncall.commands import connect
from ratchet_cli.oncall.curves import reading
from ratchet_cli.oncall.errors import REACHED, NotFound, UsageError
from ratchet_cli.s3 import client, split


@dataclass
class Affected:
    """A dataset that holds examples of theirs."""

    digest: str
    examples: int = 0
    """Examples of theirs, without the variations of each."""
    sessions: set[str] = field(default_factory=set)
    """Conversations that they are from."""
    versions: list[ModelVersion] = field(default_factory=list)
    """Trained on it, as far as they are in the namespace."""
    adapters: list[str] = field(default_factory=list)
    """Addresses of all adapters trained on it, those of versions that are gone included."""

    def document(self) -> dict[str, Any]:
        """For programs."""
        learnt = [
            {
                "name": one.metadata.name,
                "phase": one.status.phase,
                "adapter": one.adapter.dump() if one.adapter else None,
            }
            for one in self.versions
        ]
        return {
            "dataset": self.digest, "examples": self.examples, "sessions": sorted(self.sessions), "versions": learnt,
            "adapters": self.adapters,
        }  # fmt: skip


def show(args: argparse.Namespace) -> int:
    """Exit code 0, whether there are any or not."""
    with connect(args) as cluster:
        view = cluster.view(args.name)
    storage = view.cycle.spec.storage
    s3 = client(args.endpoint or storage.endpoint, storage.region)
    with reading(storage.uri):
        wanted = _wanted(s3, storage, args)
        datasets = dict(subjects(s3, storage.uri))
        adapters = list(trained(s3, storage.uri))
    found = affected(wanted, datasets, view.versions, adapters)
    if args.output == "json":
        print(json.dumps([one.document() for one in found], indent=2))
    elif args.output == "yaml":
        print(yaml.safe_dump([one.document() for one in found], sort_keys=False), end="")
    else:
        print(_text(found, wanted, datasets), end="")
    return REACHED


def _wanted(s3: Any, storage: Storage, args: argparse.Namespace) -> Erased:
    listed = Erased()
    if args.erased:
        bucket, prefix = split(storage.uri)
        try:
            data = s3.get_object(Bucket=bucket, Key=f"{prefix}/{ERASURES}".lstrip("/"))["Body"].read()
        except s3.exceptions.NoSuchKey:
            raise NotFound(f"there is no {storage.uri}/{ERASURES}: nobody has withdrawn so far") from None
        try:
            listed = parse_erasures(data, f"{storage.uri}/{ERASURES}")
        except ValueError as error:
            raise UsageError(str(error)) from None
    return Erased(listed.principals | set(args.principal), listed.sessions | set(args.session))


def subjects(s3: Any, uri: str) -> Iterator[tuple[str, list[Subject]]]:
    """Digest of each dataset below the cycle's storage, and whose words it holds."""
    bucket, prefix = split(uri)
    root = f"{prefix}/datasets/".lstrip("/")
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=root)
    for page in pages:
        for entry in page.get("Contents", []):
            digest, _, name = entry["Key"].removeprefix(root).partition("/")
            if name == SUBJECTS:
                lines = s3.get_object(Bucket=bucket, Key=entry["Key"])["Body"].iter_lines()
                yield f"sha256:{digest}", [Subject.model_validate_json(line) for line in lines if line]


def trained(s3: Any, uri: str) -> Iterator[tuple[str, str]]:
    """Digest of the dataset, and address, of each adapter below the cycle's storage."""
    bucket, prefix = split(uri)
    root = f"{prefix}/versions/".lstrip("/")
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=root):
        for entry in page.get("Contents", []):
            folder, _, name = entry["Key"].rpartition("/")
            if name == "manifest.json" and folder.endswith("/adapter"):
                manifest = json.loads(s3.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read())
                yield manifest.get("inputs", {}).get("dataset", ""), f"s3://{bucket}/{folder}"


def affected(
    wanted: Erased, datasets: Mapping[str, Iterable[Subject]], versions: Sequence[ModelVersion],
    adapters: Iterable[tuple[str, str]],
) -> list[Affected]:  # fmt: skip
    """Datasets with examples of theirs, by digest, each with the versions and adapters trained on it."""
    found: dict[str, Affected] = {}
    for digest, subjects in sorted(datasets.items()):
        for subject in subjects:
            if wanted.covers(subject.principal, subject.session):
                one = found.setdefault(digest, Affected(digest))
                one.examples += 1
                one.sessions.add(subject.session)
    for digest, address in adapters:
        if digest in found:
            found[digest].adapters.append(address)
    for one in found.values():
        one.versions = [v for v in versions if v.spec.dataset is not None and v.spec.dataset.digest == one.digest]
    return list(found.values())


def _text(found: Sequence[Affected], wanted: Erased, datasets: Mapping[str, object]) -> str:
    who = f"{len(wanted.principals)} people and {len(wanted.sessions)} sessions"
    if not found:
        return f"none of {len(datasets)} datasets holds anything of {who}\n"
    lines = [f"{len(found)} of {len(datasets)} datasets hold something of {who}"]
    for one in found:
        lines.append(f"dataset {one.digest}: {one.examples} examples from {len(one.sessions)} sessions")
        lines += [f"  version {v.metadata.name}  {v.status.phase}" for v in one.versions]
        lines += [f"  adapter {address}" for address in one.adapters]
        lines += [] if one.versions or one.adapters else ["  nothing was trained on it"]
    serving = [
        v.metadata.name for one in found for v in one.versions if v.status.phase in ("Serving", "Baking", "Canary")
    ]
    if serving:
        lines.append(
            f"{', '.join(serving)} takes sessions now: `ratchet run` trains anew without them, `ratchet rollback` goes "
            "back at once"
        )
    return "\n".join(lines) + "\n"
