"""What can go wrong while collecting, each one sentence with an exit code.

Room: cli. Pure.

    CollectError             1  refused, or it failed
    +-- Misused              2  an argument, a task file or a record makes no sense
    +-- NoAnswer             5  the model cannot be asked
    +-- NotStored            6  records wait on this machine, because storage does not take them
"""

from ratchet_cli.oncall.errors import UNREACHABLE, USAGE, OncallError

NOT_STORED = 6


class CollectError(OncallError):
    """Base; its text is one sentence that says what to do."""


class Misused(CollectError):
    """An argument, a task file or a record makes no sense; the text names the field and what to write instead."""

    code = USAGE


class NoAnswer(CollectError):
    """The model gave no answer, or cannot be reached."""

    code = UNREACHABLE


class NotStored(CollectError):
    """Storage did not take the records; the text says where they wait."""

    code = NOT_STORED
