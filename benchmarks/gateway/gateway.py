"""Our gateway in front of the stub, with recording on: `python gateway.py STUB_URL SPOOL ADDRESS PORT`.

Everything is as in a cluster but where the routes come from (a table that does not change) and where sealed segments
go (a folder; the upload is a background matter and S3 is not what is measured). Every interaction is flushed to disk
before the client gets the end of its answer.
"""

import asyncio
import sys
from pathlib import Path
from urllib.parse import urlsplit

import uvloop

from ratchet_gateway.routes import Arm, Cycle, Pod, Storage, Table, chat_url
from ratchet_gateway.segments import Destination
from ratchet_gateway.service import StaticTable, serve
from ratchet_gateway.settings import Settings, SpoolSettings


class FolderStore:
    """Objects as files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, destination: Destination, key: str, body: bytes) -> None:
        path = self._folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)


def main() -> None:
    """Runs until SIGTERM."""
    stub, folder, address, port = sys.argv[1:]
    parts = urlsplit(stub)
    assert parts.hostname is not None
    assert parts.port is not None
    pods = (Pod("stub", chat_url(parts.hostname, parts.port)),)
    stable, candidate = Arm("stub-1", "stub", 50, pods), Arm("stub-2", "stub", 50, pods)
    table = Table({("default", "stub"): Cycle("default", "stub", Storage("s3://bench"), stable, candidate)})
    spool = SpoolSettings(Path(folder) / "spool", "bench", segment_seconds=5.0)
    settings = Settings(address, int(port), spool, drain_seconds=0.0)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        store = FolderStore(Path(folder) / "objects")
        runner.run(serve(settings, store, lambda publish, metrics: StaticTable(table, publish)))


if __name__ == "__main__":
    main()
