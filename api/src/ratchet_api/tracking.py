"""Where trainings are written down besides the cycle's own storage.

Room: api. Pure; touches nothing.
"""

from typing import Annotated

from pydantic import StringConstraints, WithJsonSchema

from ratchet_api.base import Model, ObjectName, matches, rule

CREDENTIAL_KEYS = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
"""As MLflow's own client knows them."""
DIGEST_TAG = "ratchet.dev/digest"
"""Of a run and a model version: digest of the adapter."""
CHAMPION, CHALLENGER = "champion", "challenger"
"""Aliases of the registered model: what serves, and what is being rolled out."""

_URL = r"^https?://[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5})?(/[A-Za-z0-9._~%/-]*)?$"


class TrackingSecret(Model):
    """A Secret in the cycle's namespace."""

    name: ObjectName
    """Its name. Keys: MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."""


_URL_SCHEMA = matches(
    _URL,
    "write the tracking server's http(s) address without a user or a password, such as http://mlflow.mlops.svc:5000",
)
_URL_SCHEMA["x-kubernetes-validations"].append(
    rule(
        "!self.contains('://169.254.') && !self.contains('://metadata.')",
        "link-local addresses and metadata names are the cloud's own: write the tracking server's address",
    )
)


class Mlflow(Model):
    """An MLflow tracking server with a model registry."""

    url: Annotated[str, StringConstraints(pattern=_URL, max_length=512), WithJsonSchema(_URL_SCHEMA)]
    """Its address; the train stage gets it as MLFLOW_TRACKING_URI."""
    credentials_secret: TrackingSecret | None = None
    """What it asks for, if anything."""


class Tracking(Model):
    """Who writes down the trainings. No training and no rollout waits for it, or fails with it."""

    mlflow: Mlflow
    """A run for each training and a version of the registered model `<namespace>.<cycle>` for each adapter; its
    aliases champion and challenger follow the rollouts."""


def registered_model(namespace: str, cycle: str) -> str:
    """Name of a cycle's registered model and of its experiment."""
    return f"{namespace}.{cycle}"
