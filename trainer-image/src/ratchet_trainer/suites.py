"""Held-out suites: reading and checking their cases.

Room: trainer. Touches the suites' folder and storage. Used by evaluate (to ask them) and curate (to keep them out).
"""

import hashlib
import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from pydantic import ValidationError

from ratchet_api.evaluation import Cases, StoredCases, Suite
from ratchet_api.reasons import Reason
from ratchet_trainer import harness
from ratchet_trainer.dataset import first_error, numbered_lines
from ratchet_trainer.errors import DigestMismatch, Missing, UserError
from ratchet_trainer.scorers import CASES, Case
from ratchet_trainer.storage import Location, Store


def read_suite(suite: Suite, folder: Path | None, store: Store | None) -> list[Case]:
    """The cases of a suite, in their order, from the mounted `folder` or from storage.

    Raises UserError naming suite, line and what to write; Missing or DigestMismatch for a file in storage that is not
    there or is another one.
    """
    if suite.scorer == "lmEval":
        return _of_task(suite, folder, store)
    kind = CASES[suite.scorer]
    cases: dict[str, Case] = {}
    for number, line in _lines(suite, folder, store):
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


def _of_task(suite: Suite, folder: Path | None, store: Store | None) -> list[Case]:
    if folder is None or not (path := folder / f"{suite.name}.yaml").is_file():
        raise UserError(f"suite {suite.name}: its task is not mounted (--suites DIR); name its ConfigMap and key")
    task = harness.read_task(path.read_bytes(), suite)
    cases = harness.cases_of(task, suite, list(_lines(suite, folder, store)))
    if not cases:
        raise UserError(f"suite {suite.name} has no cases: write one document a line, such as {harness.EXAMPLE}")
    return cases


def _lines(suite: Suite, folder: Path | None, store: Store | None) -> Iterator[tuple[int, bytes]]:
    if suite.cases.storage is not None:
        if store is None:
            raise UserError(f"suite {suite.name} has its cases in storage, which is not at hand here")
        data = _stored(suite.name, suite.cases.storage, store)
        return ((number, line) for number, line in enumerate(data.splitlines(), start=1) if line.strip())
    if suite.cases.builtin is not None:
        return _builtin(suite.cases)
    if folder is None:
        raise UserError(f"suite {suite.name} needs its cases: say where they are by --suites DIR")
    path = folder / f"{suite.name}.jsonl"
    if not path.is_file():
        raise UserError(f"suite {suite.name}: {path.name} is not among the mounted suites; name its ConfigMap and key")
    return numbered_lines(path)


def _builtin(cases: Cases) -> Iterator[tuple[int, bytes]]:
    data = files("ratchet_trainer").joinpath("builtin", f"{cases.builtin}.jsonl").read_bytes()
    for number, line in enumerate(data.splitlines(), start=1):
        named = json.dumps(json.loads(line) | {"any": cases.names}).encode() if cases.names else line
        yield number, named


def _stored(name: str, cases: StoredCases, store: Store) -> bytes:
    data = store.get(Location.parse(cases.uri))
    field = f"evaluation.suites[{name}].cases.storage"
    if data is None:
        raise Missing(Reason.MISSING_SUITE, f"{field}.uri: there is no file at {cases.uri}: put it there")
    found = f"sha256:{hashlib.sha256(data).hexdigest()}"
    if found != cases.digest:
        raise DigestMismatch(
            f"{field}.digest: {cases.uri} has the digest {found}, not {cases.digest}: put the right file there, or "
            "write the digest of this one"
        )
    return data
