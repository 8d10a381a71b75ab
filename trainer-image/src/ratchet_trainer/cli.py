"""`python -m ratchet_trainer`: the stages' command line, exit codes and reports.

Room: trainer. Touches the files named on the command line and the process's signals. Heavy libraries are imported by
the stages themselves, so that `--help` and `fetch` are quick.
"""

import argparse
import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from pydantic import ValidationError

from ratchet_api.reasons import Reason
from ratchet_api.stage import (
    STAGE_INPUT,
    CurateInput,
    EvaluateInput,
    ExitCode,
    ExportInput,
    FetchInput,
    StageReport,
    TrainInput,
)
from ratchet_trainer.dataset import first_error
from ratchet_trainer.errors import OutOfMemory, Preempted, StageError, TryAgain, UserError
from ratchet_trainer.metrics import Progress, parse_address
from ratchet_trainer.storage import Store

log = logging.getLogger("ratchet")

_INDEX = "JOB_COMPLETION_INDEX"
"""Set in the pods of an Indexed Job (kubernetes.io/docs/concepts/workloads/controllers/job)."""
_STAGES = {
    "curate": "sessions to a dataset",
    "train": "a dataset to a LoRA adapter",
    "evaluate": "candidate and champion over the same held-out cases",
    "export": "base and adapter as one model, in the formats of other runtimes",
    "fetch": "base model and adapter into a folder, every byte verified",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and gives back its exit code (ratchet_api.stage.ExitCode)."""
    # Threads that wait by spinning slow down whoever shares the cores with them.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("botocore").setLevel(logging.WARNING)
    command: Callable[[argparse.Namespace], int] = options.command
    return command(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ratchet_trainer",
        description="Stages of an improvement cycle, and the transformers runtime that serves a version on CPU.",
        epilog="Exit codes: 0 done, 64 bad settings, 65 bad data, 70 bug, 75 try again, 137 out of memory, 143 "
        "preempted. Credentials and endpoint of the object storage come from AWS_ACCESS_KEY_ID, "
        "AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, text in _STAGES.items():
        stage = commands.add_parser(name, help=text, description=f"Stage {name}: {text}.")
        stage.set_defaults(command=_run_stage, stage=name)
        stage.add_argument("--input", type=Path, required=True, metavar="FILE", help="the stage's input, stage.json")
        stage.add_argument(
            "--report", type=Path, required=True, metavar="FILE", help="where the report goes (termination message)"
        )
        stage.add_argument("--pvc-root", type=Path, metavar="DIR", help="where a pvc:// base model is mounted")
        if name == "fetch":
            stage.add_argument("--output", type=Path, required=True, metavar="DIR", help="gets base/ and adapter/")
            continue
        stage.add_argument("--scratch", type=Path, required=True, metavar="DIR", help="room for temporary files")
        stage.add_argument("--metrics-address", metavar="IP:PORT", help="serve live progress to Prometheus there")
        if name in ("curate", "evaluate"):
            stage.add_argument("--suites", type=Path, metavar="DIR", help="held-out cases, <suite>.jsonl each")
        if name == "curate":
            stage.add_argument("--anchors", type=Path, metavar="FILE", help="anchor examples, JSONL of messages")
    _add_curate_files(commands)
    _add_publish(commands)
    _add_serve(commands)
    return parser


def _add_curate_files(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    from ratchet_trainer.curate import files

    text = "files on disk to a dataset on disk, by the rules of the stage"
    command = commands.add_parser("curate-files", help=text, description=f"Curates {text}; prints the funnel.")
    files.add_arguments(command)
    command.set_defaults(command=_curate_files)


def _curate_files(options: argparse.Namespace) -> int:
    from ratchet_trainer.curate import files

    try:
        return files.run(options)
    except StageError as error:
        log.error("%s", error)
        return error.exit_code


def _add_publish(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    text = "a folder on disk as an artifact in storage, with its manifest.json"
    publish = commands.add_parser("publish", help=text, description=f"Puts {text}; prints its digest.")
    publish.set_defaults(command=_publish)
    publish.add_argument("--kind", choices=("model", "adapter", "dataset"), required=True)
    publish.add_argument("--input", type=Path, required=True, metavar="DIR", help="the folder")
    publish.add_argument("--output", required=True, metavar="s3://BUCKET/PREFIX", help="where it goes")
    publish.add_argument("--region", default="us-east-1")


def _add_serve(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    from ratchet_trainer.serve import options

    text = "the transformers runtime: one model behind the OpenAI API"
    serve = commands.add_parser("serve", help=text, description=f"Serves {text.split(': ')[1]}.")
    options.add_arguments(serve)
    serve.set_defaults(command=_serve)


def _serve(options: argparse.Namespace) -> int:
    from ratchet_trainer.serve import main as serve

    try:
        return serve.run(options)
    except StageError as error:
        log.error("%s", error)
        return error.exit_code


def _publish(options: argparse.Namespace) -> int:
    try:
        if not options.input.is_dir():
            raise UserError(f"--input: {options.input} is no folder; name the folder that holds the {options.kind}")
        manifest = Store(None, options.region).publish(options.input, options.output, options.kind, {}, {})
    except StageError as error:
        log.error("%s", error)
        return error.exit_code
    print(manifest.digest)
    return ExitCode.DONE


def _run_stage(options: argparse.Namespace) -> int:
    signal.signal(signal.SIGTERM, _on_term)
    try:
        report, code = _outcome(options), ExitCode.DONE
    except Preempted:
        report, code = _failed(options.stage, Reason.PREEMPTED, "SIGTERM: started again elsewhere"), ExitCode.PREEMPTED
    except StageError as error:
        report, code = _failed(options.stage, error.reason, str(error)), error.exit_code
    except Exception as error:  # the last line of defence: whatever is left is a bug, and says so
        typed = _typed(error)
        if typed is None:
            log.exception("bug in stage %s", options.stage)
            text = (str(error).strip() or "no message").splitlines()[0]
            report = _failed(options.stage, Reason.INTERNAL_ERROR, f"{type(error).__name__}: {text}; see the log")
            code = ExitCode.BUG
        else:
            report, code = _failed(options.stage, typed.reason, str(typed)), typed.exit_code
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    log.log(logging.INFO if code == 0 else logging.ERROR, "%s: %s", report.reason, report.message)
    options.report.write_bytes(report.encode())
    return code


def _on_term(signum: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # leaving is not interrupted by being told twice
    raise Preempted


def _failed(stage: str, reason: Reason, message: str) -> StageReport:
    return StageReport.model_validate({"stage": stage, "outcome": "Failed", "reason": reason, "message": message})


def _typed(error: Exception) -> StageError | None:
    """What libraries raise for want of memory or disk, in our words; None for anything else."""
    text = str(error)
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in text or type(error).__name__ == "OutOfMemoryError":
        return OutOfMemory("memory is used up: raise the stage's memory, or lower microBatch or batchSize")
    if isinstance(error, OSError) and error.errno == 28:
        return TryAgain("the scratch disk is full: give the stage's pod more ephemeral storage")
    return None


def _outcome(options: argparse.Namespace) -> StageReport:
    stage = _read_input(options.input, options.stage)
    store = Store.of(stage.identity)
    if isinstance(stage, FetchInput):
        from ratchet_trainer import fetch

        return fetch.run(stage, store, options.output, options.pvc_root)
    progress = Progress(stage.identity, stage.stage)
    address = None if options.metrics_address is None else parse_address(options.metrics_address)
    scratch: Path = options.scratch / "stage"
    scratch.mkdir(parents=True, exist_ok=True)
    try:
        with progress.served(address):
            return _dispatch(stage, store, scratch, progress, options)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _dispatch(
    stage: CurateInput | TrainInput | EvaluateInput | ExportInput, store: Store, scratch: Path, progress: Progress,
    options: argparse.Namespace,
) -> StageReport:  # fmt: skip
    match stage:
        case CurateInput():
            from ratchet_trainer.curate import shards
            from ratchet_trainer.curate import stage as curate

            index = os.environ.get(_INDEX)
            if stage.curation.parallelism > 1 and index is not None:
                return shards.run(stage, store, scratch, progress, options.suites, options.anchors, int(index))
            return curate.run(stage, store, scratch, progress, options.suites, options.anchors)
        case TrainInput():
            from ratchet_trainer.loading import quiet_libraries
            from ratchet_trainer.train import stage as train

            quiet_libraries()
            return train.run(stage, store, scratch, progress, options.pvc_root)
        case EvaluateInput():
            from ratchet_trainer.evaluate import stage as evaluate
            from ratchet_trainer.loading import quiet_libraries

            quiet_libraries()
            return evaluate.run(stage, store, scratch, progress, options.suites, options.pvc_root)
        case ExportInput():
            from ratchet_trainer.export import stage as export
            from ratchet_trainer.loading import quiet_libraries

            quiet_libraries()
            return export.run(stage, store, scratch, progress, options.pvc_root)


def _read_input(path: Path, name: str) -> CurateInput | TrainInput | EvaluateInput | ExportInput | FetchInput:
    try:
        stage = STAGE_INPUT.validate_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"--input: there is no file {path.name}; name the stage's input") from None
    except ValidationError as error:
        raise UserError(f"{path.name}: {first_error(error)}") from None
    if stage.stage != name:
        raise UserError(f"{path.name} is the input of stage {stage.stage}, not of {name}: run `{stage.stage}`")
    return stage
