"""A training in MLflow: a run with its settings and curves, and a version of the registered model.

Room: trainer. Talks to the server at MLFLOW_TRACKING_URI by MLflow's REST API 2.0 (its client is 30 packages for ten
requests). A run belongs to a recipe and a version, and is told what it does not have yet: so whoever comes again
completes what a killed attempt has begun. A server that fails costs the entry, never the training. While a training
goes on it is told by `live`.
"""

import json
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from ratchet_api.artifacts import Manifest
from ratchet_api.stage import TrainInput
from ratchet_api.tracking import DIGEST_TAG, registered_model
from ratchet_trainer.errors import StageError
from ratchet_trainer.storage import Location, Store
from ratchet_trainer.train.journal import LOOKS, LOSS

log = logging.getLogger("ratchet")

SECONDS = 10.0
METRICS_PER_REQUEST = 1000
PARAMS_PER_REQUEST = 100
_EXISTS = "RESOURCE_ALREADY_EXISTS"
_ABSENT = "RESOURCE_DOES_NOT_EXIST"
_DIGEST_LENGTH = 32
"""MLflow takes 36 characters of a dataset's digest; the tags have all of it."""
_RECIPE, _VERSION = "ratchet.dev/recipe", "ratchet.dev/version"
Status = Literal["RUNNING", "SCHEDULED", "FINISHED", "FAILED"]
"""MLflow's. SCHEDULED: it was told to leave, and goes on later."""


class TrackingError(Exception):
    """The server did not do what it was asked to; `code` is its word for why."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


def record(stage: TrainInput, store: Store, uri: str, manifest: Manifest) -> None:
    """Writes a finished training down if MLFLOW_TRACKING_URI is set; what goes wrong is logged."""
    address = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not address:
        return
    try:
        curve = json.loads(store.get(Location.parse(uri).child(LOSS)) or b"[]")
        looks = json.loads(store.get(Location.parse(uri).child(LOOKS)) or b"[]")
        run = _write(Server(address), stage, uri, manifest, points(curve, looks))
    except (TrackingError, StageError, KeyError, TypeError, ValueError) as error:
        log.warning("MLflow at %s was not told of the training: %s: %s", address, type(error).__name__, error)
    else:
        log.info("run %s in MLflow at %s", run, address)


class Server:
    """A tracking server."""

    def __init__(self, address: str) -> None:
        import urllib3

        if not address.startswith(("http://", "https://")):
            raise TrackingError("MLFLOW_TRACKING_URI: write an http(s) address")
        self._base = f"{address.rstrip('/')}/api/2.0/mlflow"
        timeout = urllib3.Timeout(connect=SECONDS, read=SECONDS)
        self._pool = urllib3.PoolManager(timeout=timeout, retries=False, ca_certs=os.environ.get("SSL_CERT_FILE"))
        self._headers = {"Content-Type": "application/json"} | _login()

    def get(self, what: str, **query: str) -> Any:
        """Raises TrackingError."""
        return self._ask("GET", what, fields=query)

    def post(self, what: str, **body: Any) -> Any:
        """Raises TrackingError."""
        return self._ask("POST", what, body=json.dumps(body))

    def _ask(self, method: str, what: str, **content: Any) -> Any:
        import urllib3

        try:
            answer = self._pool.request(
                method, f"{self._base}/{what}", headers=self._headers, redirect=False, **content
            )
        except urllib3.exceptions.HTTPError as error:
            raise TrackingError(f"{what}: no answer ({type(error).__name__})") from None
        try:
            said = json.loads(answer.data or b"{}")
        except ValueError:
            said = {}
        if answer.status != 200:
            code = str(said.get("error_code", ""))
            raise TrackingError(f"{what}: {answer.status} {code} {str(said.get('message', ''))[:200]}".strip(), code)
        return said


def _login() -> dict[str, str]:
    """As MLflow's own client does: a token, else user and password."""
    import urllib3

    token, user = os.environ.get("MLFLOW_TRACKING_TOKEN"), os.environ.get("MLFLOW_TRACKING_USERNAME")
    if user:
        password = os.environ.get("MLFLOW_TRACKING_PASSWORD", "")
        return dict(urllib3.make_headers(basic_auth=f"{user}:{password}"))
    return {"Authorization": f"Bearer {token}"} if token else {}


@dataclass
class Entry:
    """A run, and what it has been told."""

    run: str
    began: int
    """Milliseconds since 1970."""
    status: Status
    told: dict[str, int]
    """The last step of each metric."""


def entered(server: Server, stage: TrainInput, inputs: Mapping[str, str], seconds: float) -> Entry:
    """The run of the training that has these inputs, made if there is none: one that began so many seconds ago. Raises
    TrackingError."""
    who = stage.identity
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", registered_model(who.namespace, who.cycle))
    experiment = _experiment(server, name)
    tags = _tags(stage, inputs)
    wanted = " and ".join(f"tags.`{key}` = '{tags[key]}'" for key in (_RECIPE, _VERSION))
    found = server.post("runs/search", experiment_ids=[experiment], filter=wanted, max_results=1).get("runs", [])
    if found:
        run = found[0]
    else:
        began = int(time.time() * 1000) - round(seconds * 1000)
        run = server.post(
            "runs/create", experiment_id=experiment, run_name=who.version, start_time=began, tags=_pairs(tags)
        )["run"]  # fmt: skip
    told = {metric["key"]: int(metric["step"]) for metric in run["data"].get("metrics", [])}
    entry = Entry(str(run["info"]["run_id"]), int(run["info"]["start_time"]), run["info"]["status"], told)
    if entry.status != "FINISHED":
        _introduce(server, stage, entry)
    return entry


def _tags(stage: TrainInput, inputs: Mapping[str, str]) -> dict[str, str]:
    who = stage.identity
    return {
        _RECIPE: inputs["recipe"],
        _VERSION: who.version,
        "ratchet.dev/cycle": who.cycle,
        "ratchet.dev/namespace": who.namespace,
        "ratchet.dev/dataset": inputs["dataset"],
        "ratchet.dev/base": inputs["base"],
    }


def _pairs(said: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in said.items()]


def _introduce(server: Server, stage: TrainInput, entry: Entry) -> None:
    """What is known before there is a step; told twice it is there once."""
    params = _pairs(_params(stage))
    for start in range(0, len(params), PARAMS_PER_REQUEST):
        server.post("runs/log-batch", run_id=entry.run, params=params[start : start + PARAMS_PER_REQUEST])
    digest = stage.dataset.digest.removeprefix("sha256:")[:_DIGEST_LENGTH]
    dataset = {
        "name": stage.dataset.uri[-500:], "digest": digest, "source_type": "s3",
        "source": json.dumps({"uri": stage.dataset.uri}),
    }  # fmt: skip
    context = [{"key": "mlflow.data.context", "value": "training"}]
    server.post("runs/log-inputs", run_id=entry.run, datasets=[{"dataset": dataset, "tags": context}])


def tell(server: Server, entry: Entry, said: Sequence["Point"]) -> None:
    """Those of the points that the run does not have. An attempt that goes on does some steps again, which are told
    once. Raises TrackingError."""
    new = [point for point in said if point.step > entry.told.get(point.key, -1)]
    for start in range(0, len(new), METRICS_PER_REQUEST):
        piece = new[start : start + METRICS_PER_REQUEST]
        metrics = [
            {"key": one.key, "value": one.value, "step": one.step, "timestamp": entry.began + round(one.seconds * 1000)}
            for one in piece
        ]
        server.post("runs/log-batch", run_id=entry.run, metrics=metrics)
        entry.told |= {one.key: one.step for one in piece}


def update(server: Server, entry: Entry, status: Status, seconds: float | None = None) -> None:
    """What becomes of the run; `seconds` after its begin it ended, if it did. Raises TrackingError."""
    end = {} if seconds is None else {"end_time": entry.began + round(seconds * 1000)}
    server.post("runs/update", run_id=entry.run, status=status, **end)
    entry.status = status


def _write(server: Server, stage: TrainInput, uri: str, manifest: Manifest, said: Sequence["Point"]) -> str:
    """The run's id."""
    seconds = float(manifest.numbers["seconds"])
    entry = entered(server, stage, manifest.inputs, seconds)
    made = {DIGEST_TAG: manifest.digest, "ratchet.dev/adapter": uri}
    if entry.status != "FINISHED":
        last = max((point.step for point in said), default=0)
        whole = {"final_loss": "loss", "examples": "examples", "seconds": "seconds"}
        numbers = [Point(key, float(manifest.numbers[of]), last, seconds) for key, of in whole.items()]
        tell(server, entry, [*said, *numbers])
        server.post("runs/log-batch", run_id=entry.run, tags=_pairs(made))
        update(server, entry, "FINISHED", seconds)
    name = registered_model(stage.identity.namespace, stage.identity.cycle)
    _register(server, name, entry.run, uri, _tags(stage, manifest.inputs) | made)
    return entry.run


def _experiment(server: Server, name: str) -> str:
    for last in (False, True):
        try:
            return str(server.get("experiments/get-by-name", experiment_name=name)["experiment"]["experiment_id"])
        except TrackingError as error:
            if error.code != _ABSENT or last:
                raise
        try:
            return str(server.post("experiments/create", name=name)["experiment_id"])
        except TrackingError as error:
            if error.code != _EXISTS:
                raise  # else somebody was faster
    raise AssertionError("the second look raises or returns")


def _params(stage: TrainInput) -> dict[str, str]:
    def flat(block: Mapping[str, Any], before: str = "") -> dict[str, str]:
        found: dict[str, str] = {}
        for key, value in block.items():
            found |= flat(value, f"{before}{key}.") if isinstance(value, dict) else {f"{before}{key}": str(value)}
        return found

    return {"baseModel": stage.base_model.uri, "dataset": stage.dataset.uri} | flat(stage.hyperparameters.dump())


_CURVES = ("loss", "learning_rate", "gradient_norm", "tokens_per_second")


class Point(NamedTuple):
    """One number of a curve."""

    key: str
    value: float
    step: int
    seconds: float
    """Since the training began."""


def points(curve: Sequence[Mapping[str, float]], looks: Sequence[Mapping[str, float]]) -> list[Point]:
    """The curves by step, from the rows of loss.json and validation.json; a look is dated by the step before it."""
    ended = {0: 0.0} | {int(row["step"]): row["seconds"] for row in curve}
    found = [Point(key, row[key], int(row["step"]), row["seconds"]) for row in curve for key in _CURVES]
    found += [Point("validation_loss", look["loss"], int(look["step"]), ended[int(look["step"])]) for look in looks]
    return [point for point in found if math.isfinite(point.value)]


def _register(server: Server, name: str, run: str, uri: str, tags: Mapping[str, str]) -> None:
    """A version of the registered model, unless this run has one."""
    try:
        server.post("registered-models/create", name=name)
    except TrackingError as error:
        if error.code != _EXISTS:
            raise
    asked = f"name='{name}' and run_id='{run}'"
    if server.get("model-versions/search", filter=asked).get("model_versions"):
        return
    server.post("model-versions/create", name=name, source=uri, run_id=run, tags=_pairs(tags))
