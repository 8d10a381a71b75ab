"""Versions that a person makes by hand: the finished adapters and the recipe that the story's bad versions are.

Room: cli. Writes artifacts to S3, runs the trainer's command line as a process, applies ModelVersions.
"""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from decimal import Decimal
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from ratchet_api.artifacts import MANIFEST, Manifest
from ratchet_api.data import AdapterRef, DatasetRef
from ratchet_api.evaluation import EvaluationPolicy
from ratchet_api.names import GROUP_VERSION, VERSION_KIND
from ratchet_api.stage import ExitCode, StageIdentity, StageReport, TrainInput
from ratchet_api.training import Recipe
from ratchet_api.version import ModelVersionSpec
from ratchet_cli.demo.errors import CameOutOtherwise, DemoError
from ratchet_cli.demo.storage import manifest_of
from ratchet_cli.demo.tale import Tale
from ratchet_cli.people import bad_material
from ratchet_local.toolchain import cache_folder

ELSEWHERE = "s3://ratchet/elsewhere"
"""Where people keep what they made outside of any cycle."""
_TAIL_LINES = 20


def forgetful_adapter(tale: Tale) -> AdapterRef:
    """House rows only, no anchors, a high rate: it learns the conventions and forgets the world."""
    rows = bad_material.forgetful(tale.settings.seed)
    dataset = _put_dataset(tale, "forgetful", rows)
    return _trained_elsewhere(tale, "forgetful", dataset, bad_material.FORGETFUL_HYPERPARAMETERS)


def disliked_dataset(tale: Tale) -> DatasetRef:
    """Answers that people disliked, taken for the truth."""
    return _put_dataset(tale, "disliked", bad_material.disliked(tale.settings.seed))


def repackaged_champion(tale: Tale, champion: str) -> AdapterRef:
    """The champion's weights with a note beside them: another digest, the same answers."""
    adapter = tale.cluster.read().versions[champion].adapter
    assert adapter is not None, "the champion was trained"
    files = tale.store.read_files(adapter.uri)
    files["NOTES.md"] = f"The weights of {champion}, in another wrapping.\n".encode()
    manifest = manifest_of(files, "adapter", inputs={"adapter": adapter.digest})
    uri = f"{ELSEWHERE}/repackaged"
    tale.store.put_files(uri, files, manifest)
    return AdapterRef(uri=uri, digest=manifest.digest)


def finished_version(tale: Tale, name: str, adapter: AdapterRef) -> dict[str, Any]:
    """A ModelVersion with a finished adapter, evaluated carelessly: target suites only, against the base model."""
    cycle = tale.cluster.read().cycle
    assert cycle is not None, "step 2 applied it"
    policy = cycle.spec.evaluation.policy()
    targets = EvaluationPolicy(
        suites=[suite for suite in policy.suites if suite.role == "target"],
        min_improvement=policy.min_improvement,
        confidence=policy.confidence,
    )
    spec = ModelVersionSpec(
        cycle=tale.settings.cycle, champion=tale.version(0), adapter=adapter, evaluation=targets
    )  # fmt: skip
    return _manifest(name, spec)


def recipe_version(tale: Tale, name: str, dataset: DatasetRef) -> dict[str, Any]:
    """A ModelVersion that is still to be trained, under the cycle's own evaluation."""
    training = bad_material.DISLIKED_HYPERPARAMETERS
    return _manifest(name, ModelVersionSpec(cycle=tale.settings.cycle, dataset=dataset, training=training))


def _manifest(name: str, spec: ModelVersionSpec) -> dict[str, Any]:
    return {"apiVersion": GROUP_VERSION, "kind": VERSION_KIND, "metadata": {"name": name}, "spec": spec.dump()}


def apply(tale: Tale, manifest: Mapping[str, Any]) -> None:
    """`kubectl apply` of one object, kept as a file in the state folder."""
    folder = tale.settings.state / "manifests"
    folder.mkdir(exist_ok=True)
    path = folder / f"{manifest['metadata']['name']}.yaml"
    path.write_text(yaml.safe_dump(dict(manifest), sort_keys=False), encoding="utf-8")
    tale.screen.command(f"kubectl apply -f manifests/{path.name}")
    tale.screen.block(tale.platform.kubectl("apply", "-n", tale.settings.namespace, "-f", str(path)))


def _put_dataset(tale: Tale, name: str, rows: Iterable[Mapping[str, Any]]) -> DatasetRef:
    lines = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows]
    files = {"train.jsonl": ("\n".join(lines) + "\n").encode()}
    manifest = manifest_of(files, "dataset", numbers={"examples": len(lines)})
    uri = f"{ELSEWHERE}/datasets/{name}"
    tale.store.put_files(uri, files, manifest)
    tale.screen.say(f"dataset {uri}: {len(lines)} rows, {manifest.digest[:19]}…")
    return DatasetRef(uri=uri, digest=manifest.digest)


def _trained_elsewhere(tale: Tale, name: str, dataset: DatasetRef, settings: Recipe) -> AdapterRef:
    """A finished adapter in storage. One that an earlier demonstration trained by the same recipe is taken as it is."""
    cached = cache_folder() / "adapters" / _recipe(tale, dataset, settings)
    uri = f"{ELSEWHERE}/versions/{name}/0/adapter"
    if (cached / MANIFEST).is_file():
        manifest = Manifest.model_validate_json((cached / MANIFEST).read_bytes())
        tale.store.put_folder(uri, cached, manifest)
        tale.screen.say(f"adapter {uri}: {manifest.digest[:19]}…, trained by an earlier demonstration on the same rows")
        return AdapterRef(uri=uri, digest=manifest.digest)
    adapter = _train_elsewhere(tale, name, dataset, settings)
    _keep(tale, adapter, cached)
    return adapter


def _recipe(tale: Tale, dataset: DatasetRef, settings: Recipe) -> str:
    """Hexadecimal digest of all that determines an adapter: base, rows, settings, and the trainer's own code."""
    found = find_spec("ratchet_trainer")
    assert found is not None, "the trainer is installed beside this package"
    files = sorted(p for root in found.submodule_search_locations or [] for p in Path(root).rglob("*.py"))
    code = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    parts = {
        "base": tale.base_model_digest,
        "dataset": dataset.digest,
        "settings": settings.dump(),
        "trainer": code,
        "torch": version("torch"),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _keep(tale: Tale, adapter: AdapterRef, cached: Path) -> None:
    """Into the cache folder, whole or not at all."""
    manifest = tale.store.manifest(adapter.uri)
    assert manifest is not None, "it was just trained"
    cached.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cached.parent, prefix=".writing-") as scratch:
        folder = Path(scratch) / "adapter"
        for path, content in tale.store.read_files(adapter.uri).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        (folder / MANIFEST).write_text(manifest.model_dump_json(), encoding="utf-8")
        # Somebody else's, if it came first, is the same one.
        with contextlib.suppress(OSError):
            folder.rename(cached)


def _train_elsewhere(tale: Tale, name: str, dataset: DatasetRef, settings: Recipe) -> AdapterRef:
    """Train by the trainer's own command line, outside of the cluster, as somebody would on their workstation."""
    cycle = tale.cluster.read().cycle
    assert cycle is not None, "step 2 applied it"
    work = tale.settings.state / "elsewhere" / name
    scratch = work / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    identity = StageIdentity(
        namespace=tale.settings.namespace, cycle=tale.settings.cycle, version=name, storage_uri=ELSEWHERE
    )  # fmt: skip
    stage = TrainInput(
        identity=identity, base_model=cycle.spec.base_model, dataset=dataset, hyperparameters=settings
    )  # fmt: skip
    (work / "stage.json").write_text(stage.model_dump_json(by_alias=True), encoding="utf-8")
    report, log = work / "report.json", work / "log"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "ratchet_trainer", "train", "--input", str(work / "stage.json")]
    command += ["--report", str(report), "--scratch", str(scratch)]
    tale.screen.command(f"python -m ratchet_trainer train --input elsewhere/{name}/stage.json ...")
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, env=tale.platform.env(), stdout=stream, stderr=stream, preexec_fn=lambda: os.nice(5)
        )  # fmt: skip
        try:
            code = _wait(tale, process)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if code != ExitCode.DONE:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-_TAIL_LINES:])
        raise DemoError(f"training {name} elsewhere ended with code {code}", tail)
    done = StageReport.model_validate_json(report.read_bytes())
    if done.artifact is None:
        raise CameOutOtherwise(f"training {name} elsewhere reported no adapter: {done.message}")
    loss = "" if done.training is None or done.training.loss is None else f", loss {Decimal(done.training.loss):.3f}"
    tale.screen.say(f"adapter {done.artifact.uri}: {done.artifact.digest[:19]}…{loss}")
    return AdapterRef(uri=done.artifact.uri, digest=done.artifact.digest)


def _wait(tale: Tale, process: subprocess.Popen[bytes]) -> int:
    deadline = tale.settings.patience(600)
    try:
        return process.wait(deadline)
    except subprocess.TimeoutExpired:
        raise DemoError(f"training elsewhere took longer than {deadline:.0f} s") from None
