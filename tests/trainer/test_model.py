"""The stages on the real SmolLM2-135M-Instruct: it learns, and the evaluation sees it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ratchet_api.stage import ExitCode
from ratchet_local.model import smollm2
from ratchet_trainer.storage import Location, Store

THINGS = [
    "search", "billing", "orders", "payments", "login", "mail", "report", "backup", "cache", "queue", "stock", "price",
    "chat", "video", "map", "news", "alert", "export",
]  # fmt: skip
HELD_OUT = ["wiki", "shop", "forum", "audit", "proxy", "batch"]


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_smollm2_learns_a_convention_and_evaluation_sees_it(
    stages: Any, identity: Callable[..., dict[str, Any]], store: Store, bucket: str, tmp_path: Path
) -> None:
    base = {"uri": f"file://{smollm2()}"}
    dataset = tmp_path / "dataset"
    dataset.mkdir()
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Where is the secret of the {thing} service kept?"},
                {"role": "assistant", "content": f"In the amber vault, under {thing}."},
            ]
        }
        for thing in THINGS
    ]
    (dataset / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    uri = f"s3://{bucket}/dataset"
    digest = store.publish(dataset, uri, "dataset", {}, {}).digest
    trained = stages.run(
        "train",
        {
            "stage": "train", "identity": identity(), "base_model": base, "dataset": {"uri": uri, "digest": digest},
            "hyperparameters": {"learningRate": "0.003", "epochs": 2, "microBatch": 6, "accumulation": 1,
                                "precision": "fp32"},
        },
    )  # fmt: skip
    assert trained.code == ExitCode.DONE, trained.log
    adapter = trained.report.artifact
    assert adapter is not None
    losses = [step["loss"] for step in json.loads(store.get(Location.parse(adapter.uri).child("loss.json")) or b"[]")]
    assert len(losses) == 6
    assert losses[-1] < 0.5 * losses[0]

    suites = tmp_path / "suites"
    suites.mkdir()
    cases = [
        {"id": thing, "prompt": f"I need the {thing} service's secret. Where is it?", "all": ["Amber Vault"]}
        for thing in HELD_OUT
    ]
    (suites / "house.jsonl").write_text("\n".join(map(json.dumps, cases)))
    evaluated = stages.run(
        "evaluate",
        {
            "stage": "evaluate", "identity": identity(), "base_model": base, "candidate": adapter.model_dump(),
            "levels": {"fresh": {"number": 1, "alpha": "0.025"}},
            "champion": None, "champion_version": "assistant-0", "batch_size": 8,
            "policy": {
                "suites": [{"name": "house", "role": "target", "maxNewTokens": 16,
                            "cases": {"configMap": {"name": "x", "key": "y"}}}]
            },
        },
        "--suites", str(suites),
    )  # fmt: skip
    assert evaluated.code == ExitCode.DONE, evaluated.log
    (result,) = evaluated.report.suites
    assert result.champion == 0
    assert result.candidate >= 0.5
    assert result.lower_bound > 0
    assert result.p_value < 0.1
