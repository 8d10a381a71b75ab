"""How versions are served: runtime, replicas, resources.

Room: api. Pure; touches nothing.
"""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from ratchet_api.base import Model, Name
from ratchet_api.pods import PodOverrides, Resources


class Serving(Model):
    """The serving target of a cycle. Every version gets a Deployment (an arm) of its own."""

    runtime: Literal["vllm", "transformers"] = "vllm"
    """vllm needs a GPU; transformers serves small models on CPU."""
    version: Name | None = None
    """The pointer that Git may hold: only this version is rolled out, and one that served before returns at once,
    without training, gate and steps. Absent: every accepted version gets its rollout."""
    replicas: Annotated[int, Field(ge=1, le=1000)] = 1
    """Pods of each arm."""
    resources: Resources = Field(default_factory=Resources)
    """Compute resources of the serving container."""
    pod: PodOverrides = Field(default_factory=PodOverrides)
    """Placement and identity of the arms' pods."""
    max_model_len: Annotated[int, Field(ge=64, le=16_777_216)] | None = None
    """Longest prompt and answer together, in tokens; absent means what the model supports."""
    extra_args: list[Annotated[str, StringConstraints(min_length=1, max_length=256)]] = Field(
        default_factory=list, max_length=64
    )
    """Further arguments of the runtime's server, appended as they are."""
    image: Annotated[str, StringConstraints(pattern=r"^[^\s]{1,512}$", max_length=512)] | None = None
    """Image of the runtime; absent means the operator's default for it."""
