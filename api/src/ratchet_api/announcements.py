"""What people were told last, kept in a status so that a crash cannot swallow it.

Room: api. Pure; touches nothing.
"""

from typing import Literal

from ratchet_api.base import Observed, Time

ANNOUNCEMENTS_LIMIT = 8
"""Entries kept in a status."""


class Announcement(Observed):
    """One Kubernetes event, as it was decided on."""

    type: Literal["Normal", "Warning"]
    """Warning when a person may have to do something."""
    reason: str
    """A Reason."""
    message: str
    """One sentence for a person."""
    at: Time
    """When it was decided on."""
