"""Our PromQL in Prometheus' own evaluator: promtool runs the queries over made-up series."""

import json
import re
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from ratchet_api.rollout import Metric
from ratchet_local.build import ensure
from ratchet_operator.domain import queries

WINDOW = timedelta(seconds=90)
ARM = 'cycle_namespace="default",cycle="assistant",version="assistant-7"'
OTHER = ARM.replace("assistant-7", "assistant-6")


@pytest.fixture(scope="module")
def promtool() -> Path:
    """Prometheus' tool, built or found."""
    return ensure({"promtool"}, print)["promtool"]


def evaluate(
    promtool: Path, folder: Path, series: dict[str, str], expected: list[tuple[str | None, int, float | None]]
) -> None:
    """Series scraped each 10 s; (query, at which second, its one value or None for no series at all)."""
    tests = [
        {
            "expr": query,
            "eval_time": f"{at}s",
            "exp_samples": [] if value is None else [{"labels": "{}", "value": value}],
        }
        for query, at, value in expected
    ]
    inputs = [{"series": name, "values": values} for name, values in series.items()]
    document: dict[str, Any] = {
        "fuzzy_compare": True,
        "evaluation_interval": "10s",
        "tests": [{"interval": "10s", "input_series": inputs, "promql_expr_test": tests}],
    }
    file = folder / "test.yaml"
    file.write_text(json.dumps(document))
    done = subprocess.run([promtool, "test", "rules", file], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def documented(name: str) -> queries.ArmQueries:
    """Queries of assistant-7 by the metric of that name in docs/routing.md."""
    page = (Path(__file__).parents[2] / "docs/routing.md").read_text()
    found = [block for block in re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL) if name in block]
    (cycle,) = [d for d in yaml.safe_load_all(found[0]) if d["kind"] == "ImprovementCycle"]
    (metric,) = [Metric.model_validate(m) for m in cycle["spec"]["rollout"]["metrics"] if m["name"] == name]
    return queries.arm_queries(metric, "default", "assistant", "assistant-7", WINDOW)


def test_the_documented_errors_of_vllm(promtool: Path, tmp_path: Path) -> None:
    """Of the arm's own completions, and none failed is 0, while no request at all is no data."""
    name = "http_requests_total"
    mine = 'namespace="default",pod="assistant-7-arm-6d5f7c9b8d-x2x7k",method="POST"'
    other = 'namespace="default",pod="assistant-70-arm-6d5f7c9b8d-x2x7k",method="POST"'
    chat, probe = 'handler="/v1/chat/completions"', 'handler="/v1/models"'
    asked = documented("errors")
    healthy = {
        f'{name}{{{mine},{chat},status="2xx"}}': "0+2x30",
        f'{name}{{{mine},{probe},status="2xx"}}': "0+7x30",
        f'{name}{{{other},{chat},status="5xx"}}': "0+9x30",
    }
    evaluate(promtool, tmp_path, healthy, [(asked.bad, 120, 0), (asked.all, 120, 18)])
    failing = healthy | {f'{name}{{{mine},{chat},status="5xx"}}': "0+1x30"}
    evaluate(promtool, tmp_path, failing, [(asked.bad, 120, 9), (asked.all, 120, 27)])
    evaluate(promtool, tmp_path, {f'{name}{{{other},{chat},status="2xx"}}': "0+2x30"}, [(asked.all, 120, None)])


def ask(preset: str) -> queries.ArmQueries:
    """The preset's queries of assistant-7."""
    metric = Metric.model_validate({"name": preset.lower(), "preset": preset})
    return queries.arm_queries(metric, "default", "assistant", "assistant-7", WINDOW)


def test_feedback(promtool: Path, tmp_path: Path) -> None:
    name = "ratchet_gateway_feedback_total"
    asked = ask("feedback")
    series = {
        f'{name}{{{ARM},value="down",pod="a"}}': "0+1x30",
        f'{name}{{{ARM},value="down",pod="b"}}': "0+2x30",
        f'{name}{{{ARM},value="up",pod="a"}}': "0+3x30",
        f'{name}{{{OTHER},value="down",pod="a"}}': "0+100x30",
    }
    # Prometheus extrapolates to the window's ends: 8 steps are seen in 90 s, and 9 are told.
    evaluate(promtool, tmp_path, series, [(asked.bad, 300, 27), (asked.all, 300, 54), (asked.age, 300, 0)])


def test_no_thumbs_down_yet_is_none_and_no_feedback_at_all_is_no_data(promtool: Path, tmp_path: Path) -> None:
    asked = ask("feedback")
    only_up = {f'ratchet_gateway_feedback_total{{{ARM},value="up"}}': "0+3x30"}
    evaluate(promtool, tmp_path, only_up, [(asked.bad, 300, 0), (asked.all, 300, 27)])
    nothing = {f'ratchet_gateway_feedback_total{{{OTHER},value="up"}}': "0+3x30"}
    evaluate(promtool, tmp_path, nothing, [(asked.bad, 300, 0), (asked.all, 300, None), (asked.age, 300, None)])


def test_a_gateway_that_is_scraped_no_more_is_seen_by_its_age(promtool: Path, tmp_path: Path) -> None:
    series = {f'ratchet_gateway_feedback_total{{{ARM},value="up"}}': "0+3x6 _x30"}
    evaluate(promtool, tmp_path, series, [(ask("feedback").age, 240, 180)])


def test_a_restarted_gateway_counts_on(promtool: Path, tmp_path: Path) -> None:
    asked = ask("feedback")
    series = {f'ratchet_gateway_feedback_total{{{ARM},value="up"}}': "100+3x5 0+3x24"}
    evaluate(promtool, tmp_path, series, [(asked.all, 90, 27 - 3 * 9 / 8)])


def test_errors(promtool: Path, tmp_path: Path) -> None:
    name = "ratchet_gateway_requests_total"
    asked = ask("errors")
    codes = {"200": 10, "404": 4, "500": 1, "503": 2}
    series = {f'{name}{{{ARM},code="{code}"}}': f"0+{rate}x30" for code, rate in codes.items()}
    evaluate(promtool, tmp_path, series, [(asked.bad, 300, 27), (asked.all, 300, 17 * 9)])


@pytest.mark.parametrize(
    ("preset", "name"),
    [
        ("latencyP95", "ratchet_gateway_request_duration_seconds"),
        ("timeToFirstTokenP95", "ratchet_gateway_time_to_first_token_seconds"),
    ],
)
def test_quantiles(promtool: Path, tmp_path: Path, preset: str, name: str) -> None:
    asked = ask(preset)
    buckets = {"1": 8, "2": 9, "4": 10, "+Inf": 10}
    series = {f'{name}_bucket{{{ARM},le="{le}"}}': f"0+{rate}x30" for le, rate in buckets.items()}
    series[f"{name}_count{{{ARM}}}"] = "0+10x30"
    evaluate(promtool, tmp_path, series, [(asked.value, 300, 3), (asked.samples, 300, 90), (asked.age, 300, 0)])


def test_vllm_s_own_figures(promtool: Path, tmp_path: Path) -> None:
    name, asked = "vllm:e2e_request_latency_seconds", ask("vllmLatencyP95")
    pod = 'namespace="default",pod="assistant-7-arm-5d8f9c7b6-x2k4p"'
    other = 'namespace="default",pod="assistant-71-arm-5d8f9c7b6-x2k4p"'
    buckets = {"1": 8, "2": 9, "4": 10, "+Inf": 10}
    series = {f'{name}_bucket{{{pod},le="{le}"}}': f"0+{rate}x30" for le, rate in buckets.items()}
    series |= {f'{name}_bucket{{{other},le="{le}"}}': "0+50x30" for le in buckets}
    series |= {f"{name}_count{{{pod}}}": "0+10x30", f"{name}_count{{{other}}}": "0+50x30"}
    evaluate(promtool, tmp_path, series, [(asked.value, 300, 3), (asked.samples, 300, 90), (asked.age, 300, 0)])
