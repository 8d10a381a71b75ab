"""Who withdrew, and whose words are in a dataset: the erasure list of a cycle, and the subjects of each dataset.

Room: api. Pure; touches nothing. `erasures.jsonl` lies beside the cycle's sessions, written by whoever answers people's
requests; `subjects.jsonl` lies in each dataset, written by the curate stage. Neither holds what anybody said.
"""

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

ERASURES = "erasures.jsonl"
SUBJECTS = "subjects.jsonl"
_EXAMPLE = '{"principal": "<SHA-256 as recorded>"} or {"session": "<id>"}'


class Erasure(BaseModel):
    """One line: a person, or a session. Other fields (when, why) are for people."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    principal: str = ""
    """SHA-256 of the caller's identity, as the interactions record it."""
    session: str = ""
    """Id of the conversation."""

    @model_validator(mode="after")
    def _names_something(self) -> "Erasure":
        if not self.principal and not self.session:
            raise ValueError(f"it names nobody: write {_EXAMPLE}")
        return self


class Subject(BaseModel):
    """Where one example of a dataset comes from; its variations have the same id."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    """Of the interaction."""
    session: str = ""
    principal: str = ""


@dataclass(frozen=True)
class Erased:
    """Who withdrew: what they said is never used again."""

    principals: frozenset[str] = frozenset()
    sessions: frozenset[str] = frozenset()

    def covers(self, principal: str, session: str) -> bool:
        """Whether a person or a session is on the list."""
        return (bool(principal) and principal in self.principals) or (bool(session) and session in self.sessions)


def parse_erasures(data: bytes, where: str) -> Erased:
    """The list. Raises ValueError for a line that cannot be read: not to know who withdrew is no reason to go on."""
    principals, sessions = set(), set()
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = Erasure.model_validate_json(line)
        except ValidationError:
            raise ValueError(f"{where}, line {number} is no entry of an erasure list: write {_EXAMPLE}") from None
        principals |= {entry.principal} - {""}
        sessions |= {entry.session} - {""}
    return Erased(frozenset(principals), frozenset(sessions))
