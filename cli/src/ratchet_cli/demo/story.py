"""The story, one function a step, top to bottom.

Room: cli. Every step does what a person would do, waits for what the API server says about it, and asserts it.
"""

import json
from collections.abc import Callable
from contextlib import ExitStack

from ratchet_api.conditions import find, is_true
from ratchet_api.names import ARM_LABEL, CYCLE_LABEL, RUN_ANNOTATION, VERSION_LABEL
from ratchet_api.reasons import ConditionType, Reason
from ratchet_api.version import ModelVersion
from ratchet_cli.demo import handmade, platform, prometheus
from ratchet_cli.demo.cluster import Cluster, View
from ratchet_cli.demo.crowd import Crowd
from ratchet_cli.demo.cycle import cycle_manifests
from ratchet_cli.demo.tale import Tale
from ratchet_cli.demo.watching import Progress, ended_badly, rollout_progress, version_progress, why

FORGETFUL, SLOW, DISLIKED = "assistant-forgetful", "assistant-slow", "assistant-disliked"
SLOW_SHARE = 0.8
"""Share of its time that the injected fault takes from the slow version's arm."""


def tell(tale: Tale, resources: ExitStack) -> None:
    """Every step up to `settings.until`; what is opened stays open until `resources` is closed."""
    steps: list[tuple[str, Callable[[Tale, ExitStack], None]]] = [
        ("the platform comes up, and the Helm chart is installed into it", the_platform_comes_up),
        ("the base model is served behind the gateway", the_base_model_is_served),
        ("people talk, and say what they think of the answers", people_talk),
        ("a run: sessions become a dataset, the dataset an adapter, and the gate wants proof", a_run_proves_a_version),
        ("the new version takes over step by step, under live traffic", the_version_takes_over),
        ("two bad versions pass their gates and are rolled back by themselves", bad_versions_are_rolled_back),
        ("a version trained on disliked answers never gets an arm", the_gate_rejects),
    ]
    for number, (title, step) in enumerate(steps, start=1):
        if number > tale.settings.until:
            return
        with tale.step(number, title):
            step(tale, resources)


# 1


def the_platform_comes_up(tale: Tale, resources: ExitStack) -> None:
    """etcd, API server, controllers, scheduler, Prometheus, S3, node; then the chart."""
    settings, screen = tale.settings, tale.screen
    tale.platform = resources.enter_context(platform.running(settings, screen, lambda: tale.stay))
    tale.base_model_digest = platform.put_base_model(tale.platform, screen).digest
    platform.without_proxies()
    platform.prepare_namespaces(tale.platform, settings.namespace)
    platform.install_chart(tale.platform, settings, screen)
    tale.kubectl("get", "nodes")
    tale.kubectl("get", "pods,serviceaccounts", "-n", platform.SYSTEM_NAMESPACE)
    cluster = resources.enter_context(Cluster(tale.platform.kubeconfig, settings.namespace, settings.cycle))
    tale.follow(cluster, [settings.namespace, platform.SYSTEM_NAMESPACE])


# 2


def the_base_model_is_served(tale: Tale, resources: ExitStack) -> None:
    """The cycle is applied; its root version gets an arm."""
    del resources
    manifests = cycle_manifests(tale.settings)
    tale.screen.command(f"kubectl apply -f {' -f '.join(m.shown for m in manifests)}")
    for manifest in manifests:
        tale.screen.block(tale.platform.kubectl("apply", "-n", tale.settings.namespace, "-f", "-", input=manifest.text))
    root = tale.version(0)
    tale.until(
        f"{root} serves",
        lambda view: _stable(view) == root and _stable_ready(view) and _is(view, ConditionType.READY),
        240,
        progress=lambda view: None if view.cycle is None else Progress(view.cycle.status.phase, why(view.cycle)),
    )
    tale.kubectl("get", "cycle,mv", "-n", tale.settings.namespace)
    tale.expect(True, f"{root}, the bare base model, serves everybody")


# 3


def people_talk(tale: Tale, resources: ExitStack) -> None:
    """Simulated people ask and judge through the stock openai client, until there is enough to learn from."""
    profile, screen = tale.settings.profile, tale.screen
    tale.crowd = resources.enter_context(Crowd(f"{tale.gateway_url}/v1", tale.settings))
    tale.crowd.pace(profile.talk_rate)
    screen.explain(
        f"{profile.talk_rate:g} questions a second, {profile.house_share:.0%} about house conventions that no model "
        "can know; each person judges by a rubric, sometimes wrongly, and corrects some bad answers"
    )
    tale.crowd.until(lambda seen: seen.answered >= profile.answers, tale.settings.patience(300), screen)
    seen = tale.crowd.seen()
    _wait_for_upload(tale, seen.answered)
    counts = prometheus.verdicts(tale.prometheus, tale.settings.namespace, tale.settings.cycle)
    up, down = counts.get(tale.version(0), (0, 0))
    tale.expect(up + down > 0, f"the gateway counted {up} thumbs up and {down} thumbs down for {tale.version(0)}")
    tale.expect(seen.failed == 0, f"{seen.failed} of {seen.sent} requests failed")


def _wait_for_upload(tale: Tale, answered: int) -> None:
    """Until the gateway says that what was answered is in object storage: the run shall see all of it."""
    cycle = tale.cluster.view.cycle
    assert cycle is not None, "step 2 waited for it"

    def uploaded() -> int:
        return prometheus.uploaded(tale.prometheus, tale.settings.namespace, tale.settings.cycle)

    tale.poll(f"{answered} interactions are in object storage", lambda: uploaded() >= answered, 120)
    uri = f"{cycle.spec.storage.uri}/sessions"
    objects = tale.store.count(uri)
    tale.expect(objects > 0, f"{uploaded()} interactions lie in {uri}, in {objects} sealed segments")


# 4


def a_run_proves_a_version(tale: Tale, resources: ExitStack) -> None:
    """curate, train, evaluate, gate."""
    del resources
    name = tale.version(1)
    tale.crowd.pace(tale.settings.profile.quiet_rate)
    tale.kubectl("annotate", "cycle", tale.settings.cycle, f"{RUN_ANNOTATION}=first", "-n", tale.settings.namespace)
    tale.until(
        "the dataset",
        lambda view: name in view.versions,
        180,
        progress=_run_progress,
        impossible=_run_ended,
    )
    run = tale.cluster.read().cycle
    if run is not None and run.status.run is not None and (dataset := run.status.run.dataset) is not None:
        tale.screen.say(
            f"{dataset.interactions} interactions read, {dataset.successful} worth learning from in "
            f"{dataset.categories} categories, {dataset.quarantined} lines quarantined: "
            f"{dataset.examples} training examples"
        )
    _judged_at_the_gate(tale, name, 900, accepted=True)


def _judged_at_the_gate(tale: Tale, name: str, timeout: float, accepted: bool) -> ModelVersion:
    """Until the gate has decided about a version; its numbers on screen, its decision asserted."""

    def decided(view: View) -> bool:
        version = view.versions.get(name)
        if version is None or version.status.phase == "Failed":
            return False
        condition = find(version.status.conditions, ConditionType.ACCEPTED)
        return condition is not None and condition.status != "Unknown" and condition.reason != Reason.PENDING

    def failed(view: View) -> str | None:
        version = view.versions.get(name)
        return ended_badly(view, name) if version is not None and version.status.phase == "Failed" else None

    tale.until(f"the gate's decision about {name}", decided, timeout, lambda v: version_progress(v, name), failed)
    version = tale.cluster.read().versions[name]
    evaluation = version.status.evaluation
    for suite in () if evaluation is None else evaluation.suites:
        tale.screen.say(
            f"{suite.name} ({suite.role}), {suite.cases} cases: {float(suite.champion):.1%} -> "
            f"{float(suite.candidate):.1%}, difference {float(suite.difference) * 100:+.1f} points, "
            f"lower bound {float(suite.lower_bound) * 100:+.1f}, p {float(suite.p_value):.2g}"
        )
    condition = find(version.status.conditions, ConditionType.ACCEPTED)
    assert condition is not None, "waited for above"
    came = condition.status == "True"
    tale.expect(came == accepted, f"the gate {'accepts' if came else 'refuses'} {name}: {condition.message}")
    return version


def _run_progress(view: View) -> Progress | None:
    run = None if view.cycle is None else view.cycle.status.run
    return None if run is None else Progress(f"run {run.number} {run.stage}", run.message)


def _run_ended(view: View) -> str | None:
    run = None if view.cycle is None else view.cycle.status.run
    if run is None or run.outcome is None or run.finished_at is None:
        return None
    return f"run {run.number} ended as {run.outcome}: {run.message}"


# 5


def the_version_takes_over(tale: Tale, resources: ExitStack) -> None:
    """Arm, weights, bake, champion."""
    del resources
    name = tale.version(1)
    tale.crowd.pace(tale.settings.profile.canary_rate)
    tale.until(
        f"{name} is champion",
        lambda view: _stable(view) == name,
        600,
        progress=lambda view: rollout_progress(view, name),
        impossible=lambda view: ended_badly(view, name),
    )
    tale.kubectl("get", "cycle,mv", "-n", tale.settings.namespace)
    record = tale.notebook.rollout_of(name)
    tale.expect(
        record is not None and record.last.decision is not None and record.last.decision.outcome == "Promoted",
        f"{name} is champion after steps of {_weights(tale, name)} % and its bake",
    )
    counts = prometheus.verdicts(tale.prometheus, tale.settings.namespace, tale.settings.cycle)
    before, after = _share(counts, tale.version(0)), _share(counts, name)
    tale.expect(after > before, f"thumbs up at the gateway: {before:.1%} for {tale.version(0)}, {after:.1%} for {name}")
    _expect_no_failures(tale)


def _weights(tale: Tale, name: str) -> str:
    record = tale.notebook.rollout_of(name)
    return ", ".join(str(weight) for _, weight in (record.weights if record is not None else []) if weight)


def _share(counts: dict[str, tuple[int, int]], name: str) -> float:
    up, down = counts.get(name, (0, 0))
    return up / (up + down) if up + down else 0.0


def _expect_no_failures(tale: Tale) -> None:
    seen = tale.crowd.seen()
    tale.expect(seen.failed == 0, f"{seen.failed} of {seen.sent} requests failed so far")


# 6


def bad_versions_are_rolled_back(tale: Tale, resources: ExitStack) -> None:
    """One forgets what it knew and is disliked; one is slow. Both pass a careless gate."""
    del resources
    if tale.settings.profile.forgetful:
        a_forgetful_version_is_rolled_back(tale)
        applying_it_again_does_nothing(tale, FORGETFUL)
    a_slow_version_is_rolled_back(tale)
    if not tale.settings.profile.forgetful:
        applying_it_again_does_nothing(tale, SLOW)


def a_forgetful_version_is_rolled_back(tale: Tale) -> None:
    """Somebody trained it on house rows alone and evaluates it on house questions alone."""
    tale.screen.explain(
        f"{FORGETFUL}: somebody trained an adapter elsewhere, on house rows only and without anchors, "
        f"and wants it judged by the target suite alone, against {tale.version(0)}"
    )
    tale.crowd.pace(tale.settings.profile.quiet_rate)
    adapter = handmade.forgetful_adapter(tale)
    handmade.apply(tale, handmade.finished_version(tale, FORGETFUL, adapter))
    _judged_at_the_gate(tale, FORGETFUL, 400, accepted=True)
    tale.crowd.pace(tale.settings.profile.canary_rate)
    _rolled_back(tale, FORGETFUL, "feedback")


def a_slow_version_is_rolled_back(tale: Tale) -> None:
    """The champion's own weights in another wrapping, behind a fault that we inject and call so."""
    tale.screen.explain(
        f"{SLOW}: the champion's weights in another wrapping, hence another digest; once its arm takes traffic, "
        f"an injected FAULT takes {SLOW_SHARE:.0%} of its processor time away"
    )
    tale.crowd.pace(tale.settings.profile.quiet_rate)
    adapter = handmade.repackaged_champion(tale, tale.version(1))
    handmade.apply(tale, handmade.finished_version(tale, SLOW, adapter))
    _judged_at_the_gate(tale, SLOW, 400, accepted=True)
    tale.crowd.pace(tale.settings.profile.canary_rate)
    tale.until(
        f"{SLOW} takes traffic",
        lambda view: _candidate_weight(view, SLOW) > 0,
        240,
        progress=lambda view: rollout_progress(view, SLOW),
        impossible=lambda view: ended_badly(view, SLOW),
    )
    selector = f"{VERSION_LABEL}={SLOW},{ARM_LABEL}=true"
    tale.screen.command(f"ratchet local throttle -l {selector} --share {SLOW_SHARE}    # the injected fault")
    tale.platform.throttle(selector, SLOW_SHARE)
    try:
        _rolled_back(tale, SLOW, "p95")
    finally:
        tale.platform.throttle(selector, 0)


def _rolled_back(tale: Tale, name: str, check: str) -> None:
    """Until the online analysis has taken a version back, by the check that is expected."""
    champion = tale.version(1)

    def over(view: View) -> bool:
        rollout = None if view.cycle is None else view.cycle.status.rollout
        return rollout is not None and rollout.version == name and rollout.phase == "Done"

    tale.until(f"the end of {name}'s rollout", over, 480, lambda view: rollout_progress(view, name))
    view = tale.until(
        f"{name} is Rejected",
        lambda view: name in view.versions and view.versions[name].status.phase == "Rejected",
        60,
        impossible=lambda view: f"{name} became champion" if _stable(view) == name else None,
    )
    record = tale.notebook.rollout_of(name)
    decision = None if record is None else record.last.decision
    if record is None or decision is None:
        tale.expect(False, f"{name} was rolled back, but no decision was seen")
        return
    tale.expect(
        decision.outcome == "RolledBack" and decision.check == check,
        f"{name} {decision.outcome} by {decision.check or decision.reason}: {decision.message}",
    )
    tale.expect(
        _stable(view) == champion and bool(record.least_stable_pods),
        f"{champion} never stopped serving: at least {record.least_stable_pods} of its pods was ready all the time",
    )
    if record.seconds_to_zero is not None:
        tale.screen.say(f"from the first failed measurement to weight 0 at the gateway: {record.seconds_to_zero:.1f} s")
    _expect_no_failures(tale)


def applying_it_again_does_nothing(tale: Tale, name: str) -> None:
    """The same object again, and the same adapter under another name: no Job, no arm."""
    again = f"{name}-again"
    old = tale.cluster.read().versions[name]
    assert old.spec.adapter is not None, "it was applied with a finished adapter"
    tale.screen.explain(f"the same adapter once more, now as {again}")
    before = _jobs(tale)
    handmade.apply(tale, handmade.finished_version(tale, again, old.spec.adapter))
    view = tale.until(
        f"{again} is refused",
        lambda view: again in view.versions and is_true(view.versions[again].status.conditions, ConditionType.REJECTED),
        60,
        progress=lambda view: version_progress(view, again),
    )
    condition = find(view.versions[again].status.conditions, ConditionType.REJECTED)
    assert condition is not None, "waited for above"
    tale.expect(
        condition.reason == Reason.ALREADY_REJECTED and _jobs(tale) == before,
        f"{again} is {condition.reason} without a Job: {condition.message}",
    )
    tale.kubectl("delete", "mv", again, "-n", tale.settings.namespace)


def _jobs(tale: Tale) -> set[str]:
    listed = json.loads(
        tale.platform.kubectl(
            "get", "jobs", "-n", tale.settings.namespace, "-l", f"{CYCLE_LABEL}={tale.settings.cycle}", "-o", "json"
        )
    )
    return {job["metadata"]["name"] for job in listed["items"]}


# 7


def the_gate_rejects(tale: Tale, resources: ExitStack) -> None:
    """A recipe whose dataset takes disliked answers for the truth."""
    del resources
    tale.crowd.pace(tale.settings.profile.quiet_rate)
    dataset = handmade.disliked_dataset(tale)
    handmade.apply(tale, handmade.recipe_version(tale, DISLIKED, dataset))
    _judged_at_the_gate(tale, DISLIKED, 600, accepted=False)
    view = tale.until(
        f"{DISLIKED} is Rejected",
        lambda view: view.versions[DISLIKED].status.phase == "Rejected",
        60,
    )
    arms = tale.platform.kubectl(
        "get", "deployments", "-n", tale.settings.namespace, "-l", f"{VERSION_LABEL}={DISLIKED}", "-o", "name"
    )
    tale.expect(not arms.strip() and tale.notebook.rollout_of(DISLIKED) is None, f"{DISLIKED} never got an arm")
    tale.expect(_stable(view) == tale.version(1), f"{tale.version(1)} is still champion")
    _expect_no_failures(tale)
    tale.kubectl("get", "cycle,mv", "-n", tale.settings.namespace)


# What a view says


def _stable(view: View) -> str | None:
    stable = None if view.cycle is None else view.cycle.status.serving.stable
    return None if stable is None else stable.version


def _stable_ready(view: View) -> bool:
    stable = None if view.cycle is None else view.cycle.status.serving.stable
    return stable is not None and stable.ready_replicas >= max(1, stable.replicas)


def _is(view: View, kind: ConditionType) -> bool:
    return view.cycle is not None and is_true(view.cycle.status.conditions, kind)


def _candidate_weight(view: View, name: str) -> int:
    candidate = None if view.cycle is None else view.cycle.status.serving.candidate
    return candidate.weight if candidate is not None and candidate.version == name else 0
