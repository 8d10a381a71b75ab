"""Which failed stage is tried again, when, and with what.

Room: operator/domain. Pure.

Attempts are counted by failure class in the owner's status and survive the Jobs: user and data errors and bugs are not
retried, out of memory once and smaller, infrastructure three times, preemption as often as it comes.
"""

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from ratchet_api.reasons import Reason
from ratchet_api.stage import ExitCode
from ratchet_api.training import Recipe
from ratchet_api.version import Attempts

INFRASTRUCTURE_RETRIES = 3
OUT_OF_MEMORY_RETRIES = 1
_INFRASTRUCTURE_DELAY = timedelta(seconds=10)
"""Delay of the first infrastructure retry; each further one takes four times as long."""
_PREEMPTION_DELAY = timedelta(seconds=1)
"""Delay after the first preemption; doubles each time, so that a pod that is always preempted is no hot loop."""
_LONGEST_DELAY = timedelta(minutes=5)
_LARGEST_ACCUMULATION = 1024


class FailureClass(StrEnum):
    """Why a stage's pod ended badly."""

    USER = "User"
    """The settings cannot work."""
    DATA = "Data"
    """The data cannot be used."""
    OUT_OF_MEMORY = "OutOfMemory"
    """Killed for memory."""
    INFRASTRUCTURE = "Infrastructure"
    """Something outside failed, or the pod is gone without a word."""
    PREEMPTED = "Preempted"
    """It had to give way."""
    DEADLINE = "Deadline"
    """The Job's activeDeadlineSeconds are over."""
    BUG = "Bug"
    """The stage itself failed in a way that it did not foresee."""


@dataclass(frozen=True)
class Retry:
    """Try again after `delay`, with these attempts written into the stage's status first."""

    attempts: Attempts
    delay: timedelta


@dataclass(frozen=True)
class GiveUp:
    """The stage has failed for good."""

    reason: Reason
    message: str


def classify(
    exit_code: int | None, *, oom_killed: bool = False, disruption: bool = False, deadline: bool = False
) -> FailureClass:
    """The class of a failed stage. `exit_code` None: the pod or Job is gone, or never ran.

    What Kubernetes says (deadline, disruption, OOMKilled) goes before the exit code, which is only its echo.
    """
    if deadline:
        return FailureClass.DEADLINE
    if disruption:
        return FailureClass.PREEMPTED
    if oom_killed:
        return FailureClass.OUT_OF_MEMORY
    match exit_code:
        case None | ExitCode.TRY_AGAIN:
            return FailureClass.INFRASTRUCTURE
        case ExitCode.USER_ERROR:
            return FailureClass.USER
        case ExitCode.DATA_ERROR:
            return FailureClass.DATA
        case ExitCode.KILLED:
            return FailureClass.OUT_OF_MEMORY
        case ExitCode.PREEMPTED:
            return FailureClass.PREEMPTED
        case _:
            return FailureClass.BUG


def next_attempt(attempts: Attempts, failure: FailureClass, *, shrinkable: bool = True) -> Retry | GiveUp:
    """What follows a failure. `shrinkable`: whether a smaller batch is possible (see shrink, shrink_batch)."""
    match failure:
        case FailureClass.USER:
            return GiveUp(Reason.USER_ERROR, "the settings cannot work, so the stage is not tried again")
        case FailureClass.DATA:
            return GiveUp(Reason.DATA_ERROR, "the data cannot be used, so the stage is not tried again")
        case FailureClass.BUG:
            return GiveUp(Reason.INTERNAL_ERROR, "the stage broke down; its log has the traceback")
        case FailureClass.DEADLINE:
            return GiveUp(Reason.DEADLINE_EXCEEDED, "the stage ran longer than its deadline; raise it, or ask for less")
        case FailureClass.PREEMPTED:
            delay = _backoff(_PREEMPTION_DELAY, 2, attempts.preempted)
            return Retry(attempts.model_copy(update={"preempted": attempts.preempted + 1}), delay)
        case FailureClass.INFRASTRUCTURE:
            return _infrastructure(attempts)
        case FailureClass.OUT_OF_MEMORY:
            return _out_of_memory(attempts, shrinkable)


def _infrastructure(attempts: Attempts) -> Retry | GiveUp:
    used = attempts.infrastructure
    if used >= INFRASTRUCTURE_RETRIES:
        return GiveUp(
            Reason.INFRASTRUCTURE_ERROR, f"storage, node or network failed {used + 1} times, {used} retries are used up"
        )
    return Retry(attempts.model_copy(update={"infrastructure": used + 1}), _backoff(_INFRASTRUCTURE_DELAY, 4, used))


def _out_of_memory(attempts: Attempts, shrinkable: bool) -> Retry | GiveUp:
    if attempts.out_of_memory >= OUT_OF_MEMORY_RETRIES:
        message = "killed for memory again with a smaller batch: raise resources.limits.memory"
        return GiveUp(Reason.OUT_OF_MEMORY, message)
    if not shrinkable:
        message = "killed for memory, and the batch cannot be made smaller: raise resources.limits.memory"
        return GiveUp(Reason.OUT_OF_MEMORY, message)
    return Retry(attempts.model_copy(update={"out_of_memory": attempts.out_of_memory + 1}), timedelta(0))


def _backoff(first: timedelta, factor: int, used: int) -> timedelta:
    # The power is capped as well: a timedelta overflows after some 60 doublings.
    return min(_LONGEST_DELAY, first * float(factor ** min(used, 20)))


def shrink(recipe: Recipe, times: int = 1) -> Recipe | None:
    """Half the micro-batch and double the accumulation, `times` times; None when there is nothing left to halve.

    The examples per optimiser step stay the same, also for an odd micro-batch: it falls to the next smaller size that
    divides them, because another effective batch would be another recipe.
    """
    micro, accumulation = recipe.micro_batch, recipe.accumulation
    batch = micro * accumulation
    for _ in range(times):
        micro //= 2
        while micro > 1 and batch % micro:
            micro -= 1
        if micro < 1 or batch // micro > _LARGEST_ACCUMULATION:
            return None
    return recipe.model_copy(update={"micro_batch": micro, "accumulation": batch // micro})


def shrink_batch(batch_size: int, times: int = 1) -> int | None:
    """Half the evaluation's batch, `times` times; None when there is nothing left to halve."""
    smaller = batch_size >> times
    return smaller if smaller >= 1 else None
