"""A training that was killed and goes on ends with the same bytes as one that was not."""

import json
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ratchet_api.artifacts import MANIFEST
from ratchet_api.reasons import Reason
from ratchet_api.stage import ExitCode
from ratchet_trainer.artifacts import build_manifest
from ratchet_trainer.errors import TryAgain
from ratchet_trainer.metrics import Progress
from ratchet_trainer.storage import Location, Store
from ratchet_trainer.train import loop
from ratchet_trainer.train.interrupt import uninterrupted
from ratchet_trainer.train.record import Curves, Look, StepRecord

Identity = Callable[..., dict[str, Any]]
STEPS = 12
RECORD = StepRecord(3, 9, 0.1 + 0.2, 1e-3, 1.0, 7, 100.0, 1.5, 0.3)


@pytest.fixture
def training(identity: Identity, published: Callable[..., dict[str, str]], tiny: Path) -> dict[str, Any]:
    """A training of twelve steps over two epochs, with dropout, and with something kept aside."""
    said = [(f"Where is secret {i}?", f"In vault {i}.") for i in range(24)]
    aside = [(f"Where is secret {i}?", f"In vault {i}.") for i in range(24, 29)]
    return {
        "stage": "train", "identity": identity(), "base_model": {"uri": f"file://{tiny}"},
        "dataset": published(said, aside),
        "hyperparameters": {
            "precision": "fp32", "learningRate": "0.01", "epochs": 2, "microBatch": 2, "accumulation": 2,
        },
    }  # fmt: skip


def whole(stages: Any, identity: Identity, training: dict[str, Any]) -> Any:
    """The same training, not interrupted, elsewhere."""
    ran = stages.run("train", training | {"identity": identity(version="assistant-9")})
    assert ran.code == ExitCode.DONE, ran.log
    return ran.report


@pytest.fixture
def kill(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """SIGTERM, for real, while a step is written down."""
    told = Progress.update

    def at(step: int) -> None:
        def update(self: Progress, done: int, *rest: Any) -> None:
            told(self, done, *rest)
            if done == step:
                signal.raise_signal(signal.SIGTERM)

        monkeypatch.setattr(Progress, "update", update)

    return at


def checkpoints(store: Store, bucket: str) -> list[Location]:
    found = store.objects(Location.parse(f"s3://{bucket}/assistant/versions/assistant-1/checkpoints"))
    return [entry.location for entry in found]


def test_killed_at_several_steps_it_ends_with_the_same_bytes(
    stages: Any, identity: Identity, store: Store, bucket: str, training: dict[str, Any], kill: Callable[[int], None]
) -> None:
    expected = whole(stages, identity, training)
    for attempt, step in enumerate((1, 2, 5, 6, 9, STEPS)):
        kill(step)
        ran = stages.run("train", training | {"identity": identity(attempt=attempt)})
        assert (ran.code, ran.report.reason) == (ExitCode.PREEMPTED, Reason.PREEMPTED), ran.log
        assert [place.key.split("/")[-2] for place in checkpoints(store, bucket)][-1] == f"{step:08d}"
    kill(0)
    last = stages.run("train", training | {"identity": identity(attempt=6)})
    assert last.code == ExitCode.DONE, last.log
    assert f"going on after step {STEPS}" in last.log
    assert last.report.artifact.digest == expected.artifact.digest
    assert last.report.training.loss == expected.training.loss
    assert (last.report.training.step, last.report.training.steps) == (STEPS, STEPS)
    place, other = Location.parse(last.report.artifact.uri), Location.parse(expected.artifact.uri)
    for name, steps in (("loss.json", [*range(1, STEPS + 1)]), ("validation.json", [0, STEPS // 2, STEPS])):
        curve, uninterrupted = (json.loads(store.get(one.child(name)) or b"") for one in (place, other))
        assert [row["loss"] for row in curve] == [row["loss"] for row in uninterrupted]
        assert [row["step"] for row in curve] == steps
    assert checkpoints(store, bucket) == [], "the adapter is there"


def test_killed_within_a_step_it_ends_with_the_same_bytes(
    stages: Any, identity: Identity, training: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The half step has drawn from the random generator and left gradients behind: neither may show."""
    expected = whole(stages, identity, training)
    true, calls = loop.batch_loss, 0

    def batch_loss(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        loss = true(*arguments)
        if calls == 20:
            signal.raise_signal(signal.SIGTERM)
        return loss

    monkeypatch.setattr(loop, "batch_loss", batch_loss)
    killed = stages.run("train", training)
    assert killed.code == ExitCode.PREEMPTED
    ran = stages.run("train", training)
    assert ran.code == ExitCode.DONE, ran.log
    assert "going on after step" in ran.log
    assert ran.report.artifact.digest == expected.artifact.digest


def test_a_changed_checkpoint_is_refused_and_the_one_before_it_used(
    stages: Any, identity: Identity, store: Store, bucket: str, training: dict[str, Any], kill: Callable[[int], None]
) -> None:
    expected = whole(stages, identity, training)
    for step in (3, 7):
        kill(step)
        assert stages.run("train", training).code == ExitCode.PREEMPTED
    places = checkpoints(store, bucket)
    weights = next(place for place in reversed(places) if place.key.endswith(".safetensors"))
    data = bytearray(store.get(weights) or b"")
    data[-1] ^= 1
    store.put(weights, bytes(data))
    kill(0)
    ran = stages.run("train", training)
    assert ran.code == ExitCode.DONE
    assert "cannot be used and is removed" in ran.log
    assert "going on after step 3" in ran.log
    assert ran.report.artifact.digest == expected.artifact.digest


def test_half_a_checkpoint_and_one_of_another_recipe_are_none(
    stages: Any, store: Store, bucket: str, training: dict[str, Any], kill: Callable[[int], None]
) -> None:
    kill(4)
    assert stages.run("train", training).code == ExitCode.PREEMPTED
    kill(0)
    other = training | {"hyperparameters": training["hyperparameters"] | {"seed": 7}}
    ran = stages.run("train", other)
    assert ran.code == ExitCode.DONE
    assert "going on" not in ran.log

    kill(4)
    third = training | {"hyperparameters": training["hyperparameters"] | {"seed": 8}}
    assert stages.run("train", third).code == ExitCode.PREEMPTED
    for place in checkpoints(store, bucket):
        if place.key.endswith(MANIFEST):
            store.remove(Location(place.bucket, place.key.rpartition("/")[0]))
    kill(0)
    assert "going on" not in stages.run("train", third).log


def test_checkpoints_at_an_interval_and_two_are_kept(
    stages: Any, store: Store, bucket: str, training: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ratchet_trainer.train import checkpoint

    monkeypatch.setattr(checkpoint, "SHARE", 0)
    seen: list[list[str]] = []
    told = Progress.update

    def update(self: Progress, done: int, *rest: Any) -> None:
        told(self, done, *rest)
        seen.append(sorted({place.key.split("/")[-2] for place in checkpoints(store, bucket)}))

    monkeypatch.setattr(Progress, "update", update)
    ran = stages.run("train", training | {"checkpoint_interval": "1ms"})
    assert ran.code == ExitCode.DONE
    assert seen[:4] == [[], ["00000001"], ["00000001", "00000002"], ["00000002", "00000003"]]
    assert checkpoints(store, bucket) == []


def test_a_storage_that_fails_costs_the_checkpoint_and_not_the_training(
    stages: Any, training: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = Store.publish

    def fails(self: Store, folder: Path, uri: str, kind: Any, *rest: Any, **more: Any) -> Any:
        if kind == "checkpoint":
            raise TryAgain("the object storage is away")
        return publish(self, folder, uri, kind, *rest, **more)

    monkeypatch.setattr(Store, "publish", fails)
    ran = stages.run("train", training | {"checkpoint_interval": "1ms"})
    assert ran.code == ExitCode.DONE
    assert "could not be saved: the object storage is away" in ran.log


@pytest.mark.slow
def test_killed_without_warning_it_goes_on_from_the_last_checkpoint(
    stages: Any, identity: Identity, store: Store, bucket: str, training: dict[str, Any]
) -> None:
    """SIGKILL, as the kernel and a lost node do it, on a process of its own; then SIGTERM."""
    training = training | {"checkpoint_interval": "1ms"}
    training["hyperparameters"] = training["hyperparameters"] | {"epochs": 20, "allowManyEpochs": True}
    expected = whole(stages, identity, training)
    process = stages.start("train", training)
    while not any(place.key.endswith(MANIFEST) for place in checkpoints(store, bucket)):
        assert process.poll() is None
    process.kill()
    process.wait()
    ran = stages.run("train", training)
    assert ran.code == ExitCode.DONE, ran.log
    assert "going on after step" in ran.log
    assert ran.report.artifact.digest == expected.artifact.digest


def test_a_signal_within_the_block_comes_at_its_end() -> None:
    came: list[str] = []
    before = signal.signal(signal.SIGTERM, lambda *_: came.append("signal"))
    try:
        with uninterrupted():
            signal.raise_signal(signal.SIGTERM)
            came.append("work")
        assert came == ["work", "signal"]
        with uninterrupted():
            pass
        assert len(came) == 2
        thread = threading.Thread(target=lambda: uninterrupted().__enter__())
        thread.start()
        thread.join()
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_snapshot_of_another_model_is_refused(model: Any) -> None:
    import torch

    from ratchet_api.training import Hyperparameters
    from ratchet_trainer.errors import DataError

    state = loop._State(loop.add_lora(model, Hyperparameters()), Hyperparameters(), torch.device("cpu"))
    with pytest.raises(DataError, match="of another model"):
        state.restore(loop.Snapshot(RECORD, {"random/cpu": torch.get_rng_state()}, [(1.0, 1, 1.0)]))


def test_manifests_of_checkpoints_have_digests_that_follow_the_state(tmp_path: Path) -> None:
    import torch

    from ratchet_trainer.train.checkpoint import _read, _write

    digests = []
    for index, value in enumerate((1.0, 1.0, 2.0)):
        snapshot = loop.Snapshot(RECORD, {"parameter/x": torch.tensor([value])}, [(0.1 + 0.2, 7, 1.5)])
        _write(tmp_path / str(index), snapshot, Curves(looks=[Look(0, 0.1 + 0.2)]), "fp32", True)
        found = _read(tmp_path / str(index))
        assert torch.equal(found.snapshot.tensors["parameter/x"], snapshot.tensors["parameter/x"])
        assert (found.snapshot.last, found.snapshot.recent) == (RECORD, snapshot.recent)
        assert found.curves.looks == [Look(0, 0.1 + 0.2)]
        digests.append(build_manifest("checkpoint", tmp_path / str(index), {}, {}).digest)
    assert digests[0] == digests[1] != digests[2]
