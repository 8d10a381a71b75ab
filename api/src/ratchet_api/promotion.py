"""Who lets a version go on: the evidence alone, or also a person.

Room: api. Pure; touches nothing.
"""

from datetime import timedelta
from typing import Literal

from pydantic import ConfigDict, Field

from ratchet_api.base import Duration, Model, rule, rules

Gate = Literal["Training", "Canary", "Promotion"]
"""Before the train stage; before the first traffic; before all of the traffic."""


class Promotion(Model):
    """Whether a person has a say, and where."""

    mode: Literal["Automatic", "Approval"] = "Automatic"
    """Automatic: the evidence decides. Approval: at the gates below a person has to name the digest of what goes on, by
    an annotation on the ModelVersion; the evidence is asked for all the same."""
    before: list[Gate] = Field(default=["Canary"], min_length=1, max_length=3)
    """Approval: Training (annotation ratchet.dev/approve-training, digest of the dataset), Canary (approve-canary,
    digest of the adapter), Promotion (approve-promotion, digest of the adapter: before it gets 100 percent)."""
    expiry: Duration = timedelta(days=7)
    """How long a version waits for its approval; afterwards its run ends and its arm is taken back, without blame."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!has(self.before) || self.before.all(g, self.before.exists_one(h, h == g))",
                "promotion.before: a gate is named twice; name each of Training, Canary and Promotion once",
            )
        )
    )
