"""The check-up's findings, the terminal, and the top of the help."""

import io
from dataclasses import replace
from datetime import timedelta

import pytest
from tests.cli.oncall_states import NOW, STATES

from ratchet_api.export import Export
from ratchet_api.judge import Judge
from ratchet_api.tracking import Tracking
from ratchet_cli.main import main
from ratchet_cli.oncall.doctor import Finding, LeaseSeen, NotTold, PodSeen, Seen, findings, healthy, rows_of, text
from ratchet_cli.oncall.screen import console
from ratchet_cli.oncall.tree import cycle_tree
from ratchet_cli.oncall.view import Where

OPERATOR = PodSeen("op-1", "ratchet-system", True, args=("run", "--prometheus-url=http://prometheus.monitoring:9090"))
WELL = Seen(
    where=Where(namespace="chat"),
    resources=frozenset({"improvementcycles", "modelversions"}),
    operators=[OPERATOR],
    gateways=[PodSeen("gw-1", "ratchet-system", True)],
    lease=LeaseSeen("ratchet-system", "op-1", NOW - timedelta(seconds=3), 15, NOW),
    view=STATES["idle"],
    secrets={"storage": frozenset({"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"})},
    config_maps={"assistant-suites": {"target.jsonl": '{"id": "1"}\n', "general.jsonl": '{"id": "1"}\n\n{"id": "2"}'}},
    arms=[PodSeen("arm-1", "chat", True)],
)


def naming_secrets() -> Seen:
    """A cycle with a judge, a hub, a registry and MLflow, and all of their Secrets."""
    view = STATES["idle"]
    judge = {"url": "https://judge.example.com/v1", "model": "judge-70b", "credentialsSecret": {"name": "judge"}}
    export = {
        "formats": ["safetensors"], "license": "MIT", "hub": {"repository": "acme/x", "tokenSecret": {"name": "hub"}},
        "oci": {"repository": "registry.example.com/x", "credentialsSecret": {"name": "registry"}},
    }  # fmt: skip
    spec = view.cycle.spec.model_copy(
        update={
            "evaluation": view.cycle.spec.evaluation.model_copy(update={"judge": Judge.model_validate(judge)}),
            "export": Export.model_validate(export),
            "tracking": Tracking.model_validate(
                {"mlflow": {"url": "http://mlflow", "credentialsSecret": {"name": "ml"}}}
            ),
        }
    )
    more = {"judge": {"OPENAI_API_KEY"}, "hub": {"HF_TOKEN"}, "registry": {".dockerconfigjson"}}
    more["ml"] = {"MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"}
    cycle = view.cycle.model_copy(update={"spec": spec})
    secrets = dict(WELL.secrets) | {name: frozenset(keys) for name, keys in more.items()}
    return replace(WELL, view=replace(view, cycle=cycle), secrets=secrets)


def test_every_secret_that_a_cycle_names_is_looked_at() -> None:
    well = naming_secrets()
    assert [finding.state for finding in findings(well) if finding.subject.startswith("secret ")] == ["ok"] * 5
    for name, field, fix in (
        ("judge", "evaluation.judge.credentialsSecret", "create secret generic judge --from-literal=OPENAI_API_KEY="),
        ("hub", "export.hub.tokenSecret", "create secret generic hub --from-literal=HF_TOKEN="),
        ("ml", "tracking.mlflow.credentialsSecret", "create secret generic ml --from-literal=MLFLOW_TRACKING_TOKEN="),
        ("registry", "export.oci.credentialsSecret", "create secret docker-registry registry --docker-server="),
    ):
        found = findings(replace(well, secrets={each: keys for each, keys in well.secrets.items() if each != name}))
        (bad,) = [finding for finding in found if finding.state == "bad"]
        assert (bad.subject, bad.message) == (f"secret {name}", f"{field}: there is no Secret {name}")
        assert fix in bad.fix
    half = findings(replace(well, secrets=dict(well.secrets) | {"ml": frozenset({"MLFLOW_TRACKING_USERNAME"})}))
    assert [one.message for one in half if one.state == "bad"] == [
        "tracking.mlflow.credentialsSecret: it has no key MLFLOW_TRACKING_TOKEN"
    ]


def test_a_healthy_cycle() -> None:
    found = findings(WELL)
    assert {finding.state for finding in found} == {"ok"}, text(found)
    assert healthy(found)
    assert "general.jsonl" in text(found)


SICK = {
    "no crds": (replace(WELL, resources=frozenset()), "bad", "resources", "helm install"),
    "no operator": (replace(WELL, operators=[]), "bad", "operator", "helm install"),
    "operator down": (
        replace(WELL, operators=[replace(OPERATOR, ready=False, trouble="CrashLoopBackOff")]),
        "bad", "operator", "kubectl logs op-1 -n ratchet-system",
    ),
    "not allowed": (replace(WELL, operators=NotTold("you may not look")), "unknown", "operator", ""),
    "no leader": (replace(WELL, lease=None), "bad", "leader", "does not lead"),
    "stale leader": (
        replace(WELL, lease=LeaseSeen("ratchet-system", "op-1", NOW - timedelta(minutes=5), 15, NOW)),
        "bad", "leader", "kubectl get pods -n ratchet-system",
    ),
    "one gateway of two": (
        replace(WELL, gateways=[PodSeen("gw-1", "n", True), PodSeen("gw-2", "n", False)]),
        "unknown", "gateway", "describe pod gw-2",
    ),
    "prometheus down": (replace(WELL, prometheus="it answered 503"), "bad", "prometheus", "prometheus.url"),
    "prometheus far": (replace(WELL, prometheus=NotTold("timed out")), "unknown", "prometheus", ""),
    "prometheus blind": (replace(WELL, view=STATES["held"]), "bad", "prometheus", "answer the operator"),
    "may not look": (replace(WELL, denied=[("list", "modelversions")]), "bad", "you", "`view`"),
    "may not act": (replace(WELL, denied=[("patch", "improvementcycles")]), "unknown", "you", "`edit`"),
    "no secret": (replace(WELL, secrets={}), "bad", "secret storage", "create secret generic storage"),
    "half a secret": (
        replace(WELL, secrets={"storage": frozenset({"AWS_ACCESS_KEY_ID"})}), "bad", "secret storage", "edit secret",
    ),
    "no map": (replace(WELL, config_maps={}), "bad", "configmap assistant-suites", "create configmap assistant-suites"),
    "no key": (
        replace(WELL, config_maps={"assistant-suites": {"target.jsonl": "{}"}}), "bad", "configmap assistant-suites",
        "edit configmap",
    ),
    "no arm": (replace(WELL, arms=[]), "bad", "arms", "ratchet explain assistant -n chat"),
    "ill arm": (replace(WELL, arms=[PodSeen("a", "chat", False, "ImagePullBackOff")]), "bad", "arms", "describe pod a"),
    "stalled": (replace(WELL, view=STATES["stalled"]), "bad", "cycle", "ratchet explain assistant"),
    "unseen": (replace(WELL, view=STATES["unseen"]), "bad", "cycle", "watch this namespace"),
}  # fmt: skip


@pytest.mark.parametrize("case", SICK)
def test_each_trouble_is_found_and_comes_with_what_mends_it(case: str) -> None:
    seen, state, subject, fix = SICK[case]
    found = findings(seen)
    hits = [one for one in found if one.subject == subject and one.state == state]
    assert hits, text(found)
    assert fix in hits[0].fix
    assert healthy(found) == (state == "unknown")


def test_rows_of_a_suite() -> None:
    assert rows_of('{"a": 1}\n\n{"b": 2}') == (2, "")
    assert rows_of("[1]") == (0, "line 1 is no JSON object")
    assert rows_of("\n")[1] == "has no rows"
    assert text([Finding("bad", "x", "y", "z")]).splitlines()[1].strip() == "fix: z"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colours_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    tree = cycle_tree(STATES["failing"], NOW)
    coloured, piped, plain = Terminal(), io.StringIO(), Terminal()
    console(coloured).print(tree)
    console(piped).print(tree)
    monkeypatch.setenv("NO_COLOR", "1")
    console(plain).print(tree)
    assert "\x1b[1;31m" in coloured.getvalue()
    assert "\x1b" not in piped.getvalue()
    assert "\x1b[1;31m" not in plain.getvalue()


def test_a_narrow_terminal_cuts_nothing_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    narrow = Terminal()
    console(narrow).print(cycle_tree(STATES["failing"], NOW))
    assert "…" not in narrow.getvalue()
    assert console(Terminal(), exact=True).width == 60


COMMANDS = ["get", "explain", "status", "lineage", "doctor", "lint", "run", "abort", "pause", "resume", "retry",
            "approve", "export", "promote", "rollback", "unpin"]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_examples_and_exit_codes(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert f"examples:\n  ratchet {command}" in out
    assert "3  timed out while waiting" in out


def test_as_a_kubectl_plugin_it_speaks_as_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["/usr/bin/kubectl-ratchet"])
    with pytest.raises(SystemExit):
        main(["pause", "--help"])
    assert "kubectl ratchet pause assistant" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [["get", "a", "-A"], ["get", "-w", "-o", "json"], ["status", "a", "--timeout", "5s"]],
    ids=" ".join,
)
def test_what_excludes_each_other_is_a_usage_error(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert capsys.readouterr().err.startswith("ratchet: ")


def test_a_timeout_without_a_unit_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["status", "a", "--wait", "--timeout", "90"])
    assert ended.value.code == 2
    assert 'such as "30s"' in capsys.readouterr().err
