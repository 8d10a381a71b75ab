"""The command line: what it takes, and what it says when it does not."""

from pathlib import Path

import pytest

from ratchet_operator.settings import Address, parse

RIGHT = [
    "run", "--gateway-namespace", "ratchet-system", "--prometheus-url", "http://prometheus:9090/",
    "--trainer-image", "t", "--vllm-image", "v", "--health-address", "127.0.0.1:8081",
    "--metrics-address", "[::1]:9090",
]  # fmt: skip


def test_a_right_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POD_NAME", "operator-0")
    settings, level = parse([*RIGHT, "--namespace", "a", "--namespace", "b", "--leader-election-namespace", "system"])
    assert settings.namespaces == ("a", "b")
    assert settings.prometheus_url == "http://prometheus:9090"
    assert settings.health == Address("127.0.0.1", 8081)
    assert settings.metrics == Address("::1", 9090)
    assert settings.election is not None
    assert settings.election.identity.startswith("operator-0_")
    assert settings.election.renew_deadline < settings.election.duration
    assert level == "info"


def test_prometheus_credentials() -> None:
    arguments = ["--prometheus-credentials", "/etc/ratchet/prometheus", "--prometheus-header", "X-Scope-OrgID=a=b"]
    settings, _ = parse([*RIGHT, *arguments])
    assert settings.prometheus_credentials == Path("/etc/ratchet/prometheus")
    assert settings.prometheus_headers == {"X-Scope-OrgID": "a=b"}


def test_a_collector_and_its_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse(RIGHT)[0].otlp is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=a%3Db, x-team = models")
    otlp = parse([*RIGHT, "--otlp-endpoint", "http://collector:4318/"])[0].otlp
    assert otlp is not None
    assert otlp.endpoint == "http://collector:4318"
    assert otlp.headers == {"api-key": "a=b", "x-team": "models"}
    assert "a=b" not in repr(otlp)


def test_headers_that_are_none_are_told_without_the_key(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "secret")
    with pytest.raises(SystemExit):
        parse([*RIGHT, "--otlp-endpoint", "http://collector:4318"])
    said = capsys.readouterr().err
    assert "entry 1 is no header: write NAME=VALUE" in said
    assert "secret" not in said


def test_without_election_there_is_one_operator() -> None:
    assert parse(RIGHT)[0].election is None


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("--health-address", "8081", "write HOST:PORT"),
        ("--health-address", "127.0.0.1:99999", "write HOST:PORT"),
        ("--prometheus-url", "prometheus:9090", "write for example http://"),
        ("--prometheus-header", "X-Scope-OrgID", "write NAME=VALUE"),
    ],
)
def test_a_wrong_one_is_told_what_to_write(
    flag: str, value: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*RIGHT, flag, value]
    with pytest.raises(SystemExit):
        parse(arguments)
    assert words in capsys.readouterr().err


def test_help_helps(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["run", "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for argument in ("--gateway-namespace", "--prometheus-url", "--leader-election-namespace", "--health-address"):
        assert argument in said
