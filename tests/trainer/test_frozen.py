"""Linear layers laid out for answering: the same numbers, with and without adapters."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ratchet_api.training import Hyperparameters
from ratchet_trainer.frozen import FrozenLinear, freeze_linears
from ratchet_trainer.loading import load_adapters
from ratchet_trainer.train.loop import add_lora

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN here")
TOKENS = torch.arange(40).reshape(2, 20)


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        result: torch.Tensor = model(input_ids=TOKENS, use_cache=False).logits
    return result


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 33), (2, 300)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_gives_the_same(shape: tuple[int, int], bias: bool) -> None:
    torch.manual_seed(1)
    linear = torch.nn.Linear(24, 56, bias=bias)
    x = torch.randn(*shape, 24)
    with torch.inference_mode():
        assert torch.allclose(FrozenLinear(linear)(x), linear(x), atol=1e-5)


def test_a_model_gives_the_same(model: Any) -> None:
    before = logits(model)
    assert freeze_linears(model) == 2 * 7 + 1
    assert torch.allclose(logits(model), before, atol=1e-4)


def test_adapters_are_still_switched(model: Any, tmp_path: Path) -> None:
    bare = logits(model)
    adapted = add_lora(model, Hyperparameters())
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    with_adapter = logits(adapted.eval())
    adapted.save_pretrained(tmp_path)
    plain = adapted.unload()
    switch = load_adapters(plain, {"candidate": tmp_path})
    assert freeze_linears(plain) == 2 * 7 + 1
    with switch("candidate") as active:
        assert torch.allclose(logits(active), with_adapter, atol=1e-4)
    with switch("champion") as active:
        assert torch.allclose(logits(active), bare, atol=1e-4)
    assert not torch.allclose(bare, with_adapter, atol=1e-2)


def test_other_dtypes_are_left_alone(model: Any) -> None:
    assert freeze_linears(model.to(torch.bfloat16)) == 0
