"""What a cycle's status remembers when a rollout begins or ends: arms, rejections, champions, history.

Room: operator/domain. Pure transitions of ImprovementCycleStatus; each is harmless when repeated.
"""

from datetime import datetime

from ratchet_api.cycle import Arm, ImprovementCycleSpec, ImprovementCycleStatus, Rejected, RetiredArm, RolloutStatus


def started(status: ImprovementCycleStatus, arm: Arm, rollout: RolloutStatus) -> ImprovementCycleStatus:
    """The candidate's arm (weight 0) and its rollout are there; a retired arm of the same version is taken back."""
    raise NotImplementedError


def ended(
    status: ImprovementCycleStatus, spec: ImprovementCycleSpec, now: datetime, run: int | None = None
) -> ImprovementCycleStatus:
    """Settles a rollout that is Done, by its decision: promoted, rolled_back or returned. Else `status` itself."""
    raise NotImplementedError


def promoted(
    status: ImprovementCycleStatus, spec: ImprovementCycleSpec, now: datetime, run: int | None = None
) -> ImprovementCycleStatus:
    """Candidate becomes stable; the old stable arm retires; lastGood and history grow."""
    raise NotImplementedError


def rolled_back(
    status: ImprovementCycleStatus, spec: ImprovementCycleSpec, now: datetime, run: int | None = None
) -> ImprovementCycleStatus:
    """Candidate retires; its digest is rejected; history grows."""
    raise NotImplementedError


def returned(
    status: ImprovementCycleStatus, spec: ImprovementCycleSpec, now: datetime, run: int | None = None
) -> ImprovementCycleStatus:
    """Candidate retires without blame; history grows."""
    raise NotImplementedError


def gate_rejected(
    status: ImprovementCycleStatus,
    spec: ImprovementCycleSpec,
    version: str,
    digest: str,
    reason: str,
    message: str,
    now: datetime,
    run: int | None = None,
) -> ImprovementCycleStatus:
    """The gate's rejection of a version, remembered by digest; history grows."""
    raise NotImplementedError


def is_rejected(status: ImprovementCycleStatus, spec: ImprovementCycleSpec, digest: str) -> Rejected | None:
    """The standing rejection of a digest; None when there is none or a person named it in rollout.retryDigests."""
    raise NotImplementedError


def refreshed(status: ImprovementCycleStatus, spec: ImprovementCycleSpec) -> ImprovementCycleStatus:
    """Re-arms used-up words of rollout.retryDigests that a person has taken out of the list."""
    raise NotImplementedError


def is_known_good(status: ImprovementCycleStatus, digest: str) -> bool:
    """Whether a version with this digest served everybody and stood its bake, and was not rejected since."""
    raise NotImplementedError


def was_returned(status: ImprovementCycleStatus, version: str) -> bool:
    """Whether this version's last rollout was Returned: it is not tried again by itself."""
    raise NotImplementedError


def expired(status: ImprovementCycleStatus, spec: ImprovementCycleSpec, now: datetime) -> list[RetiredArm]:
    """Retired arms whose scaleDownDelay is over and that no arm in service uses."""
    raise NotImplementedError


def removed(status: ImprovementCycleStatus, deployment: str) -> ImprovementCycleStatus:
    """Without that retired arm, once its Deployment is gone."""
    raise NotImplementedError
