"""Let simulated people talk to a cycle: `python -m ratchet_cli.people --gateway http://HOST:PORT assistant`.

Room: cli. Prints a line each few seconds, and what came of it at the end; Ctrl-C ends it.
"""

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress

from ratchet_cli.people import People, Snapshot
from ratchet_cli.people.talk import Habits


def main(argv: Sequence[str] | None = None) -> int:
    """1 when a request failed or none was answered."""
    arguments = _parser().parse_args(argv)
    try:
        people = People(
            f"{arguments.gateway.rstrip('/')}/v1", arguments.cycle, seed=arguments.seed, rate=arguments.rate,
            people=arguments.people, mix=arguments.mix, correction_share=arguments.corrections, noise=arguments.noise,
        )  # fmt: skip
    except ValueError as error:
        print(f"people: {error}", file=sys.stderr)
        return 64
    asyncio.run(_talk(people, arguments.seconds, arguments.every))
    seen = people.snapshot()
    for failure in people.failures[:10]:
        print(f"failed at {failure.at:%H:%M:%S} ({failure.version or 'no version'}): {failure.reason}")
    return 1 if seen.failed or not seen.answered else 0


async def _talk(people: People, seconds: float | None, every: float) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, stop.set)
    if seconds is not None:
        loop.call_later(seconds, stop.set)
    talking = asyncio.create_task(people.run_until(stop))
    while not stop.is_set():
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), every)
        print(line(people.snapshot()), flush=True)
    await talking
    print(line(people.snapshot()), flush=True)


def line(seen: Snapshot) -> str:
    """The counters in one line."""
    counts = f"{seen.sent} sent, {seen.answered} answered, {seen.failed} failed, {seen.under_way} under way"
    versions = [
        f"{name}: {v.up_share:.0%} up of {v.up + v.down} (lately {v.recent_up_share:.0%}), p95 {v.p95:.2f} s"
        for name, v in sorted(seen.versions.items())
    ]
    return "; ".join([counts, *versions])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ratchet_cli.people",
        description="Simulated people ask a cycle house questions and general ones, judge the answers, send feedback.",
    )
    parser.add_argument("cycle", help="name of the ImprovementCycle, or cycle@version to talk to one version")
    parser.add_argument("--gateway", required=True, help="the gateway, such as http://127.0.0.1:8080")
    parser.add_argument("--rate", type=float, default=6.0, help="questions a second (default: %(default)s)")
    parser.add_argument("--people", type=int, default=24, help="how many people there are, at most as many questions "
                        "are under way (default: %(default)s)")  # fmt: skip
    parser.add_argument("--mix", type=float, default=Habits.mix, help="share of house questions (default: %(default)s)")
    parser.add_argument("--corrections", type=float, default=Habits.correction_share, metavar="SHARE",
                        help="share of the thumbs-down with a correction (default: %(default)s)")  # fmt: skip
    parser.add_argument(
        "--noise", type=float, default=Habits.noise, help="share of wrong verdicts (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1, help="what is asked follows from it (default: %(default)s)")
    parser.add_argument("--seconds", type=float, help="stop after this time (default: at Ctrl-C)")
    parser.add_argument("--every", type=float, default=5.0, metavar="SECONDS", help="time between two lines "
                        "(default: %(default)s)")  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
