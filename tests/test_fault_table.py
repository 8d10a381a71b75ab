"""Each row of docs/faults.md is held by tests that are there, and speaks of conditions and reasons that are there."""

import ast
import re
from pathlib import Path

import pytest

from ratchet_api.reasons import ConditionType, Reason

ROOT = Path(__file__).parent.parent
ROUTES, PLACE = "operator_room/test_routes.py", "operator_room/test_in_place.py"
FAULTS, GIT = "operator_room/test_faults.py", "operator_room/test_proposals.py"
APPROVAL, WAITING = "operator_room/test_approval.py", "operator_room/test_waiting.py"
MANNERS, CLIENTS = "operator_room/test_manners.py", "operator_room/test_clients.py"
REPLICAS = "operator_room/test_replicas.py"
HELD_BY: dict[str, list[str]] = {
    "HTTPRoute missing": [
        f"{ROUTES}::test_a_route_that_is_not_there_stalls_until_it_is",
        f"{ROUTES}::test_a_route_deleted_in_the_canary_holds_it_and_a_rollback_ends_when_it_is_back",
    ],
    "rule or backendRef missing": [f"{ROUTES}::test_a_rule_that_cannot_be_weighed"],
    "route refused by its parent": [f"{ROUTES}::test_a_parent_that_refuses"],
    "weights changed by somebody": [
        f"{ROUTES}::test_weights_that_somebody_resets_are_set_back_and_it_is_said",
        f"{ROUTES}::test_a_reset_is_answered_once_a_pass_and_not_in_a_loop",
    ],
    "route made by another controller, or with a third backend": [
        f"{ROUTES}::test_a_route_that_another_controller_makes",
        f"{ROUTES}::test_a_rule_that_cannot_be_weighed",
    ],
    "Service or Deployment field owned by somebody else": [
        "operator_room/test_routers_apiserver.py::test_a_service_of_people_s",
        "operator_room/test_in_place_apiserver.py::test_a_field_of_ours_that_git_says_otherwise_about",
        f"{PLACE}::test_two_cycles_and_one_deployment",
    ],
    "stable arm deleted": [
        f"{FAULTS}::test_a_deleted_stable_arm_is_made_again",
        f"{FAULTS}::test_kubectl_scale_on_the_real_one",
    ],
    "candidate arm deleted": [
        f"{FAULTS}::test_a_deleted_candidate_arm_that_is_back_in_time_goes_on",
        f"{FAULTS}::test_a_deleted_candidate_arm_that_stays_away_blames_nobody",
        "operator_room/test_killed.py::test_killed_once_after_every_write_there_is",
    ],
    "arm scaled by hand": [
        f"{FAULTS}::test_a_hand_scaled_arm_is_set_back",
        f"{FAULTS}::test_kubectl_scale_on_the_real_one",
    ],
    "autoscaler against the split, or two autoscalers": [
        f"{REPLICAS}::test_an_autoscaler_is_refused_where_numbers_of_pods_are_the_split",
        f"{REPLICAS}::test_two_autoscalers_of_one_arm",
    ],
    "Deployment served in place deleted": [f"{PLACE}::test_it_is_deleted_and_applied_again"],
    "Deployment served in place scaled to 0": [f"{PLACE}::test_it_is_scaled_to_nothing"],
    "approval of another digest": [f"{APPROVAL}::test_the_canary_waits_for_the_digest"],
    "approval expired": [
        f"{APPROVAL}::test_nobody_approves_the_training",
        f"{APPROVAL}::test_nobody_approves_the_canary",
        f"{APPROVAL}::test_nobody_approves_all_traffic",
    ],
    "forge unreachable": [f"{GIT}::test_a_forge_that_is_down_holds_up_nothing"],
    "forge refuses the credentials": [f"{GIT}::test_wrong_credentials"],
    "branch protected": [f"{GIT}::test_a_protected_branch"],
    "target branch moved on": [
        f"{GIT}::test_the_target_moves_elsewhere_in_the_file",
        f"{GIT}::test_another_file_changes_and_our_branch_stays",
    ],
    "merge conflict in the pointer": [
        f"{GIT}::test_a_merge_conflict_in_the_pointer_is_a_person_s_to_solve",
        f"{GIT}::test_git_says_something_else_already",
    ],
    "a person's commit on our branch": [f"{GIT}::test_a_person_s_commit_on_our_branch_is_never_overwritten"],
    "pull request closed by a person": [
        f"{GIT}::test_a_closed_pull_request_stays_closed",
        f"{GIT}::test_a_retry_of_a_closed_one_is_proposed_anew_and_the_closed_one_never",
    ],
    "rolled-back version still in Git": [f"{GIT}::test_a_rollback_proposes_the_way_back"],
    "PromQL that gives many series": [
        f"{FAULTS}::test_a_query_that_gives_no_number_holds_and_then_returns",
        f"{CLIENTS}::test_exactly_one_finite_number",
    ],
    "metric that never has data": [f"{FAULTS}::test_a_query_that_gives_no_number_holds_and_then_returns"],
    "Prometheus down or a scrape gap": [
        f"{MANNERS}::test_prometheus_down_holds_and_then_goes_on",
        "domain/test_analysis.py::test_a_target_that_is_lost_is_stale_although_a_range_still_finds_its_past",
    ],
    "gateway silent": [f"{MANNERS}::test_a_silent_gateway_moves_nothing"],
    "Secret, suites or bucket missing": [
        f"{WAITING}::test_a_missing_secret",
        f"{WAITING}::test_missing_suites",
        f"{WAITING}::test_a_missing_bucket_is_waited_for_and_costs_no_attempt",
    ],
    "quota or admission rule lets no pod be made": [f"{WAITING}::test_a_quota_that_lets_no_pod_be_made_is_said"],
    "API server refuses an object": [f"{WAITING}::test_what_the_api_server_refuses_to_make_is_said"],
    "a create answered by 409": [f"{CLIENTS}::test_a_create_that_is_refused_is_not_taken_for_done"],
}
UNKNOWN = {"ManySeries", "NoData", "QueryError", "Stale", "AlreadyExists"}
"""Reasons of a measurement and of the API server."""


def rows() -> dict[str, list[str]]:
    """First cell -> the other ones."""
    lines = (ROOT / "docs/faults.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| **")]
    return {first.strip("*"): rest for first, *rest in cells}


def test_every_row_has_its_tests_and_every_test_its_row() -> None:
    assert sorted(rows()) == sorted(HELD_BY)
    assert [row for row, cells in rows().items() if len(cells) != 3 or not all(cells)] == []


@pytest.mark.parametrize("row", HELD_BY)
def test_the_tests_of_a_row_are_there(row: str) -> None:
    for node in HELD_BY[row]:
        file, _, name = node.partition("::")
        tree = ast.parse((ROOT / "tests" / file).read_text())
        there = {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert name in there, f"{row}: {node}"


@pytest.mark.parametrize("row", HELD_BY)
def test_what_a_row_says_is_seen_can_be_seen(row: str) -> None:
    known = {str(r) for r in Reason} | {str(c) for c in ConditionType} | UNKNOWN
    named = re.findall(r"`([A-Z]\w+)`", " ".join(rows()[row]))
    assert [word for word in named if word not in known] == []


def test_a_row_s_reasons_are_looked_for_by_its_tests() -> None:
    """What the table says is seen is what a test of that row has seen."""
    for row, cells in rows().items():
        reasons = {word for word in re.findall(r"`(\w+)`", cells[1]) if word in {str(r) for r in Reason}}
        texts = [(ROOT / "tests" / node.partition("::")[0]).read_text() for node in HELD_BY[row]]
        for reason in reasons:
            spelled = (f'"{reason}"', f"Reason.{Reason(reason).name}")
            assert any(word in text for text in texts for word in spelled), f"{row}: {reason}"
