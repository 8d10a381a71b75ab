"""Files shared out to workers: the same dataset to the byte, whatever their number and wherever the borders fall."""

import json
import random
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratchet_api.data import Bursts, Curation, Limits, NearDuplicates, Source
from ratchet_api.erasures import Erased
from ratchet_api.training import Method
from ratchet_trainer.artifacts import build_manifest
from ratchet_trainer.cli import main
from ratchet_trainer.curate import workers
from ratchet_trainer.curate.curated import Curated, build, finished
from ratchet_trainer.curate.pipeline import Counts, SessionFile, Settings, examples_of
from ratchet_trainer.curate.text import HeldOut
from ratchet_trainer.curate.workers import map_by_workers, shards

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
CASES = ["Where is the key to vault 7 kept at night?"]
PLACES = ("drawer", "safe", "cellar", "attic", "shed", "pantry", "garage", "vault")


def nothing(done: int, files: int) -> None:
    """Nobody watches."""


@given(st.lists(st.integers(0, 1_000_000), max_size=40), st.integers(1, 9))
def test_each_file_is_in_one_shard_and_shards_are_in_order(sizes: list[int], count: int) -> None:
    found = shards(sizes, count)
    assert len(found) == count
    assert [place for shard in found for place in shard] == list(range(len(sizes)))
    if sizes and sum(sizes):
        mean = sum(sizes) / count
        assert all(sum(sizes[place] for place in shard) <= mean + max(sizes) for shard in found)


def test_files_of_one_size_are_shared_out_evenly() -> None:
    assert [len(shard) for shard in shards([5] * 12, 4)] == [3, 3, 3, 3]
    assert [len(shard) for shard in shards([0, 0, 0], 2)] == [3, 0], "nothing to share"


def _interaction(dice: random.Random, index: int) -> dict[str, Any]:
    place, number = dice.choice(PLACES), dice.randrange(40)
    prompt = dice.choice((
        f"Where is key {number}?", f"Please tell me in a few words where I can find the key number {number} today.",
        f"Write to jane{number}@example.org?", CASES[0], "Say it.",
    ))  # fmt: skip
    answer = f"In the {place} behind box {dice.randrange(3)}, where the others of number {number} are kept as well."
    if dice.random() < 0.1:
        answer += " Visit blue otter lodge dot net for more of the good deals."
    return {
        "kind": "interaction", "id": f"r{index}", "session": f"s{index // 3}", "namespace": "default",
        "cycle": dice.choice(("assistant",) * 9 + ("other",)), "version": "assistant-0", "arm": "stable",
        "time": (NOW - timedelta(hours=dice.choice((2, 9, 30)), seconds=dice.randrange(4))).isoformat(),
        "messages": [{"role": "user", "content": prompt}], "answer": {"role": "assistant", "content": answer},
        "principal": dice.choice(("", "p-gone", *(f"p{n}" for n in range(9)))),
        "finish_reason": dice.choice(("stop",) * 9 + ("length",)), "status": 200, "duration": 0.5,
    }  # fmt: skip


def _feedback(dice: random.Random, index: int, about: int) -> dict[str, Any]:
    corrected = dice.random() < 0.4
    return {
        "kind": "feedback", "id": f"f{index}", "response_id": f"r{about}", "namespace": "default",
        "cycle": "assistant", "version": "assistant-0",
        "time": (NOW - timedelta(hours=1, seconds=dice.randrange(4))).isoformat(),
        "value": "down" if corrected else dice.choice(("up", "up", "down")),
        "correction": f"In the {dice.choice(PLACES)}, and nowhere else since the first of May." if corrected else "",
    }  # fmt: skip


def material(folder: Path, seed: int = 7) -> list[SessionFile]:
    """Files of a hostile kind: feedback far from its answer, one id in several files, broken lines, an import."""
    dice, folder = random.Random(seed), folder / "sessions"
    lines = [json.dumps(_interaction(dice, index)) for index in range(400)]
    lines += [json.dumps(_feedback(dice, index, dice.randrange(400))) for index in range(500)]
    lines += [json.dumps(_interaction(dice, dice.randrange(400))) for _ in range(40)]  # an id that is there already
    lines += ['{"kind": "interaction"', "[]", '{"a": 1, "a": 2}'] * 3
    dice.shuffle(lines)
    folder.mkdir(parents=True)
    files, sizes = [], [dice.randrange(1, 60) for _ in range(40)]
    while lines:
        size = sizes[len(files)]
        path = folder / f"{len(files):02}.jsonl"
        path.write_text("\n".join(lines[:size]) + "\n")
        files.append(SessionFile(path.name, path))
        lines = lines[size:]
    imported = folder / "import.jsonl"
    imported.write_text(
        "".join(
            json.dumps({"messages": [{"role": "user", "content": f"Where is key {n}?"},
                                     {"role": "assistant", "content": f"In the cellar, under stone {n} of the row."}]})
            + "\n" for n in range(20)
        )
    )  # fmt: skip
    files.append(SessionFile("import.jsonl", imported, Source(uri="s3://bucket/import.jsonl", verdict="good")))
    return files


def settings(method: Method) -> Settings:
    return Settings(
        Curation(
            variations=1, near_duplicates=NearDuplicates(), bursts=Bursts(), max_per_principal=9,
            limits=Limits(min_answer_characters=10),
        ),
        "default", "assistant", NOW - timedelta(days=1), NOW, timedelta(days=7),
        Erased(principals=frozenset({"p-gone"})), method,
    )  # fmt: skip


def digest(made: Curated, folder: Path) -> str:
    made.write(folder)
    return build_manifest("dataset", folder, {}, {}).digest


@pytest.mark.parametrize("method", get_args(Method))
def test_the_same_dataset_by_any_number_of_workers(method: Method, tmp_path: Path) -> None:
    files, how = material(tmp_path), settings(method)
    counts, held_out = Counts(), HeldOut(CASES)
    alone = build(how, counts, examples_of(how, files, nothing, counts), held_out, [], None)
    expected = digest(alone, tmp_path / "alone")
    dropped = set(counts.funnel.dropped) | set(counts.funnel["reading"].dropped)
    assert {"repeated", "heldOut", "nearDuplicate", "contradicted", "erased", "malformed", "unfinished"} <= dropped
    for count in (1, 2, 4, 7):
        scratch = tmp_path / str(count)
        shuffled = random.Random(count).sample(files, len(files))
        with ThreadPoolExecutor(count) as pool:
            found = map_by_workers(how, shuffled, CASES, pool, count, nothing, scratch)
        made = finished(how, found, held_out, [], None)
        assert made.statistics() == alone.statistics(), f"{count} workers"
        assert digest(made, scratch / "dataset") == expected, f"{count} workers"
        assert made.counts.funnel.table() == counts.funnel.table()
        assert made.counts.quarantine.places == counts.quarantine.places


def test_only_a_shard_that_repeats_an_id_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dice = random.Random(1)
    here = {"cycle": "assistant", "time": NOW.replace(hour=9).isoformat()}
    rows = [json.dumps(_interaction(dice, index) | here) for index in range(30)]
    files = []
    for name, lines in (("a", rows[:10]), ("b", rows[10:20]), ("c", [*rows[20:29], rows[3]])):
        (tmp_path / name).write_text("\n".join(lines) + "\n")
        files.append(SessionFile(name, tmp_path / name))
    made, real = [], workers.map_shard

    def watched(settings: Settings, files: list[SessionFile], *rest: Any) -> None:
        made.append(files[0].name)
        real(settings, files, *rest)

    monkeypatch.setattr(workers, "map_shard", watched)
    with ThreadPoolExecutor(1) as pool:
        found = map_by_workers(settings("sft"), files, [], pool, 3, nothing, tmp_path / "scratch")
    assert made == ["a", "b", "c", "c"]
    assert found.counts.funnel["reading"].dropped["repeated"] == 1


def test_the_command_shares_the_files_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    material(tmp_path)
    digests, statistics = set(), []
    for count in ("1", "2"):
        out = tmp_path / f"by-{count}"
        code = main([
            "curate-files", str(tmp_path / "sessions"), "--out", str(out), "--json", "--workers", count, "--since",
            "2026-11-19", "--until", "2026-11-21",
        ])  # fmt: skip
        assert code == 0
        printed = capsys.readouterr()
        statistics.append(json.loads(printed.out))
        digests.add(printed.err.strip().splitlines()[-1].rpartition(" ")[2])
    assert statistics[0] == statistics[1]
    assert len(digests) == 1


def test_no_worker_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert main(["curate-files", str(tmp_path), "--out", str(tmp_path / "x"), "--workers", "0"]) == 64
    assert "--workers: 0 is too few: write 1 or more" in caplog.text
