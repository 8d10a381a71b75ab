"""A merged folder as GGUF: llama.cpp's converter for f16, its own quantisation for less.

Room: trainer/export. Touches the folders that it is given; starts the converter.
"""

import os
import subprocess
import sys
from pathlib import Path

from ratchet_trainer.errors import TryAgain, UserError
from ratchet_trainer.export import llamacpp
from ratchet_trainer.export.compare import Logits
from ratchet_trainer.export.llamacpp import QUANTISATIONS
from ratchet_trainer.export.probe import Probe, logits_of


def convert(merged: Path, target: Path, name: str) -> None:
    """Writes `target` in f16; harmless when it is there. Raises UserError for a model that llama.cpp does not know."""
    if target.is_file():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part")
    command = [sys.executable, "-m", "ratchet_trainer.export.convert", str(merged), str(part), name]
    done = subprocess.run(
        command, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
        last = lines[-1].strip() if lines else f"exit code {done.returncode}"
        if "No space left" in done.stderr:
            raise TryAgain("the scratch disk is full: give the export's pod more ephemeral storage")
        raise UserError(f"gguf: llama.cpp cannot convert this model ({last}): take gguf out of export.formats")
    part.rename(target)


def quantise(f16: Path, target: Path, form: str, threads: int) -> None:
    """Writes `target`, a quantisation of an f16 file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    llamacpp.quantise(f16, target, QUANTISATIONS[form], threads)


def logits(path: Path, probe: Probe, form: str, threads: int) -> Logits:
    """What llama.cpp says when it has loaded the file. Raises ExportDiffers when it tokenizes differently."""
    longest = max(len(ids) for ids, _ in probe.sequences)
    with llamacpp.Model(path, longest, threads) as model:
        probe.check_tokens(model.tokenize, form)
        return logits_of(model.logits, probe.sequences)
