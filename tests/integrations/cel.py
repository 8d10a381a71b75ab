"""Flux' way of judging an object: kstatus, or healthCheckExprs by Google's own CEL.

Sources: fluxcd/pkg runtime/cel/status_evaluator.go (order of the expressions, observedGeneration first; Flux RFC 0009),
kubernetes-sigs/cli-utils pkg/kstatus (generic.go, status.go).
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

from cel_expr_python import cel

Document = Mapping[str, Any]
Status = Literal["Current", "InProgress", "Failed", "Terminating"]

ORDER: tuple[tuple[str, Status], ...] = (("inProgress", "InProgress"), ("failed", "Failed"), ("current", "Current"))


@cache
def _environment() -> Any:
    fields = ("apiVersion", "kind", "metadata", "spec", "status")
    return cel.NewEnv(variables=dict.fromkeys(fields, cel.Type.DYN))


@cache
def _compiled(expression: str) -> Any:
    return _environment().compile(expression)


def holds(expression: str, document: Document) -> bool:
    """Whether it is true. Raises ValueError for what is no truth value, such as a field that does not exist."""
    answer = _compiled(expression).eval(data=dict(document)).value()
    if not isinstance(answer, bool):
        raise ValueError(f"{expression}: {answer}")
    return answer


def by_expressions(expressions: Mapping[str, str], document: Document) -> Status:
    """What Flux makes of an object with healthCheckExprs. Raises ValueError for an expression that cannot be told."""
    if not _is_observed(document):
        return "InProgress"
    return next(
        (status for key, status in ORDER if key in expressions and holds(expressions[key], document)), "InProgress"
    )


def by_kstatus(document: Document) -> Status:
    """What kstatus makes of it, and with it `kubectl wait`-like tools, Helm and Flux without expressions."""
    if document["metadata"].get("deletionTimestamp"):
        return "Terminating"
    if not _is_observed(document):
        return "InProgress"
    conditions = {entry["type"]: entry["status"] for entry in document.get("status", {}).get("conditions", [])}
    if conditions.get("Reconciling") == "True":
        return "InProgress"
    if conditions.get("Stalled") == "True":
        return "Failed"
    return "Current" if conditions.get("Ready", "True") == "True" else "InProgress"


def _is_observed(document: Document) -> bool:
    generation = document["metadata"].get("generation")
    return document.get("status", {}).get("observedGeneration", generation) == generation
