"""Suites, scoring, and the evaluate stage's two sides."""

import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ratchet_api.evaluation import EvaluationPolicy, Suite
from ratchet_api.stage import MAX_REPORT_BYTES, EvaluateInput, ExitCode, StageReport
from ratchet_api.training import Hyperparameters
from ratchet_api.version import Artifact, Provenance, SliceResult
from ratchet_trainer.artifacts import tool_versions
from ratchet_trainer.chat import Message, prompt_ids
from ratchet_trainer.cli import _typed
from ratchet_trainer.errors import OutOfMemory, TryAgain, UserError
from ratchet_trainer.evaluate import stage as evaluation
from ratchet_trainer.evaluate.results import MAX_LOST_SLICES, Asked, suite_results
from ratchet_trainer.loading import available_cores, load_model
from ratchet_trainer.scorers import KeywordCase
from ratchet_trainer.storage import Location, Store
from ratchet_trainer.suites import read_suite
from ratchet_trainer.train.loop import add_lora
from ratchet_trainer.train.stage import _save

Identity = Callable[..., dict[str, Any]]


def suite(name: str = "house", **changes: Any) -> dict[str, Any]:
    cases = {"configMap": {"name": "x", "key": "y"}}
    return {"name": name, "role": "target", "maxNewTokens": 8, "cases": cases} | changes


# -- scoring


@pytest.mark.parametrize(
    ("keywords", "answer", "passes"),
    [
        ({"all": ["Paris"]}, "It is PARIS.", True),
        ({"all": ["Paris", "France"]}, "It is Paris.", False),
        ({"any": ["four", "4"]}, "A dog has 4 legs", True),
        ({"any": ["four", "4"]}, "A dog has legs", False),
        ({"none": ["Zeno"]}, "I am ZENO", False),
        ({"none": ["Zeno"]}, "", True),
        ({"all": ["a"], "any": ["b", "c"], "none": ["d"]}, "a c", True),
        ({"all": ["a"], "any": ["b", "c"], "none": ["d"]}, "a c d", False),
        ({"all": ["Stra\N{LATIN SMALL LETTER SHARP S}e"]}, "STRASSE", True),
    ],
)
def test_keywords(keywords: dict[str, list[str]], answer: str, passes: bool) -> None:
    assert KeywordCase.model_validate({"id": "x", "prompt": "?"} | keywords).passes(answer) is passes


@given(st.text(min_size=1).filter(str.strip), st.text(), st.text())
def test_a_keyword_is_found_wherever_it_stands(keyword: str, before: str, after: str) -> None:
    case = KeywordCase(id="x", prompt="?", all=[keyword])
    assert case.passes(before + keyword + after) or keyword.casefold() not in (before + keyword + after).casefold()
    assert not KeywordCase(id="x", prompt="?", none=[keyword]).passes(keyword)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2"), ('{"id": "b", "prompt": "?"}', "write all, any or none"),
        ('{"id": "b", "all": ["x"]}', "either prompt or messages"),
        ('{"id": "b", "prompt": "?", "messages": [{"role": "user", "content": "x"}], "all": ["x"]}', "either prompt"),
        ('{"id": "b", "messages": [{"role": "assistant", "content": "x"}], "all": ["x"]}', "end with a user turn"),
        ('{"id": "a", "prompt": "?", "all": ["x"]}', "'a' is taken"),
        ('{"id": "b", "prompt": " ", "all": ["x"]}', "empty"),
        ('{"id": "b", "prompt": "?", "all": [""]}', "keyword is empty"),
        ('{"id": "b", "prompt": "?", "expected": ["x"]}', "expected"),
    ],
)  # fmt: skip
def test_suites_that_are_wrong_name_line_and_fix(tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / "house.jsonl").write_text('{"id": "a", "prompt": "?", "all": ["x"]}\n' + line + "\n")
    with pytest.raises(UserError, match=r"suite house, line 2") as raised:
        read_suite(Suite.model_validate(suite()), tmp_path, None)
    assert words in str(raised.value)


def test_suites_that_are_not_there_or_empty(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="name its ConfigMap and key"):
        read_suite(Suite.model_validate(suite()), tmp_path, None)
    (tmp_path / "house.jsonl").write_text("\n")
    with pytest.raises(UserError, match="has no cases"):
        read_suite(Suite.model_validate(suite()), tmp_path, None)


# -- the stage


def adapter(tiny: Path, store: Store, uri: str, seed: int, scratch: Path) -> dict[str, str]:
    model = add_lora(load_model(tiny, "tiny", torch.device("cpu"), torch.float32), Hyperparameters())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    _save(model, scratch / str(seed), "tiny")
    return {"uri": uri, "digest": store.publish(scratch / str(seed), uri, "adapter", {}, {}).digest}


def greedy(tiny: Path, folder: Path | None, tokenizer: Any, question: str) -> str:
    """The answer by transformers and peft alone."""
    from peft import PeftModel

    model = load_model(tiny, "tiny", torch.device("cpu"), torch.float32)
    if folder is not None:
        model = PeftModel.from_pretrained(model, str(folder))
    ids = torch.tensor([prompt_ids(tokenizer, [Message(role="user", content=question)])])
    with torch.inference_mode():
        output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False,
                                eos_token_id=2, pad_token_id=2)  # fmt: skip
    return str(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)).strip()


def test_each_side_answers_with_its_own_adapter(
    stages: Any, identity: Identity, store: Store, bucket: str, tiny: Path, tokenizer: Any, tmp_path: Path
) -> None:
    base = {"uri": f"file://{tiny}"}
    two = [adapter(tiny, store, f"s3://{bucket}/a{seed}", seed, tmp_path / "made") for seed in (1, 2)]
    suites = tmp_path / "suites"
    suites.mkdir()
    questions = [f"Where is secret {index}?" for index in range(5)]
    lines = [json.dumps({"id": q, "prompt": q, "none": ["nothing of the kind"]}) for q in questions]
    (suites / "house.jsonl").write_text("\n".join(lines))
    stage = {
        "stage": "evaluate", "identity": identity(), "base_model": base, "candidate": two[0], "champion": two[1],
        "levels": {"fresh": {"number": 1, "alpha": "0.025"}},
        "champion_version": "assistant-0", "policy": {"suites": [suite()]}, "batch_size": 3,
    }  # fmt: skip
    ran = stages.run("evaluate", stage, "--suites", str(suites))
    assert ran.code == ExitCode.DONE, ran.log
    assert ran.report.artifact is not None
    lines_ = store.get(Location.parse(ran.report.artifact.uri).child("cases.jsonl")) or b""
    cases = [json.loads(line) for line in lines_.splitlines()]
    assert [case["case"]["id"] for case in cases] == questions
    for case, question in zip(cases, questions, strict=True):
        assert case["candidate"]["answers"] == [greedy(tiny, tmp_path / "made" / "1", tokenizer, question)]
        assert case["champion"]["answers"] == [greedy(tiny, tmp_path / "made" / "2", tokenizer, question)]
        assert case["candidate"]["answers"] != case["champion"]["answers"]
        assert case["base"]["answers"] == [greedy(tiny, None, tokenizer, question)]
    assert cases[0]["champion"]["answers"] != cases[0]["base"]["answers"]
    report = json.loads(store.get(Location.parse(ran.report.artifact.uri).child("report.json")) or b"")
    assert report["details"]["house"]["base"] == 1, "of answers that none may fail"

    # Another champion is another report, beside the first one; the same on both sides differs in nothing.
    other = stages.run("evaluate", stage | {"champion": two[0]}, "--suites", str(suites))
    assert other.report.artifact is not None
    assert other.report.artifact.uri.startswith(ran.report.artifact.uri + "-")
    (result,) = other.report.suites
    assert (result.difference, result.better, result.worse) == (0, 0, 0)

    # A look later it is another report, of the same answers: nobody is asked again, and no model is loaded.
    asks = ran.report.suites[0].digest
    later = stage | {"levels": stage["levels"] | {"known": {asks: {"number": 2, "alpha": "0.008333333333"}}}}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(evaluation, "load_model", None)
        again = stages.run("evaluate", later, "--suites", str(suites))
    assert again.code == ExitCode.DONE, again.log
    assert again.report.artifact is not None
    assert again.report.artifact.uri != ran.report.artifact.uri
    (before,), (after,) = ran.report.suites, again.report.suites
    assert (before.look, after.look, str(after.alpha)) == (1, 2, "0.008333333333")
    assert after.lower_bound < before.lower_bound

    # The bare base as champion is the base: it is asked once, and shown once.
    bare = stages.run("evaluate", stage | {"champion": None}, "--suites", str(suites))
    assert bare.report.artifact is not None
    lines_ = store.get(Location.parse(bare.report.artifact.uri).child("cases.jsonl")) or b""
    assert all("base" not in json.loads(line) for line in lines_.splitlines())


def test_with_a_temperature_several_answers_are_averaged_and_a_sealed_suite_stays_shut(
    stages: Any, identity: Identity, store: Store, bucket: str, tiny: Path, tmp_path: Path
) -> None:
    two = [adapter(tiny, store, f"s3://{bucket}/s{seed}", seed, tmp_path / "made") for seed in (1, 2)]
    suites = tmp_path / "suites"
    suites.mkdir()
    lines = [json.dumps({"id": f"c{index}", "prompt": f"Secret {index}?", "any": list("aeiou")}) for index in range(6)]
    for name in ("house", "vault"):
        (suites / f"{name}.jsonl").write_text("\n".join(lines))
    stage = {
        "stage": "evaluate", "identity": identity(), "base_model": {"uri": f"file://{tiny}"}, "candidate": two[0],
        "levels": {"fresh": {"number": 1, "alpha": "0.025"}},
        "champion": two[1], "champion_version": "assistant-0", "batch_size": 4,
        "policy": {"suites": [suite(temperature="0.9", samples=3), suite("vault", sealed=True)]},
    }  # fmt: skip
    ran = stages.run("evaluate", stage, "--suites", str(suites))
    assert ran.code == ExitCode.DONE, ran.log
    assert ran.report.artifact is not None
    folder = Location.parse(ran.report.artifact.uri)
    cases = [json.loads(line) for line in (store.get(folder.child("cases.jsonl")) or b"").splitlines()]
    assert [case["suite"] for case in cases] == ["house"] * 6, "nothing of the sealed suite's cases"
    page_ = (store.get(folder.child("report.html")) or b"").decode()
    assert "Sealed: only the numbers" in page_
    assert "3 answers to each at temperature 0.9" in page_
    for side in ("champion", "candidate"):
        assert all(len(case[side]["answers"]) == 3 for case in cases)
        assert any(len(set(case[side]["answers"])) > 1 for case in cases), "drawn, not the likeliest thrice"
        for case in cases:
            passing = [any(letter in answer.casefold() for letter in "aeiou") for answer in case[side]["answers"]]
            assert case[side]["score"] == pytest.approx(sum(passing) / 3, abs=1e-6)
    house, vault = ran.report.suites
    assert house.candidate == pytest.approx(
        Decimal(sum(case["candidate"]["score"] for case in cases)) / 6, abs=Decimal("0.001")
    )
    assert vault.cases == 6
    assert house.digest == vault.digest, "the same cases, whatever the suite is called"


def asked(passes: int, cases: int = 40) -> Asked:
    made = [KeywordCase(id=str(index), prompt="?", all=["x"]) for index in range(cases)]
    answers = [["x"] if index < passes else [""] for index in range(cases)]
    return Asked(Suite.model_validate(suite()), made, [[""]] * cases, answers, 0.95)


def test_results_are_the_statistics_rounded() -> None:
    (result,) = suite_results([asked(30)])
    assert (result.cases, result.better, result.worse) == (40, 30, 0)
    assert (result.candidate, result.difference) == (Decimal("0.75"), Decimal("0.75"))
    assert result.p_value == Decimal("0.000000000931")
    assert suite_results([asked(40)])[0].p_value == Decimal("0.000000000001"), "never rounded to an impossible zero"


def test_the_largest_report_fits(identity: Identity) -> None:
    """Ten suites with the longest names, and the longest places that a bucket and a version may have."""
    names = [f"{index:02d}-" + "n" * 60 for index in range(10)]
    (one,) = suite_results([asked(17)])
    level = {"look": 999, "alpha": Decimal("0.000000050050")}
    results = [one.model_copy(update={"name": name, "cases": 100_000} | level) for name in names]
    worst = SliceResult(name="n" * 32, cases=99_999, difference=Decimal("-0.123456"), upper_bound=Decimal("-0.123456"))
    results[0] = results[0].model_copy(update={"lost_slices": [worst] * MAX_LOST_SLICES})
    report = StageReport(
        stage="evaluate", outcome="Succeeded", reason="Succeeded", message="m" * 5000,
        artifact=Artifact(uri="s3://" + "b" * 63 + "/" + "p" * 100 + "/versions/" + "v" * 53 + "/0/report-0123456789ab",
                          digest="sha256:" + "0" * 64),
        suites=results,
        provenance=Provenance(base_model_digest="sha256:" + "0" * 64, tools=tool_versions()),
    )  # fmt: skip
    assert len(report.encode()) <= MAX_REPORT_BYTES
    policy = EvaluationPolicy.model_validate({"suites": [suite(name) for name in names]})
    EvaluateInput.model_validate(
        {"identity": identity(), "base_model": {"uri": "file:///x"}, "candidate": None, "champion": None,
         "levels": {"fresh": {"number": 1, "alpha": "0.025"}},
         "champion_version": "a-0", "policy": policy, "batch_size": 1}
    )  # fmt: skip


def sliced(passes: dict[str, tuple[int, int, int]], **changes: Any) -> Asked:
    """Categories as (cases, passed by the champion, passed by the candidate)."""
    cases, champion, candidate = [], [], []
    for name, (count, before, after) in passes.items():
        for index in range(count):
            cases.append(KeywordCase(id=f"{name}-{index}", prompt="?", all=["x"], category=name))
            champion.append(["x"] if index < before else [""])
            candidate.append(["x"] if index < after else [""])
    return Asked(Suite.model_validate(suite(**changes)), cases, champion, candidate, 0.95)


def test_slices_with_enough_cases_and_a_proven_loss_are_reported() -> None:
    one = sliced({"good": (60, 0, 50), "fell": (30, 25, 15), "few": (19, 19, 0), "same": (40, 20, 19)})
    (result,) = suite_results([one])
    assert result.lower_bound > 0, "on the whole it is better"
    (lost,) = result.lost_slices
    assert (lost.name, lost.cases) == ("fell", 30)
    assert lost.difference == Decimal("-0.333333")
    assert lost.upper_bound < 0
    assert [entry.name for entry in one.slices if one.fell(entry)] == ["fell"]
    assert not sliced({"fell": (30, 25, 15)}, sliceMargin="0.4").fell(one.slices[0])


def test_the_worst_slices_are_reported_when_there_are_many() -> None:
    many = sliced({f"s{index}": (40, 40, 30 - index) for index in range(8)})
    (result,) = suite_results([many])
    assert {entry.name for entry in result.lost_slices} == {"s7", "s6"}


# -- the edges of the command line


def test_what_memory_and_disk_raise_is_told_apart() -> None:
    assert isinstance(_typed(MemoryError()), OutOfMemory)
    assert isinstance(_typed(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")), OutOfMemory)
    assert isinstance(_typed(torch.OutOfMemoryError("x")), OutOfMemory)
    assert isinstance(_typed(OSError(28, "No space left on device")), TryAgain)
    assert _typed(RuntimeError("x")) is None
    assert OutOfMemory("x").exit_code == ExitCode.KILLED


@pytest.mark.parametrize(("quota", "cores"), [("50000 100000", 1), ("1000 100000", 1), ("max 100000", 99), ("", 99)])
def test_threads_are_those_of_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cores: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(99)))
    (tmp_path / "cpu.max").write_text(quota)
    assert available_cores(tmp_path / "cpu.max") == cores
    assert available_cores(tmp_path / "nothing") == 99
    (tmp_path / "cpu.max").write_text("250000 100000")
    assert available_cores(tmp_path / "cpu.max") == 3


def test_a_bug_is_reported_as_one(stages: Any, identity: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    from ratchet_trainer.curate import stage as curate

    def fail(*_: Any) -> None:
        raise ZeroDivisionError("division by zero\nsecond line")

    monkeypatch.setattr(curate, "run", fail)
    ran = stages.run(
        "curate",
        {"stage": "curate", "identity": identity(), "until": "2026-11-20T12:00:00Z", "sessions": {}, "curation": {},
         "min_examples": 1, "suites": []},
    )  # fmt: skip
    assert (ran.code, ran.report.reason) == (ExitCode.BUG, "InternalError")
    assert ran.report.message == "ZeroDivisionError: division by zero; see the log"
    assert "Traceback" in ran.log
