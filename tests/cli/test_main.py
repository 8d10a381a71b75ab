"""The command line: what it takes, and what it says when something is wrong."""

from pathlib import Path

import pytest

from ratchet_cli.demo.settings import FULL, QUICK, Settings
from ratchet_cli.main import main, parser
from ratchet_local import Platform
from ratchet_local.errors import PlatformError


def test_the_demo_takes_what_make_passes() -> None:
    arguments = parser().parse_args(["demo", "--state", ".ratchet/demo", "--keep"])
    assert (arguments.state, arguments.keep, arguments.quick, arguments.until) == (
        Path(".ratchet/demo"),
        True,
        False,
        8,
    )


@pytest.mark.parametrize("command", [[], ["local"], ["demo"]], ids=lambda c: " ".join(c) or "ratchet")
def test_every_command_explains_itself(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    assert len(capsys.readouterr().out) > 200


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["dmeo"])
    assert ended.value.code == 2
    assert "dmeo" in capsys.readouterr().err


def test_the_demo_outside_of_a_checkout_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--state", str(tmp_path / "s"), "--checkout", str(tmp_path)]) == 1
    assert "charts/ratchet" in capsys.readouterr().out


def test_a_demo_beside_a_running_one_is_refused(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Platform, "attach", lambda state: state)
    assert main(["demo", "--state", str(tmp_path), "--checkout", str(repository), "--until", "1"]) == 1
    assert "ratchet local down --state" in capsys.readouterr().out
    assert not (tmp_path / "summary.json").exists()


def test_a_platform_that_does_not_start_ends_the_story_with_its_sentence(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(self: Platform, *, detach: bool = False) -> None:
        raise PlatformError("no free TCP port")

    monkeypatch.setattr(Platform, "up", fail)
    assert main(["demo", "--state", str(tmp_path), "--checkout", str(repository)]) == 1
    assert "no free TCP port" in capsys.readouterr().out
    assert "no free TCP port" in (tmp_path / "summary.json").read_text(encoding="utf-8")
    assert "no free TCP port" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_patience_stretches_every_deadline(tmp_path: Path) -> None:
    settings = Settings(state=tmp_path, checkout=tmp_path, slowness=3)
    assert settings.patience(20) == 60


def test_the_quick_story_is_the_full_one_with_less_of_it() -> None:
    assert QUICK.answers < FULL.answers
    assert FULL.forgetful
    assert not QUICK.forgetful
