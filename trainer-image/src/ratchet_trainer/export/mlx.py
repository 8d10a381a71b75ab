"""A merged folder as a model for Apple's MLX, by mlx-lm. The CPU build of MLX loads it here as a Mac would.

Room: trainer/export. Touches the folders that it is given.
"""

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np

from ratchet_trainer.errors import UserError
from ratchet_trainer.export.compare import Logits
from ratchet_trainer.export.probe import Probe, logits_of


def convert(merged: Path, folder: Path) -> None:
    """Writes `folder`, in the precision of the merged one. Raises UserError for a model that mlx-lm does not know."""
    with _mlx_lm() as library, contextlib.redirect_stdout(io.StringIO()):
        try:
            library.convert(str(merged), mlx_path=str(folder))
        except ValueError as error:
            text = (str(error).strip() or "no reason given").splitlines()[0]
            raise UserError(f"mlx: mlx-lm cannot convert this model ({text}): take mlx out of export.formats") from None
    # A card of its own, which names a folder of this pod as the base.
    (folder / "README.md").unlink(missing_ok=True)


def logits(folder: Path, probe: Probe) -> Logits:
    """What MLX says when it has loaded the folder. Raises ExportDiffers when it tokenizes differently."""
    import mlx.core as mx

    with _mlx_lm() as library:
        model, tokenizer = library.load(str(folder))
    probe.check_tokens(lambda text: list(tokenizer.encode(text, add_special_tokens=False)), "mlx")

    def forward(ids: list[int]) -> Logits:
        return np.array(model(mx.array([ids]))[0].astype(mx.float32))

    return logits_of(forward, probe.sequences)


@contextlib.contextmanager
def _mlx_lm() -> Any:
    try:
        import mlx_lm
    except ImportError as error:
        raise UserError(
            f"mlx: MLX does not run on this machine ({error}): it has builds for Linux and macOS only; take mlx out of "
            "export.formats, or give the export a node of another platform"
        ) from None
    yield mlx_lm
