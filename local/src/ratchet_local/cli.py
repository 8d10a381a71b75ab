"""`ratchet local up | down | status | preempt | throttle`.

Room: local. The room `cli` mounts `register`; each command is a function from parsed arguments to an exit code.
Errors of this room are printed to stderr as the one sentence that they are.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from ratchet_local.config import Part, PlatformConfig
from ratchet_local.errors import LocalError, NotRunning
from ratchet_local.platform import Platform

DEFAULT_STATE = Path(".ratchet/local")
Subparsers = Any
"""argparse._SubParsersAction, which argparse keeps private."""


def register(subparsers: Subparsers) -> None:
    """Add the command `local` and its verbs; each sets `run`, a function from Namespace to an exit code."""
    local = subparsers.add_parser("local", help="a real Kubernetes on this machine, without containers")
    verbs = local.add_subparsers(dest="verb", metavar="COMMAND", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=text)
        parser.add_argument("--state", type=Path, default=DEFAULT_STATE, help="state folder (%(default)s)")
        parser.set_defaults(run=run)
        return parser

    start = add("up", up, "start the platform in the background")
    start.add_argument("--gpus", type=_count, default=0, help="nvidia.com/gpu that the node pretends to have (0)")
    start.add_argument("--name", default="local", help="name of the node and of the kubeconfig's context (local)")
    start.add_argument(
        "--parts", type=_parts, default=frozenset(get_args(Part)), metavar="PART[,PART...]",
        help=f"which parts to start ({','.join(get_args(Part))})",
    )  # fmt: skip
    add("down", down, "end the platform and everything that runs on it")
    look = add("status", status, "show what runs and how to reach it")
    look.add_argument("-o", "--output", choices=("text", "json"), default="text", help="form of the answer (text)")
    evict = add("preempt", preempt, "take a pod off the node, as for a more important one")
    evict.add_argument("pod", help="name of the pod")
    evict.add_argument("-n", "--namespace", default="default", help="its namespace (default)")
    slow = add("throttle", throttle, "make pods slow: stop and continue their processes")
    slow.add_argument(
        "-l", "--selector", required=True, help="labels of the pods, e.g. ratchet.dev/version=assistant-3"
    )
    slow.add_argument("--share", type=float, required=True, help="share of the time to take away, 0 to 0.99; 0 ends it")


def _count(text: str) -> int:
    if not text.isdigit() or int(text) > 1024:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of GPUs: write 0 to 1024")
    return int(text)


def _parts(text: str) -> frozenset[str]:
    chosen = frozenset(part.strip() for part in text.split(",") if part.strip())
    known = get_args(Part)
    if not chosen or not chosen <= set(known):
        raise argparse.ArgumentTypeError(f"{text!r} names an unknown part: choose from {','.join(known)}")
    return chosen


def _told(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """Turn this room's errors into a sentence on stderr and exit code 1."""

    def wrapped(args: argparse.Namespace) -> int:
        try:
            return run(args)
        except LocalError as error:
            print(f"ratchet local: {error}", file=sys.stderr)
            return 1

    wrapped.__doc__ = run.__doc__
    return wrapped


@_told
def up(args: argparse.Namespace) -> int:
    """Start the platform and leave it running."""
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"[{time.monotonic() - began:5.1f} s] {line}", flush=True)

    config = PlatformConfig(state=args.state, parts=args.parts, gpus=args.gpus, name=args.name)
    platform = Platform(config, progress=say)
    try:
        platform.up(detach=True)
    except KeyboardInterrupt:
        print("interrupted: nothing was left running", file=sys.stderr)
        return 130
    print(f"\nThe platform is up; `ratchet local down{_state_option(args)}` ends it. Look around with:\n")
    for line in _access(platform):
        print(f"  {line}")
    return 0


@_told
def down(args: argparse.Namespace) -> int:
    """End the platform; 0 also when none ran."""
    try:
        platform = Platform.attach(args.state)
    except NotRunning:
        Platform(PlatformConfig(state=args.state)).down()
        print("no platform was running")
        return 0
    platform.down()
    print("the platform has ended; its state is kept")
    return 0


@_told
def status(args: argparse.Namespace) -> int:
    """Print the components; 0 when all are ready, 3 when one is not, 1 when no platform runs."""
    platform = Platform.attach(args.state)
    components = platform.components()
    if args.output == "json":
        print(json.dumps(_document(platform, components), indent=2))
    else:
        width = max(len(component["name"]) for component in components)
        for component in components:
            pid = f"process {component['pid']}" if component["pid"] else ""
            again = f"{component['restarts']} restarts" if component["restarts"] else ""
            print(f"{component['name']:{width}}  {component['state']:8}  {pid}  {again}".rstrip())
        print()
        for line in _access(platform):
            print(line)
    return 0 if all(component["state"] == "ready" for component in components) else 3


@_told
def preempt(args: argparse.Namespace) -> int:
    """Preempt one pod."""
    Platform.attach(args.state).preempt(args.namespace, args.pod)
    print(f"pod {args.namespace}/{args.pod} is being preempted")
    return 0


@_told
def throttle(args: argparse.Namespace) -> int:
    """Throttle matching pods, present and future."""
    count = Platform.attach(args.state).throttle(args.selector, args.share)
    what = f"lose {args.share:.0%} of their time" if args.share else "run freely again"
    print(f"pods with {args.selector} {what}; {count} of them now")
    return 0


def _state_option(args: argparse.Namespace) -> str:
    return "" if args.state == DEFAULT_STATE else f" --state '{args.state}'"


def _access(platform: Platform) -> list[str]:
    lines = []
    parts = platform.config.parts
    if "control-plane" in parts:
        lines.append(f"export KUBECONFIG='{platform.kubeconfig}'")
    if "prometheus" in parts:
        lines.append(f"export PROMETHEUS_URL={platform.prometheus_url}")
    if "s3" in parts:
        lines += [f"export {name}={value}" for name, value in platform.s3.env().items()]
    return lines


def _document(platform: Platform, components: list[dict[str, Any]]) -> dict[str, Any]:
    parts = platform.config.parts
    return {
        "components": components,
        "parts": sorted(parts),
        "kubeconfig": str(platform.kubeconfig) if "control-plane" in parts else None,
        "apiUrl": platform.api_url if "control-plane" in parts else None,
        "prometheusUrl": platform.prometheus_url if "prometheus" in parts else None,
        "s3": platform.s3.model_dump() if "s3" in parts else None,
    }
