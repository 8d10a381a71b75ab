"""Examples to a dataset: the rules that compare them, the rows, and what there is to say about both.

Room: trainer. `build` is pure; `Curated.write` touches the folder that it is given. The same from the stage and from
the command line.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ratchet_api.cycle import DatasetTargets
from ratchet_api.data import BaseModelRef
from ratchet_trainer.canaries import Planted
from ratchet_trainer.chat import Message
from ratchet_trainer.curate.card import CARD, card
from ratchet_trainer.curate.examples import Example
from ratchet_trainer.curate.figures import lengths
from ratchet_trainer.curate.funnel import RULES_VERSION
from ratchet_trainer.curate.mapped import Mapped, mapped
from ratchet_trainer.curate.page import PAGE, render
from ratchet_trainer.curate.pipeline import Counts, Settings
from ratchet_trainer.curate.preferences import Preferences, preferences_of
from ratchet_trainer.curate.rules import SensitiveCounts, compared
from ratchet_trainer.curate.split import split
from ratchet_trainer.curate.text import HeldOut
from ratchet_trainer.curate.write import Rows, compose, write


@dataclass(frozen=True)
class Curated:
    """A dataset before it is written."""

    settings: Settings
    counts: Counts
    successful: int
    """Interactions that reached the threshold."""
    selected: Sequence[Example]
    """What is trained on, before variations and anchors."""
    validation: Sequence[Example]
    """What is kept aside."""
    rows: Rows
    sensitive: SensitiveCounts
    preferences: Preferences | None = None
    """What people preferred; None for method sft."""
    planted: Planted | None = None
    """Canaries among the rows, if a suite looks for them."""

    @property
    def learnable(self) -> int:
        """Examples, pairs or judged answers, before variations: what minExamples counts."""
        return len(self.selected) if self.preferences is None else len(self.preferences.train)

    @property
    def enough(self) -> bool:
        """Whether the method has at least one of each thing that it needs."""
        return bool(len(self.selected)) if self.preferences is None else self.preferences.train.enough

    @property
    def row_count(self) -> int:
        """Rows that are trained on."""
        return len(self.rows.rows) if self.preferences is None else self.preferences.train.row_count

    @property
    def characters(self) -> int:
        """Length of their text."""
        if self.preferences is None:
            return sum(len(message.content) for row in self.rows.rows for message in row.messages)
        return sum(row.characters for row in self.preferences.train.rows())

    @property
    def summary(self) -> str:
        """What became of what was read, in one line."""
        if self.preferences is None:
            return self.counts.funnel.summary()
        return f"{self.counts.funnel.summary()}; of the answers: {self.preferences.funnel.summary()}"

    def write(self, folder: Path, base_model: BaseModelRef | None = None) -> None:
        """All files of the dataset but its manifest. `base_model` is what train.yaml trains, if that is known."""
        statistics = self.statistics()
        rejected = None if self.preferences is None else self.preferences.funnel
        cards = {
            CARD: card(statistics, self.counts.funnel, rejected),
            PAGE: render(statistics, self.counts.funnel, rejected),
        }
        write(
            folder, self.selected, self.rows, self.counts.quarantine, statistics, cards, self.validation, base_model,
            self.preferences, self.planted,
        )  # fmt: skip

    def statistics(self) -> dict[str, object]:
        """Every number, for statistics.json and the card."""
        counts, rows = self.counts, self.rows
        window = {"since": self.settings.since.isoformat(), "until": self.settings.until.isoformat()}
        reading = counts.funnel["reading"].dropped
        return {
            "rulesVersion": RULES_VERSION,
            **({"window": window} if self.settings.bounded else {}),
            "files": counts.files,
            "formats": dict(sorted(counts.formats.items())),
            "lines": {
                "read": counts.lines,
                "interactions": counts.interactions,
                **{name: reading[name] for name in ("feedback", "outsideWindow", "otherCycle", "repeated", "ignored")},
                "quarantined": dict(sorted(counts.quarantine.counts.items())),
            },
            "interactions": {
                "judged": counts.judged, "successful": self.successful,
                "dropped": dict(sorted(counts.funnel.dropped.items())),
            },
            "funnel": counts.funnel.numbers(),
            "sensitive": {
                "found": dict(sorted(self.sensitive.found.items())), "residualExamples": self.sensitive.residual,
            },
            "categories": dict(rows.categories),
            "uncategorised": rows.uncategorised,
            "rows": dict(rows.by_origin),
            "validation": len(self.validation),
            "feedback": counts.timeline.feedback(),
            "time": counts.timeline.numbers(),
            "lengths": lengths(self.selected),
            "targets": DatasetTargets().dump(),
            "anchorsHeldOut": rows.anchors_held_out,
            **({} if self.planted is None else {"canaries": {"planted": len(self.planted.canaries),
                                                             "repeats": self.planted.repeats}}),
            **({} if self.preferences is None else {"preferences": self.preferences.statistics}),
        }  # fmt: skip


def build(
    settings: Settings, counts: Counts, examples: Iterable[Example], held_out: HeldOut,
    anchors: Sequence[Sequence[Message]], planted: Planted | None,
) -> Curated:  # fmt: skip
    """The dataset of these examples, and of what is `planted` among them. Raises UserError (see `compose`)."""
    return finished(settings, mapped(settings, examples, counts, held_out), held_out, anchors, planted)


def finished(
    settings: Settings, found: Mapped, held_out: HeldOut, anchors: Sequence[Sequence[Message]],
    planted: Planted | None,
) -> Curated:  # fmt: skip
    """The dataset of examples that were looked at one by one, and of what is `planted` among them. Raises UserError
    (see `compose`)."""
    texts = [message.content for messages in anchors for message in messages]
    counts, curation, preferences = found.counts, settings.curation, None
    selected = compared(found.pool, curation, texts, counts.funnel)
    if counts.rejected is None:
        ((selected, validation),) = split(curation.validation_share, selected)
    else:
        rejected = counts.rejected.selected(selected, curation, texts)
        good, bad = split(curation.validation_share, selected, rejected)
        (selected, validation), train, aside = good, (good[0], bad[0]), (good[1], bad[1])
        preferences = preferences_of(counts.rejected, train, aside, curation)
    rows = compose(selected, curation, anchors, held_out, planted)
    successful = counts.funnel["sensitive"].read
    return Curated(
        settings, counts, successful, selected, validation, rows, found.sensitive, preferences, planted
    )  # fmt: skip
