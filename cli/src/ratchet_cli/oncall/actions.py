"""What a person may ask for: decided here against the present state, as a sentence and the requests that do it.

Room: cli. Pure: a View in, a Plan out, or Refused by name with what to do instead.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ratchet_api.cycle import Rejected
from ratchet_api.names import ABORT_ANNOTATION, GROUP_VERSION, RUN_ANNOTATION, VERSION_KIND, child_name
from ratchet_api.version import ModelVersion
from ratchet_cli.oncall import proposals
from ratchet_cli.oncall.errors import Refused
from ratchet_cli.oncall.view import View, is_root

_GITOPS_LABELS = {
    "kustomize.toolkit.fluxcd.io/name": "the Flux Kustomization",
    "helm.toolkit.fluxcd.io/name": "the Flux HelmRelease",
    "argocd.argoproj.io/instance": "the Argo CD application",
}
_ARGO_TRACKING = "argocd.argoproj.io/tracking-id"


@dataclass(frozen=True)
class Patch:
    """A JSON merge patch of the cycle, or of the version that is named."""

    body: Mapping[str, Any]
    version: str = ""


@dataclass(frozen=True)
class Create:
    """A new ModelVersion."""

    body: Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """What will happen, in words and as requests in this order."""

    sentence: str
    requests: tuple[Patch | Create, ...]
    warnings: tuple[str, ...] = ()
    next: str = field(default="")
    """The command that shows what comes of it."""


def run(view: View, stamp: str) -> Plan:
    """A run, now. `stamp` is any value that the annotation has not had yet. Raises Refused."""
    require_alive(view)
    name = view.name
    if view.cycle.spec.suspend:
        raise Refused(f"{name} is suspended, and nothing starts: type `{view.where.ratchet(f'resume {name}')}` first")
    if view.run_is_asked_for:
        raise Refused(f"a run of {name} is asked for already and begins as soon as it can: see `{_watch(view)}`")
    present = view.run
    after = "" if present is None else f" as soon as run {present.number} ({present.stage}) has ended"
    sentence = f"{name}: a run starts{after or ' now'}: it curates, trains and evaluates a new version"
    body = {"metadata": {"annotations": {RUN_ANNOTATION: stamp}}}
    return Plan(sentence, (Patch(body),), next=_watch(view))


def abort(view: View, version: str | None) -> Plan:
    """The candidate back to weight 0, now. Raises Refused."""
    require_alive(view)
    rollout, name = view.rollout, view.name
    if rollout is None:
        raise Refused(_nothing_to_abort(view, version))
    if version is not None and version != rollout.version:
        raise Refused(
            f"{version} is not rolled out now, {rollout.version} is: type `{view.where.ratchet(f'abort {name}')}` to "
            f"take that one back"
        )
    if rollout.phase == "RollingBack":
        raise Refused(f"{rollout.version} is being taken back already: see `{_watch(view)}`")
    if view.cycle.metadata.annotations.get(ABORT_ANNOTATION) == rollout.version:
        raise Refused(f"the abort of {rollout.version} is asked for already: see `{_watch(view)}`")
    stable = view.cycle.status.serving.stable
    warnings = []
    if stable is not None and stable.ready_replicas == 0:
        warnings.append(
            f"{stable.version}, which would take over, has no ready pod: the split is kept until it has one, because a "
            "rollback must not become an outage"
        )
    back = f" and {stable.version} takes all sessions" if stable is not None else ""
    sentence = (
        f"{name}: {rollout.version} goes from {rollout.weight} % to 0{back}; its digest is rejected for good, until "
        f"`{view.where.ratchet(f'retry {rollout.version}')}`"
    )
    body = {"metadata": {"annotations": {ABORT_ANNOTATION: rollout.version}}}
    return Plan(sentence, (Patch(body),), tuple(warnings), _watch(view))


def _nothing_to_abort(view: View, version: str | None) -> str:
    named, run = view.version(version or (view.run.version if view.run is not None else None)), view.run
    if version is not None and named is None:
        return f"{view.name} has no version {version}"
    if named is not None and named.status.phase in ("Pending", "Training", "Evaluating", "Accepted"):
        delete = view.where.kubectl(f"delete mv {named.metadata.name}")
        return f"{named.metadata.name} is not rolled out yet ({named.status.phase}): `{delete}` ends it before it is"
    if named is not None:
        return f"{named.metadata.name} is not rolled out now ({named.status.phase}): there is nothing to take back"
    if run is not None:
        pause = view.where.ratchet(f"pause {view.name}")
        return f"{view.name} rolls nothing out now (run {run.number} is {run.stage}): `{pause}` keeps it from going on"
    return f"{view.name} rolls nothing out now: there is nothing to take back"


def pause(view: View) -> Plan:
    """spec.suspend: true. Raises Refused."""
    require_alive(view)
    name, rollout, working = view.name, view.rollout, view.run
    if view.cycle.spec.suspend:
        raise Refused(f"{name} is suspended already: `{view.where.ratchet(f'resume {name}')}` ends it")
    parts = ["no run starts"]
    if rollout is not None:
        parts.append(f"{rollout.version} stays at {rollout.weight} % (a failing check still rolls it back)")
    elif working is not None:
        parts.append(f"run {working.number} does not go on after what runs now")
    sentence = f"{name} is suspended: {', '.join(parts)}; serving goes on"
    return Plan(sentence, (spec_patch(view, {"suspend": True}),), undone_by(view, "spec.suspend: true"), _get(view))


def resume(view: View) -> Plan:
    """spec.suspend: false. Raises Refused."""
    require_alive(view)
    name, rollout, working = view.name, view.rollout, view.run
    if not view.cycle.spec.suspend:
        raise Refused(f"{name} is not suspended: there is nothing to resume; `{_get(view)}` shows what it does")
    parts = ["runs start again"]
    if rollout is not None:
        parts.append(f"{rollout.version} goes on from {rollout.weight} %")
    elif working is not None:
        parts.append(f"run {working.number} goes on")
    sentence = f"{name} is resumed: {', '.join(parts)}"
    return Plan(sentence, (spec_patch(view, {"suspend": False}),), undone_by(view, "spec.suspend: false"), _watch(view))


def retry(view: View, version: ModelVersion | None, stamp: str) -> Plan:
    """Another try of what has failed: of a version under a new name, or of the last run. Raises Refused."""
    require_alive(view)
    if version is None:
        return _retry_run(view, stamp)
    name, status = version.metadata.name, version.status
    if is_root(version):
        raise Refused(f"{name} is the bare base model: it needs no try")
    if status.phase in ("Serving", "Superseded"):
        raise Refused(f"{name} has served ({status.phase}): there is nothing to try again")
    entry = next((r for r in reversed(view.cycle.status.rejected) if r.digest == version.digest), None)
    refused = proposals.closed(view.cycle, name)
    if status.phase not in ("Rejected", "Failed") and status.outcome is None and refused is None:
        raise Refused(f"{name} is on its way ({status.phase}): there is nothing to try again; see `{_watch(view)}`")
    again = _again(view, version)
    requests: tuple[Patch | Create, ...] = (Create(again),)
    warnings: tuple[str, ...] = ()
    words = ""
    if entry is not None and version.digest is not None:
        requests, warnings, words = _unlocked(view, entry, version.digest, again)
    how = (
        "is proven again, and rolled out if it passes" if "adapter" in again["spec"] else "is trained and proven again"
    )
    if refused is not None:
        how = "is proven again, and proposed anew if it passes"
        place = proposals.place(refused)
        warnings = (*warnings, f"{place} stays closed; reopen it if {name} is to be promoted without another proof")
    sentence = f"{view.name}: the version {again['metadata']['name']} is made from {name}; it {how}{words}"
    if view.cycle.spec.suspend:
        warnings = (*warnings, f"{view.name} is suspended: nothing is rolled out before it is resumed")
    return Plan(sentence, requests, warnings, view.where.ratchet(f"explain {again['metadata']['name']}"))


def _retry_run(view: View, stamp: str) -> Plan:
    last = view.cycle.status.run
    if view.run is not None and last is not None:
        raise Refused(f"run {last.number} of {view.name} goes on ({last.stage}): there is nothing to try again")
    if last is None:
        raise Refused(f"{view.name} has had no run yet: type `{view.where.ratchet(f'run {view.name}')}`")
    if last.outcome == "Promoted":
        raise Refused(
            f"run {last.number} of {view.name} ended well: type `{view.where.ratchet(f'run {view.name}')}` for another"
        )
    plan = run(view, stamp)
    return Plan(f"{plan.sentence} (run {last.number} ended as {last.outcome})", plan.requests, plan.warnings, plan.next)


def _again(view: View, version: ModelVersion) -> dict[str, Any]:
    """The same recipe or adapter as a new object: a version's spec cannot change, and it is rolled out once."""
    taken = {other.metadata.name for other in view.versions}
    number = 2
    while (name := child_name(version.metadata.name, f"try{number}")) in taken:
        number += 1
    spec = version.spec.model_copy(update={"run": None, "champion": None})
    if version.adapter is not None:
        # It is trained already: only the proof is to be repeated.
        spec = spec.model_copy(update={"adapter": version.adapter, "dataset": None, "training": None})
    # Only what somebody wrote: defaults are the API server's, which may know other fields than we do.
    written = spec.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)
    metadata = {"name": name, "namespace": version.metadata.namespace}
    return {"apiVersion": GROUP_VERSION, "kind": VERSION_KIND, "metadata": metadata, "spec": written}


def _unlocked(
    view: View, entry: Rejected, digest: str, again: Mapping[str, Any]
) -> tuple[tuple[Patch | Create, ...], tuple[str, ...], str]:
    """The requests that also name a rejected digest in rollout.retryDigests."""
    named = [str(one) for one in view.cycle.spec.rollout.retry_digests]
    if digest in named and entry.retried:
        edit = view.where.kubectl(f"edit cycle {view.name}")
        raise Refused(
            f"{entry.version} was tried again already and rejected again ({entry.reason}: {entry.message}); to try it "
            f"once more, take {digest} out of spec.rollout.retryDigests by `{edit}`, and type this again"
        )
    if digest in named:
        return (Create(again),), (), ""
    patch = spec_patch(view, {"rollout": {"retryDigests": [*named, digest]}})
    words = f"; its digest, rejected as {entry.reason}, is named in spec.rollout.retryDigests"
    return (patch, Create(again)), undone_by(view, f"{digest} in spec.rollout.retryDigests"), words


def spec_patch(view: View, spec: Mapping[str, Any]) -> Patch:
    """A change of the spec that was looked at, and of no other."""
    return Patch({"metadata": {"resourceVersion": view.cycle.metadata.resource_version}, "spec": dict(spec)})


def undone_by(view: View, what: str) -> tuple[str, ...]:
    """Who may undo a change of the spec."""
    meta = view.cycle.metadata
    for label, tool in _GITOPS_LABELS.items():
        if owner := meta.labels.get(label):
            return (f"{tool} {owner} keeps this cycle and may undo it: write {what} in Git too",)
    if owner := meta.annotations.get(_ARGO_TRACKING, "").partition(":")[0]:
        return (f"the Argo CD application {owner} keeps this cycle and may undo it: write {what} in Git too",)
    return (f"if Git keeps this cycle, it may undo this: write {what} there too",)


def require_alive(view: View) -> None:
    """Raises Refused for a cycle that is being deleted."""
    if view.cycle.metadata.deletion_timestamp is not None:
        raise Refused(f"{view.name} is being deleted: nothing can be asked of it any more")


def _watch(view: View) -> str:
    return view.where.ratchet(f"get {view.name} -w")


def _get(view: View) -> str:
    return view.where.ratchet(f"get {view.name}")
