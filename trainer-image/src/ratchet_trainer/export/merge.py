"""Base and adapter as one folder of safetensors that needs no peft.

Room: trainer/export. Touches the folders that it is given and the device.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from ratchet_api.artifacts import MANIFEST
from ratchet_trainer.errors import UserError
from ratchet_trainer.loading import load_model

_WEIGHTS = (".safetensors", ".safetensors.index.json")
_CODE = (".py", ".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def stored_dtype(folder: Path, name: str) -> str:
    """What the base's weights are stored in, as torch calls it. Raises UserError for a quantised base."""
    config = json.loads((folder / "config.json").read_bytes())
    if config.get("quantization_config"):
        raise UserError(f"{name} is quantised, so an adapter cannot be merged into it: name the base that it came from")
    first = sorted(folder.glob("*.safetensors"))[0]
    with first.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    found = {entry["dtype"] for key, entry in header.items() if key != "__metadata__"}
    for dtype in ("F32", "BF16", "F16"):
        if dtype in found:
            return DTYPES[dtype]
    raise UserError(f"{name} stores its weights as {', '.join(sorted(found))}: name a base in float32, bf16 or f16")


def save(merged: Any, base: Path, dtype: str, folder: Path) -> None:
    """A merged model in the base's own precision, with every other file of the base as it is there.

    Code and pickles stay behind: nothing in an export runs when it is loaded.
    """
    import torch

    merged.to(getattr(torch, dtype)).save_pretrained(folder, safe_serialization=True)
    for path in sorted(base.rglob("*")):
        relative = path.relative_to(base)
        hidden = any(part.startswith(".") for part in relative.parts)
        own = relative.name == MANIFEST or relative.name.endswith((*_WEIGHTS, *_CODE)) or relative.name == "README.md"
        if path.is_file() and not hidden and not own:
            (folder / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / relative)


def load(folder: Path, name: str, device: Any) -> Any:
    """The folder as anybody would load it, in float32, so that only what was stored is judged."""
    import torch

    return load_model(folder, name, device, torch.float32)
