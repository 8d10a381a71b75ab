"""Simulated gates: how often does a candidate pass that must not, and how often one that should?

    python -m benchmarks.gate.simulate [--gates 10000]      (from the repository's root; about two minutes)

Each gate draws a target suite and a guardrail suite, runs the trainer's statistics over them and asks the operator's
own decision. Clustered suites share a random effect per cluster, so that their cases rise and fall together. Wrong
acceptances must stay at or below 5 %; the power of unclustered suites must be what the report promises within 3 points.
"""

import argparse
import random
from dataclasses import dataclass
from decimal import Decimal
from functools import cache

from ratchet_api.evaluation import EvaluationPolicy
from ratchet_api.stage import Level
from ratchet_api.version import Look, SuiteResult
from ratchet_operator.domain import gate, spending
from ratchet_trainer.evaluate.statistics import Paired, compare, power

CONFIDENCE = 0.95
MARGIN = 0.05


@dataclass(frozen=True)
class Truth:
    """How a suite's cases come about."""

    cases: int
    gain: float
    """True difference of the scores, candidate - champion."""
    discordant: float
    """Share of the cases that change."""
    clusters: int = 0
    """0: each case stands for itself."""
    alike: float = 0.0
    """Share of the clusters whose cases all turn the same way."""


@dataclass(frozen=True)
class Scenario:
    """A gate's truth, and whether it may be passed."""

    name: str
    target: Truth
    guardrail: Truth
    wrong: bool
    """Accepting it is an error."""


GOOD, SAME = Truth(400, 0.25, 0.35), Truth(400, 0.0, 0.02)
SCENARIOS = (
    Scenario("target not better, 104 cases", Truth(104, 0.0, 0.2), SAME, True),
    Scenario("target not better, 30 cases, much change", Truth(30, 0.0, 0.6), SAME, True),
    Scenario("target not better, 20 clusters of 1 to 9", Truth(100, 0.0, 0.3, 20, 0.5), SAME, True),
    Scenario("target not better, 12 clusters, all alike", Truth(96, 0.0, 0.4, 12, 1.0), SAME, True),
    Scenario("target not better, 60 clusters, little change", Truth(180, 0.0, 0.06, 60, 0.8), SAME, True),
    Scenario("guardrail at its margin, 100 cases", GOOD, Truth(100, -MARGIN, 0.15), True),
    Scenario("guardrail at its margin, 200 cases, losses only", GOOD, Truth(200, -MARGIN, 0.05), True),
    Scenario("guardrail at its margin, 40 clusters", GOOD, Truth(200, -MARGIN, 0.2, 40, 0.6), True),
    Scenario("guardrail at its margin, 50 clusters, losses only", GOOD, Truth(250, -MARGIN, 0.06, 50, 1.0), True),
    Scenario("target +10 points, 104 cases", Truth(104, 0.1, 0.2), SAME, False),
    Scenario("target +15 points, 60 cases", Truth(60, 0.15, 0.3), SAME, False),
    Scenario("target +10 points, 40 clusters", Truth(200, 0.1, 0.3, 40, 0.5), SAME, False),
)


def main() -> None:
    """Runs all scenarios and prints a table; ends with 1 when a rate is not what it has to be."""
    parser = argparse.ArgumentParser(description="Simulated gates")
    parser.add_argument("--gates", type=int, default=10_000)
    gates = parser.parse_args().gates
    bad = 0
    for scenario in SCENARIOS:
        rate = accepted(scenario, gates, seed=1)
        promised = _promised(scenario)
        if scenario.wrong:
            fine, limit = rate <= 0.05, "at most 5 %"
        else:
            fine = promised is None or abs(rate - promised) <= 0.03
            limit = "" if promised is None else f"promised {100 * promised:.1f} %"
        bad += not fine
        print(f"{scenario.name:52s} accepted {100 * rate:5.1f} %  {limit:18s} {'' if fine else 'WRONG'}", flush=True)
    for versions in (1, 5, 20):
        generator = random.Random(f"series {versions}")
        rate = sum(series(versions, generator) for _ in range(gates)) / gates
        bad += rate > 0.05
        text = f"any of {versions} versions that are not better"
        print(
            f"{text:52s} accepted {100 * rate:5.1f} %  at most 5 %        {'' if rate <= 0.05 else 'WRONG'}", flush=True
        )
    raise SystemExit(bool(bad))


def accepted(scenario: Scenario, gates: int, seed: int) -> float:
    """Share of the simulated gates that accept."""
    generator = random.Random(f"{seed} {scenario.name}")
    return sum(_gate(scenario, generator) for _ in range(gates)) / gates


def _promised(scenario: Scenario) -> float | None:
    truth = scenario.target
    return None if truth.clusters else power(truth.cases, truth.gain, truth.discordant, CONFIDENCE)


_CASES = {"configMap": {"name": "suites", "key": "x"}}
_POLICY = EvaluationPolicy.model_validate(
    {
        "suites": [
            {"name": "target", "role": "target", "cases": _CASES},
            {"name": "general", "role": "guardrail", "cases": _CASES, "margin": str(MARGIN)},
        ],
        "minImprovement": "0",
        "confidence": str(CONFIDENCE),
    }
)


_WHOLE = Level(number=1, alpha=Decimal(1) - Decimal(str(CONFIDENCE)))
"""One single gate, with nothing kept for later ones."""


def _gate(scenario: Scenario, generator: random.Random) -> bool:
    results = []
    for name, role, truth in (("target", "target", scenario.target), ("general", "guardrail", scenario.guardrail)):
        found = draw(truth, generator)
        if role == "target" and found.lower_bound <= 0:
            return False  # as the gate would say, without the second suite
        results.append(_result(name, role, found, _WHOLE if role == "target" else None))
    return gate.decide(_POLICY, results).accepted


def draw(truth: Truth, generator: random.Random) -> Paired:
    """One suite's statistics."""
    up, down = (truth.discordant + truth.gain) / 2, (truth.discordant - truth.gain) / 2
    clusters = [generator.randrange(truth.clusters) if truth.clusters else index for index in range(truth.cases)]
    whole = {name: _change(up, down, generator) for name in set(clusters) if generator.random() < truth.alike}
    changes = [whole[name] if name in whole else _change(up, down, generator) for name in clusters]
    champion = [1.0 if change < 0 else 0.0 for change in changes]
    candidate = [1.0 if change > 0 else 0.0 for change in changes]
    return compare(champion, candidate, CONFIDENCE, clusters=clusters if truth.clusters else ())


@cache
def _counted(better: int, worse: int, level: Level) -> SuiteResult:
    champion = [0.0] * better + [1.0] * worse + [0.0] * (104 - better - worse)
    candidate = [1.0] * better + [0.0] * worse + [0.0] * (104 - better - worse)
    return _result("target", "target", compare(champion, candidate, 1 - float(level.alpha)), level)


def series(versions: int, generator: random.Random) -> bool:
    """Whether any of so many versions that are not better is wrongly proven, all judged by the same 104 cases."""
    looks: list[Look] = []
    for _ in range(versions):
        changes = [_change(0.1, 0.1, generator) for _ in range(104)]
        given = spending.level(Decimal(1) - Decimal(str(CONFIDENCE)), looks)
        found = _counted(changes.count(1), changes.count(-1), given)
        proven = spending.proven(found, given)
        if proven:
            return True
        looks = [Look(suite="target", digest="x", number=given.number, alpha=given.alpha, proven=proven)]
    return False


def _change(up: float, down: float, generator: random.Random) -> int:
    drawn = generator.random()
    return 1 if drawn < up else -1 if drawn < up + down else 0


def _result(name: str, role: str, found: Paired, level: Level | None = None) -> SuiteResult:
    def number(value: float) -> Decimal:
        return Decimal(repr(round(value, 6)))

    fields = {
        "name": name,
        "role": role,
        "cases": found.cases,
        "champion": number(found.champion),
        "candidate": number(found.candidate),
        "difference": number(found.difference),
        "lower_bound": number(found.lower_bound),
        "p_value": number(found.p_value),
        "better": found.better,
        "worse": found.worse,
        "look": None if level is None else level.number,
        "alpha": None if level is None else level.alpha,
    }
    return SuiteResult.model_validate(fields)


if __name__ == "__main__":
    main()
