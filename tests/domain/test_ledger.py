"""What a cycle remembers when rollouts begin and end."""

from datetime import timedelta
from typing import Any

import pytest

from ratchet_api.cycle import (
    Arm,
    Good,
    ImprovementCycleSpec,
    ImprovementCycleStatus,
    Rejected,
    RetiredArm,
    RolloutDecision,
    RolloutStatus,
    ServingStatus,
)
from ratchet_operator.domain import ledger, rollout

from .support import DIGEST, NOW, OTHER, after, cycle_spec, policy

SPEC = cycle_spec(rollout=policy(scale_down_delay=timedelta(minutes=5)), history_limit=3)


def arm(number: int, weight: int = 0) -> Arm:
    """The arm of assistant-<number>."""
    name = f"assistant-{number}"
    return Arm(version=name, deployment=f"{name}-arm", model_name=name, port=8000, weight=weight, since=NOW)


def done(outcome: Any, number: int = 7, digest: str = DIGEST, at: float = 100) -> RolloutStatus:
    """The rollout of assistant-<number>, ended so."""
    decision = RolloutDecision(outcome=outcome, reason="CheckFailed", message="measured vs limit", at=after(at))
    begun = rollout.begin(f"assistant-{number}", digest, False, NOW)
    weight = 100 if outcome == "Promoted" else 0
    return begun.model_copy(update={"phase": "Done", "decision": decision, "weight": weight})


def status(ended: RolloutStatus | None = None, **more: Any) -> ImprovementCycleStatus:
    """assistant-6 serves, assistant-7 is the candidate."""
    serving = ServingStatus(stable=arm(6, 0), candidate=arm(7, 100))
    good = [Good(version="assistant-6", digest=OTHER, at=NOW)]
    fields: dict[str, Any] = {"serving": serving, "rollout": ended, "last_good": good}
    return ImprovementCycleStatus(**(fields | more))


def settled(outcome: Any, spec: ImprovementCycleSpec = SPEC, **more: Any) -> ImprovementCycleStatus:
    """After that end, at 120 s, in run 4."""
    return ledger.ended(status(done(outcome), **more), spec, after(120), 4)


def test_a_rollout_begins_with_an_arm_of_its_own() -> None:
    begun = rollout.begin("assistant-7", DIGEST, False, NOW)
    before = ImprovementCycleStatus(serving=ServingStatus(stable=arm(6)))
    after_ = ledger.started(before, arm(7), begun)
    assert (after_.serving.candidate, after_.serving.stable, after_.rollout) == (arm(7), arm(6), begun)
    assert ledger.started(after_, arm(7), begun) == after_


def test_a_retired_arm_of_the_same_version_is_taken_back() -> None:
    retired = [RetiredArm(version=f"assistant-{n}", deployment=f"assistant-{n}-arm", since=NOW) for n in (5, 7)]
    before = ImprovementCycleStatus(serving=ServingStatus(stable=arm(6), retired=retired))
    begun = ledger.started(before, arm(7), rollout.begin("assistant-7", DIGEST, True, NOW))
    assert [r.version for r in begun.serving.retired] == ["assistant-5"]


class TestPromoted:
    """Candidate becomes stable; the old arm retires."""

    def test_arms(self) -> None:
        serving = settled("Promoted").serving
        assert serving.stable == arm(7, 100)
        assert serving.candidate is None
        assert serving.retired == [RetiredArm(version="assistant-6", deployment="assistant-6-arm", since=after(120))]

    def test_last_good_and_history(self) -> None:
        end = settled("Promoted")
        assert [(g.version, g.digest) for g in end.last_good] == [("assistant-6", OTHER), ("assistant-7", DIGEST)]
        entry = end.history[-1]
        assert (entry.version, entry.run, entry.outcome, entry.at) == ("assistant-7", 4, "Promoted", after(100))
        assert end.rejected == []

    def test_a_champion_that_comes_back_is_listed_once_and_last(self) -> None:
        good = [Good(version=f"assistant-{n}", digest=d, at=NOW) for n, d in ((7, DIGEST), (6, OTHER))]
        assert [g.version for g in settled("Promoted", last_good=good).last_good] == ["assistant-6", "assistant-7"]


class TestRolledBack:
    """Candidate retires; rejected by digest."""

    def test_arms(self) -> None:
        serving = settled("RolledBack").serving
        assert (serving.stable, serving.candidate) == (arm(6), None)
        assert [r.version for r in serving.retired] == ["assistant-7"]

    def test_rejected_for_good(self) -> None:
        end = settled("RolledBack")
        entry = ledger.is_rejected(end, SPEC, DIGEST)
        assert entry is not None
        assert (entry.version, entry.reason, entry.message) == ("assistant-7", "CheckFailed", "measured vs limit")
        assert (entry.at, end.history[-1].outcome) == (after(100), "RolledBack")
        assert ledger.is_rejected(end, SPEC, OTHER) is None

    def test_until_a_person_names_it_and_then_once(self) -> None:
        override = cycle_spec(rollout=policy(retry_digests=[DIGEST]), history_limit=3)
        end = settled("RolledBack")
        assert ledger.is_rejected(end, override, DIGEST) is None
        again = end.model_copy(
            update={
                "serving": ServingStatus(stable=arm(6), candidate=arm(8)),
                "rollout": done("RolledBack", number=8, at=500),
            }
        )
        again = ledger.ended(again, override, after(510))
        entry = ledger.is_rejected(again, override, DIGEST)
        assert entry is not None
        assert (entry.version, entry.retried, len(again.rejected)) == ("assistant-8", True, 1)
        assert ledger.refreshed(again, override) == again
        rearmed = ledger.refreshed(again, SPEC)
        assert ledger.is_rejected(rearmed, SPEC, DIGEST) is not None
        assert ledger.is_rejected(rearmed, override, DIGEST) is None

    def test_the_base_model_is_never_rejected(self) -> None:
        end = ledger.ended(status(done("RolledBack", digest="")), SPEC, after(120))
        assert end.rejected == []
        assert end.serving.candidate is None

    def test_a_known_good_version_that_is_rolled_back_is_no_longer_good(self) -> None:
        good = [Good(version="assistant-7", digest=DIGEST, at=NOW)]
        assert ledger.is_known_good(status(last_good=good), DIGEST)
        assert not ledger.is_known_good(settled("RolledBack", last_good=good), DIGEST)

    def test_the_list_of_rejections_is_bounded(self) -> None:
        many = [
            Rejected(digest=f"sha256:{n:064x}", version="x", reason="CheckFailed", at=NOW)
            for n in range(ledger.REJECTED_LIMIT)
        ]
        end = settled("RolledBack", rejected=many)
        assert len(end.rejected) == ledger.REJECTED_LIMIT
        assert end.rejected[-1].digest == DIGEST


class TestReturned:
    """Candidate retires without blame."""

    def test_no_rejection(self) -> None:
        end = settled("Returned")
        assert (end.serving.candidate, end.rejected) == (None, [])
        assert [r.version for r in end.serving.retired] == ["assistant-7"]
        assert end.history[-1].outcome == "Returned"


@pytest.mark.parametrize("outcome", ["Promoted", "RolledBack", "Returned"])
def test_settled_once(outcome: str) -> None:
    end = settled(outcome)
    assert end.rollout is not None
    assert end.rollout.settled
    assert ledger.ended(end, SPEC, after(999)) == end
    assert ImprovementCycleStatus.model_validate(end.dump()) == end


@pytest.mark.parametrize("outcome", ["Promoted", "RolledBack", "Returned"])
def test_what_comes_before_the_end_changes_nothing(outcome: str) -> None:
    going_on = done(outcome).model_copy(update={"phase": "RollingBack"})
    undecided = done(outcome).model_copy(update={"decision": None})
    for other in (None, going_on, undecided):
        assert ledger.ended(status(other), SPEC, NOW) == status(other)


def test_a_candidate_of_another_rollout_is_left_alone() -> None:
    other = ServingStatus(stable=arm(6), candidate=arm(9))
    assert settled("Promoted", serving=other).serving == other
    assert settled("RolledBack", serving=other).serving == other


def test_history_and_last_good_are_capped() -> None:
    end = status()
    for n in range(7, 15):
        end = end.model_copy(
            update={
                "serving": ServingStatus(stable=arm(n - 1), candidate=arm(n)),
                "rollout": done("Promoted", n, digest=f"sha256:{n:064x}", at=n),
            }
        )
        end = ledger.ended(end, SPEC, after(n))
    assert [entry.version for entry in end.history] == ["assistant-12", "assistant-13", "assistant-14"]
    assert len(end.last_good) == 3


def test_the_gates_rejection_is_remembered_once() -> None:
    end = ledger.gate_rejected(status(), SPEC, "assistant-7", DIGEST, "NotBetter", "why", NOW, 4)
    assert ledger.is_rejected(end, SPEC, DIGEST) is not None
    assert [(e.version, e.run, e.outcome) for e in end.history] == [("assistant-7", 4, "GateRejected")]
    assert ledger.gate_rejected(end, SPEC, "assistant-7", DIGEST, "NotBetter", "why", after(9), 4) == end


def test_known_good() -> None:
    assert ledger.is_known_good(status(), OTHER)
    assert not ledger.is_known_good(status(), DIGEST)
    assert ledger.is_known_good(ImprovementCycleStatus(), "")
    forgiven = [Rejected(digest=OTHER, version="x", reason="Aborted", at=after(-9))]
    assert ledger.is_known_good(status(rejected=forgiven), OTHER)


class TestRetired:
    """An arm without traffic is kept until its answers have ended."""

    retired = (RetiredArm(version="assistant-5", deployment="assistant-5-arm", since=NOW),)

    def serving(self, **more: Any) -> ImprovementCycleStatus:
        return status(serving=ServingStatus(retired=list(self.retired), **more))

    def test_after_the_delay(self) -> None:
        assert ledger.expired(self.serving(), SPEC, after(299)) == []
        assert ledger.expired(self.serving(), SPEC, after(300)) == list(self.retired)

    @pytest.mark.parametrize("role", ["stable", "candidate"])
    def test_never_one_in_service(self, role: str) -> None:
        assert ledger.expired(self.serving(**{role: arm(5)}), SPEC, after(300)) == []

    def test_removed_when_gone(self) -> None:
        assert ledger.removed(self.serving(), "assistant-5-arm").serving.retired == []
        assert ledger.removed(self.serving(), "other") == self.serving()
