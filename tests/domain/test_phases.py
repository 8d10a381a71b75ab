"""Phases and conditions, as people read them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratchet_api.conditions import Condition, find, is_true
from ratchet_api.cycle import RolloutDecision, RunStatus
from ratchet_api.reasons import ConditionType, Reason
from ratchet_operator.domain import rollout
from ratchet_operator.domain.phases import (
    CycleFacts,
    Remark,
    VersionFacts,
    cycle_conditions,
    cycle_phase,
    version_conditions,
    version_phase,
)

from .support import DIGEST, NOW, after, baking, canary, unknown

MISSING = Remark(Reason.MISSING_SECRET, "Secret storage does not exist: create it")
GPU = Remark(Reason.UNSCHEDULABLE, "0/1 nodes are available: insufficient nvidia.com/gpu")


def facts(**more: Any) -> CycleFacts:
    """assistant-6 serves with two pods."""
    return CycleFacts(**({"suspended": False, "champion": "assistant-6", "ready": 2, "replicas": 2} | more))


def run(stage: Any) -> RunStatus:
    """Run 4 at that stage."""
    return RunStatus(number=4, stage=stage, started_at=NOW)


def decided(phase: str, outcome: Any = "RolledBack", reason: str = "CheckFailed") -> Any:
    """A rollout with a decision."""
    decision = RolloutDecision(outcome=outcome, reason=reason, message="feedback: worse", at=NOW)
    return canary(0, phase=phase, decision=decision)


def brief(conditions: list[Condition]) -> dict[str, str]:
    """Type -> status and reason."""
    return {c.type: f"{c.status} {c.reason}" for c in conditions}


STARTING = rollout.begin("assistant-7", DIGEST, False, NOW)
HELD = canary(held_since=NOW, checks=[unknown(NOW)])


@pytest.mark.parametrize(
    ("seen", "phase", "ready", "reconciling", "stalled", "progressing"),
    [
        pytest.param(
            facts(champion=None, ready=0),
            "Initializing", "False Initializing", "True Initializing", "False", "False Idle", id="new",
        ),
        pytest.param(
            facts(ready=0),
            "Initializing", "False Initializing", "True Initializing", "False", "False Idle", id="first arm",
        ),
        pytest.param(facts(), "Idle", "True Idle", "False Idle", "False", "False Idle", id="idle"),
        pytest.param(
            facts(ready=0, champion=None, stalled=MISSING),
            "Stalled", "False Initializing", "False MissingSecret", "True MissingSecret", "False Idle", id="no secret",
        ),
        pytest.param(
            facts(ready=0, champion=None, waiting=GPU),
            "Initializing", "False Initializing", "True Unschedulable", "False", "False Idle", id="no GPU",
        ),
        pytest.param(
            facts(run=run("Training")),
            "Training", "True Idle", "True Training", "False", "False Idle", id="training",
        ),
        pytest.param(
            facts(run=run("Training"), stalled=MISSING),
            "Stalled", "True Idle", "False MissingSecret", "True MissingSecret", "False Idle", id="stalled, serving",
        ),
        pytest.param(
            facts(suspended=True), "Suspended", "True Idle", "False Suspended", "False", "False Idle", id="suspended",
        ),
        pytest.param(
            facts(ready=1), "Idle", "True StableDegraded", "False Idle", "False", "False Idle", id="one pod short",
        ),
        pytest.param(
            facts(ready=0, run=run("Done")),
            "Degraded", "False StableDegraded", "True StableDegraded", "False", "False Idle", id="champion down",
        ),
        pytest.param(
            facts(rollout=STARTING), "Starting", "True Canary", "True Canary", "False", "True Canary", id="starting",
        ),
        pytest.param(
            facts(rollout=canary()), "Canary", "True Canary", "True Canary", "False", "True Canary", id="canary",
        ),
        pytest.param(
            facts(rollout=HELD), "Held", "True Canary", "True Canary", "False", "False Held", id="held",
        ),
        pytest.param(
            facts(rollout=canary(), suspended=True),
            "Canary", "True Canary", "False Suspended", "False", "False Suspended", id="canary suspended",
        ),
        pytest.param(
            facts(rollout=baking()), "Baking", "True Baking", "True Baking", "False", "True Baking", id="baking",
        ),
        pytest.param(
            facts(rollout=decided("RollingBack"), suspended=True),
            "RollingBack", "True CheckFailed", "True CheckFailed", "False", "False CheckFailed", id="rolling back",
        ),
        pytest.param(
            facts(rollout=decided("Done")),
            "Idle", "True Idle", "False Idle", "False", "False CheckFailed", id="rolled back",
        ),
        pytest.param(
            facts(rollout=decided("Done", "Promoted", "Promoted")),
            "Idle", "True Idle", "False Idle", "False", "False Promoted", id="promoted",
        ),
    ],
)  # fmt: skip
def test_cycle(seen: CycleFacts, phase: str, ready: str, reconciling: str, stalled: str, progressing: str) -> None:
    conditions = cycle_conditions([], seen, 3, NOW)
    said = brief(conditions)
    assert cycle_phase(seen) == phase
    assert (said["Ready"], said["Reconciling"], said["RolloutProgressing"]) == (ready, reconciling, progressing)
    assert said["Stalled"].startswith(stalled)
    assert {c.observed_generation for c in conditions} == {3}


def test_the_message_names_the_fix() -> None:
    found = find(cycle_conditions([], facts(stalled=MISSING), 1, NOW), ConditionType.STALLED)
    assert found is not None
    assert found.message == "Secret storage does not exist: create it"


def test_held_says_what_is_missing() -> None:
    found = find(cycle_conditions([], facts(rollout=HELD), 1, NOW), ConditionType.PROGRESSING)
    assert found is not None
    assert found.message == "assistant-7 stays at 5 %: feedback: Unknown"
    lost = canary(held_since=NOW, unconfirmed_since=NOW)
    found = find(cycle_conditions([], facts(rollout=lost), 1, NOW), ConditionType.PROGRESSING)
    assert found is not None
    assert found.message == "assistant-7 stays at 5 %: the weight is not confirmed to be in force"


def test_nothing_is_written_at_rest() -> None:
    first = cycle_conditions([], facts(), 3, NOW)
    assert cycle_conditions(first, facts(), 3, after(3600)) == first


def test_transition_times_are_of_the_status() -> None:
    first = cycle_conditions([], facts(), 3, NOW)
    second = cycle_conditions(first, facts(run=run("Training")), 3, after(60))
    ready, reconciling = find(second, ConditionType.READY), find(second, ConditionType.RECONCILING)
    assert ready is not None
    assert reconciling is not None
    assert (ready.last_transition_time, reconciling.last_transition_time) == (NOW, after(60))


WHY = Remark(Reason.NOT_BETTER, "rules +0.0 points is not better")
MADE = Remark(Reason.SUCCEEDED, "loss 0.31")
PASSED = Remark(Reason.ACCEPTED, "rules +6.2 points")
BROKEN = Remark(Reason.DATA_ERROR, "no line can be read")
PROVEN = {"trained": MADE, "evaluated": MADE, "gate": PASSED, "accepted": True}


@pytest.mark.parametrize(
    ("seen", "phase", "ready", "working", "stalled", "accepted"),
    [
        pytest.param(VersionFacts(), "Pending", "False Pending", True, "False", "False Pending", id="new"),
        pytest.param(
            VersionFacts(stage="train"), "Training", "False Training", True, "False", "False Pending", id="training"
        ),
        pytest.param(
            VersionFacts(stage="train", waiting=GPU),
            "Training", "False Training", True, "False", "False Pending", id="no GPU",
        ),
        pytest.param(
            VersionFacts(stage="evaluate", trained=MADE),
            "Evaluating", "False Evaluating", True, "False", "False Pending", id="evaluating",
        ),
        pytest.param(
            VersionFacts(**PROVEN), "Accepted", "False Pending", True, "False", "True GatePassed", id="accepted"
        ),
        pytest.param(
            VersionFacts(**PROVEN, place="Candidate"),
            "Accepted", "False Pending", True, "False", "True GatePassed", id="its arm is coming up",
        ),
        pytest.param(
            VersionFacts(**PROVEN, place="Canary"),
            "Canary", "False Canary", True, "False", "True GatePassed", id="canary",
        ),
        pytest.param(
            VersionFacts(**PROVEN, place="Baking"),
            "Baking", "False Baking", True, "False", "True GatePassed", id="baking",
        ),
        pytest.param(
            VersionFacts(**PROVEN, place="Serving"),
            "Serving", "True Promoted", False, "False", "True GatePassed", id="serving",
        ),
        pytest.param(
            VersionFacts(**PROVEN, place="Superseded"),
            "Superseded", "True Superseded", False, "False", "True GatePassed", id="superseded",
        ),
        pytest.param(
            VersionFacts(trained=MADE, evaluated=MADE, gate=WHY, accepted=False, rejected=WHY),
            "Rejected", "False NotBetter", False, "True NotBetter", "False NotBetter", id="rejected by the gate",
        ),
        pytest.param(
            VersionFacts(**PROVEN, rejected=Remark(Reason.CHECK_FAILED, "worse")),
            "Rejected", "False CheckFailed", False, "True CheckFailed", "True GatePassed", id="rolled back",
        ),
        pytest.param(
            VersionFacts(**PROVEN, returned=Remark(Reason.HOLD_EXPIRED, "held too long")),
            "Accepted", "False HoldExpired", False, "True HoldExpired", "True GatePassed", id="returned",
        ),
        pytest.param(
            VersionFacts(stage="train", failed=BROKEN),
            "Failed", "False DataError", False, "True DataError", "False DataError", id="failed",
        ),
        pytest.param(
            VersionFacts(stage="train", stalled=MISSING),
            "Training", "False MissingSecret", False, "True MissingSecret", "False Pending", id="stalled",
        ),
        pytest.param(
            VersionFacts(root=True, place="Serving"),
            "Serving", "True Promoted", False, "False", "True Root", id="the base serves",
        ),
        pytest.param(
            VersionFacts(root=True), "Accepted", "False Pending", True, "False", "True Root", id="the base comes up"
        ),
    ],
)  # fmt: skip
def test_version(seen: VersionFacts, phase: str, ready: str, working: bool, stalled: str, accepted: str) -> None:
    conditions = version_conditions([], seen, 1, NOW)
    said = brief(conditions)
    assert version_phase(seen) == phase
    assert (said["Ready"], said["Accepted"]) == (ready, accepted)
    assert is_true(conditions, ConditionType.RECONCILING) is working
    assert said["Stalled"].startswith(stalled)
    assert is_true(conditions, ConditionType.SERVING) is (phase == "Serving")
    assert is_true(conditions, ConditionType.REJECTED) is (phase == "Rejected")
    assert ("Trained" in said) is (not seen.root)


def test_what_a_version_waits_for_is_said() -> None:
    found = find(version_conditions([], VersionFacts(stage="train", waiting=GPU), 1, NOW), ConditionType.RECONCILING)
    assert found is not None
    assert (found.reason, found.message) == ("Unschedulable", GPU.message)


remarks = st.none() | st.sampled_from([WHY, MADE, PASSED, BROKEN, MISSING, GPU])


@given(
    st.builds(
        VersionFacts,
        root=st.booleans(),
        trained=remarks,
        evaluated=remarks,
        gate=remarks,
        accepted=st.sampled_from([True, False, None]),
        stage=st.sampled_from(["train", "evaluate", None]),
        failed=remarks,
        rejected=remarks,
        returned=remarks,
        place=st.sampled_from(["Candidate", "Canary", "Baking", "Serving", "Superseded", None]),
        stalled=remarks,
        waiting=remarks,
    )
)
def test_a_version_is_in_exactly_one_state_of_kstatus(seen: VersionFacts) -> None:
    conditions = version_conditions([], seen, 1, NOW)
    states = [ConditionType.READY, ConditionType.RECONCILING, ConditionType.STALLED]
    assert sum(is_true(conditions, state) for state in states) == 1


@given(
    st.builds(
        CycleFacts,
        suspended=st.booleans(),
        champion=st.sampled_from([None, "assistant-6"]),
        ready=st.integers(0, 2),
        replicas=st.just(2),
        run=st.sampled_from([None, run("Curating"), run("RollingOut"), run("Done")]),
        rollout=st.sampled_from([None, STARTING, HELD, canary(), baking(), decided("RollingBack"), decided("Done")]),
        stalled=remarks,
        waiting=remarks,
    )
)
def test_a_cycle_never_works_and_stalls_at_once(seen: CycleFacts) -> None:
    conditions = cycle_conditions([], seen, 1, NOW)
    assert len(conditions) == 4
    assert not (is_true(conditions, ConditionType.RECONCILING) and is_true(conditions, ConditionType.STALLED))
    assert cycle_phase(seen)
    if seen.ready == 0 or seen.champion is None:
        assert not is_true(conditions, ConditionType.READY)
