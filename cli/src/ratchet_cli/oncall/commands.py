"""The on-call commands: from parsed arguments to an exit code.

Room: cli. Reads and writes through `cluster`, prints through `screen`; what is said and decided is in the pure modules.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import yaml
from rich.console import RenderableType
from rich.live import Live

from ratchet_api.base import format_duration
from ratchet_api.names import CYCLE_KIND, CYCLE_PLURAL, GROUP, VERSION_KIND
from ratchet_cli.oncall import actions, goals, lineage, pointing
from ratchet_cli.oncall import lint as linting
from ratchet_cli.oncall.cluster import Cluster
from ratchet_cli.oncall.errors import FAILED, REACHED, NotFound, OncallError, TimedOut, Unreachable, UsageError
from ratchet_cli.oncall.explain import explain as explanation
from ratchet_cli.oncall.screen import console, plain
from ratchet_cli.oncall.tables import cycles_table
from ratchet_cli.oncall.tree import cycle_tree, version_tree
from ratchet_cli.oncall.view import View, Where
from ratchet_cli.oncall.words import count

_REDRAW_SECONDS = 1.0
"""Ages on the screen move on even when nothing happens."""
_RECHECK_SECONDS = 30.0
"""A wait looks again after this time, should a watch have lost something."""


def connect(args: argparse.Namespace) -> Cluster:
    """The cluster that the common options name."""
    where = Where(
        program=args.program,
        namespace=args.namespace or "",
        context=args.context or "",
        kubeconfig=args.kubeconfig or "",
    )
    return Cluster(where, args.kubeconfig, args.context)


def get(args: argparse.Namespace) -> int:
    """`ratchet get`."""
    if args.name and args.all_namespaces:
        raise UsageError("a name and -A exclude each other: write -n NAMESPACE with the name")
    if args.watch and args.output in ("json", "yaml", "name"):
        raise UsageError(
            f"-w draws for people: leave out -o {args.output}, or use `kubectl get cycle -w -o {args.output}`"
        )
    with connect(args) as cluster:
        if args.output in ("json", "yaml", "name"):
            return _print_raw(cluster, args)
        look = _look_at(cluster, args)
        if args.watch:
            return _watch(cluster, look)
        shown = look()
        if shown is None:
            where = "in any namespace" if args.all_namespaces else f"in namespace {cluster.namespace}"
            raise NotFound(f"there is no cycle {where}: `kubectl apply -f` one, or name another namespace with -n")
        _print(shown(datetime.now(UTC)))
    return REACHED


_Drawing = Callable[[datetime], RenderableType]


def _look_at(cluster: Cluster, args: argparse.Namespace) -> Callable[[], _Drawing | None]:
    """A function that reads the state anew and returns a drawing of it; None: there is nothing to draw."""
    wide = args.output == "wide"

    def one() -> _Drawing:
        view, version = cluster.find(args.name)
        if version is not None:
            return lambda now: version_tree(view, version, now, wide)
        return lambda now: cycle_tree(view, now, wide)

    def all_of_them() -> _Drawing | None:
        cycles = cluster.cycles(args.all_namespaces)
        return (lambda now: cycles_table(cycles, now, args.all_namespaces, wide)) if cycles else None

    return one if args.name else all_of_them


def _print_raw(cluster: Cluster, args: argparse.Namespace) -> int:
    found = cluster.raw(CYCLE_KIND, args.name) if args.name else cluster.raw_list(CYCLE_KIND, args.all_namespaces)
    match args.output:
        case "json":
            print(json.dumps(found, indent=2))
        case "yaml":
            print(yaml.safe_dump(found, sort_keys=False), end="")
        case _:
            for item in [found] if args.name else found["items"]:
                print(f"{CYCLE_PLURAL}.{GROUP}/{item['metadata']['name']}")
    return REACHED


def _watch(cluster: Cluster, look: Callable[[], _Drawing | None]) -> int:
    """Redraws in place until Ctrl-C; piped, prints the whole anew whenever it has changed."""
    screen = console(exact=True)
    nothing = "there is no cycle yet"
    last = ""
    with cluster.bell() as bell, Live(console=screen, auto_refresh=False, vertical_overflow="crop") as live:
        drawing: _Drawing | None = None
        problem = ""
        fresh = True
        while True:
            if fresh:
                try:
                    drawing, problem = look(), ""
                except Unreachable as error:
                    problem = f"{error}; trying again"
            now = datetime.now(UTC)
            shown: RenderableType = drawing(now) if drawing is not None else nothing
            if screen.is_terminal:
                live.update(_with(shown, problem), refresh=True)
            elif fresh and (text := plain(_with(shown, problem))) != last:
                print(text, flush=True)
                last = text
            fresh = bell.wait(_REDRAW_SECONDS) or bool(problem)


def _with(shown: RenderableType, problem: str) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    return Group(shown, Text(problem, style="bold red")) if problem else shown


def explain(args: argparse.Namespace) -> int:
    """`ratchet explain`."""
    with connect(args) as cluster:
        view, version = cluster.find(args.name)
        print(explanation(view, datetime.now(UTC), version).text())
    return REACHED


def show_lineage(args: argparse.Namespace) -> int:
    """`ratchet lineage`."""
    if args.erased or args.session or args.principal:
        from ratchet_cli.oncall import withdrawn  # it needs the storage's client

        return withdrawn.show(args)
    with connect(args) as cluster:
        version = cluster.version(args.name)
        view = cluster.view(version.spec.cycle)
        if args.output == "json":
            print(json.dumps(lineage.document(view, version), indent=2))
        elif args.output == "yaml":
            print(yaml.safe_dump(lineage.document(view, version), sort_keys=False), end="")
        else:
            _print(lineage.lineage_tree(view, version, datetime.now(UTC)))
    return REACHED


def _print(renderable: RenderableType) -> None:
    screen = console()
    if screen.is_terminal:
        screen.print(renderable)
    else:
        print(plain(renderable), end="")


def status(args: argparse.Namespace) -> int:
    """`ratchet status`: 0 reached, 1 failed, 3 timed out or not there yet."""
    if not args.wait and args.timeout is not None:
        raise UsageError("--timeout is for waiting: add --wait")
    with connect(args) as cluster:
        if not args.wait:
            found = goals.standing(cluster.view(args.name), args.goal, args.version)
            print(f"{found.state}: {found.message}")
            return {"Reached": REACHED, "Failed": FAILED, "Waiting": TimedOut.code}[found.state]
        return _wait(cluster, args)


def _wait(cluster: Cluster, args: argparse.Namespace) -> int:
    seconds = args.timeout.total_seconds() if args.timeout is not None else None
    deadline = time.monotonic() + seconds if seconds is not None else None
    said = ""
    # The bell is there before the first look, so nothing is missed in between.
    with cluster.bell() as bell:
        while True:
            found = None
            try:
                found = goals.standing(cluster.view(args.name), args.goal, args.version)
                line = f"{found.state}: {found.message}"
            except Unreachable as error:
                line = f"Waiting: {error}"
            if line != said:
                print(line, flush=True)
                said = line
            if found is not None and found.state != "Waiting":
                return REACHED if found.state == "Reached" else FAILED
            left = _RECHECK_SECONDS if deadline is None else min(_RECHECK_SECONDS, deadline - time.monotonic())
            if left <= 0:
                raise TimedOut(
                    f"{args.name} has not come to `{args.goal}` within {format_duration(args.timeout)}: {said}"
                )
            bell.wait(left)


def doctor(args: argparse.Namespace) -> int:
    """`ratchet doctor`: 1 when something is broken."""
    from ratchet_cli.oncall import doctor as checkup
    from ratchet_cli.oncall.probes import look

    with connect(args) as cluster:
        found = checkup.findings(look(cluster, args.name, args.system_namespace))
    print(checkup.text(found))
    return REACHED if checkup.healthy(found) else FAILED


def lint(args: argparse.Namespace) -> int:
    """`ratchet lint`: 1 when something is wrong."""
    documents: list[linting.Document] = []
    found: list[linting.Problem] = []
    for file in _files(args.files):
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
        read, wrong = linting.read("(stdin)" if file == "-" else file, text)
        documents, found = documents + read, found + wrong
    found += linting.problems(documents)
    ours = [document for document in documents if document.ours]
    note = ""
    if not args.offline:
        broken = {(problem.file, problem.subject) for problem in found}
        whole = [d for d in ours if (d.file, f"{d.kind} {d.name}") not in broken]
        more, note = _asked(args, whole)
        found += more
    for problem in sorted(found, key=lambda p: (p.file, p.line)):
        print(problem.text())
    if note:
        print(f"note: {note}", file=sys.stderr)
    wrong_things = count(len(found), "problem") if found else "no problem"
    print(f"{count(len(documents), 'object')}, {len(ours)} of them Ratchet's: {wrong_things}")
    return FAILED if found else REACHED


def _files(given: Sequence[str]) -> list[str]:
    """Files as they are, folders as the YAML files in them."""
    found: list[str] = []
    for name in given:
        path = Path(name)
        if path.is_dir():
            found += sorted(str(p) for p in path.rglob("*") if p.suffix in (".yaml", ".yml", ".json") and p.is_file())
        elif name == "-" or path.is_file():
            found.append(name)
        else:
            raise UsageError(f"there is no file {name}: name a manifest, a folder, or - for standard input")
    return found


def _asked(args: argparse.Namespace, documents: Sequence[linting.Document]) -> tuple[list[linting.Problem], str]:
    """What the API server says to a dry run of each, and why it could not be asked."""
    found: list[linting.Problem] = []
    if not documents:
        return found, ""
    try:
        with connect(args) as cluster:
            for document in documents:
                status = cluster.try_apply(document.kind, document.body)
                found += linting.refused(document, status) if status is not None else []
    except OncallError as error:
        return found, f"rules across fields were not checked, as that takes a cluster: {error}"
    return found, ""


# Actions


def run(args: argparse.Namespace) -> int:
    """`ratchet run`."""
    return _act(args, lambda view: actions.run(view, _stamp()))


def abort(args: argparse.Namespace) -> int:
    """`ratchet abort`."""
    return _act(args, lambda view: actions.abort(view, args.version))


def pause(args: argparse.Namespace) -> int:
    """`ratchet pause`."""
    return _act(args, actions.pause)


def resume(args: argparse.Namespace) -> int:
    """`ratchet resume`."""
    return _act(args, actions.resume)


def retry(args: argparse.Namespace) -> int:
    """`ratchet retry`."""
    with connect(args) as cluster:
        view, version = cluster.find(args.name)
        return _carry_out(cluster, args, view, actions.retry(view, version, _stamp()))


def approve(args: argparse.Namespace) -> int:
    """`ratchet approve`."""
    with connect(args) as cluster:
        version = cluster.version(args.name)
        view = cluster.view(version.spec.cycle)
        return _carry_out(cluster, args, view, pointing.approve(view, version, args.digest))


def export(args: argparse.Namespace) -> int:
    """`ratchet export`."""
    with connect(args) as cluster:
        version = cluster.version(args.name)
        view = cluster.view(version.spec.cycle)
        return _carry_out(cluster, args, view, pointing.export(view, version, _stamp()))


def promote(args: argparse.Namespace) -> int:
    """`ratchet promote`."""
    return _act(args, lambda view: pointing.promote(view, args.version))


def rollback(args: argparse.Namespace) -> int:
    """`ratchet rollback`."""
    return _act(args, lambda view: pointing.rollback(view, args.version))


def unpin(args: argparse.Namespace) -> int:
    """`ratchet unpin`."""
    return _act(args, pointing.unpin)


def _act(args: argparse.Namespace, decide: Callable[[View], actions.Plan]) -> int:
    with connect(args) as cluster:
        view = cluster.view(args.name)
        return _carry_out(cluster, args, view, decide(view))


def _carry_out(cluster: Cluster, args: argparse.Namespace, view: View, plan: actions.Plan) -> int:
    """Say what will happen, do it (or let the API server only try it), and say how to look at it."""
    for request in plan.requests:
        match request:
            case actions.Patch(body, version):
                kind = VERSION_KIND if version else CYCLE_KIND
                cluster.patch(kind, version or view.name, body, args.dry_run)
            case actions.Create(body):
                cluster.create_version(body, args.dry_run)
    print(f"{plan.sentence}{' (dry run: nothing was changed)' if args.dry_run else ''}")
    for warning in plan.warnings:
        print(f"note: {warning}")
    if plan.next and not args.dry_run:
        print(f"look at it: {plan.next}")
    return REACHED


def _stamp() -> str:
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
