"""`python -m ratchet_gateway`: the command line.

Room: gateway. Parses arguments and the environment; everything else gets typed settings.
"""

import argparse
import asyncio
import logging
import os
import socket
import sys
from pathlib import Path

import uvloop
from kubernetes.aio.config import ConfigException

from ratchet_gateway.service import serve
from ratchet_gateway.settings import MIB, Limits, Settings, SpoolSettings
from ratchet_gateway.spool import SpoolInUse
from ratchet_gateway.upload import S3Store
from ratchet_gateway.watch import ClusterRoutes

_EXIT_CONFIG = 78
"""EX_CONFIG of sysexits.h."""


def parser() -> argparse.ArgumentParser:
    """The command line; its defaults are those of the settings."""
    limits, spool = Limits(), SpoolSettings(Path(), "")
    settings = Settings("", 8080, spool)
    root = argparse.ArgumentParser(
        prog="ratchet_gateway",
        description="The OpenAI-compatible front door of Ratchet: splits sessions between arms, records and measures.",
        epilog="Kubernetes: KUBECONFIG if set, else the pod's service account. Storage: AWS_ACCESS_KEY_ID, "
        "AWS_SECRET_ACCESS_KEY and, for cycles that name no endpoint, AWS_ENDPOINT_URL. POD_NAME names the objects.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = root.add_argument
    add("--host", required=True, help="address to listen on, the pod's own")
    add("--port", type=int, default=settings.port, help="port to listen on")
    add("--spool", type=Path, required=True, help="folder for records on their way to storage; survives restarts")
    add("--namespace", action="append", default=[], help="namespace to serve cycles of, repeatable; none means all")
    add("--spool-limit-mib", type=_positive, default=spool.limit_bytes // MIB, help="most MiB kept on disk")
    add("--segment-mib", type=_positive, default=spool.segment_bytes // MIB, help="a segment is uploaded at this size")
    add("--segment-seconds", type=_positive_float, default=spool.segment_seconds, help="... or at this age")
    add("--max-body-mib", type=_positive, default=limits.body_bytes // MIB, help="largest request body")
    add("--request-seconds", type=_positive_float, default=limits.request_seconds, help="longest whole answer")
    add("--connect-seconds", type=_positive_float, default=limits.connect_seconds, help="longest connection set-up")
    add("--idle-seconds", type=_positive_float, default=limits.idle_seconds, help="longest silence of an arm")
    add("--drain-seconds", type=float, default=settings.drain_seconds, help="after SIGTERM: time that still answers")
    add("--grace-seconds", type=float, default=settings.grace_seconds, help="... then for answers under way")
    add("--upload-seconds", type=float, default=settings.upload_seconds, help="... then for the last upload")
    add("--log-level", default="info", choices=["debug", "info", "warning", "error"], help="least level logged")
    return root


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive: write 1 or more")
    return value


def _positive_float(text: str) -> float:
    value = float(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not positive: write a number above 0")
    return value


def settings_of(arguments: argparse.Namespace, writer: str) -> Settings:
    """Typed settings; `writer` is the first part of the objects' names."""
    return Settings(
        host=arguments.host,
        port=arguments.port,
        namespaces=tuple(arguments.namespace),
        spool=SpoolSettings(
            folder=arguments.spool,
            writer=writer,
            limit_bytes=arguments.spool_limit_mib * MIB,
            segment_bytes=arguments.segment_mib * MIB,
            segment_seconds=arguments.segment_seconds,
        ),
        limits=Limits(
            body_bytes=arguments.max_body_mib * MIB,
            request_seconds=arguments.request_seconds,
            connect_seconds=arguments.connect_seconds,
            idle_seconds=arguments.idle_seconds,
        ),
        drain_seconds=arguments.drain_seconds,
        grace_seconds=arguments.grace_seconds,
        upload_seconds=arguments.upload_seconds,
    )


def main() -> int:
    """Runs the gateway until SIGTERM."""
    arguments = parser().parse_args()
    logging.basicConfig(
        level=arguments.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    settings = settings_of(arguments, os.environ.get("POD_NAME") or socket.gethostname())
    store = S3Store(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(
                serve(settings, store, lambda publish, metrics: ClusterRoutes(settings.namespaces, publish, metrics))
            )
    except (SpoolInUse, OSError, ConfigException) as error:
        print(f"ratchet_gateway: {error}", file=sys.stderr)
        return _EXIT_CONFIG
    return 0


if __name__ == "__main__":
    sys.exit(main())
