"""What a person on call reads, in every state: golden texts (UPDATE_GOLDEN=1 writes them anew)."""

import os
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from ratchet_cli.oncall.explain import explain
from ratchet_cli.oncall.lineage import lineage_tree
from ratchet_cli.oncall.screen import plain
from ratchet_cli.oncall.tables import cycles_table
from ratchet_cli.oncall.tree import cycle_tree, version_tree
from ratchet_cli.oncall.view import View

from .oncall_states import NOW, STATES

GOLDEN = Path(__file__).parent / "golden"


def hold(name: str, text: str) -> None:
    """Compare with the golden text of that name."""
    file = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8"), (
        f"{name} reads differently: UPDATE_GOLDEN=1, and read the difference"
    )


def everything(view: View) -> str:
    """The tree and the explanation, of the cycle and of the version that it is about."""
    parts = ["$ ratchet get assistant\n" + plain(cycle_tree(view, NOW))]
    parts.append("$ ratchet explain assistant\n" + explain(view, NOW).text() + "\n")
    for version in view.versions[2:]:
        name = version.metadata.name
        parts.append(f"$ ratchet explain {name}\n" + explain(view, NOW, version).text() + "\n")
    return "\n".join(parts)


@pytest.mark.parametrize("state", STATES)
def test_each_state_reads_as_agreed(state: str) -> None:
    hold(state, everything(STATES[state]))


def test_the_table_of_all_cycles() -> None:
    cycles = [
        view.cycle.model_copy(update={"metadata": view.cycle.metadata.model_copy(update={"name": name})})
        for name, view in STATES.items()
    ]
    short = plain(cycles_table(cycles, NOW))
    wide = plain(cycles_table(cycles, NOW, everywhere=True, wide=True))
    hold("table", f"$ ratchet get\n{short}\n$ ratchet get -A -o wide\n{wide}")


def test_wide_trees_and_versions() -> None:
    view = STATES["canary"]
    version = view.version("assistant-7")
    assert version is not None
    parts = {
        "get assistant -o wide": plain(cycle_tree(view, NOW, wide=True)),
        "get assistant-7": plain(version_tree(view, version, NOW)),
        "get assistant-7 -o wide": plain(version_tree(view, version, NOW, wide=True)),
        "lineage assistant-7": plain(lineage_tree(view, version, NOW)),
    }
    hold("wide", "\n".join(f"$ ratchet {command}\n{text}" for command, text in parts.items()))


def test_a_lineage_whose_beginning_is_gone_says_so() -> None:
    view = STATES["rolled-back"]
    version = view.version("assistant-7")
    assert version is not None
    shown = plain(lineage_tree(replace(view, versions=view.versions[1:]), version, NOW))
    assert "assistant-0: not in this namespace any more" in shown


def test_piped_text_has_no_colour_and_no_spaces_at_the_end() -> None:
    for view in STATES.values():
        text = plain(cycle_tree(view, NOW))
        assert "\x1b" not in text
        assert all(line == line.rstrip() for line in text.splitlines())


def test_a_bake_that_goes_on_says_what_it_waits_for() -> None:
    view = STATES["baking"]
    rollout = view.cycle.status.rollout
    assert rollout is not None
    leaning = {
        "candidate": Decimal("0.3"),
        "stable": Decimal("0.2"),
        "lower": Decimal("0.01"),
        "limit": Decimal("0.05"),
    }
    rollout = rollout.model_copy(update={"checks": [rollout.checks[0].model_copy(update=leaning), *rollout.checks[1:]]})
    cycle = view.cycle.model_copy(update={"status": view.cycle.status.model_copy(update={"rollout": rollout})})
    text = explain(replace(view, cycle=cycle), NOW + timedelta(minutes=28)).text()
    name = rollout.checks[0].name
    assert f"until {name} is proven worse than its limit or back within, for 29m at most" in text
    earlier = explain(replace(view, cycle=cycle), NOW).text()
    assert "back within" not in earlier
