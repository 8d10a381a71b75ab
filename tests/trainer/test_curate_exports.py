"""The dataset for other tools: Parquet, Croissant, LLaMA-Factory's settings, and the page with the plots."""

import json
import random
import re
import subprocess
import sys
import warnings
from datetime import UTC, date, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import yaml
from transformers import TrainingArguments

from ratchet_api.data import BaseModelRef
from ratchet_trainer.artifacts import local_manifest
from ratchet_trainer.cli import main
from ratchet_trainer.curate.examples import Verdict
from ratchet_trainer.curate.exports import SMALL_MODEL, write_train_settings
from ratchet_trainer.curate.figures import MAX_PERIODS, Timeline

FORMATS = Path(__file__).parent / "formats"
LLAMA_FACTORY = {
    "stage", "finetuning_type", "lora_rank", "lora_alpha", "lora_target", "dataset_dir", "dataset", "cutoff_len",
    "model_name_or_path", "model_revision", "eval_dataset",
}  # fmt: skip
"""Settings of its own that we use, as hparams/ of LLaMA-Factory 0.9.5 names them."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dataset") / "out"
    assert main(["curate-files", str(FORMATS), "--out", str(out), "--model", "hf://org/name@abc"]) == 0
    return out


def test_the_parquet_file_has_the_rows_of_the_lines(dataset: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (dataset / "train.jsonl").read_text().splitlines()]
    found = pyarrow.parquet.read_table(dataset / "train.parquet").to_pylist()
    for row in found:
        row["messages"] = [{key: v for key, v in turn.items() if v is not None} for turn in row["messages"]]
    assert [{key: value for key, value in row.items() if value != ""} for row in found] == lines
    assert any(turn.get("weight") == 0 for row in found for turn in row["messages"])
    assert main(["curate-files", str(FORMATS), "--out", str(tmp_path / "2"), "--model", "hf://org/name@abc"]) == 0
    for name in ("train.parquet", "croissant.json", "card.html"):
        assert (tmp_path / "2" / name).read_bytes() == (dataset / name).read_bytes()
    manifest = local_manifest(dataset, "dataset", "here")
    assert manifest is not None
    assert {"train.parquet", "croissant.json", "card.html", "train.yaml", "sharegpt.json"} <= manifest.files.keys()


def test_mlcroissant_accepts_the_metadata_and_reads_the_records(dataset: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of rdflib, inside
        import mlcroissant

        found = mlcroissant.Dataset(jsonld=dataset / "croissant.json")
        report = found.metadata.ctx.issues.report()
        records = list(found.records(record_set="train"))
    assert "error" not in report
    assert re.findall(r'Property "(?:\S*/)?(\w+)" is recommended', report) == ["citeAs", "datePublished", "license"]
    first = json.loads((dataset / "train.jsonl").read_text().splitlines()[0])
    said = [turn["train/messages/content"].decode() for turn in records[0]["train/messages"]]
    assert said == [turn["content"] for turn in first["messages"]]
    assert len(records) == 54


def test_settings_are_those_that_llama_factory_knows(dataset: Path) -> None:
    settings = yaml.safe_load((dataset / "train.yaml").read_text())
    known = LLAMA_FACTORY | set(TrainingArguments.__dataclass_fields__)
    assert settings.keys() <= known
    assert (settings["model_name_or_path"], settings["model_revision"]) == ("org/name", "abc")
    info = json.loads((dataset / "dataset_info.json").read_text())
    assert settings["dataset"] in info
    assert {entry["file_name"] for entry in info.values()} == {
        "alpaca.json", "sharegpt.json", "train.jsonl", "train.parquet",
    }  # fmt: skip
    ours = {key: value for key, value in settings.items() if key not in LLAMA_FACTORY}
    assert TrainingArguments(**ours, use_cpu=True).learning_rate == 0.001


@pytest.mark.parametrize(
    ("uri", "model"),
    [(None, SMALL_MODEL), ("file:///models/base", "/models/base"), ("s3://bucket/base", "model"),
     ("pvc://claim/base", "model")],
)  # fmt: skip
def test_the_model_that_is_trained(tmp_path: Path, uri: str | None, model: str) -> None:
    write_train_settings(tmp_path, None if uri is None else BaseModelRef(uri=uri))
    text = (tmp_path / "train.yaml").read_text()
    assert yaml.safe_load(text)["model_name_or_path"] == model
    assert model != "model" or f"Fetch the cycle's model, {uri}" in text


def test_what_is_kept_aside_is_newer_and_of_other_sessions(tmp_path: Path) -> None:
    """Forty sessions of three turns, interleaved and shuffled: no session on both sides, none that is trained on ends
    after one that is kept aside, and LLaMA-Factory is told where it is."""
    start = datetime(2026, 11, 1, tzinfo=UTC)
    rows = [
        {
            "timestamp": (start + timedelta(hours=session + 7 * turn)).isoformat(),
            "user": f"Question {session} {turn}", "assistant": f"Answer {session} {turn}",
            "metadata": {"success": True, "session": f"s{session}"},
        }
        for session in range(40) for turn in range(3)
    ]  # fmt: skip
    random.Random(3).shuffle(rows)
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "c.json").write_text('{"variations": 2, "validationShare": "0.11"}')
    options = ["--out", str(tmp_path / "out"), "--curation", str(tmp_path / "c.json")]
    assert main(["curate-files", str(tmp_path / "a.jsonl"), *options]) == 0

    def sessions(name: str) -> list[int]:
        lines = [json.loads(line) for line in (tmp_path / "out" / name).read_text().splitlines()]
        return [int(line["messages"][1]["content"].split()[1]) for line in lines]

    aside, train = sessions("validation.jsonl"), sessions("train.jsonl")
    assert sorted(aside) == sorted([36, 37, 38, 39] * 3)  # 13.2 examples are asked for, 4 sessions of 3 fit
    assert set(train) == set(range(36))
    assert len(train) == 36 * 3 * 3
    settings = yaml.safe_load((tmp_path / "out" / "train.yaml").read_text())
    info = json.loads((tmp_path / "out" / "dataset_info.json").read_text())
    assert info[settings["eval_dataset"]]["file_name"] == "validation.jsonl"
    assert settings.keys() <= LLAMA_FACTORY | set(TrainingArguments.__dataclass_fields__)
    assert "Kept aside to look at the loss: 12 examples" in (tmp_path / "out" / "README.md").read_text()


class Page(HTMLParser):
    """A page that is well formed, and what it refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(folder: Path) -> Page:
    page = Page()
    page.feed((folder / "card.html").read_text())
    assert page.open == []
    return page


def test_the_page_stands_alone_and_says_what_the_statistics_say(dataset: Path) -> None:
    page = page_of(dataset)
    assert {name for name, _ in page.attributes}.isdisjoint({"src", "href", "onload", "onclick"})
    assert "script" not in (dataset / "card.html").read_text().replace("description", "")
    assert "54examples rule of thumb: 100+" in page.text
    for words in ("feedback 2, ignored 2", "kept 15", "no verdict", "≤ 16", "2026-11-1"):
        assert words in page.text
    card = (dataset / "README.md").read_text()
    assert "| examples | 54 | 100+ | no |" in card
    assert "| interactions | 15 | 50+ | no |" in card


def test_what_people_wrote_is_text_and_redacted(tmp_path: Path) -> None:
    hostile = '<script>alert(1)</script> {{ 7 * 7 }} "><img src=x> ada@example.org'
    row = {"timestamp": "2026-11-20T10:00:00Z", "user": "Say it", "metadata": {"success": True}}
    bad = row | {"assistant": hostile, "metadata": {"success": False}}
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(row | {'assistant': 'It.'})}\n{json.dumps(bad)}\n")
    assert main(["curate-files", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "card.html").read_text()
    assert "<script" not in text
    assert "<img" not in text
    assert "ada@example.org" not in text
    assert "{{ 7 * 7 }}" in page_of(tmp_path / "out").text


def test_time_is_told_in_as_few_columns_as_a_page_can_show() -> None:
    down, up = (Verdict(value, "", datetime.now(UTC)) for value in ("down", "up"))  # type: ignore[arg-type]
    start = datetime(2024, 1, 1, tzinfo=UTC)
    timeline = Timeline()
    for day in range(100):
        timeline.add(start + timedelta(days=day), up if day % 2 else None)
    timeline.add(None, down)
    numbers: dict[str, Any] = timeline.numbers()
    assert (numbers["unit"], len(numbers["periods"]), numbers["undated"]) == ("day", 100, 1)
    assert timeline.feedback() == {"up": 50, "corrected": 0, "down": 1, "none": 50}
    timeline.add(datetime(2026, 1, 1, tzinfo=UTC), up)
    for day in range(200):
        timeline.add(start + timedelta(days=day), None)
    numbers = timeline.numbers()
    assert (numbers["unit"], numbers["periods"][0]["from"], numbers["periods"][-1]["up"]) == ("month", "2024-01", 1)
    for year in range(1, 10000):
        timeline.days.setdefault(date(year, 1, 1), timeline.undated.copy())
    numbers = timeline.numbers()
    assert (numbers["unit"], len(numbers["periods"]), numbers["periods"][-1]["from"]) == ("year", MAX_PERIODS, "9999")


@pytest.mark.parametrize(("bad", "code"), [(91, 65), (90, 0)])
def test_a_broken_upstream_is_no_small_day(
    tmp_path: Path, bad: int, code: int, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """More than nine lines of ten unreadable, of a hundred."""
    row = {"timestamp": "2026-11-20T10:00:00Z", "user": "q", "assistant": "a", "metadata": {"success": True}}
    good = json.dumps(row)
    (tmp_path / "a.jsonl").write_text(f"{good}\n" * (100 - bad) + "{broken\n" * bad)
    assert main(["curate-files", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "out")]) == code
    assert f"malformed {bad}" in capsys.readouterr().out
    assert (tmp_path / "out").exists() == (code == 0)
    if code:
        assert "91 of 100 lines are unreadable, more than 90%: reading kept 9 of 100 (malformed 91)" in caplog.text


def test_a_day_on_which_nothing_was_good_is_no_broken_upstream(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    row = {"timestamp": "2026-11-20T10:00:00Z", "user": "q", "assistant": "a", "metadata": {"success": False}}
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(row)}\n" * 100)
    assert main(["curate-files", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "out")]) == 65
    assert "unreadable" not in caplog.text
    assert "belowThreshold 100" in capsys.readouterr().out


def test_the_cycle_s_model_is_the_one_that_is_trained(tmp_path: Path) -> None:
    cycle = tmp_path / "cycle.yaml"
    cycle.write_text("kind: ImprovementCycle\nspec: {baseModel: {uri: 'hf://org/base@1'}}\n")
    command = [sys.executable, "-m", "ratchet_cli", "curate", str(FORMATS), "--out", str(tmp_path / "out")]
    done = subprocess.run([*command, "--cycle", str(cycle)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "model_name_or_path: org/base\n" in (tmp_path / "out" / "train.yaml").read_text()
    done = subprocess.run([*command, "--model", "nonsense"], capture_output=True, text=True, check=False)
    assert done.returncode != 0
