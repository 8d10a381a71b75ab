"""The error rate that looks at one suite have left."""

import random
from collections.abc import Callable
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratchet_api.evaluation import EvaluationPolicy
from ratchet_api.stage import Level
from ratchet_api.version import Look, ModelVersion
from ratchet_operator.domain.spending import level, levels

ALPHA = Decimal("0.05")


def look(of: Level, proven: bool) -> Look:
    return Look(suite="house", digest="a1", number=of.number, alpha=of.alpha, proven=proven)


def series(outcomes: list[bool]) -> list[Look]:
    looks: list[Look] = []
    for proven in outcomes:
        looks.append(look(level(ALPHA, looks), proven))
    return looks


def test_the_first_looks() -> None:
    assert [str(one.alpha) for one in series([False] * 4)] == [
        "0.025000000000", "0.008333333333", "0.004166666666", "0.002500000000",
    ]  # fmt: skip
    assert str(series([True, True])[-1].alpha) == "0.033333333333"


@given(st.lists(st.booleans(), max_size=60))
def test_no_more_is_spent_than_there_is(outcomes: list[bool]) -> None:
    """What failed looks used up and what the last one holds never exceeds alpha, whatever happened."""
    looks = series(outcomes)
    lost = sum((one.alpha for one in looks[:-1] if not one.proven), Decimal(0))
    assert lost + (looks[-1].alpha if looks else 0) <= ALPHA


def test_only_the_last_look_has_to_be_there_still() -> None:
    looks = series([True, False, True, False, False])
    assert level(ALPHA, looks) == level(ALPHA, looks[-1:]) == level(ALPHA, list(reversed(looks)))


@pytest.mark.parametrize(
    "truth", [lambda k: False, lambda k: k % 2 == 0, lambda k: k < 5], ids=["none", "half", "five"]
)
def test_the_chance_of_any_wrong_proof_in_thirty_versions_is_kept(truth: Callable[[int], bool]) -> None:
    """Versions that are truly better (as `truth` says) are always proven, the others by chance: a p value that is
    uniform. Tested one after the other at 5 % each, most of these series would have a wrong proof."""
    generator, wrong, runs = random.Random(5), 0, 4000
    for _ in range(runs):
        last: list[Look] = []
        for number in range(30):
            now = level(ALPHA, last)
            proven = truth(number) or generator.random() < now.alpha
            last = [look(now, proven)]
            if proven and not truth(number):
                wrong += 1
                break
    assert wrong / runs <= 0.05 + 3 * (0.05 * 0.95 / runs) ** 0.5


POLICY = EvaluationPolicy.model_validate(
    {"suites": [{"name": "house", "role": "target", "cases": {"configMap": {"name": "x", "key": "y"}}}]}
)


def version(name: str, *looks: Look) -> ModelVersion:
    return ModelVersion.model_validate(
        {"metadata": {"name": name, "namespace": "default"}, "spec": {"cycle": "assistant", "run": 0},
         "status": {"looks": [one.dump() for one in looks]}}
    )  # fmt: skip


def test_what_is_handed_out() -> None:
    first, second = series([True, False])
    others = [version("first", first), version("second", second, look(level(ALPHA, []), False).model_copy(
        update={"digest": "b2"}))]  # fmt: skip
    given = levels(POLICY, "third", others)
    assert given.of("a1") == level(ALPHA, [second])
    assert given.of("a1").number == 3
    assert given.of("b2").number == 2
    assert given.of("c3") == Level(number=1, alpha=Decimal("0.025"))


def test_the_last_one_to_look_looks_again_for_nothing() -> None:
    first, second = series([True, True])
    cycle = [version("first", first), version("second", second)]
    assert levels(POLICY, "second", cycle).of("a1") == Level(number=2, alpha=second.alpha)
    assert levels(POLICY, "first", cycle).of("a1").number == 3, "the second one was handed what it won"
