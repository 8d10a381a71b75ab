"""Watches: every event puts the keys of those whom it concerns on the queue, and does nothing else.

Room: operator. kopf decorators. `on.event` leaves no trace on anybody's objects: no finalizer, no annotation. Handlers
are coroutines: kopf calls anything else from threads, of which queue and mirror know nothing.
"""

import logging
from collections.abc import Iterator
from typing import Any

import kopf

from ratchet_api.names import CYCLE_KIND, CYCLE_LABEL, CYCLE_PLURAL, GROUP, VERSION_KIND, VERSION_PLURAL
from ratchet_operator.application import Application
from ratchet_operator.clients.transport import load_configuration

log = logging.getLogger(__name__)
CHILDREN = (("batch", "jobs"), ("apps", "deployments"), ("", "pods"))


class Backoffs:
    """Seconds between two attempts at the API server: for ever, because an outage of it is nobody's end."""

    def __iter__(self) -> Iterator[float]:
        yield from (1, 1, 2, 3, 5, 8)
        while True:
            yield 10


@kopf.on.startup()
async def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
    """What kopf must and must not do."""
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 10
    settings.networking.error_backoffs = Backoffs()
    settings.watching.server_timeout = 240
    settings.watching.connect_timeout = 10
    for group, plural in CHILDREN:
        settings.watching.label_selectors[group, plural] = CYCLE_LABEL


@kopf.on.login()
async def log_in(**_: Any) -> kopf.ConnectionInfo:
    """The same credentials as the clients' own."""
    configuration = await load_configuration()
    header = await configuration.get_api_key_with_prefix("BearerToken") or ""
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        insecure=not configuration.verify_ssl,
        token=header.removeprefix("Bearer ") or None,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
    )


def tell(application: Application, kind: str, event: Any) -> None:
    """What an event says of an object."""
    if event["type"] == "DELETED":
        application.gone(kind, event["object"])
    else:
        application.seen(kind, event["object"])


@kopf.on.event(GROUP, CYCLE_PLURAL)
async def cycle_changed(event: Any, memo: kopf.Memo, **_: Any) -> None:
    """A cycle and the versions that follow it."""
    tell(memo.application, CYCLE_KIND, event)


@kopf.on.event(GROUP, VERSION_PLURAL)
async def version_changed(event: Any, memo: kopf.Memo, **_: Any) -> None:
    """A version and its cycle."""
    tell(memo.application, VERSION_KIND, event)


@kopf.on.event("batch", "jobs")
async def job_changed(event: Any, memo: kopf.Memo, **_: Any) -> None:
    """A stage's Job."""
    tell(memo.application, "Job", event)


@kopf.on.event("apps", "deployments")
async def deployment_changed(event: Any, memo: kopf.Memo, **_: Any) -> None:
    """An arm's Deployment."""
    tell(memo.application, "Deployment", event)


@kopf.on.event("", "pods")
async def pod_changed(event: Any, memo: kopf.Memo, **_: Any) -> None:
    """A pod of a stage or an arm."""
    tell(memo.application, "Pod", event)


@kopf.on.event("autoscaling", "horizontalpodautoscalers")
async def scaler_changed(event: Any, memo: kopf.Memo, **_: Any) -> None:
    """Who else scales an arm."""
    tell(memo.application, "HorizontalPodAutoscaler", event)
