"""Base models and adapters as folders on disk, wherever the spec says they are.

Room: trainer. Touches storage, a mounted claim, the image's own files or the model hub, and the folder it is given.
Weights are safetensors only: pickle runs code when it is loaded, so it is refused, never converted silently.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ratchet_api.artifacts import files_digest
from ratchet_api.data import AdapterRef, BaseModelRef
from ratchet_api.reasons import Reason
from ratchet_trainer.artifacts import folder_entries, local_manifest
from ratchet_trainer.errors import DataError, DigestMismatch, Missing, TryAgain, UserError
from ratchet_trainer.storage import Store

_PICKLED = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
_HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.jinja"]
"""What is asked of the hub: weights as safetensors, configuration, tokenizer."""

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class LocalModel:
    """A base model on this machine."""

    path: Path
    digest: str
    """Digest of its files, as its manifest has it or would have it."""


def resolve_base(ref: BaseModelRef, store: Store, folder: Path, pvc_root: Path | None) -> LocalModel:
    """The base model for reading: fetched into `folder`, or in place for `file://` and `pvc://`.

    Raises Missing (MissingBaseModel), DigestMismatch, UserError (no safetensors) or TryAgain.
    """
    scheme, _, rest = ref.uri.partition("://")
    match scheme:
        case "s3":
            return LocalModel(folder, store.fetch(ref.uri, "model", ref.digest, folder, _checker(ref.uri)).digest)
        case "hf":
            path = _from_hub(rest, folder)
            digest = _folder_digest(path, ref)
        case "file":
            path = Path(rest)
            digest = _in_place(path, ref)
        case "pvc":
            claim, _, below = rest.partition("/")
            if pvc_root is None:
                raise UserError(f"baseModel.uri: the claim {claim} is not mounted (--pvc-root): mount it, or use s3://")
            path = pvc_root / below
            digest = _in_place(path, ref)
        case _:
            raise UserError(f"baseModel.uri: {ref.uri!r} has no known scheme; write hf://, s3://, pvc:// or file://")
    _check_weights(path, ref.uri)
    return LocalModel(path, digest)


def fetch_base(ref: BaseModelRef, store: Store, target: Path, pvc_root: Path | None) -> str:
    """The base model's files in the folder `target`, always a copy of its own; gives back their digest.

    A copy, because what was verified must be what is loaded even if the claim changes afterwards.
    """
    if ref.uri.startswith("s3://"):
        return resolve_base(ref, store, target, pvc_root).digest
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=target.parent) as scratch:
        model = resolve_base(ref, store, Path(scratch) / "hub", pvc_root)
        copy = Path(scratch) / "copy"
        shutil.copytree(model.path, copy, ignore=shutil.ignore_patterns(".*"))
        found = files_digest({name: entry.sha256 for name, entry in folder_entries(copy).items()})
        if found != model.digest:
            raise DigestMismatch(f"{ref.uri} changed while it was read: it is refused; leave it alone and try again")
        shutil.rmtree(target, ignore_errors=True)
        copy.rename(target)
    return model.digest


def fetch_adapter(ref: AdapterRef, store: Store, target: Path) -> str:
    """An adapter's files in the folder `target`, verified; gives back their digest."""
    return store.fetch(ref.uri, "adapter", ref.digest, target, lambda folder: check_adapter(folder, ref.uri)).digest


def check_adapter(folder: Path, where: str) -> None:
    """Raises DataError unless the folder holds a LoRA adapter as safetensors, and no pickle."""
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    if ADAPTER_WEIGHTS not in names or _pickled(names):
        raise DataError(f"{where} must hold {ADAPTER_WEIGHTS} and no pickled weights: save it with safetensors")
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_bytes())
        kind = config["peft_type"]
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{where}/{ADAPTER_CONFIG} is missing or is no peft configuration: save it with peft") from None
    if kind != "LORA":
        raise DataError(f"{where} is an adapter of type {kind}: only LORA can be evaluated and served")


def _pickled(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if Path(name).suffix in _PICKLED)


def _checker(uri: str) -> Callable[[Path], None]:
    return lambda folder: _check_weights(folder, uri)


def _check_weights(path: Path, uri: str) -> None:
    names = [p.name for p in path.rglob("*") if p.is_file()]
    if not (path / "config.json").is_file():
        raise Missing(
            Reason.MISSING_BASE_MODEL, f"{uri} has no config.json, so it is no model folder: correct baseModel.uri"
        )
    if any(name.endswith(".safetensors") for name in names):
        return
    if pickled := _pickled(names):
        raise UserError(
            f"{uri} has only pickled weights ({pickled[0]}), which run code when they are loaded: convert them with "
            "`model.save_pretrained(folder, safe_serialization=True)` and name that folder in baseModel.uri"
        )
    raise Missing(Reason.MISSING_BASE_MODEL, f"{uri} has no *.safetensors file: put the weights there")


def _in_place(path: Path, ref: BaseModelRef) -> str:
    if not path.is_dir():
        raise Missing(Reason.MISSING_BASE_MODEL, f"there is no folder at {ref.uri}: put the model there, or correct it")
    return _folder_digest(path, ref)


def _folder_digest(path: Path, ref: BaseModelRef) -> str:
    manifest = local_manifest(path, "model", ref.uri)
    files = folder_entries(path) if manifest is None else manifest.files
    digest = files_digest({name: entry.sha256 for name, entry in files.items()})
    if ref.digest is not None and ref.digest != digest:
        raise DigestMismatch(f"{ref.uri} has digest {digest} instead of {ref.digest}: correct one of the two")
    return digest


def _from_hub(rest: str, folder: Path) -> Path:
    """`org/name@revision` from the model hub (HF_ENDPOINT, HF_TOKEN and the like are huggingface_hub's own)."""
    import httpx2  # huggingface_hub's own HTTP client, whose errors it lets through
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repository, _, revision = rest.partition("@")
    uri = f"hf://{rest}"
    try:
        snapshot_download(repository, revision=revision, local_dir=folder, allow_patterns=_HUB_FILES)
    except GatedRepoError:
        raise Missing(
            Reason.MISSING_BASE_MODEL, f"{uri} asks for a licence: accept it at the hub and set HF_TOKEN in the Secret"
        ) from None
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise Missing(
            Reason.MISSING_BASE_MODEL,
            f"the hub has no {uri}: correct the name or the revision, or set HF_TOKEN for a private one",
        ) from None
    except OfflineModeIsEnabled:
        raise Missing(
            Reason.MISSING_BASE_MODEL,
            f"{uri} cannot be fetched because HF_HUB_OFFLINE is set: unset it, or put the model into s3:// storage",
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        raise TryAgain(f"{uri} could not be fetched ({type(error).__name__}): check the way to the hub") from error
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    return folder
