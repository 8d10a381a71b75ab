"""What happens now, why, since when, what it waits for, and the one command to type next; in sentences.

Room: cli. Pure.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache

from ratchet_api.conditions import find
from ratchet_api.cycle import RolloutStatus, RunStatus
from ratchet_api.reasons import ConditionType, Reason
from ratchet_api.reference import members
from ratchet_api.rollout import LONGEST_BAKE
from ratchet_api.version import ModelVersion, StageStatus
from ratchet_cli.oncall import ab_test, advice, proposals
from ratchet_cli.oncall.advice import Situation
from ratchet_cli.oncall.pointing import awaited_gate
from ratchet_cli.oncall.view import View, awaits_pointer, is_root, open_stage
from ratchet_cli.oncall.words import ago, count, real_share, share, short, span, traffic

_STAGE_REASONS = {"Curating": Reason.CURATING, "Training": Reason.TRAINING, "Evaluating": Reason.EVALUATING}
_RETRIED = (Reason.OUT_OF_MEMORY, Reason.INFRASTRUCTURE_ERROR, Reason.PREEMPTED)
"""Tried again without anybody's help, so that there is nothing to do but look."""
_STAGE_NAMES = {"curate": "curating", "train": "training", "evaluate": "evaluating"}


@dataclass(frozen=True)
class Explanation:
    """The answer of `ratchet explain`."""

    title: str
    now: str
    why: str
    since: str
    waits: str
    """Empty: it waits for nothing."""
    next: str

    def text(self) -> str:
        """As it is printed."""
        rows = (("now", self.now), ("why", self.why), ("since", self.since), ("waits", self.waits or "for nothing"))
        body = "\n".join(f"  {label + ':':<7}{said}" for label, said in rows if said)
        return f"{self.title}\n{body}\n\nType next:\n  {self.next}"


@dataclass(frozen=True)
class Topic:
    """The one thing that matters most."""

    reason: str
    now: str
    why: str
    since: datetime | None
    waits: str = ""
    version: ModelVersion | None = None
    stage: StageStatus | None = None
    next: str = ""
    """A command that is better than the reason's own."""


def explain(view: View, now: datetime, version: ModelVersion | None = None) -> Explanation:
    """About a cycle, or about one of its versions."""
    topic = _version_topic(view, version, now) if version is not None else _cycle_topic(view, now)
    name, phase = (
        (f"version {version.metadata.name}", version.status.phase)
        if version is not None
        else (f"cycle {view.name}", view.cycle.status.phase)
    )
    since = f"{ago(topic.since, now)} ({topic.since:%Y-%m-%d %H:%M:%S} UTC)" if topic.since is not None else ""
    return Explanation(
        title=f"{name}: {phase}",
        now=topic.now,
        why=topic.why or meaning(topic.reason),
        since=since,
        waits=topic.waits,
        next=_command(view, topic),
    )


def next_command(view: View, now: datetime, version: ModelVersion | None = None) -> str:
    """The last line of `explain` alone."""
    return _command(view, _version_topic(view, version, now) if version is not None else _cycle_topic(view, now))


@cache
def _meanings() -> dict[str, str]:
    return {member.value: member.meaning for member in members(Reason)}


def meaning(reason: str) -> str:
    """The catalogue's sentence; empty for a reason of a newer operator."""
    return _meanings().get(reason, "")


def situation(view: View, version: ModelVersion | None = None, stage: StageStatus | None = None) -> Situation:
    """What a command may have to name."""
    spec, stable = view.cycle.spec, view.cycle.status.serving.stable
    folder = ""
    if version is not None:
        reference = version.spec.adapter or version.spec.dataset or version.adapter
        folder = reference.uri if reference is not None else ""
    mounted = (suite.cases.config_map for suite in spec.evaluation.suites if suite.role == "target")
    target = next((key for key in mounted if key is not None), None)
    judge = spec.evaluation.judge
    return Situation(
        where=view.where,
        cycle=view.name,
        version=version.metadata.name if version is not None else "",
        stable=stable.version if stable is not None else "",
        job=(stage.job or "") if stage is not None else "",
        secret=spec.storage.credentials_secret.name if spec.storage.credentials_secret is not None else "",
        git_secret=spec.promotion.git.credentials_secret.name if spec.promotion.git is not None else "",
        workload=spec.serving.workload.name if spec.serving.workload is not None else "",
        judge_secret=judge.credentials_secret.name
        if judge is not None and judge.credentials_secret is not None
        else "",
        suites=target.name if target is not None else "",
        endpoint=spec.storage.endpoint or "",
        storage=spec.storage.uri,
        base=spec.base_model.uri,
        folder=folder,
    )


def _command(view: View, topic: Topic) -> str:
    if topic.stage is not None and topic.stage.retry_at is not None and topic.reason in _RETRIED:
        return view.where.ratchet(f"get {view.name} -w")
    return topic.next or advice.command(topic.reason, situation(view, topic.version, topic.stage))


# A cycle


def _cycle_topic(view: View, now: datetime) -> Topic:
    """The most urgent first: unseen, stalled, a rollout, suspended, a run, not serving, idle."""
    cycle, conditions = view.cycle, view.cycle.status.conditions
    doctor = view.where.ratchet(f"doctor {view.name}")
    if cycle.metadata.deletion_timestamp is not None:
        left = view.where.kubectl(f"get cycle {view.name} -o yaml")
        text = "somebody deleted it; its arms and Jobs go with it"
        return Topic(Reason.PENDING, "It is being deleted.", text, cycle.metadata.deletion_timestamp, next=left)
    if not conditions:
        text = (
            "A new cycle is looked at within seconds; when it is not, the operator does not run or watches elsewhere."
        )
        made = cycle.metadata.creation_timestamp
        return Topic(Reason.PENDING, "No operator has looked at it yet.", text, made, "for the operator", next=doctor)
    stalled = find(conditions, ConditionType.STALLED)
    rollout = view.rollout
    if stalled is not None and stalled.status == "True":
        version = view.version(rollout.version) if rollout is not None else _run_version(view)
        decided = rollout.decision if rollout is not None else None
        why = f" {decided.reason}: {_sentence(decided.message)}" if decided is not None else ""
        return Topic(
            stalled.reason, f"It is stalled ({stalled.reason}): {_sentence(stalled.message)}", _serving(view) + why,
            stalled.last_transition_time, "for a person, or for what is missing; then it goes on by itself",
            version, open_stage(view),
        )  # fmt: skip
    if rollout is not None:
        return _rollout_topic(view, rollout, now)
    if cycle.spec.suspend:
        since = find(conditions, ConditionType.RECONCILING)
        at = since.last_transition_time if since is not None else None
        return Topic(Reason.SUSPENDED, "It is suspended. " + _serving(view), "", at, "for a person to resume it")
    if view.unread:
        text = f"the spec's generation is {cycle.metadata.generation}, and {cycle.status.observed_generation} was read"
        return Topic(
            Reason.PENDING,
            "The operator has not read the latest change yet.",
            text,
            None,
            "for the operator",
            next=doctor,
        )
    if view.run is not None:
        return _run_topic(view, view.run, now)
    ready = find(conditions, ConditionType.READY)
    if ready is not None and (ready.status != "True" or ready.reason == Reason.STABLE_DEGRADED):
        waits = "for the arm's pods to become ready"
        return Topic(ready.reason, f"{_sentence(ready.message)}", "", ready.last_transition_time, waits)
    return _idle_topic(view, now)


def deadline(until: datetime, now: datetime) -> str:
    """`at most 5m more`."""
    return f"at most {span(until - now)} more" if until > now else f"its deadline was {ago(until, now)}"


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else text + "."


def _serving(view: View) -> str:
    stable = view.cycle.status.serving.stable
    if stable is None:
        return "Nothing serves yet."
    pods = f"{stable.ready_replicas} of {count(stable.replicas, 'pod')} ready"
    return f"{stable.version} serves {stable.weight} % of the sessions, {pods}."


def _run_version(view: View) -> ModelVersion | None:
    run = view.cycle.status.run
    return view.version(run.version) if run is not None and run.finished_at is None else None


def _idle_topic(view: View, now: datetime) -> Topic:
    status, trigger = view.cycle.status, view.cycle.spec.trigger
    words = f"Nothing moves. {_serving(view)}"
    last = status.history[-1] if status.history else None
    at = last.at if last is not None else None
    if view.run_is_asked_for:
        watch = view.where.ratchet(f"get {view.name} -w")
        return Topic(Reason.IDLE, words, "", at, "for the operator to begin the run that was asked for", next=watch)
    waits = "for somebody to ask for a run"
    if status.next_run_time is not None:
        schedule = f"the schedule {trigger.schedule} {trigger.time_zone}"
        waits = f"for the next run, {ago(status.next_run_time, now)} by {schedule}"
    gated = next((v for v in view.bystanders if awaited_gate(view, v) is not None), None)
    if gated is not None:
        return _approval_topic(view, gated, words)
    if ripe := proposals.first(view.cycle, [v for v in view.bystanders if awaits_pointer(view.cycle, v)]):
        words = f"{ripe.metadata.name} is accepted and waits for serving.version to name it. {_serving(view)}"
        words, name = f"{words} serving.version names {view.cycle.spec.serving.version}.", ripe.metadata.name
        reason = Reason.PULL_REQUEST_CLOSED if proposals.closed(view.cycle, name) else Reason.AWAITING_POINTER
        return Topic(reason, words, "", at, proposals.waits_for(view.cycle, name), ripe)
    if others := view.bystanders:
        names = ", ".join(f"{v.metadata.name} ({v.status.phase})" for v in others)
        look = view.where.ratchet(f"explain {others[0].metadata.name}")
        words = f"No run goes on, but {names} is on its way. {_serving(view)}"
        return Topic(Reason.PENDING, words, "A version has been applied by a person.", at, f"for {names}", next=look)
    if last is None:
        return Topic(Reason.IDLE, words, "", at, waits)
    name = last.version or f"run {last.run}"
    said = f"The last thing that ended was {name}, {last.outcome} {ago(last.at, now)}"
    why = _sentence(f"{said}: {last.message}" if last.message else said)
    version = view.version(last.version)
    if version is not None and last.outcome in ("RolledBack", "GateRejected", "Returned", "Failed"):
        return Topic(Reason.IDLE, words, why, at, waits, version, next=view.where.ratchet(f"explain {last.version}"))
    curate = status.run.curate if status.run is not None and status.run.number == last.run else None
    if last.outcome == "Skipped":
        return Topic(Reason.SKIPPED, words, why, at, waits, None, curate)
    if last.outcome == "Failed" and curate is not None and curate.reason:
        return Topic(curate.reason, words, why, at, waits, None, curate)
    return Topic(Reason.IDLE, words, why, at, waits, version)


def _run_topic(view: View, run: RunStatus, now: datetime) -> Topic:
    version, stage = view.version(run.version), open_stage(view)
    if version is not None:
        stalled = find(version.status.conditions, ConditionType.STALLED)
        if stalled is not None and stalled.status == "True":
            now_words = (
                f"Run {run.number} does not go on: its version {version.metadata.name} is stalled, {stalled.message}."
            )
            waits = "for a person, or for what is missing"
            return Topic(stalled.reason, now_words, "", stalled.last_transition_time, waits, version, stage)
    if stage is not None and stage.retry_at is not None:
        words = f"Run {run.number} waits for the next attempt of the {stage.stage} stage. {_serving(view)}"
        why = f"The last attempt ended with {stage.reason}: {stage.message}. {meaning(stage.reason)}"
        return Topic(
            stage.reason,
            words,
            why,
            stage.started_at,
            f"for {stage.retry_at:%H:%M:%S} UTC, {ago(stage.retry_at, now)}",
            version,
            stage,
        )
    if version is not None and awaited_gate(view, version) is not None:
        return _approval_topic(view, version, _serving(view))
    waiting = find(view.cycle.status.conditions, ConditionType.RECONCILING)
    reason = _STAGE_REASONS.get(run.stage, Reason.PENDING)
    if waiting is not None and waiting.status == "True" and waiting.reason in (Reason.UNSCHEDULABLE, Reason.PENDING):
        words = f"Run {run.number} is {run.stage.lower()}, but {waiting.message}."
        return Topic(
            waiting.reason,
            words,
            "",
            waiting.last_transition_time,
            "for room on a node" if waiting.reason == Reason.UNSCHEDULABLE else "",
            version,
            stage,
        )
    words = f"Run {run.number} is {run.stage.lower()}. {_serving(view)}"
    doing = _STAGE_NAMES[stage.stage] if stage is not None else "the next step"
    progress = _progress(version) if run.stage == "Training" else ""
    waits = f"for the end of {doing}{progress}"
    return Topic(reason, words, "", stage.started_at if stage is not None else run.started_at, waits, version, stage)


def _progress(version: ModelVersion | None) -> str:
    seen = version.status.training if version is not None else None
    if seen is None or seen.step is None or not seen.steps:
        return ""
    return f" (step {seen.step} of {seen.steps})"


def _rollout_topic(view: View, rollout: RolloutStatus, now: datetime) -> Topic:
    version, spec = view.version(rollout.version), view.cycle.spec.rollout
    name = rollout.version
    decision = rollout.decision
    if decision is not None:
        words = f"{name} is being taken back; {rollout.weight} % of the sessions are asked for it now."
        why = f"{decision.reason}: {_sentence(decision.message)} {meaning(decision.reason)}"
        watch = view.where.ratchet(f"get {view.name} -w")
        return Topic(
            decision.reason, words, why, decision.at, "until weight 0 is confirmed to be in force", version, next=watch
        )
    failing = [check for check in rollout.checks if check.verdict == "Fail"]
    unknown = [check for check in rollout.checks if check.verdict == "Unknown"]
    if rollout.held_since is not None:
        words = f"{name} is held at {rollout.weight} % of the sessions."
        back = f"otherwise it goes back to stable {ago(rollout.held_since + spec.max_hold, now)}, without blame"
        return Topic(Reason.HELD, words, _missing(rollout), rollout.held_since, f"for evidence; {back}", version)
    if rollout.awaiting_since is not None:
        words = f"{name} has {rollout.weight} % of the sessions; a person has to approve before it gets all of them."
        until = rollout.awaiting_since + view.cycle.spec.promotion.expiry
        waits = f"for a person, {deadline(until, now)}; then it goes back to stable without blame"
        return Topic(Reason.AWAITING_APPROVAL, words, "", rollout.awaiting_since, waits, version)
    suspended = (
        " The cycle is suspended, so no weight rises; a rollback still would." if view.cycle.spec.suspend else ""
    )
    if rollout.phase == "Starting":
        words = f"The arm of {name} comes up; it takes no sessions yet.{suspended}"
        waits = f"for its pods, {deadline(rollout.started_at + spec.progress_deadline, now)}"
        reason = Reason.SUSPENDED if suspended else Reason.ARM_NOT_READY
        return Topic(reason, words, _arm(view), rollout.started_at, waits, version)
    if failing:
        why = " ".join(_sentence(check.message) for check in failing)
        part = f"{rollout.weight} % of the {traffic(view.cycle)}{real_share(view.cycle)}"
        words = f"{name} has {part}, and a check fails.{suspended}"
        abort, watch = view.where.ratchet(f"abort {view.name} {name}"), view.where.ratchet(f"get {view.name} -w")
        waits = f"for more measurements: beyond failureLimit it rolls back by itself; `{abort}` does so now"
        return Topic(Reason.CHECK_FAILED, words, why, rollout.step_since, waits, version, next=watch)
    reason = Reason.BAKING if rollout.phase == "Baking" else Reason.CANARY
    words = (
        f"{name} bakes: it has all sessions, and the arm of the previous champion is kept warm.{suspended}"
        if rollout.phase == "Baking"
        else f"{name} takes {rollout.weight} % of the {traffic(view.cycle)}{real_share(view.cycle)}.{suspended}"
    )
    if suspended:
        return Topic(Reason.SUSPENDED, words, "", rollout.step_since, "for a person to resume it", version)
    result = _sentence(ab_test.result(rollout.ab_test)) if rollout.ab_test is not None else ""
    return Topic(
        reason,
        words,
        result,
        rollout.step_since,
        _rollout_waits(view, rollout, [c.message for c in unknown], now),
        version,
    )


def _missing(rollout: RolloutStatus) -> str:
    if rollout.unconfirmed_since is not None:
        return f"The weight {rollout.weight} % is not confirmed to be in force."
    said = [_sentence(check.message) for check in rollout.checks if check.verdict == "Unknown"]
    return " ".join(said) or meaning(Reason.HELD)


def _arm(view: View) -> str:
    arm = view.cycle.status.serving.candidate
    return "" if arm is None else f"{arm.ready_replicas} of {count(arm.replicas, 'pod')} ready."


def _rollout_waits(view: View, rollout: RolloutStatus, unknown: list[str], now: datetime) -> str:
    spec = view.cycle.spec.rollout
    if rollout.unconfirmed_since is not None:
        return f"until {rollout.weight} % is confirmed to be in force"
    if rollout.phase == "Baking":
        least, goal = spec.bake, "it becomes champion"
    else:
        least = max((s.min_time for s in spec.steps if s.weight == rollout.weight), default=spec.interval * 0)
        after = next((s.weight for s in spec.steps if s.weight > rollout.weight), None)
        goal = f"{after} %" if after is not None else "the bake"
    if ahead := ab_test.ahead(rollout, spec, now):
        return f"for an answer: {ahead}"
    left = rollout.step_since + least - now
    leaning = [check.name for check in rollout.checks if check.leans_to_harm]
    if rollout.phase == "Baking" and leaning and left.total_seconds() < 1:
        bound = rollout.step_since + LONGEST_BAKE * spec.bake - now
        words = f"until {', '.join(leaning)} is proven worse than its limit or back within"
        return f"{words}, for {span(max(bound, timedelta(0)))} at most"
    parts = [f"{span(left)} more" if left.total_seconds() >= 1 else ""]
    parts.append("evidence: " + "; ".join(unknown) if unknown else "all checks to pass in the next look")
    return f"for {', and '.join(filter(None, parts))}; then {goal}"


# A version


def _version_topic(view: View, version: ModelVersion, now: datetime) -> Topic:
    name, status = version.metadata.name, version.status
    rollout = view.rollout
    if rollout is not None and rollout.version == name:
        return _rollout_topic(view, rollout, now)
    conditions = status.conditions
    if not conditions:
        doctor = view.where.ratchet(f"doctor {view.name}")
        return Topic(
            Reason.PENDING,
            "No operator has looked at it yet.",
            "",
            version.metadata.creation_timestamp,
            "for the operator",
            version,
            next=doctor,
        )
    rejected = find(conditions, ConditionType.REJECTED)
    if rejected is not None and rejected.status == "True":
        now_words = (
            f"{name} is rejected for good, by its digest {short(version.digest)}."
            if version.digest
            else f"{name} is rejected for good."
        )
        why = f"{rejected.reason}: {_sentence(rejected.message)} {meaning(rejected.reason)}{_evidence(version)}"
        return Topic(rejected.reason, now_words, why, rejected.last_transition_time, "", version)
    stalled = find(conditions, ConditionType.STALLED)
    stage = next((s for s in reversed(status.stages) if s.finished_at is None or s.reason), None)
    if stalled is not None and stalled.status == "True":
        failed = status.phase == "Failed"
        words = f"{name} has failed for good." if failed else f"{name} does not go on."
        why = f"{stalled.reason}: {_sentence(stalled.message)} {meaning(stalled.reason)}"
        waits = "" if failed else "for a person, or for what is missing"
        return Topic(stalled.reason, words, why, stalled.last_transition_time, waits, version, stage)
    serving = find(conditions, ConditionType.SERVING)
    if status.phase in ("Serving", "Superseded") and serving is not None:
        words = (
            f"{name} is the champion. {_serving(view)}"
            if status.phase == "Serving"
            else f"{name} has served; a newer champion serves now."
        )
        reason = Reason.PROMOTED if status.phase == "Serving" else Reason.SUPERSEDED
        why = (
            "It is the bare base model, what everything is compared with."
            if is_root(version)
            else f"It was proven better and stood its rollout.{_evidence(version)}"
        )
        return Topic(reason, words, why, serving.last_transition_time, "", version)
    return _on_its_way(view, version, stage, now)


def _on_its_way(view: View, version: ModelVersion, stage: StageStatus | None, now: datetime) -> Topic:
    name, status = version.metadata.name, version.status
    if awaited_gate(view, version) is not None:
        return _approval_topic(view, version, "")
    working = find(status.conditions, ConditionType.RECONCILING)
    since = stage.started_at if stage is not None and stage.started_at is not None else None
    if stage is not None and stage.retry_at is not None:
        why = f"The last attempt ended with {stage.reason}: {_sentence(stage.message)} {meaning(stage.reason)}"
        return Topic(
            stage.reason,
            f"{name} waits for the next attempt of its {stage.stage} stage.",
            why,
            since,
            f"for {stage.retry_at:%H:%M:%S} UTC, {ago(stage.retry_at, now)}",
            version,
            stage,
        )
    if status.phase == "Accepted":
        gate = find(status.conditions, ConditionType.ACCEPTED)
        other = view.rollout
        waits = f"for the rollout of {other.version} to end" if other is not None else "for its rollout to begin"
        if awaits_pointer(view.cycle, version):
            words = f"{name} is accepted, and serving.version names {view.cycle.spec.serving.version}."
            waits = proposals.waits_for(view.cycle, name)
            since = gate.last_transition_time if gate is not None else None
            return Topic(Reason.AWAITING_POINTER, words, "", since, waits, version)
        if view.cycle.spec.suspend:
            waits = "for a person to resume the cycle"
        reason = Reason.SUSPENDED if view.cycle.spec.suspend else (gate.reason if gate is not None else Reason.PENDING)
        why = f"{_sentence(gate.message)}{_evidence(version)}" if gate is not None else ""
        return Topic(reason, f"{name} is accepted.", why, gate.last_transition_time if gate else None, waits, version)
    if working is not None and working.reason in (Reason.UNSCHEDULABLE, Reason.PENDING) and stage is not None:
        return Topic(
            working.reason,
            f"{name} is {status.phase.lower()}, but {working.message}.",
            "",
            since or working.last_transition_time,
            "",
            version,
            stage,
        )
    reason = {"Training": Reason.TRAINING, "Evaluating": Reason.EVALUATING}.get(status.phase, Reason.PENDING)
    waits = f"for the end of {status.phase.lower()}{_progress(version) if status.phase == 'Training' else ''}"
    return Topic(
        reason,
        f"{name} is {status.phase.lower()}.",
        "",
        since or (working.last_transition_time if working else None),
        waits,
        version,
        stage,
    )


def _approval_topic(view: View, version: ModelVersion, more: str) -> Topic:
    found = awaited_gate(view, version)
    gate, digest = found if found is not None else ("", "")
    words = f"{version.metadata.name} waits for a person before {gate}. {more}".rstrip()
    said = find(version.status.conditions, ConditionType.RECONCILING)
    since = said.last_transition_time if said is not None else None
    why = f"promotion.mode is Approval, and {digest} is not approved yet.{_evidence(version)}"
    return Topic(Reason.AWAITING_APPROVAL, words, why, since, "for the approval", version)


def _evidence(version: ModelVersion) -> str:
    seen = version.status.evaluation
    if seen is None:
        return ""
    suites = "; ".join(
        f"{s.name} ({s.role}) {share(s.champion)} -> {share(s.candidate)}, n {s.cases}, p {float(s.p_value):.2g}"
        for s in seen.suites
    )
    return f" Evidence, against {seen.champion}: {suites}."
