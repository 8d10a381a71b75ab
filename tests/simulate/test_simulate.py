"""Simulated rollouts: Prometheus' arithmetic, the ends of all scenarios, recordings, what the command prints."""

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from benchmarks.rollouts import peers
from benchmarks.rollouts.run import page, policy, row, wilson

from ratchet_api.rollout import Rollout
from ratchet_operator.domain.analysis import NoSample, Sample
from ratchet_operator.simulate.__main__ import main
from ratchet_operator.simulate.recording import BadRecording, Recorded, read
from ratchet_operator.simulate.replay import Replay, Timeline, generated
from ratchet_operator.simulate.store import Counter, Store
from ratchet_operator.simulate.traffic import SCENARIOS, SCRAPE, Scraped, Traffic

SPEC = policy("1m")
WEIGHTS = peers.WEIGHTS


def scraped(*samples: tuple[float, float]) -> Counter:
    counter = Counter()
    for at, value in samples:
        counter.scrape(at, value)
    return counter


@pytest.mark.parametrize(
    ("samples", "window", "now", "expected"),
    [
        pytest.param([(0, 0), (10, 10), (20, 20), (30, 30)], 30, 30, 30.0, id="the left end is not in the window"),
        pytest.param([(5, 5), (15, 15), (25, 25)], 30, 30, 30.0, id="extrapolated to both ends, and not below zero"),
        pytest.param([(5, 100), (15, 110), (25, 120)], 30, 30, 30.0, id="extrapolated to both ends"),
        pytest.param([(5, 100), (15, 110), (25, 120)], 60, 60, 30.0, id="by half a gap where the end is far away"),
        pytest.param([(5, 100), (15, 2), (25, 12)], 30, 30, 18.0, id="a reset begins at zero again"),
        pytest.param([(5, 1), (15, math.nan), (4, 9), (25, 21)], 30, 30, 26.0, id="NaN and what comes late is dropped"),
        pytest.param([(5, 100)], 30, 30, None, id="one sample is no increase"),
    ],
)
def test_increase(samples: Any, window: float, now: float, expected: float | None) -> None:
    found = scraped(*samples).increase(window, now, now)
    assert found == (None if expected is None else pytest.approx(expected))


def test_what_cannot_be_seen() -> None:
    store = Store(lag=15.0, silent_from=100.0, not_a_number=(50.0, 60.0), lost=[(70.0, 80.0)])
    for name in ("all", "bad"):
        for at in range(0, 90, 2):
            store.counter("candidate", "errors", name).scrape(at, at)

    def seen(now: float) -> Any:
        return store.readings("candidate", "errors", "proportion", 30.0, now)

    assert isinstance(seen(10).all, NoSample), "nothing can be seen before the lag is over"
    assert seen(40).age == Sample(16.0)
    assert seen(55).all == NoSample("NoData", "the value is nan")
    assert isinstance(seen(86).all, Sample)
    assert seen(86).age == NoSample("NoData", "no series"), "a lost target is marked stale"
    assert seen(100).all == NoSample("QueryError", "Prometheus does not answer")


def played(name: str, seed: int, skim: bool = False, spec: Rollout = SPEC, horizon: float = 600.0) -> Timeline:
    source = Scraped(Traffic(SCENARIOS[name], f"{name} {seed}", WEIGHTS), "errors")
    return generated(spec, source, horizon, skim=skim, record=not skim)


@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        ("equal", "Promoted"), ("nan", "Promoted"), ("gaps", "Promoted"), ("skew", "Promoted"), ("resets", "Promoted"),
        ("outage", "Promoted"), ("twice-the-margin", "RolledBack"), ("half", "RolledBack"),
        ("half-in-bake", "RolledBack"), ("outage-worse", "RolledBack"), ("gone", "Held"),
    ],
)  # fmt: skip
def test_how_each_scenario_ends(name: str, outcome: str) -> None:
    for seed in range(3):
        line = played(name, seed)
        assert line.outcome == outcome, line.status.decision
        assert not line.rose_failing


def test_the_weight_stands_still_while_nothing_can_be_seen() -> None:
    line = played("gone", 1)
    blind = [weight for at, weight in line.weights if at > 20]
    assert blind == []
    assert line.held


@pytest.mark.parametrize("name", ["equal", "half", "twice-the-margin", "outage-worse", "late"])
def test_skimming_changes_no_end(name: str) -> None:
    for seed in range(4):
        whole, quick = played(name, seed), played(name, seed, skim=True)
        assert (quick.outcome, quick.weights, quick.ended_at) == (whole.outcome, whole.weights, whole.ended_at)
        assert quick.status.decision == whole.status.decision


def test_an_ab_test_comes_to_its_answer() -> None:
    test = {"outcome": {"metric": "errors"}, "maxDuration": "2m", "margin": "0.02"}
    document = SPEC.dump() | {"strategy": "abTest", "abTest": test}
    for name, verdict in (("equal", "NotWorse"), ("half", "Worse")):
        line = played(name, 1, spec=Rollout.model_validate(document))
        assert line.status.ab_test is not None
        decided = line.status.decision is not None and line.status.decision.reason == "CheckFailed"
        assert line.status.ab_test.verdict == verdict or decided
    assert line.outcome == "RolledBack"


# Recordings


def rows_of(name: str, seed: int) -> tuple[list[dict[str, Any]], Timeline]:
    """What was scraped in a generated rollout, as rows, and how it ended."""
    source = Scraped(Traffic(SCENARIOS[name], f"{name} {seed}", WEIGHTS), "errors")
    line = generated(SPEC, source, 600.0)
    for _ in range(5):
        source.flow(0)
    by_time: dict[tuple[float, str], dict[str, Any]] = {}
    for (arm, metric, field), counter in source.store.series.items():
        for at, value in zip(counter.times, counter.values, strict=True):
            entry = by_time.setdefault((at, arm), {"at": 1_795_000_000 + at, "arm": arm, "metric": metric})
            entry[field] = value
    return [by_time[key] for key in sorted(by_time)], line


def jsonl(rows: list[dict[str, Any]]) -> str:
    return "\n".join(json.dumps(entry) for entry in rows) + "\n"


def as_csv(rows: list[dict[str, Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, ["at", "arm", "metric", "bad", "all"])
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def dump(rows: list[dict[str, Any]]) -> str:
    """As Prometheus answers query_range, with two codes and a pod's label."""
    series: dict[tuple[str, str], list[list[Any]]] = {}
    for entry in rows:
        series.setdefault((entry["arm"], "200"), []).append([entry["at"], str(entry["all"] - entry["bad"])])
        series.setdefault((entry["arm"], "503"), []).append([entry["at"], str(entry["bad"])])
    names = {"candidate": "assistant-7", "stable": "assistant-6"}
    result = [
        {
            "metric": {"__name__": "ratchet_gateway_requests_total", "version": names[arm], "code": code},
            "values": values,
        }
        for (arm, code), values in series.items()
    ]
    return json.dumps({"status": "success", "data": {"resultType": "matrix", "result": result}})


@pytest.mark.parametrize("name", ["half", "equal"])
@pytest.mark.parametrize(("ending", "written"), [("jsonl", jsonl), ("csv", as_csv), ("json", dump)])
def test_a_recording_of_a_rollout_ends_like_it(name: str, ending: str, written: Any, tmp_path: Path) -> None:
    rows, line = rows_of(name, 3)
    file = tmp_path / f"scrapes.{ending}"
    file.write_text(written(rows))
    found = Recorded(read(file, SPEC, "assistant-7", "assistant-6"))
    again = Replay(SPEC, found).run(found.length)
    assert again.outcome == line.outcome
    assert [weight for _, weight in again.weights] == [weight for _, weight in line.weights]
    assert again.ended_at is not None
    assert line.ended_at is not None
    assert abs(again.ended_at - line.ended_at) <= 2 * SCRAPE


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.jsonl", "{", "a.jsonl:1: no JSON"),
        ("a.jsonl", "[1]", "a.jsonl:1: write an object"),
        ("a.jsonl", '{"at": 1, "arm": "left", "metric": "errors", "all": 1}', "write candidate or stable"),
        ("a.jsonl", '{"at": 1, "arm": "stable", "all": 1}', "write its name in rollout.metrics"),
        ("a.jsonl", '{"at": 1, "arm": "stable", "metric": "errors"}', "no number: write bad and all"),
        ("a.jsonl", '{"at": "noon", "arm": "stable", "metric": "errors", "all": 1}', "at is 'noon'"),
        ("a.jsonl", '{"at": 1, "arm": "stable", "metric": "errors", "all": "x"}', "all is 'x': write a number"),
        ("a.jsonl", '{"at": 1, "arm": "stable", "metric": "p99", "value": 1}', "p99 is no metric of the spec"),
        ("a.jsonl", "", "holds no row"),
        ("a.json", '{"data": {"resultType": "vector", "result": []}}', "no matrix"),
    ],
)
def test_recordings_that_cannot_be_used(name: str, text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(BadRecording) as error:
        read(tmp_path / name, SPEC, "candidate", "stable")
    assert words in str(error.value)


# The command


@pytest.fixture
def manifest(tmp_path: Path) -> str:
    suite = {"name": "t", "role": "target", "cases": {"configMap": {"name": "s", "key": "t.jsonl"}}}
    spec = {
        "baseModel": {"uri": "s3://models/base"},
        "storage": {"uri": "s3://ratchet/assistant"},
        "evaluation": {"suites": [suite]},
        "rollout": SPEC.dump(),
    }
    file = tmp_path / "cycle.yaml"
    file.write_text(json.dumps({"kind": "ImprovementCycle", "metadata": {"name": "assistant"}, "spec": spec}))
    return str(file)


def test_the_text_tells_each_change(manifest: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "plot.html"
    assert main(["-f", manifest, "--scenario", "half", "--html", str(plot)]) == 0
    said = capsys.readouterr().out
    assert "25 %" in said
    assert "RolledBack at 0:0" in said
    assert "CheckFailed: errors: server errors" in said
    assert "<polyline" in plot.read_text()


def test_json_holds_each_look(manifest: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-f", manifest, "-o", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["outcome"] == "Promoted"
    assert [entry["weight"] for entry in found["weights"]] == [0, 25, 50, 75, 100]
    assert found["looks"][-1]["checks"][0]["verdict"] == "Pass"


def test_many_rollouts_are_counted(manifest: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-f", manifest, "--scenario", "half", "--rollouts", "5", "-o", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["outcomes"] == {"RolledBack": 5}
    assert found["secondsToZero"]["p95"] <= 12


def test_what_cannot_be_simulated_is_said(manifest: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-f", manifest, "--metric", "p95"]) == 2
    assert "--metric: 'p95' is no proportion of rollout.metrics" in capsys.readouterr().err
    assert main(["-f", manifest + "x"]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "ratchet simulate -f cycle.yaml --scenario half" in said
    assert all(name in said for name in SCENARIOS)


# The benchmark


def peer(name: str, system: str, limit: int, seed: int = 1) -> peers.End:
    source = Scraped(Traffic(SCENARIOS[name], f"{name} {seed}", WEIGHTS), "errors")
    return (peers.flagger if system == "Flagger" else peers.argo)(source, limit, 600.0)


def test_the_twins_do_what_was_measured_of_the_real_ones() -> None:
    """The table of issue 4: Flagger 1.44.0 and Argo Rollouts on a real cluster."""
    assert peer("gone", "Flagger", 1).outcome == "RolledBack"
    assert peer("gone", "Flagger", 3).outcome == "RolledBack"
    assert peer("gone", "Argo", 0).outcome == "Promoted"
    assert peer("nan", "Flagger", 1).outcome == "RolledBack"
    assert peer("nan", "Argo", 0).outcome == "RolledBack"
    assert peer("half-in-bake", "Flagger", 1).outcome == peer("half-in-bake", "Argo", 0).outcome == "Promoted"
    assert peer("half", "Argo", 2).rose_failing
    times = [
        end.weights[-1][0] - 15.0 - (10.0 if system == "Flagger" else 0.0)
        for system, limit in (("Flagger", 1), ("Flagger", 3), ("Argo", 0), ("Argo", 2))
        if (end := peer("half", system, limit)).outcome == "RolledBack"
    ]
    assert times == [
        pytest.approx(18, abs=5),
        pytest.approx(36, abs=5),
        pytest.approx(6, abs=5),
        pytest.approx(26, abs=5),
    ]


def test_all_systems_see_the_same_sessions() -> None:
    traffic = Traffic(SCENARIOS["half"], "same", WEIGHTS)
    sums = [sum(traffic.counts(3, weight, False)[index] for index in (0, 2)) for weight in (0, 25, 50, 75, 100)]
    assert len(set(sums)) == 1
    shares = [traffic.counts(3, weight, False)[0] for weight in (0, 25, 50, 75, 100)]
    assert shares == sorted(shares)
    assert shares[0] == 0


def test_a_page_of_rows() -> None:
    found = row("half", SCENARIOS["half"], 3)
    text = page([found])
    assert "| 0 % -> 50 % errors after 15 s | 3 | Ratchet | 100.00 % |" in text
    assert found["systems"]["Argo 2"]["rose"] == 3
    low, high = wilson(0, 10_000)
    assert low == 0.0
    assert high == pytest.approx(0.000384, abs=2e-6)
