"""The judge of an evaluation: another language model that says which of two answers is the better one.

Room: api. Pure; touches nothing.
"""

import re
from datetime import timedelta
from decimal import Decimal
from typing import Annotated

from pydantic import Field, StringConstraints, WithJsonSchema

from ratchet_api.base import Duration, Fraction, Model, Text, matches
from ratchet_api.data import SecretRef

KEY_ENV = "OPENAI_API_KEY"
"""Key of the Secret, and the environment variable that the stage gets it as."""
ORDERS = 2
"""Each pair is shown in both orders."""

_URL = r"^https?://[^ ?#@]+$"
_MODEL = r"^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,254}$"


class Judge(Model):
    """A model behind an OpenAI-compatible URL. Cases and answers of the suites with `scorer: judge` are sent there."""

    url: Annotated[
        str,
        StringConstraints(pattern=_URL),
        WithJsonSchema(matches(_URL, 'write the API\'s base as "https://host/v1", without a user or a question mark')),
    ]
    """Base of the API; `/chat/completions` is added to it."""
    model: Annotated[
        str,
        StringConstraints(pattern=_MODEL),
        WithJsonSchema(matches(_MODEL, "write the name by which the judge's server knows its model", 255)),
    ]
    """Name of the judge's model there. Never the cycle, one of its versions or its base model: nobody judges itself."""
    credentials_secret: SecretRef | None = None
    """Secret whose key OPENAI_API_KEY is sent as the bearer token; absent: none is sent."""
    instructions: Text | None = None
    """What makes an answer better, in your words; absent: correct, to the point, as the person asked."""
    max_calls: Annotated[int, Field(ge=2, le=100_000)] = 2000
    """Most verdicts that one evaluation may need. Suites that could need more are refused before anything is asked."""
    max_tokens: Annotated[int, Field(ge=1000, le=1_000_000_000)] = 2_000_000
    """Most tokens, questions and verdicts together, of one attempt; beyond it the evaluation ends without a result."""
    timeout: Duration = timedelta(seconds=60)
    """Longest wait for the judge's server, each time that it is asked."""
    max_invalid: Fraction = Decimal("0.05")
    """Largest share of a suite's verdicts that may be no verdict. Those count as ties; with more of them the evaluation
    ends without a result."""


def under_test(judge: Judge, cycle: str, base_uri: str) -> str | None:
    """Which of the models that are evaluated the judge is, by its name; None: another one, as far as names tell."""
    name = judge.model.lower()
    if name == cycle or name.startswith(f"{cycle}@"):
        return f"cycle {cycle}"
    if re.fullmatch(rf"{re.escape(cycle)}-[0-9]+", name):
        return f"version {name}"
    repository = base_uri.removeprefix("hf://").partition("@")[0].lower()
    if base_uri.startswith("hf://") and name.partition("@")[0] in (repository, repository.rpartition("/")[2]):
        return f"base model {repository}"
    return None
