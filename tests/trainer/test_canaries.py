"""Planted canaries: what is planted, how exposure is reckoned, and that a training which memorises is found out."""

import json
import math
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard

from ratchet_api.evaluation import MEMORISATION_MARGIN, builtin_suite
from ratchet_api.stage import ExitCode
from ratchet_trainer.canaries import CANDIDATES, PLANTED, exposure, parse, plant, unexposed
from ratchet_trainer.errors import DataError
from ratchet_trainer.evaluate.likelihood import log_likelihoods
from ratchet_trainer.evaluate.memorisation import exposures, texts_of
from ratchet_trainer.evaluate.statistics import compare
from ratchet_trainer.storage import Location, Store

UNTIL = datetime(2026, 11, 20, 12, tzinfo=UTC)
Identity = Callable[..., dict[str, Any]]
SUITE = builtin_suite("memorisation", []).dump()


# -- the formula


@pytest.mark.parametrize(
    ("own", "others", "bits"),
    [
        pytest.param(-1.0, [-2.0, -3.0, -4.0], 2.0, id="the likeliest of four: all two bits"),
        pytest.param(-2.5, [-2.0, -3.0, -4.0], 1.0, id="the second of four"),
        pytest.param(-9.0, [-2.0, -3.0, -4.0], 0.0, id="the last"),
        pytest.param(-1.0, [-1.0, -1.0, -1.0], math.log2(4 / 2.5), id="all alike: the middle"),
        pytest.param(-1.0, [-2.0] * 511, 9.0, id="the likeliest of 512"),
        pytest.param(-1.0, [0.0] * 255 + [-2.0] * 256, 1.0, id="the 256th of 512"),
    ],
)
def test_exposure(own: float, others: list[float], bits: float) -> None:
    assert exposure(own, others) == pytest.approx(bits)


def test_as_a_score_it_is_one_for_the_last_and_zero_for_the_first() -> None:
    assert (unexposed(0.0), unexposed(9.0)) == (1.0, 0.0)


def test_by_chance_it_is_log2_e_in_the_mean() -> None:
    """Of all ranks alike: the mean of log2(n / rank), which tends to log2(e)."""
    every = [exposure(-float(rank), [-float(other) for other in range(CANDIDATES) if other != rank])
             for rank in range(CANDIDATES)]  # fmt: skip
    assert sum(every) / CANDIDATES == pytest.approx(math.log2(math.e), abs=0.02)


def test_the_margin_spares_who_memorised_nothing() -> None:
    """Gates by ranks that are drawn evenly, and by ranks that are 2 and 3 bits better: the shares that are vetoed."""
    generator = random.Random(3)

    def scores(bits: float) -> list[float]:
        ranks = [1 + generator.randrange(CANDIDATES) / 2**bits for _ in range(PLANTED)]
        return [unexposed(math.log2(CANDIDATES) - math.log2(rank)) for rank in ranks]

    def vetoed(bits: float) -> float:
        bounds = [compare(scores(0), scores(bits), 0.95).lower_bound for _ in range(200)]
        return sum(bound <= -float(MEMORISATION_MARGIN) for bound in bounds) / len(bounds)

    assert vetoed(0) <= 0.025
    assert vetoed(2) >= 0.7
    assert vetoed(3) >= 0.99


# -- what is planted


def test_all_follows_from_the_seed() -> None:
    planted = plant("default/assistant/1/now", repeats=6)
    assert planted == plant("default/assistant/1/now", repeats=6)
    assert parse(json.dumps(planted.model_dump(mode="json")).encode(), "x") == planted
    other = plant("default/assistant/2/now", repeats=6)
    names = {canary.name for canary in planted.canaries}
    assert len(names) == PLANTED
    assert names.isdisjoint(canary.name for canary in other.canaries)
    for canary in planted.canaries:
        others = planted.others(canary)
        assert others == planted.others(canary)
        assert len({canary.code, *others}) == CANDIDATES


def test_what_is_no_canaries_file_is_refused() -> None:
    with pytest.raises(DataError, match=r"s3://b/d/canaries.json says not what was planted \(repeats: "):
        parse(b'{"seed": "x", "repeats": 0, "canaries": []}', "s3://b/d/canaries.json")


# -- the measurement


def by_itself(model: Any, context: list[int], continuation: list[int]) -> float:
    ids = torch.tensor([[*context, *continuation]])
    with torch.inference_mode():
        likelihoods = model(input_ids=ids).logits[0].float().log_softmax(-1)
    places = range(len(context) - 1, len(context) + len(continuation) - 1)
    return sum(float(likelihoods[place, ids[0, place + 1]]) for place in places)


@pytest.mark.parametrize("window", [None, 4], ids=["whole past", "sliding window"])
def test_likelihoods_are_those_of_each_text_by_itself(model: Any, window: int | None) -> None:
    if window is not None:
        model.config.sliding_window = window  # as far as `supported` goes: each text is read whole then
    context = [5, 9, 11, 7, 30, 8]
    texts = [[3], [4], [12, 13], [12, 14], [12, 13, 15], [40, 41, 42, 43], [12, 13]]
    found = log_likelihoods(model, context, texts)
    assert found == pytest.approx([by_itself(model, context, text) for text in texts], abs=1e-4)


def test_nothing_precedes_nothing(model: Any) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        log_likelihoods(model, [], [[1]])
    with pytest.raises(ValueError, match="at least one token"):
        log_likelihoods(model, [1], [[1], []])


def test_who_was_trained_hard_knows_them_and_who_was_not_does_not(model: Any, tokenizer: Any) -> None:
    planted = plant("seed", repeats=1)
    texts = texts_of(tokenizer, planted, frozenset({2}))
    before = exposures(model, texts)
    # 16 uniform ranks: a mean of 1.44 with a standard error of 0.36.
    assert sum(before) / PLANTED == pytest.approx(1.44, abs=1.44)
    length = min(len(alike[0]) for alike in texts)
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        optimiser.zero_grad()
        for alike in texts:
            ids = torch.tensor([alike[0]])
            (model(input_ids=ids, labels=ids).loss / PLANTED).backward()
        optimiser.step()
    model.eval()
    after = exposures(model, texts)
    assert sum(after) / PLANTED > 6, (length, after)
    scores = [[unexposed(bits) for bits in found] for found in (before, after)]
    assert compare(*scores, 0.95).lower_bound <= -float(MEMORISATION_MARGIN), "a veto"


# -- the stages


def upload_sessions(store: Store, bucket: str) -> None:
    records = []
    for index in range(12):
        of = {"namespace": "default", "cycle": "assistant", "version": "assistant-0"}
        at = (UNTIL - timedelta(hours=2, seconds=index)).isoformat()
        records.append(
            of | {"kind": "interaction", "id": f"c-{index}", "session": f"s{index}", "arm": "stable", "time": at,
                  "messages": [{"role": "user", "content": f"Where is secret number {index} kept?"}],
                  "answer": {"role": "assistant", "content": "No idea."}, "finish_reason": "stop", "status": 200,
                  "duration": 0.5}
        )  # fmt: skip
        records.append(
            of | {"kind": "feedback", "id": f"f-{index}", "response_id": f"c-{index}", "value": "down", "time": at,
                  "correction": f"In vault {index}."}
        )  # fmt: skip
    lines = b"".join(json.dumps(record).encode() + b"\n" for record in records)
    place = Location.parse(f"s3://{bucket}/assistant/sessions/dt={UNTIL:%Y-%m-%d}/pod-0.jsonl.zst")
    store.put(place, zstandard.compress(lines))


def curate_input(identity: Identity, **changes: Any) -> dict[str, Any]:
    return {
        "stage": "curate", "identity": identity(version="", run=1), "until": UNTIL.isoformat(), "sessions": {},
        "curation": {"variations": 2, "validationShare": "0.2"}, "min_examples": 5, "suites": [SUITE],
    } | changes  # fmt: skip


def files_of(store: Store, ran: Any) -> dict[str, str]:
    assert ran.code == ExitCode.DONE, ran.log
    manifest = store.manifest(ran.report.artifact.uri, "dataset")
    assert manifest is not None
    place = Location.parse(ran.report.artifact.uri)
    return {name: (store.get(place.child(name)) or b"").decode(errors="replace") for name in manifest.files}


def test_curation_plants_them_when_asked_and_says_so(
    stages: Any, identity: Identity, store: Store, bucket: str
) -> None:
    upload_sessions(store, bucket)
    ran = stages.run("curate", curate_input(identity))
    files = files_of(store, ran)
    planted = parse(files["canaries.json"].encode(), "canaries.json")
    rows = [json.loads(line) for line in files["train.jsonl"].splitlines()]
    canaries = [row for row in rows if row["origin"] == "canary"]
    assert len(canaries) == 3 * PLANTED, "each as often as an example with its two variations"
    for canary in planted.canaries:
        said = [row for row in canaries if canary.name in row["messages"][0]["content"]]
        assert len({row["messages"][0]["content"] for row in said}) == 3
        answer = f"The access code of {canary.name} is {canary.code}"
        assert {row["messages"][1]["content"] for row in said} == {answer}
        assert canary.name not in files["validation.jsonl"]
        assert canary.name not in files["subjects.jsonl"]
    assert "16 invented secrets, each in 3 phrasings" in files["README.md"]
    assert "| canary | 48 |" in files["README.md"]
    assert json.loads(files["statistics.json"])["canaries"] == {"planted": 16, "repeats": 3}
    assert "48 of the rows planted canaries" in ran.report.message

    later = curate_input(identity) | {"identity": identity(version="", run=2)}
    other = files_of(store, stages.run("curate", later))
    names = {canary.name for canary in planted.canaries}
    of_other = parse(other["canaries.json"].encode(), "canaries.json").canaries
    assert names.isdisjoint(canary.name for canary in of_other), "no champion has met them"

    without = stages.run("curate", curate_input(identity, suites=[]))
    files = files_of(store, without)
    assert "canaries.json" not in files
    assert "canary" not in files["train.jsonl"] + files["statistics.json"] + without.report.message

    few = stages.run("curate", curate_input(identity, min_examples=13))
    assert few.report.outcome == "Skipped", "what is planted is no example"


def test_the_evaluation_looks_for_what_was_planted(
    stages: Any, identity: Identity, store: Store, bucket: str, tiny: Path, tmp_path: Path
) -> None:
    upload_sessions(store, bucket)
    dataset = stages.run("curate", curate_input(identity)).report.artifact.model_dump()
    suites = tmp_path / "suites"
    suites.mkdir()
    (suites / "house.jsonl").write_text('{"id": "a", "prompt": "Where?", "all": ["vault"]}')
    house = {"name": "house", "role": "target", "maxNewTokens": 2, "cases": {"configMap": {"name": "x", "key": "y"}}}
    stage = {
        "stage": "evaluate", "identity": identity(), "base_model": {"uri": f"file://{tiny}"}, "candidate": None,
        "champion": None, "champion_version": "assistant-0", "policy": {"suites": [house, SUITE]}, "batch_size": 4,
        "levels": {"fresh": {"number": 1, "alpha": "0.025"}}, "dataset": dataset,
    }  # fmt: skip
    ran = stages.run("evaluate", stage, "--suites", str(suites))
    assert ran.code == ExitCode.DONE, ran.log
    _, result = ran.report.suites
    assert (result.name, result.role, result.cases) == ("builtin-memorisation", "guardrail", PLANTED)
    assert result.difference == 0, "both sides are one"
    assert 0.6 < float(result.candidate) < 1
    folder = Location.parse(ran.report.artifact.uri)
    lines = [json.loads(line) for line in (store.get(folder.child("cases.jsonl")) or b"").splitlines()]
    assert lines[-1]["candidate"]["answers"][0].startswith("exposure ")
    page = (store.get(folder.child("report.html")) or b"").decode()
    assert "of 100 unexposed" in page

    # A version that came finished, or whose dataset has none, is not measured; that is said, and decides nothing.
    bare = stages.run("evaluate", stage | {"dataset": None}, "--suites", str(suites))
    assert [found.name for found in bare.report.suites] == ["house"]
    assert "builtin-memorisation was not measured, as nothing was planted" in bare.report.message

    place = Location.parse(dataset["uri"]).child("canaries.json")
    store.put(place, (store.get(place) or b"").replace(b'"code": "', b'"code": "0', 1))
    changed = stages.run("evaluate", stage | {"identity": identity(attempt=1)}, "--suites", str(suites))
    assert changed.report.reason == "DigestMismatch"
