"""Files shared out to workers: the same dataset to the byte, whatever their number and wherever the borders fall; and,
where the workers meet in storage, whenever each of them comes, dies and comes again."""

import json
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from ratchet_api.data import Bursts, Curation, Limits, NearDuplicates, Source
from ratchet_api.erasures import Erased
from ratchet_api.reasons import Reason
from ratchet_api.stage import CurateInput, ExitCode, StageReport
from ratchet_api.training import Method
from ratchet_trainer.artifacts import build_manifest
from ratchet_trainer.cli import main
from ratchet_trainer.curate import shards as sharded
from ratchet_trainer.curate import stage as alone
from ratchet_trainer.curate import workers
from ratchet_trainer.curate.curated import Curated, build, finished
from ratchet_trainer.curate.pipeline import Counts, SessionFile, Settings, examples_of
from ratchet_trainer.curate.text import HeldOut
from ratchet_trainer.curate.workers import map_by_workers, shards
from ratchet_trainer.errors import TryAgain
from ratchet_trainer.metrics import Progress
from ratchet_trainer.storage import Location, Store

Identity = Callable[..., dict[str, Any]]
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


# -- workers that meet in storage


@pytest.fixture
def sessions(store: Store, bucket: str, tmp_path: Path) -> None:
    """The material as segments of two days, and an import."""
    for number, file in enumerate(material(tmp_path)):
        if file.source is not None:
            store.put(Location.parse(f"s3://{bucket}/import.jsonl"), file.path.read_bytes())
            continue
        day = NOW - timedelta(days=number % 2)
        place = Location.parse(f"s3://{bucket}/assistant/sessions/dt={day:%Y-%m-%d}/{file.name}.zst")
        store.put(place, zstandard.compress(file.path.read_bytes()))


def curate_input(identity: Identity, parallelism: int = 1, attempt: int = 0, **changes: Any) -> CurateInput:
    curation = {
        "variations": 1, "nearDuplicates": {}, "bursts": {}, "maxPerPrincipal": 9, "parallelism": parallelism,
    }  # fmt: skip
    who = identity(version="", run=1, attempt=attempt)
    sources = [{"uri": who["storage_uri"].replace("/assistant", "/import.jsonl"), "verdict": "good"}]
    return CurateInput.model_validate(
        {
            "stage": "curate", "identity": who, "until": NOW.isoformat(), "curation": curation, "min_examples": 5,
            "sessions": {"window": "1d", "sources": sources}, "suites": [],
        } | changes
    )  # fmt: skip


Work = Callable[[CurateInput, int], StageReport]


@pytest.fixture
def work(store: Store, tmp_path: Path) -> Work:
    """One worker, in a pod of its own."""
    pods = iter(range(1000))

    def run(stage: CurateInput, index: int) -> StageReport:
        scratch = tmp_path / f"pod-{next(pods)}"
        progress = Progress(stage.identity, "curate")
        if stage.curation.parallelism == 1:
            return alone.run(stage, store, scratch, progress, None, None)
        return sharded.run(stage, store, scratch, progress, None, None, index)

    return run


def the_one(reports: Sequence[StageReport]) -> StageReport:
    """The report that is the stage's; the others say that they are not."""
    (final,) = [one for one in reports if not one.partial]
    assert all(one.artifact is None and one.outcome == "Succeeded" for one in reports if one.partial)
    return final


def left(store: Store, stage: CurateInput) -> list[str]:
    root = Location.parse(stage.identity.storage_uri).child("datasets/.parts")
    return [one.location.key for one in store.objects(root)]


@pytest.mark.usefixtures("sessions")
@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_whatever_their_number_and_order(work: Work, identity: Identity, store: Store, method: str) -> None:
    expected = work(curate_input(identity, method=method), 0)
    assert expected.artifact is not None
    for count, order in ((2, (1, 0)), (4, (2, 0, 3, 1))):
        stage = curate_input(identity, count, method=method)
        reports = [work(stage, index) for index in order]
        assert [one.partial for one in reports] == [True] * (count - 1) + [False], "who comes last puts them together"
        final = the_one(reports)
        assert (final.artifact, final.dataset, final.message) == (expected.artifact, expected.dataset, expected.message)
        assert left(store, stage) == []
        assert work(stage, 0) == final, "a worker that comes again finds it done"


@pytest.mark.usefixtures("sessions")
def test_workers_that_run_at_the_same_time(work: Work, identity: Identity) -> None:
    expected = work(curate_input(identity), 0)
    stage = curate_input(identity, 4)
    with ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(lambda index: work(stage, index), range(4)))
    assert the_one(reports).artifact == expected.artifact


class Died(BaseException):
    """kill -9."""


@pytest.mark.usefixtures("sessions")
@pytest.mark.timeout(300)
def test_a_worker_killed_after_any_write_costs_no_finished_part(
    work: Work, identity: Identity, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = work(curate_input(identity), 0).artifact
    put, upload, mapped = Store.put, Store._upload, sharded.map_shard
    writes, made, dies_after = [0], list[str](), [0]

    def count(done: Any) -> Any:
        writes[0] += 1
        if writes[0] == dies_after[0]:
            raise Died
        return done

    monkeypatch.setattr(Store, "put", lambda *args, **more: count(put(*args, **more)))
    monkeypatch.setattr(Store, "_upload", lambda *args: count(upload(*args)))

    def watched(settings: Any, files: Any, said: Any, held_out: Any, told: Any, folder: Path, *before: Any) -> None:
        if not before:
            made.append(folder.name)
        mapped(settings, files, said, held_out, told, folder, *before)

    monkeypatch.setattr(sharded, "map_shard", watched)
    killed = 0
    for run in range(2, 200):
        writes[0], dies_after[0] = 0, run - 1
        made.clear()
        stage = curate_input(identity, 2)
        stage = stage.model_copy(update={"identity": stage.identity.model_copy(update={"run": run})})
        try:
            first = [work(stage, index) for index in (0, 1)]
        except Died:
            killed += 1
            dies_after[0] = 0
            finished = [name for name in ("map-0", "map-1") if _is_there(store, stage, name)]
            made.clear()
            again = stage.model_copy(update={"identity": stage.identity.model_copy(update={"attempt": 1})})
            reports = [work(again, index) for index in (0, 1)]
            assert {one.artifact for one in reports if not one.partial} == {expected}, f"killed after write {run - 1}"
            assert not set(finished) & set(made), "what is finished is not made again"
            assert left(store, again) == []
        else:
            assert the_one(first).artifact == expected
            break
    assert killed > 20, "no test if nothing was killed"


def _is_there(store: Store, stage: CurateInput, name: str) -> bool:
    return any(key.endswith(f"/{name}/manifest.json") for key in left(store, stage))


@pytest.mark.usefixtures("sessions")
def test_who_was_evicted_while_it_put_the_parts_together_goes_on(
    work: Work, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, put_together = curate_input(identity, 2), sharded.joined
    assert work(stage, 0).partial

    def dies(*args: Any) -> None:
        raise Died

    monkeypatch.setattr(sharded, "joined", dies)
    with pytest.raises(Died):
        work(stage, 1)
    monkeypatch.setattr(sharded, "joined", put_together)
    assert work(stage, 0).partial, "one is at it"
    assert work(stage, 1).artifact == work(curate_input(identity), 0).artifact


@pytest.mark.usefixtures("sessions")
def test_sessions_that_come_later_are_the_next_runs(work: Work, identity: Identity, store: Store, bucket: str) -> None:
    expected = work(curate_input(identity), 0)
    stage = curate_input(identity, 2)
    assert work(stage, 0).partial
    late = Location.parse(f"s3://{bucket}/assistant/sessions/dt={NOW:%Y-%m-%d}/00-late.jsonl")
    store.put(late, json.dumps(_interaction(random.Random(1), 9000)).encode())
    assert work(stage, 1).artifact == expected.artifact


@pytest.mark.usefixtures("sessions")
def test_sessions_that_come_between_attempts_cost_no_finished_part(
    work: Work, identity: Identity, store: Store, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway writes all the time, and an attempt may end before it has listed anything."""
    expected = work(curate_input(identity), 0)
    assert work(curate_input(identity, 2), 0).partial
    late = Location.parse(f"s3://{bucket}/assistant/sessions/dt={NOW:%Y-%m-%d}/00-late.jsonl")
    store.put(late, json.dumps(_interaction(random.Random(1), 9000)).encode())
    made, mapped = list[str](), sharded.map_shard

    def watched(settings: Any, files: Any, said: Any, held_out: Any, told: Any, folder: Path, *before: Any) -> None:
        made.extend([] if before else [folder.name])
        mapped(settings, files, said, held_out, told, folder, *before)

    monkeypatch.setattr(sharded, "map_shard", watched)
    third = curate_input(identity, 2, attempt=2)
    assert work(third, 0).partial
    assert work(third, 1).artifact == expected.artifact
    assert made == ["map-1"]


@pytest.mark.usefixtures("sessions")
def test_parts_that_nobody_asks_for_any_more_are_removed(
    work: Work, identity: Identity, store: Store, bucket: str
) -> None:
    assert work(curate_input(identity, 2), 0).partial
    store.put(Location.parse(f"s3://{bucket}/assistant/erasures.jsonl"), b'{"principal": "p1"}\n')
    again = curate_input(identity, 2, attempt=1)
    assert the_one([work(again, index) for index in (1, 0)]).artifact == work(curate_input(identity), 0).artifact
    assert left(store, again) == []


@pytest.mark.usefixtures("sessions")
def test_parts_of_a_run_that_was_given_up_go_with_the_next_one(work: Work, identity: Identity, store: Store) -> None:
    given_up = curate_input(identity, 2)
    assert work(given_up, 0).partial
    assert left(store, given_up)
    following = curate_input(identity, 2)
    following = following.model_copy(update={"identity": following.identity.model_copy(update={"run": 2})})
    reports = [work(following, index) for index in (0, 1)]
    assert the_one(reports).outcome == "Succeeded"
    assert left(store, following) == []


@pytest.mark.usefixtures("sessions")
def test_what_changes_under_the_workers_is_tried_again(
    work: Work, identity: Identity, store: Store, bucket: str
) -> None:
    stage = curate_input(identity, 2)
    assert work(stage, 1).partial
    store.put(Location.parse(f"s3://{bucket}/import.jsonl"), b'{"messages": []}\n')
    first = min(one.location.key for one in store.objects(Location.parse(f"s3://{bucket}/assistant/sessions")))
    store.put(Location(bucket, first), zstandard.compress(b"{}\n"))
    with pytest.raises(TryAgain, match="gone or changed since the first worker listed it"):
        work(stage, 0)
    again = stage.model_copy(update={"identity": stage.identity.model_copy(update={"attempt": 1})})
    assert the_one([work(again, index) for index in (0, 1)]).artifact == work(curate_input(identity), 0).artifact

    other = stage.model_copy(update={"identity": stage.identity.model_copy(update={"run": 2})})
    assert work(other, 1).partial
    store.put(Location.parse(f"s3://{bucket}/assistant/erasures.jsonl"), b'{"principal": "p1"}\n')
    with pytest.raises(TryAgain, match="somebody withdrew"):
        work(other, 0)


@pytest.mark.usefixtures("sessions")
def test_as_the_pods_of_a_job_run_it(stages: Any, identity: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    document = json.loads(curate_input(identity, 2).model_dump_json())
    ran = {}
    for index in ("1", "0"):
        monkeypatch.setenv("JOB_COMPLETION_INDEX", index)
        ran[index] = stages.run("curate", document)
        assert ran[index].code == ExitCode.DONE, ran[index].log
    assert ran["1"].report.partial
    assert ran["1"].report.message == "shard 2 of 2 is done; 1 are not there yet"
    assert (ran["0"].report.partial, ran["0"].report.reason) == (False, Reason.SUCCEEDED)
    monkeypatch.delenv("JOB_COMPLETION_INDEX")
    by_hand = stages.run("curate", document)
    assert by_hand.report.artifact == ran["0"].report.artifact, "outside of a Job one worker does it all"
    little = document | {"min_examples": 100_000, "identity": document["identity"] | {"run": 3}}
    for index in ("0", "1"):
        monkeypatch.setenv("JOB_COMPLETION_INDEX", index)
        ran[index] = stages.run("curate", little)
    assert (ran["0"].report.partial, ran["1"].report.outcome) == (True, "Skipped")
