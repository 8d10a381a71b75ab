"""Files in any known format as canonical records.

Room: trainer. Touches the files that it is given, nothing else. One reader a module; `entries` finds the right one by
the first object of a file that any of them recognises, and stays with it to the file's end.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ratchet_api.data import SourceFormat
from ratchet_api.records import Feedback
from ratchet_trainer.curate import plain, read, values
from ratchet_trainer.curate.plain import PlainFeedback
from ratchet_trainer.curate.read import Block, Line, LineProblem
from ratchet_trainer.curate.readers.alpaca import Alpaca
from ratchet_trainer.curate.readers.base import Entry, Owner, Reader, content_digest, decode, read_entry
from ratchet_trainer.curate.readers.guide import Interactions
from ratchet_trainer.curate.readers.langfuse import Langfuse
from ratchet_trainer.curate.readers.litellm import LiteLLM
from ratchet_trainer.curate.readers.messages import Messages
from ratchet_trainer.curate.readers.ratchet import Ratchet
from ratchet_trainer.curate.readers.sharegpt import ShareGPT

__all__ = [
    "READERS",
    "SUFFIXES",
    "Entry",
    "Numbered",
    "Owner",
    "entries",
    "own_entries",
    "own_feedback",
    "reader_of",
    "suffix_of",
]

READERS: tuple[Reader, ...] = (Ratchet(), LiteLLM(), Langfuse(), Interactions(), ShareGPT(), Alpaca(), Messages())
"""The more particular first."""
SUFFIXES = tuple(f".{kind}{packing}" for kind in ("jsonl", "ndjson", "json") for packing in ("", ".gz", ".zst"))
"""Ends of the names of files that are read; others in a folder are passed by."""


def suffix_of(name: str) -> str | None:
    """The known end of a file's name; None for a file that is not read."""
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


class Numbered(NamedTuple):
    """A line of a file, or an element of it, and what it says."""

    number: int
    size: int
    """Bytes, about."""
    entry: Entry | LineProblem | None
    """The record, why there is none, or None for what is not to be learnt from."""


def own_entries(path: Path, max_line_bytes: int) -> Iterator[Numbered]:
    """The lines of a segment of our own."""
    for found in read.blocks(path, max_line_bytes):
        if isinstance(found, Line):
            yield _own(found)
            continue
        records = plain.records_of(found.content) if len(found.content) <= max_line_bytes else None
        if records is None:
            yield from map(_own, read.each_of(found, max_line_bytes))
            continue
        size = len(found.content) // len(records)
        for number, record in enumerate(records, start=found.number):
            yield Numbered(number, size, Entry(record))


def own_feedback(path: Path, max_line_bytes: int) -> Iterator[Feedback | PlainFeedback]:
    """The feedback in a segment of our own."""
    for found in read.blocks(path, max_line_bytes):
        if not isinstance(found.content, bytes) or b'"feedback"' not in found.content:
            continue
        small = isinstance(found, Block) and len(found.content) <= max_line_bytes
        records = plain.feedback_of(found.content) if small else None
        if records is not None:
            yield from records
            continue
        for line in read.each_of(found, max_line_bytes) if isinstance(found, Block) else (found,):
            record = _own(line).entry
            if isinstance(record, Entry) and isinstance(record.record, Feedback | PlainFeedback):
                yield record.record


def _own(line: Line) -> Numbered:
    record = (plain.parse(line.content) if isinstance(line.content, bytes) else None) or read.parse(line)
    return Numbered(line.number, len(line.content), record if isinstance(record, str) else Entry(record))


def reader_of(path: Path, format: SourceFormat, max_line_bytes: int) -> Reader | None:
    """The reader of a file: of the format named, or the first that recognises an object of it. None: nobody does."""
    if format != "auto":
        return next(reader for reader in READERS if reader.name == format)
    for line in values.content(path, max_line_bytes):
        value = decode(line)
        if not isinstance(value, str):
            found = next((reader for reader in READERS if reader.recognises(value)), None)
            if found is not None:
                return found
    return None


def entries(path: Path, reader: Reader | None, owner: Owner, max_line_bytes: int) -> Iterator[Numbered]:
    """The lines (or the elements) of a file."""
    for line in values.content(path, max_line_bytes):
        value = decode(line)
        entry: Entry | LineProblem | None = "unrecognised"
        if isinstance(value, str):
            entry = value
        elif reader is not None:
            entry = read_entry(reader, value, content_digest(line), owner)
        yield Numbered(line.number, len(line.content), entry)
