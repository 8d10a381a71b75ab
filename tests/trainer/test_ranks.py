"""Several ranks, as several GPUs have them: the same gradient as one, resumed bit for bit, and nobody left behind."""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load

from ratchet_api.reasons import Reason
from ratchet_api.stage import ExitCode
from ratchet_trainer.storage import Location, Store
from ratchet_trainer.train import team
from ratchet_trainer.train.encode import Example

Identity = Callable[..., dict[str, Any]]
STEPS = 6


@given(st.lists(st.integers(1, 500), max_size=20), st.integers(1, 8))
def test_each_example_is_one_rank_s_and_the_work_is_even(lengths: list[int], ranks: int) -> None:
    batch = [Example(tuple(range(length)), (True,) * length) for length in lengths]
    shares = [team.share(batch, rank, ranks) for rank in range(ranks)]
    assert sorted(len(one) for share in shares for one in share) == sorted(lengths)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    loads = [sum(len(one) for one in share) for share in shares]
    assert max(loads) - min(loads) <= max(lengths, default=0)


@pytest.fixture
def training(identity: Identity, published: Callable[..., dict[str, str]], tiny: Path) -> dict[str, Any]:
    """Six steps of five examples, or of two at the end of an epoch, so that ranks differ in what they do."""
    said = [(f"Where is secret {i}?", f"In vault {i}" + " and there" * (i % 4) + ".") for i in range(12)]
    return {
        "stage": "train", "identity": identity(), "base_model": {"uri": f"file://{tiny}"},
        "dataset": published(said),
        "hyperparameters": {
            "precision": "fp32", "learningRate": "0.01", "epochs": 2, "microBatch": 5, "accumulation": 1,
            "lora": {"dropout": "0"},
        },
    }  # fmt: skip


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """So many of them, on the CPU."""

    def wanted(count: int) -> None:
        monkeypatch.setattr(team, "ranks_wanted", lambda: count)

    return wanted


@pytest.fixture
def followers(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """Those that were started."""
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def start(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(team.subprocess, "Popen", start)
    return started


def result(store: Store, ran: Any) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The losses of all steps, and the adapter."""
    assert ran.code == ExitCode.DONE, ran.log
    place = Location.parse(ran.report.artifact.uri)
    curve = json.loads(store.get(place.child("loss.json")) or b"")
    return [row["loss"] for row in curve], load(store.get(place.child("adapter_model.safetensors")) or b"")


@pytest.mark.slow
def test_two_ranks_train_what_one_trains(
    stages: Any, identity: Identity, store: Store, training: dict[str, Any], ranks: Callable[[int], None],
    followers: list[subprocess.Popen[bytes]],
) -> None:  # fmt: skip
    losses, adapter = result(store, stages.run("train", training | {"identity": identity(version="one")}))
    assert (len(losses), followers) == (STEPS, [])
    ranks(2)
    ran = stages.run("train", training | {"identity": identity(version="two")})
    assert "2 rank(s) on cpu" in ran.log
    shared_losses, shared = result(store, ran)
    assert shared_losses == pytest.approx(losses, abs=1e-5)
    for name, weights in adapter.items():
        torch.testing.assert_close(shared[name], weights, atol=1e-5, rtol=1e-4)
    assert [one.returncode for one in followers] == [0]


@pytest.mark.slow
def test_killed_and_resumed_with_as_many_ranks_it_has_the_same_bytes(
    stages: Any, identity: Identity, training: dict[str, Any], ranks: Callable[[int], None],
    at_step: Callable[[int, Callable[[], None]], None], followers: list[subprocess.Popen[bytes]],
) -> None:  # fmt: skip
    ranks(2)
    hyper = training["hyperparameters"] | {"lora": {"dropout": "0.1"}}
    training = training | {"hyperparameters": hyper}
    whole = stages.run("train", training | {"identity": identity(version="whole")})
    assert whole.code == ExitCode.DONE, whole.log
    at_step(3, lambda: signal.raise_signal(signal.SIGTERM))
    killed = stages.run("train", training)
    assert (killed.code, killed.report.reason) == (ExitCode.PREEMPTED, Reason.PREEMPTED), killed.log
    assert all(one.returncode is not None for one in followers), "nobody is left behind"
    at_step(0, lambda: None)
    ran = stages.run("train", training | {"identity": identity(attempt=1)})
    assert ran.code == ExitCode.DONE, ran.log
    assert "going on after step 3" in ran.log
    assert ran.report.artifact.digest == whole.report.artifact.digest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "code", "reason", "words"),
    [
        (signal.SIGKILL, ExitCode.KILLED, Reason.OUT_OF_MEMORY, "rank 1 ran out of memory: lower microBatch"),
        (signal.SIGABRT, ExitCode.TRY_AGAIN, Reason.INFRASTRUCTURE_ERROR, "rank 1 of 2 ended with exit code -6"),
    ],
)
def test_a_rank_that_dies_ends_the_attempt_by_name(
    stages: Any, training: dict[str, Any], ranks: Callable[[int], None],
    at_step: Callable[[int, Callable[[], None]], None], followers: list[subprocess.Popen[bytes]],
    sent: signal.Signals, code: ExitCode, reason: Reason, words: str,
) -> None:  # fmt: skip
    ranks(2)
    at_step(2, lambda: os.kill(followers[0].pid, sent))
    ran = stages.run("train", training)
    assert (ran.code, ran.report.reason) == (code, reason), ran.log
    assert words in ran.report.message
    assert torch.distributed.is_initialized() is False


@pytest.mark.slow
def test_a_rank_that_does_not_come_up_ends_the_attempt_by_name(
    stages: Any, training: dict[str, Any], ranks: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks(2)
    monkeypatch.setattr(team.sys, "executable", "/bin/false")
    ran = stages.run("train", training)
    assert ran.code == ExitCode.TRY_AGAIN, ran.log
    assert "rank 1 of 2 ended with exit code 1" in ran.report.message


@pytest.mark.slow
def test_after_a_checkpoint_of_the_last_step_nobody_waits_for_another(
    stages: Any, identity: Identity, training: dict[str, Any], ranks: Callable[[int], None],
    at_step: Callable[[int, Callable[[], None]], None], followers: list[subprocess.Popen[bytes]],
) -> None:  # fmt: skip
    ranks(2)
    at_step(STEPS, lambda: signal.raise_signal(signal.SIGTERM))
    assert stages.run("train", training).code == ExitCode.PREEMPTED
    at_step(0, lambda: None)
    ran = stages.run("train", training | {"identity": identity(attempt=1)})
    assert ran.code == ExitCode.DONE, ran.log
    assert f"going on after step {STEPS}" in ran.log
    assert followers[-1].returncode == 0
