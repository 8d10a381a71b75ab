"""Runs and versions as tables: when a run starts, where its version brings it, where a version stands. No cluster."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from operator_world import cycle_manifest, digest, version_manifest

from ratchet_api.conditions import merged
from ratchet_api.cycle import (
    DatasetNumbers,
    Good,
    HistoryEntry,
    ImprovementCycle,
    ImprovementCycleStatus,
    Rejected,
    RolloutDecision,
    RolloutStatus,
    RunStatus,
)
from ratchet_api.names import CYCLE_KIND, VERSION_KIND
from ratchet_api.reasons import ConditionType, Reason
from ratchet_api.serving import Serving
from ratchet_api.stage import StageReport
from ratchet_api.version import Artifact, EvaluationStatus, ModelVersion, StageStatus
from ratchet_operator.domain import run, versions
from ratchet_operator.domain.phases import Remark
from ratchet_operator.domain.run import RunVersion
from ratchet_operator.index import Index, of_child
from ratchet_operator.queue import Key
from ratchet_operator.reconcile.rollout import new_arm

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)  # a Monday
MADE = NOW - timedelta(days=30)


def cycle(status: ImprovementCycleStatus | None = None, **spec: Any) -> ImprovementCycle:
    found = ImprovementCycle.model_validate(cycle_manifest("default", **spec))
    return found.model_copy(update={"status": status or ImprovementCycleStatus()})


def ended_run(**fields: Any) -> RunStatus:
    base = {"number": 3, "stage": "Done", "request": "old", "started_at": NOW - timedelta(days=1), "finished_at": NOW}
    return RunStatus.model_validate(base | fields)


def start(status: ImprovementCycleStatus, request: str = "", now: datetime = NOW, **spec: Any) -> RunStatus | None:
    return run.start("assistant", cycle(**spec).spec, status, request, MADE, ["assistant-0", "assistant-4"], now)


WEEKLY = {"trigger": {"schedule": "0 2 * * 1"}}
IDLE = ImprovementCycleStatus(run=ended_run())
BUSY = ImprovementCycleStatus(run=ended_run(finished_at=None, stage="Training"))
JUST_REJECTED = ImprovementCycleStatus(
    run=ended_run(started_at=NOW - timedelta(days=8)),
    rejected=[Rejected(digest=digest("b"), version="v", reason="CheckFailed", at=NOW - timedelta(hours=1))],
)
STARTS: list[tuple[str, ImprovementCycleStatus, str, dict[str, Any], bool]] = [
    ("nobody asks", IDLE, "", {}, False),
    ("asked for", IDLE, "new", {}, True),
    ("asked for before", IDLE, "old", {}, False),
    ("asked for at first", ImprovementCycleStatus(), "new", {}, True),
    ("asked for while one runs", BUSY, "new", {}, False),
    ("asked for while suspended", IDLE, "new", {"suspend": True}, False),
    ("due", IDLE, "", WEEKLY, True),
    ("due while one runs", BUSY, "", WEEKLY, False),
    ("due while suspended", IDLE, "", WEEKLY | {"suspend": True}, False),
    ("not due yet", IDLE, "", {"trigger": {"schedule": "0 2 * * 3"}}, False),
    ("due, but a rejection is fresh", JUST_REJECTED, "", {"trigger": WEEKLY["trigger"] | {"cooldown": "1d"}}, False),
    ("asked for although a rejection is fresh", JUST_REJECTED, "new", {"trigger": {"cooldown": "1d"}}, True),
]


@pytest.mark.parametrize(("case", "status", "request_", "spec", "starts"), STARTS, ids=[case[0] for case in STARTS])
def test_when_a_run_starts(
    case: str, status: ImprovementCycleStatus, request_: str, spec: dict[str, Any], starts: bool
) -> None:
    begun = start(status, request_, **spec)
    assert (begun is not None) is starts
    if begun is not None:
        assert begun.stage == "Curating"
        assert begun.started_at == NOW
        assert begun.request == (request_ or "old")


def test_a_run_takes_the_next_free_number() -> None:
    begun = start(IDLE, "new")
    assert begun is not None
    assert begun.number == 5, "4 is taken by a version that somebody else made"


def test_a_started_run_does_not_start_again() -> None:
    begun = start(IDLE, "new")
    assert begun is not None
    done = begun.model_copy(update={"finished_at": NOW})
    assert start(ImprovementCycleStatus(run=done), "new") is None


def test_the_next_time_is_after_now_even_when_one_is_due() -> None:
    spec = cycle(**WEEKLY).spec
    following = run.next_run_time(spec, BUSY, MADE, NOW)
    assert following == datetime(2026, 11, 30, 2, tzinfo=UTC)
    assert run.next_run_time(cycle().spec, IDLE, MADE, NOW) is None
    assert run.next_run_time(cycle(suspend=True, **WEEKLY).spec, IDLE, MADE, NOW) is None


def test_a_schedule_that_never_comes_is_a_sentence() -> None:
    with pytest.raises(ValueError, match="schedule"):
        run.next_run_time(cycle(trigger={"schedule": "0 2 30 2 *"}).spec, IDLE, MADE, NOW)


DATASET = DatasetNumbers(uri="s3://r-1/d", digest=digest("d"), examples=40)
CURATING = RunStatus(number=5, stage="Curating", started_at=NOW)
MAKES = CURATING.model_copy(update={"stage": "Training", "version": "assistant-5", "dataset": DATASET})


def curated(outcome: str, dataset: DatasetNumbers | None = DATASET) -> RunStatus:
    report = StageReport.model_validate({"stage": "curate", "outcome": outcome, "reason": "x", "dataset": dataset})
    return run.curated(CURATING, "assistant", report, NOW)


def test_after_the_curate_stage() -> None:
    made = curated("Succeeded")
    assert (made.stage, made.version, made.dataset) == ("Training", "assistant-5", DATASET)
    assert curated("Skipped").outcome == "Skipped"
    assert curated("Succeeded", None).outcome == "Skipped", "nothing to train on"


REASON = Remark(Reason.NOT_BETTER, "words")
BEFORE = Remark(Reason.ALREADY_REJECTED, "words")
FOLLOWS: list[tuple[str, RunVersion | None, str, str | None]] = [
    ("not made yet", None, "Training", None),
    ("in training", RunVersion("u"), "Training", None),
    ("trained", RunVersion("u", trained=True), "Evaluating", None),
    ("accepted", RunVersion("u", trained=True, accepted=True), "RollingOut", None),
    ("rejected by the gate", RunVersion("u", trained=True, rejected=REASON), "Done", "GateRejected"),
    ("rejected before", RunVersion("u", trained=True, rejected=BEFORE), "Done", "GateRejected"),
    ("failed", RunVersion("u", failed=REASON), "Done", "Failed"),
    ("being taken back", RunVersion("u", True, True, rejected=REASON, in_rollout=True), "RollingOut", None),
]


@pytest.mark.parametrize(("case", "version", "stage", "outcome"), FOLLOWS, ids=[case[0] for case in FOLLOWS])
def test_where_a_version_brings_its_run(case: str, version: RunVersion | None, stage: str, outcome: str | None) -> None:
    after = run.follow(MAKES, version, NOW)
    assert (after.stage, after.outcome) == (stage, outcome)
    assert run.follow(after, version, NOW + timedelta(hours=1)) == after, "harmless when repeated"


def test_a_version_that_a_person_deleted_ends_the_run() -> None:
    seen = run.follow(MAKES, RunVersion("u"), NOW)
    assert run.follow(seen, None, NOW).outcome == "Failed"


def test_a_run_ends_once() -> None:
    promoted = run.rolled_out(MAKES, "Promoted", "m", NOW)
    assert promoted.outcome == "Promoted"
    assert run.rolled_out(promoted, "RolledBack", "m", NOW) == promoted
    assert run.finished(promoted, "Failed", "m", NOW) == promoted


def test_history_is_written_once_and_capped() -> None:
    spec = cycle(historyLimit=2).spec
    status = ImprovementCycleStatus(
        history=[HistoryEntry(version="", run=n, outcome="Skipped", at=NOW) for n in (1, 2)]
    )
    failed = run.finished(MAKES, "Failed", "words", NOW)
    once = run.recorded(status, spec, failed)
    assert [entry.run for entry in once.history] == [2, 5]
    assert run.recorded(once, spec, failed) == once


@pytest.mark.parametrize("outcome", ["Skipped", "Failed", "GateRejected", "RolledBack", "Promoted", "Returned"])
def test_every_end_has_its_words(outcome: Any) -> None:
    reason, message, warning = run.event(run.finished(MAKES, outcome, "words", NOW))
    assert "run 5" in message
    assert warning is (outcome not in ("Skipped", "Promoted"))
    assert reason in Reason


# Where a version stands


def version(name: str = "v", letter: str = "b", **status: Any) -> ModelVersion:
    manifest = version_manifest("default", name, letter)
    manifest["metadata"]["uid"] = f"uid of {name}"
    manifest["metadata"]["creationTimestamp"] = (NOW - timedelta(hours=1)).isoformat()
    found = ModelVersion.model_validate(manifest)
    return found.model_copy(update={"status": found.status.model_copy(update=status)})


def said(kind: ConditionType, state: bool, reason: Reason, at: datetime = NOW) -> list[Any]:
    return merged([], kind, state, reason, "words", 1, at)


EVALUATED = [StageStatus(stage="evaluate", job="j", finished_at=NOW)]


def proven(name: str = "v", champion: str = "assistant-0", **more: Any) -> ModelVersion:
    status = {
        "conditions": said(ConditionType.ACCEPTED, True, Reason.ACCEPTED),
        "stages": EVALUATED,
        "evaluation": EvaluationStatus(champion=champion),
    }
    return version(name, **(status | more))


def serving(name: str = "assistant-0", **fields: Any) -> ImprovementCycleStatus:
    status = ImprovementCycleStatus.model_validate(fields)
    stable = new_arm(Serving(), name, "" if name == "assistant-0" else digest("b"), NOW)
    return status.model_copy(update={"serving": status.serving.model_copy(update={"stable": stable})})


def rollout(
    name: str, phase: str, outcome: str | None = None, at: datetime = NOW, uid: str = "uid of v"
) -> RolloutStatus:
    decision = outcome and RolloutDecision.model_validate(
        {"outcome": outcome, "reason": "CheckFailed", "message": "worse", "at": at}
    )
    return RolloutStatus.model_validate(
        {"version": name, "uid": uid, "digest": digest("b"), "phase": phase, "started_at": at, "step_since": at}
    ).model_copy(update={"decision": decision or None})


def test_the_stages_of_a_version() -> None:
    of = cycle(serving())
    assert versions.standing(version(), of).next == "evaluate", "it came with its adapter"
    recipe = version()
    recipe = recipe.model_copy(
        update={
            "spec": recipe.spec.model_copy(
                update={"adapter": None, "dataset": {"uri": "s3://r-1/d", "digest": digest("d")}}
            )
        }
    )
    assert versions.standing(recipe, of).next == "train"
    adapter = recipe.status.artifacts.model_copy(update={"adapter": Artifact(uri="s3://r-1/a", digest=digest("e"))})
    trained = recipe.model_copy(update={"status": recipe.status.model_copy(update={"artifacts": adapter})})
    assert versions.standing(trained, of).next == "evaluate"
    assert versions.standing(proven(), of).next is None


def test_a_failed_stage_is_no_gate_decision() -> None:
    """Accepted is False with the failure's reason then, which must not be taken for the gate's word."""
    failed = version(
        conditions=said(ConditionType.ACCEPTED, False, Reason.DATA_ERROR),
        stages=[StageStatus(stage="evaluate", finished_at=NOW, reason="DataError", message="words")],
    )
    now = versions.standing(failed, cycle(serving()))
    assert (now.accepted, now.rejected, now.next) == (None, None, None)
    assert now.failed == Remark(Reason.DATA_ERROR, "evaluate: words")


def test_a_rejected_digest_stops_a_version_before_any_job() -> None:
    known = [Rejected(digest=digest("b"), version="old", reason="CheckFailed", message="worse", at=NOW)]
    now = versions.standing(version(), cycle(serving(rejected=known)))
    assert now.next is None
    assert now.rejected is not None
    assert now.rejected.reason is Reason.ALREADY_REJECTED
    assert digest("b") in now.rejected.message
    again = versions.standing(version(), cycle(serving(rejected=known), rollout={"retryDigests": [digest("b")]}))
    assert again.next == "evaluate"


def test_a_known_good_digest_needs_no_gate() -> None:
    good = [Good(version="old", digest=digest("b"), at=NOW)]
    now = versions.standing(version(), cycle(serving(last_good=good)))
    assert (now.next, now.accepted) == (None, True)
    assert now.gate is not None
    assert now.gate.reason is Reason.RETURNED


PLACES: list[tuple[str, ImprovementCycleStatus, dict[str, Any], str | None]] = [
    ("nowhere", serving(), {}, None),
    ("serves", serving("v"), {}, "Serving"),
    ("its arm comes up", serving(rollout=rollout("v", "Starting")), {}, "Candidate"),
    ("canary", serving(rollout=rollout("v", "Canary")), {}, "Canary"),
    ("bakes", serving(rollout=rollout("v", "Baking")), {}, "Baking"),
    ("is taken back", serving(rollout=rollout("v", "RollingBack", "RolledBack")), {}, None),
    ("another one's canary", serving(rollout=rollout("w", "Canary")), {}, None),
    ("served before", serving(), {"outcome": "Promoted"}, "Superseded"),
    ("said that it serves", serving(), {"conditions": said(ConditionType.SERVING, True, Reason.PROMOTED)},
     "Superseded"),
    ("came and went between two looks", serving(last_good=[Good(version="v", digest=digest("b"), at=NOW)]), {},
     "Superseded"),
    ("another of its name came and went", serving(last_good=[Good(version="v", digest=digest("c"), at=NOW)]), {}, None),
    ("the cycle has lost its status", ImprovementCycleStatus(),
     {"conditions": said(ConditionType.SERVING, True, Reason.PROMOTED)}, "Serving"),
]  # fmt: skip


@pytest.mark.parametrize(("case", "status", "own", "place"), PLACES, ids=[case[0] for case in PLACES])
def test_places(case: str, status: ImprovementCycleStatus, own: dict[str, Any], place: str | None) -> None:
    assert versions.place(version(**own), status) == place


def test_a_rollback_is_known_as_soon_as_it_is_decided() -> None:
    now = versions.standing(proven(), cycle(serving(rollout=rollout("v", "RollingBack", "RolledBack"))))
    assert now.outcome == "RolledBack"
    assert now.rejected == Remark(Reason.CHECK_FAILED, "worse")


def test_a_promotion_is_known_when_it_is_done() -> None:
    assert versions.standing(proven(), cycle(serving(rollout=rollout("v", "Baking", "Promoted")))).outcome is None
    done = versions.standing(proven(), cycle(serving("v", rollout=rollout("v", "Done", "Promoted"))))
    assert (done.outcome, done.place) == ("Promoted", "Serving")


def test_a_return_blames_nobody() -> None:
    now = versions.standing(proven(), cycle(serving(rollout=rollout("v", "Done", "Returned"))))
    assert now.rejected is None
    assert now.returned == Remark(Reason.CHECK_FAILED, "worse")


def test_an_earlier_object_s_rollout_is_not_mine() -> None:
    """Deleted and applied again under the same name."""
    before = rollout("v", "Done", "RolledBack", uid="of another one")
    assert versions.own_decision(version(), serving(rollout=before)) is None
    assert versions.place(version(), serving(rollout=rollout("v", "Canary", uid="of another one"))) is None


def test_other_weights_under_the_champion_s_name_do_not_serve() -> None:
    assert versions.place(version("champion"), serving("champion")) == "Serving"
    assert versions.place(version("champion", letter="c"), serving("champion")) is None


def test_what_was_decided_stays_decided_when_the_cycle_forgets() -> None:
    rejected = version(conditions=said(ConditionType.REJECTED, True, Reason.CHECK_FAILED), outcome="RolledBack")
    now = versions.standing(rejected, cycle(serving()))
    assert now.rejected == Remark(Reason.CHECK_FAILED, "words")
    assert now.next is None


@pytest.mark.parametrize(
    ("case", "candidate", "status", "may"),
    [
        ("accepted", proven(), serving(), True),
        ("not evaluated", version(), serving(), False),
        ("had its rollout", proven(outcome="Returned"), serving(), False),
        ("proven against another", proven(champion="assistant-1"), serving(), False),
        ("serves", proven(), serving("v"), False),
        ("its digest was rejected meanwhile", proven(), serving(
            rejected=[Rejected(digest=digest("b"), version="w", reason="CheckFailed", at=NOW)]), False),
    ],
)  # fmt: skip
def test_who_may_be_rolled_out(case: str, candidate: ModelVersion, status: ImprovementCycleStatus, may: bool) -> None:
    assert versions.ready_for_rollout(candidate, cycle(status)) is may


def test_the_base_is_not_rolled_out_by_itself() -> None:
    root = proven("assistant-0")
    assert not versions.ready_for_rollout(root, cycle(serving("assistant-1")))


def test_the_oldest_acceptance_goes_first() -> None:
    def accepted(name: str, minutes: int) -> ModelVersion:
        at = NOW - timedelta(minutes=minutes)
        return proven(name, conditions=said(ConditionType.ACCEPTED, True, Reason.ACCEPTED, at))

    found = versions.candidates([accepted("b", 1), accepted("a", 2), accepted("c", 2)], cycle(serving()))
    assert [candidate.metadata.name for candidate in found] == ["a", "c", "b"]


def test_the_next_rollout_waits_until_the_last_one_s_version_shows_its_outcome() -> None:
    status = serving(rollout=rollout("v", "Done", "Returned"))
    assert not versions.acknowledged([proven()], status)
    assert versions.acknowledged([proven(outcome="Returned")], status)
    assert versions.acknowledged([], status), "a person deleted it"
    assert versions.acknowledged([proven()], serving())


def test_a_person_s_champion_is_the_one_to_beat_whoever_serves() -> None:
    named = proven(champion="assistant-1")
    named = named.model_copy(update={"spec": named.spec.model_copy(update={"champion": "assistant-1"})})
    assert not versions.outdated(named, serving())
    assert versions.outdated(proven(champion="assistant-1"), serving())


def rejected_at(name: str, minutes: int, reason: Reason = Reason.NOT_BETTER) -> ModelVersion:
    at = NOW - timedelta(minutes=minutes)
    return version(name, conditions=said(ConditionType.REJECTED, True, reason, at))


def test_rejections_come_to_the_cycle_once() -> None:
    of = cycle(serving())
    news = versions.rejections([rejected_at("v", 1)], of)
    assert [(entry.version, entry.reason) for entry in news] == [("v", "NotBetter")]
    knows = cycle(serving(rejected=news))
    assert versions.rejections([rejected_at("v", 1)], knows) == []


def test_two_versions_of_one_digest_do_not_push_each_other_out() -> None:
    both = [rejected_at("v", 2), rejected_at("w", 1)]
    news = versions.rejections(both, cycle(serving()))
    assert versions.rejections(both, cycle(serving(rejected=news[-1:]))) == []


@pytest.mark.parametrize("reason", [Reason.UNDERPOWERED, Reason.ALREADY_REJECTED])
def test_what_proves_nothing_is_not_remembered(reason: Reason) -> None:
    assert versions.rejections([rejected_at("v", 1, reason)], cycle(serving())) == []


# Who is told of what


def note(index: Index, thing: ImprovementCycle | ModelVersion) -> list[Key]:
    kind = CYCLE_KIND if isinstance(thing, ImprovementCycle) else VERSION_KIND
    return index.note(Key(kind, thing.metadata.namespace, thing.metadata.name), thing.dump())


def test_a_cycle_s_change_is_told_to_the_versions_that_may_follow() -> None:
    index = Index()
    of = cycle(serving("champion"))
    for name, phase in (("old", "Superseded"), ("champion", "Serving"), ("new", "Evaluating"), ("bad", "Rejected")):
        note(index, version(name, phase=phase))
    other = version("others").model_copy(update={"spec": version().spec.model_copy(update={"cycle": "other"})})
    note(index, other)
    told = {key.name for key in note(index, of)}
    assert told == {"assistant", "champion", "new"}
    assert len(list(index.known())) == 6


def test_a_rejected_digest_that_may_be_tried_again_is_told() -> None:
    index = Index()
    waits = version("again", phase="Rejected", conditions=said(ConditionType.REJECTED, True, Reason.ALREADY_REJECTED))
    note(index, waits)
    assert Key(VERSION_KIND, "default", "again") in note(index, cycle(serving()))


def test_who_is_left_behind_is_told() -> None:
    index = Index()
    note(index, cycle(serving()))
    note(index, version())
    mine, its = Key(VERSION_KIND, "default", "v"), Key(CYCLE_KIND, "default", "assistant")
    assert index.forget(its) == [mine]
    assert index.forget(mine) == [its]
    assert list(index.known()) == []


@pytest.mark.parametrize(
    ("labels", "key"),
    [
        ({}, None),
        ({"ratchet.dev/cycle": "c"}, Key(CYCLE_KIND, "n", "c")),
        ({"ratchet.dev/cycle": "c", "ratchet.dev/stage": "curate"}, Key(CYCLE_KIND, "n", "c")),
        ({"ratchet.dev/cycle": "c", "ratchet.dev/version": "v", "ratchet.dev/arm": "true"}, Key(CYCLE_KIND, "n", "c")),
        ({"ratchet.dev/cycle": "c", "ratchet.dev/version": "v", "ratchet.dev/stage": "train"},
         Key(VERSION_KIND, "n", "v")),
    ],
    ids=["nobody's", "a cycle's", "curate's", "an arm's", "a stage's"],
)  # fmt: skip
def test_whose_child_it_is(labels: dict[str, str], key: Key | None) -> None:
    assert of_child({"namespace": "n", "labels": labels}) == key
