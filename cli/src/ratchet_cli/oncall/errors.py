"""Errors of the on-call commands, each one sentence with an exit code of its own.

Room: cli.
"""

REACHED, FAILED, USAGE, TIMED_OUT, NOT_FOUND, UNREACHABLE = 0, 1, 2, 3, 4, 5
EXIT_CODES = """exit codes:
  0  done, or the state asked for was reached
  1  refused, failed, rolled back, rejected, or stalled
  2  the command line makes no sense
  3  timed out while waiting
  4  no such cycle or version
  5  the API server could not be asked
"""


class OncallError(Exception):
    """A sentence for the person. `code` is the exit code."""

    code = FAILED


class Refused(OncallError):
    """What was asked for makes no sense in the present state."""


class UsageError(OncallError):
    """The command line makes no sense as a whole."""

    code = USAGE


class TimedOut(OncallError):
    """Waited for as long as it was allowed to."""

    code = TIMED_OUT


class NotFound(OncallError):
    """There is no such object."""

    code = NOT_FOUND


class Unreachable(OncallError):
    """The API server could not be asked, or said no to the asking."""

    code = UNREACHABLE
