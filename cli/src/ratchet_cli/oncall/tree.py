"""A cycle as a tree: what serves, the run's stages, the arms with their weights, the checks, what was before.

Room: cli. Pure: typed objects and `now` in, a rich renderable out. Meant for a person on call at three in the
morning, so the state is in words, and colour only repeats it.
"""

from collections.abc import Iterable
from datetime import datetime

from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from ratchet_api.conditions import find
from ratchet_api.cycle import Arm, RolloutStatus, RunStatus
from ratchet_api.promotion import Proposal
from ratchet_api.reasons import ConditionType
from ratchet_api.rollout import Step
from ratchet_api.version import ModelVersion, StageStatus
from ratchet_cli.oncall import ab_test, proposals
from ratchet_cli.oncall.checks import checks_table
from ratchet_cli.oncall.explain import deadline, next_command
from ratchet_cli.oncall.pointing import awaited_gate
from ratchet_cli.oncall.view import View, awaits_pointer, is_root, stage_of
from ratchet_cli.oncall.words import ago, count, real_share, share, short, span

_STYLES = {
    "Idle": "green",
    "Accepted": "cyan", "Serving": "green", "Promoted": "green", "Canary": "cyan", "Baking": "cyan", "Starting": "cyan",
    "Curating": "cyan", "Training": "cyan", "Evaluating": "cyan", "Held": "yellow", "Suspended": "yellow",
    "Skipped": "yellow", "Returned": "yellow", "Degraded": "red", "Stalled": "red", "RollingBack": "red",
    "RolledBack": "red", "Rejected": "red", "GateRejected": "red", "Failed": "red",
}  # fmt: skip
_HISTORY = 5


def cycle_tree(view: View, now: datetime, wide: bool = False) -> Tree:
    """Everything about one cycle. `wide` adds all history, all versions and digests."""
    tree = Tree(_title(view, now), guide_style="dim")
    for line in _attention(view, now):
        tree.add(line)
    _add_run(tree, view, now, wide)
    run = view.cycle.status.run
    for version in view.bystanders:
        if run is not None and run.version == version.metadata.name:
            continue  # it stands below the run that made it
        _add_version(tree, version, view, now, wide)
    _add_arms(tree, view, now, wide)
    _add_checks(tree, view, now)
    if wide:
        _add_versions(tree, view, now)
    _add_history(tree, view, now, None if wide else _HISTORY)
    tree.add(_upcoming(view, now))
    tree.add(Text.assemble(("type next: ", "dim"), (next_command(view, now), "bold")))
    return tree


def version_tree(view: View, version: ModelVersion, now: datetime, wide: bool = False) -> Tree:
    """Everything about one version."""
    tree = Tree(_version_title(version, now), guide_style="dim")
    for condition in version.status.conditions:
        if condition.type == ConditionType.STALLED and condition.status == "True":
            tree.add(Text(f"{condition.reason}: {condition.message}", style="red"))
    _add_stages(tree, version, now)
    if version.status.evaluation is not None:
        tree.add(suites_table(version))
    rollout = view.cycle.status.rollout
    if rollout is not None and rollout.version == version.metadata.name:
        tree.add(_rollout_line(rollout, view, now))
        _add_checks(tree, view, now)
    if wide:
        for label, digest in (
            ("dataset", version.spec.dataset and version.spec.dataset.digest),
            ("adapter", version.digest),
        ):
            if digest:
                tree.add(f"{label} {digest}")
    tree.add(Text.assemble(("type next: ", "dim"), (next_command(view, now, version), "bold")))
    return tree


# The head


def _title(view: View, now: datetime) -> Text:
    meta = view.cycle.metadata
    phase = view.cycle.status.phase if view.cycle.status.conditions else "Unseen"
    age = f", {span(now - meta.creation_timestamp)} old" if meta.creation_timestamp else ""
    return Text.assemble(
        (meta.name, "bold"),
        "  ",
        (phase, f"bold {_STYLES.get(phase, '')}".strip()),
        (f"  namespace {meta.namespace}{age}", "dim"),
    )


def _attention(view: View, now: datetime) -> Iterable[Text]:
    """What serves, and everything unusual, before anything else."""
    if view.cycle.metadata.deletion_timestamp is not None:
        yield Text(f"is being deleted since {ago(view.cycle.metadata.deletion_timestamp, now)}", style="yellow")
    conditions = view.cycle.status.conditions
    if not conditions:
        yield Text("no operator has looked at it yet", style="red")
        return
    if view.unread:
        yield Text("the operator has not read the latest change of the spec yet", style="yellow")
    ready = find(conditions, ConditionType.READY)
    if ready is not None:
        yield Text(ready.message or ready.reason, style="" if ready.status == "True" else "red")
    stalled = find(conditions, ConditionType.STALLED)
    if stalled is not None and stalled.status == "True":
        since = ago(stalled.last_transition_time, now)
        yield Text(f"STALLED {since}, {stalled.reason}: {stalled.message}", style="bold red")
    working = find(conditions, ConditionType.RECONCILING)
    if working is not None and working.status == "True" and working.reason in ("Pending", "Unschedulable"):
        yield Text(f"waits, {working.reason}: {working.message}", style="yellow")
    yield from _proposal(view.cycle.status.promotion, now)
    if view.cycle.spec.suspend:
        yield Text("SUSPENDED: nothing starts and no weight rises; serving and rollbacks go on", style="yellow")
    if view.run_is_asked_for:
        yield Text("a run is asked for and has not begun yet", style="cyan")


def _proposal(found: Proposal | None, now: datetime) -> Iterable[Text]:
    """Mode Git: the change of the pointer that people have to look at."""
    if found is None or found.state in ("Arrived", "Withdrawing", "Withdrawn"):
        return
    what = "promotes" if found.kind == "Promote" else "goes back to"
    style = "yellow" if found.state in ("Pushed", "Open", "Closed") else "cyan"
    words = f"{proposals.place(found)} {what} {found.version}: {found.state.lower()}"
    yield Text(f"{words}, decided {ago(found.since, now)}", style=style)


# Runs and versions


def _add_run(tree: Tree, view: View, now: datetime, wide: bool) -> None:
    run = view.cycle.status.run
    if run is None:
        return
    ended = run.finished_at is not None
    outcome = run.outcome or "Done"
    if ended and run.finished_at is not None:
        title = Text.assemble(
            f"run {run.number} ", (outcome, _STYLES.get(outcome, "")), f" {ago(run.finished_at, now)}"
        )
        title.append(f": {run.message}" if run.message else "")
    else:
        title = Text(f"run {run.number}, started {ago(run.started_at, now)}")
    branch = tree.add(title)
    if ended and outcome == "Promoted" and not wide:
        return
    branch.add(_stage_line("curate", run.curate, now, _curated(run), planned=run.stage == "Curating"))
    if run.version is None:
        return
    version = view.version(run.version)
    if version is None:
        branch.add(Text(f"version {run.version} is not there", style="yellow" if not ended else "dim"))
        return
    _add_stages(branch, version, now)
    _add_rollout(branch, view, version, now)


def _curated(run: RunStatus) -> str:
    numbers = run.dataset
    if numbers is None:
        return ""
    bad = f", {count(numbers.quarantined, 'line')} could not be read" if numbers.quarantined else ""
    targets = numbers.targets
    categories = "1 category" if numbers.categories == 1 else f"{numbers.categories} categories"
    return (
        f"{count(numbers.examples, 'example')} ({targets.examples}+) from {count(numbers.interactions, 'interaction')} "
        f"({targets.interactions}+), {numbers.successful} successful ({targets.successful}+), "
        f"{categories} ({targets.categories}+){bad}"
    )


def _add_stages(branch: Tree, version: ModelVersion, now: datetime) -> None:
    """Its train and evaluate stages; a version with a finished adapter has no training."""
    if is_root(version):
        branch.add("the bare base model: needs no training and no gate")
        return
    if version.spec.adapter is not None:
        branch.add(f"train     not needed: came with a finished adapter, {short(version.spec.adapter.digest)}")
    else:
        branch.add(_stage_line("train", stage_of(version, "train"), now, _trained(version)))
    branch.add(_stage_line("evaluate", stage_of(version, "evaluate"), now, _evaluated(version)))


def _add_version(tree: Tree, version: ModelVersion, view: View, now: datetime, wide: bool) -> None:
    by = "applied by a person" if version.spec.run is None else f"of run {version.spec.run}"
    if is_root(version) and not wide:
        return
    branch = tree.add(Text.assemble("version ", (version.metadata.name, "bold"), f" {by}: ", _phase(version)))
    _add_stages(branch, version, now)
    _add_rollout(branch, view, version, now)


def _add_rollout(branch: Tree, view: View, version: ModelVersion, now: datetime) -> None:
    rollout = view.cycle.status.rollout
    if rollout is not None and rollout.version == version.metadata.name:
        branch.add(_rollout_line(rollout, view, now))
    elif (gate := awaited_gate(view, version)) is not None:
        approve = view.where.ratchet(f"approve {version.metadata.name}")
        branch.add(Text.assemble("approval  ", (f"waits before {gate[0]}: {approve}", "yellow")))
    elif awaits_pointer(view.cycle, version):
        words = f"waits: serving.version names {view.cycle.spec.serving.version}"
        branch.add(Text.assemble("roll out  ", (words, "yellow")))
    elif version.status.phase == "Accepted" and version.status.outcome is None:
        branch.add(Text.assemble("roll out  ", ("waits for its turn", "dim")))


def _phase(version: ModelVersion) -> Text:
    return Text(version.status.phase, style=_STYLES.get(version.status.phase, ""))


def _version_title(version: ModelVersion, now: datetime) -> Text:
    meta = version.metadata
    age = f", {span(now - meta.creation_timestamp)} old" if meta.creation_timestamp else ""
    return Text.assemble((meta.name, "bold"), "  ", _phase(version), (f"  of cycle {version.spec.cycle}{age}", "dim"))


def _stage_line(name: str, stage: StageStatus | None, now: datetime, result: str = "", planned: bool = False) -> Text:
    state, style, told = _stage_state(stage, now, planned)
    line = Text.assemble(f"{name:<9} ", (state, style))
    # Numbers of an attempt that failed are not what the stage came to; those of a running one are its progress.
    said = [text for text in (told, result if state != "failed" else "") if text]
    return line.append("  " + ", ".join(said)) if said else line


def _stage_state(stage: StageStatus | None, now: datetime, planned: bool) -> tuple[str, str, str]:
    """(state, style, what is to be said about it)."""
    if stage is None:
        return ("starts", "cyan", "") if planned else ("to come", "dim", "")
    attempts = f"attempt {stage.attempts.total + 1}" if stage.attempts.total else ""
    if stage.finished_at is not None:
        if stage.reason:
            return "failed", "bold red", f"{ago(stage.finished_at, now)}, {stage.reason}: {stage.message}"
        took = f"in {span(stage.finished_at - stage.started_at)}" if stage.started_at else ""
        return "done", "green", ", ".join(filter(None, (took, attempts)))
    if stage.retry_at is not None:
        again = f"again {ago(stage.retry_at, now)}, {stage.reason}: {stage.message}"
        return "waits", "yellow", again
    since = f"for {span(now - stage.started_at)}" if stage.started_at else ""
    why = f"the last one failed: {stage.reason}: {stage.message}" if attempts and stage.reason else ""
    return "running", "cyan", ", ".join(filter(None, (since, attempts, why)))


def _trained(version: ModelVersion) -> str:
    seen = version.status.training
    if seen is None:
        return ""
    done = stage_of(version, "train")
    if done is not None and done.finished_at is not None:
        parts = [f"{seen.examples} examples" if seen.examples is not None else ""]
    else:
        parts = [f"step {seen.step} of {seen.steps}" if seen.step is not None and seen.steps else ""]
    parts.append(f"loss {float(seen.loss):.3g}" if seen.loss is not None else "")
    parts.append(
        f"{float(seen.validation_loss):.3g} on what was kept aside" if seen.validation_loss is not None else ""
    )
    if done is None or done.finished_at is None:
        parts.append(f"{seen.tokens_per_second} tokens/s" if seen.tokens_per_second else "")
        parts.append(f"{_seconds(seen.eta_seconds)} to go" if seen.eta_seconds is not None else "")
    return ", ".join(filter(None, parts))


def _seconds(seconds: int) -> str:
    from datetime import timedelta

    return span(timedelta(seconds=seconds))


def _evaluated(version: ModelVersion) -> str:
    seen = version.status.evaluation
    if seen is None:
        return ""
    parts = [f"against {seen.champion}", f"target {seen.target}" if seen.target else ""]
    parts.append(f"guardrail {seen.guardrail}" if seen.guardrail else "")
    gate = find(version.status.conditions, ConditionType.ACCEPTED)
    if gate is not None and gate.reason != "Pending":
        parts.append(f"gate {'accepted' if gate.status == 'True' else gate.reason}")
    return ", ".join(filter(None, parts))


def suites_table(version: ModelVersion) -> Table:
    """The evaluation's evidence, a row a suite."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("SUITE", "ROLE", "CASES", "CHAMPION", "CANDIDATE", "DIFFERENCE", "LOWER BOUND", "P", "BETTER/WORSE"):
        table.add_column(column, no_wrap=True)
    for suite in version.status.evaluation.suites if version.status.evaluation else []:
        table.add_row(
            suite.name, suite.role, str(suite.cases), share(suite.champion), share(suite.candidate),
            f"{float(suite.difference) * 100:+.1f}", f"{float(suite.lower_bound) * 100:+.1f}",
            f"{float(suite.p_value):.2g}", f"{suite.better}/{suite.worse}",
        )  # fmt: skip
    return table


# The rollout


def _rollout_line(rollout: RolloutStatus, view: View, now: datetime) -> Text:
    line = Text("roll out  ")
    held = rollout.held_since is not None and rollout.phase in ("Canary", "Baking")
    word: str = "Held" if held else rollout.phase
    if rollout.phase == "Done" and rollout.decision is not None:
        word = rollout.decision.outcome
    line.append(word, _STYLES.get(word, ""))
    return line.append("  " + rollout_words(rollout, view, now))


def rollout_words(rollout: RolloutStatus, view: View, now: datetime) -> str:
    """Where the rollout is and what comes next, in one line."""
    spec = view.cycle.spec.rollout
    decision = rollout.decision
    if decision is not None:
        check = f" by the check {decision.check}" if decision.check else ""
        words = f"decided {ago(decision.at, now)}{check}, {decision.reason}: {decision.message}"
        if rollout.phase == "RollingBack":
            words += f"; weight {rollout.weight} %, until it is confirmed to get nothing"
        return words
    if rollout.phase == "Starting":
        until = rollout.started_at + spec.progress_deadline
        return f"its arm comes up, {deadline(until, now)}"
    since = span(now - rollout.step_since)
    if rollout.unconfirmed_since is not None:
        waited = span(now - rollout.unconfirmed_since)
        return f"{rollout.weight} % asked for, not yet confirmed to be in force, for {waited}"
    if rollout.phase == "Baking":
        words = f"100 % for {since} of at least {span(spec.bake)}, then it is champion"
    else:
        ahead = ab_test.ahead(rollout, spec, now) or _following(rollout, spec.steps, now)
        step = "" if spec.strategy == "abTest" else _step(rollout, spec.steps)
        words = f"{step}{rollout.weight} %{real_share(view.cycle)} for {since}, {ahead}"
    if rollout.awaiting_since is not None:
        approve = view.where.ratchet(f"approve {rollout.version}")
        words += f"; waits for a person for {span(now - rollout.awaiting_since)}: {approve}"
    if rollout.held_since is not None:
        back = ago(rollout.held_since + spec.max_hold, now)
        words += f"; held for {span(now - rollout.held_since)}, goes back to stable {back}"
    return words


def _step(rollout: RolloutStatus, steps: list[Step]) -> str:
    index = next((i for i, step in enumerate(steps) if step.weight == rollout.weight), None)
    return f"step {index + 1} of {len(steps)}, " if index is not None else ""


def _following(rollout: RolloutStatus, steps: list[Step], now: datetime) -> str:
    """What follows when all checks pass; steps are found by weight, as the operator does."""
    stay = max((s.min_time for s in steps if s.weight == rollout.weight), default=None)
    left = rollout.step_since + stay - now if stay is not None else None
    after = next((s.weight for s in steps if s.weight > rollout.weight), None)
    goal = f"{after} %" if after is not None else "the bake"
    when = (
        f"in {span(left)} at the earliest"
        if left is not None and left.total_seconds() >= 1
        else "as soon as all checks pass"
    )
    return f"next {goal} {when}"


def _add_checks(tree: Tree, view: View, now: datetime) -> None:
    rollout = view.cycle.status.rollout
    if rollout is None or not rollout.checks or rollout.phase == "Starting":
        return
    if rollout.phase == "Done" and (rollout.decision is None or rollout.decision.outcome == "Promoted"):
        return
    interval = f", every {span(view.cycle.spec.rollout.interval)}" if rollout.phase in ("Canary", "Baking") else ""
    looked = f", looked at {ago(rollout.measured_at, now)}{interval}" if rollout.measured_at else ""
    tree.add(f"checks of {rollout.version}{looked}").add(checks_table(rollout, view.cycle.spec.rollout, now))
    if rollout.ab_test is not None:
        tree.add(Text.assemble("a/b test  ", (rollout.ab_test.verdict, ab_test.STYLES[rollout.ab_test.verdict]),
                               "  " + ab_test.result(rollout.ab_test)))  # fmt: skip


# Arms


def _add_arms(tree: Tree, view: View, now: datetime, wide: bool) -> None:
    serving = view.cycle.status.serving
    if serving.stable is None and serving.candidate is None:
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    columns = ["ARM", "VERSION", "WEIGHT", "IN FORCE", "READY", "SINCE"] + (["DEPLOYMENT", "DIGEST"] if wide else [])
    for column in columns:
        table.add_column(column, no_wrap=True)
    for role, arm in (("stable", serving.stable), ("candidate", serving.candidate)):
        if arm is not None:
            more = [arm.deployment, short(arm.digest) or "-"] if wide else []
            table.add_row(role, arm.version, f"{arm.weight} %", _in_force(arm), _pods(arm), ago(arm.since, now), *more)
    for retired in serving.retired:
        more = [retired.deployment, ""] if wide else []
        removed = retired.since + view.cycle.spec.rollout.scale_down_delay
        table.add_row(
            "retired", retired.version, "0 %", "", "", f"{ago(retired.since, now)}, removed {ago(removed, now)}", *more
        )
    tree.add("arms").add(table)


def _in_force(arm: Arm) -> Text:
    if arm.observed_weight is None:
        return Text("unknown", style="yellow")
    return Text(f"{arm.observed_weight} %", style="" if arm.observed_weight == arm.weight else "yellow")


def _pods(arm: Arm) -> Text:
    style = "" if arm.ready_replicas >= arm.replicas else "red" if arm.ready_replicas == 0 else "yellow"
    return Text(f"{arm.ready_replicas} of {arm.replicas}", style=style)


# Before and after


def _add_versions(tree: Tree, view: View, now: datetime) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("VERSION", "PHASE", "PARENT", "ADAPTER", "AGE"):
        table.add_column(column, no_wrap=True)
    for version in view.versions:
        age = span(now - version.metadata.creation_timestamp) if version.metadata.creation_timestamp else ""
        parent = version.spec.parent or version.status.provenance.parent or ""
        table.add_row(version.metadata.name, _phase(version), parent, short(version.digest), age)
    if view.versions:
        tree.add("versions").add(table)


def _add_history(tree: Tree, view: View, now: datetime, limit: int | None) -> None:
    entries = list(reversed(view.cycle.status.history))
    if not entries:
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for _ in range(3):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for entry in entries[:limit]:
        outcome = Text(entry.outcome, style=_STYLES.get(entry.outcome, ""))
        name = entry.version or f"run {entry.run}"
        table.add_row(ago(entry.at, now), name, outcome, entry.message)
    more = len(entries) - len(entries[:limit])
    title = "history" + (f" (the last {limit} of {len(entries)}; -o wide shows all)" if more else "")
    tree.add(title).add(table)


def _upcoming(view: View, now: datetime) -> Text:
    due, trigger = view.cycle.status.next_run_time, view.cycle.spec.trigger
    if view.cycle.spec.suspend:
        return Text("next run: none while suspended")
    if due is not None:
        when = ago(due, now) if due > now else "as soon as the present one has ended"
        return Text(f"next run {when}, by the schedule {trigger.schedule} {trigger.time_zone}")
    return Text("next run: when somebody asks for it")
