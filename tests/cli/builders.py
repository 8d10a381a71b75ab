"""Typed objects of the demonstration's tests, with only what a test says differing from a plain one."""

from datetime import UTC, datetime, timedelta
from typing import Any

from ratchet_api.cycle import ImprovementCycle
from ratchet_api.version import ModelVersion
from ratchet_cli.demo.cluster import View

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
DIGEST = "sha256:" + "ab" * 32


def at(seconds: float) -> str:
    """A status timestamp, `seconds` after NOW."""
    return (NOW + timedelta(seconds=seconds)).isoformat()


def condition(kind: str, reason: str, message: str = "because", status: str = "True") -> dict[str, Any]:
    """One entry of status.conditions."""
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": at(0)}


def suite(name: str, role: str, champion: str, candidate: str) -> dict[str, Any]:
    """One entry of status.evaluation.suites."""
    difference = float(candidate) - float(champion)
    return {"name": name, "role": role, "cases": 100, "champion": champion, "candidate": candidate,
            "difference": f"{difference:.4f}", "lowerBound": f"{difference - 0.05:.4f}", "pValue": "0.0004",
            "better": 40, "worse": 2}  # fmt: skip


def version(name: str, *, run: int | None = None, phase: str = "Pending", **status: Any) -> ModelVersion:
    """A ModelVersion of the cycle `assistant`; with a finished adapter unless it is the root."""
    spec: dict[str, Any] = {"cycle": "assistant"}
    if run is not None:
        spec["run"] = run
    if run != 0:
        spec["adapter"] = {"uri": f"s3://ratchet/{name}", "digest": DIGEST}
    return ModelVersion.model_validate(
        {
            "metadata": {"name": name, "creationTimestamp": at(run or 0)},
            "spec": spec,
            "status": {"phase": phase, **status},
        }
    )


def arm(name: str, weight: int, ready: int = 1) -> dict[str, Any]:
    """One entry of status.serving."""
    return {"version": name, "deployment": f"{name}-arm", "modelName": name, "port": 8000, "weight": weight,
            "replicas": 1, "readyReplicas": ready, "since": at(0)}  # fmt: skip


def rollout(name: str, phase: str, *, began: float = 0, **fields: Any) -> dict[str, Any]:
    """status.rollout."""
    return {"version": name, "digest": DIGEST, "phase": phase, "startedAt": at(began), "stepSince": at(began), **fields}


def decision(outcome: str, seconds: float, *, check: str = "", seen: float | None = None) -> dict[str, Any]:
    """status.rollout.decision."""
    made = {"outcome": outcome, "reason": "CheckFailed" if check else "Promoted", "check": check,
            "message": "measured vs limit", "at": at(seconds)}  # fmt: skip
    return made if seen is None else made | {"regressionSeenAt": at(seen)}


def cycle(**status: Any) -> ImprovementCycle:
    """The cycle `assistant`."""
    config_map = {"configMap": {"name": "assistant-suites", "key": "target.jsonl"}}
    return ImprovementCycle.model_validate(
        {
            "metadata": {"name": "assistant"},
            "spec": {
                "baseModel": {"uri": "s3://ratchet/models/base"},
                "storage": {"uri": "s3://ratchet/assistant"},
                "evaluation": {"suites": [{"name": "house", "role": "target", "cases": config_map}]},
            },
            "status": status,
        }
    )


def view(*versions: ModelVersion, **status: Any) -> View:
    """A cycle's status and its versions."""
    return View(cycle=cycle(**status), versions={v.metadata.name: v for v in versions})
