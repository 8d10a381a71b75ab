"""The fetch stage: init container of an arm. Base model and adapter, every byte verified, or nothing.

Room: trainer. Touches storage (or the hub, a claim) and the output folder.
"""

import logging
from pathlib import Path

from ratchet_api.artifacts import MANIFEST
from ratchet_api.data import AdapterRef, BaseModelRef
from ratchet_api.reasons import Reason
from ratchet_api.stage import FetchInput, StageReport
from ratchet_api.version import Artifact, Provenance
from ratchet_trainer.artifacts import Kind, local_manifest
from ratchet_trainer.errors import DataError
from ratchet_trainer.models import fetch_adapter, fetch_base
from ratchet_trainer.storage import Store

log = logging.getLogger("ratchet")


def run(stage: FetchInput, store: Store, output: Path, pvc_root: Path | None) -> StageReport:
    """`output/base`, and `output/adapter` when the version has one. What is there already and still has the right
    digest is kept, so that a restarted pod starts at once. Raises StageError's children."""
    base_digest = _kept(output / "base", "model", stage.base_model)
    if base_digest is None:
        base_digest = fetch_base(stage.base_model, store, output / "base", pvc_root)
    message = f"{stage.base_model.uri} is in place and verified"
    artifact = None
    if stage.adapter is not None:
        if _kept(output / "adapter", "adapter", stage.adapter) is None:
            fetch_adapter(stage.adapter, store, output / "adapter")
        artifact = Artifact(uri=stage.adapter.uri, digest=stage.adapter.digest)
        message = f"{stage.base_model.uri} and {stage.adapter.uri} are in place and verified"
    return StageReport(
        stage="fetch", outcome="Succeeded", reason=Reason.SUCCEEDED, message=message, artifact=artifact,
        provenance=Provenance(base_model_digest=base_digest),
    )  # fmt: skip


def _kept(folder: Path, kind: Kind, ref: BaseModelRef | AdapterRef) -> str | None:
    """Digest of what an earlier start of this pod put there, if it is whole and what is asked for now.

    Without a digest in the reference nothing says that it is the same model, so it is fetched again.
    """
    if ref.digest is None or not (folder / MANIFEST).is_file():
        return None
    try:
        manifest = local_manifest(folder, kind, ref.uri)
    except DataError as error:
        log.warning("what is in %s is fetched again: %s", folder.name, error)
        return None
    return manifest.digest if manifest is not None and manifest.digest == ref.digest else None
