"""The export stage: base and adapter in, the model in other formats out, here and elsewhere.

Room: trainer. Touches storage, the scratch folder, the device, and the hub and the registry that it is told of. Reads
top to bottom.

A format counts once it is in storage, and it gets there only after it was loaded again and compared. So an attempt
that ends early loses at most the format that it was at; uploads are of what is in storage.
"""

import hashlib
import json
import logging
import shutil
from decimal import Decimal
from pathlib import Path

from ratchet_api.artifacts import Manifest
from ratchet_api.base import format_time
from ratchet_api.export import Exported, ExportFormat, ExportResult, OciArtifact
from ratchet_api.reasons import Reason
from ratchet_api.stage import ExportInput, StageReport, export_uri
from ratchet_api.version import Provenance
from ratchet_trainer.artifacts import tool_versions
from ratchet_trainer.export import card, compare, gguf, hub, llamacpp, merge, mlx, oci, probe
from ratchet_trainer.loading import load_adapters, load_model, load_tokenizer, merged, pick_device, use_threads
from ratchet_trainer.metrics import Progress
from ratchet_trainer.models import fetch_adapter, resolve_base
from ratchet_trainer.storage import Store

log = logging.getLogger("ratchet")


def run(stage: ExportInput, store: Store, scratch: Path, progress: Progress, pvc_root: Path | None) -> StageReport:
    """Makes the formats that storage does not have yet, uploads all of them, and reports. Raises StageError's
    children."""
    places = {form: _place(stage, store, form) for form in stage.formats}
    missing = [form for form, (_, manifest) in places.items() if manifest is None]
    steps, done = len(missing) + (stage.hub is not None) + (stage.oci is not None), 0
    if missing:
        maker = _Maker(stage, store, scratch, pvc_root)
        for form in missing:
            uri = places[form][0]
            places[form] = (uri, maker.make(form, uri))
            done += 1
            progress.update(done, steps)
    found = {form: (uri, manifest) for form, (uri, manifest) in places.items() if manifest is not None}
    formats = [_exported(form, uri, manifest) for form, (uri, manifest) in found.items()]
    base = next(manifest.inputs["base"] for _, manifest in found.values())
    result = ExportResult(formats=formats)
    if stage.hub is not None or stage.oci is not None:
        readme = card.render(stage, base, formats)
        folders = {one.format: _local(one, store, scratch) for one in formats}
        if stage.hub is not None:
            files = _hub_files(folders) | {"README.md": readme.encode()}
            result = result.model_copy(update={"hub": hub.upload(stage.hub, files, stage.identity.version)})
            done += 1
            progress.update(done, steps)
        if stage.oci is not None:
            to = oci.Registry(stage.oci.repository, stage.oci.plain_http)
            pushed = [_push(stage, to, form, folders[form], found[form][1], readme) for form in folders]
            result = result.model_copy(update={"oci": pushed})
            progress.update(steps, steps)
    return StageReport(
        stage="export", outcome="Succeeded", reason=Reason.SUCCEEDED,
        message="exported as " + ", ".join(one.format for one in formats), export=result,
        provenance=Provenance(base_model_digest=base, dataset_digest=stage.dataset_digest, tools=tool_versions()),
    )  # fmt: skip


def _recipe(stage: ExportInput, form: ExportFormat) -> str:
    """Digest of all that determines a format's files."""
    recipe = {"base": stage.base_model.dump(), "adapter": stage.adapter.digest, "format": form}
    return "sha256:" + hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


def _place(stage: ExportInput, store: Store, form: ExportFormat) -> tuple[str, Manifest | None]:
    """Where a format lies or will lie, and its manifest if it is there."""
    uri = export_uri(stage.identity.storage_uri, stage.identity.version, stage.adapter.digest, form)
    return store.place(uri, "model", _recipe(stage, form))


class _Maker:
    """Makes formats one by one, from one merged model, against one probe of base and adapter."""

    def __init__(self, stage: ExportInput, store: Store, scratch: Path, pvc_root: Path | None) -> None:
        self._stage = stage
        self._store = store
        self._scratch = scratch
        self._name = stage.base_model.uri
        self._threads = use_threads()
        self._device = pick_device()
        self._base = resolve_base(stage.base_model, store, scratch / "base", pvc_root)
        self._dtype = merge.stored_dtype(self._base.path, self._name)
        self._merged = scratch / "merged"
        self._probe = self._ask()

    def _ask(self) -> probe.Probe:
        """Asks base and adapter, then merges them; each model is forgotten before the next one is loaded."""
        import torch

        adapter = self._scratch / "adapter"
        fetch_adapter(self._stage.adapter, self._store, adapter)
        tokenizer = load_tokenizer(self._base.path, self._name)
        model = load_model(self._base.path, self._name, self._device, torch.float32)
        asked = probe.ask(load_adapters(model, {"candidate": adapter}), tokenizer, self._name)
        del model
        whole = merged(load_model(self._base.path, self._name, self._device, torch.float32), adapter)
        merge.save(whole, self._base.path, self._dtype, self._merged)
        return asked

    def make(self, form: ExportFormat, uri: str) -> Manifest:
        """Makes a format, loads it again, compares it, and only then puts it into storage."""
        folder = self._scratch / "formats" / form
        found = compare.compare(self._made(form, folder), self._probe.said)
        log.info(
            "%s: error %.4f, effect %.3f, agreement %.3f", form, found.error, found.effect, found.agreement
        )  # fmt: skip
        compare.judge(form, found)
        inputs = {
            "recipe": _recipe(self._stage, form), "base": self._base.digest, "adapter": self._stage.adapter.digest,
        }  # fmt: skip
        numbers: dict[str, int | float | str] = {
            "error": round(found.error, 6), "effect": round(found.effect, 6), "agreement": round(found.agreement, 6),
            "precision": self._dtype,
        }  # fmt: skip
        made = self._store.publish(folder, uri, "model", inputs, numbers)
        shutil.rmtree(folder)
        return made

    def _made(self, form: ExportFormat, folder: Path) -> compare.Logits:
        """The format's files in `folder`, and what they say when they are loaded."""
        name = self._stage.identity.version
        match form:
            case "safetensors":
                shutil.copytree(self._merged, folder)
                return probe.of_model(merge.load(folder, form, self._device), self._probe)
            case "mlx":
                mlx.convert(self._merged, folder)
                return mlx.logits(folder, self._probe)
            case "gguf-f16" | "gguf-q8_0" | "gguf-q4_k_m":
                f16 = self._scratch / "f16.gguf"
                gguf.convert(self._merged, f16, name)
                target = folder / gguf_name(name, form)
                folder.mkdir(parents=True)
                if form == "gguf-f16":
                    shutil.copyfile(f16, target)
                else:
                    gguf.quantise(f16, target, form, self._threads)
                return gguf.logits(target, self._probe, form, self._threads)


def gguf_name(version: str, form: ExportFormat) -> str:
    """`<version>-Q4_K_M.gguf`: llama.cpp's convention, by which its tools find a quantisation."""
    return f"{version}-{form.removeprefix('gguf-').upper()}.gguf"


def _exported(form: ExportFormat, uri: str, manifest: Manifest) -> Exported:
    figures = {key: Decimal(str(manifest.numbers[key])) for key in ("error", "effect", "agreement")}
    size = sum(entry.size for entry in manifest.files.values())
    return Exported(format=form, uri=uri, digest=manifest.digest, bytes=size, **figures)


def _local(one: Exported, store: Store, scratch: Path) -> Path:
    """A format's folder as it is in storage, every byte verified."""
    folder = scratch / "uploads" / one.format
    folder.parent.mkdir(parents=True, exist_ok=True)
    store.fetch(one.uri, "model", one.digest, folder)
    return folder


def _hub_files(folders: dict[ExportFormat, Path]) -> dict[str, Path | bytes]:
    """Where each file goes in a hub's repository: safetensors and GGUF side by side, as hubs show them; MLX, whose
    file names are those of safetensors, below mlx/."""
    files: dict[str, Path | bytes] = {}
    for form, folder in folders.items():
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            name = path.relative_to(folder).as_posix()
            files[f"mlx/{name}" if form == "mlx" else name] = path
    return files


def _push(
    stage: ExportInput, to: oci.Registry, form: ExportFormat, folder: Path, manifest: Manifest, readme: str
) -> OciArtifact:
    """One format as one artifact, under `<version>-<format>`; the first one named also under `<version>`."""
    who = stage.identity
    (folder / "README.md").write_text(readme, encoding="utf-8")
    precision = {"gguf-f16": "float16"}.get(form, str(manifest.numbers["precision"]))
    annotations = {
        "org.opencontainers.image.title": who.cycle,
        "org.opencontainers.image.version": who.version,
        "org.opencontainers.image.licenses": stage.license or "",
        "org.opencontainers.image.created": format_time(manifest.created_at),
        "dev.ratchet.base": manifest.inputs["base"],
        "dev.ratchet.adapter": stage.adapter.digest,
    } | ({"dev.ratchet.dataset": stage.dataset_digest} if stage.dataset_digest else {})
    described = oci.Described(
        name=who.cycle, version=who.version, created=format_time(manifest.created_at), license=stage.license or "",
        form=form.partition("-")[0], precision=precision,
        quantization=form.removeprefix("gguf-") if form in llamacpp.QUANTISATIONS else None, annotations=annotations,
    )  # fmt: skip
    tag = f"{who.version}-{form}"
    tags = [tag, who.version] if form == stage.formats[0] else [tag]
    return OciArtifact(format=form, digest=oci.push(folder, described, to, tags), tag=tag)
