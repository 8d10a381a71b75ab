"""Files to examples: two passes, so that memory is bounded by what is kept and not by what is read.

Room: trainer. Touches the files that it is given, nothing else. The first pass collects feedback, the second turns
each interaction into an example or a number at once. Files are read in the order of their names, whatever order they
come in.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path

from ratchet_api.data import Curation, Source
from ratchet_api.erasures import Erased
from ratchet_api.records import Feedback, Interaction
from ratchet_api.training import Method
from ratchet_trainer.curate.columns import Seen, digest
from ratchet_trainer.curate.examples import Categoriser, Example, Verdict, example_of, score
from ratchet_trainer.curate.figures import Timeline
from ratchet_trainer.curate.funnel import Funnel
from ratchet_trainer.curate.languages import check_languages
from ratchet_trainer.curate.plain import PlainFeedback, PlainInteraction
from ratchet_trainer.curate.read import Quarantine
from ratchet_trainer.curate.readers import Entry, Numbered, Owner, entries, own_entries, own_feedback, reader_of
from ratchet_trainer.curate.readers.base import Reader
from ratchet_trainer.curate.rejected import Rejected
from ratchet_trainer.curate.rules import beyond
from ratchet_trainer.curate.verdicts import Recorded, Verdicts

MOST_UNREADABLE = Decimal("0.9")
"""Share of the lines read beyond which a run fails rather than goes on with the rest."""
_CHUNK, _CHUNK_BYTES = 512, 4 << 20
Told = Callable[[int, int], None]
"""Files done, files in all."""


@dataclass(frozen=True)
class SessionFile:
    """One file to read."""

    name: str
    """What it is called in the quarantine's list."""
    path: Path
    source: Source | None = None
    """None: a segment of the cycle's own sessions."""


@dataclass(frozen=True)
class Settings:
    """What a run goes by."""

    curation: Curation
    namespace: str
    cycle: str
    since: datetime
    until: datetime
    feedback_delay: timedelta
    erased: Erased = field(default_factory=Erased)
    method: Method = "sft"
    """What the dataset will be trained by."""
    bounded: bool = True
    """Whether somebody chose the window. Otherwise it ends now, which must not make each dataset another one."""


@dataclass
class Counts:
    """Every line that was read ends in exactly one number of the funnel's first rule."""

    files: int = 0
    formats: dict[str, int] = field(default_factory=dict)
    """Files of other origin, by format."""
    quarantine: Quarantine = field(default_factory=Quarantine)
    interactions: int = 0
    judged: int = 0
    """Interactions with feedback."""
    funnel: Funnel = field(default_factory=Funnel)
    timeline: Timeline = field(default_factory=Timeline)
    rejected: Rejected | None = None
    """The answers that people did not want, for the methods that learn from them."""

    @property
    def lines(self) -> int:
        """All that were read."""
        return self.funnel["reading"].read

    @property
    def broken(self) -> bool:
        """Whether so much is unreadable that something upstream must be broken. Readable lines never count towards it,
        whatever becomes of them: a day on which nobody said anything good is a small day."""
        return self.quarantine.total > MOST_UNREADABLE * self.lines


@dataclass(frozen=True)
class _Opened:
    file: SessionFile
    reader: Reader | None
    owner: Owner
    max_line_bytes: int

    @property
    def own(self) -> bool:
        return self.file.source is None

    def entries(self) -> Iterator[Numbered]:
        if self.own:
            return own_entries(self.file.path, self.max_line_bytes)
        return entries(self.file.path, self.reader, self.owner, self.max_line_bytes)

    def feedback(self) -> Iterator[Feedback | PlainFeedback]:
        if self.own:
            yield from own_feedback(self.file.path, self.max_line_bytes)
        elif self.reader is not None and self.reader.carries_feedback:
            for found in self.entries():
                if isinstance(found.entry, Entry) and isinstance(found.entry.record, Feedback | PlainFeedback):
                    yield found.entry.record

    def vouched(self, entry: Entry) -> bool:
        """Whether silence about an interaction is taken for a good word."""
        verdict = "recorded" if self.file.source is None else self.file.source.verdict
        return verdict == "good" or (verdict == "auto" and entry.demonstration)


def _open(file: SessionFile, settings: Settings) -> _Opened:
    limit = settings.curation.max_line_bytes
    score = "" if file.source is None else file.source.score
    reader = None if file.source is None else reader_of(file.path, file.source.format, limit)
    return _Opened(file, reader, Owner(settings.namespace, settings.cycle, score), limit)


def in_order(files: Sequence[SessionFile]) -> list[SessionFile]:
    """As they are read, whatever order they come in."""
    return sorted(files, key=lambda file: file.name)


def verdicts_of(settings: Settings, files: Sequence[SessionFile]) -> Verdicts:
    """What people said, wherever in these files."""
    verdicts = Verdicts()
    for file in in_order(files):
        for record in _open(file, settings).feedback():
            if record.time < settings.until and _is_ours(settings, record):
                verdicts.add(record)
    return verdicts


def examples_of(
    settings: Settings, files: Sequence[SessionFile], told: Told, counts: Counts, verdicts: Verdicts | None = None,
    seen: Seen | None = None,
) -> Iterator[Example]:  # fmt: skip
    """The examples of good interactions, before the rules that compare them, in the order of the files' names.

    `verdicts` are those of all files, if these are some of them; `seen` are the interactions of earlier ones. What
    `counts` says is whole when the last one was taken."""
    check_languages(settings.curation.limits.languages)
    verdicts = verdicts_of(settings, files) if verdicts is None else verdicts
    opened = [_open(file, settings) for file in in_order(files)]
    counts.files = len(files)
    counts.rejected = None if settings.method == "sft" else Rejected(settings.method)
    categorise = Categoriser(settings.curation.categories)
    seen = Seen() if seen is None else seen
    for done, one in enumerate(opened, start=1):
        if not one.own:
            name = "unrecognised" if one.reader is None else one.reader.name
            counts.formats[name] = counts.formats.get(name, 0) + 1
        for chunk in _chunks(_ours(settings, one, counts)):
            digests = [digest(interaction.id) for _, interaction in chunk]
            fresh, digests = _fresh(chunk, digests, seen, counts)
            known = _categories(fresh, categorise)
            said = verdicts.of_each(fresh, digests, settings.feedback_delay)
            for (entry, interaction), verdict in zip(fresh, said, strict=True):
                counts.judged += verdict is not None
                counts.timeline.add(interaction.time if entry.dated else None, verdict)
                found = _judged(settings, one, (entry, interaction), verdict, known, counts)
                if found is not None:
                    yield found
        told(done, len(opened))


def _chunks(records: Iterator[tuple[int, Recorded]]) -> Iterator[list[Recorded]]:
    """So many that a step for all of them is a small one for each, and so few that they are no burden when they are as
    long as a line may be; each comes with the bytes of its line."""
    chunk, size = list[Recorded](), 0
    for length, record in records:
        chunk.append(record)
        size += length
        if size >= _CHUNK_BYTES or len(chunk) >= _CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _fresh(
    chunk: list[Recorded], digests: list[int], seen: Seen, counts: Counts
) -> tuple[list[Recorded], list[int]]:  # fmt: skip
    """Those of which the id was not seen before, with the digests of their ids."""
    step = counts.funnel["reading"]
    named = [index for index, (entry, _) in enumerate(chunk) if entry.named]
    fresh = seen.add([digests[index] for index in named])
    repeated = {index for index, is_new in zip(named, fresh, strict=True) if not is_new}
    for _ in repeated:
        step.drop("repeated")
    counts.interactions += len(chunk) - len(repeated)
    step.keep(count=len(chunk) - len(repeated))
    if not repeated:
        return chunk, digests
    left = [index for index in range(len(chunk)) if index not in repeated]
    return [chunk[index] for index in left], [digests[index] for index in left]


def _categories(records: Sequence[Recorded], categorise: Categoriser) -> Callable[[str], str]:
    prompts = [_last_text(interaction) for _, interaction in records]
    known = dict(zip(prompts, categorise.many(prompts), strict=True))
    return lambda prompt: known[prompt] if prompt in known else categorise(prompt)


def _judged(
    settings: Settings, file: _Opened, recorded: Recorded, verdict: Verdict | None,
    categorise: Callable[[str], str], counts: Counts,
) -> Example | None:  # fmt: skip
    """An interaction's way through the rules that look at it alone."""
    entry, interaction = recorded
    funnel = counts.funnel
    if settings.erased.covers(interaction.principal, interaction.session):
        funnel["consent"].drop("erased")  # without a sample: what is withdrawn is shown to nobody
        return None
    funnel["consent"].keep()
    if counts.rejected is not None:
        counts.rejected.look(entry, interaction, verdict, settings.curation, categorise)
    example = example_of(entry, interaction, verdict, categorise)
    if not isinstance(example, Example):
        funnel["answered"].drop(example, _last_text(interaction))
        return None
    funnel["answered"].keep()
    bound = beyond(example, settings.curation.limits)
    if bound is not None:
        funnel["limits"].drop(bound, example.text)
        return None
    funnel["limits"].keep()
    if score(verdict, file.vouched(entry)) < settings.curation.threshold:
        funnel["effectiveness"].drop("belowThreshold", example.text)
        return None
    funnel["effectiveness"].keep()
    return example


def _last_text(interaction: Interaction | PlainInteraction) -> str:
    if isinstance(interaction, PlainInteraction):
        return interaction.messages[-1].content if interaction.messages else ""
    content = interaction.messages[-1].get("content") if interaction.messages else None
    return content if isinstance(content, str) else ""


def _ours(settings: Settings, file: _Opened, counts: Counts) -> Iterator[tuple[int, Recorded]]:
    """Interactions of this cycle within the window, with the bytes of their lines; everything else is counted."""
    step = counts.funnel["reading"]
    for number, size, entry in file.entries():
        if entry is None:
            step.drop("ignored")
            continue
        if isinstance(entry, str):
            counts.quarantine.add(file.file.name, number, entry)
            step.drop(entry)
            continue
        record = entry.record
        if not _is_ours(settings, record):
            step.drop("otherCycle")
        elif isinstance(record, Feedback | PlainFeedback):
            step.drop("feedback")
        elif entry.dated and not settings.since <= record.time < settings.until:
            step.drop("outsideWindow")
        else:
            yield size, (entry, record)


def _is_ours(settings: Settings, record: Interaction | Feedback | PlainInteraction | PlainFeedback) -> bool:
    return (record.namespace, record.cycle) == (settings.namespace, settings.cycle)
