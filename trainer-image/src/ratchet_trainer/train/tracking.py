"""A finished training in MLflow: a run with its settings and curves, and a version of the registered model.

Room: trainer. Talks to the server at MLFLOW_TRACKING_URI by MLflow's REST API 2.0 (its client is 30 packages for ten
requests). Everything is told from what lies in storage, and only if it is not there yet: whoever comes again completes
what a killed attempt has begun. A server that fails costs the entry, never the training.
"""

import json
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

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


class TrackingError(Exception):
    """The server did not do what it was asked to; `code` is its word for why."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


def record(stage: TrainInput, store: Store, uri: str, manifest: Manifest) -> None:
    """Writes the training down if MLFLOW_TRACKING_URI is set; what goes wrong is logged."""
    address = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not address:
        return
    try:
        curve = json.loads(store.get(Location.parse(uri).child(LOSS)) or b"[]")
        looks = json.loads(store.get(Location.parse(uri).child(LOOKS)) or b"[]")
        run = _write(Server(address), stage, uri, manifest, _points(curve, looks))
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


def _write(server: Server, stage: TrainInput, uri: str, manifest: Manifest, points: Sequence["_Point"]) -> str:
    """The run's id."""
    who = stage.identity
    name = registered_model(who.namespace, who.cycle)
    experiment = _experiment(server, os.environ.get("MLFLOW_EXPERIMENT_NAME", name))
    tags = {
        DIGEST_TAG: manifest.digest,
        "ratchet.dev/version": who.version,
        "ratchet.dev/cycle": who.cycle,
        "ratchet.dev/namespace": who.namespace,
        "ratchet.dev/dataset": manifest.inputs["dataset"],
        "ratchet.dev/base": manifest.inputs["base"],
        "ratchet.dev/adapter": uri,
    }
    wanted = f"tags.`{DIGEST_TAG}` = '{manifest.digest}' and tags.`ratchet.dev/version` = '{who.version}'"
    found = server.post("runs/search", experiment_ids=[experiment], filter=wanted, max_results=1).get("runs", [])
    if found and found[0]["info"]["status"] == "FINISHED":
        run = str(found[0]["info"]["run_id"])
    else:
        run = _run(server, stage, manifest, points, experiment, tags, found)
    _register(server, name, run, uri, tags)
    return run


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


def _run(
    server: Server, stage: TrainInput, manifest: Manifest, points: Sequence["_Point"], experiment: str,
    tags: Mapping[str, str], found: Sequence[Any],
) -> str:  # fmt: skip
    """A new run, or the rest of one that was not finished: metrics and params told twice are there once."""
    now = int(time.time() * 1000)
    seconds = float(manifest.numbers["seconds"])
    if found:
        run = str(found[0]["info"]["run_id"])
        began = int(found[0]["info"]["start_time"])
    else:
        began = now - round(seconds * 1000)
        asked = [{"key": key, "value": value} for key, value in tags.items()]
        made = server.post(
            "runs/create", experiment_id=experiment, run_name=stage.identity.version, start_time=began, tags=asked
        )
        run = str(made["run"]["info"]["run_id"])
    params = [{"key": key, "value": value} for key, value in _params(stage).items()]
    for start in range(0, len(params), PARAMS_PER_REQUEST):
        server.post("runs/log-batch", run_id=run, params=params[start : start + PARAMS_PER_REQUEST])
    metrics = _metrics(manifest, points, began)
    for start in range(0, len(metrics), METRICS_PER_REQUEST):
        server.post("runs/log-batch", run_id=run, metrics=metrics[start : start + METRICS_PER_REQUEST])
    digest = manifest.inputs["dataset"].removeprefix("sha256:")[:_DIGEST_LENGTH]
    dataset = {
        "name": stage.dataset.uri[-500:], "digest": digest, "source_type": "s3",
        "source": json.dumps({"uri": stage.dataset.uri}),
    }  # fmt: skip
    context = [{"key": "mlflow.data.context", "value": "training"}]
    server.post("runs/log-inputs", run_id=run, datasets=[{"dataset": dataset, "tags": context}])
    server.post("runs/update", run_id=run, status="FINISHED", end_time=began + round(seconds * 1000))
    return run


def _params(stage: TrainInput) -> dict[str, str]:
    def flat(block: Mapping[str, Any], before: str = "") -> dict[str, str]:
        found: dict[str, str] = {}
        for key, value in block.items():
            found |= flat(value, f"{before}{key}.") if isinstance(value, dict) else {f"{before}{key}": str(value)}
        return found

    return {"baseModel": stage.base_model.uri, "dataset": stage.dataset.uri} | flat(stage.hyperparameters.dump())


_CURVES = ("loss", "learning_rate", "gradient_norm", "tokens_per_second")


class _Point(NamedTuple):
    """One number of a curve."""

    key: str
    value: float
    step: int
    seconds: float
    """Since the training began."""


def _points(curve: Sequence[Mapping[str, float]], looks: Sequence[Mapping[str, float]]) -> list[_Point]:
    """The curves by step; a look at what was kept aside is dated by the step before it."""
    ended = {0: 0.0} | {int(row["step"]): row["seconds"] for row in curve}
    points = [_Point(key, row[key], int(row["step"]), row["seconds"]) for row in curve for key in _CURVES]
    points += [_Point("validation_loss", look["loss"], int(look["step"]), ended[int(look["step"])]) for look in looks]
    return [point for point in points if math.isfinite(point.value)]


def _metrics(manifest: Manifest, points: Sequence[_Point], began: int) -> list[dict[str, Any]]:
    """The curves by step, and the numbers of the whole training."""
    last = max((point.step for point in points), default=0)
    whole = {"final_loss": "loss", "examples": "examples", "seconds": "seconds"}
    seconds = float(manifest.numbers["seconds"])
    all_of = [*points, *(_Point(key, float(manifest.numbers[of]), last, seconds) for key, of in whole.items())]
    return [
        {"key": point.key, "value": point.value, "step": point.step, "timestamp": began + round(point.seconds * 1000)}
        for point in all_of
    ]


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
    said = [{"key": key, "value": value} for key, value in tags.items()]
    server.post("model-versions/create", name=name, source=uri, run_id=run, tags=said)
