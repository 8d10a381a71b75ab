"""Kubernetes events (`kubectl describe` shows them): what was decided, measured against limit.

Room: operator, clients. The decision itself is in the status, so an event that cannot be written stops nothing; see
reconcile.announcing for how it is said all the same.
"""

import hashlib
import logging
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from ratchet_api.base import ObjectMeta, format_time
from ratchet_api.names import GROUP_VERSION
from ratchet_api.reasons import Reason
from ratchet_operator.clients.kube import Kube
from ratchet_operator.errors import OperatorError

log = logging.getLogger(__name__)
CONTROLLER = "ratchet.dev/operator"
NOTE_BYTES = 1024
"""events.k8s.io/v1 refuses longer notes."""


@dataclass(frozen=True)
class Subject:
    """The object that an event is about."""

    kind: Literal["ImprovementCycle", "ModelVersion"]
    meta: ObjectMeta


class Events:
    """Posts events once: the name is a hash of what is said, so that a replay says nothing twice."""

    def __init__(self, kube: Kube, instance: str) -> None:
        self._kube = kube
        self._instance = instance[:128] or "ratchet-operator"

    async def post(
        self, subject: Subject, type: Literal["Normal", "Warning"], reason: Reason, message: str, now: datetime
    ) -> bool:
        """Say it, unless it was said in the last hour (the API server's memory of events); whether it is said now."""
        meta = subject.meta
        said = hashlib.sha256(f"{meta.uid}/{reason}/{message}".encode()).hexdigest()[:16]
        manifest = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": f"{meta.name}.{said}", "namespace": meta.namespace},
            "eventTime": format_time(now),
            "type": type,
            "reason": str(reason),
            "action": str(reason),
            "note": message.encode()[:NOTE_BYTES].decode(errors="ignore") or str(reason),
            "reportingController": CONTROLLER,
            "reportingInstance": self._instance,
            "regarding": {
                "apiVersion": GROUP_VERSION,
                "kind": subject.kind,
                "namespace": meta.namespace,
                "name": meta.name,
                "uid": meta.uid,
                "resourceVersion": meta.resource_version,
            },
        }
        log.info("%s %s/%s: %s: %s", subject.kind, meta.namespace, meta.name, reason, message)
        try:
            await self._kube.create_event(manifest)
        except OperatorError as error:
            log.warning("the event could not be written: %s", error)
            return False
        return True
