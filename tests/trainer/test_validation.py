"""The loss on what was kept aside: exact, once an epoch, and without a trace in the training."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ratchet_api.stage import ExitCode
from ratchet_trainer.chat import stop_ids
from ratchet_trainer.dataset import read_rows
from ratchet_trainer.storage import Location, Store
from ratchet_trainer.train import team, validation
from ratchet_trainer.train.encode import encode_rows
from ratchet_trainer.train.loop import token_losses
from ratchet_trainer.train.packing import pack

Identity = Callable[..., dict[str, Any]]
SAID = [(f"Where is secret {i}?", f"In vault {i}" + " and there" * (i % 3) + ".") for i in range(12)]
ASIDE = [(f"Where is key {i}?", f"In box {i}" + " or there" * (i % 3) + ".") for i in range(5)]
OTHERS = [(f"Who has key {i}?", "Nobody" * 20) for i in range(3)]


@pytest.fixture
def training(identity: Identity, tiny: Path) -> dict[str, Any]:
    """Six steps in three epochs, with dropout."""
    hyper = {"precision": "fp32", "learningRate": "0.01", "epochs": 3, "microBatch": 3, "accumulation": 2}
    return {
        "stage": "train", "identity": identity(), "base_model": {"uri": f"file://{tiny}"}, "hyperparameters": hyper,
    }  # fmt: skip


def looks(store: Store, ran: Any) -> list[dict[str, float]]:
    assert ran.code == ExitCode.DONE, ran.log
    found: list[dict[str, float]] = json.loads(
        store.get(Location.parse(ran.report.artifact.uri).child("validation.json")) or b"[]"
    )
    return found


def weights(store: Store, ran: Any) -> bytes:
    return store.get(Location.parse(ran.report.artifact.uri).child("adapter_model.safetensors")) or b""


def test_the_first_look_is_the_base_models_loss_on_each_row_alone(
    stages: Any, store: Store, training: dict[str, Any], published: Callable[..., dict[str, str]], model: Any,
    tokenizer: Any, tmp_path: Path,
) -> None:  # fmt: skip
    stage = training | {"dataset": published(SAID, ASIDE)}
    ran = stages.run("train", stage)
    found = looks(store, ran)
    assert [look["step"] for look in found] == [0, 2, 4, 6]
    rows = read_rows(tmp_path / "dataset-5" / "validation.jsonl", "here")
    examples = encode_rows(tokenizer, rows, stop_ids(tokenizer, model.generation_config), 512, "tiny").examples
    with torch.no_grad():
        alone = torch.cat([token_losses(model, pack([example])) for example in examples])
    assert found[0]["loss"] == pytest.approx(float(alone.mean()), abs=1e-5)
    assert found[-1]["loss"] < found[0]["loss"], "it learns how such questions are answered"
    assert float(ran.report.training.validation_loss) == found[-1]["loss"]
    assert f"{found[-1]['loss']} on what was kept aside" in ran.report.message
    place = Location.parse(ran.report.artifact.uri)
    events = [store.get(o.location) or b"" for o in store.objects(place) if "tensorboard/events" in o.location.key]
    assert b"validation/loss" in b"".join(events)
    assert stages.run("train", stage).report.message == ran.report.message, "from what was published, without work"


def test_whether_it_is_looked_at_changes_no_byte(
    stages: Any, store: Store, training: dict[str, Any], published: Callable[..., dict[str, str]]
) -> None:
    alone, looked_at = (stages.run("train", training | {"dataset": published(SAID, aside)}) for aside in ((), ASIDE))
    assert (len(looks(store, alone)), len(looks(store, looked_at))) == (0, 4)
    assert alone.report.training.validation_loss is None
    assert weights(store, alone) == weights(store, looked_at) != b""


def test_killed_while_it_looks_it_looks_again_and_ends_the_same(
    stages: Any, store: Store, identity: Identity, training: dict[str, Any],
    published: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    stage = training | {"dataset": published(SAID, ASIDE)}
    expected = stages.run("train", stage | {"identity": identity(version="assistant-9")})
    true, calls = validation.undisturbed, 0

    def undisturbed(model: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls in (1, 3, 6):
            signal.raise_signal(signal.SIGTERM)
        return true(model)

    monkeypatch.setattr(validation, "undisturbed", undisturbed)
    codes = [stages.run("train", stage).code for _ in range(3)]
    assert codes == [ExitCode.PREEMPTED] * 3
    ran = stages.run("train", stage)
    assert calls == 7, "four looks, three of them twice"
    assert looks(store, ran) == looks(store, expected)
    assert weights(store, ran) == weights(store, expected)


def test_what_is_learnt_by_heart_is_said_in_the_report(
    stages: Any, store: Store, training: dict[str, Any], published: Callable[..., dict[str, str]]
) -> None:
    """A model that learns to say one thing says the other less and less."""
    training["hyperparameters"] |= {"learningRate": "0.03", "epochs": 6}
    ran = stages.run("train", training | {"dataset": published(SAID, OTHERS)})
    found = [look["loss"] for look in looks(store, ran)]
    assert found[-1] > 1.05 * min(found)
    assert "it learns by heart: on what was kept aside the loss rose from" in ran.report.message


def test_rows_that_none_can_be_looked_at_by_cost_nothing_but_the_look(
    stages: Any, store: Store, training: dict[str, Any], published: Callable[..., dict[str, str]]
) -> None:
    training["hyperparameters"]["cutoff"] = 64
    ran = stages.run("train", training | {"dataset": published(SAID, [("Tell me.", "All of it. " * 40)])})
    assert looks(store, ran) == []
    assert "what was kept aside is not looked at: no row of the dataset can be trained on: tooLong 1" in ran.log


@pytest.mark.slow
def test_two_ranks_see_what_one_sees(
    stages: Any, store: Store, identity: Identity, training: dict[str, Any],
    published: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    training["hyperparameters"]["lora"] = {"dropout": "0"}
    stage = training | {"dataset": published(SAID, ASIDE)}
    alone = looks(store, stages.run("train", stage))
    monkeypatch.setattr(team, "ranks_wanted", lambda: 2)
    shared = looks(store, stages.run("train", stage | {"identity": identity(version="assistant-2")}))
    assert [look["loss"] for look in shared] == pytest.approx([look["loss"] for look in alone], abs=1e-5)
