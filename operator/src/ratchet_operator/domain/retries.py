"""Which failed stage is tried again, when, and with what.

Room: operator/domain. Pure.
"""

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from ratchet_api.reasons import Reason
from ratchet_api.training import Hyperparameters
from ratchet_api.version import Attempts


class FailureClass(StrEnum):
    """Why a stage's pod ended badly."""

    USER = "User"
    DATA = "Data"
    OUT_OF_MEMORY = "OutOfMemory"
    INFRASTRUCTURE = "Infrastructure"
    PREEMPTED = "Preempted"
    DEADLINE = "Deadline"
    BUG = "Bug"


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
    """The class of a failed stage. `exit_code` None: the pod or Job is gone, or never ran."""
    raise NotImplementedError


def next_attempt(attempts: Attempts, failure: FailureClass, *, shrinkable: bool = True) -> Retry | GiveUp:
    """What follows a failure. `shrinkable`: whether a smaller batch is possible (see shrink, shrink_batch)."""
    raise NotImplementedError


def shrink(hyperparameters: Hyperparameters, times: int = 1) -> Hyperparameters | None:
    """Half the micro-batch and double the accumulation, `times` times; None when there is nothing left to halve."""
    raise NotImplementedError


def shrink_batch(batch_size: int, times: int = 1) -> int | None:
    """Half the evaluation's batch, `times` times; None when there is nothing left to halve."""
    raise NotImplementedError
