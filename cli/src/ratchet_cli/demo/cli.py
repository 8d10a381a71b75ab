"""`ratchet demo`: arguments, signals, exit code; the story is in `story`.

Room: cli. Writes summary.json and report.html into the state folder, however the story ends.
"""

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ratchet_cli.demo.settings import FULL, LAST_STEP, QUICK, Settings, find_checkout

INTERRUPTED = 130


def register(commands: Any) -> None:
    """Add `demo` to the `ratchet` command."""
    parser = commands.add_parser(
        "demo",
        help="tell the whole story on this machine: a cycle forward, and back",
        description="Start a Kubernetes on this machine, install Ratchet, and run a cycle forward and back on real "
        "parts. Exits 0 only when the story came out as told; summary.json and report.html say how.",
    )
    parser.add_argument("--state", type=Path, default=Path(".ratchet/demo"), help="folder for everything it writes")
    parser.add_argument("--checkout", type=Path, help="checkout with charts/ and examples/ (default: found from here)")
    parser.add_argument("--quick", action="store_true", help="the shortened story of the end-to-end test")
    parser.add_argument("--keep", action="store_true", help="leave the platform up afterwards, and say how to look")
    parser.add_argument(
        "--until", type=int, default=LAST_STEP, metavar="N", help="stop after step N; a fast check of the first parts"
    )
    parser.add_argument(
        "--slowness", type=float, default=1.0, metavar="X", help="multiply every deadline, on a slow or busy machine"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Tell the story; 0 when it came out as told."""
    from ratchet_cli.demo.errors import Unprepared
    from ratchet_cli.demo.screen import Screen

    screen = Screen()
    screen.say(f"the story of Ratchet on this machine; everything it writes is below {arguments.state}")
    try:
        settings = Settings(
            state=arguments.state.absolute(),
            checkout=find_checkout(arguments.checkout.absolute() if arguments.checkout else None),
            profile=QUICK if arguments.quick else FULL,
            keep=arguments.keep,
            until=arguments.until,
            slowness=arguments.slowness,
        )
        settings.state.mkdir(parents=True, exist_ok=True)
        with terminating():
            # Slow to import, hence after the first line on screen.
            from ratchet_cli.demo.platform import require_nobody_else
            from ratchet_cli.demo.tale import Tale

            require_nobody_else(settings.platform_state)
            return _tell(Tale(settings, screen))
    except Unprepared as error:
        screen.bad(str(error))
        return 1


def _tell(tale: Any) -> int:
    from ratchet_cli.demo import ending, story
    from ratchet_cli.demo.errors import DemoError
    from ratchet_local.errors import LocalError

    error, code = "", 1
    resources = ExitStack()
    try:
        try:
            story.tell(tale, resources)
        except (DemoError, LocalError) as problem:
            error = str(problem)
            tale.screen.bad(error)
            if known := getattr(problem, "known", ""):
                tale.screen.block(known)
        except KeyboardInterrupt:
            error, code = "interrupted", INTERRUPTED
            tale.screen.bad("interrupted: ending everything that was started")
        # While the platform still runs: the numbers come from it.
        summary = ending.conclude(tale, error, patience=0 if code == INTERRUPTED else ending.PATIENCE)
        if summary.ok and tale.settings.keep:
            tale.stay = True
            ending.how_to_look_around(tale)
    finally:
        with undisturbed():
            resources.close()
    return 0 if summary.ok else code


@contextmanager
def terminating() -> Iterator[None]:
    """SIGTERM and SIGHUP end the story as Ctrl-C does: everything that was started is ended first."""

    def interrupt(number: int, frame: object) -> None:
        del frame
        print(f"\nratchet: ended by {signal.Signals(number).name}", file=sys.stderr)
        raise KeyboardInterrupt

    former = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Nothing interrupts the taking down: it has its own deadlines, and half of it would leave processes behind."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    former = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
