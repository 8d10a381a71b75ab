"""Answers on a CPU with and without weights laid out for oneDNN: `python benchmarks/generation/run.py`.

Both sides are the engine that evaluates and serves, on SmolLM2-135M-Instruct in fp32 and with the same prompts; rounds
alternate. Writes results.json and README.md beside this file.
"""

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from ratchet_cli.people.house import held_out_cases
from ratchet_local.model import smollm2
from ratchet_trainer.chat import Message, prompt_ids, stop_ids
from ratchet_trainer.frozen import freeze_linears
from ratchet_trainer.generation.batch import answer_all
from ratchet_trainer.loading import load_model, load_tokenizer, quiet_libraries, use_threads

HERE = Path(__file__).resolve().parent
BATCHES = (8, 32)
TOKENS = 28


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=32, help="prompts of one measurement")
    options = parser.parse_args()
    quiet_libraries()
    threads = use_threads()
    folder = smollm2()
    tokenizer = load_tokenizer(folder, "smollm2")
    cases = held_out_cases(1, 12)[: options.prompts]
    prompts = [prompt_ids(tokenizer, [Message(role="user", content=case.prompt)]) for case in cases]
    device = torch.device("cpu")
    sides: dict[str, Any] = {name: load_model(folder, "smollm2", device, torch.float32) for name in ("plain", "frozen")}
    freeze_linears(sides["frozen"])
    stops = stop_ids(tokenizer, sides["plain"].generation_config)

    def rate(side: str, batch: int) -> float:
        counted = 0

        def progress(done: int, tokens: int) -> None:
            nonlocal counted
            counted = tokens

        began = time.perf_counter()
        answer_all(sides[side], tokenizer, stops, prompts, TOKENS, batch, progress)
        return counted / (time.perf_counter() - began)

    for side in sides:
        rate(side, max(BATCHES))
    load = os.getloadavg()[0]
    results = []
    for batch in BATCHES:
        rounds = [{side: rate(side, batch) for side in sides} for _ in range(options.rounds)]
        results.append({"batch": batch, "rounds": rounds})
        print(f"batch {batch}: {_spread([r['frozen'] / r['plain'] for r in rounds], 2)} times as fast", flush=True)
    (HERE / "results.json").write_text(json.dumps({"threads": threads, "load": load, "results": results}, indent=1))
    (HERE / "README.md").write_text(_page(results, len(prompts), threads, load))


def _spread(values: list[float], digits: int) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def _page(results: list[dict[str, Any]], prompts: int, threads: int, load: float) -> str:
    rows = "\n".join(
        f"| {r['batch']} | {_spread([x['plain'] for x in r['rounds']], 0)} | "
        f"{_spread([x['frozen'] for x in r['rounds']], 0)} | "
        f"{_spread([x['frozen'] / x['plain'] for x in r['rounds']], 2)} |"
        for r in results
    )
    return f"""# Answers on a CPU, with and without weights laid out for oneDNN

`python benchmarks/generation/run.py` lets the engine that evaluates and serves answer the same {prompts} prompts by
SmolLM2-135M-Instruct in fp32, at most {TOKENS} tokens each, with torch's own linear layers and with those of
`ratchet_trainer/frozen.py`.

| answers at once | plain, tokens/s | laid out, tokens/s | ratio |
|---|---|---|---|
{rows}

Median (minimum-maximum) of {len(results[0]["rounds"])} rounds that alternate the sides; {threads} threads of
{platform.processor() or platform.machine()}, torch {torch.__version__}, load average before the run {load:.1f}.
"""


if __name__ == "__main__":
    main()
