"""Simulated people with house questions, for the demonstration, for load and for trying a cycle out.

Room: cli. `python -m ratchet_cli.people --help` talks to a gateway; `python -m ratchet_cli.people.generate` writes the
example's suites and anchors.
"""

from ratchet_cli.people.talk import Habits, People
from ratchet_cli.people.tally import Exchange, Failed, Seen, Snapshot

__all__ = ["Exchange", "Failed", "Habits", "People", "Seen", "Snapshot"]
