"""One training in a process of its own: `python side.py NAME SETTINGS.json`; prints its numbers as one JSON line.

Every side trains the same rows for one epoch with the same LoRA, learning rate and batch, in fp32, and saves its
adapter. The clock runs over the training loop, without loading. ours: this project's loop. hf: transformers' Trainer
with a padding collator and peft. trl: TRL's SFTTrainer with packing and without gradient checkpointing. llamafactory:
LLaMA-Factory as the guide's YAML has it. Loaded in the interpreter of the side that it runs.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", OMP_WAIT_POLICY="PASSIVE", TOKENIZERS_PARALLELISM="false", WANDB_DISABLED="true")
GENERATION_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}{% generation %}"
    "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""SmolLM2's own template with the marks that TRL's assistant_only_loss asks for."""


def main() -> None:
    name, settings = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    import torch

    torch.set_num_threads(settings["threads"])
    numbers = SIDES[name](settings)
    numbers["peakMiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print("\n" + json.dumps(numbers))


def ours(settings: dict) -> dict:
    import torch

    from ratchet_api.training import Hyperparameters
    from ratchet_trainer.chat import stop_ids
    from ratchet_trainer.dataset import read_rows
    from ratchet_trainer.loading import load_model, load_tokenizer, quiet_libraries
    from ratchet_trainer.train import encode, loop
    from ratchet_trainer.train.stage import _save

    quiet_libraries()
    base = Path(settings["model"])
    hyper = Hyperparameters.model_validate({
        "lora": {"rank": 8, "alpha": 16, "dropout": "0"}, "learningRate": settings["rate"], "epochs": 1,
        "microBatch": settings["micro"], "accumulation": settings["accumulation"], "precision": "fp32",
        "warmupRatio": "0.1",
    })  # fmt: skip
    tokenizer = load_tokenizer(base, "smollm2")
    model = load_model(base, "smollm2", torch.device("cpu"), torch.float32)
    stops = stop_ids(tokenizer, model.generation_config)
    rows = read_rows(Path(settings["rows"]), "rows")
    encoded = encode.encode_rows(tokenizer, rows, stops, hyper.cutoff, "smollm2")
    model = loop.add_lora(model, hyper)
    packed = loop.packs_exactly(model, encoded.examples, torch.device("cpu"))
    began = time.perf_counter()
    loop.run(model, encoded.examples, hyper, loop.Forward(torch.device("cpu"), packed), lambda _: None)
    seconds = time.perf_counter() - began
    _save(model, Path(settings["out"]), str(base))
    return {"seconds": seconds, "supervised": sum(example.targets for example in encoded.examples)}


class _Clock:
    """Seconds between begin and end of a Trainer's loop, and how many supervised tokens its loader gives."""

    def callback(self):
        from transformers import TrainerCallback

        clock = self

        class Callback(TrainerCallback):
            def on_train_begin(self, args, state, control, train_dataloader=None, **_):
                batches = list(train_dataloader)
                clock.supervised = sum(int((batch["labels"] != -100).sum()) for batch in batches)
                clock.began = time.perf_counter()

            def on_train_end(self, args, state, control, **_):
                clock.seconds = time.perf_counter() - clock.began

        return Callback()

    def numbers(self) -> dict:
        return {"seconds": self.seconds, "supervised": self.supervised}


def _arguments(settings: dict) -> dict:
    return {
        "output_dir": settings["out"] + "-trainer", "per_device_train_batch_size": settings["micro"],
        "gradient_accumulation_steps": settings["accumulation"], "num_train_epochs": 1, "max_grad_norm": 1.0,
        "learning_rate": float(settings["rate"]), "lr_scheduler_type": "cosine", "warmup_steps": settings["warmup"],
        "use_cpu": True,
        "save_strategy": "no", "logging_steps": 1000, "report_to": "none", "seed": 42, "bf16": False,
        "weight_decay": 0.0, "disable_tqdm": True,
    }  # fmt: skip


def _lora():
    from peft import LoraConfig

    return LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")


def _loaded(settings: dict):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    return tokenizer, AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32)


def hf(settings: dict) -> dict:
    from peft import get_peft_model
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    tokenizer, model = _loaded(settings)
    rows = [json.loads(line) for line in Path(settings["rows"]).read_text().splitlines()]
    encoded = [
        tokenizer.apply_chat_template(
            row["messages"], chat_template=GENERATION_TEMPLATE, return_dict=True, return_assistant_tokens_mask=True
        )
        for row in rows
    ]
    data = [
        {
            "input_ids": e["input_ids"],
            "attention_mask": e["attention_mask"],
            "labels": [i if m else -100 for i, m in zip(e["input_ids"], e["assistant_masks"], strict=True)],
        }
        for e in encoded
    ]
    clock = _Clock()
    wrapped = get_peft_model(model, _lora())
    collate = DataCollatorForSeq2Seq(tokenizer, padding=True)
    arguments = _arguments(settings)
    Trainer(
        wrapped, TrainingArguments(**arguments), train_dataset=data, data_collator=collate,
        callbacks=[clock.callback()],
    ).train()  # fmt: skip
    wrapped.save_pretrained(settings["out"])
    return clock.numbers()


def trl(settings: dict) -> dict:
    from datasets import load_dataset
    from trl import SFTConfig, SFTTrainer

    tokenizer, model = _loaded(settings)
    tokenizer.chat_template = GENERATION_TEMPLATE
    clock = _Clock()
    # A packed row holds many examples: as many tokens a step as the others have, as far as whole rows allow it.
    arguments = _arguments(settings) | {
        "packing": True, "max_length": settings["pack"]["tokens"], "assistant_only_loss": True,
        "gradient_checkpointing": False, "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": settings["pack"]["passes"],
    }  # fmt: skip
    trainer = SFTTrainer(
        model, SFTConfig(**arguments), train_dataset=load_dataset("json", data_files=settings["rows"], split="train"),
        processing_class=tokenizer, peft_config=_lora(), callbacks=[clock.callback()],
    )  # fmt: skip
    trainer.train()
    trainer.model.save_pretrained(settings["out"])
    return clock.numbers()


def llamafactory(settings: dict) -> dict:
    from llamafactory.train.tuner import run_exp

    folder = Path(settings["rows"]).parent
    columns = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    entry = {"file_name": Path(settings["rows"]).name, "formatting": "sharegpt", "columns": {"messages": "messages"}}
    (folder / "dataset_info.json").write_text(json.dumps({"rows": entry | {"tags": columns}}))
    clock = _Clock()
    arguments = _arguments(settings) | {
        "stage": "sft", "do_train": True, "finetuning_type": "lora", "lora_target": "all", "lora_rank": 8,
        "lora_alpha": 16, "lora_dropout": 0.0, "model_name_or_path": settings["model"], "template": "smollm2",
        "dataset": "rows", "dataset_dir": str(folder), "cutoff_len": 2048, "overwrite_output_dir": True,
        "output_dir": settings["out"], "overwrite_cache": True,
    }  # fmt: skip
    run_exp(arguments, callbacks=[clock.callback()])
    return clock.numbers()


SIDES = {"ours": ours, "hf": hf, "trl": trl, "llamafactory": llamafactory}

if __name__ == "__main__":
    main()
