"""`ratchet chat` and `ratchet tasks run`: what they take.

Room: cli. Heavy imports happen in the command that needs them.
"""

import argparse
import functools
import importlib
import sys
from typing import Any

from ratchet_cli.oncall.errors import OncallError

_Raw = argparse.RawDescriptionHelpFormatter
_EXIT_CODES = """exit codes:
  0  done; of tasks: all of them successful
  1  refused; of tasks: at least one not successful
  2  the command line, or the task file, makes no sense
  4  no such cycle
  5  the model or the API server cannot be asked; of tasks: at least one got no answer
  6  records wait on this machine, because storage does not take them
"""


def register(commands: Any, program: str) -> None:
    """Add the commands; `program` is what the person typed."""
    chat = _add(
        commands, program, "chat", "commands:chat", "talk to a cycle's model, and say which answers were good",
        "A gateway records by itself. Of any other server that speaks the OpenAI API, --out says where the records\n"
        "go; `ratchet curate` and a cycle's sessions.sources read them.",
        "chat assistant\nchat assistant --version assistant-7\n"
        "chat assistant --url http://127.0.0.1:8000 --out work-sessions\n"
        "chat assistant --url http://127.0.0.1:8000 --out s3://ratchet/assistant",
    )  # fmt: skip
    chat.add_argument("name", metavar="CYCLE", help="name of the cycle")
    chat.add_argument("--version", metavar="VERSION", help="talk to this version, whatever the rollout says")
    chat.add_argument("--system", default="", metavar="TEXT", help="system prompt to begin with")
    _where(chat, "chat")
    tasks = commands.add_parser(
        "tasks", help="have a model do a list of tasks, and judge each answer",
        description="Tasks with a way of judging them, done by a model.",
    )  # fmt: skip
    below = tasks.add_subparsers(title="commands", metavar="COMMAND", required=True)
    run = _add(
        below, f"{program} tasks", "run", "commands:tasks", "do the tasks of a file, and judge and record the answers",
        "Each task is judged by words (expect: all, any, none) or by a command that gets the answer as its input.\n"
        "The commands run on this machine, as you: run only files that you trust.",
        "run tasks.yaml assistant\nrun tasks.yaml assistant --version assistant-7 -o json\n"
        "run tasks.yaml --url http://127.0.0.1:8000 --out work-sessions",
    )  # fmt: skip
    run.add_argument("file", metavar="TASKS.yaml", help="the tasks; - for standard input")
    run.add_argument("name", nargs="?", metavar="CYCLE", help="name of the cycle; may be left out with --url")
    run.add_argument("--version", metavar="VERSION", help="ask this version, whatever the rollout says")
    run.add_argument("-o", "--output", choices=("json",), help="form of the answer")
    _where(run, "tasks")


def _add(commands: Any, program: str, name: str, function: str, text: str, more: str, examples: str) -> Any:
    shown = "\n".join(f"  {program} {line}" for line in examples.splitlines())
    parser = commands.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}.\n{more}",
        epilog=f"examples:\n{shown}\n\n{_EXIT_CODES}", formatter_class=_Raw,
    )  # fmt: skip
    parser.set_defaults(run=functools.partial(_told, function), program=program)
    return parser


def _where(parser: Any, name: str) -> None:
    place = parser.add_argument_group("where")
    place.add_argument("-n", "--namespace", help="namespace of the cycle (the one of the kubeconfig's context)")
    place.add_argument("--context", help="context of the kubeconfig (its current one)")
    place.add_argument("--kubeconfig", metavar="FILE", help="kubeconfig ($KUBECONFIG, else ~/.kube/config)")
    place.add_argument("--url", help="the server's address (the cycle's gateway, through the API server)")
    place.add_argument("--model", help="name of the model on a server that is no gateway (its only one)")
    place.add_argument("--out", metavar="DIR|s3://...", help="where records go when the server is no gateway")
    place.add_argument("--endpoint", metavar="URL", help="S3 server of --out, when it is not AWS (AWS_ENDPOINT_URL)")
    place.add_argument("--session-name", default=name, metavar="NAME", help=f"begin of the records' names ({name})")


def _told(function: str, args: argparse.Namespace) -> int:
    """Import and call a command; our errors become a sentence on stderr and their exit code."""
    module, _, name = function.partition(":")
    command = getattr(importlib.import_module(f"ratchet_cli.collect.{module}"), name)
    try:
        return int(command(args))
    except OncallError as error:
        print(f"{args.program}: {error}", file=sys.stderr)
        return error.code
