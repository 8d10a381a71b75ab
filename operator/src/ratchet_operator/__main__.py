"""`python -m ratchet_operator run ...`: the operator until SIGTERM.

Room: operator.
"""

import asyncio
import logging
import sys
from collections.abc import Sequence

import kopf
from kubernetes.aio.config import ConfigException

from ratchet_operator import handlers
from ratchet_operator.application import Application
from ratchet_operator.settings import Settings, parse

log = logging.getLogger("ratchet_operator")


async def serve(settings: Settings, stop: asyncio.Event | None = None) -> int:
    """Run until `stop` or a signal; 0 when it ended in order, 1 when a part of it failed."""
    stop = stop or asyncio.Event()
    async with Application(settings) as application:
        # kopf watches the kinds that it finds when it starts, so the CRDs have to be there by then.
        await application.sync()
        watch = asyncio.create_task(_stop_on_failure(application, stop), name="failure watch")
        try:
            await kopf.operator(
                registry=kopf.get_default_registry(),
                standalone=True,
                clusterwide=not settings.namespaces,
                namespaces=list(settings.namespaces),
                memo=kopf.Memo(application=application),
                stop_flag=stop,
            )
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
        return 1 if application.failed.is_set() else 0


async def _stop_on_failure(application: Application, stop: asyncio.Event) -> None:
    await application.failed.wait()
    stop.set()


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    settings, level = parse(argv)
    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    logging.getLogger("kopf").setLevel(max(logging.INFO, logging.getLogger().level))
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)
    log.info("%d handlers watch; Prometheus at %s", len(handlers.CHILDREN) + 3, settings.prometheus_url)
    try:
        return asyncio.run(serve(settings))
    except ConfigException as error:
        print(f"ratchet_operator: no access to Kubernetes: {error}; set KUBECONFIG, or run in a pod", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"ratchet_operator: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
