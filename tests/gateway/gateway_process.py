"""A gateway process in front of one arm, for the tests that kill it: `gateway_process.py ARM_PORT SPOOL PORT URI`.

Run by path, so it takes nothing from the other test modules. Storage comes from AWS_* of the environment. Its disk is
slow: a gateway that answered before the record is written would lose some at every kill.
"""

import asyncio
import os
import sys
import time
from pathlib import Path

import uvloop

from ratchet_gateway import spool
from ratchet_gateway.routes import Arm, Cycle, Pod, Storage, Table, chat_url
from ratchet_gateway.segments import Segment
from ratchet_gateway.service import StaticTable, serve
from ratchet_gateway.settings import Settings, SpoolSettings
from ratchet_gateway.upload import S3Store


class SlowSegment(Segment):
    """A segment on a slow disk."""

    def append(self, data: bytes) -> None:
        time.sleep(0.02)
        super().append(data)


def main() -> None:
    spool.Segment = SlowSegment  # type: ignore[misc]
    arm_port, folder, port, uri = sys.argv[1:]
    pod = Pod("arm", chat_url("127.0.0.1", int(arm_port)))
    cycle = Cycle("default", "assistant", Storage(uri), Arm("assistant-1", "assistant-1", 100, (pod,)))
    table = Table({("default", "assistant"): cycle})
    # Small and short-lived, so that a kill meets segments in every state.
    spool_settings = SpoolSettings(
        Path(folder), "gateway-0", segment_bytes=20_000, segment_seconds=0.5, retry_seconds=(0.05, 0.5)
    )
    settings = Settings("127.0.0.1", int(port), spool_settings, drain_seconds=0.0)
    store = S3Store(os.environ["AWS_ENDPOINT_URL"])
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(settings, store, lambda publish, metrics: StaticTable(table, publish)))


if __name__ == "__main__":
    main()
