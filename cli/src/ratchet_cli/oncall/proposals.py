"""promotion.mode Git in the words of `explain` and `retry`: what an accepted version waits for, and where to look.

Room: cli, oncall. Pure.
"""

from collections.abc import Sequence

from ratchet_api.cycle import ImprovementCycle
from ratchet_api.promotion import Proposal
from ratchet_api.version import ModelVersion


def place(found: Proposal) -> str:
    """Where people find it: the pull request's address, or without a forge the branch."""
    return f"pull request {found.pull_request}" if found.pull_request else f"branch {found.branch}"


def of_version(cycle: ImprovementCycle, version: str) -> Proposal | None:
    """The proposal that promotes this version, unless it is over."""
    found = cycle.status.promotion
    if found is None or found.kind != "Promote" or found.version != version:
        return None
    return None if found.state in ("Arrived", "Withdrawing", "Withdrawn") else found


def first(cycle: ImprovementCycle, accepted: Sequence[ModelVersion]) -> ModelVersion | None:
    """Of the versions that wait for the pointer, the one that is proposed, else the oldest."""
    proposed = (version for version in accepted if of_version(cycle, version.metadata.name))
    return next(proposed, next(iter(accepted), None))


def closed(cycle: ImprovementCycle, version: str) -> Proposal | None:
    """The proposal of this version to which a person said no."""
    found = of_version(cycle, version)
    return found if found is not None and found.state == "Closed" else None


def waits_for(cycle: ImprovementCycle, version: str) -> str:
    """What an accepted version waits for, which serving.version does not name."""
    found = of_version(cycle, version)
    if found is None:
        return f"for serving.version to name {version}"
    trouble = f"; it does not go on: {found.message}" if found.reason else ""
    match found.state:
        case "Open":
            return f"for somebody to merge {place(found)}{trouble}"
        case "Pushed":
            return f"for somebody to accept {place(found)}{trouble}"
        case "Merged":
            return f"for {place(found)}, which is merged, to be applied{trouble}"
        case "Closed":
            return f"for a person: {place(found)} was closed without being merged"
        case _:
            return f"for the change of serving.version to {version} to be proposed in Git{trouble}"
