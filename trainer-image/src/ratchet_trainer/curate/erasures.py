"""The erasure list of a cycle: `erasures.jsonl` beside its sessions.

Room: trainer. Pure. Who is on it is never learnt from again. It lies in the storage like what it is about, so that it
can be long and is written by whoever answers people's requests, without access to the cluster.
"""

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from ratchet_trainer.curate.rules import Erased
from ratchet_trainer.errors import DataError

ERASURES = "erasures.jsonl"
_EXAMPLE = '{"principal": "<SHA-256 as recorded>"} or {"session": "<id>"}'


class Erasure(BaseModel):
    """One line: a person, or a session. Other fields (when, why) are for people."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    principal: str = ""
    session: str = ""

    @model_validator(mode="after")
    def _names_something(self) -> "Erasure":
        if not self.principal and not self.session:
            raise ValueError(f"it names nobody: write {_EXAMPLE}")
        return self


def parse_erasures(data: bytes, where: str) -> Erased:
    """The list. Raises DataError for a line that cannot be read: not to know who withdrew is no reason to go on."""
    principals, sessions = set(), set()
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = Erasure.model_validate_json(line)
        except ValidationError:
            raise DataError(f"{where}, line {number} is no entry of an erasure list: write {_EXAMPLE}") from None
        principals |= {entry.principal} - {""}
        sessions |= {entry.session} - {""}
    return Erased(frozenset(principals), frozenset(sessions))
