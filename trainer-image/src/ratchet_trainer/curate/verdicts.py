"""Feedback by the answer that it judges: what people said later is joined here.

Room: trainer. Pure but for its files. 25 bytes of memory a piece of feedback, from when it is asked for.
"""

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from ratchet_api.records import Feedback, Interaction
from ratchet_trainer.curate.columns import Hashes, Indices, digest
from ratchet_trainer.curate.examples import Verdict, day_end
from ratchet_trainer.curate.plain import PlainFeedback, PlainInteraction
from ratchet_trainer.curate.readers import Entry
from ratchet_trainer.curate.spill import Column, Spill, microseconds, moment, packed, unpacked

Recorded = tuple[Entry, Interaction | PlainInteraction]
"""An interaction, and what its line says beyond it."""

_Dated = tuple[int, str, Verdict]
"""Microseconds since 1970, id, and what it said."""


class _Sorted(NamedTuple):
    """All feedback by answer, then by time."""

    answers: Hashes
    times: Indices
    numbers: Indices
    thumbs: npt.NDArray[np.int8]


class Verdicts:
    """Feedback by response id, in any order; of each the latest counts (by time, then by id)."""

    def __init__(self) -> None:
        self._answers, self._times, self._ends = Column(np.uint64), Column(np.int64), Column(np.int64)
        self._ends.append(0)
        self._thumbs = Column(np.int8)
        """+1 and -1; 0 for what comes with a correction."""
        self._spill = Spill()
        self._sorted: _Sorted | None = None

    def add(self, feedback: Feedback | PlainFeedback) -> None:
        """Takes one piece of feedback."""
        correction = feedback.correction.strip()
        piece = packed((feedback.id, feedback.value, correction))
        self._thumbs.append(0 if correction else 1 if feedback.value == "up" else -1)
        self._answers.append(digest(feedback.response_id))
        self._times.append(microseconds(feedback.time))
        self._ends.append(self._spill.append(piece) + len(piece))
        self._sorted = None

    def save(self, folder: Path) -> None:
        """Into files of its own."""
        self._spill.save(folder / "said.msgpack")
        np.savez(
            folder / "said.npz", allow_pickle=False, answers=self._answers.all, times=self._times.all,
            ends=self._ends.all, thumbs=self._thumbs.all,
        )  # fmt: skip

    def absorb(self, folder: Path) -> None:
        """Takes what another one saved."""
        begin = self._spill.absorb(folder / "said.msgpack")
        with np.load(folder / "said.npz") as columns:
            self._answers.absorb(columns["answers"])
            self._times.absorb(columns["times"])
            self._thumbs.absorb(columns["thumbs"])
            self._ends.absorb(columns["ends"][1:] + begin)
        self._sorted = None

    def of(self, interaction: Interaction | PlainInteraction, delay: timedelta) -> Verdict | None:
        """The verdict on an answer; later than `delay` after the end of the answer's day (UTC) nothing counts."""
        return self.of_each([(Entry(interaction), interaction)], [digest(interaction.id)], delay)[0]

    def of_each(self, records: Sequence[Recorded], digests: Sequence[int], delay: timedelta) -> list[Verdict | None]:
        """The same of interactions, with the digests of their ids. Imported ones may bear several ids and verdicts of
        their own; to one without a time no feedback is too late."""
        self._sorted = self._sorted or self._in_order()
        wanted, owners = list(digests), list(range(len(records)))
        for index, (entry, _) in enumerate(records):
            for id in entry.aliases:
                wanted.append(digest(id))
                owners.append(index)
        answers, times, _, thumbs = self._sorted
        first = np.searchsorted(answers, np.array(wanted, dtype=np.uint64), side="left")
        last = np.searchsorted(answers, np.array(wanted, dtype=np.uint64), side="right")
        found: list[_Dated | None] = [None] * len(records)
        some = np.flatnonzero(first < last)
        alone = np.where(last[some] == first[some] + 1, thumbs[first[some]], 0).tolist()
        for place, time, thumb in zip(some.tolist(), times[first[some]].tolist(), alone, strict=True):
            index = owners[place]
            entry, interaction = records[index]
            if thumb and not entry.aliases and not entry.verdicts:
                said = moment(time)
                if not entry.dated or said < interaction.time or said < day_end(interaction.time) + delay:
                    found[index] = time, "", Verdict("up" if thumb > 0 else "down", "", said)
                continue
            until = microseconds(day_end(interaction.time) + delay) if entry.dated else None
            found[index] = _later(found[index], self._latest(int(first[place]), int(last[place]), until))
        for index, (entry, _) in enumerate(records):
            for each in entry.verdicts:
                verdict = Verdict(each.value, each.correction.strip(), each.time)
                found[index] = _later(found[index], (microseconds(each.time), each.id, verdict))
        return [None if one is None else one[2] for one in found]

    def _in_order(self) -> _Sorted:
        answers, times = self._answers.all, self._times.all
        order = np.lexsort((times, answers))
        answers, times = answers[order], times[order]
        return _Sorted(answers, times, order, self._thumbs.all[order])

    def _latest(self, first: int, last: int, until: int | None) -> _Dated | None:
        """Of feedback on one answer, that from one place to another in the order of `_sorted`."""
        assert self._sorted is not None
        _, times, numbers, _ = self._sorted
        if until is not None and times[last - 1] >= until:
            last = first + int(np.searchsorted(times[first:last], until))
            if first == last:
                return None
        time = int(times[last - 1])
        begin = last - 1 if last - first == 1 else first + int(np.searchsorted(times[first:last], time))
        id, value, correction = max((self._said(int(n)) for n in numbers[begin:last]), key=lambda said: said[0])
        return time, id, Verdict(value, correction, moment(time))

    def _said(self, number: int) -> tuple[str, Literal["up", "down"], str]:
        """Id, value and correction."""
        said: tuple[str, Literal["up", "down"], str]
        said = unpacked(self._spill.read(self._ends[number], self._ends[number + 1]))
        return said


def _later(one: _Dated | None, other: _Dated | None) -> _Dated | None:
    if one is None or other is None:
        return one or other
    return max(one, other, key=lambda found: found[:2])
