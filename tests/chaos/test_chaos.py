"""Some seeds of the simulator with every `make unit`, and what the simulator itself must be."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def _load(file: str) -> ModuleType:
    name = f"ratchet_{file}"
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{file}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


chaos, mutations = _load("chaos"), _load("mutations")
SEEDS = 72
SLICES = 6


@pytest.mark.parametrize("part", range(SLICES))
def test_every_seed_comes_to_the_same_end(part: int) -> None:
    for seed in range(part, SEEDS, SLICES):
        result = chaos.attempt(seed)
        assert not result.failures, chaos.told(result)


@pytest.mark.parametrize("story", ["queue", "in place", "proposed back"])
def test_a_seed_is_the_same_story_each_time(story: str) -> None:
    first, second = chaos.attempt(31, story), chaos.attempt(31, story)
    assert first.schedule
    assert first == second


@pytest.mark.parametrize("mutation", mutations.MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_stands_where_the_code_is(mutation: Any) -> None:
    code = (mutations.ROOT / mutations.OPERATOR / mutation.file).read_text()
    assert code.count(mutation.old) == 1


def test_undisturbed_stories_need_few_writes() -> None:
    """At rest nothing is written at all: that is asked of every seed."""
    for story in chaos.TALES:
        result = chaos.undisturbed(story)
        assert not result.failures, chaos.told(result)
        assert result.schedule[-1].endswith("quiet"), story
