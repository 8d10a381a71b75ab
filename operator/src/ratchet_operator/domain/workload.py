"""Serving in place: which version people's Deployment names, and which have a companion beside it.

Room: operator/domain. Pure.

    taken over    a companion serves the champion; once it is proven, the Deployment is rolled to the champion
    at rest       the Deployment serves the champion, alone
    canary        the candidate has a companion
    bake          a companion of the champion comes up; once it is proven, the Deployment is rolled to the candidate,
                  whose companion serves until that has ended; the champion is kept warm in its companion
    rolled back   traffic is back where the champion is; then, if it was rolled, the Deployment is rolled back under it
    promoted      the champion's companion goes after scaleDownDelay

So the Deployment is never rolled unless both the version that it leaves (while that may still be needed) and the one
that it takes on are served by proven companions, and a bake for which no third set of pods can be had goes on without:
the champion then stays warm where it is, and the Deployment is rolled after the bake. Where a version serves is in
its arm's `deployment`; it is changed here only, and written before anything acts on it.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ratchet_api.cycle import Arm, RolloutStatus, ServingStatus


@dataclass(frozen=True)
class Seen:
    """The Deployment and its companions."""

    home: str
    """Name of the Deployment."""
    replicas: int
    """Pods that it is to have."""
    version: str | None
    """Version that its pod template names."""
    rolled_out: bool
    """All its pods of that version are ready and serve it."""
    companions: frozenset[str] = frozenset()
    """Versions that have one."""
    proven: frozenset[str] = frozenset()
    """Those of whose companion all pods are ready and serve it."""


@dataclass(frozen=True)
class Placement:
    """What is to be so."""

    home: str | None
    """Version that the Deployment is to name; None: leave it as it is."""
    companions: frozenset[str]
    """Versions that are to have a companion."""


def moved(
    serving: ServingStatus, rollout: RolloutStatus | None, seen: Seen, companion: Callable[[str], str]
) -> ServingStatus:
    """With each arm where it serves from now on. `companion`: version -> name of its companion."""
    baking = _baking(serving, rollout)
    stable, candidate = serving.stable, serving.candidate
    if candidate is not None and baking and _arrived(candidate, seen):
        candidate = _at(candidate, seen.home)
    if stable is not None and not baking and _arrived(stable, seen):
        stable = _at(stable, seen.home)
    if stable is not None and baking and _at_home(stable, seen) and stable.version in seen.proven:
        stable = _at(stable, companion(stable.version))
    # People's Deployment is not ours to remove.
    retired = [arm for arm in serving.retired if arm.deployment != seen.home]
    return serving.model_copy(update={"stable": stable, "candidate": candidate, "retired": retired})


def placement(serving: ServingStatus, rollout: RolloutStatus | None, seen: Seen) -> Placement:
    """What is to be so, with the arms where `moved` has put them."""
    arms = [arm for arm in (serving.stable, serving.candidate) if arm is not None]
    companions = {arm.version for arm in arms if not _at_home(arm, seen)}
    if serving.stable is not None and _baking(serving, rollout) and seen.version == serving.stable.version:
        companions.add(serving.stable.version)
    if seen.replicas == 0 and serving.candidate is None:
        # Whoever scales it to nothing does not want it to start elsewhere.
        companions &= seen.companions
    return Placement(_home(serving, rollout, seen), frozenset(companions))


def settled(serving: ServingStatus, seen: Seen) -> bool:
    """Whether the champion serves at home, so that a rollout may begin."""
    return serving.stable is not None and _at_home(serving.stable, seen)


def _home(serving: ServingStatus, rollout: RolloutStatus | None, seen: Seen) -> str | None:
    stable, candidate = serving.stable, serving.candidate
    for arm in (stable, candidate):
        if arm is not None and _at_home(arm, seen):
            return arm.version
    if stable is None:
        return None
    if candidate is None:
        return stable.version if stable.version in seen.proven or seen.version == stable.version else None
    if not _baking(serving, rollout) or rollout is None or rollout.unconfirmed_since is not None:
        return None
    both = {stable.version, candidate.version} <= seen.proven
    return candidate.version if both or seen.version == candidate.version else None


def _baking(serving: ServingStatus, rollout: RolloutStatus | None) -> bool:
    """Whether the candidate has had everybody, confirmed, since the bake began."""
    if rollout is None or serving.candidate is None or rollout.phase != "Baking":
        return False
    confirmed = rollout.unconfirmed_since is None or rollout.unconfirmed_since > rollout.step_since
    return confirmed and rollout.weight == 100


def _arrived(arm: Arm, seen: Seen) -> bool:
    return not _at_home(arm, seen) and seen.version == arm.version and seen.rolled_out


def _at_home(arm: Arm, seen: Seen) -> bool:
    return arm.deployment == seen.home


def _at(arm: Arm, deployment: str) -> Arm:
    return arm.model_copy(update={"deployment": deployment})
