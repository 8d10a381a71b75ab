"""`python -m ratchet_local.node SETTINGS`: the process node as a process.

Room: local. Ends on SIGTERM and SIGINT, and takes its containers with it.
"""

import asyncio
import signal
import sys
from pathlib import Path

from ratchet_local.node.agent import serve
from ratchet_local.node.settings import Settings
from ratchet_local.processes import watch_children


async def run(settings: Settings) -> None:
    """Until a signal comes."""
    watch_children()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await serve(settings, stop)


def main() -> int:
    """Read the settings file and run."""
    settings = Settings.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
    asyncio.run(run(settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
