"""The train stage: dataset in, LoRA adapter out.

Room: trainer. Touches storage, the scratch folder and the device. Reads top to bottom.

What identifies the adapter is its two files; the TensorBoard events and loss.json lie beside them in storage without
being part of the artifact, because they carry times: the same recipe and seed give the same digest.
"""

import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ratchet_api.artifacts import Manifest
from ratchet_api.reasons import Reason
from ratchet_api.stage import StageReport, TrainInput, attempt_uri, checkpoints_uri
from ratchet_api.training import Method, Recipe
from ratchet_api.version import Artifact, Provenance, Rewards, TrainingStatus
from ratchet_trainer.artifacts import tool_versions
from ratchet_trainer.chat import stop_ids
from ratchet_trainer.dataset import (
    PREFERENCES,
    PREFERENCES_VALIDATION,
    TRAIN,
    VALIDATION,
    read_rows,
    write_json,
)
from ratchet_trainer.errors import DataError, UserError
from ratchet_trainer.loading import load_model, load_tokenizer, pick_device, use_threads
from ratchet_trainer.metrics import Progress
from ratchet_trainer.models import ADAPTER_CONFIG, ADAPTER_WEIGHTS, LocalModel, resolve_base
from ratchet_trainer.storage import Store
from ratchet_trainer.train.divergence import by_heart
from ratchet_trainer.train.record import Curves, Look, StepRecord

if TYPE_CHECKING:
    from ratchet_trainer.train.checkpoint import Checkpoints
    from ratchet_trainer.train.journal import Journal
    from ratchet_trainer.train.live import Live
    from ratchet_trainer.train.loop import Forward
    from ratchet_trainer.train.nodes import Board, Place, Plan
    from ratchet_trainer.train.objective import Objective, Unit
    from ratchet_trainer.train.team import Order

log = logging.getLogger("ratchet")


def run(stage: TrainInput, store: Store, scratch: Path, progress: Progress, pvc_root: Path | None) -> StageReport:
    """Trains, publishes and reports; reports again without work when the same training was published before.

    Raises StageError's children.
    """
    from ratchet_trainer.train import nodes, tracking
    from ratchet_trainer.train.checkpoint import Checkpoints
    from ratchet_trainer.train.live import Live

    place = nodes.here()
    recipe = _recipe(stage)
    uri = attempt_uri(stage.identity.storage_uri, stage.identity.version, stage.identity.attempt, "adapter")
    uri, finished = store.place(uri, "adapter", recipe)
    if finished is not None:
        if place is None or place.node == 0:
            tracking.record(stage, store, uri, finished)
        return _report(stage, uri, finished)

    base = resolve_base(stage.base_model, store, scratch / "base", pvc_root)
    rows = rows_of(stage.hyperparameters.method)
    dataset = store.fetch(stage.dataset.uri, "dataset", stage.dataset.digest, scratch / "dataset", _check(rows))
    if place is not None and place.node > 0:
        return _lend(stage, place, base, scratch)
    adapter, logs = scratch / "adapter", scratch / "logs"
    inputs = {"recipe": recipe, "base": base.digest, "dataset": dataset.digest}
    kept = checkpoints_uri(stage.identity.storage_uri, stage.identity.version)
    checkpoints = Checkpoints(store, kept, recipe, inputs, stage.checkpoint_interval, scratch)
    tell = partial(Live, stage, inputs)
    numbers = _train(stage, base, scratch / "dataset" / rows, adapter, logs, progress, checkpoints, place, tell)
    made = store.publish(adapter, uri, "adapter", inputs, numbers, beside=[logs])
    checkpoints.clear()
    tracking.record(stage, store, uri, made)
    return _report(stage, uri, made)


def _recipe(stage: TrainInput) -> str:
    """Digest of all that determines the weights."""
    recipe = {
        "base": stage.base_model.dump(),
        "dataset": stage.dataset.digest,
        "hyperparameters": stage.hyperparameters.dump(),
    }
    return "sha256:" + hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


def rows_of(method: Method) -> str:
    """The file of a dataset that is trained on."""
    return TRAIN if method == "sft" else PREFERENCES


def aside_of(method: Method) -> str:
    """The file of what was kept aside, if any was."""
    return VALIDATION if method == "sft" else PREFERENCES_VALIDATION


def _check(rows: str) -> Callable[[Path], None]:
    def check(folder: Path) -> None:
        if not (folder / rows).is_file():
            why = "" if rows == TRAIN else ": it was curated for method sft"
            raise DataError(f"the dataset has no {rows}{why}; curate it again with the training's method")

    return check


def _train(
    stage: TrainInput,
    base: LocalModel,
    rows_file: Path,
    adapter: Path,
    logs: Path,
    progress: Progress,
    checkpoints: "Checkpoints",
    place: "Place | None",
    tell: "Callable[[Curves], Live]",
) -> dict[str, int | float | str]:
    """The training itself, which `tell` tells of; gives back the numbers for the manifest."""
    import torch

    from ratchet_trainer.train import loop, nodes, team
    from ratchet_trainer.train.journal import Journal

    hyper = stage.hyperparameters
    board = None if place is None else nodes.Board(place)
    device = pick_device(all_used=True)
    aside = rows_file.with_name(aside_of(hyper.method))
    prepared = prepare(stage, base.path, rows_file, f"{stage.dataset.uri}/{rows_file.name}", device, aside)
    model, examples = prepared.model, prepared.examples
    earlier = checkpoints.latest()
    packed, chosen = _how(prepared, hyper, device) if earlier is None else (earlier.packed, earlier.precision)
    save_memory(hyper, model, device)
    meeting = str(adapter.with_name("meeting")) if place is None else place.meeting
    plan, orders = _planned(stage, base, rows_file, meeting, packed, chosen, board)
    ranks = sum(plan.ranks)
    log.info(
        "training (%s) on %d examples (left out: %s), %d kept aside, %d steps, %s, %s, %d rank(s) on %s", hyper.method,
        len(examples), prepared.left_out or "none", len(prepared.aside), loop.steps_of(len(examples), hyper), chosen,
        "packed" if packed else "not packed", ranks, device.type,
    )  # fmt: skip

    torch.manual_seed(hyper.seed)
    forward = loop.Forward(device, packed, torch.bfloat16 if chosen == "bf16" else None)
    with Journal(logs, progress, Curves() if earlier is None else earlier.curves) as journal:
        checkpoints.begin(chosen, packed, journal.curves)
        resume = None if earlier is None else earlier.snapshot
        listen = None if board is None else board.listen
        leads = team.Team(orders, adapter.parent, device, ranks, meeting, listen) if ranks > 1 else nullcontext()
        with leads as others, tell(journal.curves):
            last = loop.run(model, examples, hyper, forward, journal.note, checkpoints, resume, others,
                            prepared.objective, _looks(prepared, hyper, forward, journal))  # fmt: skip
    _save(model, adapter, stage.base_model.uri)
    return _numbers(last, prepared, journal) | {"precision": chosen, "device": str(device), "ranks": ranks}


def _numbers(last: StepRecord, prepared: "Prepared", journal: "Journal") -> dict[str, int | float | str]:
    """What the manifest says of a finished training."""
    left_out = {f"leftOut.{reason}": count for reason, count in prepared.left_out.items()}
    return {
        "examples": len(prepared.examples), "steps": last.steps, "loss": round(last.loss, 6),
        "tokensPerSecond": round(last.tokens_per_second), "seconds": round(last.seconds, 1), **left_out,
        **journal.numbers(),
    }  # fmt: skip


def _looks(prepared: "Prepared", hyper: Recipe, forward: "Forward", journal: "Journal") -> Callable[[int], None]:
    """What is done between steps."""
    from ratchet_trainer.train.validation import Validation

    if not prepared.aside:
        return lambda step: None
    validation = Validation(
        prepared.aside, len(prepared.examples), hyper, forward, prepared.objective, journal.curves.looks,
        journal.note_look,
    )  # fmt: skip
    return partial(validation.look, prepared.model)


def _planned(
    stage: TrainInput, base: LocalModel, rows: Path, meeting: str, packed: bool, precision: str, board: "Board | None"
) -> "tuple[Plan, list[Order]]":
    """How the ranks of all pods compute, which other pods are told, and the orders of those in this one."""
    from ratchet_trainer.train import nodes, team

    mine = team.ranks_wanted()
    per_node = [mine] if board is None else board.gather(nodes.Brings(mine, base.digest))
    plan = nodes.Plan(per_node, packed, precision)
    if board is not None:
        board.tell(plan)
    return plan, [_order(stage, base, rows, meeting, plan, rank, rank) for rank in range(1, mine)]


def _how(prepared: "Prepared", hyper: Recipe, device: Any) -> tuple[bool, str]:
    """Whether sequences are packed, and the number format: what this model and machine do exactly, and faster."""
    from ratchet_trainer.train import loop, precision

    sequences = [sequence for unit in prepared.examples for sequence in unit.sequences]
    packed = loop.packs_exactly(prepared.model, sequences, device)
    return packed, precision.choose(hyper.precision, prepared.model, sequences, device, hyper.micro_batch)


def _order(
    stage: TrainInput, base: LocalModel, rows: Path, meeting: str, plan: "Plan", rank: int, device: int
) -> "Order":
    """What a rank other than the first is told. `device`: number of its GPU in its pod."""
    from ratchet_trainer.train import team

    return team.Order(
        rank, sum(plan.ranks), device, meeting, stage.model_dump_json(), str(base.path), str(rows),
        f"{stage.dataset.uri}/{rows.name}", plan.packed, plan.precision,
    )  # fmt: skip


def _lend(stage: TrainInput, place: "Place", base: LocalModel, scratch: Path) -> StageReport:
    """The part of a node that does not lead: its ranks compute, and the adapter is node 0's to report."""
    from ratchet_trainer.train import nodes, team

    mine = team.ranks_wanted()
    rows = scratch / "dataset" / rows_of(stage.hyperparameters.method)

    def order(plan: nodes.Plan, rank: int) -> team.Order:
        return _order(stage, base, rows, place.meeting, plan, rank, rank - plan.first(place.node))

    nodes.lend(place, base.digest, mine, order, scratch)
    text = f"node {place.node} of {place.nodes} has computed its share; the report is node 0's"
    return StageReport(stage="train", outcome="Succeeded", reason=Reason.SUCCEEDED, message=text)


@dataclass(frozen=True)
class Prepared:
    """What a rank trains."""

    model: Any
    """The base model with a fresh adapter."""
    examples: "Sequence[Unit]"
    objective: "Objective"
    left_out: Mapping[str, int]
    """Rows that are no examples, by reason."""
    aside: "Sequence[Unit]"
    """What was kept aside."""


def prepare(
    stage: TrainInput, base: Path, rows_file: Path, rows_name: str, device: Any, aside: Path | None = None
) -> Prepared:
    """Model and examples, the same on every rank. `rows_name`: what messages call the rows. `aside`: what was kept
    aside, if it is there; for the rank that looks at it."""
    import torch

    from ratchet_trainer.train import loop
    from ratchet_trainer.train.preferred import objective

    hyper, name = stage.hyperparameters, stage.base_model.uri
    use_threads()
    tokenizer = load_tokenizer(base, name)
    # The master copy is fp32 on a CPU, where bf16 is only ever an autocast; a GPU holds frozen weights in bf16.
    wants_bf16 = device.type == "cuda" and hyper.precision != "fp32"
    has_bf16 = wants_bf16 and torch.cuda.is_bf16_supported(including_emulation=False)
    dtype = torch.bfloat16 if has_bf16 else torch.float32
    model = load_model(base, name, device, dtype, hyper.quantization)
    read = partial(_units, stage, tokenizer, stop_ids(tokenizer, model.generation_config))
    units, left_out = read(rows_file, rows_name)
    looked_at: Sequence[Unit] = ()
    if aside is not None and aside.is_file():
        try:
            looked_at, _ = read(aside, f"{stage.dataset.uri}/{aside.name}")
        except UserError as error:
            log.warning("what was kept aside is not looked at: %s", error)
    return Prepared(loop.add_lora(model, hyper), units, objective(hyper, hyper.cutoff), left_out, looked_at)


def _units(
    stage: TrainInput, tokenizer: Any, stops: frozenset[int], rows_file: Path, rows_name: str
) -> "tuple[Sequence[Unit], Mapping[str, int]]":
    """What the rows of a file are to the method, and how many are nothing, by reason. Raises DataError; UserError when
    none is left."""
    from ratchet_trainer.train.encode import Encoder, encode_rows
    from ratchet_trainer.train.preferences import read_preferences

    hyper, name = stage.hyperparameters, stage.base_model.uri
    if hyper.method == "sft":
        encoded = encode_rows(tokenizer, read_rows(rows_file, rows_name), stops, hyper.cutoff, name)
        return encoded.examples, encoded.left_out
    encoder = Encoder(tokenizer, stops, hyper.cutoff, name)
    return read_preferences(rows_file, hyper.method, rows_name, encoder), encoder.left_out


def save_memory(hyper: Recipe, model: Any, device: Any) -> None:
    """Gradient checkpointing, if it is asked for or the device is a GPU."""
    from ratchet_trainer.train import loop

    if hyper.gradient_checkpointing == "on" or (hyper.gradient_checkpointing == "auto" and device.type == "cuda"):
        loop.checkpoint(model)


def _save(model: Any, folder: Path, base_uri: str) -> None:
    """The adapter's two files, free of what differs between equal runs (set order, paths of this machine)."""
    scratch = folder.with_name(f"{folder.name}-raw")
    model.save_pretrained(scratch, safe_serialization=True, save_embedding_layers=False)
    folder.mkdir(parents=True, exist_ok=True)
    (scratch / ADAPTER_WEIGHTS).rename(folder / ADAPTER_WEIGHTS)
    config = json.loads((scratch / ADAPTER_CONFIG).read_text())
    write_json(folder / ADAPTER_CONFIG, config | {
        "base_model_name_or_path": base_uri,
        "target_modules": sorted(config["target_modules"]),
    })  # fmt: skip


def _report(stage: TrainInput, uri: str, manifest: Manifest) -> StageReport:
    numbers: Mapping[str, Any] = manifest.numbers
    rewards = {key.removeprefix("rewards."): Decimal(str(value)) for key, value in numbers.items() if "rewards." in key}
    status = TrainingStatus(
        examples=int(numbers["examples"]), step=int(numbers["steps"]), steps=int(numbers["steps"]),
        loss=Decimal(str(round(float(numbers["loss"]), 6))), tokens_per_second=int(numbers["tokensPerSecond"]),
        eta_seconds=0, seconds=math.ceil(float(numbers["seconds"])), rewards=Rewards(**rewards) if rewards else None,
        validation_loss=Decimal(str(numbers["validationLoss"])) if "validationLoss" in numbers else None,
    )  # fmt: skip
    return StageReport(
        stage="train",
        outcome="Succeeded",
        reason=Reason.SUCCEEDED,
        message=_said(stage, numbers, status),
        artifact=Artifact(uri=uri, digest=manifest.digest),
        training=status,
        provenance=Provenance(
            base_model_digest=manifest.inputs["base"], dataset_digest=manifest.inputs["dataset"],
            tools=manifest.tools or tool_versions(),
        ),
    )  # fmt: skip


def _said(stage: TrainInput, numbers: Mapping[str, Any], status: TrainingStatus) -> str:
    """In words; with what to change, if what was kept aside says that the examples were learnt by heart."""
    said = f"trained on {status.examples} examples in {status.steps} steps, loss {status.loss}"
    if "validationLoss" not in numbers:
        return said
    last = Look(int(numbers["steps"]), float(numbers["validationLoss"]))
    lowest = Look(int(numbers["validationLossLowestStep"]), float(numbers["validationLossLowest"]))
    advice = by_heart(lowest, last, stage.hyperparameters)
    return f"{said}, {last.loss} on what was kept aside" + (f"; {advice}" if advice else "")
