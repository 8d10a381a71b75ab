"""What can go wrong with the local platform, as sentences for the person in front of it.

Room: local. Pure; touches nothing.

    LocalError
    +-- BuildError            a binary can neither be found nor built
    +-- PlatformError         the platform as a whole
    |   +-- NotRunning        nothing runs in this state folder
    |   +-- AlreadyRunning    something does
    +-- ComponentError        one of its processes did not come up, or died
    +-- CommandError          kubectl answered with an error
"""


class LocalError(Exception):
    """Base of all errors of this room; its text is one sentence that says what to do."""


class BuildError(LocalError):
    """A binary is missing and could not be built."""


class PlatformError(LocalError):
    """The platform cannot be started, reached or ended."""


class NotRunning(PlatformError):
    """No platform runs in the state folder."""


class AlreadyRunning(PlatformError):
    """A platform already runs in the state folder."""


class ComponentError(LocalError):
    """A process of the platform did not become ready."""


class CommandError(LocalError):
    """A kubectl command failed; the text ends with what it printed to stderr."""
