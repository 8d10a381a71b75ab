"""How one operator process is set up: parsed once from the command line, typed, immutable.

Room: operator. Pure; touches nothing.
"""

import argparse
import os
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass(frozen=True)
class Address:
    """Where a server listens."""

    host: str
    """IP address; in a pod, its own one."""
    port: int
    """TCP port."""


@dataclass(frozen=True)
class Images:
    """Default images of the containers that the operator starts."""

    trainer: str
    """Stages, the fetch init container and the transformers runtime."""
    vllm: str
    """The vllm runtime, unless the cycle names another one."""


@dataclass(frozen=True)
class Election:
    """The Lease by which one of several operators leads."""

    namespace: str
    """Namespace of the Lease."""
    name: str = "ratchet-operator"
    """Name of the Lease."""
    identity: str = ""
    """Who we are; unique per process."""
    duration: float = 15.0
    """Seconds after which others may take a Lease that was not renewed. client-go's default."""
    renew_deadline: float = 10.0
    """Seconds after the last renewal at which the holder itself stops acting; below `duration`, so that the old one has
    stopped before a new one begins."""
    retry: float = 2.0
    """Seconds between two attempts to take or renew it."""


@dataclass(frozen=True)
class Otlp:
    """An OpenTelemetry collector."""

    endpoint: str
    """Base address of OTLP over HTTP."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Headers of every request; they may hold keys."""


@dataclass(frozen=True)
class Pace:
    """How often things are looked at that send no event. In seconds."""

    resync: float = 60.0
    """A cycle or version at rest."""
    relist: float = 180.0
    """Everything that is watched, in case that an event got lost."""
    shared: float = 5.0
    """Age up to which cycles at rest share one answer of the gateways."""
    rollout: float = 1.0
    """A rollout that waits for a gateway or an arm, neither of which is watched."""
    routes: float = 10.0
    """An HTTPRoute or Service that others may write, and that is not watched. Nobody is corrected more often."""
    training: float = 5.0
    """Live progress of a train stage, read from Prometheus."""
    stalled_first: float = 2.0
    """First look after something was found missing; grows with the time that it is missing."""
    stalled_last: float = 30.0
    """Slowest look at something that is missing."""
    forge: float = 60.0
    """A pull request that people have not decided about yet."""
    forge_first: float = 5.0
    """First new attempt at a Git server or forge that failed; grows with the time that it fails."""
    forge_last: float = 300.0
    """Slowest new attempt."""


@dataclass(frozen=True)
class Settings:
    """Everything that one operator process is told."""

    gateway_namespace: str
    """Namespace of the gateway's pods."""
    prometheus_url: str
    """Base address of Prometheus' HTTP API, with its path prefix if it has one."""
    images: Images
    """Images."""
    health: Address
    """Where /healthz and /readyz answer."""
    metrics: Address
    """Where /metrics answers."""
    prometheus_credentials: Path | None = None
    """Folder with the keys of a Secret, see clients.access."""
    prometheus_headers: Mapping[str, str] = field(default_factory=dict)
    """Headers of every query."""
    namespaces: tuple[str, ...] = ()
    """Namespaces that are watched; empty means all."""
    election: Election | None = None
    """Leader election; None means that this is the only operator."""
    otlp: Otlp | None = None
    """Where runs are told as traces; None means nowhere."""
    workers: int = 4
    """Objects reconciled at the same time."""
    pace: Pace = field(default_factory=Pace)
    """How often."""


def address(text: str) -> Address:
    """`HOST:PORT` to an Address. Raises argparse.ArgumentTypeError with an example."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is no address: write HOST:PORT, for example 127.0.0.1:8081")
    return Address(host.strip("[]"), int(port))


def url(text: str) -> str:
    """An http(s) address without a trailing slash. Raises argparse.ArgumentTypeError with an example."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise argparse.ArgumentTypeError(f"{text!r} is no address: write for example http://prometheus.monitoring:9090")
    return text.rstrip("/")


def header(text: str) -> tuple[str, str]:
    """`NAME=VALUE` to a pair. Raises argparse.ArgumentTypeError with an example."""
    name, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z0-9-]+", name) or "\n" in value or "\r" in value:
        raise argparse.ArgumentTypeError(f"{text!r} is no header: write NAME=VALUE, for example X-Scope-OrgID=team-a")
    return name, value


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m ratchet_operator`."""
    top = argparse.ArgumentParser(
        prog="ratchet_operator",
        description="Ratchet's operator: keeps served models improving, and takes every step back that does harm.",
    )
    run = top.add_subparsers(dest="command", required=True, metavar="COMMAND").add_parser(
        "run", help="watch and reconcile until SIGTERM", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = run.add_argument
    add("--gateway-namespace", required=True, metavar="NS", help="namespace of the gateway's pods")
    add("--prometheus-url", required=True, type=url, metavar="URL", help="base address of Prometheus")
    add("--prometheus-credentials", type=Path, metavar="DIR",
        help="mounted Secret with token, or username and password, and ca.crt, tls.crt, tls.key as needed")  # fmt: skip
    add("--prometheus-header", action="append", default=[], type=header, metavar="NAME=VALUE",
        help="header of every query, for example X-Scope-OrgID=team-a; repeatable")  # fmt: skip
    add("--trainer-image", required=True, metavar="IMAGE", help="image of the stages and the transformers runtime")
    add("--vllm-image", required=True, metavar="IMAGE", help="default image of the vllm runtime")
    add("--namespace", action="append", default=[], metavar="NS", help="namespace to watch; repeatable (default: all)")
    add("--leader-election-namespace", metavar="NS", help="namespace of the Lease (default: no leader election)")
    add("--health-address", required=True, type=address, metavar="IP:PORT", help="where /healthz and /readyz answer")
    add("--metrics-address", required=True, type=address, metavar="IP:PORT", help="where /metrics answers")
    add("--otlp-endpoint", type=url, metavar="URL",
        help="OpenTelemetry collector (OTLP over HTTP) that is told each run as a trace; its headers are those in "
        "OTEL_EXPORTER_OTLP_HEADERS (default: nobody is told)")  # fmt: skip
    add("--workers", type=int, default=4, metavar="N", help="objects reconciled at the same time")
    add("--log-level", default="info", choices=("debug", "info", "warning"), help="verbosity")
    return top


def identity() -> str:
    """`<pod>_<process id>`, outside of a pod `<host>-<process id>`: unique per process, readable in the Lease."""
    pod = os.environ.get("POD_NAME")
    return f"{pod}_{os.getpid()}" if pod else f"{socket.gethostname()}-{os.getpid()}"


def headers(text: str) -> dict[str, str]:
    """`a=b,c=d`, as OTEL_EXPORTER_OTLP_HEADERS has them. Raises ValueError with a sentence that has no value in it."""
    found = {}
    for number, pair in enumerate(filter(None, map(str.strip, text.split(","))), start=1):
        name, equals, value = pair.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z0-9-]+", name.strip()):
            raise ValueError(f"OTEL_EXPORTER_OTLP_HEADERS: entry {number} is no header: write NAME=VALUE,NAME=VALUE")
        found[name.strip()] = unquote(value.strip())
    return found


def from_args(arguments: argparse.Namespace) -> Settings:
    """Parsed arguments to Settings. Raises ValueError for headers that cannot be read."""
    otlp = None
    if arguments.otlp_endpoint:
        otlp = Otlp(arguments.otlp_endpoint, headers(os.environ.get("OTEL_EXPORTER_OTLP_HEADERS", "")))
    namespace = arguments.leader_election_namespace
    return Settings(
        gateway_namespace=arguments.gateway_namespace,
        prometheus_url=arguments.prometheus_url,
        prometheus_credentials=arguments.prometheus_credentials,
        prometheus_headers=dict(arguments.prometheus_header),
        images=Images(trainer=arguments.trainer_image, vllm=arguments.vllm_image),
        health=arguments.health_address,
        metrics=arguments.metrics_address,
        namespaces=tuple(arguments.namespace),
        election=Election(namespace=namespace, identity=identity()) if namespace else None,
        otlp=otlp,
        workers=arguments.workers,
    )


def parse(argv: Sequence[str] | None = None) -> tuple[Settings, str]:
    """Command line to (Settings, log level). Exits with a sentence on a wrong one."""
    whole = parser()
    arguments = whole.parse_args(argv)
    try:
        return from_args(arguments), arguments.log_level
    except ValueError as error:
        whole.error(str(error))
