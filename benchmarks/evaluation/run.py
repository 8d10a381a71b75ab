"""Our evaluation beside a loop that asks one case after the other: `python benchmarks/evaluation/run.py`.

Each side is a process of its own, in which two adapters of SmolLM2-135M-Instruct answer the same cases; sides take
turns. Writes results.json and README.md beside this file; ends with 1 when the target is missed.
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

import torch

from ratchet_api.training import Hyperparameters
from ratchet_cli.people.house import held_out_cases
from ratchet_local.model import smollm2
from ratchet_trainer.loading import load_model, quiet_libraries, use_threads
from ratchet_trainer.train.loop import add_lora

HERE = Path(__file__).resolve().parent
SIDES = ("ours", "loop")
TARGET = 5.0
"""At least so many times as fast as the loop."""
NUDGE = 0.002
"""Standard deviation of the adapters' B: two models that differ from the base and still talk sense."""


def main() -> int:
    """Measures, judges and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=32, help="longest answer")
    parser.add_argument("--batch", type=int, default=32, help="answers at once; 32 is the default of batchSize")
    options = parser.parse_args()
    quiet_libraries()
    prompts = [case.prompt for case in held_out_cases(1, 20)][: options.cases]
    rounds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        settings = {
            "model": str(smollm2()), "adapters": _adapters(Path(scratch)), "prompts": prompts, "tokens": options.tokens,
            "batch": options.batch, "threads": use_threads(),
        }  # fmt: skip
        file = Path(scratch) / "settings.json"
        file.write_text(json.dumps(settings))
        load = os.getloadavg()[0]
        for number in range(options.rounds):
            order = SIDES if number % 2 == 0 else SIDES[::-1]
            rounds.append(_round({side: _measured(side, file) for side in order}))
            print(f"round {number + 1}: {rounds[-1]}", flush=True)
    results = {
        "cases": len(prompts), "tokens": options.tokens, "batch": options.batch, "threads": settings["threads"],
        "load": load, "rounds": rounds,
    }  # fmt: skip
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (HERE / "README.md").write_text(_page(results))
    return 0 if statistics.median(_ratios(rounds)) >= TARGET else 1


def _adapters(scratch: Path) -> dict[str, str]:
    folders = {}
    for seed, name in enumerate(("champion", "candidate")):
        model = add_lora(load_model(smollm2(), "smollm2", torch.device("cpu"), torch.float32), Hyperparameters())
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter, weight in model.named_parameters():
                if "lora_B" in parameter:
                    weight.copy_(torch.randn(weight.shape, generator=generator) * NUDGE)
        model.save_pretrained(scratch / name)
        folders[name] = str(scratch / name)
    return folders


def _measured(side: str, settings: Path) -> dict[str, Any]:
    ran = subprocess.run(
        [sys.executable, str(HERE / "side.py"), side, str(settings)], check=True, stdout=subprocess.PIPE, text=True
    )
    measured: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return measured


def _round(measured: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Numbers of one round, and the share of answers that are the same to the last letter."""
    answers = {side: [text for said in m["answers"].values() for text in said] for side, m in measured.items()}
    same = sum(a == b for a, b in zip(answers["ours"], answers["loop"], strict=True)) / len(answers["ours"])
    numbers = {side: {"seconds": round(m["seconds"], 1), "peakMiB": m["peakMiB"]} for side, m in measured.items()}
    return numbers | {"same": round(same, 4)}


def _ratios(rounds: list[dict[str, Any]]) -> list[float]:
    return [r["loop"]["seconds"] / r["ours"]["seconds"] for r in rounds]


def _spread(values: list[float], digits: int) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def _page(results: dict[str, Any]) -> str:
    rounds = results["rounds"]
    rows = "\n".join(
        f"| {title} | {_spread([r[side]['seconds'] for r in rounds], 0)} | "
        f"{_spread([r[side]['peakMiB'] for r in rounds], 0)} |"
        for side, title in (("ours", "Ratchet's stage"), ("loop", "one by one"))
    )
    return f"""# Evaluation, beside a loop that asks one case after the other

`python benchmarks/evaluation/run.py` lets two adapters of SmolLM2-135M-Instruct (champion and candidate) answer the
same {results["cases"]} cases greedily in fp32, at most {results["tokens"]} tokens each. Ratchet's side is the stage's
own code: one loaded base, {results["batch"]} answers at once. The other loads the base with each adapter and calls
`generate` for one case after the other. Imports and loading are part of the time.

| | seconds | peak MiB |
|---|---|---|
{rows}

**{_spread(_ratios(rounds), 1)} times as fast** (target: {TARGET:.0f}). Of the answers {
        100 * statistics.median(r["same"] for r in rounds):.1f} % are the same to the last letter; where two tokens are
almost equally likely, sums in another order may choose the other one.

Median (minimum-maximum) of {len(rounds)} rounds that alternate the sides; {results["threads"]} threads of
{platform.processor() or platform.machine()}, torch {torch.__version__}, load average before the run {
        results["load"]:.1f}.
"""


if __name__ == "__main__":
    sys.exit(main())
