"""The erasure list of a run, and the subjects of what it writes.

Room: trainer. `write_subjects` touches the folder that it is given. Who is on the list is never learnt from again;
whose words a dataset holds is written into it, so that those who withdraw later can be found.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from ratchet_api import erasures
from ratchet_api.erasures import SUBJECTS, Erased
from ratchet_trainer.curate.examples import Example
from ratchet_trainer.errors import DataError


def read_erasures(data: bytes, where: str) -> Erased:
    """See ratchet_api.erasures. Raises DataError for a line that cannot be read."""
    try:
        return erasures.parse_erasures(data, where)
    except ValueError as error:
        raise DataError(str(error)) from None


def write_subjects(folder: Path, examples: Iterable[Example]) -> None:
    """subjects.jsonl: interaction, session and person of each example."""
    with (folder / SUBJECTS).open("w", encoding="utf-8") as sink:
        for example in examples:
            told = {"id": example.id, "session": example.session, "principal": example.principal}
            sink.write(json.dumps({key: value for key, value in told.items() if value}, ensure_ascii=False) + "\n")
