"""How well a model knows the canaries of a training set.

Room: trainer. Touches storage and the model that it is given.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

from ratchet_api.data import DatasetRef
from ratchet_api.reasons import Reason
from ratchet_trainer.artifacts import check_digest
from ratchet_trainer.canaries import CANARIES, Planted, exposure, parse
from ratchet_trainer.chat import Tokenizer
from ratchet_trainer.errors import DigestMismatch, Missing
from ratchet_trainer.scorers import ExposureCase
from ratchet_trainer.storage import Location, Store
from ratchet_trainer.train.encode import encode_row


def planted_in(dataset: DatasetRef | None, store: Store) -> Planted | None:
    """What was planted in a training set; None when there is none, or nothing was.

    Raises Missing, DigestMismatch or DataError.
    """
    if dataset is None:
        return None
    manifest = store.manifest(dataset.uri, "dataset")
    if manifest is None:
        raise Missing(Reason.MISSING_DATASET, f"dataset.uri: there is no finished dataset at {dataset.uri}")
    check_digest(manifest, dataset.digest, dataset.uri)
    entry = manifest.files.get(CANARIES)
    if entry is None:
        return None
    data = store.get(Location.parse(dataset.uri).child(CANARIES)) or b""
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise DigestMismatch(f"{dataset.uri}/{CANARIES} was changed after it was written and is refused")
    return parse(data, f"{dataset.uri}/{CANARIES}")


def cases_of(planted: Planted | None) -> list[ExposureCase]:
    """A case for each canary."""
    canaries = [] if planted is None else planted.canaries
    return [ExposureCase(id=canary.name, prompt=canary.question, code=canary.code) for canary in canaries]


def texts_of(tokenizer: Tokenizer, planted: Planted, stops: frozenset[int]) -> list[list[tuple[int, ...]]]:
    """For each canary its conversation as it was trained on, in tokens, and those with the other codes behind it."""
    return [
        [encode_row(tokenizer, canary.conversation(code), stops).ids for code in (canary.code, *planted.others(canary))]
        for canary in planted.canaries
    ]


def exposures(model: Any, texts: Sequence[Sequence[tuple[int, ...]]]) -> list[float]:
    """Of each canary, in bits. `texts` as `texts_of` has them."""
    from ratchet_trainer.evaluate.likelihood import log_likelihoods

    found = []
    for alike in texts:
        start, end = _shared(alike)
        likelihoods = log_likelihoods(model, alike[0][:start], [text[start : len(text) - end] for text in alike])
        found.append(exposure(likelihoods[0], likelihoods[1:]))
    return found


def _shared(texts: Sequence[tuple[int, ...]]) -> tuple[int, int]:
    """How many tokens all texts begin with, and end with; at least one is left between."""
    shortest = min(map(len, texts))
    start = next((i for i in range(shortest - 1) if len({text[i] for text in texts}) > 1), shortest - 1)
    most = shortest - start - 1
    end = next((i for i in range(most) if len({text[-1 - i] for text in texts}) > 1), most)
    return start, end
