"""Answers are remembered by everything that determines them, and by nothing else."""

from dataclasses import replace

import pytest

from ratchet_trainer.evaluate import memory as memory_module
from ratchet_trainer.evaluate.memory import Asking, Memory
from ratchet_trainer.storage import Location, Store

ASKING = Asking("sha256:base", "sha256:adapter", [[1, 2], [3]], 28, "0", 1, "cpu torch.float32")
ANSWERS = [["In the Larder."], ["Paris – ünïcode"]]


@pytest.fixture
def uri(bucket: str) -> str:
    return f"s3://{bucket}/assistant"


@pytest.fixture
def memory(store: Store, uri: str) -> Memory:
    return Memory(store, uri)


def test_what_was_kept_is_recalled(memory: Memory) -> None:
    assert memory.recall(ASKING) is None
    memory.keep(ASKING, ANSWERS)
    assert memory.recall(ASKING) == ANSWERS
    memory.keep(ASKING, [["somebody"], ["else"]])
    assert memory.recall(ASKING) == ANSWERS


CHANGES = {
    "another base": {"base": "sha256:other"},
    "another adapter": {"adapter": ""},
    "another prompt": {"prompts": [[1, 2], [4]]},
    "another order": {"prompts": [[3], [1, 2]]},
    "longer answers": {"max_new_tokens": 29},
    "drawn answers": {"temperature": "0.7"},
    "more answers": {"samples": 2},
    "another processor": {"device": "cuda torch.bfloat16"},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_anything_else_is_asked_anew(memory: Memory, change: dict[str, object]) -> None:
    memory.keep(ASKING, ANSWERS)
    assert memory.recall(replace(ASKING, **change)) is None  # type: ignore[arg-type]


def test_other_libraries_are_asked_anew(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.keep(ASKING, ANSWERS)
    monkeypatch.setattr(memory_module, "tool_versions", lambda: {"torch": "9"})
    assert memory.recall(ASKING) is None


@pytest.mark.parametrize(
    "content",
    [
        b"not json",
        b'{"question": "x"}',
        b'{"question": "DIGEST", "answers": [["only one"]]}',
        b'{"question": "DIGEST", "answers": [["a"], ["b", "twice"]]}',
        b'{"question": "of something else", "answers": [["a"], ["b"]]}',
    ],
    ids=["garbage", "half", "too few", "too many to one", "of something else"],
)
def test_what_cannot_be_trusted_counts_as_never_given(
    memory: Memory, store: Store, uri: str, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    place = Location.parse(uri).child("answers").child(f"{ASKING.digest}.json")
    store.put(place, content.replace(b"DIGEST", ASKING.digest.encode()))
    assert memory.recall(ASKING) is None
    assert "is not used" in caplog.text
