"""A version's export: whether one is due, and what is said of it.

Room: operator/domain. Pure. An export never decides anything about its version: no phase, no other condition and no
rollout looks at it.
"""

from dataclasses import dataclass

from ratchet_api.cycle import ImprovementCycle
from ratchet_api.export import Export, ExportResult
from ratchet_api.names import EXPORT_ANNOTATION
from ratchet_api.reasons import Reason
from ratchet_api.version import Attempts, ExportStatus, ModelVersion, StageStatus
from ratchet_operator.domain import versions
from ratchet_operator.domain.phases import Remark


@dataclass(frozen=True)
class Due:
    """An export that is to begin: `request` is the annotation's value that it answers."""

    request: str
    attempts: Attempts


def asked(version: ModelVersion) -> str:
    """What a person asks for by the annotation; empty: nothing."""
    return version.metadata.annotations.get(EXPORT_ANNOTATION, "")


def going_on(version: ModelVersion) -> bool:
    """Whether an export has begun and not ended."""
    status = version.status.export
    return status is not None and status.work.finished_at is None


def due(version: ModelVersion, cycle: ImprovementCycle) -> Due | None:
    """The export to begin now. The bare base model has nothing to export, and one at a time is enough."""
    policy, status, request = cycle.spec.export, version.status.export, asked(version)
    if policy is None or version.adapter is None or going_on(version):
        return None
    if status is not None:
        if request in ("", status.request):
            return None
        attempts = status.work.attempts
        return Due(request, attempts.model_copy(update={"repeated": attempts.repeated + 1}))
    if request or _reached(policy, versions.standing(version, cycle)):
        return Due(request, Attempts())
    return None


def _reached(policy: Export, now: versions.Standing) -> bool:
    match policy.when:
        case "Promoted":
            return now.place == "Serving"
        case "Accepted":
            blamed = now.rejected is not None or now.failed is not None or now.outcome in ("RolledBack", "Returned")
            return now.accepted is True and not blamed and now.place != "Superseded"
        case "Asked":
            return False


def begun(version: ModelVersion, due: Due) -> ExportStatus:
    """The status of an export that begins; what an earlier one brought stays until this one has brought its own."""
    before = version.status.export
    result = before.result if before is not None else None
    return ExportStatus(request=due.request, work=StageStatus(stage="export", attempts=due.attempts), result=result)


def verdict(status: ExportStatus, stalled: Remark | None, waiting: Remark | None) -> tuple[bool, Remark]:
    """The condition Exported."""
    work = status.work
    if work.finished_at is None:
        running = Remark(Reason.EXPORTING, f"Job {work.job} runs" if work.job else "waiting for its next attempt")
        return False, stalled or waiting or running
    if work.reason or status.result is None:
        return False, Remark(_reason(work.reason), work.message)
    return True, Remark(Reason.SUCCEEDED, summary(status.result))


def _reason(text: str) -> Reason:
    try:
        return Reason(text)
    except ValueError:
        return Reason.INTERNAL_ERROR


def summary(result: ExportResult) -> str:
    """What an export brought, in a sentence."""
    said = [", ".join(f"{one.format} ({one.bytes / 1e6:.1f} MB)" for one in result.formats)]
    if result.hub is not None:
        said.append(f"hub {result.hub.repository}@{result.hub.revision[:12]}")
    if result.oci:
        said.append(f"registry tags {', '.join(one.tag for one in result.oci)}")
    return "; ".join(said)
