"""Serving in place: what is decided about people's Deployment, over everything that may be seen."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from ratchet_api.cycle import Arm, RolloutPhase, RolloutStatus, ServingStatus
from ratchet_operator.domain.workload import Seen, moved, placement

HOME = "chat"
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
VERSIONS = ["old", "new"]
PHASES: list[RolloutPhase] = ["Starting", "Canary", "Baking", "RollingBack", "Done"]


def companion(version: str) -> str:
    return f"chat-ratchet-{version}"


def arm(version: str, deployment: str) -> Arm:
    return Arm(version=version, deployment=deployment, model_name=version, port=8000, since=NOW)


def rollout(phase: RolloutPhase, weight: int, confirmed: bool) -> RolloutStatus:
    since = None if confirmed else NOW
    return RolloutStatus(
        version="new", digest="", phase=phase, weight=weight, started_at=NOW, step_since=NOW, unconfirmed_since=since
    )


@st.composite
def situations(draw: st.DrawFn) -> tuple[ServingStatus, RolloutStatus | None, Seen]:
    home = draw(st.sampled_from([None, *VERSIONS]))
    at = {version: HOME if home == version else companion(version) for version in VERSIONS}
    candidate = arm("new", at["new"]) if draw(st.booleans()) else None
    if candidate is None and home == "new":
        at["old"] = companion("old")
    status = rollout(draw(st.sampled_from(PHASES)), draw(st.sampled_from([0, 25, 100])), draw(st.booleans()))
    there = frozenset(draw(st.sets(st.sampled_from(VERSIONS))))
    proven = frozenset(draw(st.sets(st.sampled_from(sorted(there))))) if there else there
    version = draw(st.sampled_from([None, *VERSIONS]))
    rolled_out = version is not None and draw(st.booleans())
    seen = Seen(HOME, draw(st.sampled_from([0, 1, 3])), version, rolled_out, there, proven)
    return ServingStatus(stable=arm("old", at["old"]), candidate=candidate), status, seen


@given(situations())
def test_it_is_only_rolled_to_what_is_proven(case: tuple[ServingStatus, RolloutStatus | None, Seen]) -> None:
    before, status, seen = case
    serving = moved(before, status, seen, companion)
    wanted = placement(serving, status, seen)
    at_home = [a.version for a in (serving.stable, serving.candidate) if a is not None and a.deployment == HOME]
    if wanted.home is not None and wanted.home != seen.version:
        assert wanted.home in seen.proven or at_home[:1] == [wanted.home], "or proven here before, and taken out"
    if wanted.home == "new" and seen.version == "old":
        assert serving.candidate is not None
        assert status is not None
        if at_home[:1] != ["new"]:
            assert (status.phase, status.weight, status.unconfirmed_since) == ("Baking", 100, None)
            assert seen.proven == {"old", "new"}, "the champion is warm elsewhere before it goes"


@given(situations())
def test_every_arm_is_served_somewhere(case: tuple[ServingStatus, RolloutStatus | None, Seen]) -> None:
    before, status, seen = case
    serving = moved(before, status, seen, companion)
    wanted = placement(serving, status, seen)
    if seen.replicas == 0:
        return
    for one in (serving.stable, serving.candidate):
        if one is not None and one.deployment != HOME:
            assert one.version in wanted.companions
    if serving.candidate is not None and seen.version == "new":
        assert "old" in wanted.companions or serving.stable == arm("old", HOME)


@given(situations())
def test_one_move_is_enough(case: tuple[ServingStatus, RolloutStatus | None, Seen]) -> None:
    before, status, seen = case
    once = moved(before, status, seen, companion)
    assert moved(once, status, seen, companion) == once


def test_people_s_deployment_is_never_among_the_retired() -> None:
    from ratchet_api.cycle import RetiredArm

    retired = [RetiredArm(version="old", deployment=name, since=NOW) for name in (HOME, companion("old"))]
    serving = ServingStatus(stable=arm("new", companion("new")), retired=retired)
    found = moved(serving, None, Seen(HOME, 1, "old", False), companion)
    assert found.retired == retired[1:]
