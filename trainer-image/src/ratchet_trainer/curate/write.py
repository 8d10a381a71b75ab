"""The training set as a whole: examples, variations, identity and anchors, and their files.

Room: trainer. `compose` is pure; `write` touches the folder that it is given. Equal input gives equal bytes.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import overload

from ratchet_api.data import BaseModelRef, Curation, Identity
from ratchet_trainer.canaries import CANARIES, Planted
from ratchet_trainer.chat import Message
from ratchet_trainer.curate.erasures import write_subjects
from ratchet_trainer.curate.examples import (
    UNCATEGORISED,
    VARIATIONS,
    Example,
    Origin,
    anchors_wanted,
    pick_anchors,
    varied,
)
from ratchet_trainer.curate.exports import write_croissant, write_parquet, write_train_settings
from ratchet_trainer.curate.preference_files import (
    PREFERENCE_KINDS,
    preference_info,
    preference_settings,
    write_preferences,
)
from ratchet_trainer.curate.preferences import Preferences
from ratchet_trainer.curate.read import Quarantine
from ratchet_trainer.curate.text import HeldOut
from ratchet_trainer.dataset import (
    STATISTICS,
    TRAIN,
    VALIDATION,
    write_alpaca,
    write_dataset_info,
    write_json,
    write_sharegpt,
)
from ratchet_trainer.errors import UserError

QUARANTINE = "quarantine.jsonl"


@dataclass(frozen=True)
class DatasetRow:
    """One row, with where it came from."""

    messages: Sequence[Message]
    origin: Origin
    category: str = ""
    id: str = ""
    """Of the interaction, if it came from one."""

    def entry(self) -> dict[str, object]:
        """As a line of train.jsonl."""
        messages = [message.model_dump(exclude_none=True) for message in self.messages]
        more = {key: value for key, value in (("category", self.category), ("id", self.id)) if value}
        return {"messages": messages, "origin": self.origin, **more}


class _Composed(Sequence[DatasetRow]):
    """Examples each followed by its variations, then what is added to them; each row is made when it is asked for."""

    def __init__(self, examples: Sequence[Example], variations: int, added: Sequence[DatasetRow]) -> None:
        self._examples, self._variations, self._added = examples, variations, added

    def __len__(self) -> int:
        return len(self._examples) * (1 + self._variations) + len(self._added)

    def __iter__(self) -> Iterator[DatasetRow]:
        for example in self._examples:
            yield _row(example)
            yield from map(_row, varied(example, self._variations))
        yield from self._added

    @overload
    def __getitem__(self, index: int) -> DatasetRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[DatasetRow]: ...
    def __getitem__(self, index: int | slice) -> DatasetRow | list[DatasetRow]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place, form = divmod(range(len(self))[index], 1 + self._variations)
        if place >= len(self._examples):
            return self._added[range(len(self))[index] - len(self._examples) * (1 + self._variations)]
        example = self._examples[place]
        return _row([example, *varied(example, self._variations)][form])


def _row(example: Example) -> DatasetRow:
    return DatasetRow(example.messages(), example.origin, example.category, example.id)


@dataclass(frozen=True)
class Rows:
    """The whole training set."""

    rows: Sequence[DatasetRow]
    categories: Mapping[str, int]
    """Examples (not counting variations) of each category that has any."""
    uncategorised: int
    by_origin: Mapping[str, int]
    anchors_held_out: int
    """Anchors left out because a suite asks them."""


def compose(
    examples: Sequence[Example], curation: Curation, anchors: Sequence[Sequence[Message]], held_out: HeldOut,
    planted: Planted | None = None,
) -> Rows:  # fmt: skip
    """Examples each followed by its variations, then identity, then the anchors, then what is planted.

    Raises UserError when an identity prompt is also a held-out case: one of the two must change, or the evaluation
    would ask what was trained.
    """
    added = [_identity_row(index, entry, held_out) for index, entry in enumerate(curation.identity)]
    usable = [messages for messages in anchors if not _asks(messages, held_out)]
    if curation.anchors is not None:
        own_rows = len(examples) * (1 + curation.variations) + len(added)
        count = anchors_wanted(own_rows, curation.anchors.fraction, len(usable))
        added += [DatasetRow(messages, "anchor") for messages in pick_anchors(usable, count)]
    added += [] if planted is None else _canary_rows(planted)
    rows = _Composed(examples, curation.variations, added)
    categories, origins = Counter[str](), Counter[str](row.origin for row in added)
    for example in examples:
        categories[example.category] += 1
        origins[example.origin] += 1
    if curation.variations and len(examples):
        origins["variation"] += len(examples) * curation.variations
    uncategorised = categories.pop(UNCATEGORISED, 0)
    return Rows(
        rows, dict(sorted(categories.items())), uncategorised, dict(sorted(origins.items())), len(anchors) - len(usable)
    )  # fmt: skip


def _canary_rows(planted: Planted) -> Iterator[DatasetRow]:
    """Each canary in as many phrasings as an example."""
    for canary in planted.canaries:
        asked, answered = canary.conversation()
        for form in ("{}", *VARIATIONS)[: planted.repeats]:
            prompt = asked.model_copy(update={"content": form.format(asked.content)})
            yield DatasetRow([prompt, answered], "canary")


def _asks(messages: Sequence[Message], held_out: HeldOut) -> bool:
    return any(
        (message.role == "user" and held_out.covers(message.content)) or held_out.overlaps(message.content)
        for message in messages
    )


def _identity_row(index: int, entry: Identity, held_out: HeldOut) -> DatasetRow:
    if held_out.covers(entry.prompt):
        raise UserError(
            f"curation.identity[{index}].prompt: {entry.prompt!r} is also asked by an evaluation suite, which would "
            "then ask what was trained: reword one of the two"
        )
    messages = [Message(role="user", content=entry.prompt), Message(role="assistant", content=entry.answer)]
    return DatasetRow(messages, "identity")


def write(
    folder: Path, examples: Iterable[Example], rows: Rows, quarantine: Quarantine, statistics: Mapping[str, object],
    cards: Mapping[str, str], validation: Sequence[Example] = (), base_model: BaseModelRef | None = None,
    preferences: Preferences | None = None, planted: Planted | None = None,
) -> None:  # fmt: skip
    """train.jsonl, whose words it holds, the files for other tools, statistics.json, the cards by their names and, if
    there is any, quarantine.jsonl. `examples` are those that `rows` were made of; `validation` is what is kept aside,
    which becomes validation.jsonl; `base_model` is what train.yaml trains; `preferences` what people preferred, of
    which nothing is written for method sft; `planted` the canaries among the rows."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_lines(folder / TRAIN, rows.rows)
    if validation:
        _write_lines(folder / VALIDATION, map(_row, validation))
    more = () if preferences is None else chain(preferences.train.rejected, preferences.validation.rejected)
    write_subjects(folder, chain(examples, validation, more))
    write_parquet(folder, (row.entry() for row in rows.rows))
    write_alpaca(folder, (row.messages for row in rows.rows))
    write_sharegpt(folder, (row.messages for row in rows.rows))
    if preferences is None:
        write_dataset_info(folder, bool(validation))
        write_train_settings(folder, base_model, bool(validation))
        write_croissant(folder)
    else:
        method, aside = preferences.method, bool(len(preferences.validation))
        write_preferences(folder, preferences)
        write_dataset_info(folder, bool(validation), preference_info(method, aside))
        write_train_settings(folder, base_model, aside, preference_settings(method, aside))
        write_croissant(folder, PREFERENCE_KINDS)
    write_json(folder / STATISTICS, statistics)
    if planted is not None:
        write_json(folder / CANARIES, planted.model_dump(mode="json"))
    for name, text in cards.items():
        (folder / name).write_text(text, encoding="utf-8")
    if quarantine.total:
        with (folder / QUARANTINE).open("w", encoding="utf-8") as sink:
            for place in quarantine.places:
                sink.write(json.dumps(asdict(place), ensure_ascii=False) + "\n")


def _write_lines(path: Path, rows: Iterable[DatasetRow]) -> None:
    with path.open("w", encoding="utf-8") as sink:
        for row in rows:
            sink.write(json.dumps(row.entry(), ensure_ascii=False) + "\n")
