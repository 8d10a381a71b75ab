"""The `ratchet` command: a person on call, the local platform and the demonstration.

Room: cli. Parses arguments and hands over; heavy imports happen in the command that needs them.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import ratchet_local.cli
from ratchet_cli import curate, simulate
from ratchet_cli.collect import cli as collect
from ratchet_cli.demo import cli as demo
from ratchet_cli.oncall import cli as oncall
from ratchet_local.errors import LocalError


def parser(program: str = "ratchet") -> argparse.ArgumentParser:
    """The whole command line of `program`, which is `ratchet` or `kubectl ratchet`."""
    root = argparse.ArgumentParser(
        prog=program,
        description="Keep a served language model improving from its own use, and never let it get worse unnoticed.",
        epilog=f"where to begin: `{program} get` shows all cycles, `{program} explain NAME` says what one does and "
        f"what to type next, `{program} doctor` what is missing, `{program} COMMAND --help` has examples.",
    )
    commands = root.add_subparsers(title="commands", metavar="COMMAND", required=True)
    oncall.register(commands, program)
    curate.register(commands)
    simulate.register(commands)
    collect.register(commands, program)
    ratchet_local.cli.register(commands)
    demo.register(commands)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0 when it did what was asked."""
    program = "kubectl ratchet" if Path(sys.argv[0]).name == "kubectl-ratchet" else "ratchet"
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words[:1] == [simulate.NAME]:
            return simulate.run(words[1:])
        arguments = parser(program).parse_args(words)
        return int(arguments.run(arguments))
    except LocalError as error:
        print(f"ratchet: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("ratchet: interrupted", file=sys.stderr)
        return 130
