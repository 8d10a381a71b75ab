"""What the parts of the node share.

Room: local. Holds references; does nothing by itself.
"""

from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from ratchet_local.addresses import PodAddresses
from ratchet_local.node.client import Api
from ratchet_local.node.environment import NodeFacts
from ratchet_local.node.events import Events, EventType
from ratchet_local.node.model import Container, Pod
from ratchet_local.node.process import ContainerProcess
from ratchet_local.node.settings import Settings
from ratchet_local.node.volumes import PodVolumes


@dataclass
class NodeContext:
    """The node as a whole."""

    settings: Settings
    api: Api
    events: Events
    addresses: PodAddresses
    facts: NodeFacts
    mark: str
    probe_session: aiohttp.ClientSession
    processes: dict[str, ContainerProcess] = field(default_factory=dict)
    """Running containers by container id, for the memory guard and the throttle."""


@dataclass
class PodContext:
    """One pod on this node."""

    node: NodeContext
    pod: Pod
    """The newest version that was seen; spec and uid never change."""
    root: Path
    pod_ip: str
    volumes: PodVolumes

    def event(self, kind: EventType, reason: str, message: str, container: Container | None = None) -> None:
        """An event about the pod, or about one of its containers."""
        path = None
        if container is not None:
            init = any(c.name == container.name for c in self.pod.spec.init_containers)
            path = f"spec.{'initContainers' if init else 'containers'}{{{container.name}}}"
        self.node.events.emit(self.pod.reference(path), kind, reason, message)
