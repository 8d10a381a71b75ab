"""DPO and KTO: TRL's losses, exact however a step is split, resumed to the bit."""

import importlib.util
import json
import math
import signal
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from ratchet_api.stage import ExitCode
from ratchet_api.training import Preferences, Recipe
from ratchet_trainer.errors import DataError, UserError
from ratchet_trainer.metrics import Progress
from ratchet_trainer.storage import Location, Store
from ratchet_trainer.train import preferred, team
from ratchet_trainer.train.encode import Encoder, Example
from ratchet_trainer.train.loop import Forward, ready
from ratchet_trainer.train.objective import Figures, Objective
from ratchet_trainer.train.preferences import Judged, Pair, Reference, log_probs, read_preferences
from ratchet_trainer.train.team import share

_spec = importlib.util.spec_from_file_location("preferences_by_trl", Path(__file__).with_name("preferences_by_trl.py"))
assert _spec is not None
assert _spec.loader is not None
trl = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(trl)

CPU = torch.device("cpu")
CASES = json.loads(trl.EXPECTED.read_text())["cases"]
STOPS = frozenset({2})


def sequence(prompt: Sequence[int], answer: Sequence[int]) -> Example:
    return Example((*prompt, *answer), (False,) * len(prompt) + (True,) * len(answer))


PAIR_UNITS = [
    Pair(sequence(pair["prompt_ids"], pair["chosen_ids"]), sequence(pair["prompt_ids"], pair["rejected_ids"]))
    for pair in trl.PAIRS
]  # fmt: skip
JUDGED_UNITS = [Judged(sequence(one["prompt_ids"], one["completion_ids"]), bool(one["label"])) for one in trl.JUDGED]


def adapted(shape: str) -> Any:
    """The model with an adapter that says something."""
    from peft import get_peft_model

    found = get_peft_model(trl.model(shape), trl.lora())
    trl.fill(found, trl.ADAPTER, only="lora_")
    return found


def objective(method: str, settings: dict[str, float]) -> Objective:
    preferences = Preferences.model_validate({key: str(value) for key, value in settings.items()})
    return preferred.objective(Recipe(method=method, preferences=preferences), cutoff=64)


def units_of(method: str) -> Sequence[Any]:
    return PAIR_UNITS if method == "dpo" else JUDGED_UNITS


def step(shape: str, method: str, settings: dict[str, float], micro_batch: int, packed: bool, ranks: int = 1) -> Any:
    """Figures and gradient of one step."""
    model, units = adapted(shape), units_of(method)
    forward = Forward(CPU, packed)
    ready(model, packed)
    figures = Figures(0.0)
    for rank in range(ranks):
        figures += objective(method, settings).backward(model, share(units, rank, ranks), units, micro_batch, forward)
    assert model.training
    return figures, trl.gradient(model)


def test_every_shape_method_and_setting_is_expected() -> None:
    assert [(case["shape"], case["method"], case["settings"]) for case in CASES] == [
        (shape, method, settings)
        for shape in trl.SHAPES for method, many in (("dpo", trl.DPO), ("kto", trl.KTO)) for settings in many
    ]  # fmt: skip
    assert any(case.get("kl", 0) > 0 for case in CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['shape']}-{case['method']}-{len(case['settings'])}")
@pytest.mark.parametrize(("micro_batch", "packed", "ranks"), [(6, True, 1), (2, True, 1), (1, False, 1), (3, True, 3)])
def test_losses_rewards_and_gradients_are_those_of_trl(
    case: dict[str, Any], micro_batch: int, packed: bool, ranks: int
) -> None:
    """However the step is split: into forward passes, packed or not, and among ranks."""
    figures, found = step(case["shape"], case["method"], case["settings"], micro_batch, packed, ranks)
    assert figures.loss == pytest.approx(case["loss"], abs=1e-5)
    rewards = figures.rewards
    assert rewards is not None
    assert rewards.chosen == pytest.approx(case["chosen"], abs=1e-5)
    assert rewards.rejected == pytest.approx(case["rejected"], abs=1e-5)
    assert rewards.margin == pytest.approx(case["margins"], abs=1e-5)
    if case["method"] == "dpo":
        assert rewards.accuracy == pytest.approx(case["accuracies"], abs=1e-6)
    else:
        assert rewards.kl == pytest.approx(case["kl"], abs=1e-5)
    for name in ("norm", "along"):
        # A sum over all weights: another processor's order of adding moves it by 2e-5.
        assert found[name] == pytest.approx(case["gradient"][name], rel=5e-5, abs=5e-5)


def test_a_fresh_adapter_is_the_reference() -> None:
    """The first loss of DPO is log 2 and of KTO a half: nothing is preferred yet."""
    from peft import get_peft_model

    for method, first in (("dpo", math.log(2)), ("kto", 0.5)):
        model = get_peft_model(trl.model("llama"), trl.lora())
        ready(model, packed=True)
        units = units_of(method)
        figures = objective(method, {"beta": 0.1}).backward(model, units, units, 2, Forward(CPU, packed=True))
        assert figures.loss == pytest.approx(first, abs=1e-6)
        assert figures.rewards is not None
        assert figures.rewards.chosen == pytest.approx(0, abs=1e-6)


def test_the_reference_is_computed_once_and_is_the_base(monkeypatch: pytest.MonkeyPatch) -> None:
    from ratchet_trainer.train import preferences

    model, forward = adapted("llama"), Forward(CPU, packed=True)
    ready(model, packed=True)
    base = trl.model("llama")
    ready(base, packed=True)
    expected = torch.stack([log_probs(base, pair.sequences, forward) for pair in PAIR_UNITS])
    reference = Reference()
    torch.testing.assert_close(reference.of(model, PAIR_UNITS, forward), expected, rtol=0, atol=1e-5)
    monkeypatch.setattr(preferences, "log_probs", None)
    again = reference.of(model, PAIR_UNITS[::-1], forward)
    assert torch.equal(again, reference.of(model, PAIR_UNITS, forward).flip(0))


def test_an_answer_alone_in_its_step_has_nothing_to_be_compared_with() -> None:
    model = adapted("llama")
    ready(model, packed=True)
    alone = JUDGED_UNITS[:1]
    figures = objective("kto", {"beta": 0.1}).backward(model, alone, alone, 1, Forward(CPU, packed=True))
    assert figures.kl == 0
    assert figures.rewards is not None
    assert figures.rewards.margin is None


def test_mismatched_answers_are_cut_at_the_cutoff() -> None:
    kto = preferred.Kto(Preferences(), cutoff=7)
    made = kto._mismatched(Judged(sequence(range(5), [9]), True), Judged(sequence([1], range(10, 20)), True))
    assert made == sequence(range(5), [10, 11])


# -- rows


def lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def turn(text: str, role: str = "user") -> dict[str, str]:
    return {"role": role, "content": text}


def pair_row(prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {"prompt": [turn(prompt)], "chosen": [turn(chosen, "assistant")], "rejected": [turn(rejected, "assistant")]}


def judged_row(prompt: str, answer: str, label: bool) -> dict[str, Any]:
    return {"prompt": [turn(prompt)], "completion": [turn(answer, "assistant")], "label": label}


def test_rows_become_units_and_what_does_not_is_counted(tokenizer: Any, tmp_path: Path) -> None:
    path = lines(
        tmp_path / "p.jsonl", pair_row("Where?", "Here.", "There."), pair_row("Where?", "Here.", "Here."),
        pair_row("Where?", "Here.", "x" * 200), pair_row("Where?", "<|im_end|>", "There."),
    )  # fmt: skip
    encoder = Encoder(tokenizer, STOPS, 120, "tiny")
    (pair,) = read_preferences(path, "dpo", "here", encoder)
    assert isinstance(pair, Pair)
    assert dict(encoder.left_out) == {"identical": 1, "tooLong": 1, "specialTokens": 1}
    for one, said in zip(pair.sequences, ("Here.", "There."), strict=True):
        assert tokenizer.decode([t for t, on in zip(one.ids, one.supervised, strict=True) if on]) == said + "<|im_end|>"


def test_only_the_last_answer_of_a_conversation_counts(tokenizer: Any, tmp_path: Path) -> None:
    row = judged_row("And then?", "Nothing.", False)
    row["prompt"] = [turn("Hi"), turn("Hello.", "assistant"), *row["prompt"]]
    encoder = Encoder(tokenizer, STOPS, 1000, "tiny")
    (unit,) = read_preferences(lines(tmp_path / "p.jsonl", row), "kto", "here", encoder)
    assert isinstance(unit, Judged)
    assert not unit.desirable
    example = unit.example
    learnt = [t for t, on in zip(example.ids, example.supervised, strict=True) if on]
    assert tokenizer.decode(learnt) == "Nothing.<|im_end|>"
    assert "Hello." in tokenizer.decode(example.ids)


@pytest.mark.parametrize(
    ("method", "row", "words"),
    [("dpo", judged_row("Where?", "Here.", True), "line 1: chosen: Field required"),
     ("kto", pair_row("Where?", "Here.", "There."), "line 1: completion: Field required"),
     ("kto", judged_row("Where?", "Here.", True) | {"label": None}, "line 1: label")],
)  # fmt: skip
def test_rows_of_another_method_are_named(
    tokenizer: Any, tmp_path: Path, method: Any, row: dict[str, Any], words: str
) -> None:
    with pytest.raises(DataError, match=f"{words}.*curate the dataset again"):
        read_preferences(lines(tmp_path / "p.jsonl", row), method, "here", Encoder(tokenizer, STOPS, 99, "tiny"))


def test_a_dataset_without_a_usable_pair_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    path = lines(tmp_path / "p.jsonl", pair_row("Where?", "Here.", "Here."))
    with pytest.raises(UserError, match="no row of the dataset can be trained on: identical 1"):
        read_preferences(path, "dpo", "here", Encoder(tokenizer, STOPS, 99, "tiny"))


# -- the stage


Identity = Callable[..., dict[str, Any]]
SETTINGS: dict[str, dict[str, str]] = {"dpo": {"rpoAlpha": "0.5"}, "kto": {"undesirableWeight": "1.5"}}


@pytest.fixture(params=["dpo", "kto"])
def training(
    request: pytest.FixtureRequest, identity: Identity, store: Store, bucket: str, tiny: Path, tmp_path: Path
) -> dict[str, Any]:
    """Eight steps in two epochs, with dropout."""
    folder = tmp_path / "preferences"
    folder.mkdir()
    questions = [f"Where is key {i}?" for i in range(16)]
    rows = [
        pair_row(question, f"In vault {i}.", "No" + " idea" * (1 + i % 3)) if request.param == "dpo"
        else judged_row(question, f"In vault {i}." if i % 2 else "No" + " idea" * (1 + i % 3), bool(i % 2))
        for i, question in enumerate(questions)
    ]  # fmt: skip
    lines(folder / "preferences.jsonl", *rows)
    lines(folder / "preferences_validation.jsonl", *rows[:4])
    (folder / "train.jsonl").write_text("")
    uri = f"s3://{bucket}/preferred"
    return {
        "stage": "train", "identity": identity(), "base_model": {"uri": f"file://{tiny}"},
        "dataset": {"uri": uri, "digest": store.publish(folder, uri, "dataset", {}, {}).digest},
        "hyperparameters": {
            "precision": "fp32", "learningRate": "0.01", "epochs": 2, "microBatch": 2, "accumulation": 2,
            "method": request.param, "preferences": SETTINGS[request.param],
        },
    }  # fmt: skip


def test_killed_and_resumed_it_ends_with_the_same_bytes_and_it_prefers(
    stages: Any, identity: Identity, store: Store, training: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = stages.run("train", training | {"identity": identity(version="assistant-9")})
    assert expected.code == ExitCode.DONE, expected.log
    told, dying = Progress.update, {1, 5}

    def update(self: Progress, done: int, *rest: Any) -> None:
        told(self, done, *rest)
        if done in dying:
            dying.remove(done)
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Progress, "update", update)
    assert [stages.run("train", training).code for _ in range(2)] == [ExitCode.PREEMPTED] * 2
    ran = stages.run("train", training)
    assert ran.code == ExitCode.DONE, ran.log
    assert "going on after step 5" in ran.log
    assert ran.report.artifact.digest == expected.report.artifact.digest
    status = ran.report.training
    assert (status.examples, status.steps, status.rewards) == (16, 8, expected.report.training.rewards)
    assert status.rewards.margin > 0
    assert (status.rewards.kl > 0) == (training["hyperparameters"]["method"] == "kto")
    place = Location.parse(ran.report.artifact.uri)
    curve = json.loads(store.get(place.child("loss.json")) or b"")
    assert {"rewards/accuracy", "loss"} < curve[-1].keys()
    assert curve[-1]["loss"] < curve[0]["loss"]
    looks = json.loads(store.get(place.child("validation.json")) or b"")
    assert [look["step"] for look in looks] == [0, 4, 8]
    assert looks[-1]["loss"] == float(status.validation_loss) < looks[0]["loss"], "what is kept aside is of the rows"
    events = b"".join(
        store.get(o.location) or b"" for o in store.objects(place) if "tensorboard/events" in o.location.key
    )
    assert b"train/rewards/chosen" in events


@pytest.mark.slow
def test_two_ranks_train_what_one_trains(
    stages: Any, identity: Identity, store: Store, training: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    training["hyperparameters"]["lora"] = {"dropout": "0"}

    def trained(version: str) -> tuple[dict[str, torch.Tensor], Any]:
        ran = stages.run("train", training | {"identity": identity(version=version)})
        assert ran.code == ExitCode.DONE, ran.log
        place = Location.parse(ran.report.artifact.uri)
        return load(store.get(place.child("adapter_model.safetensors")) or b""), ran.report.training.rewards

    alone, rewards = trained("one")
    monkeypatch.setattr(team, "ranks_wanted", lambda: 2)
    shared, shared_rewards = trained("two")
    for name, weights in alone.items():
        torch.testing.assert_close(shared[name], weights, atol=1e-5, rtol=1e-4)
    assert shared_rewards.dump().keys() == rewards.dump().keys()
    for name, value in rewards.dump().items():
        assert float(shared_rewards.dump()[name]) == pytest.approx(float(value), abs=1e-4)


def test_a_dataset_of_another_method_is_refused(
    stages: Any, training: dict[str, Any], published: Callable[..., dict[str, str]]
) -> None:
    ran = stages.run("train", training | {"dataset": published([("Where?", "Here.")])})
    assert (ran.code, ran.report.reason) == (ExitCode.DATA_ERROR, "DataError")
    assert "has no preferences.jsonl: it was curated for method sft; curate it again" in ran.report.message


@pytest.mark.parametrize(
    ("method", "words"),
    [("dpo", "1 pairs of an answer and its correction among 3 interactions, 2 are asked for"),
     ("kto", "2 judged answers (0 desirable, 2 undesirable) among 3 interactions, 2 are asked for")],
)  # fmt: skip
def test_too_few_preferences_skip_the_run_with_numbers(
    stages: Any, identity: Identity, store: Store, bucket: str, method: str, words: str
) -> None:
    now = datetime(2026, 11, 20, 12, tzinfo=UTC)
    known = {"namespace": "default", "cycle": "assistant", "version": "assistant-0"}
    records = [
        {
            "kind": "interaction", "id": f"r{i}", "session": f"s{i}", "arm": "stable",
            "time": (now - timedelta(hours=2)).isoformat(), "messages": [turn(f"Where is key {i}?")],
            "answer": turn(f"No idea {i}.", "assistant"), "finish_reason": "stop", "status": 200, "duration": 0.5,
        } | known
        for i in range(3)
    ] + [
        {
            "kind": "feedback", "id": f"f{i}", "response_id": f"r{i}", "value": "down",
            "time": (now - timedelta(hours=1)).isoformat(),
            "correction": "In vault 0." if method == "dpo" and not i else "",
        } | known
        for i in range(2)
    ]  # fmt: skip
    data = "".join(json.dumps(record) + "\n" for record in records).encode()
    store.put(Location.parse(f"s3://{bucket}/assistant/sessions/dt=2026-11-20/a.jsonl"), data)
    stage = {
        "stage": "curate", "identity": identity(version="", run=1), "until": now.isoformat(), "sessions": {},
        "curation": {"variations": 0}, "min_examples": 2, "suites": [], "method": method,
    }  # fmt: skip
    ran = stages.run("curate", stage)
    assert (ran.code, ran.report.outcome) == (ExitCode.DONE, "Skipped"), ran.log
    assert words in ran.report.message
    assert "of the answers: judged kept" in ran.report.message
    if method == "kto":
        assert "kto needs at least one of each kind" in ran.report.message
