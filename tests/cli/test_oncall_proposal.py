"""Mode Git on the screen of a person on call, in what `explain` says and in what `retry` does."""

import dataclasses
import io

import pytest
from tests.cli.oncall_states import NOW, STATES

from ratchet_api.conditions import Condition
from ratchet_api.promotion import Proposal, ProposalState
from ratchet_api.reasons import ConditionType
from ratchet_api.version import ModelVersion
from ratchet_cli.oncall import actions
from ratchet_cli.oncall.actions import Create
from ratchet_cli.oncall.errors import Refused
from ratchet_cli.oncall.explain import explain
from ratchet_cli.oncall.screen import console
from ratchet_cli.oncall.tree import cycle_tree
from ratchet_cli.oncall.view import View

URL = "https://git.example.com/acme/models/pulls/7"
CONDITIONS = [Condition(type=ConditionType.ACCEPTED, status="True", reason="Accepted", last_transition_time=NOW)]


def drawn(state: ProposalState, url: str = URL) -> str:
    found = Proposal(
        kind="Promote", version="assistant-2", replaces="assistant-1", state=state, branch="ratchet/assistant-2-0a",
        pull_request=url, since=NOW,
    )  # fmt: skip
    view = STATES["idle"]
    status = view.cycle.status.model_copy(update={"promotion": found})
    view = dataclasses.replace(view, cycle=view.cycle.model_copy(update={"status": status}))
    out = io.StringIO()
    console(out).print(cycle_tree(view, NOW))
    return out.getvalue()


@pytest.mark.parametrize("state", ["Open", "Merged", "Closed"])
def test_a_pull_request_is_shown_with_its_state(state: ProposalState) -> None:
    assert f"pull request {URL} promotes assistant-2: {state.lower()}" in drawn(state)


def test_without_a_forge_the_branch_is_shown() -> None:
    assert "branch ratchet/assistant-2-0a promotes assistant-2: pushed" in drawn("Pushed", url="")


@pytest.mark.parametrize("state", ["Arrived", "Withdrawn"])
def test_what_is_over_is_not_shown(state: ProposalState) -> None:
    assert URL not in drawn(state)


def proposed(state: ProposalState, **more: str) -> View:
    """A cycle at rest whose version is accepted and proposed."""
    found = Proposal(
        kind="Promote", version="assistant-7", replaces="assistant-6", state=state, branch="ratchet/assistant-7-0a",
        since=NOW, **{"pull_request": URL} | more,
    )  # fmt: skip
    trained = STATES["rolled-back"].version("assistant-7")
    assert trained is not None
    status = trained.status.model_copy(update={"phase": "Accepted", "outcome": None, "conditions": CONDITIONS})
    version = trained.model_copy(update={"status": status})
    view = STATES["idle"]
    cycle = view.cycle.model_copy(
        update={
            "status": view.cycle.status.model_copy(update={"promotion": found}),
            "spec": view.cycle.spec.model_copy(
                update={"serving": view.cycle.spec.serving.model_copy(update={"version": "assistant-6"})}
            ),
        }
    )
    return dataclasses.replace(view, cycle=cycle, versions=(*view.versions, version))


@pytest.mark.parametrize(
    ("state", "more", "waits"),
    [
        ("Pending", {"pull_request": ""}, "for the change of serving.version to assistant-7 to be proposed in Git"),
        ("Open", {}, f"for somebody to merge pull request {URL}"),
        (
            "Open",
            {"reason": "AwaitingPointer", "message": "the branch says assistant-5"},
            f"for somebody to merge pull request {URL}; it does not go on: the branch says assistant-5",
        ),
        ("Pushed", {"pull_request": ""}, "for somebody to accept branch ratchet/assistant-7-0a"),
        ("Merged", {}, f"for pull request {URL}, which is merged, to be applied"),
        ("Closed", {}, f"for a person: pull request {URL} was closed without being merged"),
        ("Arrived", {}, "for serving.version to name assistant-7"),
    ],
)
def test_explain_names_the_pull_request(state: ProposalState, more: dict[str, str], waits: str) -> None:
    view = proposed(state, **more)
    version = view.version("assistant-7")
    assert version is not None
    for found in (explain(view, NOW), explain(view, NOW, version)):
        assert found.waits == waits
        assert found.next == "ratchet promote assistant assistant-7"


def test_explain_speaks_of_the_version_that_is_proposed() -> None:
    view = proposed("Open")
    version = view.version("assistant-7")
    assert version is not None
    older = version.model_copy(update={"metadata": version.metadata.model_copy(update={"name": "assistant-5"})})
    assert URL in explain(dataclasses.replace(view, versions=(older, *view.versions)), NOW).waits


def test_retry_of_a_version_to_which_a_person_said_no_proposes_it_anew() -> None:
    view = proposed("Closed")
    plan = actions.retry(view, view.version("assistant-7"), "stamp")
    (create,) = plan.requests
    assert isinstance(create, Create)
    again, version = ModelVersion.model_validate(create.body), view.version("assistant-7")
    assert version is not None
    assert again.metadata.name == "assistant-7-try2"
    assert again.spec.adapter == version.adapter
    assert "is proven again, and proposed anew if it passes" in plan.sentence
    assert plan.warnings == (
        f"pull request {URL} stays closed; reopen it if assistant-7 is to be promoted without another proof",
    )


def test_retry_of_a_version_that_is_still_proposed_is_refused() -> None:
    view = proposed("Open")
    with pytest.raises(Refused, match="is on its way"):
        actions.retry(view, view.version("assistant-7"), "stamp")
