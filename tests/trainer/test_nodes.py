"""Several nodes, as a TrainJob has them: pods that know no more than torchrun's environment, here as processes."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from ratchet_api.reasons import Reason
from ratchet_api.stage import ExitCode, StageReport
from ratchet_trainer.errors import DataError, OutOfMemory, Preempted, StageError, TryAgain, UserError
from ratchet_trainer.storage import Location, Store
from ratchet_trainer.train import nodes, team

Identity = Callable[..., dict[str, Any]]
STEPS = 6
PLACE = {"PET_NNODES": "3", "PET_NODE_RANK": "2", "PET_MASTER_ADDR": "t-node-0-0.t", "PET_MASTER_PORT": "29400"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_a_pod_s_place() -> None:
    assert nodes.here({}) is None
    assert nodes.here({"PET_NNODES": "1", "PET_NODE_RANK": "0"}) is None, "a TrainJob of one node needs nobody"
    place = nodes.here(PLACE)
    assert place == nodes.Place(2, 3, "t-node-0-0.t", 29400)
    assert place.meeting == "tcp://t-node-0-0.t:29400"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"PET_MASTER_ADDR": None}, "PET_NNODES is 3, but PET_MASTER_ADDR is not set: use a torch training runtime"),
        ({"PET_NNODES": "many"}, "is no number"),
        ({"PET_NODE_RANK": "3"}, "PET_NODE_RANK is 3: write 0 to 2"),
    ],
)
def test_a_place_that_is_none(changes: dict[str, str | None], words: str) -> None:
    environment = {key: value for key, value in (PLACE | changes).items() if value is not None}
    with pytest.raises(UserError, match=words):
        nodes.here(environment)


def test_ranks_are_numbered_node_by_node() -> None:
    plan = nodes.Plan([2, 8, 4], packed=True, precision="bf16")
    assert [plan.first(node) for node in range(3)] == [0, 2, 10]


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> tuple[nodes.Board, Any]:
    """Node 0's board, and another node's view of it."""
    monkeypatch.setattr(nodes, "LISTEN_SECONDS", 0.0)
    place = nodes.Place(0, 2, "127.0.0.1", free_port())
    made = nodes.Board(place)
    return made, team.connect(place.meeting, timedelta(seconds=10))


def test_what_each_node_brings(board: tuple[nodes.Board, Any]) -> None:
    ours, theirs = board
    theirs.set("brings/1", json.dumps({"ranks": 4, "base": "sha256:a"}))
    assert ours.gather(nodes.Brings(8, "sha256:a")) == [8, 4]


def test_another_base_model_on_one_node(board: tuple[nodes.Board, Any]) -> None:
    ours, theirs = board
    theirs.set("brings/1", json.dumps({"ranks": 1, "base": "sha256:b"}))
    with pytest.raises(DataError, match=r"node 1 has another base model \(sha256:b\) than node 0 \(sha256:a\)"):
        ours.gather(nodes.Brings(1, "sha256:a"))


@pytest.mark.parametrize("error", [OutOfMemory, TryAgain, Preempted])
def test_a_node_that_leaves_says_why(board: tuple[nodes.Board, Any], error: type[StageError]) -> None:
    ours, theirs = board
    theirs.set("leaves", f"{error.__name__} node 1 is full")
    with pytest.raises(error, match=None if error is Preempted else "node 1 is full"):
        ours.gather(nodes.Brings(1, "sha256:a"))


@pytest.fixture
def training(identity: Identity, published: Callable[..., dict[str, str]], tiny: Path) -> dict[str, Any]:
    """Six steps of five examples, or of two at the end of an epoch."""
    said = [(f"Where is secret {i}?", f"In vault {i}" + " and there" * (i % 4) + ".") for i in range(12)]
    return {
        "stage": "train", "identity": identity(), "base_model": {"uri": f"file://{tiny}"},
        "dataset": published(said),
        "hyperparameters": {
            "precision": "fp32", "learningRate": "0.01", "epochs": 2, "microBatch": 5, "accumulation": 1,
            "lora": {"dropout": "0"},
        },
    }  # fmt: skip


class Other:
    """Node 1, another pod."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder, self._environment = folder, environment
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, stage: dict[str, Any]) -> None:
        self._folder.mkdir(exist_ok=True)
        (self._folder / "stage.json").write_text(json.dumps(stage))
        command = [
            sys.executable, "-m", "ratchet_trainer", "train", "--input", str(self._folder / "stage.json"), "--report",
            str(self._folder / "report.json"), "--scratch", str(self._folder / "scratch"),
        ]  # fmt: skip
        self.process = subprocess.Popen(command, env=os.environ | self._environment)

    def ended(self) -> tuple[int, StageReport]:
        assert self.process is not None
        code = self.process.wait(timeout=120)
        return code, StageReport.model_validate_json((self._folder / "report.json").read_bytes())

    def rank(self) -> int:
        """Process id of its only rank."""
        assert self.process is not None
        (child,) = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(child)


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Other]:
    """This process is node 0 of two; node 1 is another one."""
    place = {"PET_NNODES": "2", "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(free_port())}
    for key, value in (place | {"PET_NODE_RANK": "0", "GLOO_SOCKET_IFNAME": "lo"}).items():
        monkeypatch.setenv(key, value)
    made = Other(tmp_path / "node-1", {"PET_NODE_RANK": "1"})
    yield made
    if made.process is not None:
        made.process.kill()
        made.process.wait()


def result(store: Store, report: StageReport) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The losses of all steps, and the adapter."""
    assert report.artifact is not None
    place = Location.parse(report.artifact.uri)
    curve = json.loads(store.get(place.child("loss.json")) or b"")
    return [row["loss"] for row in curve], load(store.get(place.child("adapter_model.safetensors")) or b"")


@pytest.mark.slow
def test_two_nodes_train_what_one_trains(
    stages: Any, identity: Identity, store: Store, training: dict[str, Any], other: Other,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("PET_NNODES", "1")
    alone = stages.run("train", training | {"identity": identity(version="one")})
    assert alone.code == ExitCode.DONE, alone.log
    monkeypatch.setenv("PET_NNODES", "2")
    both = training | {"identity": identity(version="two")}
    other.start(both)
    ran = stages.run("train", both)
    assert ran.code == ExitCode.DONE, ran.log
    assert "2 rank(s) on cpu" in ran.log
    code, said = other.ended()
    assert (code, said.artifact) == (ExitCode.DONE, None)
    assert said.message == "node 1 of 2 has computed its share; the report is node 0's"
    losses, adapter = result(store, alone.report)
    shared_losses, shared = result(store, ran.report)
    assert len(losses) == STEPS
    assert shared_losses == pytest.approx(losses, abs=1e-5)
    for name, weights in adapter.items():
        torch.testing.assert_close(shared[name], weights, atol=1e-5, rtol=1e-4)

    other.start(both)
    again = stages.run("train", both | {"identity": identity(version="two")})
    assert (again.code, other.ended()[0]) == (ExitCode.DONE, ExitCode.DONE), "there is nothing left to do for either"
    assert again.report.artifact == ran.report.artifact


@pytest.mark.slow
def test_a_node_that_has_to_leave_costs_no_step(
    stages: Any, identity: Identity, training: dict[str, Any], other: Other,
    at_step: Callable[[int, Callable[[], None]], None], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Its machine is reclaimed: node 0 hears of it, saves and leaves, and the next attempt has the same bytes."""
    training["hyperparameters"]["lora"]["dropout"] = "0.1"
    whole = training | {"identity": identity(version="whole")}
    other.start(whole)
    expected = stages.run("train", whole)
    assert (expected.code, other.ended()[0]) == (ExitCode.DONE, ExitCode.DONE), expected.log

    other.start(training)
    process, place = other.process, nodes.here()
    assert process is not None
    assert place is not None
    monkeypatch.setattr(nodes, "LISTEN_SECONDS", 0.0)

    def reclaimed() -> None:
        process.send_signal(signal.SIGTERM)
        view = team.connect(place.meeting, timedelta(seconds=10))
        view.wait(["leaves"], timedelta(seconds=60))

    at_step(2, reclaimed)
    left = stages.run("train", training)
    assert (left.code, left.report.reason) == (ExitCode.PREEMPTED, Reason.PREEMPTED), left.log
    assert "checkpoint after step 2" in left.log
    code, said = other.ended()
    assert (code, said.reason) == (ExitCode.PREEMPTED, Reason.PREEMPTED)

    at_step(0, lambda: None)
    next_attempt = training | {"identity": identity(attempt=1)}
    other.start(next_attempt)
    ran = stages.run("train", next_attempt)
    assert (ran.code, other.ended()[0]) == (ExitCode.DONE, ExitCode.DONE), ran.log
    assert "going on after step 2" in ran.log
    assert ran.report.artifact.digest == expected.report.artifact.digest


@pytest.mark.slow
def test_a_node_that_runs_out_of_memory(
    stages: Any, training: dict[str, Any], other: Other, at_step: Callable[[int, Callable[[], None]], None]
) -> None:
    other.start(training)
    at_step(2, lambda: os.kill(other.rank(), signal.SIGKILL))
    ran = stages.run("train", training)
    code, said = other.ended()
    assert (code, said.reason) == (ExitCode.KILLED, Reason.OUT_OF_MEMORY)
    assert (ran.code, ran.report.reason) == (ExitCode.KILLED, Reason.OUT_OF_MEMORY), ran.log
    assert "a rank of node 1 ran out of memory" in ran.report.message
    assert torch.distributed.is_initialized() is False


@pytest.mark.slow
def test_a_node_0_that_is_gone(training: dict[str, Any], other: Other) -> None:
    """Its board goes with it: the others do not wait for ever."""
    place = nodes.here()
    assert place is not None
    board = nodes.Board(place)
    other.start(training)
    view = team.connect(place.meeting, timedelta(seconds=10))
    view.wait(["brings/1"], timedelta(seconds=60))
    del board, view
    code, said = other.ended()
    assert (code, said.reason) == (ExitCode.TRY_AGAIN, Reason.INFRASTRUCTURE_ERROR)
    assert "node 0 is gone" in said.message
