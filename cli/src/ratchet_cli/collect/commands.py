"""The commands: find the model, find where the records go, and hand over.

Room: cli. Ties the modules of this package together; writes to standard output and standard error.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from ratchet_cli.collect.chat import Chat
from ratchet_cli.collect.collector import WorkSessionCollector
from ratchet_cli.collect.errors import CollectError, Misused
from ratchet_cli.collect.model import Model
from ratchet_cli.collect.tasks import Outcome, Report, parse, run_tasks
from ratchet_cli.collect.terminal import Terminal
from ratchet_cli.oncall.errors import FAILED, REACHED, UNREACHABLE
from ratchet_cli.oncall.screen import console
from ratchet_cli.oncall.view import Where


@dataclass(frozen=True)
class _Session:
    model: Model
    collector: WorkSessionCollector | None
    place: str
    """Where the records go, for people; empty for nowhere."""


def chat(args: argparse.Namespace) -> int:
    """`ratchet chat`."""
    with _keeping(), _session(args) as session:
        if not session.place:
            raise Misused(
                f"--out: {session.model.base} is no Ratchet gateway, which would record this session: name a folder or "
                "s3://bucket/prefix for the records"
            )
        terminal = Terminal()
        terminal.line(f"{session.model.name} at {session.model.base}, recorded {session.place}; /help lists commands")
        Chat(session.model, terminal, session.collector, _system=args.system).run()
    return REACHED


def tasks(args: argparse.Namespace) -> int:
    """`ratchet tasks run`."""
    found = parse(_read(args.file), args.file)
    if args.name is None and args.url is None:
        raise Misused("there is no model to ask: name a cycle, or a server by --url")
    with _keeping(), _session(args) as session:
        report = run_tasks(found, session.model, session.collector, _Progress(len(found)))
    if args.output == "json":
        print(json.dumps(report.document(), ensure_ascii=False, indent=2))
    else:
        console().print(_table(report))
        print(_summary(report, session.place))
    if report.unanswered:
        return UNREACHABLE
    return REACHED if report.successful == len(found) else FAILED


@contextmanager
def _keeping() -> Iterator[None]:
    """A full disk in words."""
    try:
        yield
    except OSError as error:
        raise CollectError(f"the records cannot be kept ({error}): look at the disk, or write another --out") from error


@contextmanager
def _session(args: argparse.Namespace) -> Iterator[_Session]:
    """The model, and the collector when the server does not record by itself. Raises OncallErrors."""
    with ExitStack() as stack:
        namespace, url = args.namespace or "", args.url
        if url is None:
            from ratchet_cli.collect.gateways import way_to
            from ratchet_cli.oncall.cluster import Cluster

            where = Where(
                args.program.removesuffix(" tasks"), namespace, args.context or "", args.kubeconfig or ""
            )  # fmt: skip
            cluster = stack.enter_context(Cluster(where, args.kubeconfig, args.context))
            namespace = cluster.namespace
            url = stack.enter_context(way_to(cluster, args.name))
        model = stack.enter_context(Model(url))
        model.choose(_names(args.name, namespace, args.version), args.model)
        if model.gateway and args.out:
            raise Misused(f"--out: {model.base} is a gateway and records by itself: leave it out")
        if args.version and not model.gateway:
            raise Misused(f"--version: {model.base} is no gateway and knows no versions: leave it out, or name --model")
        if not args.out:
            yield _Session(model, None, "by the gateway" if model.gateway else "")
            return
        collector = stack.enter_context(
            WorkSessionCollector(
                args.session_name, args.out, cycle=args.name or "", namespace=namespace or "default",
                principal=model.who, endpoint=args.endpoint,
            )
        )  # fmt: skip
        yield _Session(model, collector, f"in {args.out}")


def _names(cycle: str | None, namespace: str, version: str | None) -> list[str]:
    """What a gateway may call the model; with the namespace first, as a bare name may fit several."""
    pin = f"@{version}" if version else ""
    if cycle is None:
        return ["default"]
    return [*([f"{namespace}/{cycle}{pin}"] if namespace else []), f"{cycle}{pin}"]


def _read(name: str) -> str:
    try:
        return sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Misused(f"{name} cannot be read ({error}): name a file of tasks, or - for standard input") from None


class _Progress:
    """One line a task on standard error, when somebody is looking."""

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0

    def __call__(self, outcome: Outcome) -> None:
        self._done += 1
        if sys.stderr.isatty():
            print(f"{self._done}/{self._total} {outcome.id}: {_state(outcome)}", file=sys.stderr)


def _state(outcome: Outcome) -> str:
    return "done" if outcome.success else "failed" if outcome.answered else "no answer"


def _table(report: Report) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("TASK", "RESULT", "SECONDS", "VERSION", "WHY"):
        table.add_column(column, justify="right" if column == "SECONDS" else "left")
    for one in report.outcomes:
        table.add_row(one.id, _state(one), f"{one.seconds:.1f}", one.version, one.why)
    return table


def _summary(report: Report, place: str) -> str:
    kept = sum(one.recorded for one in report.outcomes)
    recorded = f"{kept} recorded {place}" if place else "recorded nowhere (--out says where)"
    return f"{report.successful} of {len(report.outcomes)} tasks done, {recorded}"
