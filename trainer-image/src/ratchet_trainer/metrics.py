"""Live progress of a stage as Prometheus gauges, named in `ratchet_api.metrics`.

Room: trainer. Touches one listening socket, when an address is given.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Gauge, start_http_server

from ratchet_api import metrics as names
from ratchet_api.stage import StageIdentity
from ratchet_trainer.errors import UserError


def parse_address(text: str) -> tuple[str, int]:
    """`IP:PORT` (an IPv6 address in brackets). Raises UserError."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise UserError(f'{text!r} is no address: write it as "IP:PORT", such as "127.0.0.1:9090"')
    return host.strip("[]"), int(port)


class Progress:
    """What a running stage shows: steps, and where they apply loss, speed and time to go."""

    def __init__(self, identity: StageIdentity, stage: str) -> None:
        self.registry = CollectorRegistry()
        labels = (identity.namespace, identity.cycle, identity.version, stage)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, names.STAGE_LABELS, registry=self.registry)

        self._step = gauge(names.STAGE_STEP, "Steps done").labels(*labels)
        self._steps = gauge(names.STAGE_STEPS, "Steps to do").labels(*labels)
        self._loss = gauge(names.STAGE_LOSS, "Mean loss per supervised token")
        self._validation = gauge(names.STAGE_VALIDATION_LOSS, "Mean loss on what was kept aside")
        self._speed = gauge(names.STAGE_TOKENS_PER_SECOND, "Tokens per second")
        self._eta = gauge(names.STAGE_ETA, "Seconds that remain")
        self._labels = labels

    def update(
        self, step: int, steps: int, loss: float | None = None, speed: float | None = None, eta: float | None = None
    ) -> None:
        """Sets what is known; a series without a value is not shown at all."""
        self._step.set(step)
        self._steps.set(steps)
        for gauge, value in ((self._loss, loss), (self._speed, speed), (self._eta, eta)):
            if value is not None:
                gauge.labels(*self._labels).set(value)

    def validation(self, loss: float) -> None:
        """What was kept aside was looked at."""
        self._validation.labels(*self._labels).set(loss)

    @contextmanager
    def served(self, address: tuple[str, int] | None) -> Iterator[None]:
        """`/metrics` at the address while the block runs; nothing when it is None."""
        if address is None:
            yield
            return
        server, thread = start_http_server(address[1], addr=address[0], registry=self.registry)
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
