"""What the watches have brought, as it was last seen; and reads that are answered from it.

Room: operator, clients. `Mirror` is memory only; `Looking` sends on what it cannot answer, if it is a read; `Telling`
sends on everything, and tells of the objects that come back, so that a mirror is never behind what this process knows.

Nothing is ever written because of a mirror: it may be late. A pass that looks at it and finds something to do is
begun anew with reads of the API server (see `Unsettled`), so that a mirror can at worst hide news for a while, until
the next event, or the next list (`Pace.relist`).

Objects are kept as the bytes of their JSON: a tenth of what they need as Python objects, for thousands that rest.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ratchet_api.names import CYCLE_KIND, CYCLE_LABEL, VERSION_KIND
from ratchet_operator.clients.kube import RESOURCES
from ratchet_operator.clients.transport import JSON, Transport

MIRRORED = {
    CYCLE_KIND: "",
    VERSION_KIND: "",
    "Deployment": CYCLE_LABEL,
    "Pod": CYCLE_LABEL,
    "HorizontalPodAutoscaler": "",
}
"""Kind -> label that an object must have to be watched."""
_KIND_OF = {(r.api_version, r.plural): kind for kind, r in RESOURCES.items() if kind in MIRRORED}
Where = tuple[str, str, str]


class Unsettled(Exception):
    """A pass that only looks has found something to write."""


@dataclass(frozen=True, slots=True)
class _Entry:
    revision: int
    """metadata.resourceVersion; 0 if it is no number."""
    body: bytes


class Mirror:
    """Objects of the kinds in MIRRORED, grouped by the cycle that they belong to."""

    def __init__(self) -> None:
        self._groups: dict[Where, dict[str, _Entry]] = {}
        """(kind, namespace, cycle) -> name -> entry. A group of '' holds what belongs to no cycle."""
        self._cycles: dict[Where, str] = {}
        """(kind, namespace, name) -> cycle."""

    def note(self, kind: str, body: JSON) -> bool:
        """It was seen like this; False when it is known like this, or newer, already."""
        meta = body["metadata"]
        where, cycle = (kind, meta["namespace"], meta["name"]), _cycle(kind, body)
        revision = _revision(meta)
        known = self._entry(where)
        if known is not None and revision and known.revision >= revision:
            return False
        if known is not None and self._cycles[where] != cycle:
            self._drop(where)
        self._cycles[where] = cycle
        self._groups.setdefault((kind, meta["namespace"], cycle), {})[meta["name"]] = _Entry(
            revision, _packed(kind, body)
        )
        return True

    def forget(self, kind: str, body: JSON) -> bool:
        """It was seen to be deleted; False when a later one of its name is known, or none."""
        meta = body["metadata"]
        where = (kind, meta["namespace"], meta["name"])
        known = self._entry(where)
        if known is None or (known.revision > _revision(meta) > 0):
            return False
        self._drop(where)
        return True

    def known(self, kind: str, namespace: str = "") -> dict[Where, int]:
        """All of a kind, in one namespace or in all, with their revisions."""
        return {
            (kind, place, name): entry.revision
            for (found, place, _), group in self._groups.items()
            if found == kind and namespace in ("", place)
            for name, entry in group.items()
        }

    def revision(self, where: Where) -> int | None:
        """Of (kind, namespace, name), as it is known."""
        entry = self._entry(where)
        return None if entry is None else entry.revision

    def get(self, kind: str, namespace: str, name: str) -> JSON | None:
        """The object."""
        entry = self._entry((kind, namespace, name))
        return None if entry is None else dict(json.loads(entry.body))

    def select(self, kind: str, namespace: str, cycle: str) -> list[JSON]:
        """All of a cycle, by name."""
        group = self._groups.get((kind, namespace, cycle), {})
        return [json.loads(group[name].body) for name in sorted(group)]

    def _entry(self, where: Where) -> _Entry | None:
        cycle = self._cycles.get(where)
        return None if cycle is None else self._groups[where[0], where[1], cycle][where[2]]

    def _drop(self, where: Where) -> None:
        kind, namespace, name = where
        group = (kind, namespace, self._cycles.pop(where))
        del self._groups[group][name]
        if not self._groups[group]:
            del self._groups[group]


class Looking:
    """A Transport that answers reads from a mirror as far as it can, and refuses to write."""

    def __init__(self, mirror: Mirror, inner: Transport) -> None:
        self._mirror = mirror
        self._inner = inner

    async def request(
        self,
        method: str,
        path: str,
        body: JSON | None = None,
        query: Mapping[str, str] | None = None,
        content_type: str | None = None,
        accept: str | None = None,
    ) -> JSON:
        """See Transport. Raises Unsettled for a write."""
        if method != "get":
            raise Unsettled(f"{method} {path}")
        found = self._answer(path, query or {})
        return (
            found if found is not None else await self._inner.request(method, path, body, query, content_type, accept)
        )

    def _answer(self, path: str, query: Mapping[str, str]) -> JSON | None:
        kind, namespace, name = _parsed(path)
        if kind is None or not namespace:
            return None
        if name:
            # What has no label of ours is not watched, and what is not here may be there.
            return self._mirror.get(kind, namespace, name)
        if kind == "HorizontalPodAutoscaler":
            return None if query else {"items": self._mirror.select(kind, namespace, "")}
        labels = dict(_pairs(query.get("labelSelector", "")))
        fields = dict(_pairs(query.get("fieldSelector", "")))
        cycle = fields.get("spec.cycle") if kind == VERSION_KIND else labels.get(CYCLE_LABEL)
        if cycle is None or fields.keys() - {"spec.cycle"}:
            return None
        found = self._mirror.select(kind, namespace, cycle)
        return {"items": [one for one in found if labels.items() <= (one["metadata"].get("labels") or {}).items()]}


class Telling:
    """A Transport that tells `seen` of every whole object of a mirrored kind that an answer brings.

    The answer to a write of our own comes before its event does. Without it, a look soon after could take a cycle for
    one at rest that this very process has set going.
    """

    def __init__(self, inner: Transport, seen: Callable[[str, JSON], None]) -> None:
        self._inner = inner
        self._seen = seen

    async def request(
        self,
        method: str,
        path: str,
        body: JSON | None = None,
        query: Mapping[str, str] | None = None,
        content_type: str | None = None,
        accept: str | None = None,
    ) -> JSON:
        """See Transport."""
        answer = await self._inner.request(method, path, body, query, content_type, accept)
        if accept is None and method in ("get", "put", "patch"):
            kind, _, name = _parsed(path.removesuffix("/status"))
            if kind is not None and name:
                self._seen(kind, answer)
        return answer


def _parsed(path: str) -> tuple[str | None, str, str]:
    """(kind, namespace, name) of a path; kind None for what is not mirrored, and for parts of objects."""
    pieces = path.strip("/").split("/")
    group = 2 if pieces[0] == "api" else 3
    rest = pieces[group:]
    if len(rest) not in (3, 4) or rest[0] != "namespaces":
        return None, "", ""
    return _KIND_OF.get(("/".join(pieces[1:group]), rest[2])), rest[1], rest[3] if len(rest) == 4 else ""


def _pairs(selector: str) -> Iterator[tuple[str, str]]:
    for term in filter(None, selector.split(",")):
        key, _, value = term.partition("=")
        yield key, value


def _revision(meta: Mapping[str, Any]) -> int:
    found = str(meta.get("resourceVersion") or "")
    return int(found) if found.isdigit() else 0


def _cycle(kind: str, body: JSON) -> str:
    if kind == CYCLE_KIND:
        return str(body["metadata"]["name"])
    if kind == VERSION_KIND:
        return str((body.get("spec") or {}).get("cycle") or "")
    return str((body["metadata"].get("labels") or {}).get(CYCLE_LABEL) or "")


def _packed(kind: str, body: JSON) -> bytes:
    """Without what no look asks for: of managedFields, only who says how many pods an arm has."""
    kept = {key: value for key, value in body.items() if key not in ("apiVersion", "kind", "metadata")}
    dropped = () if kind == "Deployment" else ("managedFields",)
    meta = {key: value for key, value in body["metadata"].items() if key not in dropped}
    if kind == "Pod":
        kept.pop("spec", None)
    return json.dumps({"metadata": meta} | kept, separators=(",", ":")).encode()
