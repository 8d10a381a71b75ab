"""The end of the bake: by its evidence, within a bound."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratchet_api.cycle import Check
from ratchet_api.rollout import LONGEST_BAKE, Rollout
from ratchet_operator.domain import bake
from ratchet_operator.simulate.replay import generated
from ratchet_operator.simulate.traffic import SCENARIOS, Scraped, Traffic

from .support import NOW, after, baking, fails, look, outcome, passes, policy, unknown

SPEC = policy()
BAKE = SPEC.bake.total_seconds()
WEIGHTS = (25, 50, 75, 100)


def judged(seconds: float, difference: str, lower: str, verdict: str = "Pass") -> Check:
    """A look at a proportion with margin 0.05 and stable at 0.2."""
    make = {"Pass": passes, "Fail": fails}[verdict]
    figures = {"candidate": Decimal("0.2") + Decimal(difference), "stable": Decimal("0.2"), "limit": Decimal("0.05")}
    return make(after(seconds), lower=Decimal(lower), upper=Decimal("0.5"), **figures)


def leaning(seconds: float) -> Check:
    """Beyond the margin by the estimate, not by the interval."""
    return judged(seconds, "0.06", "0.01")


def test_it_goes_on_while_the_estimate_is_beyond_the_margin_and_says_so_once() -> None:
    first = look(baking(), SPEC, BAKE, leaning(BAKE))
    assert first.status.phase == "Baking"
    [event] = first.events
    assert (event.type, event.reason) == ("Normal", "Baking")
    assert "assistant-7 bakes on, for 5m at most: neither proven worse nor within" in event.message
    second = look(first.status, SPEC, BAKE + 10, leaning(BAKE + 10))
    assert (second.status.phase, second.events) == ("Baking", ())


def test_it_ends_when_the_estimate_is_back_within() -> None:
    status = look(baking(), SPEC, BAKE, leaning(BAKE)).status
    move = look(status, SPEC, BAKE + 10, judged(BAKE + 10, "0.05", "0.01"))
    assert outcome(move) == ("Promoted", "Promoted")
    assert move.status.decision is not None
    assert "never proven" not in move.status.decision.message


def test_proof_in_the_longer_bake_rolls_back() -> None:
    status = look(baking(), SPEC, BAKE, leaning(BAKE)).status
    move = look(status, SPEC, BAKE + 10, judged(BAKE + 10, "0.12", "0.051", "Fail"))
    assert (outcome(move), move.weight) == (("RolledBack", "CheckFailed"), 0)


def test_at_the_bound_a_version_proven_worse_is_rolled_back() -> None:
    end = LONGEST_BAKE * BAKE
    assert look(baking(), SPEC, end - 1, leaning(end - 1)).status.phase == "Baking"
    move = look(baking(), SPEC, end, leaning(end))
    assert (outcome(move), move.weight) == (("RolledBack", "CheckFailed"), 0)
    assert move.status.decision is not None
    assert move.status.decision.check == "feedback"
    assert "; proven worse than stable, by more than the limit" in move.status.decision.message


def test_at_the_bound_a_version_not_proven_worse_is_promoted_with_a_word() -> None:
    end = LONGEST_BAKE * BAKE
    move = look(baking(), SPEC, end, judged(end, "0.06", "0"))
    assert outcome(move) == ("Promoted", "Promoted")
    assert move.status.decision is not None
    assert move.status.decision.message.endswith(
        "; feedback: beyond the limit at the end of the bake, but not proven worse than stable"
    )


def test_an_old_look_does_not_roll_back_at_the_bound() -> None:
    status = baking(checks=[leaning(10)])
    assert look(status, SPEC, LONGEST_BAKE * BAKE).status.phase == "Baking"


@pytest.mark.parametrize("missing", ["candidate", "stable", "limit", "lower"])
def test_a_value_without_an_interval_leans_to_nothing(missing: str) -> None:
    check = leaning(BAKE).model_copy(update={missing: None})
    assert not check.leans_to_harm
    assert outcome(look(baking(), SPEC, BAKE, check)) == ("Promoted", "Promoted")


def test_a_dry_run_metric_prolongs_nothing() -> None:
    spec = policy(metrics=[*SPEC.metrics, SPEC.metrics[0].model_copy(update={"name": "tried", "dry_run": True})])
    tried = leaning(BAKE).model_copy(update={"name": "tried"})
    assert outcome(look(baking(), spec, BAKE, passes(after(BAKE)), tried)) == ("Promoted", "Promoted")


checks = st.builds(
    lambda difference, lower, reason: (
        unknown(after(1), reason, passed_at=NOW) if reason else judged(1, str(difference), str(lower))
    ),
    st.decimals("-0.2", "0.8", places=3),
    st.decimals("-0.3", "0.05", places=3),
    st.sampled_from(["", "", "", "TooFewSamples", "NoData"]),
)


@given(st.lists(checks, max_size=4), st.integers(0, 4 * int(BAKE)))
def test_it_is_never_shorter_nor_longer_than_said(found: list[Check], seconds: int) -> None:
    ends = bake.may_end(baking(), SPEC, found, after(seconds))
    blind = any(check.reason == "NoData" for check in found)
    if seconds < BAKE or blind:
        assert not ends
    elif seconds >= LONGEST_BAKE * BAKE or not any(check.leans_to_harm for check in found):
        assert ends
    else:
        assert not ends


def sparse(scenario: str, seed: int) -> tuple[str, float]:
    """(outcome, minutes at full weight) of a rollout at two requests a second."""
    steps = [{"weight": weight, "minTime": "10s" if weight < 100 else "0s"} for weight in WEIGHTS]
    metric = {"name": "errors", "preset": "errors", "margin": "0.02"}
    spec = Rollout.model_validate({"interval": "10s", "window": "30s", "steps": steps, "metrics": [metric]})
    source = Scraped(Traffic(SCENARIOS[scenario], f"{scenario} {seed}", WEIGHTS), "errors")
    line = generated(spec, source, 8400, skim=True, record=False)
    full = next((at for at, weight in line.weights if weight == 100), line.ended_at)
    assert line.ended_at is not None
    assert full is not None
    return line.outcome, (line.ended_at - full) / 60


@pytest.mark.parametrize("seed", [13, 45, 47])
def test_a_sparse_regression_is_caught_after_the_time_of_the_bake(seed: int) -> None:
    """Of the first sixty seeds, those that nothing was proven of within rollout.bake."""
    end, minutes = sparse("twice-sparse", seed)
    assert end == "RolledBack"
    assert minutes > 30


def test_equal_versions_with_sparse_traffic_are_promoted_at_the_end_of_the_bake() -> None:
    ends = [sparse("equal-sparse", seed) for seed in range(6)]
    assert [end for end, _ in ends] == ["Promoted"] * 6
    assert all(minutes < 32 for _, minutes in ends)
