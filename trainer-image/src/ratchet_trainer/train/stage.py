"""The train stage: dataset in, LoRA adapter out.

Room: trainer. Touches storage, the scratch folder and the device. Reads top to bottom.

What identifies the adapter is its two files; the TensorBoard events and loss.json lie beside them in storage without
being part of the artifact, because they carry times: the same recipe and seed give the same digest.
"""

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ratchet_api.artifacts import Manifest
from ratchet_api.reasons import Reason
from ratchet_api.stage import StageReport, TrainInput, attempt_uri, checkpoints_uri
from ratchet_api.training import Method, Recipe
from ratchet_api.version import Artifact, Provenance, Rewards, TrainingStatus
from ratchet_trainer.artifacts import tool_versions
from ratchet_trainer.chat import stop_ids
from ratchet_trainer.dataset import PREFERENCES, TRAIN, read_rows, write_json
from ratchet_trainer.errors import DataError
from ratchet_trainer.loading import load_model, load_tokenizer, pick_device, use_threads
from ratchet_trainer.metrics import Progress
from ratchet_trainer.models import ADAPTER_CONFIG, ADAPTER_WEIGHTS, LocalModel, resolve_base
from ratchet_trainer.storage import Store
from ratchet_trainer.train.record import StepRecord

if TYPE_CHECKING:
    from ratchet_trainer.train.checkpoint import Checkpoints
    from ratchet_trainer.train.nodes import Place, Plan
    from ratchet_trainer.train.objective import Objective, Unit
    from ratchet_trainer.train.team import Order

log = logging.getLogger("ratchet")

LOG_EVERY_SECONDS = 5.0


def run(stage: TrainInput, store: Store, scratch: Path, progress: Progress, pvc_root: Path | None) -> StageReport:
    """Trains, publishes and reports; reports again without work when the same training was published before.

    Raises StageError's children.
    """
    from ratchet_trainer.train import nodes, tracking
    from ratchet_trainer.train.checkpoint import Checkpoints

    place = nodes.here()
    recipe = _recipe(stage)
    uri = attempt_uri(stage.identity.storage_uri, stage.identity.version, stage.identity.attempt, "adapter")
    uri, finished = store.place(uri, "adapter", recipe)
    if finished is not None:
        if place is None or place.node == 0:
            tracking.record(stage, store, uri, finished)
        return _report(uri, finished)

    base = resolve_base(stage.base_model, store, scratch / "base", pvc_root)
    rows = rows_of(stage.hyperparameters.method)
    dataset = store.fetch(stage.dataset.uri, "dataset", stage.dataset.digest, scratch / "dataset", _check(rows))
    if place is not None and place.node > 0:
        return _lend(stage, place, base, scratch)
    adapter, logs = scratch / "adapter", scratch / "logs"
    inputs = {"recipe": recipe, "base": base.digest, "dataset": dataset.digest}
    kept = checkpoints_uri(stage.identity.storage_uri, stage.identity.version)
    checkpoints = Checkpoints(store, kept, recipe, inputs, stage.checkpoint_interval, scratch)
    numbers = _train(stage, base, scratch / "dataset" / rows, adapter, logs, progress, checkpoints, place)
    made = store.publish(adapter, uri, "adapter", inputs, numbers, beside=[logs])
    checkpoints.clear()
    tracking.record(stage, store, uri, made)
    return _report(uri, made)


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
) -> dict[str, int | float | str]:
    """The training itself; gives back the numbers for the manifest."""
    import torch

    from ratchet_trainer.train import loop, nodes, team

    hyper, name = stage.hyperparameters, stage.base_model.uri
    board = None if place is None else nodes.Board(place)
    device = pick_device(all_used=True)
    prepared = prepare(stage, base.path, rows_file, f"{stage.dataset.uri}/{rows_file.name}", device)
    model, examples = prepared.model, prepared.examples
    earlier = checkpoints.latest()
    packed, chosen = _how(prepared, hyper, device) if earlier is None else (earlier.packed, earlier.precision)
    save_memory(hyper, model, device)
    mine = team.ranks_wanted()
    per_node = [mine] if board is None else board.gather(nodes.Brings(mine, base.digest))
    ranks = sum(per_node)
    log.info(
        "training (%s) on %d examples (left out: %s), %d steps, %s, %s, %d rank(s) on %s", hyper.method, len(examples),
        prepared.left_out or "none", loop.steps_of(len(examples), hyper), chosen,
        "packed" if packed else "not packed", ranks, device.type,
    )  # fmt: skip
    meeting = str(adapter.with_name("meeting")) if place is None else place.meeting
    plan = nodes.Plan(per_node, packed, chosen)
    orders = [_order(stage, base, rows_file, meeting, plan, rank, rank) for rank in range(1, mine)]
    if board is not None:
        board.tell(plan)

    torch.manual_seed(hyper.seed)
    forward = loop.Forward(device, packed, torch.bfloat16 if chosen == "bf16" else None)
    with _Journal(logs, progress, () if earlier is None else earlier.records) as journal:
        checkpoints.begin(chosen, packed, lambda: journal.records)
        resume = None if earlier is None else earlier.snapshot
        listen = None if board is None else board.listen
        leads = team.Team(orders, adapter.parent, device, ranks, meeting, listen) if ranks > 1 else nullcontext()
        with leads as others:
            last = loop.run(model, examples, hyper, forward, journal.note, checkpoints, resume, others,
                            prepared.objective)  # fmt: skip
    _save(model, adapter, name)
    left_out = {f"leftOut.{reason}": count for reason, count in prepared.left_out.items()}
    return {
        "examples": len(examples), "steps": last.steps, "loss": round(last.loss, 6),
        "tokensPerSecond": round(last.tokens_per_second), "seconds": round(last.seconds, 1), "precision": chosen,
        "device": str(device), "ranks": ranks, **left_out, **_rewards(journal.records),
    }  # fmt: skip


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


def prepare(stage: TrainInput, base: Path, rows_file: Path, rows_name: str, device: Any) -> Prepared:
    """Model and examples, the same on every rank. `rows_name`: what messages call the rows."""
    import torch

    from ratchet_trainer.train import encode, loop
    from ratchet_trainer.train.preferences import read_preferences
    from ratchet_trainer.train.preferred import objective

    hyper, name = stage.hyperparameters, stage.base_model.uri
    use_threads()
    tokenizer = load_tokenizer(base, name)
    # The master copy is fp32 on a CPU, where bf16 is only ever an autocast; a GPU holds frozen weights in bf16.
    wants_bf16 = device.type == "cuda" and hyper.precision != "fp32"
    has_bf16 = wants_bf16 and torch.cuda.is_bf16_supported(including_emulation=False)
    dtype = torch.bfloat16 if has_bf16 else torch.float32
    model = load_model(base, name, device, dtype, hyper.quantization)
    stops = stop_ids(tokenizer, model.generation_config)
    units: Sequence[Unit]
    if hyper.method == "sft":
        encoded = encode.encode_rows(tokenizer, read_rows(rows_file, rows_name), stops, hyper.cutoff, name)
        units, left_out = encoded.examples, encoded.left_out
    else:
        encoder = encode.Encoder(tokenizer, stops, hyper.cutoff, name)
        units, left_out = read_preferences(rows_file, hyper.method, rows_name, encoder), encoder.left_out
    return Prepared(loop.add_lora(model, hyper), units, objective(hyper, hyper.cutoff), left_out)


def save_memory(hyper: Recipe, model: Any, device: Any) -> None:
    """Gradient checkpointing, if it is asked for or the device is a GPU."""
    from ratchet_trainer.train import loop

    if hyper.gradient_checkpointing == "on" or (hyper.gradient_checkpointing == "auto" and device.type == "cuda"):
        loop.checkpoint(model)


class _Journal:
    """Where each step is written down: log, Prometheus, TensorBoard, loss.json."""

    def __init__(self, folder: Path, progress: Progress, earlier: Sequence[StepRecord]) -> None:
        self._folder = folder
        self._progress = progress
        self._earlier = earlier
        self.records: list[StepRecord] = []
        self._said = 0.0

    def __enter__(self) -> "_Journal":
        from torch.utils.tensorboard import SummaryWriter

        self._folder.mkdir(parents=True, exist_ok=True)
        self._board: Any = SummaryWriter(str(self._folder / "tensorboard"))
        for record in self._earlier:
            self._draw(record)
        return self

    def __exit__(self, *_: object) -> None:
        self._board.close()
        rows = [{key: round(value, 6) for key, value in _values(record).items()} for record in self.records]
        write_json(self._folder / "loss.json", rows)

    def _draw(self, record: StepRecord) -> None:
        self.records.append(record)
        for key, value in _values(record).items():
            if key in _DRAWN or key.startswith("rewards/"):
                self._board.add_scalar(f"train/{key}", value, record.step)

    def note(self, record: StepRecord) -> None:
        """One step; a line in the log every few seconds."""
        self._draw(record)
        self._progress.update(record.step, record.steps, record.loss, record.tokens_per_second, record.eta)
        now = time.monotonic()
        if now - self._said >= LOG_EVERY_SECONDS or record.step in (1, record.steps):
            self._said = now
            log.info(
                "step %d/%d  loss %.4f  rate %.2g  %.0f tokens/s  eta %.0f s", record.step, record.steps, record.loss,
                record.learning_rate, record.tokens_per_second, record.eta,
            )  # fmt: skip


_DRAWN = ("loss", "learning_rate", "gradient_norm", "tokens_per_second")


def _values(record: StepRecord) -> dict[str, int | float]:
    """Every number of a step by its name, but those that it does not have."""
    said = record.rewards
    rewards = {} if said is None else asdict(said) | {"margin": said.margin}
    return {
        **{key: value for key, value in asdict(record).items() if key != "rewards"},
        **{f"rewards/{key}": value for key, value in rewards.items() if value is not None},
    }


def _rewards(records: Sequence[StepRecord]) -> dict[str, float]:
    """Means over the last steps, for the manifest: over as many as the loss goes."""
    from ratchet_trainer.train.loop import SPEED_STEPS

    last = list(map(_values, records[-min(SPEED_STEPS, math.ceil(len(records) / 5)) :]))
    found = dict[str, float]()
    for name in ("chosen", "rejected", "margin", "accuracy", "kl"):
        values = [values[f"rewards/{name}"] for values in last if f"rewards/{name}" in values]
        if values:
            found[f"rewards.{name}"] = round(sum(values) / len(values), 6)
    return found


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


def _report(uri: str, manifest: Manifest) -> StageReport:
    numbers: Mapping[str, Any] = manifest.numbers
    rewards = {key.removeprefix("rewards."): Decimal(str(value)) for key, value in numbers.items() if "rewards." in key}
    status = TrainingStatus(
        examples=int(numbers["examples"]), step=int(numbers["steps"]), steps=int(numbers["steps"]),
        loss=Decimal(str(round(float(numbers["loss"]), 6))), tokens_per_second=int(numbers["tokensPerSecond"]),
        eta_seconds=0, seconds=math.ceil(float(numbers["seconds"])), rewards=Rewards(**rewards) if rewards else None,
    )  # fmt: skip
    return StageReport(
        stage="train",
        outcome="Succeeded",
        reason=Reason.SUCCEEDED,
        message=f"trained on {status.examples} examples in {status.steps} steps, loss {status.loss}",
        artifact=Artifact(uri=uri, digest=manifest.digest),
        training=status,
        provenance=Provenance(
            base_model_digest=manifest.inputs["base"], dataset_digest=manifest.inputs["dataset"],
            tools=manifest.tools or tool_versions(),
        ),
    )  # fmt: skip
