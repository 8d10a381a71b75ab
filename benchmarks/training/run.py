"""Our training beside LLaMA-Factory, transformers' Trainer and TRL: `python benchmarks/training/run.py`.

Each side is a process of its own that trains SmolLM2-135M-Instruct (LoRA rank 8 on all linear layers, fp32, two CPU
threads) for one epoch on the same rows; sides take turns. Then this process asks each side's adapter for the loss on
rows that none has seen. LLaMA-Factory and TRL live in environments of their own, made here from their lock files.
Writes results.json and README.md beside this file; ends with 1 when a target is missed.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", OMP_WAIT_POLICY="PASSIVE", TOKENIZERS_PARALLELISM="false")
HERE = Path(__file__).resolve().parent
STATE = HERE.parent.parent / ".ratchet"
sys.path[:0] = [str(HERE)]

import material  # noqa: E402
import torch  # noqa: E402

from ratchet_local.model import smollm2  # noqa: E402
from ratchet_trainer.chat import Message, Row, render, stop_ids  # noqa: E402
from ratchet_trainer.loading import load_model, load_tokenizer, quiet_libraries, use_threads  # noqa: E402
from ratchet_trainer.train.encode import encode_rows  # noqa: E402
from ratchet_trainer.train.loop import batch_loss  # noqa: E402
from ratchet_trainer.train.packing import pack  # noqa: E402

SIDES = ("ours", "llamafactory", "hf", "trl")
TITLES = {
    "ours": "Ratchet", "llamafactory": "LLaMA-Factory 0.9.5", "hf": "transformers' Trainer",
    "trl": "TRL 1.16.0, packed",
}  # fmt: skip
TARGETS = {"llamafactory": 2.0, "hf": 1.5, "trl": 1.5}
"""At least so many times their supervised tokens a second."""
MEMORY = 0.7
"""At most this share of the Trainer's peak."""
SHORT = {"micro": 8, "accumulation": 1, "pack": {"tokens": 512, "passes": 1}}
SESSIONS = {"micro": 2, "accumulation": 4, "pack": {"tokens": 2048, "passes": 2}}
"""Eight rows a step in both; eight padded sessions at once, with the logits of all their tokens, do not fit into 16
GiB. `pack`: how many tokens TRL packs together, and how many packs make a step."""
SAME_LOSS = 0.05
"""Largest relative difference of the loss on unseen rows that is called the same, against the Trainer's."""


def main() -> int:
    """Measures, judges and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--short", type=int, default=128, help="single turns in the epoch")
    parser.add_argument("--sessions", type=int, default=32, help="sessions in the epoch")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    options = parser.parse_args()
    quiet_libraries()
    threads = use_threads()
    model = smollm2()
    tokenizer = load_tokenizer(model, "smollm2")
    loaded = load_model(model, "smollm2", torch.device("cpu"), torch.float32)
    stops = stop_ids(tokenizer, loaded.generation_config)
    pythons = {side: _python(side) for side in options.sides}

    def tokens(row: material.Row) -> int:
        messages = [Message.model_validate(message) for message in row["messages"]]
        return len(tokenizer(render(tokenizer, messages, answer_next=False), add_special_tokens=False)["input_ids"])

    loads = {
        "short rows": (material.short(options.short + 64, 1), options.short, SHORT),
        "sessions": (material.sessions(options.sessions + 8, 1, tokens), options.sessions, SESSIONS),
    }
    results = []
    for load, (rows, train, batch) in loads.items():
        aside = encode_rows(tokenizer, _rows(rows[train:]), stops, 2048, "smollm2").examples
        rounds: list[dict[str, Any]] = []
        for number in range(options.rounds):
            order = options.sides if number % 2 == 0 else options.sides[::-1]
            rounds.append({side: _measure(side, pythons[side], rows[:train], batch, threads, model) for side in order})
            answers = rounds[-1]["ours"]["supervised"]
            for side in options.sides:
                numbers = rounds[-1][side]
                numbers["rate"] = answers / numbers["seconds"]
                numbers["loss"] = _loss(loaded, numbers.pop("adapter"), aside)
                print(f"{load}, round {number + 1}, {side}: {numbers}", flush=True)
        lengths = sorted(tokens(row) for row in rows[:train])
        results.append({"load": load, "rows": train, "lengths": lengths, "rounds": rounds})
    numbers = {"threads": threads, "machine": platform.processor(), "results": results}
    (HERE / "results.json").write_text(json.dumps(numbers, indent=1) + "\n")
    page, missed = _page(numbers)
    (HERE / "README.md").write_text(page)
    print("\n".join(missed))
    return int(bool(missed))


def _rows(rows: list[material.Row]) -> list[Row]:
    return [Row.model_validate(row) for row in rows]


def _python(side: str) -> str:
    """The interpreter that has the side's packages; peers get an environment of their own."""
    lock = HERE / f"requirements-{side}.lock"
    if not lock.exists():
        return sys.executable
    place = STATE / f"bench-training-{side}"
    python = place / "bin" / "python"
    stamp = place / "lock"
    if not stamp.exists() or stamp.read_bytes() != lock.read_bytes():
        uv = [sys.executable, "-m", "uv"]
        subprocess.run([*uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(place)], check=True)
        install = ["pip", "install", "--quiet", "--require-hashes", "--python", str(python), "-r", str(lock)]
        subprocess.run([*uv, *install], check=True)
        stamp.write_bytes(lock.read_bytes())
    return str(python)


def _measure(
    side: str, python: str, rows: list[material.Row], batch: dict[str, Any], threads: int, model: Path
) -> dict[str, Any]:
    """Seconds, supervised tokens, peak MiB and the adapter's tensors of one training."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        material.write(folder / "rows.jsonl", rows)
        settings = {
            "model": str(model), "rows": str(folder / "rows.jsonl"), "out": str(folder / "adapter"), "rate": "0.001",
            "threads": threads, "warmup": -(-len(rows) // 80), **batch,
        }  # fmt: skip
        (folder / "settings.json").write_text(json.dumps(settings))
        command = [python, str(HERE / "side.py"), side, str(folder / "settings.json")]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
        numbers: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        from safetensors.torch import load_file

        return numbers | {"adapter": load_file(folder / "adapter" / "adapter_model.safetensors")}


def _loss(model: Any, adapter: dict[str, torch.Tensor], examples: list[Any]) -> float:
    """Mean loss per supervised token of the examples with the adapter merged in, and taken out again."""
    weights = dict(model.named_parameters())
    merged: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for name, down in adapter.items():
            if not name.endswith("lora_A.weight"):
                continue
            up = adapter[name.replace("lora_A", "lora_B")]
            target = name.removeprefix("base_model.model.").replace(".lora_A.weight", ".weight")
            merged[target] = weights[target].clone()
            weights[target] += 16 / 8 * (up.float() @ down.float())
        total = sum(float(batch_loss(model, pack([example]))) for example in examples)
        for target, before in merged.items():
            weights[target].copy_(before)
    return total / sum(example.targets for example in examples)


def _spread(values: list[float], digits: int) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def _page(numbers: dict[str, Any]) -> tuple[str, list[str]]:
    lines, missed = [], []
    for result in numbers["results"]:
        rounds, lengths = result["rounds"], result["lengths"]
        middle, last = lengths[len(lengths) // 2], lengths[-1]
        lines += [
            f"## {result['load'].capitalize()}: {result['rows']} rows, median {middle} tokens, longest {last}", "",
            "| side | supervised tokens/s | Ratchet is so many times as fast | peak MiB | loss on unseen rows |",
            "|---|---:|---:|---:|---:|",
        ]  # fmt: skip
        for side in rounds[0]:
            ratios = [r["ours"]["rate"] / r[side]["rate"] for r in rounds]
            target = TARGETS.get(side)
            if target is not None and statistics.median(ratios) < target:
                missed.append(f"{result['load']}: {statistics.median(ratios):.2f} times {side}, target {target}")
            peaks = [r[side]["peakMiB"] for r in rounds]
            lines.append(
                f"| {TITLES[side]} | {_spread([r[side]['rate'] for r in rounds], 1)} | "
                f"{'' if side == 'ours' else _spread(ratios, 2)} | {_spread(peaks, 0)} | "
                f"{_spread([r[side]['loss'] for r in rounds], 3)} |"
            )
        if "hf" in rounds[0]:
            share = statistics.median(r["ours"]["peakMiB"] / r["hf"]["peakMiB"] for r in rounds)
            loss = statistics.median(r["ours"]["loss"] / r["hf"]["loss"] - 1 for r in rounds)
            lines += ["", f"Peak memory {share:.2f} of the Trainer's; loss {loss:+.1%} of the Trainer's.", ""]
            if share > MEMORY:
                missed.append(f"{result['load']}: peak memory {share:.2f} of the Trainer's, target {MEMORY}")
            if loss > SAME_LOSS:
                missed.append(f"{result['load']}: loss {loss:+.1%} of the Trainer's, more than {SAME_LOSS:.0%}")
    return _HEAD.format(threads=numbers["threads"]) + "\n".join(lines) + "\n" + _TAIL.format(
        missed="".join(f"\n- {line}" for line in missed) or " nothing"
    ), missed


_HEAD = """# Training beside LLaMA-Factory, transformers' Trainer and TRL

`python benchmarks/training/run.py`. Median (lowest-highest) of the rounds, in which the sides take turns. SmolLM2-135M
-Instruct, LoRA rank 8 on every linear layer, fp32, {threads} CPU threads, batch 8, learning rate 0.001, one epoch. The
clock runs over the training loop; peak memory is the whole process's. LLaMA-Factory runs as the guide's YAML has it, so
with gradient checkpointing, its default; TRL packs and does not checkpoint. Supervised tokens are those of the answers
and of the marks that end them, the same for all sides: they train the same rows (LLaMA-Factory also learns the line
break after each answer, which does not count).

"""
_TAIL = """
Targets missed:{missed}
"""

if __name__ == "__main__":
    sys.exit(main())
