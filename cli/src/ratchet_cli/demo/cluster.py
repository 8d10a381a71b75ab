"""The API server as the demonstration sees it: typed cycle and versions, kept up to date, and what else is known.

Room: cli. Talks to the Kubernetes API.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kubernetes.client
import kubernetes.config
import urllib3
from kubernetes.client.exceptions import ApiException

from ratchet_api.cycle import ImprovementCycle
from ratchet_api.names import API_VERSION, CYCLE_PLURAL, GATEWAY_LABELS, GATEWAY_PORT, GROUP, VERSION_PLURAL
from ratchet_api.version import ModelVersion
from ratchet_cli.demo.errors import DemoError

_POLL_SECONDS = 1.0
_TAIL_LINES = 15


@dataclass(frozen=True)
class View:
    """One cycle and its versions at one moment."""

    cycle: ImprovementCycle | None = None
    versions: dict[str, ModelVersion] = field(default_factory=dict)
    """By name."""


class Cluster:
    """Follows one cycle and its versions; `changed` is notified whenever `view` is another one."""

    def __init__(self, kubeconfig: Path, namespace: str, cycle: str) -> None:
        self.namespace = namespace
        self.cycle = cycle
        configuration = kubernetes.client.Configuration()
        kubernetes.config.load_kube_config(str(kubeconfig), client_configuration=configuration)
        # A watch that ends by itself is opened anew; retries inside urllib3 would only hide an outage.
        configuration.retries = urllib3.Retry(0)
        self._client = kubernetes.client.ApiClient(configuration)
        self.objects = kubernetes.client.CustomObjectsApi(self._client)
        self.core = kubernetes.client.CoreV1Api(self._client)
        self.changed = threading.Condition()
        self._view = View()
        self._broken: Exception | None = None
        self.observers: list[Callable[[View], None]] = []
        """Called with every new view, in order, by one thread."""
        self._ending = threading.Event()
        self._follower = threading.Thread(target=self._follow, name="cluster", daemon=True)

    def __enter__(self) -> "Cluster":
        self._follower.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._follower.join()
        self._client.close()

    @property
    def view(self) -> View:
        """The state as it was last read. Raises DemoError when it could not be understood."""
        if self._broken is not None:
            raise DemoError(f"the API server said something that we do not understand: {self._broken}")
        return self._view

    def _follow(self) -> None:
        """Two small lists a second are cheaper than two watches to keep alive through outages of the API server."""
        while not self._ending.wait(_POLL_SECONDS):
            try:
                view = self.read()
            except (ApiException, urllib3.exceptions.HTTPError):
                continue
            except ValueError as error:  # pydantic's ValidationError among them
                with self.changed:
                    self._broken = error
                    self.changed.notify_all()
                return
            if view != self._view:
                for observer in self.observers:
                    observer(view)
                with self.changed:
                    self._view = view
                    self.changed.notify_all()

    def read(self) -> View:
        """The present state, asked for now."""
        cycles = self._list(CYCLE_PLURAL)
        versions = [ModelVersion.model_validate(item) for item in self._list(VERSION_PLURAL)]
        mine = [ImprovementCycle.model_validate(c) for c in cycles if c["metadata"]["name"] == self.cycle]
        return View(
            cycle=mine[0] if mine else None,
            versions={v.metadata.name: v for v in versions if v.spec.cycle == self.cycle},
        )

    def _list(self, plural: str) -> list[dict[str, Any]]:
        answer = self.objects.list_namespaced_custom_object(
            GROUP, API_VERSION, self.namespace, plural, _request_timeout=10
        )
        return list(answer["items"])

    def gateway_url(self, namespace: str) -> str | None:
        """Address of a ready gateway pod; None while there is none.

        A Service's address needs kube-proxy, which a machine without containers has not; pods are reached directly.
        """
        selector = ",".join(f"{key}={value}" for key, value in GATEWAY_LABELS.items())
        for pod in self.core.list_namespaced_pod(namespace, label_selector=selector).items:
            if _is_ready(pod):
                return f"http://{pod.status.pod_ip}:{GATEWAY_PORT}"
        return None

    def diagnosis(self, namespaces: list[str]) -> str:
        """Conditions of cycle and versions, pods that are not well with the end of their logs, recent events."""
        lines: list[str] = []
        for what in (self._conditions, *(self._pods_of(n) for n in namespaces), self._events):
            try:
                lines += what()
            except (ApiException, urllib3.exceptions.HTTPError) as error:
                lines.append(f"the API server does not say: {error}")
        return "\n".join(lines)

    def _conditions(self) -> list[str]:
        view = self.read()
        owners: list[ImprovementCycle | ModelVersion] = [*view.versions.values()]
        lines = []
        if view.cycle is None:
            lines.append(f"cycle {self.cycle}: does not exist")
        else:
            owners.insert(0, view.cycle)
        for owner in owners:
            lines.append(f"{owner.kind} {owner.metadata.name}: phase {owner.status.phase}")
            lines += [f"  {c.type}={c.status} {c.reason}: {c.message}" for c in owner.status.conditions]
        return lines

    def _pods_of(self, namespace: str) -> Callable[[], list[str]]:
        def pods() -> list[str]:
            lines = []
            for pod in self.core.list_namespaced_pod(namespace).items:
                if pod.status.phase == "Succeeded" or _is_ready(pod):
                    continue
                lines.append(f"pod {namespace}/{pod.metadata.name}: {pod.status.phase} {pod.status.message or ''}")
                lines += [
                    f"  {c.type}={c.status} {c.reason or ''}: {c.message or ''}" for c in pod.status.conditions or []
                ]
                lines += self._containers(namespace, pod)
            return lines

        return pods

    def _containers(self, namespace: str, pod: Any) -> list[str]:
        lines = []
        for status in (*(pod.status.init_container_statuses or []), *(pod.status.container_statuses or [])):
            state = status.state.terminated or status.state.waiting
            if state is None and status.ready:
                continue
            detail = f"{state.reason}: {state.message or ''}" if state is not None else "runs, not ready"
            lines.append(f"  container {status.name} ({status.restart_count} restarts): {detail}")
            try:
                log = self.core.read_namespaced_pod_log(
                    pod.metadata.name, namespace, container=status.name, tail_lines=_TAIL_LINES, _request_timeout=10
                )
            except (ApiException, urllib3.exceptions.HTTPError):
                continue
            lines += [f"    | {line}" for line in log.splitlines()]
        return lines

    def _events(self) -> list[str]:
        events = self.core.list_namespaced_event(self.namespace).items
        events.sort(key=lambda e: str(e.last_timestamp or e.event_time or e.metadata.creation_timestamp))
        return [
            f"event {e.type} {e.reason} {e.involved_object.kind}/{e.involved_object.name}: {e.message}"
            for e in events[-_TAIL_LINES:]
        ]


def _is_ready(pod: Any) -> bool:
    return pod.metadata.deletion_timestamp is None and any(
        c.type == "Ready" and c.status == "True" for c in pod.status.conditions or []
    )
