"""Simulated gates, statistics and decision together: a tenth of what `benchmarks/gate/simulate.py` runs."""

import math
import random

import pytest
from benchmarks.gate.simulate import SCENARIOS, Scenario, accepted, series

from ratchet_trainer.evaluate.statistics import power

GATES = 1000


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
def test_gates_err_as_rarely_as_they_promise(scenario: Scenario) -> None:
    rate = accepted(scenario, GATES, seed=2)
    if scenario.wrong:
        # Three standard errors of a simulation whose truth is the limit.
        assert rate <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / GATES)
    elif not scenario.target.clusters:
        target = scenario.target
        assert rate == pytest.approx(power(target.cases, target.gain, target.discordant, 0.95), abs=0.05)
    else:
        assert rate > 0.3, "clusters cost power, but not all of it"


@pytest.mark.parametrize("versions", [1, 20])
def test_many_versions_on_one_suite_err_as_rarely_as_one(versions: int) -> None:
    """Each judged by a bound at the level that the ones before it left."""
    generator = random.Random(6)
    wrong = sum(series(versions, generator) for _ in range(GATES)) / GATES
    assert 0 < wrong <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / GATES)
