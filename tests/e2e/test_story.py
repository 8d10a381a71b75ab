"""The story, shortened: one version goes forward, one is rolled back, one is refused by the gate. All parts are real.

The shortened story is the demonstration's own code with a smaller profile (`ratchet demo --quick`).
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

DEADLINE = 1500
SLOWNESS = "3"
"""The tests may share the machine with others: deadlines are longer, the story is the same."""


def demo(repository: Path, state: Path, *arguments: str) -> list[str]:
    return [
        sys.executable, "-m", "ratchet_cli", "demo", "--quick", "--state", str(state), "--checkout", str(repository),
        "--slowness", SLOWNESS, *arguments,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def told(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """summary.json of one shortened story, told in a folder with a space in its name."""
    state = tmp_path_factory.mktemp("the story") / "demo state"
    subprocess.run(demo(repository, state), timeout=DEADLINE, check=False)
    summary: dict[str, Any] = json.loads((state / "summary.json").read_text(encoding="utf-8"))
    summary["report"] = (state / "report.html").read_text(encoding="utf-8")
    summary["left"] = still_running(state)
    return summary


def still_running(state: Path) -> list[str]:
    """Command lines of processes that belong to this state folder."""
    found = []
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
            inside = str(state) in " ".join(command) or str(state) in process.environ().get("HOME", "")
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if inside and process.pid != os.getpid():
            found.append(" ".join(command))
    return found


def version(told: dict[str, Any], name: str) -> dict[str, Any]:
    """Outcome and evidence of a version."""
    entry = next(entry for entry in told["versions"] if entry["name"] == name)
    return {"outcome": entry["outcome"], **entry["evidence"]}


def test_the_story_comes_out_as_told(told: dict[str, Any]) -> None:
    assert [fact["text"] for fact in told["facts"] if not fact["holds"]] == []
    assert told["error"] == ""
    assert told["ok"]


def test_a_good_version_goes_forward(told: dict[str, Any]) -> None:
    entry = version(told, "assistant-1")
    assert entry["outcome"] == "Champion"
    assert entry["gate"]["accepted"]
    target = next(suite for suite in entry["gate"]["suites"] if suite["role"] == "target")
    assert target["lowerBound"] > 0
    assert target["pValue"] < 0.05
    assert entry["rollout"]["outcome"] == "Promoted"
    assert entry["rollout"]["highestWeight"] == 100
    assert {stage["stage"] for stage in entry["stages"]} == {"train", "evaluate"}


def test_people_like_it_better(told: dict[str, Any]) -> None:
    base, champion = version(told, "assistant-0"), version(told, "assistant-1")
    assert base["outcome"] == "Base"
    assert champion["verdicts"]["share"] > base["verdicts"]["share"]


def test_a_slow_version_is_rolled_back_by_its_latency(told: dict[str, Any]) -> None:
    entry = version(told, "assistant-slow")
    assert entry["outcome"] == "RolledBack"
    assert entry["gate"]["accepted"]
    assert entry["rollout"]["check"] == "p95"
    assert entry["rollout"]["regressionToZeroSeconds"] < 60
    assert entry["rollout"]["highestWeight"] < 100


def test_a_version_trained_on_disliked_answers_is_refused_by_the_gate(told: dict[str, Any]) -> None:
    entry = version(told, "assistant-disliked")
    assert entry["outcome"] == "GateRejected"
    assert not entry["gate"]["accepted"]
    assert entry["rollout"] is None


def test_no_request_failed_because_of_a_rollout(told: dict[str, Any]) -> None:
    assert told["requests"]["sent"] > 300
    assert told["requests"]["failedByRollback"] == 0
    assert told["requests"]["failed"] == 0, told["requests"]["failures"]


def test_the_report_has_its_plots(told: dict[str, Any]) -> None:
    assert told["report"].count("<svg") == 3
    assert "assistant-slow" in told["report"]


def test_nothing_is_left_running(told: dict[str, Any]) -> None:
    assert told["left"] == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_story_leaves_nothing_behind_but_its_summary(
    repository: Path, tmp_path: Path, number: signal.Signals
) -> None:
    state = tmp_path / "state"
    # Tests that run in the background have Ctrl-C ignored, and children inherit that.
    with subprocess.Popen(
        demo(repository, state, "--until", "1"),
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "kube-apiserver is ready" in line:
                process.send_signal(number)
                break
        process.stdout.read()
        assert process.wait(120) == 130
    summary = json.loads((state / "summary.json").read_text(encoding="utf-8"))
    assert (summary["ok"], summary["error"]) == (False, "interrupted")
    assert still_running(state) == []
