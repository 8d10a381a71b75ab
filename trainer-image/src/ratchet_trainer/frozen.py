"""Linear layers for answering on a CPU, with weights laid out once for oneDNN's kernels instead of anew at every call.

Room: trainer. Touches the model that it is given.

BLAS rearranges a weight matrix each time it multiplies with it. A frozen weight never changes, so that can be done
once; torch's compiler does the same when it freezes a model (`mkldnn._linear_pointwise` in torch._inductor). Answers
come 1.4 to 1.6 times as fast with batches of 8 to 64 (SmolLM2-135M, two Zen 4 cores). In training it gained nothing
that could be told from noise, so it is not used there.
"""

from typing import Any

import torch

_TYPICAL_TOKENS = 32
"""Tokens of a pass that the layout is chosen for; it serves any other number."""


class FrozenLinear(torch.nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
    """x [..., inputs] -> x W^T + b [..., outputs], without gradients."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self._bias = None if linear.bias is None else linear.bias.detach()
        self._weight: Any = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _TYPICAL_TOKENS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's output."""
        output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return output


def freeze_linears(model: torch.nn.Module) -> int:
    """Replaces the model's linear layers, but for those of LoRA matrices, where this machine has the kernels for them;
    gives back how many. GPUs and dtypes other than fp32 are left alone. Nothing may read or change these weights
    afterwards."""
    if not torch.backends.mkldnn.is_available():
        return 0
    found = [
        (parent, name, child)
        for path, parent in model.named_modules()
        for name, child in parent.named_children()
        if type(child) is torch.nn.Linear and ".lora_" not in path and _suits(child.weight)
    ]
    for parent, name, child in found:
        setattr(parent, name, FrozenLinear(child))
    return len(found)


def _suits(weight: torch.Tensor) -> bool:
    return bool(weight.device.type == "cpu" and weight.dtype == torch.float32)
