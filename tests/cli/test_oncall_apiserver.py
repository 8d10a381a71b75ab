"""The on-call commands against the real API server: what they read, write and wait for, and as whom."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.cli.oncall_states import CHAMPION, ROOT, STATES

from ratchet_api.cycle import ImprovementCycle
from ratchet_api.version import ModelVersion
from ratchet_cli.main import main
from ratchet_local import Platform

pytestmark = [pytest.mark.apiserver, pytest.mark.slow]


class Shell:
    """Runs commands of ours in one namespace, and plays the operator."""

    def __init__(self, cluster: Platform, namespace: str, capsys: pytest.CaptureFixture[str]) -> None:
        self.cluster, self.namespace, self.capsys = cluster, namespace, capsys
        self.options = ["-n", namespace, "--kubeconfig", str(cluster.kubeconfig)]

    def __call__(self, *words: str, code: int = 0) -> str:
        self.capsys.readouterr()
        found = main([*words, *self.options])
        out, err = self.capsys.readouterr()
        assert found == code, out + err
        return out + err

    def cycle(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            self.cluster.kubectl(
                "get", "cycle", "assistant", "-n", self.namespace, "-o", "json", "--show-managed-fields"
            )
        )
        return found

    def put(self, found: ImprovementCycle | ModelVersion) -> None:
        """Make the object what it is in one of the states, status included."""
        resource = f"{found.kind}.ratchet.dev"
        document = {
            "apiVersion": found.api_version, "kind": found.kind,
            "metadata": {"name": found.metadata.name, "namespace": self.namespace},
            "spec": found.spec.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True),
        }  # fmt: skip
        self.cluster.kubectl("apply", "-f", "-", input=json.dumps(document))
        generation = json.loads(
            self.cluster.kubectl("get", resource, found.metadata.name, "-n", self.namespace, "-o", "json")
        )["metadata"]["generation"]
        status = found.status.dump() | {"observedGeneration": generation}
        self.cluster.kubectl(
            "patch", resource, found.metadata.name, "-n", self.namespace, "--subresource=status", "--type=merge",
            "-p", json.dumps({"status": status}),
        )  # fmt: skip

    def state(self, name: str) -> None:
        """The cycle and its versions as in a state of `oncall_states`."""
        view = STATES[name]
        for version in (ROOT, CHAMPION, *view.versions[2:]):
            self.put(version)
        self.put(view.cycle)


@pytest.fixture
def shell(cluster: Platform, namespace: str, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(cluster, namespace, capsys)


def test_what_is_not_there(shell: Shell) -> None:
    assert "there is no cycle in namespace" in shell("get", code=4)
    assert "no cycle and no version ghost" in shell("get", "ghost", code=4)
    assert "there is no" in shell("status", "ghost", "--wait", "--timeout", "5s", code=4)
    assert "there is no" in shell("lineage", "ghost", code=4)


def test_looking_at_a_canary(shell: Shell) -> None:
    shell.state("canary")
    assert "assistant-7   25%" in shell("get")
    assert shell.namespace in shell("get", "-A", "-o", "wide")
    tree = shell("get", "assistant")
    assert "stable     assistant-6  75 %" in tree
    assert f"type next: ratchet get assistant -w -n {shell.namespace}" in tree
    assert "evaluate  done" in shell("get", "assistant-7")
    assert "assistant-7 takes 25 % of the sessions" in shell("explain", "assistant-7")
    assert "assistant-0  Superseded, the bare base model" in shell("lineage", "assistant-7")
    assert [one["name"] for one in json.loads(shell("lineage", "assistant-7", "-o", "json"))][-1] == "assistant-0"
    assert json.loads(shell("get", "assistant", "-o", "json"))["kind"] == "ImprovementCycle"
    assert shell("get", "-o", "name") == "improvementcycles.ratchet.dev/assistant\n"
    assert "kind: ImprovementCycle" in shell("get", "assistant", "-o", "yaml")


def test_actions_are_written_as_our_field_manager_and_dry_runs_are_not(shell: Shell) -> None:
    shell.state("canary")
    before = shell.cycle()
    for command in ("run", "abort", "pause"):
        assert "dry run" in shell(command, "assistant", "--dry-run")
    assert shell.cycle() == before
    assert "from 25 % to 0" in shell("abort", "assistant", "assistant-7")
    assert "asked for already" in shell("abort", "assistant", code=1)
    assert "is suspended" in shell("pause", "assistant")
    assert "suspended already" in shell("pause", "assistant", code=1)
    assert "resume assistant" in shell("run", "assistant", code=1)
    shell("resume", "assistant")
    shell("run", "assistant")
    after = shell.cycle()
    assert after["metadata"]["annotations"]["ratchet.dev/abort"] == "assistant-7"
    assert after["metadata"]["annotations"]["ratchet.dev/run"]
    assert after["spec"]["suspend"] is False
    ours = [m for m in after["metadata"]["managedFields"] if m["manager"] == "kubectl-ratchet"]
    assert "f:suspend" in json.dumps(ours)


def test_retry_unlocks_the_digest_and_makes_a_version_that_the_crd_takes(shell: Shell) -> None:
    shell.state("rolled-back")
    assert "assistant-7-try2" in shell("retry", "assistant-7", "--dry-run")
    assert "assistant-7-try2" in shell("retry", "assistant-7")
    digest = STATES["rolled-back"].versions[2].digest
    assert shell.cycle()["spec"]["rollout"]["retryDigests"] == [digest]
    assert "tuned" not in shell("get", "assistant-7-try2")
    assert "assistant-7-try3" in shell("retry", "assistant-7", "--dry-run")


def test_approving_promoting_and_going_back(shell: Shell) -> None:
    shell.state("approval-canary")
    assert "is not what waits" in shell("approve", "assistant-7", "--digest", "sha256:0", code=1)
    assert "approved before its canary" in shell("approve", "assistant-7")
    assert "waits for no approval now" in shell("approve", "assistant-7", code=1)
    assert "its rollout begins" in shell("promote", "assistant", "assistant-7")
    assert shell.cycle()["spec"]["serving"]["version"] == "assistant-7"
    assert "assistant-0; it served before" in shell("rollback", "assistant", "--to", "assistant-0")
    assert "is taken out" in shell("unpin", "assistant")
    assert "version" not in shell.cycle()["spec"]["serving"]


def test_a_change_between_look_and_write_is_not_overwritten(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    from ratchet_cli.oncall import actions

    shell.state("idle")
    decide = actions.pause

    def meddled(view: Any) -> Any:
        plan = decide(view)
        shell.cluster.kubectl("label", "cycle", "assistant", "meddled=yes", "-n", shell.namespace)
        return plan

    monkeypatch.setattr(actions, "pause", meddled)
    assert "somebody else meanwhile" in shell("pause", "assistant", code=1)


def test_status_waits_for_what_comes_and_ends_by_its_exit_codes(shell: Shell) -> None:
    shell.state("canary")
    assert "Reached" in shell("status", "assistant")
    assert "Waiting" in shell("status", "assistant", "--for", "promoted", code=3)
    assert "has not come to `promoted` within 1s" in shell(
        "status", "assistant", "--for", "promoted", "--wait", "--timeout", "1s", code=3
    )
    codes: list[int] = []
    words = ["status", "assistant", "--for", "promoted", "--wait", "--timeout", "5m", *shell.options]
    waiting = threading.Thread(target=lambda: codes.append(main(words)))
    waiting.start()
    shell.state("rolled-back")
    waiting.join(timeout=240)
    assert codes == [1]
    assert "Failed" in shell("status", "assistant", "--for", "promoted", code=1)
    assert "Reached" in shell("status", "assistant", "--for", "idle", "--wait")


def test_doctor_names_what_is_missing_and_mends_it(shell: Shell) -> None:
    shell.state("idle")
    sick = shell("doctor", "assistant", code=1)
    assert "ok       resources" in sick
    assert "BAD      operator: no pod has the labels" in sick
    assert "BAD      secret storage: storage.credentialsSecret: there is no Secret storage" in sick
    assert f"kubectl create configmap assistant-suites --from-file=target.jsonl -n {shell.namespace}" in sick
    assert "ok       you" in sick
    create = ("create", "-n", shell.namespace)
    shell.cluster.kubectl(*create, "secret", "generic", "storage", "--from-literal=AWS_ACCESS_KEY_ID=a")
    shell.cluster.kubectl(
        *create,
        "configmap",
        "assistant-suites",
        '--from-literal=target.jsonl={"id": "1"}',
        "--from-literal=general.jsonl=oops",
    )
    sick = shell("doctor", "assistant", code=1)
    assert "has no key AWS_SECRET_ACCESS_KEY" in sick
    assert "1 row in target.jsonl" in sick
    assert "line 1 is no JSON" in sick


def test_lint_asks_the_api_server_for_the_rules_across_fields(shell: Shell, repository: Path, tmp_path: Path) -> None:
    shell.state("idle")
    written = (repository / "examples" / "assistant" / "cycle.yaml").read_text(encoding="utf-8")
    assert "role: target" in written
    file = tmp_path / "cycle.yaml"
    file.write_text(written.replace("role: target", "role: safety"), encoding="utf-8")
    before = shell.cycle()
    answer = shell("lint", str(file), code=1)
    assert "spec.evaluation: evaluation.suites: no suite has role: target" in answer
    assert "baseModel cannot change" in answer
    assert shell.cycle() == before


def test_names_are_completed(shell: Shell) -> None:
    shell.state("idle")
    shell.capsys.readouterr()
    assert main(["__complete", "--", "explain", *shell.options, "assistant-"]) == 0
    assert shell.capsys.readouterr().out.split() == ["assistant-0", "assistant-6"]


def test_watching_redraws_on_events(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    from ratchet_cli.oncall import commands

    shell.state("idle")
    drawn: list[str] = []
    seen = threading.Event()

    def plain(renderable: Any) -> str:
        from ratchet_cli.oncall.screen import plain as draw

        drawn.append(draw(renderable))
        if len(drawn) == 1:
            threading.Thread(target=shell.state, args=("canary",)).start()
        if "assistant  Canary" in drawn[-1]:
            seen.set()
            raise KeyboardInterrupt
        return drawn[-1]

    monkeypatch.setattr(commands, "plain", plain)
    assert main(["get", "assistant", "-w", *shell.options]) == 130
    assert seen.is_set()
    assert "assistant  Idle" in drawn[0]


def test_an_api_server_that_does_not_answer(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "gone",
        "clusters": [{"name": "gone", "cluster": {"server": "http://127.0.0.1:1"}}],
        "contexts": [{"name": "gone", "context": {"cluster": "gone", "user": "me"}}],
        "users": [{"name": "me", "user": {}}],
    }  # fmt: skip
    file = tmp_path / "config"
    file.write_text(json.dumps(config), encoding="utf-8")
    assert main(["get", "--kubeconfig", str(file)]) == 5
    assert "does not answer" in capsys.readouterr().err
    assert main(["get", "--kubeconfig", str(tmp_path / "none")]) == 5
    assert "no cluster is configured" in capsys.readouterr().err
