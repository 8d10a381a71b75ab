"""Both kinds in every state, as the API server returns them after the operator's own code has summarised them.

The stories are those of tests/cli/oncall_states.py and some more; conditions, phases and outcomes are computed anew by
the operator's domain and its version pass, so that no fixture can say what the operator would not.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, cast

from tests.cli.oncall_states import (
    BACK,
    GENERATION,
    GOOD,
    NOW,
    OLD,
    REJECTED,
    ROOT,
    SERVES,
    STATES,
    arm,
    before,
    condition,
    cycle,
    digest,
    proven,
    rollout,
    run,
    split,
    stage,
    version,
)

from ratchet_api.base import format_time
from ratchet_api.conditions import Condition, find, merged
from ratchet_api.cycle import Arm, ImprovementCycle
from ratchet_api.names import GROUP_VERSION
from ratchet_api.reasons import ConditionType, Reason
from ratchet_api.version import ModelVersion
from ratchet_cli.oncall.view import View
from ratchet_operator.domain import pointer, versions
from ratchet_operator.domain.phases import (
    CycleFacts,
    Remark,
    cycle_conditions,
    cycle_phase,
    rollout_goes_on,
)
from ratchet_operator.reconcile.context import Context
from ratchet_operator.reconcile.version import Stop, VersionPass

Document = dict[str, Any]


def _remark(conditions: list[Condition], kind: ConditionType) -> Remark | None:
    """What the story says in a condition that is True."""
    found = find(conditions, kind)
    return Remark(Reason(found.reason), found.message) if found is not None and found.status == "True" else None


def _with_digests(view: View) -> View:
    """Arms that serve the adapters of their versions."""
    serving = view.cycle.status.serving

    def right(found: Arm | None) -> Arm | None:
        of = view.version(found.version) if found is not None else None
        return found if found is None or of is None else found.model_copy(update={"digest": of.digest or ""})

    arms = serving.model_copy(update={"stable": right(serving.stable), "candidate": right(serving.candidate)})
    status = view.cycle.status.model_copy(update={"serving": arms})
    return replace(view, cycle=view.cycle.model_copy(update={"status": status}))


def _with_cycle(view: View) -> View:
    """The cycle's conditions and phase, computed from its facts."""
    found = view.cycle
    if not found.status.conditions:
        return view
    status, stable = found.status, found.status.serving.stable
    asked = pointer.Pointer()
    if stable is not None and not rollout_goes_on(status.rollout):
        asked = pointer.follow(found, view.versions)
    waits = _remark(status.conditions, ConditionType.RECONCILING)
    unusual = waits if waits is not None and waits.reason in (Reason.UNSCHEDULABLE, Reason.PENDING) else None
    facts = CycleFacts(
        suspended=found.spec.suspend,
        champion=stable.version if stable is not None else None,
        ready=stable.ready_replicas if stable is not None else 0,
        replicas=found.spec.serving.replicas,
        run=status.run,
        rollout=status.rollout,
        stalled=_remark(status.conditions, ConditionType.STALLED) or asked.stalled,
        waiting=asked.waiting or unusual,
    )
    conditions = cycle_conditions(status.conditions, facts, status.observed_generation, NOW)
    seen = status.model_copy(update={"conditions": conditions, "phase": cycle_phase(facts)})
    return replace(view, cycle=found.model_copy(update={"status": seen}))


def _summarised(found: ModelVersion, of: ImprovementCycle) -> ModelVersion:
    """The version after the operator's own pass over it. What a Job or a gateway would have to be asked for is taken
    from the story."""
    found = found.model_copy(update={"metadata": found.metadata.model_copy(update={"generation": 1})})
    told = found.status.conditions
    # The pass is driven in its parts that ask nobody, so it needs no context.
    one = VersionPass(cast(Context, None), found, of, NOW)
    standing = versions.standing(found, of)
    try:
        if standing.next is None:
            one._decide().send(None)
        elif standing.next == "train" and versions.stage(found, "train") is None and found.spec.dataset is not None:
            one._unapproved(of)
    except StopIteration:
        pass
    except Stop as stop:
        one.stalled, one.waiting = stop.stalled, stop.waiting
    ends = standing.rejected or standing.failed or standing.returned
    one.stalled = one.stalled or (None if ends else _remark(told, ConditionType.STALLED))
    failed = next((entry for entry in found.status.stages if entry.retry_at is not None), None)
    if failed is not None:
        one.waiting = Remark(Reason(failed.reason), f"{failed.stage}: {failed.message}")
    one._summarise()
    return one.version


def as_written(view: View) -> View:
    """The view after the operator's pass over the cycle and over each of its versions."""
    view = _with_cycle(_with_digests(view))
    return replace(view, versions=tuple(_summarised(found, view.cycle) for found in view.versions))


def document(found: ImprovementCycle | ModelVersion, *, defaults: bool = False) -> Document:
    """The object as `kubectl get -o yaml` shows it. `defaults`: with the spec's defaults, which the CRD fills in."""
    meta = found.metadata
    metadata: Document = {"name": meta.name, "namespace": meta.namespace, "generation": meta.generation}
    metadata["resourceVersion"] = meta.resource_version or "77"
    for key, value in (("annotations", meta.annotations), ("labels", meta.labels)):
        if value:
            metadata[key] = dict(value)
    if meta.creation_timestamp is not None:
        metadata["creationTimestamp"] = meta.creation_timestamp.strftime("%Y-%m-%dT%H:%M:%SZ")
    if meta.deletion_timestamp is not None:
        metadata["deletionTimestamp"] = format_time(meta.deletion_timestamp)
    spec = found.spec.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=not defaults)
    seen = bool(found.status.conditions)
    status = found.status.dump() if seen else {"observedGeneration": 0}
    whole = {"apiVersion": GROUP_VERSION, "kind": found.kind, "metadata": metadata, "spec": spec, "status": status}
    return cast(Document, json.loads(json.dumps(whole)))


def _pinned(name: str) -> Mapping[str, Any]:
    return {"serving": {"replicas": 2, "version": name}}


def _told(of: ImprovementCycle, *found: ModelVersion) -> View:
    return View(of, (ROOT, STATES["idle"].versions[1], *found))


def _further() -> dict[str, View]:
    """What the on-call pages do not show."""
    person = {"promotion": {"mode": "Approval", "before": ["Training", "Canary", "Promotion"]}}
    back = STATES["rolled-back"]
    harmed = back.versions[2]
    old = condition("Accepted", True, "GatePassed", "house-rules +6.2 points, lower bound +4.2", days=8)
    lapsed = proven("Accepted").model_copy(
        update={
            "status": proven("Accepted").status.model_copy(
                update={"conditions": [Condition.model_validate(old | {"observedGeneration": 1})]}
            )
        }
    )
    returned = {
        "outcome": "Returned",
        "reason": "HoldExpired",
        "message": "held for 6h: errors: candidate: Prometheus does not answer",
        "at": before(minutes=9),
    }
    settings = stage(
        "train", began=20, ended=10, reason="UserError", message="training.microBatch: 3 does not divide 8"
    )
    evaluating = version(
        "assistant-7", "Evaluating", condition("Reconciling", True, "Evaluating"),
        stages=[stage("train", began=110, ended=48), stage("evaluate", began=48)],
        artifacts={"adapter": {"uri": "s3://ratchet/assistant/versions/assistant-7/0/adapter", "digest": digest("7")}},
    )  # fmt: skip
    again = proven("Rejected", artifacts={"adapter": {"uri": "s3://ratchet/a", "digest": digest("7")}})
    again = again.model_copy(
        update={
            "metadata": again.metadata.model_copy(update={"name": "assistant-7-try2", "uid": "again"}),
            "status": again.status.model_copy(
                update={
                    "conditions": merged(
                        [], ConditionType.REJECTED, True, Reason.ALREADY_REJECTED,
                        "this adapter was rejected as assistant-7", 1, NOW,
                    )
                }
            ),
        }
    )  # fmt: skip
    failed = run("Done", outcome="Failed", message="train: UserError", finishedAt=before(minutes=9))
    champions = [
        {"version": "assistant-5", "digest": digest("5"), "at": before(days=14)},
        {"version": "assistant-6", "digest": digest("6"), "at": before(days=7)},
    ]
    nowhere = condition("Stalled", True, "MissingBaseModel", "baseModel.uri: there is nothing at hf://a/b", minutes=4)
    crashed = condition("Ready", False, "StableDegraded")
    return {
        "pointer-rolled-back": _told(
            cycle("Idle", SERVES, spec=_pinned("assistant-7"), history=[*OLD, BACK], rejected=REJECTED,
                  run=back.cycle.status.run, rollout=back.cycle.status.rollout),
            harmed,
        ),
        "pointer-missing": _told(cycle("Idle", SERVES, spec=_pinned("assistant-9"))),
        "pointer-evaluating": _told(
            cycle("Idle", SERVES, spec=_pinned("assistant-7"), run=run("Evaluating")), evaluating
        ),
        "pointer-canary": _told(
            cycle("Canary", SERVES, spec=_pinned("assistant-7"), serving=split(25),
                  rollout=rollout("Canary", 25, GOOD)),
            proven("Canary"),
        ),
        "pointer-followed": _told(
            cycle("Idle", SERVES, spec=_pinned("assistant-7"), serving={"stable": arm("assistant-7", 100)},
                  lastGood=[*champions, {"version": "assistant-7", "digest": digest("7"), "at": before(days=1)}],
                  rollout=rollout("Done", 100, GOOD, settled=True)),
            proven("Serving", condition("Serving", True, "Promoted"), outcome="Promoted"),
        ),
        "pointer-approval": _told(
            cycle("Idle", SERVES, spec={**_pinned("assistant-7"), **person}), proven("Accepted")
        ),
        "approval-expired": _told(cycle("Idle", SERVES, spec=person), lapsed),
        "hold-expired": _told(
            cycle("Idle", SERVES, rollout=rollout("Done", 0, GOOD, decision=returned, settled=True),
                  run=run("Done", outcome="Returned", message=returned["message"], finishedAt=before(minutes=9))),
            proven("Accepted", outcome="Returned"),
        ),
        "training-failed": _told(
            cycle("Idle", SERVES, run=failed), version("assistant-7", "Failed", stages=[settings])
        ),
        "already-rejected": _told(
            cycle("Idle", SERVES, history=[*OLD, BACK], rejected=REJECTED, run=back.cycle.status.run,
                  rollout=back.cycle.status.rollout),
            harmed, again,
        ),
        "partly-ready": _told(cycle("Idle", SERVES, serving={"stable": arm("assistant-6", 100, ready=1)})),
        "aborting": _told(
            cycle("Canary", SERVES, serving=split(25), rollout=rollout("Canary", 25, GOOD), run=run("RollingOut"),
                  meta={"annotations": {"ratchet.dev/abort": "assistant-7"}}),
            proven("Canary"),
        ),
        "first-run-stalled": View(
            cycle("Stalled", condition("Ready", False, "Initializing"), nowhere, history=[], lastGood=[],
                  serving={"stable": arm("assistant-0", 100, seen=None, ready=0)}),
            (version("assistant-0", "Accepted"),),
        ),
        "crashed-canary": _told(
            cycle("Canary", crashed, run=run("RollingOut"), rollout=rollout("Canary", 25, GOOD),
                  serving=split(25) | {"stable": arm("assistant-6", 75, ready=0)}),
            proven("Canary"),
        ),
        "earlier-champions": _told(cycle("Idle", SERVES, lastGood=champions)),
        "deleted": _told(
            cycle("Idle", SERVES, meta={"deletionTimestamp": format_time(NOW - timedelta(seconds=5))})
        ),
    }  # fmt: skip


VIEWS: dict[str, View] = {name: as_written(view) for name, view in {**STATES, **_further()}.items()}
"""Every state by its name."""
assert GENERATION > 1, "a status that has not been looked at says 0"


def subjects(view: View) -> tuple[ModelVersion, ...]:
    """The versions that a state is about: all but those that every state has."""
    return view.versions[2:]


def _versions() -> dict[str, ModelVersion]:
    found = {name: subjects(view)[-1] for name, view in VIEWS.items() if subjects(view)}
    idle, first = VIEWS["idle"], VIEWS["initializing"]
    unseen = STATES["idle"].versions[1].model_copy(update={"status": type(ROOT.status)()})
    unseen = unseen.model_copy(update={"metadata": unseen.metadata.model_copy(update={"generation": 1})})
    return found | {
        "base-initializing": first.versions[0],
        "base-superseded": idle.versions[0],
        "champion": idle.versions[1],
        "unseen": unseen,
    }


CYCLES: dict[str, ImprovementCycle] = {name: view.cycle for name, view in VIEWS.items()}
VERSIONS: dict[str, ModelVersion] = _versions()
