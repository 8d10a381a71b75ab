"""What people preferred: every answer that was not wanted is in the set or counted, and says what its rows say."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import yaml

from ratchet_api.data import Curation
from ratchet_api.erasures import Erased
from ratchet_api.training import Method
from ratchet_trainer.cli import main
from ratchet_trainer.curate.curated import Curated, build
from ratchet_trainer.curate.pipeline import Counts, SessionFile, Settings, examples_of
from ratchet_trainer.curate.text import HeldOut

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


def said(index: int, prompt: str, answer: str = "No idea.", **changes: Any) -> dict[str, Any]:
    record = {
        "kind": "interaction", "id": f"r{index}", "session": f"s{index}", "namespace": "default", "cycle": "assistant",
        "version": "assistant-0", "arm": "stable", "time": (NOW - timedelta(hours=9, seconds=-index)).isoformat(),
        "messages": [{"role": "user", "content": prompt}], "answer": {"role": "assistant", "content": answer},
        "finish_reason": "stop", "status": 200, "duration": 0.5,
    }  # fmt: skip
    return record | changes


def thought(index: int, value: str = "down", correction: str = "") -> dict[str, Any]:
    return {
        "kind": "feedback", "id": f"f{index}", "response_id": f"r{index}", "namespace": "default",
        "cycle": "assistant", "version": "assistant-0", "time": (NOW - timedelta(hours=8, seconds=-index)).isoformat(),
        "value": value, "correction": correction,
    }  # fmt: skip


RECORDS = [
    said(0, "Where is key 0?", "In the drawer."), thought(0, correction="In vault 0."),
    said(1, "Where is key 1?", "In vault 1."), thought(1, "up"),
    said(2, "Where is key 2?", "Under the mat."), thought(2),
    said(3, "Where is key 3?", "Somewhere."),
    said(4, "Where is key 0?", "In the  Drawer."), thought(4, correction="In vault 0."),
    said(5, "Write to jane@example.org?", "Yes, jane@example.org."), thought(5, correction="No, never."),
    said(6, "What does the suite ask?", "This."), thought(6, correction="That."),
    said(7, "Where is key 7?", "In vault 7.", finish_reason="length"), thought(7),
    said(8, "Where is key 1?", "In vault 1."), thought(8),
    said(9, "Liked, and yet?", "Nearly."), thought(9, "up", "Exactly."),
    said(10, "Who am I?", "Nobody.", principal="p-gone"), thought(10, correction="Somebody."),
    said(11, "Where is key 11?", status=500), thought(11, correction="In vault 11."),
]  # fmt: skip


def curated(folder: Path, method: Method, records: list[dict[str, Any]] = RECORDS, **curation: Any) -> Curated:
    file = folder / "sessions.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    settings = Settings(
        Curation(**({"variations": 0} | curation)), "default", "assistant", NOW - timedelta(days=1), NOW,
        timedelta(days=7), Erased(principals=frozenset({"p-gone"})), method,
    )  # fmt: skip
    counts = Counts()
    held_out = HeldOut(["What does the suite ask?"])
    examples = examples_of(settings, [SessionFile("a", file)], lambda *_: None, counts)
    return build(settings, counts, examples, held_out, [], None)


def rows(folder: Path, made: Curated, name: str = "preferences.jsonl") -> list[dict[str, Any]]:
    made.write(folder / "out")
    return [json.loads(line) for line in (folder / "out" / name).read_text().splitlines()]


def text(row: dict[str, Any], key: str) -> str:
    (turn,) = row[key]
    assert turn["role"] == "assistant"
    return str(turn["content"])


def adds_up(made: Curated) -> None:
    """kept + dropped = read, from each rule to the next, beginning with everybody who did not withdraw."""
    assert made.preferences is not None
    steps = made.preferences.funnel.steps
    assert [step.read for step in steps] == [made.counts.funnel["consent"].kept, *(step.kept for step in steps[:-1])]
    assert all(step.read == step.kept + step.dropped.total() for step in steps)


def test_pairs_are_answers_with_their_corrections(tmp_path: Path) -> None:
    made = curated(tmp_path, "dpo")
    found = [(row["prompt"][0]["content"], text(row, "chosen"), text(row, "rejected")) for row in rows(tmp_path, made)]
    assert found == [
        ("Where is key 0?", "In vault 0.", "In the  Drawer."),
        ("Write to [EMAIL]?", "No, never.", "Yes, [EMAIL]."),
        ("Liked, and yet?", "Exactly.", "Nearly."),
    ]
    adds_up(made)
    assert made.preferences is not None
    dropped = {step.rule: dict(step.dropped) for step in made.preferences.funnel.steps if step.dropped}
    assert dropped == {
        "judged": {"unjudged": 1, "uncorrected": 4}, "answered": {"failed": 1}, "heldOut": {"heldOut": 1},
        "duplicate": {"duplicate": 1},
    }  # fmt: skip
    assert (made.learnable, made.row_count, made.enough) == (3, 3, True)


def test_judged_answers_are_the_good_ones_and_those_with_a_thumb_down(tmp_path: Path) -> None:
    made = curated(tmp_path, "kto")
    found = {(row["prompt"][0]["content"], text(row, "completion")): row["label"] for row in rows(tmp_path, made)}
    assert {key for key, label in found.items() if not label} == {
        ("Where is key 0?", "In the  Drawer."), ("Where is key 2?", "Under the mat."),
        ("Write to [EMAIL]?", "Yes, [EMAIL]."),
    }  # fmt: skip
    assert {key for key, label in found.items() if label} == {
        (example.prompt, example.answer) for example in made.selected
    }
    adds_up(made)
    assert made.preferences is not None
    assert made.preferences.funnel["contradicted"].dropped == {"contradicted": 1}, "two people, two thumbs"
    assert made.preferences.funnel["judged"].dropped == {"unjudged": 1, "liked": 2}


def test_supervised_examples_are_the_same_whatever_the_method(tmp_path: Path) -> None:
    def trained_on(method: Method) -> str:
        made = curated(tmp_path, method)
        made.write(tmp_path / method)
        return (tmp_path / method / "train.jsonl").read_text()

    assert trained_on("sft") == trained_on("dpo") == trained_on("kto") != ""
    assert not list((tmp_path / "sft").glob("preferences*"))
    assert "preferences" not in json.loads((tmp_path / "sft" / "statistics.json").read_text())


def test_variations_caps_and_the_split_hold_for_preferences_too(tmp_path: Path) -> None:
    records = [
        record
        for i in range(40)
        for record in (
            said(i, f"Where is key number {i}?", f"Drawer {i}.", session=f"s{i // 2}", principal=f"p{i % 2}"),
            thought(i, correction=f"In vault {i}."),
        )
    ]
    made = curated(tmp_path, "dpo", records, validation_share="0.2", max_per_principal=15, variations=2)
    train, aside = rows(tmp_path, made), rows(tmp_path, made, "preferences_validation.jsonl")
    adds_up(made)
    assert made.preferences is not None
    assert made.preferences.funnel["caps"].dropped == {"overPrincipalCap": 10}
    assert (len(train), len(aside)) == (3 * 24, 6)
    assert train[1]["prompt"][0]["content"] == train[0]["prompt"][0]["content"] + "\n\nPlease answer."
    session = {f"r{i}": f"s{i // 2}" for i in range(40)}
    assert not {session[row["id"]] for row in train} & {session[row["id"]] for row in aside}
    assert {row["id"] for row in aside} == {f"r{i}" for i in range(34, 40)}, "the newest"


def test_a_pair_whose_sides_are_split_is_counted(tmp_path: Path) -> None:
    """The same question in two sessions: the correction is kept aside, and the older rejected answer is not."""
    records = [
        said(0, "Where is key 0?", "In the drawer.", session="old"), thought(0, correction="In a vault."),
        said(1, "Where is key 0?", "In the car.", session="new"), thought(1, correction="In vault 0."),
        *(one for i in range(2, 9) for one in (said(i - 10, f"Q {i}?", session="old"), thought(i - 10, "up"))),
    ]  # fmt: skip
    made = curated(tmp_path, "dpo", records, validation_share="0.5")
    assert made.preferences is not None
    assert (len(made.preferences.train), len(made.preferences.validation)) == (0, 1)
    assert made.preferences.funnel["paired"].dropped == {"correctionLeftOut": 1}
    assert not made.enough
    adds_up(made)


@pytest.fixture(params=["dpo", "kto"])
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Method, Path]:
    made = curated(tmp_path, request.param)
    made.write(tmp_path / "out")
    return request.param, tmp_path / "out"


def test_every_form_says_the_same(dataset: tuple[Method, Path]) -> None:
    method, folder = dataset
    lines = [json.loads(line) for line in (folder / "preferences.jsonl").read_text().splitlines()]
    assert pyarrow.parquet.read_table(folder / "preferences.parquet").to_pylist() == lines
    info = json.loads((folder / "dataset_info.json").read_text())["ratchet_preferences"]
    columns, forms = info["columns"], json.loads((folder / info["file_name"]).read_text())
    assert info.get("ranking", False) == (method == "dpo")
    for line, form in zip(lines, forms, strict=True):
        assert form[columns["prompt"]] == line["prompt"][-1]["content"]
        if method == "dpo":
            assert (form[columns["chosen"]], form[columns["rejected"]]) == (
                text(line, "chosen"),
                text(line, "rejected"),
            )
        else:
            assert (form[columns["response"]], form[columns["kto_tag"]]) == (text(line, "completion"), line["label"])
    settings = yaml.safe_load((folder / "train.yaml").read_text())
    assert (settings["stage"], settings["dataset"], settings["pref_beta"]) == (method, "ratchet_preferences", 0.1)
    kinds = {entry["name"] for entry in json.loads((folder / "croissant.json").read_text())["distribution"]}
    assert {"preferences.jsonl", "preferences.parquet", "preferences_alpaca.json"} < kinds


def test_whoever_said_it_can_withdraw_it_and_the_card_counts_it(dataset: tuple[Method, Path]) -> None:
    _, folder = dataset
    said_by = {json.loads(line)["id"] for line in (folder / "subjects.jsonl").read_text().splitlines()}
    lines = [json.loads(line) for line in (folder / "preferences.jsonl").read_text().splitlines()]
    assert {line["id"] for line in lines} <= said_by
    assert "r10" not in said_by, "who withdrew"
    for name in ("README.md", "card.html"):
        card = (folder / name).read_text()
        assert "What people preferred" in card
        assert "unjudged 1" in card
        assert "jane@" not in card


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    for method in ("dpo", "kto"):
        for name in ("one", "two"):
            curated(tmp_path, method).write(tmp_path / method / name)
        for file in (tmp_path / method / "one").iterdir():
            assert file.read_bytes() == (tmp_path / method / "two" / file.name).read_bytes()


def test_files_of_one_s_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [record | {"namespace": "local", "cycle": "local"} for record in RECORDS]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    out = tmp_path / "out"
    assert main(["curate-files", str(tmp_path / "a.jsonl"), "--out", str(out), "--method", "dpo"]) == 0
    assert "uncorrected" in capsys.readouterr().out
    assert (out / "preferences.jsonl").is_file()
