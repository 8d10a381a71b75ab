"""Collecting by hand: a chat with a verdict on each answer, a list of tasks that are judged, and a class for notebooks.

Room: cli. All three write the one record of `ratchet_api.records`, or have the gateway write it; curation reads what
they write as any other source.

    from ratchet_cli.collect import WorkSessionCollector

    with WorkSessionCollector("release-notes", out="work-sessions") as collector:
        collector.record("Write the changelog line", "fix: close the socket", {"success": True})
"""

from ratchet_cli.collect.collector import WorkSessionCollector
from ratchet_cli.collect.errors import CollectError

__all__ = ["CollectError", "WorkSessionCollector"]
