"""What TRL's DPOTrainer and KTOTrainer make of two tiny models: run with a Python that has trl 1.16, it writes
preferences_by_trl.json beside itself, which test_preferences.py holds our losses against.

    PYTHON_WITH_TRL tests/trainer/preferences_by_trl.py

Weights, adapter and token ids are given by formulas, so that both sides have the same without a file.
"""

import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

EXPECTED = Path(__file__).with_suffix(".json")
VOCABULARY = 61
ADAPTER = -0.2
"""Scale of its weights: one with which the KL estimate of two of the shapes is above 0, where it counts."""
SHAPES = ("llama", "qwen2", "qwen3")
PAIRS = [
    {
        "prompt_ids": [3 + (7 * i + j) % 50 for j in range(2 + i % 4)],
        "chosen_ids": [3 + (11 * i + 3 * j) % 50 for j in range(1 + (5 * i) % 6)] + [2],
        "rejected_ids": [3 + (13 * i + 5 * j) % 50 for j in range(2 + (3 * i) % 5)] + [2],
    }
    for i in range(6)
]
"""Of several lengths."""
JUDGED = [
    {"prompt_ids": pair["prompt_ids"], "completion_ids": pair["chosen_ids" if i % 3 else "rejected_ids"],
     "label": bool(i % 3)}
    for i, pair in enumerate(PAIRS)
]  # fmt: skip
DPO: list[dict[str, float]] = [{"beta": 0.1}, {"beta": 0.5, "rpo_alpha": 0.7}]
KTO: list[dict[str, float]] = [{"beta": 0.1}, {"beta": 0.4, "desirable_weight": 1.5, "undesirable_weight": 0.5}]


def model(shape: str) -> Any:
    """A model of about 10,000 parameters; its adapter, once there is one, wants `fill` too."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

    sizes = {
        "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 2, "tie_word_embeddings": True,
    }  # fmt: skip
    made: Any
    match shape:
        case "llama":
            made = LlamaForCausalLM(LlamaConfig(**sizes))
        case "qwen2":
            made = Qwen2ForCausalLM(Qwen2Config(**sizes))
        case _:
            made = Qwen3ForCausalLM(Qwen3Config(**sizes, head_dim=4))
    fill(made, 0.5)
    return made


def fill(module: Any, scale: float, only: str = "") -> None:
    """Weights by a formula: norms around one, everything else around zero."""
    with torch.no_grad():
        for number, (name, weight) in enumerate(sorted(module.named_parameters())):
            if only in name:
                wave = scale * torch.sin(
                    torch.arange(weight.numel(), dtype=torch.float64) * (1.7 + 0.1 * number) + number
                )
                weight.copy_((wave + 1 if "norm" in name else wave).view_as(weight))


def lora() -> Any:
    """The adapter of both sides."""
    from peft import LoraConfig

    return LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")


def gradient(module: Any) -> dict[str, float]:
    """Norm of the adapter's gradient, and its product with a fixed vector."""
    norm = along = 0.0
    for number, (_, weight) in enumerate(sorted(module.named_parameters())):
        if weight.grad is not None:
            flat = weight.grad.double().flatten()
            norm += float(flat @ flat)
            along += float(flat @ torch.cos(torch.arange(len(flat), dtype=torch.float64) + number))
    return {"norm": math.sqrt(norm), "along": along}


def tokenizer() -> Any:
    """One that the trainers want to have; the ids of the test never go through it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({f"t{i}": i for i in range(VOCABULARY)}, unk_token="t0"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="t1", eos_token="t2", pad_token="t2", unk_token="t0")


def by_trl(shape: str, method: str, settings: dict[str, float], folder: str) -> dict[str, Any]:
    """Loss, rewards and gradient of one batch."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

    common: dict[str, Any] = {
        "output_dir": folder, "use_cpu": True, "bf16": False, "report_to": "none", "gradient_checkpointing": False,
        "per_device_train_batch_size": len(PAIRS), "beta": settings["beta"],
    }  # fmt: skip
    trainer: Any
    if method == "dpo":
        alpha = settings.get("rpo_alpha")
        losses = {} if alpha is None else {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, alpha]}
        rows = Dataset.from_list([{"prompt": "t3", "chosen": "t4", "rejected": "t5"}] * 2)
        trainer = DPOTrainer(
            model(shape), args=DPOConfig(**common, **losses), train_dataset=rows, processing_class=tokenizer(),
            peft_config=lora(),
        )  # fmt: skip
    else:
        weights = {key: value for key, value in settings.items() if key != "beta"}
        rows = Dataset.from_list([{"prompt": "t3", "completion": "t4", "label": bool(i)} for i in range(2)])
        trainer = KTOTrainer(
            model(shape), args=KTOConfig(**common, **weights), train_dataset=rows, processing_class=tokenizer(),
            peft_config=lora(),
        )  # fmt: skip
    fill(trainer.model, ADAPTER, only="lora_")
    if method == "dpo":
        batch = trainer.data_collator(PAIRS)
    else:
        shifted = [JUDGED[-1], *JUDGED[:-1]]
        batch = trainer.data_collator(
            [one | {"KL_completion_ids": other["completion_ids"]} for one, other in zip(JUDGED, shifted, strict=True)]
        )
    trainer.model.train()
    loss = trainer._compute_loss(trainer.model, batch, return_outputs=False)
    loss.backward()
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items() if values}
    said = {
        name.removeprefix("rewards/"): value for name, value in metrics.items() if "rewards/" in name or name == "kl"
    }
    return {"loss": float(loss), **said, "gradient": gradient(trainer.model)}


if __name__ == "__main__":
    import trl

    with tempfile.TemporaryDirectory() as folder:
        found = [
            {"shape": shape, "method": method, "settings": settings, **by_trl(shape, method, settings, folder)}
            for shape in SHAPES for method, all_settings in (("dpo", DPO), ("kto", KTO)) for settings in all_settings
        ]  # fmt: skip
    EXPECTED.write_text(json.dumps({"source": f"trl {trl.__version__}", "cases": found}, indent=1) + "\n")
    sys.stdout.write(f"{len(found)} cases\n")
