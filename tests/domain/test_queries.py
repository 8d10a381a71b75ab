"""PromQL by metric, arm and phase."""

from datetime import timedelta

import pytest

from ratchet_api.rollout import Metric
from ratchet_operator.domain import queries, rollout

from .support import DIGEST, FEEDBACK, NOW, P95, after, baking, canary, policy, reference

WINDOW = timedelta(seconds=90)
SELECTOR = 'cycle_namespace="default",cycle="assistant",version="assistant-7"'


def ask(metric: Metric) -> queries.ArmQueries:
    """The queries of assistant-7 over 90 s."""
    return queries.arm_queries(metric, "default", "assistant", "assistant-7", WINDOW)


def test_feedback() -> None:
    series = "ratchet_gateway_feedback_total"
    assert ask(FEEDBACK) == queries.ArmQueries(
        bad=f'sum(increase({series}{{{SELECTOR},value="down"}}[1m30s])) or vector(0)',
        all=f"sum(increase({series}{{{SELECTOR}}}[1m30s]))",
        age=f"time() - max(timestamp({series}{{{SELECTOR}}}))",
    )


def test_errors_count_what_the_server_got_wrong() -> None:
    asked = ask(Metric(name="errors", preset="errors"))
    assert asked.bad == f'sum(increase(ratchet_gateway_requests_total{{{SELECTOR},code=~"5.."}}[1m30s])) or vector(0)'
    assert asked.all == f"sum(increase(ratchet_gateway_requests_total{{{SELECTOR}}}[1m30s]))"


@pytest.mark.parametrize(
    ("preset", "series"),
    [
        ("latencyP95", "ratchet_gateway_request_duration_seconds"),
        ("timeToFirstTokenP95", "ratchet_gateway_time_to_first_token_seconds"),
    ],
)
def test_quantiles(preset: str, series: str) -> None:
    assert ask(Metric.model_validate({"name": "p95", "preset": preset})) == queries.ArmQueries(
        value=f"histogram_quantile(0.95, sum by (le) (increase({series}_bucket{{{SELECTOR}}}[1m30s])))",
        samples=f"sum(increase({series}_count{{{SELECTOR}}}[1m30s]))",
        age=f"time() - max(timestamp({series}_count{{{SELECTOR}}}))",
    )


@pytest.mark.parametrize(
    ("preset", "series"),
    [
        ("vllmLatencyP95", "vllm:e2e_request_latency_seconds"),
        ("vllmTimeToFirstTokenP95", "vllm:time_to_first_token_seconds"),
    ],
)
def test_vllm_s_own_figures_are_those_of_the_arm_s_pods(preset: str, series: str) -> None:
    pods = 'namespace="default",pod=~"assistant-7-arm-[a-z0-9]+-[a-z0-9]+"'
    assert ask(Metric.model_validate({"name": "p95", "preset": preset})) == queries.ArmQueries(
        value=f"histogram_quantile(0.95, sum by (le) (increase({series}_bucket{{{pods}}}[1m30s])))",
        samples=f"sum(increase({series}_count{{{pods}}}[1m30s]))",
        age=f"time() - max(timestamp({series}_count{{{pods}}}))",
    )


def test_pods_of_a_long_name_are_found_by_what_kubernetes_leaves_of_it() -> None:
    metric = Metric(name="p95", preset="vllmLatencyP95")
    asked = queries.arm_queries(metric, "default", "assistant", "a" * 60, WINDOW)
    assert asked.samples is not None
    assert f'pod=~"{"a" * 46}[-a-z0-9]+"' in asked.samples


def test_variables_of_a_custom_query_are_filled() -> None:
    metric = Metric(
        name="refusals",
        kind="proportion",
        bad='increase(refused{ns="{{ namespace }}",cycle="{{cycle}}",version="{{ version  }}"}[{{ window }}])',
        all="b",
    )
    asked = ask(metric)
    assert asked.bad == 'increase(refused{ns="default",cycle="assistant",version="assistant-7"}[1m30s])'
    assert (asked.all, asked.value, asked.samples, asked.age) == ("b", None, None, None)


@pytest.mark.parametrize("variable", ["verison", "", "version.name", "version }"])
def test_an_unknown_variable_is_a_sentence(variable: str) -> None:
    metric = Metric(name="slow", kind="threshold", query=f"x{{{{ {variable} }}}}", max=1)
    with pytest.raises(ValueError, match=r"rollout\.metrics\[slow\]\.query: unknown variable .*write one of namespace"):
        queries.check_queries(policy(metrics=[metric]))


def test_good_queries_pass_the_check() -> None:
    queries.check_queries(policy(metrics=[FEEDBACK, P95]))


@pytest.mark.parametrize("window", [timedelta(0), timedelta(seconds=-5), timedelta(microseconds=3)])
def test_a_range_is_never_empty(window: timedelta) -> None:
    asked = queries.arm_queries(FEEDBACK, "default", "assistant", "assistant-7", window)
    assert asked.all is not None
    assert "[1s]" in asked.all


THRESHOLD = Metric(name="gpu", kind="threshold", query="x[{{ window }}]", max=1)


def plan(status: rollout.RolloutStatus, seconds: float = 70) -> dict[str, queries.Look]:
    """The plan of a look `seconds` after NOW, by metric."""
    spec = policy(metrics=[FEEDBACK, P95, THRESHOLD], window=timedelta(minutes=5))
    looks = queries.plan(status, spec, spec.metrics, "default", "assistant", "assistant-6", after(seconds))
    return {look.metric.name: look for look in looks}


def test_proportions_count_since_the_step_began_and_the_rest_in_the_window() -> None:
    looks = plan(canary())
    feedback, p95, gpu = looks["feedback"], looks["p95"], looks["gpu"]
    assert feedback.stable is not None
    assert p95.stable is not None
    assert '"assistant-7"}[1m10s]' in (feedback.candidate.all or "")
    assert '"assistant-6"}[1m10s]' in (feedback.stable.all or "")
    assert '"assistant-7"}[5m]' in (p95.candidate.value or "")
    assert '"assistant-6"}[5m]' in (p95.stable.value or "")
    assert gpu.candidate.value == "x[5m]"
    assert gpu.stable is None


def test_proportions_are_also_asked_for_over_the_last_moments() -> None:
    long, short = plan(canary(), 600)["feedback"].recent
    assert (long.length, short.length) == (timedelta(minutes=5), timedelta(seconds=75))
    for look, duration in ((long, "[5m]"), (short, "[1m15s]")):
        assert look.stable is not None
        for arm, version in ((look.candidate, "assistant-7"), (look.stable, "assistant-6")):
            assert f'"{version}"}}{duration}' in (arm.all or "")
            assert duration in (arm.bad or "")
            assert (arm.value, arm.samples, arm.age) == (None, None, None)
    assert [len(look.recent) for look in plan(canary(), 600).values()] == [2, 0, 0]


@pytest.mark.parametrize(("seconds", "expected"), [(70, 0), (80, 1), (299, 1), (301, 2)])
def test_but_not_over_more_than_the_step(seconds: int, expected: int) -> None:
    assert len(plan(canary(), seconds)["feedback"].recent) == expected


def test_before_the_start_nothing_is_recent() -> None:
    assert plan(rollout.begin("assistant-7", DIGEST, True, NOW))["feedback"].recent == ()


def test_at_100_percent_only_the_candidate_is_asked_for_the_last_moments() -> None:
    assert [look.stable for look in plan(baking(), 600)["feedback"].recent] == [None, None]


def test_at_100_percent_stable_is_not_asked_but_remembered() -> None:
    looks = plan(baking())
    assert looks["feedback"].stable is None
    assert looks["feedback"].reference == reference()
    assert looks["p95"].stable is None
    assert looks["p95"].reference is None


def test_before_the_start_stable_is_asked_for_as_long_as_the_bake() -> None:
    looks = plan(rollout.begin("assistant-7", DIGEST, True, NOW))
    assert looks["feedback"].stable is not None
    assert '"assistant-6"}[5m]' in (looks["feedback"].stable.all or "")
    assert looks["feedback"].reference is None


def test_every_query_is_of_both_arms_over_one_window() -> None:
    for look in plan(canary()).values():
        if look.stable is None:
            continue
        theirs = [query.replace("assistant-6", "assistant-7") for query in vars(look.stable).values() if query]
        assert theirs == [query for query in vars(look.candidate).values() if query]
