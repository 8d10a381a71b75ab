"""The gate: is a version proven better, offline?

Room: operator/domain. Pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ratchet_api.evaluation import EvaluationPolicy
from ratchet_api.reasons import Reason
from ratchet_api.version import SuiteResult


@dataclass(frozen=True)
class GateDecision:
    """What the gate says, and the strings that people see in `kubectl get mv`."""

    accepted: bool
    reason: Reason
    message: str
    target: str
    guardrail: str


def decide(policy: EvaluationPolicy, results: Sequence[SuiteResult]) -> GateDecision:
    """Accept when every target is proven better and no guardrail or safety suite lost."""
    raise NotImplementedError
