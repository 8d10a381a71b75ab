"""What the supervisor tells the process node at start.

Room: local. Pure.
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from ratchet_local.addresses import Subnet
from ratchet_local.config import ImageEnv


class Settings(BaseModel):
    """The node's settings file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    state: Path
    """The node's own folder in the platform's state."""
    socket: Path
    instance_state: Path
    """The platform's state folder: it marks our processes."""
    subnet: Subnet
    port: int
    api_url: str
    authority: Path
    cert: Path
    key: Path
    gpus: int
    cpus: int
    backoff_seconds: tuple[float, float]
    images: dict[str, ImageEnv]

    @property
    def address(self) -> str:
        return self.subnet.platform

    @property
    def pods(self) -> Path:
        """A folder per pod uid: volumes, logs, termination messages, home folders."""
        return self.state / "pods"
