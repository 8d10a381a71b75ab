"""The error rate that looks at one suite have left."""

import random
from collections.abc import Callable
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratchet_api.version import Look
from ratchet_operator.domain.spending import Level, level

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
