"""What a commit and a pull request say: the change, the evidence, what will be watched.

Room: operator/domain. Pure. Markdown that reads well as plain text too; no chat text gets here.
"""

from decimal import Decimal

from ratchet_api.base import format_duration
from ratchet_api.cycle import Check, ImprovementCycle
from ratchet_api.promotion import Proposal
from ratchet_api.version import ModelVersion
from ratchet_operator.domain import versions

BRANCH_TRAILER = "Ratchet-Branch"
MOST_CHARACTERS = 20_000
_PENDING = (
    "The weight is 0 since then. Until this is merged and applied, the cycle stays `Stalled` (`RolledBackPendingGit`), "
    "and the pointer is not obeyed however often it is applied."
)


def title(cycle: ImprovementCycle, proposal: Proposal) -> str:
    """One line."""
    if proposal.kind == "Promote":
        return f"{cycle.metadata.name}: promote {proposal.version} (from {proposal.replaces})"
    return f"{cycle.metadata.name}: back to {proposal.version}, {proposal.replaces} was rolled back"


def commit_message(cycle: ImprovementCycle, proposal: Proposal, about: ModelVersion | None) -> str:
    """Title, a sentence, and trailers by which the commit is known as ours."""
    meta, digest = cycle.metadata, versions.digest(about) if about is not None else ""
    trailers = [f"Ratchet-Cycle: {meta.namespace}/{meta.name}", f"Ratchet-Version: {proposal.version}"]
    trailers += [f"Ratchet-Digest: {digest}"] if digest and proposal.kind == "Promote" else []
    trailers.append(f"{BRANCH_TRAILER}: {proposal.branch}")
    return "\n\n".join((title(cycle, proposal), _reason(cycle, proposal, about), "\n".join(trailers))) + "\n"


def body(cycle: ImprovementCycle, proposal: Proposal, about: ModelVersion | None) -> str:
    """The pull request's text."""
    parts = [_reason(cycle, proposal, about)]
    if proposal.kind == "Promote" and about is not None:
        parts += [_suites(about), _origin(about), _watched(cycle)]
    elif proposal.kind == "Revert":
        parts += [_checks(cycle, proposal), _PENDING]
    meta = cycle.metadata
    parts.append(f"From the ImprovementCycle `{meta.namespace}/{meta.name}`. Close it to say no: it stays closed.")
    return "\n\n".join(part for part in parts if part)[:MOST_CHARACTERS]


def _reason(cycle: ImprovementCycle, proposal: Proposal, about: ModelVersion | None) -> str:
    if proposal.kind == "Promote":
        said = versions.standing(about, cycle).gate if about is not None else None
        why = f": {said.message}" if said is not None else ""
        return f"{proposal.version} passed its gate{why}. When this is merged and applied, its canary starts."
    decision = cycle.status.rollout.decision if cycle.status.rollout is not None else None
    entry = next((e for e in reversed(cycle.status.rejected) if e.version == proposal.replaces), None)
    found = entry or decision
    why = f" ({found.reason}: {found.message})" if found is not None else ""
    return f"{proposal.replaces} was rolled back{why}. {proposal.version} serves."


def _suites(version: ModelVersion) -> str:
    seen = version.status.evaluation
    if seen is None or not seen.suites:
        return ""
    rows = [
        f"| {s.name} | {s.role} | {s.cases} | {_share(s.champion)} | {_share(s.candidate)} "
        f"| {_points(s.difference)} | {_points(s.lower_bound)} | {float(s.p_value):.2g} |"
        for s in seen.suites
    ]
    head = f"Against {seen.champion}, on the same held-out cases; the lower bound is one-sided:"
    columns = "| suite | role | cases | champion | candidate | difference | lower bound | p |"
    return "\n".join((head, "", columns, "|---|---|---|---|---|---|---|---|", *rows))


def _origin(version: ModelVersion) -> str:
    spec, lines = version.spec, []
    if versions.digest(version):
        lines.append(f"- adapter `{versions.digest(version)}`")
    if spec.dataset is not None:
        examples = version.status.training.examples if version.status.training is not None else None
        lines.append(f"- dataset `{spec.dataset.digest}`" + (f", {examples} examples" if examples else ""))
    if version.status.artifacts.report is not None:
        lines.append(f"- report `{version.status.artifacts.report.uri}`")
    return "\n".join(("Made from:", "", *lines)) if lines else ""


def _watched(cycle: ImprovementCycle) -> str:
    rollout = cycle.spec.rollout
    steps = ", ".join(f"{step.weight} %" for step in rollout.steps)
    names = ", ".join(f"`{metric.name}`" + (" (dry run)" if metric.dry_run else "") for metric in rollout.metrics)
    return (
        f"Watched on the way ({steps}, then a bake of {format_duration(rollout.bake)}): {names}. "
        "Harm takes it back by itself, and a pull request like this one then proposes the way back."
    )


def _checks(cycle: ImprovementCycle, proposal: Proposal) -> str:
    rollout = cycle.status.rollout
    if rollout is None or rollout.version != proposal.replaces:
        return ""
    lines = [f"- `{check.name}`: {check.verdict}, {_measured(check)}" for check in rollout.checks]
    return "\n".join(("The last measurements:", "", *lines)) if lines else ""


def _measured(check: Check) -> str:
    return check.message or check.reason


def _share(value: Decimal) -> str:
    return f"{float(value) * 100:.1f} %"


def _points(value: Decimal) -> str:
    return f"{float(value) * 100:+.1f}"
