"""A training that goes wrong ends early and says what to change."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratchet_api.training import Hyperparameters, Lora
from ratchet_trainer.errors import UserError
from ratchet_trainer.train.divergence import Watch, advice, by_heart
from ratchet_trainer.train.record import Look, StepRecord

HYPER = Hyperparameters(learning_rate=Decimal("0.03"), epochs=2, lora=Lora(rank=8))


def look(losses: list[float], steps: int | None = None) -> int:
    """Steps that were looked at until it ended."""
    watch = Watch(steps or len(losses), HYPER)
    for index, loss in enumerate(losses):
        watch.look(StepRecord(index + 1, steps or len(losses), loss, 0.03, 1.0, 10, 1.0, 1.0, 0.0))
    return len(losses)


def test_a_loss_that_rises_for_good_ends_the_training_with_its_numbers() -> None:
    with pytest.raises(UserError) as raised:
        look([3.0, 2.0, 1.0] * 10 + [6.0] * 30)
    text = str(raised.value)
    assert text.startswith("the loss rose from 1.90 (at step 12) to 3.90 at step 35 of 60")
    assert 'learningRate from "0.03" to "0.003"' in text
    assert "epochs from 2 to 1" in text
    assert "lora.rank from 8 to 16" in text


@pytest.mark.parametrize(
    "losses",
    [
        [3.0] * 40,
        [3.0] * 20 + [9.0] * 2 + [3.0] * 20,
        [0.1] * 20 + [0.9] * 20,
        [2.0] * 20 + [3.5] * 20,
        [5.0, 9.0, 30.0],
    ],
    ids=["flat", "two outliers", "small, and small still", "not twice as much", "too short to tell"],
)
def test_what_may_be_chance_goes_on(losses: list[float]) -> None:
    assert look(losses) == len(losses)


@given(st.lists(st.floats(0.01, 20), min_size=1, max_size=60))
def test_a_loss_that_falls_never_ends_it(losses: list[float]) -> None:
    assert look(sorted(losses, reverse=True)) == len(losses)


def test_advice_is_only_what_can_be_changed() -> None:
    small = Hyperparameters(precision="fp32", lora=Lora(rank=64))
    assert advice(small) == 'lower training.hyperparameters.learningRate from "0.00001" to "0.000001"'
    assert 'precision: "fp32"' in advice(Hyperparameters())
    assert 'maxGradNorm to "1.0"' in advice(Hyperparameters(max_grad_norm=Decimal(0)))


@pytest.mark.parametrize(
    ("lowest", "last", "rose", "less"),
    [
        (Look(20, 2.0), Look(20, 2.0), "", ""),
        (Look(10, 2.0), Look(20, 2.09), "", ""),
        (Look(10, 2.0), Look(20, 2.11), "from 2 (step 10) to 2.11;", "epochs from 2 to 1"),
        (Look(0, 2.0), Look(20, 3.0), "from 2 (step 0) to 3;", 'learningRate from "0.03" to "0.003"'),
    ],
    ids=["still falling", "within five per cent", "after an epoch too many", "never better than the base"],
)
def test_what_was_learnt_by_heart_is_told_with_what_to_change(lowest: Look, last: Look, rose: str, less: str) -> None:
    said = by_heart(lowest, last, HYPER)
    assert bool(said) == bool(rose)
    assert rose in said
    assert said.endswith(less)
