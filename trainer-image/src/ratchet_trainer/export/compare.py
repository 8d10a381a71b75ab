"""An exported model against what it was made from, by logits over the same tokens.

Room: trainer/export. Pure; arrays of shape (positions, vocabulary), float32.

Three figures, none of which depends on how large a model's logits are:

    error      ||E - A|| / ||A||, each position's mean taken away first: rounding, quantisation, a wrong conversion
    effect     <E - B, A - B> / ||A - B||^2: the share of the adapter that is in it. Rounding is not correlated with
               what the adapter does, so it is 1 for a coarse but right export, and 0 for one that lost the adapter
    agreement  share of the positions with the same most likely token

with E the export's logits, A those of base and adapter, B those of the bare base.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ratchet_api.export import ExportFormat
from ratchet_trainer.errors import ExportDiffers

Logits = np.ndarray[Any, np.dtype[np.float32]]

LARGEST_ERROR: dict[ExportFormat, float] = {
    "safetensors": 0.05, "gguf-f16": 0.05, "mlx": 0.1, "gguf-q8_0": 0.15, "gguf-q4_k_m": 0.6,
}  # fmt: skip
"""What a right export stays well below, whatever the model; see docs/export.md for what was measured."""
LEAST_EFFECT, LARGEST_EFFECT = 0.5, 1.5
NO_EFFECT = 1e-5
"""An adapter that changes the logits by less than this share does nothing that could be looked for."""


@dataclass(frozen=True)
class Said:
    """What base and adapter say, and what the bare base says, at the same positions."""

    adapter: Logits
    base: Logits


@dataclass(frozen=True)
class Comparison:
    """See this module's page."""

    error: float
    effect: float
    agreement: float


def compare(export: Logits, said: Said) -> Comparison:
    """The three figures. Raises ExportDiffers when the vocabularies differ or the export's logits are not finite."""
    if export.shape != said.adapter.shape:
        raise ExportDiffers(f"it has {export.shape[-1]} tokens instead of {said.adapter.shape[-1]}")
    if not np.isfinite(export).all():
        raise ExportDiffers("its logits are not finite")
    here, there, bare = _centred(export), _centred(said.adapter), _centred(said.base)
    size = float(np.linalg.norm(there)) or 1.0
    change = there - bare
    effect = 1.0
    if float(np.linalg.norm(change)) > NO_EFFECT * size:
        effect = float(np.vdot(here - bare, change) / np.vdot(change, change))
    same = float((export.argmax(-1) == said.adapter.argmax(-1)).mean())
    return Comparison(float(np.linalg.norm(here - there)) / size, effect, same)


def judge(form: ExportFormat, found: Comparison) -> None:
    """Raises ExportDiffers when it is another model than the one that was exported."""
    if found.error > LARGEST_ERROR[form]:
        raise ExportDiffers(
            f"{form}: loaded again, its logits are {found.error:.0%} off (at most {LARGEST_ERROR[form]:.0%} is this "
            "format's rounding), so it is not kept: take it out of export.formats"
        )
    if not LEAST_EFFECT <= found.effect <= LARGEST_EFFECT:
        raise ExportDiffers(
            f"{form}: loaded again, it shows {found.effect:.0%} of what the adapter does, so it is not kept: take a "
            "format of more bits"
        )


def _centred(logits: Logits) -> np.ndarray[Any, np.dtype[np.float64]]:
    wide = logits.astype(np.float64)
    centred: np.ndarray[Any, np.dtype[np.float64]] = wide - wide.mean(-1, keepdims=True)
    return centred
