"""The on-call part of the command line: which commands there are, what they take, and how they end.

Room: cli. Heavy imports (the Kubernetes client, rich) happen in the command that needs them.
"""

import argparse
import functools
import importlib
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from ratchet_api.base import parse_duration
from ratchet_cli.oncall.errors import EXIT_CODES, FAILED, OncallError

_Raw = argparse.RawDescriptionHelpFormatter


def register(commands: Any, program: str) -> None:
    """Add the on-call commands; `program` is what the person typed, `ratchet` or `kubectl ratchet`."""
    add = functools.partial(_add, commands, program)
    _looking(add)
    _acting(add)
    _completing(commands, program)


def _add(
    commands: Any,
    program: str,
    name: str,
    function: str,
    text: str,
    more: str = "",
    examples: str = "",
    named: str = "",
) -> argparse.ArgumentParser:
    """One command. `function` is `module:function` below this package."""
    shown = "\n".join(f"  {program} {line}" for line in examples.splitlines())
    epilog = (f"examples:\n{shown}\n\n" if shown else "") + EXIT_CODES
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}." + (f"\n{more}" if more else ""),
        epilog=epilog,
        formatter_class=_Raw,
    )
    parser.set_defaults(run=functools.partial(_told, function), program=program)
    if named:
        parser.add_argument("name", metavar=named, help=f"name of the {named.lower().replace('|', ' or ')}")
    place = parser.add_argument_group("where")
    place.add_argument("-n", "--namespace", help="namespace (the one of the kubeconfig's context)")
    place.add_argument("--context", help="context of the kubeconfig (its current one)")
    place.add_argument("--kubeconfig", metavar="FILE", help="kubeconfig ($KUBECONFIG, else ~/.kube/config)")
    return parser


def _told(function: str, args: argparse.Namespace) -> int:
    """Import and call a command; our errors become a sentence on stderr and their exit code."""
    module, _, name = function.partition(":")
    command: Callable[[argparse.Namespace], int] = getattr(
        importlib.import_module(f"ratchet_cli.oncall.{module}"), name
    )
    try:
        return command(args)
    except OncallError as error:
        print(f"{args.program}: {error}", file=sys.stderr)
        return error.code
    except BrokenPipeError:
        # The reader (`head`, say) has had enough; the interpreter must not stumble over it again on its way out.
        sys.stdout = open("/dev/null", "w")  # noqa: SIM115
        return FAILED


def duration(text: str) -> timedelta:
    """An argument such as `90s` or `1h30m`."""
    try:
        parsed = parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    assert isinstance(parsed, timedelta)
    return parsed


def _looking(add: Callable[..., argparse.ArgumentParser]) -> None:
    parser = add(
        "get", "commands:get", "show cycles: stages, arms with their weights, checks, history",
        "Without a name, one line for each cycle; with one, the whole of it as a tree.",
        "get\nget assistant\nget assistant -w\nget -A -o wide\nget assistant -o json",
    )  # fmt: skip
    parser.add_argument(
        "name", nargs="?", metavar="CYCLE|VERSION", help="what to show; without it, all cycles in one line each"
    )
    parser.add_argument("-A", "--all-namespaces", action="store_true", help="cycles of all namespaces")
    parser.add_argument("-w", "--watch", action="store_true", help="stay, and redraw whenever something changes")
    parser.add_argument("-o", "--output", choices=("json", "yaml", "wide", "name"), help="form of the answer")
    add(
        "explain", "commands:explain", "say what happens now, why, since when, and what to type next",
        examples="explain assistant\nexplain assistant-7", named="CYCLE|VERSION",
    )  # fmt: skip
    parser = add(
        "status", "commands:status", "tell whether a cycle is where it should be, or wait for it; for pipelines",
        "Goals: ready, the champion answers; idle, no run and no rollout goes on;\npromoted, the present run's version "
        "(or --version) is champion and has\nstood its bake.",
        "status assistant --for ready\nrun assistant && ratchet status assistant --wait --for promoted --timeout 4h\n"
        "status assistant --wait --for promoted --version my-adapter", named="CYCLE",
    )  # fmt: skip
    parser.add_argument("--wait", action="store_true", help="wait until it is reached, or can no longer be")
    parser.add_argument(
        "--for", dest="goal", choices=("ready", "idle", "promoted"), default="ready", help="the goal (ready)"
    )
    parser.add_argument("--version", help="with --for promoted: the version that is meant")
    parser.add_argument(
        "--timeout", type=duration, metavar="TIME", help="wait no longer than this, such as 90s or 4h (for ever)"
    )
    parser = add(
        "doctor", "commands:doctor", "check the installation, and whether all is there that a cycle needs",
        "Each thing that is missing comes with what mends it. Secrets are looked at for the names of their keys only.",
        "doctor\ndoctor assistant",
    )  # fmt: skip
    parser.add_argument(
        "name", nargs="?", metavar="CYCLE", help="name of the cycle; without it, the installation alone"
    )
    parser.add_argument(
        "--system-namespace", metavar="NS", help="where operator and gateway run (found by their labels)"
    )
    parser = add(
        "lint", "commands:lint", "judge manifests before they are applied: field, line, what to write instead",
        "Without a cluster, every field; with one, also the rules across fields and what\n"
        "is there already, by a dry run.",
        "lint cycle.yaml\nlint deploy/ --offline\nlint - < cycle.yaml",
    )  # fmt: skip
    parser.add_argument("files", nargs="+", metavar="FILE", help="manifests, folders of them, or - for standard input")
    parser.add_argument("--offline", action="store_true", help="do not ask the API server")
    parser = add(
        "lineage", "commands:show_lineage", "show a version's parents, what each was made of, and what proved it",
        "With --erased, --session or --principal, the other way round: each dataset of a cycle that holds\nthe words "
        "of people who withdrew, and each version trained on it. The storage is read with the\ncredentials of the "
        "environment (AWS_ACCESS_KEY_ID, AWS_PROFILE, ...).",
        "lineage assistant-7\nlineage assistant-7 -o json\nlineage assistant --erased\n"
        "lineage assistant --session 0191c2e4 --principal 9f86d0...", named="VERSION|CYCLE",
    )  # fmt: skip
    parser.add_argument("-o", "--output", choices=("json", "yaml"), help="form of the answer")
    parser.add_argument("--erased", action="store_true", help="all who are on the cycle's erasure list")
    parser.add_argument("--session", action="append", default=[], metavar="ID", help="this conversation; repeatable")
    parser.add_argument(
        "--principal", action="append", default=[], metavar="SHA256", help="this person, as recorded; repeatable"
    )
    parser.add_argument("--endpoint", help="storage's address as seen from here (the one of the cycle's spec)")
    parser = add(
        "tensorboard", "curves:tensorboard", "show the curves of trainings: loss, rate, gradient, speed",
        "The event files lie beside the adapter in the cycle's storage, which is read with the credentials\n"
        "of the environment (AWS_ACCESS_KEY_ID, AWS_PROFILE, ...). Several versions are drawn over each other.",
        "tensorboard assistant-7\ntensorboard assistant-6 assistant-7 --port 6007\n"
        "tensorboard assistant-7 --out curves",
    )  # fmt: skip
    parser.add_argument("names", nargs="+", metavar="VERSION", help="names of versions of one cycle")
    parser.add_argument("--port", type=int, default=6006, help="port of TensorBoard on this machine (6006)")
    parser.add_argument("--endpoint", help="storage's address as seen from here (the one of the cycle's spec)")
    parser.add_argument("--out", metavar="DIR", help="only put the event files there, a folder for each version")


def _acting(add: Callable[..., argparse.ArgumentParser]) -> None:
    def act(name: str, text: str, more: str, examples: str, named: str = "CYCLE") -> argparse.ArgumentParser:
        parser = add(name, f"commands:{name}", text, more, examples, named)
        parser.add_argument(
            "--dry-run", action="store_true", help="say what would happen; the API server checks, nothing is changed"
        )
        return parser

    act(
        "run",
        "start a run now",
        "It curates, trains, proves and rolls out, as a scheduled one does.",
        "run assistant\nrun assistant --dry-run",
    )
    parser = act(
        "abort", "take the candidate back to weight 0 now", "Its digest is rejected for good, until it is retried.",
        "abort assistant\nabort assistant assistant-7",
    )  # fmt: skip
    parser.add_argument("version", nargs="?", metavar="VERSION", help="only if it is this one that is being rolled out")
    act(
        "pause",
        "stop starting runs and raising weights; serving goes on",
        "Writes spec.suspend: true; Git may undo it.",
        "pause assistant",
    )
    parser = act(
        "approve",
        "let a version go on that waits for a person",
        "It names the digest of what goes on, so that nothing else does.",
        "approve assistant-7\napprove assistant-7 --digest sha256:...",
        "VERSION",
    )
    parser.add_argument("--digest", help="what you have looked at; refused when something else waits")
    act(
        "export",
        "export a version now, in the formats that its cycle names",
        "Beside everything else: no rollout waits for it. What came of it is in the condition Exported.",
        "export assistant-7",
        "VERSION",
    )
    parser = act(
        "promote",
        "point at the version that is to be rolled out",
        "Writes spec.serving.version; Git may undo it. Gate and steps are not skipped.",
        "promote assistant assistant-7",
    )
    parser.add_argument("version", metavar="VERSION", help="name of the version")
    parser = act(
        "rollback",
        "go back to a champion of before, at once and with a bake",
        "Writes spec.serving.version; Git may undo it. To take back a candidate, see abort.",
        "rollback assistant\nrollback assistant --to assistant-5",
    )
    parser.add_argument("--to", dest="version", metavar="VERSION", help="which one (the champion before this one)")
    act(
        "unpin",
        "end a promote or a rollback: every accepted version is rolled out again",
        "Takes spec.serving.version out; Git may undo it.",
        "unpin assistant",
    )
    act("resume", "end a pause", "Writes spec.suspend: false; Git may undo it.", "resume assistant")
    act(
        "retry", "try again what failed, was rejected, or was taken back",
        "A version is made anew under another name from the same recipe or adapter, and its digest is named in\n"
        "spec.rollout.retryDigests; of a cycle, the last run is repeated.",
        "retry assistant-7\nretry assistant", "CYCLE|VERSION",
    )  # fmt: skip


def _completing(commands: Any, program: str) -> None:
    shells = (
        "  bash:  source <(ratchet completion bash)\n"
        "  zsh:   source <(ratchet completion zsh)\n"
        "  fish:  ratchet completion fish | source\n"
    )
    parser = commands.add_parser(
        "completion",
        help="print the completion script of a shell",
        description="Print the completion script of a shell. Names of cycles and versions are completed too.",
        epilog=f"put the shell's line into its start-up file:\n{shells}"
        "kubectl completes `kubectl ratchet` by itself, once kubectl_complete-ratchet is on the PATH.",
        formatter_class=_Raw,
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))
    parser.set_defaults(run=functools.partial(_told, "completion:completion"), program=program)
    # Asked by the scripts; argparse lists no command without a help.
    hidden = commands.add_parser("__complete", add_help=False)
    hidden.add_argument("words", nargs=argparse.REMAINDER)
    hidden.set_defaults(run=functools.partial(_told, "completion:complete"), program=program)
