"""Watches: every event puts the keys of those whom it concerns on the queue, and does nothing else.

Room: operator. kopf decorators. `on.event` leaves no trace on anybody's objects: no finalizer, no annotation.
"""

import logging
from collections.abc import Iterator
from typing import Any

import kopf
from pydantic import ValidationError

from ratchet_api.cycle import ImprovementCycle
from ratchet_api.names import CYCLE_KIND, CYCLE_LABEL, CYCLE_PLURAL, GROUP, VERSION_KIND, VERSION_PLURAL
from ratchet_api.version import ModelVersion
from ratchet_operator.application import Application
from ratchet_operator.clients.transport import load_configuration
from ratchet_operator.index import of_child
from ratchet_operator.queue import Key

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


@kopf.on.event(GROUP, CYCLE_PLURAL)
def cycle_changed(event: Any, memo: kopf.Memo, **_: Any) -> None:
    """A cycle and the versions that follow it."""
    _ours(memo.application, event, CYCLE_KIND)


@kopf.on.event(GROUP, VERSION_PLURAL)
def version_changed(event: Any, memo: kopf.Memo, **_: Any) -> None:
    """A version and its cycle."""
    _ours(memo.application, event, VERSION_KIND)


@kopf.on.event("batch", "jobs")
@kopf.on.event("apps", "deployments")
@kopf.on.event("", "pods")
def child_changed(event: Any, memo: kopf.Memo, **_: Any) -> None:
    """A stage's Job or an arm's Deployment, and their pods."""
    key = of_child(event["object"].get("metadata") or {})
    if key is not None:
        memo.application.queue.add(key)


def _ours(application: Application, event: Any, kind: str) -> None:
    body = event["object"]
    meta = body["metadata"]
    key = Key(kind, meta["namespace"], meta["name"])
    if event["type"] == "DELETED":
        keys = application.index.forget(key)
    else:
        try:
            if kind == CYCLE_KIND:
                keys = application.index.note_cycle(ImprovementCycle.model_validate(body))
            else:
                keys = application.index.note_version(ModelVersion.model_validate(body))
        except ValidationError:
            keys = [key]  # its own pass says what is wrong with it
    for found in keys:
        application.queue.add(found)
