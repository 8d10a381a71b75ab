"""What a training will take, before a GPU is asked for."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratchet_api.cycle import DatasetNumbers
from ratchet_api.data import BaseModelRef, DatasetRef
from ratchet_api.pods import Resources
from ratchet_api.presets import PRESETS, Price, Training
from ratchet_api.training import Hyperparameters, Method, Recipe
from ratchet_api.version import ModelVersion, ModelVersionSpec, StageStatus, TrainingStatus
from ratchet_operator.domain.estimate import of, words

NOW = datetime(2026, 11, 23, 7, tzinfo=UTC)


def dataset(examples: int = 1000, characters: int = 400_000) -> DatasetNumbers:
    return DatasetNumbers(uri="s3://b-1/d", digest="sha256:d", examples=examples, characters=characters)


def version(name: str, seconds: int, examples: int, recipe: Recipe, ended: datetime = NOW) -> ModelVersion:
    spec = ModelVersionSpec(
        cycle="assistant",
        base_model=BaseModelRef(uri="s3://models/base"),
        dataset=DatasetRef(uri="s3://ratchet/d", digest="sha256:" + "d" * 64),
        training=recipe,
    )
    found = ModelVersion.model_validate({"metadata": {"name": name}, "spec": spec.dump()})
    stages = [StageStatus(stage="train", started_at=ended - timedelta(days=1), finished_at=ended)]
    training = TrainingStatus(examples=examples, seconds=seconds)
    return found.model_copy(update={"status": found.status.model_copy(update={"stages": stages, "training": training})})


def test_a_preset_s_estimate_by_hand() -> None:
    """400,000 characters are 100,000 tokens; 6 x 4e9 x 1e5 FLOP at 0.3 of 125 TFLOPS are 64 s, and 8 GB at 500 MB/s
    are 16 s more: 80 s, 0.02 hours, at 2.50 an hour 0.06."""
    price = Price(per_gpu_hour=Decimal("2.50"), currency="EUR")
    said = of(Training(preset="small", price=price), dataset(), [])
    assert said is not None
    assert (said.gpus, said.gpu_hours, said.cost, said.currency) == (1, Decimal("0.02"), Decimal("0.06"), "EUR")
    assert words(said) == "about 0.02 GPU-hours, 0.06 EUR; preset small: 4 billion weights, about 100000 tokens"


@pytest.mark.parametrize(("method", "seconds"), [("sft", 640), ("dpo", 640 * 8 / 6), ("kto", 640 * 12 / 6)])
def test_what_is_compared_costs_forward_passes(method: Method, seconds: float) -> None:
    """dpo: one more pass over each token (2 of 6 FLOP); kto: two more over as many mismatched ones."""
    said = of(Training(preset="small", method=method), dataset(characters=4_000_000), [])
    assert said is not None
    assert float(said.gpu_hours) == pytest.approx((seconds + 16) / 3600, abs=0.005)
    assert ("compares" in said.basis) == (method != "sft")


def test_the_last_training_of_the_same_recipe_knows_better() -> None:
    training = Training(preset="medium")
    versions = [
        version("assistant-1", 7200, 500, training.recipe, NOW - timedelta(days=9)),
        version("assistant-2", 3600, 500, training.recipe),
        version("assistant-3", 1, 500, Recipe(), NOW + timedelta(days=1)),
    ]
    said = of(training, dataset(examples=1000), versions)
    assert said is not None
    assert (said.gpu_hours, said.cost) == (Decimal("2.00"), None)
    assert said.basis == "assistant-2 trained 1.00 hours on 500 examples"


def test_two_gpus_cost_twice_as_much() -> None:
    resources = Resources(limits={"amd.com/gpu": "2"})
    training = Training(resources=resources)
    said = of(training, dataset(), [version("assistant-1", 3600, 1000, training.recipe)])
    assert said is not None
    assert (said.gpus, said.gpu_hours) == (2, Decimal("2.00"))


@pytest.mark.parametrize(
    ("training", "numbers"),
    [
        (Training(), dataset()),
        (Training(resources=Resources(limits={"cpu": "4"})), dataset()),
        (Training(resources=Resources(limits={"nvidia.com/gpu": "1"})), dataset()),
        (Training(preset="small"), dataset(examples=0)),
        (Training(preset="small"), dataset(characters=0)),
    ],
    ids=["no GPU", "CPU only", "sizes unknown", "no examples", "no text"],
)
def test_what_is_not_known_is_not_said(training: Training, numbers: DatasetNumbers) -> None:
    assert of(training, numbers, [version("assistant-1", 0, 1000, training.recipe)]) is None


@given(st.sampled_from(["small", "medium", "large"]), st.integers(1, 10**10), st.integers(1, 10**10))
def test_more_text_never_takes_less(preset: Any, one: int, other: int) -> None:
    few, many = sorted((one, other))
    less, more = (of(Training(preset=preset), dataset(characters=text), []) for text in (few, many))
    assert less is not None
    assert more is not None
    assert Decimal("0.01") <= less.gpu_hours <= more.gpu_hours


def test_a_preset_fills_in_what_was_not_written() -> None:
    training = Training(preset="large")
    assert training.recipe == Recipe(**PRESETS["large"].hyperparameters.model_dump())
    assert training.job.resources == PRESETS["large"].resources
    own = Resources(limits={"nvidia.com/gpu": "4"})
    assert Training(preset="large", resources=own).job.resources == own
    assert Training().recipe == Recipe()
    assert Training(hyperparameters=Hyperparameters(epochs=2)).recipe.epochs == 2


def test_every_preset_is_a_recipe_that_a_version_takes() -> None:
    for preset in PRESETS.values():
        assert Hyperparameters.model_validate(preset.hyperparameters.dump()) == preset.hyperparameters
