"""Mode Git on the screen of a person on call."""

import dataclasses
import io

import pytest
from tests.cli.oncall_states import NOW, STATES

from ratchet_api.promotion import Proposal, ProposalState
from ratchet_cli.oncall.screen import console
from ratchet_cli.oncall.tree import cycle_tree

URL = "https://git.example.com/acme/models/pulls/7"


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
