"""What a Git server or a forge can answer that keeps a proposal from going on.

Room: operator, clients. Pure.
"""

from collections.abc import Iterable

from ratchet_api.reasons import Reason

LONGEST = 400
"""Characters of a message: what a server says goes into a status."""


class Trouble(Exception):
    """A reason of the catalogue, and a sentence that names the field or the thing and what to do."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


def said(text: object, secrets: Iterable[str] = ()) -> str:
    """What a server said, as one short line without any of the secrets."""
    line = " ".join(str(text).split())
    for secret in secrets:
        line = line.replace(secret, "***") if secret else line
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"
