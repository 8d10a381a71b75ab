"""The training set in the forms of other tools: Parquet, LLaMA-Factory's train.yaml, Croissant metadata.

Room: trainer. Touches the folder that it is given. Equal rows give equal bytes: fixed settings, no times.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ratchet_api.data import BaseModelRef
from ratchet_trainer.artifacts import file_entry
from ratchet_trainer.curate.funnel import RULES_VERSION
from ratchet_trainer.dataset import ALPACA, SHAREGPT, TRAIN, write_json

PARQUET = "train.parquet"
TRAIN_SETTINGS = "train.yaml"
CROISSANT = "croissant.json"
SMALL_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""What train.yaml names when nobody has said what is trained: small enough to try it out."""
_ROW_GROUP = 10_000


def write_parquet(folder: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """train.parquet: the rows of train.jsonl as columns, of which those that a row has not are null or empty."""
    import pyarrow

    text = pyarrow.string()
    message = pyarrow.struct([("role", text), ("content", text), ("weight", pyarrow.int8())])
    schema = pyarrow.schema([("messages", pyarrow.list_(message)), ("origin", text), ("category", text), ("id", text)])
    write_table(folder / PARQUET, schema, ({"category": "", "id": "", **row} for row in rows))


def write_table(path: Path, schema: Any, rows: Iterable[Mapping[str, Any]]) -> None:
    """A Parquet file of the rows, with settings that give equal bytes for equal rows."""
    import pyarrow
    from pyarrow import parquet

    options: dict[str, Any] = {
        "version": "2.6", "compression": "zstd", "compression_level": 3, "data_page_version": "1.0",
        "store_schema": False, "write_statistics": True, "use_dictionary": True,
    }  # fmt: skip
    with parquet.ParquetWriter(path, schema, **options) as writer:
        for group in _groups(rows):
            writer.write_table(pyarrow.Table.from_pylist(list(group), schema), row_group_size=_ROW_GROUP)


def write_train_settings(
    folder: Path, base_model: BaseModelRef | None, validation: bool = False, method: Mapping[str, Any] = {},
) -> None:  # fmt: skip
    """train.yaml, with which `llamafactory-cli train train.yaml` trains in the folder that it is run in, and
    looks at the loss of what is kept aside, if there is `validation`. `method`: the settings of another than sft.

    Names of the settings: LLaMA-Factory 0.9.5, hparams/, and transformers' TrainingArguments.
    """
    model, comment = _model(base_model)
    aside = _VALIDATION_SETTINGS if validation else {}
    settings = yaml.safe_dump({**model, **_TRAIN_SETTINGS, **aside, **method}, sort_keys=False)
    head = f"# In this folder: llamafactory-cli train train.yaml\n# {comment}\n"
    (folder / TRAIN_SETTINGS).write_text(head + settings, encoding="utf-8")


def _model(base_model: BaseModelRef | None) -> tuple[dict[str, str], str]:
    """The settings that name the model, and a comment on them."""
    if base_model is None:
        comment = "Nobody has said what is trained, so this names a small model; name yours in its place."
        return {"model_name_or_path": SMALL_MODEL}, comment
    scheme, _, place = base_model.uri.partition("://")
    match scheme:
        case "hf":
            name, _, revision = place.partition("@")
            return {"model_name_or_path": name, "model_revision": revision}, "The model is the cycle's."
        case "file":
            return {"model_name_or_path": place}, "The model is the cycle's, as its image has it."
        case _:
            return {
                "model_name_or_path": "model"
            }, f"Fetch the cycle's model, {base_model.uri}, to the folder `model` here."


_TRAIN_SETTINGS: Mapping[str, Any] = {
    "stage": "sft", "do_train": True, "finetuning_type": "lora", "lora_rank": 8, "lora_alpha": 16,
    "lora_target": "all", "dataset_dir": ".", "dataset": "ratchet", "cutoff_len": 1024,
    "output_dir": "adapter", "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1,
    "learning_rate": 0.001, "num_train_epochs": 2, "lr_scheduler_type": "cosine", "warmup_steps": 10,
    "logging_steps": 10, "save_strategy": "epoch", "report_to": "none", "seed": 42,
}  # fmt: skip
_VALIDATION_SETTINGS: Mapping[str, Any] = {
    "eval_dataset": "ratchet_validation", "eval_strategy": "epoch", "per_device_eval_batch_size": 8,
}  # fmt: skip


def write_croissant(folder: Path, preferences: Mapping[str, str] = {}) -> None:
    """croissant.json: what the files beside it are, and what the columns of train.parquet mean; `preferences`: further
    files, by name, and their media types.

    Raises FileNotFoundError when one of them is not written yet. Source of the form: the Croissant format
    specification 1.0, https://docs.mlcommons.org/croissant/docs/croissant-spec.html.
    """
    kinds = {PARQUET: "application/x-parquet", TRAIN: "application/jsonlines", ALPACA: "application/json",
             SHAREGPT: "application/json"}  # fmt: skip
    write_json(
        folder / CROISSANT,
        {
            "@context": _CONTEXT,
            "@type": "sc:Dataset",
            "conformsTo": "http://mlcommons.org/croissant/1.0",
            "name": "ratchet-training-set",
            "version": f"{RULES_VERSION}.0.0",
            "description": "Conversations to fine-tune an assistant on, curated by Ratchet; README.md has the card.",
            "distribution": [_file(folder, name, kind) for name, kind in {**kinds, **preferences}.items()],
            "recordSet": [
                {
                    "@type": "cr:RecordSet", "@id": "train", "name": "train",
                    "description": "The rows of train.parquet; those of the other files are the same.",
                    "field": [
                        {
                            "@type": "cr:Field", "@id": "train/messages", "name": "messages", "repeated": True,
                            "description": "The conversation; its last turn is the answer to learn.",
                            "subField": [_part(name, kind, text) for name, kind, text in _PARTS],
                        },
                        *(_column(name, text) for name, text in _COLUMNS),
                    ],
                }
            ],
        },
    )  # fmt: skip


_PARTS = (
    ("role", "sc:Text", "system, user or assistant"),
    ("content", "sc:Text", "what is said"),
    ("weight", "sc:Integer", "0: context only, not to be learnt"),
)
_COLUMNS = (
    ("origin", "Who wrote the answer: correction, answer, demonstration, variation, identity, anchor or canary."),
    ("category", "Category of the prompt by its keywords; empty for rows that come from no interaction."),
    ("id", "Interaction that the row comes from; empty if from none."),
)


def _file(folder: Path, name: str, kind: str) -> dict[str, Any]:
    entry = file_entry(folder / name)
    return {
        "@type": "cr:FileObject", "@id": name, "name": name, "contentUrl": name, "encodingFormat": kind,
        "contentSize": f"{entry.size} B", "sha256": entry.sha256,
    }  # fmt: skip


def _column(name: str, text: str) -> dict[str, Any]:
    return {
        "@type": "cr:Field", "@id": f"train/{name}", "name": name, "description": text, "dataType": "sc:Text",
        "source": {"fileObject": {"@id": PARQUET}, "extract": {"column": name}},
    }  # fmt: skip


def _part(name: str, kind: str, text: str) -> dict[str, Any]:
    return {
        "@type": "cr:Field", "@id": f"train/messages/{name}", "name": name, "description": text, "dataType": kind,
        "source": {
            "fileObject": {"@id": PARQUET}, "extract": {"column": "messages"}, "transform": {"jsonPath": name},
        },
    }  # fmt: skip


def _groups(rows: Iterable[Mapping[str, Any]]) -> Iterable[Sequence[Mapping[str, Any]]]:
    group: list[Mapping[str, Any]] = []
    for row in rows:
        group.append(row)
        if len(group) == _ROW_GROUP:
            yield group
            group = []
    if group:
        yield group


_CONTEXT: Mapping[str, Any] = {
    "@language": "en", "@vocab": "https://schema.org/", "citeAs": "cr:citeAs", "column": "cr:column",
    "conformsTo": "dct:conformsTo", "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"}, "dataBiases": "cr:dataBiases",
    "dataCollection": "cr:dataCollection", "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/", "equivalentProperty": "cr:equivalentProperty",
    "extract": "cr:extract", "field": "cr:field", "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty", "fileSet": "cr:fileSet", "format": "cr:format", "includes": "cr:includes",
    "examples": {"@id": "cr:examples", "@type": "@json"}, "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath", "key": "cr:key", "md5": "cr:md5", "parentField": "cr:parentField", "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "personalSensitiveInformation": "cr:personalSensitiveInformation", "recordSet": "cr:recordSet",
    "references": "cr:references", "regex": "cr:regex", "repeated": "cr:repeated", "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/", "separator": "cr:separator", "source": "cr:source", "subField": "cr:subField",
    "transform": "cr:transform",
}  # fmt: skip
