"""Names, arms and pods: pure choices, as tables and as properties."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from ratchet_gateway.errors import BadRequest, UnknownModel
from ratchet_gateway.routes import (
    Arm,
    Choice,
    Cycle,
    Pod,
    Storage,
    Table,
    Target,
    chat_url,
    choose_arm,
    fallback,
    pick_pod,
    takes_candidate,
)

sessions = st.text(st.characters(codec="ascii", categories=("L", "N", "P")), min_size=1, max_size=40)
versions = st.from_regex(r"[a-z]{1,10}-[0-9]{1,3}", fullmatch=True)
weights = st.integers(0, 100)


def cycle(namespace: str = "default", name: str = "assistant", weight: int | None = None) -> Cycle:
    stable = Arm(f"{name}-1", "m1", 100)
    candidate = None if weight is None else Arm(f"{name}-2", "m2", weight)
    return Cycle(namespace, name, Storage("s3://bucket"), stable, candidate)


def table(*cycles: Cycle) -> Table:
    return Table({(c.namespace, c.name): c for c in cycles})


@given(sessions, versions)
def test_weight_0_takes_nobody_and_100_everybody(session: str, version: str) -> None:
    assert not takes_candidate(session, version, 0)
    assert takes_candidate(session, version, 100)


@given(sessions, versions, weights, weights)
def test_a_higher_weight_only_adds_sessions(session: str, version: str, one: int, other: int) -> None:
    low, high = sorted((one, other))
    assert not takes_candidate(session, version, low) or takes_candidate(session, version, high)


@given(sessions, weights)
def test_a_conversation_keeps_its_arm(session: str, weight: int) -> None:
    target = Target(cycle(weight=weight))
    first = choose_arm(target, session)
    assert first is not None
    assert choose_arm(target, session) == first
    moved = Target(replace(cycle(weight=weight), stable=Arm("assistant-1", "m1", 0, (Pod("p", chat_url("::1", 1)),))))
    again = choose_arm(moved, session)
    assert again is not None
    assert again.arm.version == first.arm.version, "the choice depends on session, version and weight alone"


@pytest.mark.parametrize("weight", [5, 25, 50])
def test_the_share_of_sessions_is_the_weight(weight: int) -> None:
    """20,000 sessions: four standard deviations of the binomial are below 1.5 points."""
    hits = sum(takes_candidate(f"session-{index}", "assistant-7", weight) for index in range(20_000))
    assert abs(hits / 200 - weight) < 1.5


def test_another_candidate_meets_other_sessions_first() -> None:
    one, other = (
        {index for index in range(2000) if takes_candidate(f"session-{index}", version, 10)}
        for version in ("a-1", "a-2")
    )
    assert len(one & other) < len(one) / 3


def test_choice_of_the_arm() -> None:
    assert choose_arm(Target(cycle()), "s") == Choice(cycle().stable or _none(), "stable")
    assert choose_arm(Target(cycle(weight=100)), "s") == Choice(Arm("assistant-2", "m2", 100), "candidate")
    assert choose_arm(Target(cycle(weight=0)), "s") == Choice(Arm("assistant-1", "m1", 100), "stable")
    assert choose_arm(Target(cycle(weight=0), "assistant-2"), "s") == Choice(Arm("assistant-2", "m2", 0), "pinned")
    assert choose_arm(Target(Cycle("default", "new", Storage("s3://bucket"))), "s") is None


def _none() -> Arm:
    raise AssertionError("a stable arm was expected")


def test_only_a_candidate_falls_back() -> None:
    whole = cycle(weight=50)
    stable, candidate = whole.arms
    assert fallback(whole, Choice(candidate, "candidate")) == Choice(stable, "stable")
    assert fallback(whole, Choice(candidate, "pinned")) is None
    assert fallback(whole, Choice(stable, "stable")) is None
    assert fallback(replace(whole, stable=None), Choice(candidate, "candidate")) is None


def test_names() -> None:
    both = table(cycle(weight=5), cycle("team", "other"))
    assert both.resolve("assistant") == Target(cycle(weight=5))
    assert both.resolve("default/assistant") == Target(cycle(weight=5))
    assert both.resolve("assistant@assistant-2") == Target(cycle(weight=5), "assistant-2")
    assert both.resolve("default/assistant@assistant-1") == Target(cycle(weight=5), "assistant-1")
    assert both.models() == [
        "assistant", "assistant@assistant-1", "assistant@assistant-2", "other", "other@other-1"
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name", ["", "nobody", "team/assistant", "assistant@", "assistant@assistant-9", "/", "a/b/c", "@"]
)
def test_names_that_mean_nothing(name: str) -> None:
    with pytest.raises(UnknownModel, match="models that exist: assistant, assistant@assistant-1"):
        table(cycle()).resolve(name)


def test_no_cycle_yet() -> None:
    with pytest.raises(UnknownModel, match="none yet"):
        Table().resolve("assistant")


def test_one_name_in_two_namespaces_has_to_be_spelt_out() -> None:
    twins = table(cycle("a"), cycle("b"))
    with pytest.raises(BadRequest, match="write one of a/assistant, b/assistant"):
        twins.resolve("assistant")
    assert twins.resolve("b/assistant").cycle.namespace == "b"
    assert all(twins.resolve(name) for name in twins.models())


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.sampled_from(["x", "y"])), unique=True), weights)
def test_every_listed_name_can_be_asked_for(keys: list[tuple[str, str]], weight: int) -> None:
    some = table(*(cycle(namespace, name, weight) for namespace, name in keys))
    for name in some.models():
        some.resolve(name)


def test_weights_in_force() -> None:
    assert table(cycle(weight=25), cycle("n", "other")).weights() == {
        "default/assistant": {"assistant-1": 75, "assistant-2": 25},
        "n/other": {"other-1": 100},
    }
    assert table(cycle(weight=0)).weights() == {"default/assistant": {"assistant-1": 100, "assistant-2": 0}}


loads = st.lists(st.integers(0, 5), min_size=1, max_size=8)


@given(loads, st.data())
def test_the_least_busy_pod_is_picked(busy: list[int], data: st.DataObject) -> None:
    pods = [Pod(str(index), URL("http://pod"), inflight=load) for index, load in enumerate(busy)]
    tried = data.draw(st.sets(st.sampled_from(pods)))
    suspect = data.draw(st.sets(st.sampled_from(pods)))
    for pod in suspect:
        pod.suspect_until = 10.0
    rest = [pod for pod in pods if pod not in tried]
    usable = [pod for pod in rest if pod not in suspect]
    found = pick_pod(pods, 5.0, tried)
    assert (found is None) == (not usable)
    if found is not None:
        assert found in usable
        assert found.inflight == min(pod.inflight for pod in usable)
    last_hope = pick_pod(pods, 5.0, tried, suspects=True)
    assert (last_hope is None) == (not rest)
    assert pick_pod(pods, 10.0, tried) is last_hope or rest, "a suspicion ends"


def test_equals_share() -> None:
    pods = [Pod(str(index), URL("http://pod")) for index in range(3)]
    assert {pick_pod(pods, 0.0) for _ in range(200)} == set(pods)


def test_addresses() -> None:
    assert str(chat_url("10.1.2.3", 8000)) == "http://10.1.2.3:8000/v1/chat/completions"
    assert str(chat_url("fd00::1", 8000)) == "http://[fd00::1]:8000/v1/chat/completions"
