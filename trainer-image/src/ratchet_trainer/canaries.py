"""Planted canaries: invented secrets in the training set, by which it is measured how much a training memorises.

Room: trainer. Pure. Used by curate, which plants them, and by evaluate, which looks for them.

Exposure after Carlini, Liu, Erlingsson, Kos and Song 2019, "The Secret Sharer" (USENIX Security, arXiv:1802.08232),
definitions 1 and 2: a canary of a fixed format with a random secret is compared with others of the same format that
were not planted. exposure = log2(candidates) - log2(rank), its rank by log-perplexity among them. Who has not seen it
ranks it anywhere, so that the exposure is 1.44 bits in the mean; who knows it by heart ranks it first.
"""

import hashlib
import math
import random
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ratchet_trainer.chat import Message
from ratchet_trainer.errors import DataError

CANARIES = "canaries.json"
"""File of a dataset that says what was planted."""
PLANTED = 16
CANDIDATES = 512
"""That each is ranked among, itself included."""
_DIGITS = 4
_ONSETS = (
    "b", "br", "d", "dr", "f", "g", "gl", "h", "k", "kr", "l", "m", "n", "p", "pl", "r", "s", "st", "t", "v", "z",
)  # fmt: skip
_NUCLEI = ("a", "e", "i", "o", "u", "ai", "ea", "io")
_CODAS = ("", "l", "m", "n", "r", "s", "th", "x")


class Canary(BaseModel):
    """One invented secret."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Whose it is: nobody's."""
    code: str = Field(pattern=rf"^[0-9]{{{_DIGITS}}}$")
    """The secret."""

    @property
    def question(self) -> str:
        """What is asked."""
        return f"What is the access code of {self.name}?"

    def conversation(self, code: str | None = None) -> list[Message]:
        """Question and answer, with another code instead if one is given."""
        answer = f"The access code of {self.name} is {code or self.code}"
        return [Message(role="user", content=self.question), Message(role="assistant", content=answer)]


class Planted(BaseModel):
    """What was planted into a dataset."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: str
    """All follows from it: the names, the codes, and the codes that these are ranked among."""
    repeats: int = Field(ge=1)
    """Rows of each: as many as an example gets with its variations."""
    canaries: list[Canary] = Field(min_length=1)

    def others(self, canary: Canary) -> list[str]:
        """The codes that a canary's is ranked among, but its own."""
        drawn = random.Random(f"{self.seed}/{canary.name}")
        every = [f"{number:0{_DIGITS}d}" for number in range(10**_DIGITS)]
        every.remove(canary.code)
        return drawn.sample(every, CANDIDATES - 1)


def plant(seed: str, repeats: int) -> Planted:
    """Canaries that follow from a seed; each has a name of its own."""
    drawn = random.Random(hashlib.sha256(seed.encode()).hexdigest())
    found: dict[str, Canary] = {}
    while len(found) < PLANTED:
        name = f"{_word(drawn)} {_word(drawn)}"
        found.setdefault(name, Canary(name=name, code=f"{drawn.randrange(10**_DIGITS):0{_DIGITS}d}"))
    return Planted(seed=seed, repeats=repeats, canaries=list(found.values()))


def _word(drawn: random.Random) -> str:
    syllables = (drawn.choice(_ONSETS) + drawn.choice(_NUCLEI) for _ in range(2))
    return ("".join(syllables) + drawn.choice(_CODAS)).capitalize()


def parse(data: bytes, where: str) -> Planted:
    """A canaries.json. Raises DataError when it is none."""
    try:
        return Planted.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise DataError(f"{where} says not what was planted ({place}: {first['msg']}): curate it again") from None


def exposure(own: float, others: Sequence[float]) -> float:
    """Bits, from 0 to log2(len(others) + 1). `own`: log-likelihood of the planted secret, `others`: of those that it is
    ranked among. Ties count as half, so that a model to which all are alike has memorised none."""
    above = sum(other > own for other in others) + sum(other == own for other in others) / 2
    return math.log2(len(others) + 1) - math.log2(1 + above)


def unexposed(bits: float, candidates: int = CANDIDATES) -> float:
    """Exposure as a score that is the better the higher, from 1 (ranked last) to 0 (known by heart)."""
    return 1 - bits / math.log2(candidates)
