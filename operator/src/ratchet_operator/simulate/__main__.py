"""`python -m ratchet_operator.simulate`, which `ratchet simulate` starts: what a cycle's rollout would have done.

Room: operator/simulate. Parses arguments, reads the files, prints.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ratchet_api.base import parse_duration
from ratchet_api.cycle import ImprovementCycleSpec
from ratchet_api.rollout import Rollout
from ratchet_operator.domain import ab_test, queries
from ratchet_operator.domain.analysis import kind_of
from ratchet_operator.simulate import drawing
from ratchet_operator.simulate.recording import BadRecording, Recorded, read
from ratchet_operator.simulate.replay import Replay, Timeline
from ratchet_operator.simulate.traffic import SCENARIOS, Scraped, Traffic

_EXAMPLES = """examples:
  ratchet simulate -f cycle.yaml                                  an equal candidate under this cycle's rollout
  ratchet simulate -f cycle.yaml --scenario half --seed 7         half of its requests begin to fail after 15 s
  ratchet simulate -f cycle.yaml --scenario twice-the-margin --rollouts 200     how often, and how soon, it is caught
  ratchet simulate -f cycle.yaml --recording scrapes.jsonl        what was scraped once, under another rollout
  ratchet simulate -f cycle.yaml --recording dump.json --candidate assistant-7 --stable assistant-6 --html plot.html

recordings: JSON lines (or a .csv with the same columns) of what was scraped of one arm, counters cumulative:
  {"at": 1795348800, "arm": "candidate", "metric": "errors", "bad": 3, "all": 1210}
  {"at": 1795348800, "arm": "stable", "metric": "p95", "value": 1.21, "samples": 4000}
or an answer of Prometheus' /api/v1/query_range to ratchet_gateway_requests_total or ratchet_gateway_feedback_total.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    scenarios = "\n".join(f"  {name:<18}{scenario.title}" for name, scenario in SCENARIOS.items())
    root = argparse.ArgumentParser(
        prog="ratchet simulate",
        description="Plays a rollout on a simulated clock, decided by the operator's own code under a cycle's spec.",
        epilog=f"scenarios:\n{scenarios}\n\n{_EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root.add_argument("-f", "--file", type=Path, required=True, metavar="FILE", help="a cycle's manifest")
    what = root.add_mutually_exclusive_group()
    what.add_argument(
        "--scenario", choices=SCENARIOS, default="equal", metavar="NAME", help="generated traffic; see below"
    )
    what.add_argument("--recording", type=Path, metavar="FILE", help="figures that were scraped once")
    root.add_argument(
        "--candidate", default="candidate", metavar="VERSION", help="a dump's version that is the candidate"
    )
    root.add_argument("--stable", default="stable", metavar="VERSION", help="a dump's version that is stable")
    root.add_argument("--metric", metavar="NAME", help="the metric that a scenario's bad events belong to (errors)")
    root.add_argument("--rate", type=float, metavar="N", help="a scenario's requests a second (100, or its own)")
    root.add_argument("--seed", default="0", help="a scenario's seed (0)")
    root.add_argument("--rollouts", type=int, default=1, metavar="N", help="so many seeds, and only how they ended")
    root.add_argument("--horizon", default="24h", metavar="TIME", help="longest time simulated (24h)")
    root.add_argument("-o", "--output", choices=("text", "json"), default="text")
    root.add_argument("--every", action="store_true", help="text: every look, not only changes")
    root.add_argument("--html", type=Path, metavar="FILE", help="also write a page with a plot")
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0: simulated; 2: the arguments or files cannot be used, and stderr says why."""
    arguments = parser().parse_args(argv)
    try:
        spec = policy(arguments.file)
        horizon = parse_duration(arguments.horizon).total_seconds()  # type: ignore[attr-defined]
        if arguments.rollouts > 1 and arguments.recording is None:
            _many(arguments, spec, horizon)
            return 0
        line, title = _one(arguments, spec, horizon)
    except (BadRecording, ValueError) as error:
        print(f"ratchet simulate: {error}", file=sys.stderr)
        return 2
    if arguments.html is not None:
        arguments.html.write_text(drawing.page(line, title), encoding="utf-8")
    print(json.dumps(drawing.document(line), indent=1) if arguments.output == "json" else
          f"{title}\n\n{drawing.text(line, arguments.every)}")  # fmt: skip
    return 0


def policy(path: Path) -> Rollout:
    """spec.rollout of the first cycle in a manifest. Raises ValueError (a sentence)."""
    try:
        documents: list[Any] = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"--file: {path} cannot be read ({error}): name a cycle's manifest") from None
    found = next((d for d in documents if isinstance(d, dict) and d.get("kind") == "ImprovementCycle"), None)
    if found is None:
        raise ValueError(f"--file: {path} holds no ImprovementCycle")
    try:
        spec = ImprovementCycleSpec.model_validate(found.get("spec") or {}).rollout
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"--file: {path}: spec.{where}: {first['msg']}") from None
    queries.check_queries(spec)
    return spec


def _one(arguments: argparse.Namespace, spec: Rollout, horizon: float) -> tuple[Timeline, str]:
    if arguments.recording is None:
        spec, source = _generated(arguments, spec, arguments.seed)
        title = f"{arguments.scenario}: {SCENARIOS[arguments.scenario].title}; seed {arguments.seed}"
        return Replay(spec, source).run(horizon), title
    rows = read(arguments.recording, spec, arguments.candidate, arguments.stable)
    recorded = Recorded(rows)
    return Replay(spec, recorded).run(min(horizon, recorded.length)), f"recording {arguments.recording}"


def _many(arguments: argparse.Namespace, spec: Rollout, horizon: float) -> None:
    ends: Counter[str] = Counter()
    times: list[float] = []
    for number in range(arguments.rollouts):
        narrowed, source = _generated(arguments, spec, f"{arguments.seed} {number}")
        line = Replay(narrowed, source, skim=True, record=False).run(horizon)
        ends[line.outcome] += 1
        if line.outcome == "RolledBack":
            times.append(line.weights[-1][0] - (source.regressed_at() or 0.0))
    times.sort()
    median, late = (times[int(q * (len(times) - 1))] if times else None for q in (0.5, 0.95))
    summary = {"rollouts": arguments.rollouts, "outcomes": dict(ends), "secondsToZero": {"median": median, "p95": late}}
    if arguments.output == "json":
        print(json.dumps(summary, indent=1))
        return
    print(f"{arguments.rollouts} rollouts, {SCENARIOS[arguments.scenario].title}")
    for outcome, count in ends.most_common():
        print(f"  {outcome:<11} {count:>6}  {100 * count / arguments.rollouts:.2f} %")
    if times:
        print(f"  seconds from the first worse session to weight 0: median {median:.0f}, p95 {late:.0f}")


def _generated(arguments: argparse.Namespace, spec: Rollout, seed: str) -> tuple[Rollout, Scraped]:
    """The spec with the one metric that the scenario speaks of (and an outcome of it), and its traffic."""
    proportions = {metric.name: metric for metric in spec.metrics if kind_of(metric) == "proportion"}
    errors = next((name for name, metric in proportions.items() if metric.preset == "errors"), None)
    wanted = arguments.metric or errors or next(iter(proportions), "")
    metric = proportions.get(wanted)
    if metric is None:
        raise ValueError(f"--metric: {wanted!r} is no proportion of rollout.metrics, and scenarios speak of one")
    update: dict[str, Any] = {"metrics": [metric.model_copy(update={"dry_run": False})]}
    if spec.strategy == "abTest":
        test = ab_test.test_of(spec)
        outcome = test.outcome.model_copy(update={"metric": metric.name, "good": None, "all": None})
        update["ab_test"] = test.model_copy(update={"outcome": outcome})
    scenario = SCENARIOS[arguments.scenario]
    if arguments.rate is not None:
        scenario = replace(scenario, rate=arguments.rate)
    weights = [ab_test.test_of(spec).weight] if spec.strategy == "abTest" else [step.weight for step in spec.steps]
    return spec.model_copy(update=update), Scraped(
        Traffic(scenario, f"{arguments.scenario} {seed}", weights), metric.name
    )


if __name__ == "__main__":
    sys.exit(main())
