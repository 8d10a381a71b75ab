"""The rollout's machine: every sentence of the rules of decision as a named case."""

from datetime import timedelta
from typing import Any

import pytest

from ratchet_api.cycle import Check, RolloutStatus
from ratchet_api.reasons import Reason
from ratchet_api.rollout import Step
from ratchet_operator.domain import rollout
from ratchet_operator.domain.rollout import ArmObservation, Move

from .support import (
    DIGEST,
    FEEDBACK,
    NOW,
    P95,
    after,
    arm,
    baking,
    canary,
    fails,
    look,
    outcome,
    passes,
    policy,
    reference,
    rolling_back,
    seen,
    unknown,
)

SPEC = policy()
ABSENT = ArmObservation(exists=False, replicas=1, ready=0, serves_model=None)


def starting(**more: Any) -> RolloutStatus:
    """A rollout whose candidate comes up; stable has been looked at."""
    return rollout.begin("assistant-7", DIGEST, False, NOW).model_copy(update={"measured_at": NOW} | more)


def said(move: Move) -> list[tuple[str, str]]:
    """(type, reason) of the events."""
    return [(event.type, str(event.reason)) for event in move.events]


class TestStarting:
    """The candidate's arm comes up; nobody is sent to it."""

    def test_begins_without_weight(self) -> None:
        status = rollout.begin("assistant-7", DIGEST, False, NOW)
        assert (status.phase, status.weight, status.step, status.decision) == ("Starting", 0, -1, None)

    @pytest.mark.parametrize(
        "candidate",
        [
            pytest.param(ABSENT, id="no Deployment"),
            pytest.param(arm(0), id="no ready pod"),
            pytest.param(arm(1, 2), id="one of two pods ready"),
            pytest.param(arm(serves_model=None), id="its models are not known"),
        ],
    )
    def test_waits_for_the_whole_arm(self, candidate: ArmObservation) -> None:
        move = rollout.advance(starting(), SPEC, seen(0, candidate=candidate), after(100))
        assert (move.status.phase, move.weight) == ("Starting", 0)
        assert move.wake_at is not None
        assert after(100) < move.wake_at <= after(102)

    def test_a_whole_arm_gets_the_first_step(self) -> None:
        move = rollout.advance(starting(), SPEC, seen(0), after(20))
        assert (move.status.phase, move.status.step, move.weight, move.status.weight) == ("Canary", 0, 5, 5)
        assert said(move) == [("Normal", "Canary")]
        assert move.events[0].message == "assistant-7 takes 5 % of the sessions"

    def test_stable_is_looked_at_before_any_session_moves(self) -> None:
        status = rollout.begin("assistant-7", DIGEST, False, NOW)
        assert rollout.measurement_due(status, SPEC, after(1))
        assert rollout.advance(status, SPEC, seen(0), after(1)).weight == 0
        look = unknown(after(2), reference=reference())
        move = rollout.advance(status, SPEC, seen(0, look), after(2))
        assert move.weight == 5
        assert move.status.checks[0].reference == reference()
        assert (move.status.checks[0].unknowns, move.status.checks[0].failures) == (0, 0)

    def test_looks_while_starting_neither_fail_nor_pass(self) -> None:
        status = rollout.begin("assistant-7", DIGEST, False, NOW)
        for i in range(5):
            move = rollout.advance(status, SPEC, seen(0, fails(after(i)), candidate=arm(0)), after(i))
            status = move.status
        assert (status.phase, status.decision, status.checks[0].failures) == ("Starting", None, 0)

    def test_not_ready_by_the_deadline_rolls_back(self) -> None:
        assert outcome(rollout.advance(starting(), SPEC, seen(0, candidate=arm(0)), after(120))) is None
        move = rollout.advance(starting(), SPEC, seen(0, candidate=arm(0)), after(121))
        assert outcome(move) == ("RolledBack", "ArmNotReady")
        assert "0 of 1 pods of assistant-7 ready after 2m1s, limit 2m" in move.events[0].message

    def test_not_ready_through_no_fault_of_its_own_is_returned(self) -> None:
        candidate = arm(0, waiting="0/3 nodes are available: insufficient nvidia.com/gpu")
        move = rollout.advance(starting(), SPEC, seen(0, candidate=candidate), after(121))
        assert outcome(move) == ("Returned", "ArmNotReady")
        assert "insufficient nvidia.com/gpu" in move.events[0].message

    def test_models_that_stay_unknown_are_said_at_the_deadline(self) -> None:
        move = rollout.advance(starting(), SPEC, seen(0, candidate=arm(serves_model=None)), after(121))
        assert outcome(move) == ("RolledBack", "ArmNotReady")
        assert "do not say which models they serve" in move.events[0].message

    def test_suspended_starts_nothing_and_has_no_deadline_once_ready(self) -> None:
        move = rollout.advance(starting(), SPEC, seen(0, suspended=True), after(9999))
        assert (move.status.phase, move.weight) == ("Starting", 0)

    def test_rolled_back_before_it_had_traffic_ends_at_once(self) -> None:
        move = rollout.advance(starting(), SPEC, seen(0, abort=True, stable=arm(0)), after(5))
        assert (move.status.phase, move.status.weight_zero_at) == ("Done", after(5))


class TestHardTriggers:
    """In every phase, bake included."""

    @pytest.mark.parametrize("status", [starting(), canary(), baking()], ids=["Starting", "Canary", "Baking"])
    @pytest.mark.parametrize("suspended", [False, True], ids=["", "suspended"])
    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            pytest.param({"abort": True}, "Aborted", id="abort"),
            pytest.param({"candidate": arm(0, failure="pod x crashed 3 times")}, "ArmFailed", id="crash"),
            pytest.param({"candidate": arm(2, 3, failure="pod x: OOMKilled")}, "ArmFailed", id="one of three OOM"),
            pytest.param(
                {"candidate": arm(0, failure="adapter has another digest", failure_reason=Reason.DIGEST_MISMATCH)},
                "DigestMismatch",
                id="digest",
            ),
            pytest.param({"candidate": arm(serves_model=False)}, "AdapterNotServed", id="not served"),
        ],
    )
    def test_rolls_back_at_once(
        self, status: RolloutStatus, suspended: bool, changes: dict[str, Any], reason: str
    ) -> None:
        move = rollout.advance(status, SPEC, seen(status.weight, suspended=suspended, **changes), after(3))
        assert outcome(move) == ("RolledBack", reason)
        assert move.weight == 0
        assert said(move) == [("Warning", reason)]

    def test_a_list_without_the_model_counts_only_when_a_pod_is_ready(self) -> None:
        move = look(canary(), SPEC, 3, candidate=arm(0, serves_model=False))
        assert move.status.decision is None

    def test_no_ready_pod_is_tolerated_for_half_a_minute(self) -> None:
        move = look(canary(), SPEC, 3, candidate=arm(0))
        assert move.status.unready_since == after(3)
        assert outcome(look(move.status, SPEC, 33, candidate=arm(0))) is None
        assert outcome(look(move.status, SPEC, 34, candidate=arm(0))) == ("RolledBack", "ArmNotReady")

    def test_some_pods_missing_is_tolerated_until_the_progress_deadline(self) -> None:
        move = look(canary(), SPEC, 3, candidate=arm(1, 2))
        assert outcome(look(move.status, SPEC, 123, candidate=arm(1, 2))) is None
        assert outcome(look(move.status, SPEC, 124, candidate=arm(1, 2))) == ("RolledBack", "ArmNotReady")

    def test_a_pod_that_came_back_is_forgotten(self) -> None:
        move = look(canary(), SPEC, 3, candidate=arm(0))
        back = look(move.status, SPEC, 13)
        assert back.status.unready_since is None
        assert outcome(look(back.status, SPEC, 40, candidate=arm(0))) is None

    def test_a_node_lost_for_long_is_no_blame(self) -> None:
        move = look(canary(), SPEC, 3, candidate=arm(0, waiting="no node is left"))
        assert outcome(look(move.status, SPEC, 40, candidate=arm(0, waiting="no node is left"))) == (
            "Returned",
            "ArmNotReady",
        )

    def test_a_candidate_that_is_not_whole_gets_no_more_sessions(self) -> None:
        assert look(canary(), SPEC, 70, passes(after(70)), candidate=arm(1, 2)).weight == 5

    def test_an_unanswered_question_about_models_is_no_failure(self) -> None:
        move = look(canary(), SPEC, 20, passes(after(20)), candidate=arm(serves_model=None))
        assert (move.status.unready_since, move.status.decision) == (None, None)


class TestWeightInForce:
    """A step begins to count when every gateway has its weight in force."""

    fresh = canary(unconfirmed_since=NOW)

    def test_the_step_begins_when_the_weight_is_observed(self) -> None:
        move = rollout.advance(self.fresh, SPEC, seen(5), after(7))
        assert (move.status.step_since, move.status.unconfirmed_since) == (after(7), None)

    @pytest.mark.parametrize("observed", [None, 0, 4, 50])
    def test_until_then_it_is_asked_again_and_nothing_counts(self, observed: int | None) -> None:
        assert not rollout.measurement_due(self.fresh, SPEC, after(500))
        move = rollout.advance(self.fresh, SPEC, seen(observed, fails(after(7))), after(7))
        assert (move.weight, move.status.unconfirmed_since, move.status.checks) == (5, NOW, [])
        assert move.wake_at == after(9)

    def test_a_look_from_before_the_step_counted_is_not_taken(self) -> None:
        move = rollout.advance(self.fresh, SPEC, seen(5, fails(after(7))), after(7))
        assert (move.status.decision, move.status.checks) == (None, [])

    def test_nor_is_one_from_a_little_earlier(self) -> None:
        move = rollout.advance(self.fresh, SPEC, seen(5, fails(after(6.9))), after(7))
        assert (move.status.decision, move.status.checks) == (None, [])

    def test_the_first_look_is_an_interval_after_that(self) -> None:
        status = rollout.advance(self.fresh, SPEC, seen(5), after(30)).status
        assert not rollout.measurement_due(status, SPEC, after(39))
        assert rollout.measurement_due(status, SPEC, after(40))

    def test_a_lapse_stops_the_counting_but_keeps_the_evidence(self) -> None:
        status = look(canary(), SPEC, 10, passes(after(10))).status
        lapse = rollout.advance(status, SPEC, seen(None, fails(after(20))), after(20))
        assert lapse.status.unconfirmed_since == after(20)
        assert lapse.status.checks == status.checks
        back = rollout.advance(lapse.status, SPEC, seen(5), after(30))
        assert (back.status.unconfirmed_since, back.status.step_since) == (None, NOW)

    def test_weight_that_is_never_confirmed_is_held_and_then_returned(self) -> None:
        assert rollout.advance(self.fresh, SPEC, seen(None), after(40)).status.held_since is None
        held = rollout.advance(self.fresh, SPEC, seen(None), after(41))
        assert held.status.held_since == after(41)
        assert "weight 5 is not confirmed to be in force" in held.events[0].message
        end = rollout.advance(held.status, SPEC, seen(None), after(41 + 601))
        assert outcome(end) == ("Returned", "HoldExpired")
        assert (end.status.phase, end.weight) == ("RollingBack", 0)


class TestSteps:
    """All Pass and the step's minimum time over: next step."""

    def test_next_step(self) -> None:
        move = look(canary(), SPEC, 60, passes(after(60), reference=reference()))
        assert (move.weight, move.status.step, move.status.unconfirmed_since) == (50, 1, after(60))
        check = move.status.checks[0]
        assert (check.verdict, check.passes, check.failures) == ("Unknown", 0, 0)
        assert (check.passed_at, check.reference) == (after(60), reference())
        assert move.events[0].message == "assistant-7 takes 50 % of the sessions: feedback: Pass"

    def test_not_before_its_minimum_time(self) -> None:
        assert look(canary(), SPEC, 59, passes(after(59))).weight == 5

    @pytest.mark.parametrize(
        ("earlier", "last", "weight"),
        [
            pytest.param(None, None, 5, id="no look at all"),
            pytest.param(passes, None, 5, id="a rise needs a fresh look"),
            pytest.param(None, "NoData", 5, id="no data"),
            pytest.param(None, "TooFewSamples", 5, id="too few samples"),
            pytest.param(passes, "TooFewSamples", 50, id="passed in this step, and few samples since"),
            pytest.param(passes, "NoData", 5, id="passed in this step, and no data since"),
            pytest.param(passes, "QueryError", 5, id="passed in this step, and Prometheus is down since"),
            pytest.param(passes, "Stale", 5, id="passed in this step, and stale since"),
            pytest.param(passes, "ManySeries", 5, id="passed in this step, and ambiguous since"),
        ],
    )
    def test_no_data_never_promotes(self, earlier: Any, last: str | None, weight: int) -> None:
        status = canary()
        if earlier is not None:
            status = look(status, SPEC, 10, earlier(after(10))).status
        checks = [] if last is None else [unknown(after(70), last)]
        assert look(status, SPEC, 70, *checks).weight == weight

    def test_a_pass_of_an_earlier_step_is_not_enough(self) -> None:
        status = look(canary(), SPEC, 60, passes(after(60))).status
        status = rollout.advance(status, SPEC, seen(50), after(61)).status
        move = rollout.advance(status, SPEC, seen(50, unknown(after(200), "TooFewSamples")), after(200))
        assert move.weight == 50

    def test_one_of_two_checks_is_not_enough(self) -> None:
        spec = policy(metrics=[FEEDBACK, P95])
        assert look(canary(), spec, 70, passes(after(70))).weight == 5
        assert look(canary(), spec, 70, passes(after(70)), unknown(after(70), name="p95")).weight == 5
        assert look(canary(), spec, 70, passes(after(70)), passes(after(70), "p95")).weight == 50

    def test_a_failing_check_within_its_limit_keeps_the_weight(self) -> None:
        spec = policy(failure_limit=2)
        status = look(canary(), spec, 50, passes(after(50))).status
        move = look(status, spec, 60, fails(after(60)))
        assert (move.weight, move.status.decision) == (5, None)
        assert said(move) == [("Warning", "CheckFailed")]
        assert "(failed 1, tolerated 2 in a step)" in move.events[0].message

    def test_suspended_is_no_step_up(self) -> None:
        assert look(canary(), SPEC, 70, passes(after(70)), suspended=True).weight == 5

    def test_the_last_step_is_followed_by_the_bake(self) -> None:
        status = canary(100, step=2, checks=[unknown(NOW, reference=reference())])
        move = look(status, SPEC, 10, passes(after(10)))
        assert (move.status.phase, move.weight, move.status.step_since) == ("Baking", 100, after(10))
        assert move.status.unconfirmed_since is None
        assert said(move) == [("Normal", "Baking")]
        assert move.events[0].message == "assistant-7 bakes at 100 % for 5m: feedback: Pass"

    def test_a_known_good_version_skips_the_steps_but_bakes(self) -> None:
        move = rollout.advance(starting(known_good=True), SPEC, seen(0), after(5))
        assert (move.status.phase, move.weight, move.status.unconfirmed_since) == ("Baking", 100, after(5))

    def test_steps_edited_meanwhile_are_found_by_weight(self) -> None:
        spec = policy(steps=[Step(weight=20, min_time=timedelta(0)), Step(weight=100)])
        assert look(canary(), spec, 10, passes(after(10))).weight == 20
        assert look(canary(20, step=1), spec, 10, passes(after(10))).weight == 100

    def test_a_metric_added_meanwhile_has_to_pass(self) -> None:
        status = look(canary(), SPEC, 50, passes(after(50))).status
        assert look(status, policy(metrics=[FEEDBACK, P95]), 70, passes(after(70))).weight == 5

    def test_a_metric_removed_meanwhile_is_forgotten(self) -> None:
        spec = policy(metrics=[FEEDBACK, P95], failure_limit=5)
        status = look(canary(), spec, 50, passes(after(50)), fails(after(50), "p95")).status
        move = look(status, SPEC, 70, passes(after(70)))
        assert (move.weight, [check.name for check in move.status.checks]) == (50, ["feedback"])


class TestFailing:
    """Fail beyond failureLimit rolls back in the same reconcile."""

    def test_rolls_back_with_its_evidence_in_the_same_call(self) -> None:
        move = look(canary(50), SPEC, 10, fails(after(10)))
        decision = move.status.decision
        assert decision is not None
        assert (decision.outcome, decision.reason, decision.check) == ("RolledBack", "CheckFailed", "feedback")
        assert (decision.message, decision.at, decision.regression_seen_at) == ("feedback: Fail", after(10), after(10))
        assert (move.status.phase, move.weight, move.status.weight) == ("RollingBack", 0, 0)
        assert move.events[-1].message == "assistant-7 rolled back: feedback: Fail"

    def test_beyond_the_limit_only(self) -> None:
        spec, status = policy(failure_limit=2), canary()
        for seconds in (10, 20):
            move = look(status, spec, seconds, fails(after(seconds)))
            assert move.status.decision is None
            status = move.status
        move = look(status, spec, 30, fails(after(30)))
        assert outcome(move) == ("RolledBack", "CheckFailed")
        assert move.status.decision is not None
        assert move.status.decision.regression_seen_at == after(10)

    def test_a_metric_has_a_limit_of_its_own(self) -> None:
        spec = policy(metrics=[FEEDBACK.model_copy(update={"failure_limit": 0})], failure_limit=9)
        assert outcome(look(canary(), spec, 10, fails(after(10)))) == ("RolledBack", "CheckFailed")

    def test_failures_of_earlier_steps_do_not_count(self) -> None:
        spec, status = policy(failure_limit=1), canary()
        status = look(status, spec, 10, fails(after(10))).status
        status = look(status, spec, 70, passes(after(70))).status
        assert status.weight == 50
        status = look(status, spec, 71).status
        assert look(status, spec, 81, fails(after(81))).status.decision is None

    def test_a_limit_lowered_meanwhile_needs_another_failure(self) -> None:
        status = look(canary(), policy(failure_limit=2), 10, fails(after(10))).status
        assert look(status, SPEC, 20, unknown(after(20))).status.decision is None
        assert outcome(look(status, SPEC, 20, fails(after(20)))) == ("RolledBack", "CheckFailed")

    def test_suspended_still_rolls_back(self) -> None:
        assert outcome(look(canary(), SPEC, 10, fails(after(10)), suspended=True)) == ("RolledBack", "CheckFailed")

    def test_held_still_rolls_back(self) -> None:
        status = canary(held_since=NOW, checks=[unknown(NOW, unknowns=9)])
        assert outcome(look(status, SPEC, 10, fails(after(10)))) == ("RolledBack", "CheckFailed")


class TestHold:
    """Unknown beyond unknownLimit holds the weight and says so; a hold longer than maxHold returns without blame."""

    def blind(self, status: RolloutStatus, looks: int, reason: str = "NoData") -> Move:
        for i in range(1, looks + 1):
            move = look(status, SPEC, 10 * i, unknown(after(10 * i), reason))
            status = move.status
        return move

    @pytest.mark.parametrize("reason", ["NoData", "QueryError", "Stale", "ManySeries", "TooFewSamples"])
    def test_held_after_the_limit(self, reason: str) -> None:
        assert self.blind(canary(), 3, reason).status.held_since is None
        move = self.blind(canary(), 4, reason)
        assert (move.status.held_since, move.weight, move.status.decision) == (after(40), 5, None)
        assert said(move) == [("Warning", "Held")]
        assert move.events[0].message == "assistant-7 stays at 5 %: feedback: Unknown (4 times in a row)"

    def test_said_once(self) -> None:
        assert said(self.blind(canary(), 5)) == []

    def test_evidence_ends_the_hold(self) -> None:
        move = look(self.blind(canary(), 4).status, SPEC, 50, passes(after(50)))
        assert (move.status.held_since, said(move)) == (None, [("Normal", "Canary")])

    def test_too_few_samples_after_a_pass_in_the_step_hold_nothing(self) -> None:
        status = look(canary(), policy(), 1, passes(after(1))).status
        assert self.blind(status, 5, "TooFewSamples").status.held_since is None
        assert self.blind(status, 5, "NoData").status.held_since is not None

    def test_longer_than_max_hold_returns_without_blame(self) -> None:
        status = self.blind(canary(), 4).status
        assert outcome(look(status, SPEC, 640, unknown(after(640)))) is None
        move = look(status, SPEC, 641, unknown(after(641)))
        assert outcome(move) == ("Returned", "HoldExpired")
        assert move.weight == 0
        assert "held for 10m1s, limit 10m: feedback: Unknown" in move.events[-1].message


class TestBake:
    """The time after 100 % in which the previous arm is kept warm and a regression still rolls back."""

    def test_the_champion_changes_only_at_its_end(self) -> None:
        assert look(baking(), SPEC, 299, passes(after(299))).status.phase == "Baking"
        move = look(baking(), SPEC, 300, passes(after(300)))
        assert (move.status.phase, outcome(move), move.weight) == ("Done", ("Promoted", "Promoted"), 100)
        assert said(move) == [("Normal", "Promoted")]

    def test_a_regression_30_s_after_100_percent_is_caught(self) -> None:
        move = look(baking(), SPEC, 30, fails(after(30)))
        assert (outcome(move), move.weight) == (("RolledBack", "CheckFailed"), 0)

    @pytest.mark.parametrize(
        ("earlier", "reason", "phase"),
        [
            pytest.param(NOW, "TooFewSamples", "Done", id="a quiet bake of a version that passed in the canary"),
            pytest.param(None, "TooFewSamples", "Baking", id="never passed"),
            pytest.param(NOW, "NoData", "Baking", id="nothing is seen"),
            pytest.param(NOW, "QueryError", "Baking", id="Prometheus is down"),
            pytest.param(NOW, "Stale", "Baking", id="stale"),
        ],
    )
    def test_no_data_never_promotes(self, earlier: Any, reason: str, phase: str) -> None:
        status = baking(checks=[unknown(NOW, passed_at=earlier)])
        assert look(status, SPEC, 300, unknown(after(300), reason)).status.phase == phase

    def test_nor_does_a_pass_without_a_fresh_look(self) -> None:
        assert look(baking(checks=[passes(NOW, passed_at=NOW)]), SPEC, 300).status.phase == "Baking"

    def test_a_failing_check_within_its_limit_prolongs_it(self) -> None:
        spec = policy(failure_limit=3)
        status = look(baking(), spec, 300, fails(after(300))).status
        assert status.phase == "Baking"
        assert look(status, spec, 310, passes(after(310))).status.phase == "Done"

    def test_no_data_does_not_roll_back_but_returns_after_max_hold(self) -> None:
        status = baking()
        for i in range(1, 5):
            status = look(status, SPEC, 10 * i, unknown(after(10 * i))).status
        assert (status.phase, status.held_since) == ("Baking", after(40))
        assert outcome(look(status, SPEC, 641, unknown(after(641)))) == ("Returned", "HoldExpired")

    def test_suspended_does_not_promote(self) -> None:
        assert look(baking(), SPEC, 300, passes(after(300)), suspended=True).status.phase == "Baking"

    def test_without_a_bake_one_look_at_100_percent_is_still_needed(self) -> None:
        spec = policy(bake=timedelta(0))
        move = look(canary(100, step=2), spec, 10, passes(after(10)))
        assert move.status.phase == "Baking"
        assert look(move.status, spec, 20, passes(after(20))).status.phase == "Done"


class TestRollingBack:
    """Decision first, stable ready, weights to stable, read back, rejected; a rollback never makes an outage."""

    def test_the_split_is_kept_while_stable_is_not_ready_and_the_candidate_answers(self) -> None:
        move = look(canary(50), SPEC, 10, fails(after(10)), stable=arm(0))
        assert (move.status.phase, move.weight, move.status.weight) == ("RollingBack", 50, 50)
        assert move.status.decision is not None
        assert move.stalled is not None
        assert move.stalled[0] is Reason.STABLE_NOT_READY
        assert said(move)[-1] == ("Warning", "CheckFailed")

    def test_it_goes_on_as_soon_as_stable_has_a_pod(self) -> None:
        move = rollout.advance(rolling_back(), SPEC, seen(50, stable=arm(1, 2)), after(60))
        assert (move.status.phase, move.weight, move.stalled) == ("RollingBack", 0, None)

    @pytest.mark.parametrize(
        "candidate", [ABSENT, arm(0), arm(serves_model=False)], ids=["absent", "down", "not served"]
    )
    def test_a_candidate_that_does_not_answer_gets_nothing(self, candidate: ArmObservation) -> None:
        move = rollout.advance(rolling_back(), SPEC, seen(50, stable=arm(0), candidate=candidate), after(60))
        assert (move.weight, move.stalled) == (0, None)

    @pytest.mark.parametrize("observed", [None, 50, 1])
    def test_weight_0_is_asked_until_every_gateway_says_so(self, observed: int | None) -> None:
        status = rolling_back(weight=0)
        move = rollout.advance(status, SPEC, seen(observed), after(60))
        assert (move.status.phase, move.status.weight_zero_at, move.weight) == ("RollingBack", None, 0)
        assert move.wake_at == after(62)

    def test_the_end(self) -> None:
        move = rollout.advance(rolling_back(weight=0), SPEC, seen(0), after(60))
        assert (move.status.phase, move.status.weight_zero_at, move.wake_at) == ("Done", after(60), None)
        assert outcome(move) == ("RolledBack", "Aborted")

    def test_it_never_raises_the_weight_again(self) -> None:
        move = rollout.advance(rolling_back(weight=0), SPEC, seen(0, stable=arm(0)), after(60))
        assert move.weight == 0

    def test_recovery_does_not_change_the_decision(self) -> None:
        move = rollout.advance(rolling_back(), SPEC, seen(50, passes(after(60)), stable=arm(0)), after(60))
        assert outcome(move) == ("RolledBack", "Aborted")


class TestTime:
    """Every due time derives from a timestamp in status; clocks may go back."""

    @pytest.mark.parametrize(
        ("status", "seconds", "due"),
        [
            pytest.param(canary(), 9, False, id="within the interval"),
            pytest.param(canary(), 10, True, id="interval over"),
            pytest.param(canary(measured_at=None), 0, True, id="never measured"),
            pytest.param(canary(measured_at=after(3600)), 0, True, id="clock went back"),
            pytest.param(baking(), 10, True, id="bake"),
            pytest.param(canary(unconfirmed_since=NOW), 10, False, id="weight not in force"),
            pytest.param(rolling_back(), 10, False, id="rolling back"),
            pytest.param(canary(phase="Done"), 10, False, id="done"),
        ],
    )
    def test_measurement_due(self, status: RolloutStatus, seconds: float, due: bool) -> None:
        assert rollout.measurement_due(status, SPEC, after(seconds)) is due

    def test_a_clock_that_went_back_neither_promotes_nor_rolls_back(self) -> None:
        for status in (starting(), canary(), baking(), canary(held_since=NOW, unready_since=NOW)):
            move = rollout.advance(status, SPEC, seen(status.weight, candidate=arm(1, 2)), after(-7200))
            assert (move.weight, move.status.decision) == (status.weight, None)

    def test_a_look_is_counted_once(self) -> None:
        spec = policy(failure_limit=1)
        once = look(canary(), spec, 10, fails(after(10)))
        twice = look(once.status, spec, 10, fails(after(10)))
        assert twice.status == once.status
        assert twice.events == ()

    @pytest.mark.parametrize(
        ("status", "observed", "wake"),
        [
            pytest.param(canary(), 5, 7, id="next glance"),
            pytest.param(canary(measured_at=after(-4)), 5, 6, id="next measurement"),
            pytest.param(canary(measured_at=after(-25)), 5, 7, id="a look that is overdue is no hot loop"),
            pytest.param(canary(unconfirmed_since=NOW), 0, 7, id="asks the gateways again"),
            pytest.param(canary(unready_since=after(-24), measured_at=after(5)), 5, 6, id="tolerance ends"),
        ],
    )
    def test_wake_at(self, status: RolloutStatus, observed: int, wake: float) -> None:
        candidate = arm(0) if status.unready_since else arm()
        assert rollout.advance(status, SPEC, seen(observed, candidate=candidate), after(5)).wake_at == after(wake)


@pytest.mark.parametrize(
    ("checks", "text"),
    [
        ([], "feedback wait, p95 wait"),
        ([passes(NOW), passes(NOW, "p95")], "feedback ok, p95 ok"),
        ([fails(NOW, failures=2), unknown(NOW, name="p95")], "feedback fail (2), p95 wait"),
        (
            [passes(NOW), unknown(NOW, "TooFewSamples", "p95", candidate_samples=12, stable_samples=900)],
            "feedback ok, p95 wait (12/200)",
        ),
        ([unknown(NOW, "QueryError"), passes(NOW, "p95")], "feedback unknown (QueryError), p95 ok"),
    ],
)
def test_summary(checks: list[Check], text: str) -> None:
    assert rollout.summary(checks, [FEEDBACK, P95]) == text
