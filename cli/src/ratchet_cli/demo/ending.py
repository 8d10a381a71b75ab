"""The end of the story: what was measured becomes summary.json, report.html and a few lines on screen.

Room: cli. Reads the API server, Prometheus and S3 once more; writes into the state folder.
"""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import urllib3
from botocore.exceptions import BotoCoreError, ClientError
from kubernetes.client.exceptions import ApiException

from ratchet_cli.demo import prometheus, report
from ratchet_cli.demo.cluster import View
from ratchet_cli.demo.errors import DemoError
from ratchet_cli.demo.notebook import count_within
from ratchet_cli.demo.settings import LAST_STEP
from ratchet_cli.demo.summary import Failure, Requests, StepTime, Summary, run_numbers, version_entries
from ratchet_cli.demo.tale import Tale
from ratchet_local.errors import LocalError

WINDOW_SECONDS = 30
GRACE = timedelta(seconds=30)
"""A request that fails this soon after a rollout's end still counts as failed by it: its arm may just have gone."""
PATIENCE = 70.0
"""Seconds that people get to finish: a little more than their own timeout, so that none is cut off."""
_SHOWN_FAILURES = 20
T = TypeVar("T")


def conclude(tale: Tale, error: str, patience: float) -> Summary:
    """Write what is known, however the story ended, and show it. People get `patience` seconds to finish."""
    began = tale.screen.elapsed
    tale.screen.heading(f"Step {LAST_STEP}: what came of it")
    if tale.has_crowd:
        tale.crowd.stop(patience)
    summary = _summary(tale, error, began)
    summary.write(tale.settings.state / "summary.json")
    report.write(tale.settings.state / "report.html", summary, _material(tale, summary))
    _show(tale, summary)
    return summary


def _summary(tale: Tale, error: str, began: float) -> Summary:
    view, counts = View(), dict[str, tuple[int, int]]()
    if tale.has_cluster:
        view = _known(tale.cluster.read, view)
        tale.notebook.see(view, datetime.now(UTC))
        counts = _known(lambda: _verdicts(tale), counts)
    last = StepTime(number=LAST_STEP, title="the summary", wall_seconds=round(tale.screen.elapsed - began, 1))
    told = [step.number for step in tale.steps]
    requests = _requests(tale)
    ok = not error and all(fact.holds for fact in tale.facts) and requests.failed_by_rollback == 0
    return Summary(
        ok=ok,
        profile=tale.settings.profile.name,
        told_until=max(told, default=0),
        error=error,
        wall_seconds=round(tale.screen.elapsed, 1),
        versions=version_entries(view, tale.notebook, counts),
        requests=requests,
        run=run_numbers(view),
        steps=[*tale.steps, last],
        facts=tale.facts,
    )


def _verdicts(tale: Tale) -> dict[str, tuple[int, int]]:
    return prometheus.verdicts(tale.prometheus, tale.settings.namespace, tale.settings.cycle)


def _requests(tale: Tale) -> Requests:
    if not tale.has_crowd:
        return Requests(sent=0, failed=0, failed_by_rollback=0)
    failures = tale.crowd.failures()
    return Requests(
        sent=tale.crowd.sent,
        failed=len(failures),
        failed_by_rollback=count_within((f.at for f in failures), tale.notebook.windows(GRACE)),
        failures=[Failure(at=f.at, version=f.version or "", reason=f.reason) for f in failures[:_SHOWN_FAILURES]],
    )


def _material(tale: Tale, summary: Summary) -> report.Material:
    where = (tale.settings.namespace, tale.settings.cycle)
    now = datetime.now(UTC)

    def series(query: str) -> list[prometheus.Series]:
        return _known(lambda: tale.prometheus.series(query, tale.began, now), [])

    if not tale.has_cluster:
        return report.Material(began=tale.began)
    return report.Material(
        began=tale.began,
        losses=_known(lambda: _losses(tale), dict[str, list[tuple[int, float]]]()),
        weights=series(prometheus.weight(*where)),
        shares=series(prometheus.feedback_share(*where, WINDOW_SECONDS)),
        latencies=series(prometheus.latency_p95(*where, WINDOW_SECONDS)),
        markers=tale.notebook.markers(),
        window_seconds=WINDOW_SECONDS,
    )


def _losses(tale: Tale) -> dict[str, list[tuple[int, float]]]:
    found = {}
    for name, version in tale.cluster.read().versions.items():
        made = version.status.artifacts.adapter
        written = None if made is None or version.spec.dataset is None else tale.store.read(f"{made.uri}/loss.json")
        if written is not None:
            found[name] = [(int(point["step"]), float(point["loss"])) for point in json.loads(written)]
    return found


def _known(read: Callable[[], T], otherwise: T) -> T:
    """What can still be read at the end; a part that was taken down must not cost the rest of the summary."""
    try:
        return read()
    except (DemoError, LocalError, OSError, ApiException, urllib3.exceptions.HTTPError, BotoCoreError, ClientError):
        return otherwise


def _show(tale: Tale, summary: Summary) -> None:
    screen = tale.screen
    for version in summary.versions:
        share = version.evidence.verdicts.share if version.evidence.verdicts is not None else None
        liked = "" if share is None else f", {share:.1%} thumbs up"
        screen.say(f"{version.name}: {version.outcome}{liked}")
        if version.evidence.gate is not None:
            screen.say(f"  gate: {version.evidence.gate.reason}: {version.evidence.gate.message}")
        if version.evidence.rollout is not None:
            took = version.evidence.rollout.regression_to_zero_seconds
            zero = "" if took is None else f" ({took:.1f} s from the first failed measurement to weight 0)"
            screen.say(f"  rollout: {version.evidence.rollout.outcome}: {version.evidence.rollout.message}{zero}")
        if version.evidence.stages:
            times = ", ".join(f"{stage.stage} {stage.wall_seconds:.0f} s" for stage in version.evidence.stages)
            screen.say(f"  stages: {times}")
    requests = summary.requests
    screen.say(
        f"requests: {requests.sent} sent, {requests.failed} failed, {requests.failed_by_rollback} of them because of a "
        f"rollout or rollback; {summary.wall_seconds / 60:.1f} minutes in all"
    )
    for fact in summary.facts:
        if not fact.holds:
            screen.bad(f"differs: {fact.text}")
    if not summary.ok:
        screen.bad(f"the story did not come out as told{': ' if summary.error else ''}{summary.error}")
    elif summary.told_until < LAST_STEP - 1:
        screen.good(f"as far as it was told, up to step {summary.told_until}, the story came out as it should")
    else:
        screen.good("the story came out as told")
    screen.say(f"{tale.settings.state / 'summary.json'}")
    screen.say(f"{tale.settings.state / 'report.html'}")


def how_to_look_around(tale: Tale) -> None:
    """What a person can type now that the platform stays up."""
    state = tale.settings.platform_state
    tale.screen.heading("The platform stays up. Look around:")
    for line in (
        f"export KUBECONFIG='{tale.platform.kubeconfig}' PATH='{tale.platform.env()['PATH'].split(':')[0]}':\"$PATH\"",
        "kubectl get cycle,mv",
        f"kubectl describe cycle {tale.settings.cycle}",
        "kubectl get pods,jobs -A",
        "kubectl logs deploy/ratchet-operator -n ratchet-system",
        f"curl {tale.gateway_url}/v1/models",
        f"ratchet local status --state '{state}'",
        f"ratchet local down --state '{state}'    # ends it",
    ):
        tale.screen.say(line)
