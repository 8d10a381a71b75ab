"""Where a version stands, from its own status and its cycle's."""

from typing import Any

import pytest

from ratchet_api.base import ObjectMeta
from ratchet_api.cycle import ImprovementCycle
from ratchet_api.reasons import Reason
from ratchet_api.version import ModelVersion
from ratchet_operator.domain import versions

from .support import cycle_spec


def proven(**evaluated: Any) -> ModelVersion:
    """A version whose report is there."""
    said = {"type": "Evaluated", "message": "", "lastTransitionTime": "2026-11-23T00:00:00Z", "observedGeneration": 1}
    return ModelVersion.model_validate(
        {
            "metadata": {"name": "hand", "namespace": "default", "uid": "hand"},
            "spec": {"cycle": "assistant", "adapter": {"uri": "s3://hand", "digest": f"sha256:{'b' * 64}"}},
            "status": {
                "artifacts": {"report": {"uri": "s3://report", "digest": f"sha256:{'f' * 64}"}},
                "conditions": [said | evaluated],
            },
        }
    )


@pytest.mark.parametrize("reason", ["Evaluating", "AlreadyRejected", "Suspended"])
def test_evaluated_does_not_keep_the_reason_of_the_time_before(reason: str) -> None:
    """Chaos seed 952: the end depended on what had been seen on the way."""
    cycle = ImprovementCycle(metadata=ObjectMeta(name="assistant", namespace="default"), spec=cycle_spec())
    for status in ("False", "True"):
        found = versions.standing(proven(status=status, reason=reason), cycle).evaluated
        assert found is not None
        assert found.reason is Reason.SUCCEEDED
        assert f"sha256:{'f' * 64}" in found.message
