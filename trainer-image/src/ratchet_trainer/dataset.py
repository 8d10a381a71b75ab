"""The training set's files: messages JSONL (what we train from) and the alpaca form for other trainers.

Room: trainer. Touches the files that it is given, nothing else. Deterministic: equal rows give equal bytes.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from ratchet_trainer.chat import Message, Row
from ratchet_trainer.errors import DataError

TRAIN = "train.jsonl"
VALIDATION = "validation.jsonl"
ALPACA = "alpaca.json"
SHAREGPT = "sharegpt.json"
DATASET_INFO = "dataset_info.json"
PREFERENCES = "preferences.jsonl"
PREFERENCES_VALIDATION = "preferences_validation.jsonl"
STATISTICS = "statistics.json"


def read_rows(path: Path, where: str) -> list[Row]:
    """Every row of a JSONL file of {"messages": [...]}. Raises DataError naming the line that cannot be read."""
    rows = []
    for number, line in numbered_lines(path):
        try:
            rows.append(Row.model_validate_json(line))
        except ValidationError as error:
            raise DataError(f"{where}, line {number}: {first_error(error)}; a row is {_ROW_EXAMPLE}") from None
    return rows


_ROW_EXAMPLE = '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}'


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, with their numbers from 1."""
    with path.open("rb") as handle:
        for number, line in enumerate(handle, start=1):
            if line.strip():
                yield number, line


def first_error(error: ValidationError) -> str:
    """The first thing that is wrong, as `field: what`."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"]) or "the line"
    return f"{place}: {first['msg']}"


def write_json(path: Path, value: object) -> None:
    """JSON with sorted keys and a newline at its end."""
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def write_alpaca(folder: Path, rows: Iterable[Sequence[Message]]) -> None:
    """alpaca.json. Source of the form: LLaMA-Factory, data/README.md ("Alpaca Format")."""
    with (folder / ALPACA).open("w", encoding="utf-8") as sink:
        sink.write("[")
        for index, messages in enumerate(rows):
            sink.write(",\n " if index else "\n ")
            sink.write(json.dumps(alpaca(messages), ensure_ascii=False, sort_keys=True))
        sink.write("\n]\n")


def write_dataset_info(folder: Path, validation: bool, preferences: Mapping[str, object] = {}) -> None:
    """dataset_info.json, with which LLaMA-Factory finds the training set in each of its forms, what is kept aside, and
    `preferences`, by their entries.

    Source: LLaMA-Factory, data/README.md ("Alpaca Format", "Sharegpt Format", "OpenAI Format").
    """
    columns = {"prompt": "instruction", "query": "input", "response": "output", "system": "system",
               "history": "history"}  # fmt: skip
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant",
            "system_tag": "system"}  # fmt: skip
    messages = {"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": tags}
    aside = {"ratchet_validation": {"file_name": VALIDATION, **messages}} if validation else {}
    write_json(
        folder / DATASET_INFO,
        {
            **aside,
            **preferences,
            "ratchet": {"file_name": ALPACA, "columns": columns},
            "ratchet_parquet": {"file_name": "train.parquet", **messages},
            "ratchet_messages": {"file_name": TRAIN, **messages},
            "ratchet_sharegpt": {
                "file_name": SHAREGPT, "formatting": "sharegpt",
                "columns": {"messages": "conversations", "system": "system"},
            },
        },
    )  # fmt: skip


def write_sharegpt(folder: Path, rows: Iterable[Sequence[Message]]) -> None:
    """sharegpt.json, of which dataset_info.json knows too. Turns of one role in a row become one: the format wants
    them by turns. Source: LLaMA-Factory, data/README.md ("Sharegpt Format")."""
    with (folder / SHAREGPT).open("w", encoding="utf-8") as sink:
        sink.write("[")
        for index, messages in enumerate(rows):
            sink.write(",\n " if index else "\n ")
            sink.write(json.dumps(_sharegpt(messages), ensure_ascii=False, sort_keys=True))
        sink.write("\n]\n")


def _sharegpt(messages: Sequence[Message]) -> dict[str, object]:
    names = {"user": "human", "assistant": "gpt"}
    turns: list[dict[str, str]] = []
    for message in messages:
        if message.role == "system":
            continue
        name = names[message.role]
        if turns and turns[-1]["from"] == name:
            turns[-1]["value"] += f"\n{message.content}"
        else:
            turns.append({"from": name, "value": message.content})
    return {"conversations": turns, "system": "\n".join(m.content for m in messages if m.role == "system")}


def alpaca(messages: Sequence[Message]) -> dict[str, object]:
    """A conversation in the alpaca form, its last turn as `output`."""
    system = "\n".join(m.content for m in messages if m.role == "system")
    turns = [m for m in messages if m.role != "system"]
    history: list[list[str]] = []
    pending = ""
    for turn in turns[:-2]:
        if turn.role == "user":
            pending = f"{pending}\n{turn.content}" if pending else turn.content
        else:
            history.append([pending, turn.content])
            pending = ""
    instruction = turns[-2].content if len(turns) > 1 else ""
    return {
        "instruction": f"{pending}\n{instruction}" if pending else instruction,
        "input": "",
        "output": turns[-1].content,
        "system": system,
        "history": history,
    }
