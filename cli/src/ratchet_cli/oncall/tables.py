"""All cycles of a namespace or of a cluster, one line each.

Room: cli. Pure.
"""

from collections.abc import Sequence
from datetime import datetime

from rich.table import Table
from rich.text import Text

from ratchet_api.conditions import find
from ratchet_api.cycle import ImprovementCycle
from ratchet_api.reasons import ConditionType
from ratchet_cli.oncall.words import ago, span


def cycles_table(
    cycles: Sequence[ImprovementCycle], now: datetime, everywhere: bool = False, wide: bool = False
) -> Table:
    """The columns of `kubectl get cycle`, with who needs a person marked."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="")
    columns = ["NAMESPACE"] if everywhere else []
    columns += ["NAME", "PHASE", "CHAMPION", "CANDIDATE", "WEIGHT", "CHECKS", "NEXT RUN", "AGE"]
    for column in columns + (["RUN", "MESSAGE"] if wide else []):
        table.add_column(column, no_wrap=True)
    for cycle in cycles:
        table.add_row(
            *([cycle.metadata.namespace] if everywhere else []), *_row(cycle, now), *(_more(cycle) if wide else [])
        )
    return table


def _row(cycle: ImprovementCycle, now: datetime) -> list[str | Text]:
    status, meta = cycle.status, cycle.metadata
    serving, rollout = status.serving, status.rollout
    stalled = find(status.conditions, ConditionType.STALLED)
    phase = status.phase if status.conditions else "Unseen"
    bad = stalled is not None and stalled.status == "True"
    # A rollout's phase hides a stall in the operator's own column.
    shown = f"{phase} ({stalled.reason})" if bad and stalled is not None else phase
    return [
        meta.name,
        Text(shown, style="red" if bad or phase in ("Degraded", "Unseen", "RollingBack") else ""),
        serving.stable.version if serving.stable is not None else "-",
        serving.candidate.version if serving.candidate is not None else "-",
        f"{serving.candidate.weight}%" if serving.candidate is not None else "-",
        (rollout.summary if rollout is not None else "") or "-",
        ago(status.next_run_time, now).removeprefix("in ") if status.next_run_time is not None else "-",
        span(now - meta.creation_timestamp) if meta.creation_timestamp is not None else "-",
    ]


def _more(cycle: ImprovementCycle) -> list[str]:
    run = cycle.status.run
    said = next((c for c in cycle.status.conditions if c.type == ConditionType.STALLED and c.status == "True"), None)
    said = said or find(cycle.status.conditions, ConditionType.READY)
    return [
        f"{run.number} {run.outcome or run.stage}" if run is not None else "-",
        said.message if said is not None else "-",
    ]
