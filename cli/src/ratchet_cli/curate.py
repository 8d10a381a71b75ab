"""`ratchet curate`: what the curate stage would make of files on this machine.

Room: cli. Reads a cycle's manifest, and hands over to the trainer, which the stage runs too, as a process: what it
needs (torch, transformers) is no part of this command line.
"""

import argparse
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from ratchet_api.data import Curation
from ratchet_api.training import Method
from ratchet_local.errors import LocalError

_FORWARDED = ("format", "verdict", "score", "anchors", "erasures", "model", "method", "since", "until", "workers")


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command."""
    text = "files of conversations to a dataset, and what each rule did to them"
    command = commands.add_parser(
        "curate",
        help=text,
        description=f"Turns {text}. Reads our own records, timestamp/user/assistant lines, OpenAI messages, ShareGPT, "
        "Alpaca, LiteLLM's log objects and Langfuse exports, plain, .gz or .zst.",
    )
    command.set_defaults(run=run)
    command.add_argument("paths", nargs="+", metavar="PATH", help="files, or folders of them")
    command.add_argument("--out", required=True, metavar="DIR", help="a new folder, which gets the dataset")
    command.add_argument("--cycle", type=Path, metavar="FILE", help="a cycle's manifest, whose `curation` holds")
    command.add_argument("--format", metavar="FORMAT", help="what the files hold (auto)")
    command.add_argument("--verdict", choices=("auto", "recorded", "good"), help="what silence about an answer means")
    command.add_argument("--score", metavar="NAME", help="Langfuse: the score that is the verdict")
    command.add_argument(
        "--held-out", action="append", default=[], metavar="FILE", help="cases of a suite, which are never trained on"
    )
    command.add_argument("--anchors", metavar="FILE", help="rows against forgetting, JSONL of messages")
    command.add_argument("--erasures", metavar="FILE", help="who withdrew, JSONL of principal or session")
    command.add_argument("--model", metavar="URI", help="what train.yaml trains (the cycle's baseModel.uri)")
    command.add_argument(
        "--method",
        choices=get_args(Method),
        help="what the dataset will be trained by (the cycle's training.method, sft)",
    )
    command.add_argument("--since", metavar="TIME", help="leave out what is older (ISO 8601)")
    command.add_argument("--until", metavar="TIME", help="leave out what is newer (ISO 8601; now)")
    command.add_argument(
        "--workers", type=int, metavar="N", help="processes that share the files (1); the dataset is the same"
    )
    command.add_argument("--json", action="store_true", help="print the statistics as JSON instead of the funnel")


def run(arguments: argparse.Namespace) -> int:
    """Runs the trainer's command; its exit code. Raises LocalError."""
    if find_spec("ratchet_trainer") is None or find_spec("boto3") is None:
        raise LocalError('the trainer is not installed here: pip install "ratchet[trainer]"')
    command = [sys.executable, "-m", "ratchet_trainer", "curate-files", *arguments.paths, "--out", arguments.out]
    for name in _FORWARDED:
        value = getattr(arguments, name)
        command += [] if value is None else [f"--{name}", str(value)]
    for path in arguments.held_out:
        command += ["--held-out", path]
    command += ["--json"] if arguments.json else []
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.cycle is not None:
            settings = Path(scratch) / "curation.json"
            curation, model, method = _curation(arguments.cycle)
            settings.write_text(curation.model_dump_json(by_alias=True))
            command += ["--curation", str(settings)]
            command += ["--model", model] if model and arguments.model is None else []
            command += ["--method", method] if method and arguments.method is None else []
        return subprocess.run(command, check=False).returncode


def _curation(path: Path) -> tuple[Curation, str, str]:
    """The block of the first cycle in a manifest, and the uri of its model and its method, empty when it has none."""
    try:
        documents: list[Any] = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise LocalError(f"--cycle: {path} cannot be read ({error}): name a cycle's manifest") from None
    for document in documents:
        if isinstance(document, dict) and document.get("kind") == "ImprovementCycle":
            spec = document.get("spec")
            spec = spec if isinstance(spec, dict) else {}
            try:
                curation = Curation.model_validate(spec.get("curation") or {})
                return curation, _text(spec, "baseModel", "uri"), _text(spec, "training", "method")
            except ValidationError as error:
                first = error.errors(include_url=False, include_input=False)[0]
                place = ".".join(("curation", *map(str, first["loc"])))
                raise LocalError(f"--cycle: {place}: {first['msg']}; correct it in {path}") from None
    raise LocalError(f"--cycle: there is no ImprovementCycle in {path}: name a cycle's manifest")


def _text(spec: dict[str, Any], block: str, field: str) -> str:
    there = spec.get(block)
    found = there.get(field) if isinstance(there, dict) else None
    return found if isinstance(found, str) else ""
