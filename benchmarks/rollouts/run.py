"""10,000 seeded rollouts a row through the code that decides, beside Flagger's and Argo Rollouts' rules.

    python -m benchmarks.rollouts.run [--rollouts 10000] [--rows equal,half] [--out docs/simulated-rollouts.md]

(from the repository's root). Every system gets the very same sessions; what differs is which of them its weights send
to the candidate. Each chunk of seeds is appended to --state as it is done, under a digest of the code that made it, so
that an interrupted run goes on where it was; --rollouts 0 publishes what is there.
"""

import argparse
import hashlib
import json
import math
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.rollouts import peers

from ratchet_api.rollout import Rollout
from ratchet_operator.simulate.replay import generated
from ratchet_operator.simulate.traffic import SCENARIOS, Scenario, Scraped, Traffic

HORIZON, LONG = 1500.0, 8400.0
CHUNK = 100
"""Seeds between two checkpoints."""
RESULTS = Path(__file__).parent / "results.json"
SYSTEMS = ("Ratchet", "Flagger 1", "Flagger 3", "Argo 0", "Argo 2")


def policy(bake: str) -> Rollout:
    """Interval 10 s, window 30 s, steps 25/50/75/100 of an interval each, errors +2 points; else the defaults."""
    steps = [{"weight": w, "minTime": "10s" if w < 100 else "0s"} for w in peers.WEIGHTS]
    metric = {"name": "errors", "preset": "errors", "margin": "0.02"}
    document = {"interval": "10s", "window": "30s", "steps": steps, "bake": bake, "metrics": [metric]}
    return Rollout.model_validate(document)


@dataclass
class Tally:
    """One system's ends in a row."""

    outcomes: dict[str, int] = field(default_factory=dict)
    to_zero: list[float] = field(default_factory=list)
    """Seconds from the regression (or, without one, from the first weight) to weight 0."""
    rose: int = 0
    """Rollouts in which the weight rose right after a failed look."""

    def add(self, outcome: str, weights: list[tuple[float, int]], rose: bool, since: float | None) -> None:
        """One more rollout."""
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        self.rose += rose
        if outcome == "RolledBack":
            began = since if since is not None else next((at for at, weight in weights if weight > 0), 0.0)
            self.to_zero.append(weights[-1][0] - began)


def chunk(name: str, scenario: Scenario, seeds: range) -> dict[str, Tally]:
    """All systems over the same seeds."""
    sparse = scenario.rate < 10
    spec, horizon = policy("30m" if sparse else "5m"), LONG if sparse else HORIZON
    tallies = {system: Tally() for system in SYSTEMS}
    for seed in seeds:
        traffic = Traffic(scenario, f"{name} {seed}", peers.WEIGHTS)
        for system, tally in tallies.items():
            source = Scraped(traffic, "errors")
            if system == "Ratchet":
                line = generated(spec, source, horizon, skim=True, record=False)
                tally.add(line.outcome, line.weights, line.rose_failing, source.regressed_at())
                continue
            rule, _, limit = system.partition(" ")
            end = (peers.flagger if rule == "Flagger" else peers.argo)(source, int(limit), horizon)
            tally.add(end.outcome, end.weights, end.rose_failing, source.regressed_at())
    return tallies


def code(scenario: Scenario) -> str:
    """Digest of what makes a row: the modules that are loaded, the settings, the scenario."""
    names = sorted(name for name in sys.modules if name.startswith(("ratchet_operator.", "benchmarks.rollouts.peers")))
    files = [file for name in names if (file := sys.modules[name].__file__) is not None]
    parts = [Path(file).read_text() for file in files] + [repr(scenario), policy("5m").model_dump_json()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def row(name: str, scenario: Scenario, rollouts: int, state: Path | None = None) -> dict[str, Any]:
    """One row over the seeds from 0. `state`: the file of its checkpoints."""
    made_by, spent = code(scenario), 0.0
    done: dict[int, dict[str, Tally]] = {}
    for line in state.read_text().splitlines() if state is not None and state.exists() else ():
        kept = json.loads(line)
        if kept["code"] == made_by and kept["seeds"] == CHUNK:
            done[kept["first"]] = {system: Tally(**tally) for system, tally in kept["systems"].items()}
            spent += kept["cpuSeconds"]
    for first in range(0, rollouts, CHUNK):
        if first in done:
            continue
        began, seeds = time.process_time(), range(first, min(rollouts, first + CHUNK))
        done[first] = chunk(name, scenario, seeds)
        took = time.process_time() - began
        spent += took
        if state is not None:
            tallies = {system: asdict(tally) for system, tally in done[first].items()}
            kept = {"code": made_by, "first": first, "seeds": len(seeds), "cpuSeconds": took, "systems": tallies}
            with state.open("a") as file:
                file.write(json.dumps(kept) + "\n")
    return summed(name, scenario, list(done.values()), spent)


def summed(name: str, scenario: Scenario, chunks: list[dict[str, Tally]], spent: float) -> dict[str, Any]:
    """A row of its chunks, as results.json has it. `spent`: CPU seconds."""
    systems = {}
    for system in SYSTEMS:
        tallies = [tallies[system] for tallies in chunks]
        outcomes: Counter[str] = Counter()
        for tally in tallies:
            outcomes.update(tally.outcomes)
        times = [seconds for tally in tallies for seconds in tally.to_zero]
        systems[system] = {
            "outcomes": dict(outcomes),
            "rose": sum(tally.rose for tally in tallies),
            "median": quantile(times, 0.5),
            "p95": quantile(times, 0.95),
        }
    return {
        "name": name,
        "title": scenario.title,
        "rollouts": sum(sum(tallies[SYSTEMS[0]].outcomes.values()) for tallies in chunks),
        "regresses": scenario.worse > 0,
        "cpuSeconds": round(spent, 1),
        "systems": systems,
    }


def quantile(values: list[float], q: float) -> float | None:
    """The nearest-rank quantile."""
    return sorted(values)[max(0, math.ceil(q * len(values)) - 1)] if values else None


def wilson(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (Wilson 1927)."""
    p = hits / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def main() -> None:
    """Runs the rows asked for, and writes the page of all rows known."""
    parser = argparse.ArgumentParser(description="Simulated rollouts")
    parser.add_argument("--rollouts", type=int, default=10_000)
    parser.add_argument("--rows", default=",".join(SCENARIOS))
    parser.add_argument("--out", type=Path, default=Path("docs/simulated-rollouts.md"))
    parser.add_argument("--state", type=Path, default=Path(".ratchet/rollouts"), help="folder of the checkpoints")
    arguments = parser.parse_args()
    arguments.state.mkdir(parents=True, exist_ok=True)
    known = {r["name"]: r for r in json.loads(RESULTS.read_text())} if RESULTS.exists() else {}
    for name in filter(None, arguments.rows.split(",")):
        found = row(name, SCENARIOS[name], arguments.rollouts, arguments.state / f"{name}.jsonl")
        known[name] = found if found["rollouts"] else known[name]
        rows = [known[n] for n in SCENARIOS if n in known]
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
        arguments.out.write_text(page(rows))
        print(name, known[name]["cpuSeconds"], "s", known[name]["systems"]["Ratchet"], flush=True)
    arguments.out.write_text(page([known[n] for n in SCENARIOS if n in known]))


def page(rows: list[dict[str, Any]]) -> str:
    """The page as Markdown."""
    head = (Path(__file__).parent / "page.md").read_text()
    lines = ["| what happens | n | system | rolled back | [95 %] | promoted | neither | s to weight 0: median | p95 "
             "| rose on a failed look |", "|---|---:|---|---:|---|---:|---:|---:|---:|---:|"]  # fmt: skip
    for entry in rows:
        for index, (system, seen) in enumerate(entry["systems"].items()):
            n, outcomes = entry["rollouts"], seen["outcomes"]
            back, on = outcomes.get("RolledBack", 0), outcomes.get("Promoted", 0)
            low, high = wilson(back, n)
            times = [f"{seen[q]:.0f}" if seen[q] is not None else "" for q in ("median", "p95")]
            first = (entry["title"], str(n)) if index == 0 else ("", "")
            shares = [f"{100 * count / n:.2f} %" for count in (back, on, n - back - on)]
            cells = [*first, system, shares[0], f"{100 * low:.2f} - {100 * high:.2f}", *shares[1:], *times]
            cells.append(str(seen["rose"]))
            lines.append("| " + " | ".join(cells) + " |")
    return head + "\n" + "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
