"""Files in any known format as canonical records.

Room: trainer. Touches the files that it is given, nothing else. One reader a module; `entries` finds the right one by
the first object of a file that any of them recognises, and stays with it to the file's end.
"""

from collections.abc import Iterator
from pathlib import Path

from ratchet_api.data import SourceFormat
from ratchet_trainer.curate import plain, read, values
from ratchet_trainer.curate.read import Line, LineProblem
from ratchet_trainer.curate.readers.alpaca import Alpaca
from ratchet_trainer.curate.readers.base import Entry, Owner, Reader, content_digest, decode, read_entry
from ratchet_trainer.curate.readers.guide import Interactions
from ratchet_trainer.curate.readers.langfuse import Langfuse
from ratchet_trainer.curate.readers.litellm import LiteLLM
from ratchet_trainer.curate.readers.messages import Messages
from ratchet_trainer.curate.readers.ratchet import Ratchet
from ratchet_trainer.curate.readers.sharegpt import ShareGPT

__all__ = ["READERS", "SUFFIXES", "Entry", "Owner", "entries", "own_entries", "reader_of", "suffix_of"]

READERS: tuple[Reader, ...] = (Ratchet(), LiteLLM(), Langfuse(), Interactions(), ShareGPT(), Alpaca(), Messages())
"""The more particular first."""
SUFFIXES = tuple(f".{kind}{packing}" for kind in ("jsonl", "ndjson", "json") for packing in ("", ".gz", ".zst"))
"""Ends of the names of files that are read; others in a folder are passed by."""


def suffix_of(name: str) -> str | None:
    """The known end of a file's name; None for a file that is not read."""
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def own_entries(path: Path, max_line_bytes: int) -> Iterator[tuple[Line, Entry | LineProblem | None]]:
    """The lines of a segment of our own, and the record of each."""
    for line in read.lines(path, max_line_bytes):
        record = (plain.parse(line.content) if isinstance(line.content, bytes) else None) or read.parse(line)
        yield line, record if isinstance(record, str) else Entry(record)


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


def entries(
    path: Path, reader: Reader | None, owner: Owner, max_line_bytes: int
) -> Iterator[tuple[Line, Entry | LineProblem | None]]:
    """The lines (or the elements) of a file, and the record of each, why there is none, or None for what is not to be
    learnt from."""
    for line in values.content(path, max_line_bytes):
        value = decode(line)
        if isinstance(value, str):
            yield line, value
        elif reader is None:
            yield line, "unrecognised"
        else:
            yield line, read_entry(reader, value, content_digest(line), owner)
