"""Examples to a dataset: the rules that compare them, the rows, and what there is to say about both.

Room: trainer. `build` is pure; `Curated.write` touches the folder that it is given. The same from the stage and from
the command line.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ratchet_api.cycle import DatasetTargets
from ratchet_api.data import BaseModelRef
from ratchet_trainer.chat import Message
from ratchet_trainer.curate.card import CARD, card
from ratchet_trainer.curate.examples import Example
from ratchet_trainer.curate.figures import lengths
from ratchet_trainer.curate.funnel import RULES_VERSION
from ratchet_trainer.curate.page import PAGE, render
from ratchet_trainer.curate.pipeline import Counts, Settings
from ratchet_trainer.curate.rules import SensitiveCounts, select
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

    def write(self, folder: Path, base_model: BaseModelRef | None = None) -> None:
        """All files of the dataset but its manifest. `base_model` is what train.yaml trains, if that is known."""
        statistics = self.statistics()
        cards = {CARD: card(statistics, self.counts.funnel), PAGE: render(statistics, self.counts.funnel)}
        write(folder, self.selected, self.rows, self.counts.quarantine, statistics, cards, self.validation, base_model)

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
        }  # fmt: skip


def build(
    settings: Settings, counts: Counts, examples: Iterable[Example], held_out: HeldOut,
    anchors: Sequence[Sequence[Message]],
) -> Curated:  # fmt: skip
    """The dataset of these examples. Raises UserError (see `compose`)."""
    texts = [message.content for messages in anchors for message in messages]
    selected, sensitive = select(examples, held_out, settings.curation, texts, counts.funnel)
    selected, validation = split(selected, settings.curation.validation_share)
    rows = compose(selected, settings.curation, anchors, held_out)
    return Curated(settings, counts, counts.funnel["sensitive"].read, selected, validation, rows, sensitive)
