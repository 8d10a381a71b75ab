"""Which precision a training runs in.

Room: trainer. Touches the model that it is given, briefly.

A CPU without bf16 arithmetic emulates it several times slower although torch reports support, so flags are not
believed: two steps of each are timed. bf16 has to win clearly, because it also costs accuracy, and because a choice
that hangs on noise would make equal runs unequal.
"""

import logging
import time
from collections.abc import Sequence
from typing import Any

import torch

from ratchet_api.data import Precision
from ratchet_trainer.errors import UserError
from ratchet_trainer.train.encode import Example
from ratchet_trainer.train.loop import Forward, batch_loss
from ratchet_trainer.train.packing import pack

CLEAR_WIN = 0.6
"""bf16 is taken on a CPU when it needs less than this share of fp32's time."""

log = logging.getLogger("ratchet")


def choose(wanted: Precision, model: Any, examples: Sequence[Example], device: torch.device, micro_batch: int) -> str:
    """`fp32` or `bf16`. Raises UserError when bf16 is asked for on a GPU that has none."""
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        if wanted == "bf16" and not has_bf16:
            raise UserError('training.hyperparameters.precision: this GPU has no bf16; write "fp32" or "auto"')
        return "bf16" if has_bf16 and wanted != "fp32" else "fp32"
    if wanted != "auto":
        return wanted
    sample = list(examples[: min(micro_batch, 4)])
    slow = _seconds(model, sample, Forward(device, packed=False))
    fast = _seconds(model, sample, Forward(device, packed=False, autocast=torch.bfloat16))
    log.info("precision: fp32 %.2f s, bf16 %.2f s for %d example(s)", slow, fast, len(sample))
    return "bf16" if fast < CLEAR_WIN * slow else "fp32"


def _seconds(model: Any, examples: Sequence[Example], forward: Forward) -> float:
    """Best of two forward and backward passes, after one that warms up. Gradients are thrown away."""
    best = float("inf")
    model.train()
    with torch.random.fork_rng(devices=[]):
        for attempt in range(3):
            started = time.perf_counter()
            for example in examples:
                with forward.context():
                    loss = batch_loss(model, pack([example]).to(forward.device))
                loss.backward()
            if attempt:
                best = min(best, time.perf_counter() - started)
            model.zero_grad(set_to_none=True)
    return best
