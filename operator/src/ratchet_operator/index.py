"""Which objects exist, and which versions belong to which cycle: so that an event can be told to those it concerns.

Room: operator. In memory only; rebuilt by every list and watch.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from ratchet_api.conditions import find
from ratchet_api.cycle import ImprovementCycle
from ratchet_api.names import CYCLE_KIND, CYCLE_LABEL, VERSION_KIND, VERSION_LABEL
from ratchet_api.reasons import ConditionType, Reason
from ratchet_api.version import ModelVersion
from ratchet_operator.queue import Key

TERMINAL = frozenset({"Rejected", "Failed", "Superseded"})


class Index:
    """Keys of cycles and versions."""

    def __init__(self) -> None:
        self._cycles: set[Key] = set()
        self._versions: dict[Key, tuple[Key, bool]] = {}
        """Version -> (its cycle, whether nothing its cycle does can change it any more)."""

    def known(self) -> list[Key]:
        """All that is known."""
        return [*self._cycles, *self._versions]

    def note_cycle(self, cycle: ImprovementCycle) -> list[Key]:
        """It was seen; returns the keys to look at: itself, and its versions that may have to follow."""
        key = Key(CYCLE_KIND, cycle.metadata.namespace, cycle.metadata.name)
        self._cycles.add(key)
        named = set(_named(cycle))
        return [
            key,
            *(v for v, (owner, ended) in self._versions.items() if owner == key and (not ended or v.name in named)),
        ]

    def note_version(self, version: ModelVersion) -> list[Key]:
        """It was seen; returns the keys to look at: itself and its cycle."""
        namespace = version.metadata.namespace
        key = Key(VERSION_KIND, namespace, version.metadata.name)
        owner = Key(CYCLE_KIND, namespace, version.spec.cycle)
        self._versions[key] = (owner, _ended(version))
        return [key, owner]

    def forget(self, key: Key) -> list[Key]:
        """It was deleted; returns the keys to look at: who was left behind."""
        self._cycles.discard(key)
        owner, _ = self._versions.pop(key, (None, True))
        left = [] if owner is None else [owner]
        return left + [v for v, (cycle, _) in self._versions.items() if cycle == key]


def _named(cycle: ImprovementCycle) -> Iterator[str]:
    serving = cycle.status.serving
    yield from (arm.version for arm in (serving.stable, serving.candidate) if arm is not None)
    if cycle.status.rollout is not None:
        yield cycle.status.rollout.version


def _ended(version: ModelVersion) -> bool:
    rejected = find(version.status.conditions, ConditionType.REJECTED)
    # A word in rollout.retryDigests brings these back.
    again = rejected is not None and rejected.status == "True" and rejected.reason == Reason.ALREADY_REJECTED
    return version.status.phase in TERMINAL and not again


def of_child(metadata: Mapping[str, Any]) -> Key | None:
    """The object that a labelled child (Job, Deployment, pod) belongs to."""
    labels = metadata.get("labels") or {}
    cycle, version = labels.get(CYCLE_LABEL), labels.get(VERSION_LABEL)
    namespace = str(metadata.get("namespace") or "")
    if not cycle:
        return None
    stage = labels.get("ratchet.dev/stage")
    if version and stage:
        return Key(VERSION_KIND, namespace, version)
    return Key(CYCLE_KIND, namespace, cycle)
