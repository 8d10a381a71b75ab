"""The files of what people preferred: JSONL in TRL's columns, Parquet, and the alpaca form for LLaMA-Factory.

Room: trainer. Touches the folder that it is given. Equal rows give equal bytes.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ratchet_api.training import Method
from ratchet_trainer.chat import Message
from ratchet_trainer.curate.exports import write_table
from ratchet_trainer.curate.preferences import JudgedRow, PairRow, Preferences
from ratchet_trainer.dataset import PREFERENCES, PREFERENCES_VALIDATION, alpaca

PREFERENCES_PARQUET = "preferences.parquet"
PREFERENCES_ALPACA = "preferences_alpaca.json"
_VALIDATION_ALPACA = "preferences_validation_alpaca.json"
PREFERENCE_KINDS: Mapping[str, str] = {
    PREFERENCES: "application/jsonlines", PREFERENCES_PARQUET: "application/x-parquet",
    PREFERENCES_ALPACA: "application/json",
}  # fmt: skip
"""Media types of the files that are always there."""
Rows = Callable[[], Iterable[PairRow | JudgedRow]]


def write_preferences(folder: Path, preferences: Preferences) -> None:
    """All of them; those of what is kept aside only if there is any."""
    train, aside = preferences.train, preferences.validation
    _write_lines(folder / PREFERENCES, train.rows)
    _write_alpaca(folder / PREFERENCES_ALPACA, train.rows)
    _write_parquet(folder / PREFERENCES_PARQUET, preferences.method, train.rows)
    if len(aside):
        _write_lines(folder / PREFERENCES_VALIDATION, aside.rows)
        _write_alpaca(folder / _VALIDATION_ALPACA, aside.rows)


def preference_info(method: Method, validation: bool) -> Mapping[str, object]:
    """Their entries in dataset_info.json. Source: LLaMA-Factory, data/README.md ("Preference Dataset", "KTO Dataset"
    of the Alpaca Format)."""
    shared = {"prompt": "instruction", "query": "input", "system": "system", "history": "history"}
    columns = {"chosen": "chosen", "rejected": "rejected"} if method == "dpo" else {
        "response": "output", "kto_tag": "label",
    }  # fmt: skip
    ranking = {"ranking": True} if method == "dpo" else {}
    names = {"ratchet_preferences": PREFERENCES_ALPACA}
    if validation:
        names["ratchet_preferences_validation"] = _VALIDATION_ALPACA
    return {name: {"file_name": file, **ranking, "columns": shared | columns} for name, file in names.items()}


def preference_settings(method: Method, validation: bool) -> Mapping[str, Any]:
    """What train.yaml says otherwise for the method: rate and beta of LLaMA-Factory 0.9.5's own examples."""
    own: dict[str, Any] = {"pref_loss": "sigmoid"} if method == "dpo" else {
        "kto_chosen_weight": 1.0, "kto_rejected_weight": 1.0,
    }  # fmt: skip
    aside = {"eval_dataset": "ratchet_preferences_validation"} if validation else {}
    return {
        "stage": method, "dataset": "ratchet_preferences", "pref_beta": 0.1, **own, "learning_rate": 0.000005, **aside
    }  # fmt: skip


def _write_lines(path: Path, rows: Rows) -> None:
    with path.open("w", encoding="utf-8") as sink:
        for row in rows():
            sink.write(json.dumps(row.entry(), ensure_ascii=False) + "\n")


def _write_alpaca(path: Path, rows: Rows) -> None:
    with path.open("w", encoding="utf-8") as sink:
        sink.write("[")
        for index, row in enumerate(rows()):
            sink.write(",\n " if index else "\n ")
            sink.write(json.dumps(_alpaca(row), ensure_ascii=False, sort_keys=True))
        sink.write("\n]\n")


def _alpaca(row: PairRow | JudgedRow) -> dict[str, object]:
    answer = row.chosen if isinstance(row, PairRow) else row.completion
    said = alpaca([*row.prompt, Message(role="assistant", content=answer)])
    if isinstance(row, JudgedRow):
        return {**said, "label": row.label}
    said["chosen"] = said.pop("output")
    return {**said, "rejected": row.rejected}


def _write_parquet(path: Path, method: Method, rows: Rows) -> None:
    import pyarrow

    text = pyarrow.string()
    turns = pyarrow.list_(pyarrow.struct([("role", text), ("content", text)]))
    said = [("chosen", turns), ("rejected", turns)] if method == "dpo" else [
        ("completion", turns), ("label", pyarrow.bool_()),
    ]  # fmt: skip
    schema = pyarrow.schema([("prompt", turns), *said, ("category", text), ("id", text)])
    write_table(path, schema, (row.entry() for row in rows()))
