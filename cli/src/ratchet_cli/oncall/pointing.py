"""What a person decides about a version: to approve it, to point at it, to go back to one that served before.

Room: cli. Pure: a View in, a Plan out, or Refused by name with what to do instead.
"""

from ratchet_api.names import EXPORT_ANNOTATION, approval_annotation
from ratchet_api.promotion import Gate
from ratchet_api.version import ModelVersion
from ratchet_cli.oncall.actions import Patch, Plan, require_alive, spec_patch, undone_by
from ratchet_cli.oncall.errors import Refused
from ratchet_cli.oncall.view import View, is_root, stage_of

_BEFORE: dict[Gate, str] = {"Training": "it is trained", "Canary": "its canary", "Promotion": "it gets all sessions"}


def awaited_gate(view: View, version: ModelVersion) -> tuple[Gate, str] | None:
    """(gate, digest to name) that a version stands before and that a person has to open; None: there is none."""
    promotion, rollout = view.cycle.spec.promotion, view.rollout
    if promotion.mode != "Approval":
        return None
    gate: Gate | None = None
    digest = version.digest or ""
    if rollout is not None and rollout.version == version.metadata.name:
        gate = "Promotion" if rollout.weight < 100 and rollout.decision is None and not rollout.known_good else None
    elif version.status.phase == "Accepted" and version.status.outcome is None and not is_root(version):
        gate = "Canary"
    elif version.spec.dataset is not None and _untouched(version):
        gate, digest = "Training", version.spec.dataset.digest
    if gate is None or gate not in promotion.before or not digest:
        return None
    given = version.metadata.annotations.get(approval_annotation(gate), "").strip()
    return None if given == digest else (gate, digest)


def _untouched(version: ModelVersion) -> bool:
    """Whether its training has not begun."""
    waits = version.status.phase in ("Pending", "Training")
    return waits and version.adapter is None and stage_of(version, "train") is None


def approve(view: View, version: ModelVersion, digest: str | None) -> Plan:
    """The approval that the version waits for. `digest`: the one that the person has looked at. Raises Refused."""
    require_alive(view)
    name = version.metadata.name
    found = awaited_gate(view, version)
    if found is None:
        promotion = view.cycle.spec.promotion
        if promotion.mode != "Approval":
            raise Refused(f"promotion.mode of {view.name} is {promotion.mode}: {name} needs nobody's approval")
        gates = " and ".join(promotion.before)
        raise Refused(f"{name} ({version.status.phase}) waits for no approval now: it is asked for before {gates}")
    gate, wanted = found
    if digest is not None and digest.removeprefix("sha256:") != wanted.removeprefix("sha256:"):
        raise Refused(
            f"{digest} is not what waits before {gate}: {name} has {wanted}; look at it again before you approve"
        )
    seen = version.status.evaluation
    shown = (("target", seen.target), ("guardrail", seen.guardrail)) if seen is not None else ()
    evidence = ", ".join(f"{label} {text}" for label, text in shown if text)
    sentence = f"{name}: approved before {_BEFORE[gate]}, {wanted}" + (f"; evidence: {evidence}" if evidence else "")
    annotations = {approval_annotation(gate): wanted}
    return Plan(sentence, (Patch({"metadata": {"annotations": annotations}}, name),), next=_watch(view))


def export(view: View, version: ModelVersion, stamp: str) -> Plan:
    """Another export of the version, whatever became of it. Raises Refused."""
    require_alive(view)
    name, policy, status = version.metadata.name, view.cycle.spec.export, version.status.export
    if policy is None:
        raise Refused(f"{view.name} names no formats: write spec.export.formats first")
    if is_root(version) or version.adapter is None:
        raise Refused(f"{name} has no adapter, so there is nothing to export")
    if status is not None and status.work.finished_at is None:
        raise Refused(f"{name} is being exported already, by Job {status.work.job or 'to come'}")
    patch = Patch({"metadata": {"annotations": {EXPORT_ANNOTATION: stamp}}}, name)
    return Plan(f"{name}: exported as {', '.join(policy.formats)}", (patch,), next=_watch(view))


def promote(view: View, name: str) -> Plan:
    """spec.serving.version names this version. Raises Refused."""
    require_alive(view)
    version = _known(view, name)
    _not_pointed_at(view, name)
    if version.status.phase in ("Rejected", "Failed"):
        retry = view.where.ratchet(f"retry {name}")
        raise Refused(f"{name} is {version.status.phase.lower()}, and a pointer to it is not obeyed: type `{retry}`")
    stable = view.cycle.status.serving.stable
    if stable is not None and stable.version == name:
        how = "it serves already and stays"
    elif version.status.phase in ("Superseded", "Serving"):
        how = "it served before, so it returns without gate and steps, and bakes"
    elif version.status.phase == "Accepted":
        how = "it is accepted, so its rollout begins"
    else:
        how = f"it is {version.status.phase.lower()}, and is rolled out once it is accepted"
    return _point(view, name, how)


def rollback(view: View, name: str | None) -> Plan:
    """Back to a champion of before: spec.serving.version names it. Raises Refused."""
    require_alive(view)
    stable = view.cycle.status.serving.stable
    champions = [good.version for good in reversed(view.cycle.status.last_good)]
    before = [one for one in champions if stable is None or one != stable.version]
    if name is None:
        if view.rollout is not None:
            abort = view.where.ratchet(f"abort {view.name}")
            raise Refused(f"{view.rollout.version} is being rolled out: type `{abort}`, or name a version with --to")
        name = next((one for one in before if view.version(one) is not None), None)
        if name is None:
            raise Refused(f"{view.name} remembers no champion of before: name one with --to")
    version = _known(view, name)
    _not_pointed_at(view, name)
    if stable is not None and stable.version == name:
        raise Refused(f"{name} serves already: there is nothing to go back to")
    if name not in champions and not is_root(version):
        promote_it = view.where.ratchet(f"promote {view.name} {name}")
        raise Refused(f"{name} has never been champion: `{promote_it}` rolls it out, gate and steps included")
    return _point(view, name, "it served before, so it returns without gate and steps, and bakes")


def unpin(view: View) -> Plan:
    """spec.serving.version is taken out. Raises Refused."""
    require_alive(view)
    pointer = view.cycle.spec.serving.version
    if pointer is None:
        raise Refused(f"spec.serving.version of {view.name} is not set: every accepted version is rolled out already")
    sentence = f"{view.name}: spec.serving.version ({pointer}) is taken out; every accepted version is rolled out again"
    patch = spec_patch(view, {"serving": {"version": None}})
    return Plan(sentence, (patch,), undone_by(view, "no spec.serving.version"), _watch(view))


def _point(view: View, name: str, how: str) -> Plan:
    rollout = view.rollout
    sentence = f"{view.name}: spec.serving.version names {name}; {how}"
    if rollout is not None and rollout.version != name:
        sentence += f"; {rollout.version} goes back from {rollout.weight} % to 0 without blame"
    unpin_it = view.where.ratchet(f"unpin {view.name}")
    warnings = [f"no other version is rolled out from now on, until `{unpin_it}`"]
    if view.cycle.spec.suspend:
        warnings.append(f"{view.name} is suspended: nothing begins before it is resumed")
    warnings += undone_by(view, f"serving.version: {name}")
    return Plan(sentence, (spec_patch(view, {"serving": {"version": name}}),), tuple(warnings), _watch(view))


def _known(view: View, name: str) -> ModelVersion:
    version = view.version(name)
    if version is None:
        there = ", ".join(v.metadata.name for v in view.versions) or "none"
        raise Refused(f"{view.name} has no version {name} (there are: {there})")
    return version


def _not_pointed_at(view: View, name: str) -> None:
    if view.cycle.spec.serving.version == name:
        explain = view.where.ratchet(f"explain {view.name}")
        raise Refused(f"spec.serving.version names {name} already: `{explain}` says how far it is")


def _watch(view: View) -> str:
    return view.where.ratchet(f"get {view.name} -w")
