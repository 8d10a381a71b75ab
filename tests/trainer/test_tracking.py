"""Trainings in MLflow, on a real tracking server in a venv of its own: what the stage writes down, and the operator's
aliases on top of it."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ratchet_api.reasons import Reason
from ratchet_api.stage import ExitCode
from ratchet_operator.clients.mlflow import Mlflow, NotTold
from ratchet_trainer.errors import UserError
from ratchet_trainer.train import live, tracking

pytestmark = pytest.mark.slow
Identity = Callable[..., dict[str, Any]]
VERSION = "3.17.2"
MODEL = "default.assistant"


@pytest.fixture(scope="session")
def binary() -> Path:
    """`mlflow`, whose dependencies would not fit beside ours."""
    folder = Path(sys.prefix).parent / f"mlflow-{VERSION}"
    found = folder / "bin" / "mlflow"
    if not found.is_file():
        uv = [sys.executable, "-m", "uv"]
        subprocess.run([*uv, "venv", "-q", "--clear", str(folder)], check=True)
        subprocess.run([*uv, "pip", "install", "-q", "--python", str(folder), f"mlflow=={VERSION}"], check=True)
    return found


@pytest.fixture(scope="session")
def mlflow(binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a tracking server."""
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        str(binary), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    log = (folder / "log").open("wb")
    process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=environment)
    address = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 180
        while not _answers(address):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < until, (folder / "log").read_text()
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=60)
        log.close()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.fixture
def training(identity: Identity, published: Callable[..., dict[str, str]], tiny: Path) -> dict[str, Any]:
    said = [(f"Where is secret {i}?", f"In vault {i}.") for i in range(10)]
    hyper = {"precision": "fp32", "learningRate": "0.01", "microBatch": 2, "accumulation": 1, "lora": {"rank": 4}}
    return {
        "stage": "train", "identity": identity(), "base_model": {"uri": f"file://{tiny}"},
        "dataset": published(said[:8], said[8:]),
        "hyperparameters": hyper,
    }  # fmt: skip


async def ask(address: str, what: str, **query: str) -> Any:
    """What MLflow knows."""
    import aiohttp

    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{address}/api/2.0/mlflow/{what}", params=query) as answer,
    ):
        return await answer.json()


async def versions(address: str) -> list[Any]:
    found = await ask(address, "model-versions/search", filter=f"name='{MODEL}'")
    return list(found.get("model_versions") or [])


async def aliases(address: str) -> dict[str, str]:
    found = await ask(address, "registered-models/get", name=MODEL)
    return {one["alias"]: str(one["version"]) for one in found["registered_model"].get("aliases") or []}


async def test_a_training_and_its_aliases(
    stages: Any, identity: Identity, training: dict[str, Any], mlflow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{mlflow}/")
    ran = stages.run("train", training)
    assert ran.code == ExitCode.DONE, ran.log
    assert "was not told" not in ran.log
    (first,) = await versions(mlflow)
    assert first["source"] == ran.report.artifact.uri
    tags = {one["key"]: one["value"] for one in first["tags"]}
    assert tags["ratchet.dev/digest"] == ran.report.artifact.digest
    run = (await ask(mlflow, "runs/get", run_id=first["run_id"]))["run"]
    assert (run["info"]["run_name"], run["info"]["status"]) == ("assistant-1", "FINISHED")
    params = {one["key"]: one["value"] for one in run["data"]["params"]}
    assert (params["lora.rank"], params["learningRate"]) == ("4", "0.01")
    (used,) = run["inputs"]["dataset_inputs"]
    assert training["dataset"]["digest"].removeprefix("sha256:").startswith(used["dataset"]["digest"])
    curve = (await ask(mlflow, "metrics/get-history", run_id=first["run_id"], metric_key="loss"))["metrics"]
    assert [point["step"] for point in curve] == [1, 2, 3, 4]
    looks = (await ask(mlflow, "metrics/get-history", run_id=first["run_id"], metric_key="validation_loss"))["metrics"]
    assert [point["step"] for point in looks] == [0, 4]
    assert looks[1]["value"] == pytest.approx(float(ran.report.training.validation_loss))
    whole = {one["key"]: one["value"] for one in run["data"]["metrics"]}
    assert whole["final_loss"] == pytest.approx(float(ran.report.training.loss), abs=1e-5)

    again = stages.run("train", training | {"identity": identity(attempt=0)})
    assert again.code == ExitCode.DONE
    assert await versions(mlflow) == [first], "an attempt that finds everything there adds nothing"

    other = training | {"identity": identity(version="assistant-2")}
    other["hyperparameters"] = training["hyperparameters"] | {"seed": 7}
    second = stages.run("train", other)
    assert len(await versions(mlflow)) == 2
    client = Mlflow()
    try:
        one, two = ran.report.artifact.digest, second.report.artifact.digest
        await client.point(mlflow, {}, MODEL, {"champion": None, "challenger": one})
        assert await aliases(mlflow) == {"challenger": "1"}
        await client.point(mlflow, {}, MODEL, {"champion": one, "challenger": two})
        assert await aliases(mlflow) == {"champion": "1", "challenger": "2"}
        await client.point(mlflow, {}, MODEL, {"champion": two, "challenger": None})
        assert await aliases(mlflow) == {"champion": "2"}, "promoted"
        await client.point(mlflow, {}, MODEL, {"champion": one, "challenger": None})
        assert await aliases(mlflow) == {"champion": "1"}, "taken back"
        await client.point(mlflow, {}, MODEL, {"champion": "sha256:" + "0" * 64, "challenger": None})
        assert await aliases(mlflow) == {}, "an adapter that MLflow never heard of has no number"
        await client.point(mlflow, {}, "default.nobody", {"champion": one})
        with pytest.raises(NotTold, match=r"no answer \(ClientConnectorError\)"):
            await client.point("http://127.0.0.1:9", {}, MODEL, {"champion": one})
        with pytest.raises(NotTold, match="link-local address"):
            await client.point("http://169.254.169.254", {}, MODEL, {"champion": one})
    finally:
        await client.close()


async def test_what_a_killed_attempt_has_begun_is_completed(
    stages: Any, identity: Identity, training: dict[str, Any], mlflow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    who = identity(cycle="killed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow)
    post = tracking.Server.post

    def dies(self: tracking.Server, what: str, **body: Any) -> Any:
        if what == "runs/update" and body["status"] == "FINISHED":
            raise KeyboardInterrupt
        return post(self, what, **body)

    monkeypatch.setattr(tracking.Server, "post", dies)
    with pytest.raises(KeyboardInterrupt):
        stages.run("train", training | {"identity": who})
    monkeypatch.setattr(tracking.Server, "post", post)
    ran = stages.run("train", training | {"identity": who})
    assert ran.code == ExitCode.DONE, ran.log
    found = await ask(mlflow, "model-versions/search", filter="name='default.killed'")
    (version,) = found["model_versions"]
    run = (await ask(mlflow, "runs/get", run_id=version["run_id"]))["run"]
    assert run["info"]["status"] == "FINISHED"
    curve = (await ask(mlflow, "metrics/get-history", run_id=version["run_id"], metric_key="loss"))["metrics"]
    assert len(curve) == 4, "each step once"
    experiment = run["info"]["experiment_id"]
    found = tracking.Server(mlflow).post("runs/search", experiment_ids=[experiment])
    assert len(found["runs"]) == 1


async def test_a_training_is_told_of_while_it_goes_on_and_each_step_once(
    stages: Any, identity: Identity, training: dict[str, Any], mlflow: str, monkeypatch: pytest.MonkeyPatch,
    at_step: Callable[[int, Callable[[], None]], None],
) -> None:  # fmt: skip
    """Killed at the second step, when the first ones are there, it goes on in the same run."""
    stage = training | {"identity": identity(cycle="live")}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow)
    monkeypatch.setattr(live, "EVERY_SECONDS", 0.05)
    server = tracking.Server(mlflow)

    def runs() -> list[Any]:
        try:
            experiment = server.get("experiments/get-by-name", experiment_name="default.live")["experiment"]
        except tracking.TrackingError:
            return []
        return list(server.post("runs/search", experiment_ids=[experiment["experiment_id"]]).get("runs", []))

    def last_step() -> int:
        return max((int(m["step"]) for run in runs() for m in run["data"].get("metrics", []) if m["key"] == "loss"),
                   default=0)  # fmt: skip

    def killed() -> None:
        until = time.monotonic() + 60
        while last_step() < 1:
            assert time.monotonic() < until
            time.sleep(0.05)
        (run,) = runs()
        assert run["info"]["status"] == "RUNNING"
        signal.raise_signal(signal.SIGTERM)

    at_step(2, killed)
    assert stages.run("train", stage).code == ExitCode.PREEMPTED
    (run,) = runs()
    assert run["info"]["status"] == "SCHEDULED"
    at_step(0, lambda: None)
    ran = stages.run("train", stage)
    assert ran.code == ExitCode.DONE, ran.log
    assert "going on after step 2" in ran.log
    (run,) = runs()
    assert run["info"]["status"] == "FINISHED"
    for key, steps in (("loss", [1, 2, 3, 4]), ("validation_loss", [0, 4]), ("final_loss", [4])):
        curve = (await ask(mlflow, "metrics/get-history", run_id=run["info"]["run_id"], metric_key=key))["metrics"]
        assert [point["step"] for point in curve] == steps


def test_a_training_that_fails_is_a_failed_run(
    stages: Any, identity: Identity, training: dict[str, Any], mlflow: str, monkeypatch: pytest.MonkeyPatch,
    at_step: Callable[[int, Callable[[], None]], None],
) -> None:  # fmt: skip
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "by hand")

    def fails() -> None:
        raise UserError("the loss is nan")

    at_step(2, fails)
    ran = stages.run("train", training | {"identity": identity(cycle="fails")})
    assert ran.report.reason == Reason.USER_ERROR, ran.log
    server = tracking.Server(mlflow)
    experiment = server.get("experiments/get-by-name", experiment_name="by hand")["experiment"]["experiment_id"]
    (run,) = server.post("runs/search", experiment_ids=[experiment])["runs"]
    assert run["info"]["status"] == "FAILED"
    assert {metric["key"] for metric in run["data"]["metrics"]} >= {"loss", "validation_loss"}


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "file:///tmp/mlruns", "http://[broken"])
def test_a_server_that_is_not_there_costs_no_training(
    stages: Any, training: dict[str, Any], address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    ran = stages.run("train", training)
    assert ran.code == ExitCode.DONE, ran.log
    assert f"MLflow at {address} was not told of the training" in ran.log
    assert ran.log.count("is not told of the training as it goes on") == 1


def test_the_login_is_that_of_mlflow_s_own_client(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracking._login() == {}
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t")
    assert tracking._login() == {"Authorization": "Bearer t"}
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "u")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "p")
    assert tracking._login() == {"authorization": "Basic dTpw"}
