"""Where a version comes from: parents back to the base model, what each was made of, and what proved it.

Room: cli. Pure.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from rich.text import Text
from rich.tree import Tree

from ratchet_api.conditions import find
from ratchet_api.reasons import ConditionType
from ratchet_api.version import ModelVersion
from ratchet_cli.oncall.tree import suites_table
from ratchet_cli.oncall.view import View, is_root
from ratchet_cli.oncall.words import ago


def chain(view: View, version: ModelVersion) -> tuple[list[ModelVersion], str | None]:
    """The version and its parents, the youngest first, and the name of a parent that is not there any more."""
    found = [version]
    seen = {version.metadata.name}
    while (name := parent_of(found[-1])) is not None:
        following = view.version(name)
        if following is None or name in seen:
            return found, name
        seen.add(name)
        found.append(following)
    return found, None


def parent_of(version: ModelVersion) -> str | None:
    """The version that served when this one was made."""
    return version.status.provenance.parent or version.spec.parent


def lineage_tree(view: View, version: ModelVersion, now: datetime) -> Tree:
    """The chain as nested branches, each with recipe and evidence."""
    found, lost = chain(view, version)
    root = Tree(_title(found[0], view, now), guide_style="dim")
    branch = root
    for index, one in enumerate(found):
        if index:
            branch = branch.add(_title(one, view, now))
        for line in _recipe(view, one):
            branch.add(line)
        if one.status.evaluation is not None:
            branch.add(f"evidence, against {one.status.evaluation.champion}").add(suites_table(one))
        for said in _outcome(view, one, now):
            branch.add(said)
    if lost is not None:
        branch.add(Text(f"{lost}: not in this namespace any more", style="yellow"))
    return root


def document(view: View, version: ModelVersion) -> list[dict[str, Any]]:
    """The chain for programs: a dict for each version, the youngest first."""
    return [
        {
            "name": one.metadata.name,
            "phase": one.status.phase,
            "parent": parent_of(one),
            "run": one.spec.run,
            "base": _base(view, one),
            "dataset": one.spec.dataset.dump() if one.spec.dataset is not None else None,
            "adapter": one.adapter.dump() if one.adapter is not None else None,
            "champion": one.status.evaluation.champion if one.status.evaluation is not None else None,
            "suites": [suite.dump() for suite in one.status.evaluation.suites]
            if one.status.evaluation is not None
            else [],
            "provenance": one.status.provenance.dump(),
            "outcome": one.status.outcome,
        }
        for one in chain(view, version)[0]
    ]


def _title(version: ModelVersion, view: View, now: datetime) -> Text:
    made = f", made {ago(version.metadata.creation_timestamp, now)}" if version.metadata.creation_timestamp else ""
    who = (
        "the bare base model"
        if is_root(version)
        else "by a person"
        if version.spec.run is None
        else f"by run {version.spec.run}"
    )
    return Text.assemble((version.metadata.name, "bold"), f"  {version.status.phase}, {who}{made}")


def _base(view: View, version: ModelVersion) -> dict[str, Any]:
    base = version.spec.base_model or view.cycle.spec.base_model
    return {"uri": base.uri, "digest": version.status.provenance.base_model_digest or base.digest}


def _recipe(view: View, version: ModelVersion) -> list[str]:
    base = _base(view, version)
    lines = [f"base     {base['uri']}" + (f"  {base['digest']}" if base["digest"] else "")]
    if version.spec.dataset is not None:
        seen = version.status.training
        rows = f", {seen.examples} examples" if seen is not None and seen.examples is not None else ""
        lines.append(f"dataset  {version.spec.dataset.digest}{rows}")
    if version.adapter is not None:
        how = "" if version.spec.adapter is None else ", brought finished"
        lines.append(f"adapter  {version.adapter.digest}{how}")
    if version.status.provenance.tools:
        lines.append(
            "tools    "
            + ", ".join(f"{name} {number}" for name, number in sorted(version.status.provenance.tools.items()))
        )
    return lines


def _outcome(view: View, version: ModelVersion, now: datetime) -> Sequence[Text]:
    lines = []
    gate = find(version.status.conditions, ConditionType.ACCEPTED)
    if gate is not None and gate.message and not is_root(version):
        style = "" if gate.status == "True" else "red"
        lines.append(Text(f"gate     {gate.reason}: {gate.message}", style=style))
    rollout = view.cycle.status.rollout
    for entry in view.cycle.status.history:
        if entry.version == version.metadata.name and entry.outcome != "GateRejected":
            style = "green" if entry.outcome == "Promoted" else "red"
            lines.append(Text(f"rollout  {entry.outcome} {ago(entry.at, now)}: {entry.message}", style=style))
    if rollout is not None and rollout.version == version.metadata.name and rollout.phase != "Done":
        lines.append(Text(f"rollout  {rollout.phase}, {rollout.weight} %", style="cyan"))
    good = next((g for g in view.cycle.status.last_good if g.version == version.metadata.name), None)
    if good is not None:
        lines.append(
            Text(
                f"champion since {ago(good.at, now)}"
                if version.status.phase == "Serving"
                else f"became champion {ago(good.at, now)}"
            )
        )
    return lines
