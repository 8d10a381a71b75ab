"""`ratchet curate`: the same rules on a laptop, from files to a dataset folder, and words for what is wrong."""

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ratchet_api.artifacts import MANIFEST, Manifest
from ratchet_cli import curate as command_of_the_cli
from ratchet_trainer.artifacts import local_manifest
from ratchet_trainer.cli import main
from ratchet_trainer.curate import files

FORMATS = Path(__file__).parent / "formats"


def curate(*arguments: object) -> int:
    return main(["curate-files", *map(str, arguments)])


def digest(folder: Path) -> str:
    manifest = local_manifest(folder, "dataset", str(folder))
    assert manifest is not None
    return manifest.digest


def test_a_folder_of_every_format_becomes_a_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert curate(FORMATS, "--out", tmp_path / "out") == 0
    said = capsys.readouterr()
    assert "reading                 19        15         4  feedback 2, ignored 2" in said.out
    assert "rows: answer 3, correction 1, demonstration 5, variation 45" in said.out
    assert digest(tmp_path / "out") in said.err
    rows = [json.loads(line) for line in (tmp_path / "out" / "train.jsonl").read_text().splitlines()]
    assert len(rows) == 54
    manifest = Manifest.model_validate_json((tmp_path / "out" / MANIFEST).read_bytes())
    assert len(manifest.inputs) == 7
    shared = json.loads((tmp_path / "out" / "sharegpt.json").read_text())
    assert [[turn["from"] for turn in row["conversations"]] for row in shared].count(["human", "gpt"]) == 36
    assert all(turn["from"] == "human" for row in shared for turn in row["conversations"][::2])
    for entry in json.loads((tmp_path / "out" / "dataset_info.json").read_text()).values():
        assert (tmp_path / "out" / entry["file_name"]).is_file()


def test_the_digest_is_that_of_the_content(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three runs, in another order and from another place."""
    copies = tmp_path / "elsewhere"
    shutil.copytree(FORMATS, copies)
    listing = sorted(FORMATS.iterdir())
    assert curate(FORMATS, "--out", tmp_path / "one") == 0
    assert curate(*listing[::-1], FORMATS, "--out", tmp_path / "two") == 0
    assert curate(copies, "--out", tmp_path / "three") == 0
    assert len({digest(tmp_path / name) for name in ("one", "two", "three")}) == 1
    capsys.readouterr()


def test_a_dataset_of_ours_can_be_curated_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert curate(FORMATS / "alpaca.json", "--out", tmp_path / "one", "--json") == 0
    first = json.loads(capsys.readouterr().out)
    assert curate(tmp_path / "one" / "train.jsonl", "--out", tmp_path / "two", "--json") == 0
    second = json.loads(capsys.readouterr().out)
    assert first["rows"] == {"demonstration": 2, "variation": 10}
    assert second["formats"] == {"messages": 1}
    assert second["rows"] == {"demonstration": 12, "variation": 60}


def test_options_do_what_they_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cases.jsonl").write_text('{"id": "a", "prompt": "Name a colour.", "all": ["x"]}\n')
    (tmp_path / "anchors.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}\n'
    )
    (tmp_path / "erased.jsonl").write_text('{"session": "s1"}\n')
    (tmp_path / "curation.json").write_text('{"variations": 0, "threshold": "0"}')
    assert curate(
        FORMATS / "alpaca.json", FORMATS / "interactions.jsonl", "--out", tmp_path / "out", "--json",
        "--held-out", tmp_path / "cases.jsonl", "--anchors", tmp_path / "anchors.jsonl",
        "--erasures", tmp_path / "erased.jsonl", "--curation", tmp_path / "curation.json",
        "--since", "2026-11-18T09:01:00Z", "--until", "2026-11-19",
    ) == 0  # fmt: skip
    statistics = json.loads(capsys.readouterr().out)
    assert statistics["interactions"]["dropped"] == {"heldOut": 1}
    assert statistics["lines"]["outsideWindow"] == 2
    assert statistics["rows"] == {"answer": 1, "correction": 1, "demonstration": 1}
    assert statistics["window"]["until"].startswith("2026-11-19")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere: there is no file to read"),
        ([FORMATS / "alpaca.json", "--since", "soon"], "--since: 'soon' is no time: write it as"),
        ([FORMATS / "alpaca.json", "--held-out", "nowhere"], "--held-out: there is no file nowhere"),
        ([FORMATS / "alpaca.json", "--held-out", FORMATS / "alpaca.json"], "--held-out: .* line 1"),
        ([FORMATS / "alpaca.json", "--curation", FORMATS / "alpaca.json"], "--curation: "),
        ([FORMATS / "alpaca.json", "--erasures", FORMATS / "alpaca.json"], "no entry of an erasure list: write"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, arguments: list[object], words: str
) -> None:
    assert curate(*arguments, "--out", tmp_path / "out") in (64, 65)
    assert re.search(words, caplog.text)
    assert not (tmp_path / "out").exists()


def test_no_dataset_is_written_over_and_none_without_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "x").write_text("mine")
    assert curate(FORMATS, "--out", tmp_path / "there") == 64
    assert curate(FORMATS / "litellm.json", "--out", tmp_path / "none") == 65
    assert "belowThreshold 1" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["x"]


def test_the_command_of_the_cli(tmp_path: Path) -> None:
    cycle = tmp_path / "cycle.yaml"
    cycle.write_text("kind: Secret\n---\nkind: ImprovementCycle\nspec: {curation: {variations: 1}}\n")
    command = [sys.executable, "-m", "ratchet_cli", "curate", str(FORMATS), "--out", str(tmp_path / "out")]
    ran = subprocess.run([*command, "--cycle", str(cycle)], capture_output=True, text=True, check=False)
    assert (ran.returncode, "variation 9" in ran.stdout) == (0, True), ran.stderr
    cycle.write_text("kind: ImprovementCycle\nspec: {curation: {variations: many}}\n")
    ran = subprocess.run([*command, "--cycle", str(cycle)], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "ratchet: --cycle: curation.variations" in ran.stderr


def test_the_command_of_the_cli_takes_what_the_trainer_s_does() -> None:
    theirs, ours = argparse.ArgumentParser(), argparse.ArgumentParser()
    files.add_arguments(theirs)
    command_of_the_cli.register(ours.add_subparsers())
    (command,) = next(one.choices for one in ours._actions if isinstance(one.choices, dict)).values()

    def options(parser: argparse.ArgumentParser) -> set[str]:
        return {name for action in parser._actions for name in action.option_strings}

    assert options(command) - {"--cycle"} == options(theirs) - {"--curation"}, "--cycle brings --curation"


def test_the_method_is_the_cycle_s_unless_another_is_named(tmp_path: Path) -> None:
    said = {
        "kind": "interaction", "id": "r", "session": "s", "namespace": "d", "cycle": "a", "version": "a-0",
        "arm": "stable", "time": "2026-11-20T09:00:00Z", "messages": [{"role": "user", "content": "Where is key 1?"}],
        "answer": {"role": "assistant", "content": "No idea."}, "finish_reason": "stop", "status": 200, "duration": 1,
    }  # fmt: skip
    thought = {
        "kind": "feedback", "id": "f", "response_id": "r", "namespace": "d", "cycle": "a", "version": "a-0",
        "time": "2026-11-20T10:00:00Z", "value": "down", "correction": "In vault 1.",
    }  # fmt: skip
    sessions, cycle = tmp_path / "s.jsonl", tmp_path / "cycle.yaml"
    sessions.write_text(f"{json.dumps(said)}\n{json.dumps(thought)}\n")
    cycle.write_text("kind: ImprovementCycle\nspec: {training: {method: dpo}}\n")
    command = [sys.executable, "-m", "ratchet_cli", "curate", str(sessions), "--cycle", str(cycle), "--out"]
    for name, more in (("dpo", []), ("sft", ["--method", "sft"])):
        ran = subprocess.run([*command, str(tmp_path / name), *more], capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        assert (tmp_path / name / "preferences.jsonl").exists() == (name == "dpo")
