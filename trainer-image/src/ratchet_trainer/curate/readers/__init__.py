"""Files in any known format as canonical records.

Room: trainer. Touches the files that it is given, nothing else. One reader a module; `entries` finds the right one by
the first object of a file that any of them recognises, and stays with it to the file's end.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

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
_FEEDBACK = b'"feedback"'
"""What is in every line of feedback that the gateway writes: a search for it spares most lines the parser."""
T = TypeVar("T")


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
    for found in _decoded(path, max_line_bytes, plain.records_of):
        if isinstance(found, Line):
            yield Numbered(found.number, len(found.content), _own(found))
            continue
        block, records = found
        size = len(block.content) // len(records)
        for number, record in enumerate(records, start=block.number):
            yield Numbered(number, size, Entry(record))


def own_feedback(path: Path, max_line_bytes: int) -> Iterator[Feedback | PlainFeedback]:
    """The feedback in a segment of our own."""

    def spoken(content: bytes) -> list[PlainFeedback] | None:
        return plain.feedback_of(content) if _FEEDBACK in content else []

    for found in _decoded(path, max_line_bytes, spoken):
        if not isinstance(found, Line):
            yield from found[1]
        elif isinstance(found.content, bytes) and _FEEDBACK in found.content:
            entry = _own(found)
            if isinstance(entry, Entry) and isinstance(entry.record, Feedback | PlainFeedback):
                yield entry.record


def _decoded(
    path: Path, max_line_bytes: int, decode: Callable[[bytes], list[T] | None]
) -> Iterator[tuple[Block, list[T]] | Line]:
    """Blocks with what `decode` makes of them, and the lines of those of which it makes nothing."""
    for found in read.blocks(path, max_line_bytes):
        if isinstance(found, Line):
            yield found
            continue
        records = decode(found.content) if len(found.content) <= max_line_bytes else None
        if records is None:
            yield from read.each_of(found, max_line_bytes)
        else:
            yield found, records


def _own(line: Line) -> Entry | LineProblem:
    record = (plain.parse(line.content) if isinstance(line.content, bytes) else None) or read.parse(line)
    return record if isinstance(record, str) else Entry(record)


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
