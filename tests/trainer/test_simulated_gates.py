"""Simulated gates, statistics and decision together: a tenth of what `benchmarks/gate/simulate.py` runs."""

import math

import pytest
from benchmarks.gate.simulate import SCENARIOS, Scenario, accepted

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
