"""Held-out suites: reading and checking their cases.

Room: trainer. Touches the suites' folder, nothing else. Used by evaluate (to ask them) and curate (to keep them out).
"""

from pathlib import Path

from pydantic import ValidationError

from ratchet_api.evaluation import Suite
from ratchet_trainer.dataset import first_error, numbered_lines
from ratchet_trainer.errors import UserError
from ratchet_trainer.scorers import CASES, Case


def read_suite(suite: Suite, folder: Path | None) -> list[Case]:
    """The cases of a suite, in their order. Raises UserError naming suite, line and what to write."""
    if folder is None:
        raise UserError(f"suite {suite.name} needs its cases: say where they are by --suites DIR")
    path = folder / f"{suite.name}.jsonl"
    if not path.is_file():
        raise UserError(f"suite {suite.name}: {path.name} is not among the mounted suites; name its ConfigMap and key")
    kind = CASES[suite.scorer]
    cases: dict[str, Case] = {}
    for number, line in numbered_lines(path):
        try:
            case = kind.model_validate_json(line)
        except ValidationError as error:
            raise UserError(
                f"suite {suite.name}, line {number}: {first_error(error)}; a case of the scorer {suite.scorer} looks "
                f"like {kind.example}"
            ) from None
        if case.id in cases:
            raise UserError(f"suite {suite.name}, line {number}: the id {case.id!r} is taken; give each case its own")
        cases[case.id] = case
    if not cases:
        raise UserError(f"suite {suite.name} has no cases: write one JSON object a line, such as {kind.example}")
    return list(cases.values())
