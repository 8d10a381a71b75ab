"""How many cases a paired comparison needs: said by the gate and drawn by the evaluation's report.

Room: api. Pure; touches nothing.
"""

import math
from statistics import NormalDist

POWER = 0.8
"""Chance to see a gain that the number of needed cases is reckoned for."""


def cases_needed(difference: float, discordant: float, confidence: float, power: float = POWER) -> int:
    """Cases for McNemar's one-sided test to see a gain of `difference` (> 0) when a share `discordant` of them changes.

    Connor 1987 (doi:10.2307/2531961), equation for paired proportions without continuity correction.
    """
    if not difference > 0:
        raise ValueError(f"a gain of {difference} cannot be seen with any number of cases")
    discordant = max(discordant, difference)
    z_error, z_power = NormalDist().inv_cdf(confidence), NormalDist().inv_cdf(power)
    root = z_error * math.sqrt(discordant) + z_power * math.sqrt(discordant - difference**2)
    return math.ceil((root / difference) ** 2)


def discordant_share(better: int, worse: int, cases: int) -> float:
    """Share of the cases that change, as the sample lets one expect it: two added cases, one of them discordant,
    because no discordant pair at all does not mean that there never is one."""
    return (better + worse + 1) / (cases + 2)
