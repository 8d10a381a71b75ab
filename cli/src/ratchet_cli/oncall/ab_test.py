"""An A/B test in words: estimate, interval, exposures, the rule that decided, and until when it goes on.

Room: cli. Pure.
"""

from datetime import datetime

from ratchet_api.ab_test import AbTest, AbTestStatus
from ratchet_api.cycle import RolloutStatus
from ratchet_api.rollout import Rollout
from ratchet_cli.oncall.words import ago, span

STYLES = {"Undecided": "cyan", "Better": "green", "NotWorse": "green", "Worse": "red", "Inconclusive": "yellow"}
_PROMOTES = {
    "Superior": "when it is proven better",
    "NonInferior": "when it is proven better, or at the end not worse by the margin",
}


def result(seen: AbTestStatus) -> str:
    """What was seen, and the rule that decided."""
    return f"{seen.message}; {seen.rule}" if seen.rule else seen.message


def ahead(rollout: RolloutStatus, spec: Rollout, now: datetime) -> str:
    """What a test that goes on waits for; empty when none does."""
    if spec.strategy != "abTest" or rollout.phase != "Canary" or rollout.weight >= 100:
        return ""
    test = spec.ab_test or AbTest()
    seen = rollout.ab_test
    if seen is not None and seen.verdict in ("Better", "NotWorse"):
        return "the bake follows as soon as all checks pass"
    left = rollout.step_since + test.max_duration - now
    end = (
        f"ends in {span(left)} at the latest"
        if left.total_seconds() > 0
        else (f"its time was over {ago(rollout.step_since + test.max_duration, now)}")
    )
    return f"a/b test, the bake follows {_PROMOTES[test.assurance]}; {end}"
