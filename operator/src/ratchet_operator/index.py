"""Which objects exist, and which versions belong to which cycle: so that an event can be told to those it concerns.

Room: operator. In memory only; rebuilt by every list and watch. Reads the few fields that it needs from the raw object:
thousands of them come at once, and one that cannot be read as its type is told of in its own pass.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from ratchet_api.names import CYCLE_KIND, CYCLE_LABEL, VERSION_KIND, VERSION_LABEL
from ratchet_api.reasons import ConditionType, Reason
from ratchet_operator.queue import Key

TERMINAL = frozenset({"Rejected", "Failed", "Superseded"})
AT_WORK = frozenset({"Pending", "Training", "Evaluating", "Canary", "Baking"})
"""Phases of a version in which its Jobs or its cycle's rollout go on."""

Raw = Mapping[str, Any]


class Index:
    """Keys of cycles and versions."""

    def __init__(self) -> None:
        self._cycles: set[Key] = set()
        self._owners: dict[Key, Key] = {}
        """Version -> its cycle."""
        self._versions: dict[Key, dict[Key, bool]] = {}
        """Cycle -> version -> whether nothing its cycle does can change it any more."""

    def known(self) -> Iterator[Key]:
        """All that is known, the versions of a cycle after it."""
        for cycle in sorted(self._cycles | self._versions.keys()):
            if cycle in self._cycles:
                yield cycle
            yield from sorted(self._versions.get(cycle, ()))

    def note(self, key: Key, body: Raw) -> list[Key]:
        """It was seen; returns the keys to look at."""
        return self._note_cycle(key, body) if key.kind == CYCLE_KIND else self._note_version(key, body)

    def _note_cycle(self, key: Key, body: Raw) -> list[Key]:
        """Itself, and its versions that may have to follow."""
        self._cycles.add(key)
        named = set(_named(body.get("status") or {}))
        versions = self._versions.get(key, {})
        return [key, *(version for version, ended in versions.items() if not ended or version.name in named)]

    def _note_version(self, key: Key, body: Raw) -> list[Key]:
        """Itself and its cycle."""
        owner = Key(CYCLE_KIND, key.namespace, str((body.get("spec") or {}).get("cycle") or ""))
        if self._owners.get(key, owner) != owner:
            self._disown(key)
        self._owners[key] = owner
        self._versions.setdefault(owner, {})[key] = _ended(body.get("status") or {})
        return [key, owner]

    def forget(self, key: Key) -> list[Key]:
        """It was deleted; returns the keys to look at: who was left behind."""
        self._cycles.discard(key)
        owner = self._disown(key)
        return [*([] if owner is None else [owner]), *self._versions.get(key, ())]

    def _disown(self, version: Key) -> Key | None:
        owner = self._owners.pop(version, None)
        if owner is not None:
            del self._versions[owner][version]
            if not self._versions[owner]:
                del self._versions[owner]
        return owner


def _named(status: Raw) -> Iterator[str]:
    serving = status.get("serving") or {}
    for part in (serving.get("stable"), serving.get("candidate"), status.get("rollout")):
        if part:
            yield str(part.get("version") or "")


def _ended(status: Raw) -> bool:
    # A word in rollout.retryDigests brings these back.
    again = any(
        one.get("type") == ConditionType.REJECTED
        and one.get("status") == "True"
        and one.get("reason") == Reason.ALREADY_REJECTED
        for one in status.get("conditions") or ()
    )
    return status.get("phase") in TERMINAL and not again


def rests(kind: str, body: Raw) -> bool:
    """Whether it looks as if nothing goes on in a cycle or version: then a look at what is known may do.

    A cycle whose Deployment or pointer people own is never at rest in this sense: that is not watched.
    """
    meta, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    if meta.get("deletionTimestamp") or status.get("observedGeneration") != meta.get("generation"):
        return False
    if not status.get("conditions"):
        return False
    if kind == VERSION_KIND:
        return status.get("phase") not in (None, *AT_WORK)
    serving, rollout, run = status.get("serving") or {}, status.get("rollout"), status.get("run")
    people_s = (spec.get("serving") or {}).get("workload") or (spec.get("promotion") or {}).get("mode") == "Git"
    going_on = (
        serving.get("candidate")
        or serving.get("retired")
        or (rollout and rollout.get("phase") != "Done")
        or (run and not run.get("finishedAt"))
        or (status.get("notifications") or {}).get("outbox")
    )
    return bool(serving.get("stable")) and not people_s and not going_on


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
