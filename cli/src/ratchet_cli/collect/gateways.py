"""The way to a cycle's gateway from a person's machine: a port of this machine that the API server forwards to a pod.

Room: cli. Talks to the API server, and listens on the loopback address while the way is open.
"""

import ipaddress
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import kubernetes.client
import kubernetes.stream
import urllib3
from kubernetes.client.exceptions import ApiException

from ratchet_api.names import CYCLE_KIND, GATEWAY_LABELS, GATEWAY_PORT
from ratchet_cli.collect.errors import NoAnswer
from ratchet_cli.oncall.cluster import Cluster, message_of

_HOME = "ratchet-system"
_SECONDS = 20
_PIECE = 1 << 16


@dataclass(frozen=True)
class GatewayPod:
    """A gateway's pod that is ready."""

    name: str
    namespace: str
    ip: str

    @property
    def here(self) -> bool:
        """Whether it is a process of this machine: only the local platform gives pods loopback addresses, to which no
        API server forwards."""
        return ipaddress.ip_address(self.ip).is_loopback


@contextmanager
def way_to(cluster: Cluster, cycle: str) -> Iterator[str]:
    """The address of a gateway that serves the cycle, for as long as the block runs.

    Raises NotFound (no such cycle), Unreachable, and NoAnswer when no gateway is ready or may be reached.
    """
    cluster.raw(CYCLE_KIND, cycle)
    pod = _ready_pod(cluster)
    if pod.here:
        yield f"http://{pod.ip}:{GATEWAY_PORT}"
        return
    with Forwarder(cluster.client.configuration, pod) as forwarder:
        yield f"http://127.0.0.1:{forwarder.port}"


def _ready_pod(cluster: Cluster) -> GatewayPod:
    core = kubernetes.client.CoreV1Api(cluster.client)
    selector = ",".join(f"{key}={value}" for key, value in GATEWAY_LABELS.items())
    try:
        try:
            pods = core.list_pod_for_all_namespaces(label_selector=selector, _request_timeout=_SECONDS).items
        except ApiException as error:
            if error.status != 403:
                raise
            pods = core.list_namespaced_pod(_HOME, label_selector=selector, _request_timeout=_SECONDS).items
    except ApiException as error:
        raise NoAnswer(f"the gateway cannot be found ({message_of(error)}): write its address as --url") from error
    except urllib3.exceptions.HTTPError as error:
        raise NoAnswer(f"the gateway cannot be found ({error}): write its address as --url") from error
    for pod in sorted(pods, key=lambda pod: (pod.metadata.namespace, pod.metadata.name)):
        conditions = {c.type: c.status for c in pod.status.conditions or []}
        if conditions.get("Ready") == "True" and pod.metadata.deletion_timestamp is None:
            return GatewayPod(pod.metadata.name, pod.metadata.namespace, pod.status.pod_ip)
    doctor = cluster.where.ratchet("doctor")
    raise NoAnswer(f"no gateway is ready: `{doctor}` says why; or write another server's address as --url")


class Forwarder:
    """A free port of the loopback address; each connection to it goes through the API server to the pod's port."""

    def __init__(self, configuration: Any, pod: GatewayPod) -> None:
        self._configuration, self._pod = configuration, pod
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: set[Any] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> "Forwarder":
        threading.Thread(target=self._accept, name="forward", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        # `close` alone would leave a thread in `accept`.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            ends = list(self._open)
        for end in ends:
            _close(end)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), name="forward-connection", daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        # The client library swaps a method of its API client for the time of the call: each needs its own.
        with kubernetes.client.ApiClient(self._configuration) as api:
            connect = kubernetes.client.CoreV1Api(api).connect_get_namespaced_pod_portforward
            try:
                forward = kubernetes.stream.portforward(
                    connect, self._pod.name, self._pod.namespace, ports=str(GATEWAY_PORT)
                )
            except ApiException:
                client.close()  # whoever connected sees it, and says where the way ended
                return
        pod = forward.socket(GATEWAY_PORT)
        with self._lock:
            self._open |= {client, pod}
        back = threading.Thread(target=_pump, args=(pod, client), name="forward-back", daemon=True)
        back.start()
        _pump(client, pod)
        back.join()
        with self._lock:
            self._open -= {client, pod}
        client.close()
        pod.close()


def _pump(source: Any, sink: Any) -> None:
    """Passes on until either end closes, and then closes both."""
    try:
        while data := source.recv(_PIECE):
            sink.sendall(data)
    except OSError:
        pass
    _close(source)
    _close(sink)


def _close(end: Any) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
