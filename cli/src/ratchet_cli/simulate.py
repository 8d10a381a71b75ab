"""`ratchet simulate`: what a cycle's rollout would have done, by the operator's own decisions.

Room: cli. Hands over to the operator's simulator as a process: the rooms share no code but the vocabulary.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from ratchet_local.errors import LocalError

NAME = "simulate"


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command to the list; its arguments are the simulator's own (see `run`)."""
    commands.add_parser(
        NAME, help="play a rollout over recorded or generated traffic, on a simulated clock", add_help=False
    )


def run(arguments: Sequence[str]) -> int:
    """Runs the simulator; its exit code. Raises LocalError."""
    if find_spec("ratchet_operator") is None or find_spec("cronsim") is None:
        raise LocalError('the operator is not installed here: pip install "ratchet[operator]"')
    return subprocess.run([sys.executable, "-m", "ratchet_operator.simulate", *arguments], check=False).returncode
