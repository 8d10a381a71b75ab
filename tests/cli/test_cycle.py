"""The example's manifests."""

from pathlib import Path

import pytest
import yaml

from ratchet_api.cycle import ImprovementCycle
from ratchet_cli.demo.cycle import cycle_manifests
from ratchet_cli.demo.errors import Unprepared
from ratchet_cli.demo.settings import FULL, QUICK, Profile, Settings, find_checkout


def settings(checkout: Path, state: Path, profile: Profile) -> Settings:
    return Settings(state=state, checkout=checkout, profile=profile)


@pytest.mark.parametrize("profile", [FULL, QUICK], ids=lambda p: p.name)
def test_the_examples_cycle_is_applied_last_and_is_one(repository: Path, tmp_path: Path, profile: Profile) -> None:
    manifests = cycle_manifests(settings(repository, tmp_path, profile))
    assert manifests[-1].shown == "examples/assistant/cycle.yaml"
    cycle = ImprovementCycle.model_validate(yaml.safe_load(manifests[-1].text))
    assert cycle.metadata.name == "assistant"
    named = {suite.cases.config_map.name for suite in cycle.spec.evaluation.suites}
    applied = {document["metadata"]["name"] for m in manifests[:-1] for document in yaml.safe_load_all(m.text)}
    assert named <= applied


def test_the_full_story_applies_the_file_as_it_is(repository: Path, tmp_path: Path) -> None:
    manifest = cycle_manifests(settings(repository, tmp_path, FULL))[-1]
    assert manifest.text == (repository / "examples/assistant/cycle.yaml").read_text(encoding="utf-8")


def test_a_checkout_without_the_example_is_said(tmp_path: Path) -> None:
    with pytest.raises(Unprepared, match=r"cycle\.yaml does not exist"):
        cycle_manifests(settings(tmp_path, tmp_path, FULL))


def test_the_checkout_is_found_from_below(repository: Path) -> None:
    assert find_checkout(repository / "cli" / "src") == repository
