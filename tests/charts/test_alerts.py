"""Alerts and dashboard: Prometheus' own tool judges them, over series that operator and gateway really export."""

import json
import re
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from ratchet_api.conditions import merged
from ratchet_api.cycle import (
    Arm,
    Good,
    HistoryEntry,
    ImprovementCycleStatus,
    Rejected,
    RolloutStatus,
    RunOutcome,
    RunStage,
    RunStatus,
    ServingStatus,
)
from ratchet_api.reasons import ConditionType, Reason
from ratchet_gateway.metrics import Metrics as GatewayMetrics
from ratchet_local.build import ensure
from ratchet_operator.metrics import Metrics
from ratchet_operator.snapshots import FAMILIES

from .conftest import Render

NOW = datetime(2026, 11, 23, tzinfo=UTC)
WHERE = 'cycle_namespace="shop",cycle="assistant"'
ADDED_BY_SCRAPE = {"pod", "namespace", "job", "instance", "container"}

OPERATOR = "ratchet_operator"
DAY, HOUR = 1440, 60
"""Minutes: promtool's clock begins at 0, the epoch, so that a constant 60 is a moment one minute after it."""

Case = tuple[dict[str, str], int, bool]
"""Series -> values, one a minute; at which minute; whether it fires then."""
CASES: dict[str, list[Case]] = {
    "RatchetNotReady": [
        ({f'{OPERATOR}_cycle_condition{{{WHERE},condition="Ready"}}': "0x20",
          f"{OPERATOR}_champion_since_timestamp_seconds{{{WHERE}}}": "60x20"}, 10, True),
        ({f'{OPERATOR}_cycle_condition{{{WHERE},condition="Ready"}}': "0x20",
          f"{OPERATOR}_champion_since_timestamp_seconds{{{WHERE}}}": "60x20"}, 3, False),
        ({f'{OPERATOR}_cycle_condition{{{WHERE},condition="Ready"}}': "1x20",
          f"{OPERATOR}_champion_since_timestamp_seconds{{{WHERE}}}": "60x20"}, 10, False),
        ({f'{OPERATOR}_cycle_condition{{{WHERE},condition="Ready"}}': "0x20"}, 10, False),
    ],
    "RatchetRolledBack": [
        ({f'{OPERATOR}_history_last_timestamp_seconds{{{WHERE},outcome="RolledBack"}}': "600x200"}, 30, True),
        ({f'{OPERATOR}_history_last_timestamp_seconds{{{WHERE},outcome="RolledBack"}}': "600x200"}, 71, False),
        ({f'{OPERATOR}_history_last_timestamp_seconds{{{WHERE},outcome="Promoted"}}': "600x200"}, 30, False),
    ],
    "RatchetRollbackStuck": [
        ({f'{OPERATOR}_cycle_phase{{{WHERE},phase="RollingBack"}}': "1x20"}, 3, True),
        ({f'{OPERATOR}_cycle_phase{{{WHERE},phase="RollingBack"}}': "1 stale"}, 3, False),
        ({f'{OPERATOR}_cycle_phase{{{WHERE},phase="Canary"}}': "1x20"}, 3, False),
    ],
    "RatchetRolloutHeld": [
        ({f"{OPERATOR}_rollout_held_since_timestamp_seconds{{{WHERE}}}": "0x60"}, 16, True),
        ({f"{OPERATOR}_rollout_held_since_timestamp_seconds{{{WHERE}}}": "0x60"}, 14, False),
    ],
    "RatchetApprovalWaits": [
        ({f"{OPERATOR}_rollout_awaiting_since_timestamp_seconds{{{WHERE}}}": "0x2000"}, DAY + 1, True),
        ({f"{OPERATOR}_rollout_awaiting_since_timestamp_seconds{{{WHERE}}}": "0x2000"}, DAY - 1, False),
    ],
    "RatchetRunFailed": [
        ({f'{OPERATOR}_run_ended_timestamp_seconds{{{WHERE},outcome="Failed"}}': "60x2000"}, HOUR, True),
        ({f'{OPERATOR}_run_ended_timestamp_seconds{{{WHERE},outcome="Skipped"}}': "60x2000"}, HOUR, False),
        ({f'{OPERATOR}_run_ended_timestamp_seconds{{{WHERE},outcome="Failed"}}': "60x2000"}, DAY + 2, False),
    ],
    "RatchetRunLong": [
        ({f'{OPERATOR}_run_started_timestamp_seconds{{{WHERE},stage="Training"}}': "0x2000"}, DAY + 1, True),
        ({f'{OPERATOR}_run_started_timestamp_seconds{{{WHERE},stage="Training"}}': "0x2000"}, DAY - 1, False),
        ({f'{OPERATOR}_run_started_timestamp_seconds{{{WHERE},stage="RollingOut"}}': "0x2000"}, DAY + 1, False),
    ],
    "RatchetStalled": [
        ({f'{OPERATOR}_stalled{{kind="ModelVersion",object_namespace="shop",name="a-1"}}': "1x20"}, 6, True),
        ({f'{OPERATOR}_stalled{{kind="ModelVersion",object_namespace="shop",name="a-1"}}': "1x3 0x9"}, 6, False),
    ],
    "RatchetNoLeader": [
        ({f'{OPERATOR}_leader{{pod="a"}}': "0x20"}, 3, True),
        ({}, 3, True),
        ({f'{OPERATOR}_leader{{pod="a"}}': "0x20", f'{OPERATOR}_leader{{pod="b"}}': "1x20"}, 3, False),
    ],
    "RatchetReconcileErrors": [
        ({f'{OPERATOR}_reconciles_total{{kind="ModelVersion",result="error"}}': "0+6x40"}, 20, True),
        ({f'{OPERATOR}_reconciles_total{{kind="ModelVersion",result="conflict"}}': "0+6x40"}, 20, False),
        ({f'{OPERATOR}_reconciles_total{{kind="ModelVersion",result="unavailable"}}': "0 6x40"}, 20, False),
    ],
    "RatchetQueueLong": [
        ({f"{OPERATOR}_queue_depth": "50x30"}, 20, True),
        ({f"{OPERATOR}_queue_depth": "50x11 0 50x30"}, 20, False),
    ],
    "RatchetGatewayErrors": [
        ({f'ratchet_gateway_requests_total{{{WHERE},version="v",code="502"}}': "0+10x40",
          f'ratchet_gateway_requests_total{{{WHERE},version="v",code="200"}}': "0+90x40"}, 20, True),
        ({f'ratchet_gateway_requests_total{{{WHERE},version="v",code="502"}}': "0+1x40",
          f'ratchet_gateway_requests_total{{{WHERE},version="v",code="200"}}': "0+90x40"}, 20, False),
        ({f'ratchet_gateway_requests_total{{{WHERE},version="v",code="502"}}': "0x40",
          f'ratchet_gateway_requests_total{{{WHERE},version="v",code="200"}}': "0x40"}, 20, False),
    ],
    "RatchetInteractionsDropped": [
        ({f'ratchet_gateway_interactions_total{{{WHERE},version="v",state="dropped"}}': "0x5 3x30"}, 10, True),
        ({f'ratchet_gateway_interactions_total{{{WHERE},version="v",state="uploaded"}}': "0x5 3x30"}, 10, False),
    ],
    "RatchetUploadsFail": [
        ({f"ratchet_gateway_upload_failures_total{{{WHERE}}}": "0+1x40"}, 20, True),
        ({f"ratchet_gateway_upload_failures_total{{{WHERE}}}": "0 1x40"}, 20, False),
    ],
    "RatchetGatewayBlind": [
        ({'ratchet_gateway_watch_up{resource="pods",watch_namespace="shop",pod="g"}': "0x20"}, 6, True),
        ({'ratchet_gateway_watch_up{resource="pods",watch_namespace="shop",pod="g"}': "0x2 1x20"}, 6, False),
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def promtool() -> Path:
    """Prometheus' tool, built or found."""
    return ensure({"promtool"}, print)["promtool"]


def run(promtool: Path, *arguments: str | Path) -> None:
    """Fails with what the tool says."""
    done = subprocess.run([promtool, *arguments], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def groups(repository: Path) -> list[dict[str, Any]]:
    """The rule groups of the chart."""
    found: list[dict[str, Any]] = yaml.safe_load((repository / "charts/ratchet/rules.yaml").read_text())["groups"]
    return found


@pytest.fixture(scope="module")
def queries(repository: Path) -> dict[str, str]:
    """The dashboard's: title and letter -> expression, its variables as Grafana would fill them in."""
    document = json.loads((repository / "charts/ratchet/dashboards/ratchet.json").read_text())
    fill = {"$__rate_interval": "1m", "$__range": "1h", "$namespace": ".*", "$cycle": ".*"}
    found = {}
    for panel in document["panels"]:
        for target in panel["targets"]:
            text = target["expr"]
            for variable, value in fill.items():
                text = text.replace(variable, value)
            assert "$" not in text, f"{panel['title']}: a variable that nobody fills in"
            found[f"{panel['title']} {target['refId']}"] = text
    return found


def status(held: bool = True) -> ImprovementCycleStatus:
    """A status in which everything is there that may be there."""
    arm = Arm(
        version="a-1", deployment="a-1-arm", model_name="a-1", port=8000, weight=75, observed_weight=75, since=NOW
    )
    conditions = merged([], ConditionType.READY, True, Reason.IDLE, "", 1, NOW)
    since = NOW if held else None
    rollout = RolloutStatus(
        version="a-2", digest="", phase="Canary", weight=25, started_at=NOW, step_since=NOW, held_since=since,
        awaiting_since=since,
    )  # fmt: skip
    return ImprovementCycleStatus(
        phase="Held", conditions=conditions, serving=ServingStatus(stable=arm, candidate=arm), rollout=rollout,
        run=RunStatus(number=1, stage="Training", started_at=NOW),
        last_good=[Good(version="a-1", digest="", at=NOW)],
        history=[HistoryEntry(version="", outcome=outcome, at=NOW) for outcome in get_args(RunOutcome)],
        rejected=[Rejected(digest="", version="a-0", reason="CheckFailed", at=NOW)],
    )  # fmt: skip


def exposed(text: str) -> dict[str, set[str]]:
    """Name of each series in an exposition -> its labels."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def scrape(registry: CollectorRegistry) -> str:
    """What the process answers to Prometheus."""
    return generate_latest(registry).decode()


@pytest.fixture(scope="module")
def exports() -> dict[str, set[str]]:
    """Every series of operator and gateway, by the code that makes them."""
    operator = Metrics()
    operator.cycle("shop", "assistant", status())
    ended = RunStatus(number=1, stage="Done", started_at=NOW, finished_at=NOW, outcome="Failed")
    operator.cycle("shop", "other", status().model_copy(update={"run": ended}))
    operator.reconciles.labels("ImprovementCycle", "done").inc()
    operator.duration.labels("ImprovementCycle").observe(1)
    operator.writes.labels("status", "ImprovementCycle").inc()
    operator.rollouts.labels("shop", "assistant", "RolledBack", "CheckFailed").inc()
    operator.runs.labels("shop", "assistant", "Failed").inc()
    gateway = GatewayMetrics()
    arm = gateway.arm("shop", "assistant", "a-1")
    arm.requests(502).inc()
    gateway.refused.labels("404").inc()
    gateway.upload_failures.labels("shop", "assistant").inc()
    gateway.watch_up.labels("pods", "shop").set(1)
    return exposed(scrape(operator.registry)) | exposed(scrape(gateway.registry))


SELECTOR = re.compile(r"\b(ratchet_[a-z0-9_]+)(?:\{([^}]*)\})?")


def unknown(expression: str, exports: dict[str, set[str]]) -> list[str]:
    """Names and labels of a query that nobody exports."""
    wrong, known = [], set(ADDED_BY_SCRAPE)
    for name, selector in SELECTOR.findall(expression):
        if name not in exports:
            wrong.append(name)
            continue
        known |= exports[name]
        wrong += [f"{name}: {label}" for label in re.findall(r"([a-z_]+)\s*(?:=~|!~|!=|=)", selector)
                  if label not in exports[name] | ADDED_BY_SCRAPE]  # fmt: skip
    for listed in re.findall(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)", expression):
        wrong += [label.strip() for label in listed.split(",") if label.strip() not in known]
    return wrong


def test_the_check_of_names_sees_what_is_wrong(exports: dict[str, set[str]]) -> None:
    assert unknown("ratchet_operator_leadr == 1", exports) == ["ratchet_operator_leadr"]
    assert unknown('ratchet_operator_leader{cycle="a"}', exports) == ["ratchet_operator_leader: cycle"]
    assert unknown("sum by (version) (ratchet_operator_leader)", exports) == ["version"]


def test_rules_are_rules(promtool: Path, repository: Path) -> None:
    run(promtool, "check", "rules", "--lint=all", "--lint-fatal", repository / "charts/ratchet/rules.yaml")


def test_rules_ask_for_what_is_exported(groups: list[dict[str, Any]], exports: dict[str, set[str]]) -> None:
    for rule in (rule for group in groups for rule in group["rules"]):
        assert unknown(rule["expr"], exports) == [], rule["alert"]
        labels = set.union(*(exports[name] for name, _ in SELECTOR.findall(rule["expr"])))
        said = set(re.findall(r"\$labels\.([a-z_]+)", " ".join(rule["annotations"].values())))
        assert said <= labels, rule["alert"]
        assert set(rule["annotations"]) == {"summary", "description"}, rule["alert"]
        assert rule["labels"]["severity"] in ("info", "warning", "critical"), rule["alert"]


def test_dashboard_asks_for_what_is_exported(
    promtool: Path, tmp_path: Path, queries: dict[str, str], exports: dict[str, set[str]]
) -> None:
    for title, query in queries.items():
        assert unknown(query, exports) == [], title
    rules = [{"record": f"panel:{number}", "expr": query} for number, query in enumerate(queries.values())]
    file = tmp_path / "rules.yaml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    run(promtool, "check", "rules", "--lint=all", "--lint-fatal", file)


def test_dashboard_shows_something(
    promtool: Path, tmp_path: Path, queries: dict[str, str], exports: dict[str, set[str]]
) -> None:
    """With traffic of two versions in every series, each panel has a value."""
    values = {"cycle_namespace": "shop", "cycle": "assistant", "le": "1", "code": "502", "value": "down"}
    series = []
    for name, labels in exports.items():
        for version in ("a-1", "a-2"):
            pairs = ",".join(f'{k}="{values.get(k, version)}"' for k in sorted(labels))
            series.append({"series": f"{name}{{{pairs}}}" if pairs else name, "values": "0+1x120"})
            for le in ("2", "+Inf") if "le" in labels else ():
                more = pairs.replace('le="1"', f'le="{le}"')
                series.append({"series": f"{name}{{{more}}}", "values": "0+2x120"})
    unique = list({entry["series"]: entry for entry in series}.values())
    tests = [{"expr": f"count({query}) > bool 0", "eval_time": "100m", "exp_samples": [{"labels": "{}", "value": 1}]}
             for query in queries.values()]  # fmt: skip
    document = {"evaluation_interval": "1m",
                "tests": [{"interval": "20s", "input_series": unique, "promql_expr_test": tests}]}  # fmt: skip
    for entry in unique:
        entry["values"] = entry["values"].replace("x120", "x400")
    file = tmp_path / "test.yaml"
    file.write_text(json.dumps(document))
    run(promtool, "test", "rules", file)


def test_every_alert_has_its_cases(groups: list[dict[str, Any]]) -> None:
    assert set(CASES) == {rule["alert"] for group in groups for rule in group["rules"]}
    for alert, cases in CASES.items():
        assert {fires for *_, fires in cases} == {True, False}, f"{alert} has no case in which it fires, or does not"


@pytest.mark.parametrize("alert", CASES)
def test_alert_fires_when_it_should_and_only_then(
    promtool: Path, tmp_path: Path, groups: list[dict[str, Any]], exports: dict[str, set[str]], alert: str
) -> None:
    """Its rule alone: each of them over each minute of a day takes Prometheus' tool minutes on busy cores."""
    [rule] = [rule for group in groups for rule in group["rules"] if rule["alert"] == alert]
    rules = tmp_path / "rules.yaml"
    rules.write_text(json.dumps({"groups": [{"name": "one", "rules": [rule]}]}))
    tests = []
    for series, minute, fires in CASES[alert]:
        assert [bad for name in series for bad in unknown(name, exports)] == []
        # Which labels an alert has is said by its expression; here only the number counts.
        count = {
            "expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})',
            "eval_time": f"{minute}m",
            "exp_samples": [{"labels": "{}", "value": 1}] if fires else [],
        }
        inputs = [{"series": name, "values": values} for name, values in series.items()]
        tests.append({"interval": "1m", "input_series": inputs, "promql_expr_test": [count]})
    file = tmp_path / "test.yaml"
    file.write_text(json.dumps({"rule_files": [str(rules)], "evaluation_interval": "1m", "tests": tests}))
    run(promtool, "test", "rules", file)


def test_the_chart_installs_the_very_files(render: Render, repository: Path, groups: list[dict[str, Any]]) -> None:
    values = {"metrics": {"rules": {"enabled": True}, "dashboard": {"enabled": True}}}
    rendered = render(values)
    [rule] = rendered.of("PrometheusRule")
    assert rule["spec"] == {"groups": groups}
    board = rendered.only("ConfigMap", "ratchet-dashboard")
    assert board["metadata"]["labels"]["grafana_dashboard"] == "1"
    source = json.loads((repository / "charts/ratchet/dashboards/ratchet.json").read_text())
    assert json.loads(board["data"]["ratchet.json"]) == source
    assert [o["kind"] for o in render().objects if o["kind"] in ("PrometheusRule",)] == []


def test_page_names_every_alert_and_every_series(
    repository: Path, groups: list[dict[str, Any]], exports: dict[str, set[str]]
) -> None:
    text = (repository / "docs/observability.md").read_text()
    alerts = {rule["alert"] for group in groups for rule in group["rules"]}
    assert set(re.findall(r"`(Ratchet[A-Za-z]+)`", text)) == alerts
    named = set(re.findall(r"`(ratchet_[a-z_]+)`", text))
    ours = {name for name in exports if name.startswith("ratchet_") and not name.endswith("_created")}
    stems = {re.sub(r"_(bucket|count|sum)$", "", name) for name in ours}
    assert named == stems, named ^ stems


class TestSnapshots:
    def test_what_is_not_so_is_not_exported(self) -> None:
        metrics = Metrics()
        metrics.cycle("shop", "assistant", status(held=False))
        found = exposed(scrape(metrics.registry))
        assert "ratchet_operator_rollout_held_since_timestamp_seconds" not in found
        assert "ratchet_operator_rollout_awaiting_since_timestamp_seconds" not in found
        metrics.cycle("shop", "assistant", status())
        found = exposed(scrape(metrics.registry))
        assert "ratchet_operator_rollout_held_since_timestamp_seconds" in found

    def test_a_moment_is_exact(self) -> None:
        metrics = Metrics()
        earlier = HistoryEntry(version="", outcome="Failed", at=NOW - timedelta(hours=1))
        latest = HistoryEntry(version="", outcome="Failed", at=NOW)
        metrics.cycle("shop", "assistant", ImprovementCycleStatus(history=[latest, earlier]))
        labels = {"cycle_namespace": "shop", "cycle": "assistant", "outcome": "Failed"}
        name = "ratchet_operator_history_last_timestamp_seconds"
        assert metrics.registry.get_sample_value(name, labels) == NOW.timestamp()

    def test_a_cycle_that_is_gone_leaves_nothing(self) -> None:
        metrics = Metrics()
        metrics.cycle("shop", "assistant", status(), stalled=True)
        metrics.cycle("shop", "other", status())
        metrics.cycle("shop", "assistant", None)
        text = scrape(metrics.registry)
        assert 'cycle="assistant"' not in text
        assert 'name="assistant"' not in text
        assert 'cycle="other"' in text

    def test_who_does_not_lead_any_more_exports_no_cycle(self) -> None:
        metrics = Metrics()
        metrics.lead(True)
        metrics.cycle("shop", "assistant", status(), stalled=True)
        metrics.lead(False)
        assert "assistant" not in scrape(metrics.registry)
        assert metrics.registry.get_sample_value("ratchet_operator_leader") == 0

    def test_labels_have_few_values(self) -> None:
        """Besides the cycle's own name only closed sets, and one version."""
        closed = {"phase", "condition", "version", "arm", "stage", "outcome"}
        assert {label for family in FAMILIES for label in family.labels} == closed
        assert len(get_args(RunOutcome)) < 10 > len(get_args(RunStage))
