"""What a person may choose about the demonstration, and where its things lie.

Room: cli. Pure, apart from `find_checkout`, which looks for files.
"""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from ratchet_cli.demo.errors import Unprepared

LAST_STEP = 8


@dataclass(frozen=True)
class Profile:
    """How much of everything: the whole story, or the shortened one of the end-to-end test."""

    name: str
    answers: int
    """Answers that people get from the base model before the run is triggered."""
    talk_rate: float
    """Requests a second while people teach the base model."""
    quiet_rate: float
    """Requests a second while stages compute: people never stop talking, and the cores are few."""
    canary_rate: float
    """Requests a second during a rollout, when evidence is wanted."""
    house_share: float = 0.5
    """Share of house questions; the rest are general ones."""
    correction_share: float = 0.75
    """Share of the thumbs-down that carry a correction."""
    noise: float = 0.03
    """Share of verdicts that are wrong."""
    forgetful: bool = True
    """Whether the version that forgot its general knowledge is part of it."""


FULL = Profile(name="full", answers=340, talk_rate=6.0, quiet_rate=0.05, canary_rate=6.0)
QUICK = Profile(
    name="quick",
    answers=200,
    talk_rate=6.0,
    quiet_rate=0.05,
    canary_rate=6.0,
    forgetful=False,
)


@dataclass(frozen=True)
class Settings:
    """One run of the demonstration."""

    state: Path
    """Everything that it writes; summary.json and report.html are what remains."""
    checkout: Path
    """Folder with charts/ and examples/."""
    profile: Profile = FULL
    keep: bool = False
    """Leave the platform up after a good end."""
    until: int = LAST_STEP
    """Number of the last step that is told."""
    slowness: float = 1.0
    """Factor on every deadline, for a slow or busy machine."""
    namespace: str = "default"
    cycle: str = "assistant"
    seed: int = 7

    @property
    def platform_state(self) -> Path:
        return self.state / "platform"

    @property
    def chart(self) -> Path:
        return self.checkout / "charts" / "ratchet"

    @property
    def example(self) -> Path:
        return self.checkout / "examples" / "assistant"

    def patience(self, seconds: float) -> float:
        """A deadline for something that takes a fraction of it on a quiet machine."""
        return seconds * self.slowness


def find_checkout(start: Path | None) -> Path:
    """The folder with charts/ratchet and examples/: `start` or one above it; without `start`, from the working folder
    or from where this package lives.

    Raises Unprepared when there is none.
    """
    places = [start] if start is not None else [Path.cwd(), Path(__file__).resolve()]
    for folder in (candidate for place in places for candidate in (place, *place.parents)):
        if (folder / "charts" / "ratchet" / "Chart.yaml").is_file() and (folder / "examples").is_dir():
            return folder
    raise Unprepared(
        f"neither {places[0]} nor a folder above it has charts/ratchet and examples/: run this in a checkout of "
        "Ratchet, or name one with --checkout"
    )


def seconds(span: timedelta) -> float:
    """A duration of a spec, in seconds."""
    return span.total_seconds()
