"""The end of the bake: not while the evidence leans to harm that more of it could prove.

Room: operator/domain. Pure.

Rollbacks wait for proof (domain.sequential), and where traffic is sparse a bake of fixed length ends before the proof
of a true regression is complete. So the bake stops by its evidence (an anytime-valid interval allows any such rule:
Howard, Ramdas, McAuliffe & Sekhon 2021, doi:10.1214/20-AOS1991): it goes on while a proportion's best estimate is
beyond its margin, until that is proven or the estimate has come back within. LONGEST_BAKE bounds it. At the bound a
version that is proven worse than stable, and beyond the margin by the best estimate, is rolled back; one that is not
proven worse at all is promoted. Stable's figures stand still in a bake, so that their noise, and not the length of the
bake, limits what can be proven. An equal version is rolled back at the bound only when its estimate is beyond the
margin and the interval besides excludes the truth, of which the latter alone has chance sequential.ALPHA at most.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from ratchet_api.cycle import Check, RolloutStatus
from ratchet_api.rollout import LONGEST_BAKE, Rollout
from ratchet_operator.domain.wording import long


def may_end(status: RolloutStatus, spec: Rollout, checks: Sequence[Check | None], now: datetime) -> bool:
    """Whether the version may become champion. `checks`: those that decide; None: not measured yet."""
    baked = now - status.step_since
    if baked < spec.bake or not all(
        check is not None
        and (check.verdict == "Pass" or (check.reason == "TooFewSamples" and check.passed_at is not None))
        for check in checks
    ):
        return False
    return baked >= LONGEST_BAKE * spec.bake or not _leaning(checks)


def goes_on(
    status: RolloutStatus, spec: Rollout, checks: Sequence[Check | None], previous: datetime | None, now: datetime
) -> str | None:
    """Said once, by the first look after rollout.bake: why the bake goes on. `previous`: when was looked before."""
    end = status.step_since + spec.bake
    leaning = _leaning(checks)
    if not leaning or now < end or now - status.step_since >= LONGEST_BAKE * spec.bake:
        return None
    if previous is not None and previous >= end:
        return None
    why = "; ".join(check.message for check in leaning)
    return f"{status.version} bakes on, for {long(_more(spec))} at most: neither proven worse nor within: {why}"


def proven_worse(
    status: RolloutStatus, spec: Rollout, checks: Sequence[Check | None], now: datetime
) -> tuple[Check, str] | None:
    """At the bound: a check that is proven above 0, beyond its margin by its estimate, and why that rolls back."""
    if status.phase != "Baking" or now - status.step_since < LONGEST_BAKE * spec.bake:
        return None
    for check in _leaning(checks):
        if check.lower is not None and check.lower > 0:
            return check, f"{check.message}; proven worse than stable, by more than the limit as far as can be told"
    return None


def unproven(checks: Sequence[Check | None]) -> str:
    """What a promotion says of checks that leaned to harm to the end, or nothing."""
    names = ", ".join(check.name for check in _leaning(checks))
    return f"; {names}: beyond the limit at the end of the bake, but not proven worse than stable" if names else ""


def _leaning(checks: Sequence[Check | None]) -> list[Check]:
    return [check for check in checks if check is not None and check.leans_to_harm]


def _more(spec: Rollout) -> timedelta:
    return (LONGEST_BAKE - 1) * spec.bake
