"""What can go wrong in the demonstration.

Room: cli. Pure.

    DemoError
    ├── Unprepared        something that the demonstration needs is missing; the sentence says what to do
    ├── WaitExpired       what was waited for did not come in time; carries what is known
    └── CameOutOtherwise  what was waited for cannot come any more; carries what is known
"""


class DemoError(Exception):
    """A sentence for the person at the screen."""

    def __init__(self, message: str, known: str = "") -> None:
        super().__init__(message)
        self.known = known
        """Conditions, events and logs at that moment; several lines."""


class Unprepared(DemoError):
    """Something that the demonstration needs is missing."""


class WaitExpired(DemoError):
    """What was waited for did not come in time."""


class CameOutOtherwise(DemoError):
    """What was waited for cannot come any more."""
