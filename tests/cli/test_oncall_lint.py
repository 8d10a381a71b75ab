"""`ratchet lint`: the field, the line, what was wrong and what to write; and completion."""

import argparse
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from ratchet_cli.main import main, parser
from ratchet_cli.oncall import lint
from ratchet_cli.oncall.completion import SCRIPTS, candidates

CYCLE = """# a comment
apiVersion: ratchet.dev/v1alpha1
kind: ImprovementCycle
metadata: {name: assistant}
spec:
  baseModel: {uri: "hf://HuggingFaceTB/SmolLM2-135M-Instruct@12fd25f"}
  storage: {uri: s3://ratchet/assistant}
  evaluation:
    suites:
    - name: house-rules
      role: target
      cases: {configMap: {name: sets, key: target.jsonl}}
"""
MAP = 'apiVersion: v1\nkind: ConfigMap\nmetadata: {name: sets}\ndata:\n  target.jsonl: |\n    {"id": "1"}\n'


def said(text: str) -> list[str]:
    documents, wrong = lint.read("c.yaml", text)
    return [problem.text() for problem in [*wrong, *lint.problems(documents)]]


def test_the_examples_are_in_order(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", str(repository / "examples"), "--offline"]) == 0
    assert "no problem" in capsys.readouterr().out


HEAD = "ImprovementCycle assistant: "
MISTAKES = {
    "storage: {uri:": ("storge: {uri:", f"c.yaml:7: {HEAD}spec.storge: there is no such field: did you mean storage?"),
    "@12fd25f": ("", 'SmolLM2-135M-Instruct\': write the model as "hf://org/name@revision"'),
    "role: target": ("role: targt", f"c.yaml:11: {HEAD}spec.evaluation.suites[0].role: 'targt' is not one of"),
    "v1alpha1": ("v1", f"c.yaml:2: {HEAD}apiVersion: write ratchet.dev/v1alpha1"),
    "ImprovementCycle": ("ImprovementCycel", "kind: there is no such kind: write ImprovementCycle"),
    "{name: assistant}": ("{}", "metadata.name is missing"),
    "  evaluation:\n": (
        "  evaluation:\n    minImprovement: 0.01\n",
        f'c.yaml:9: {HEAD}spec.evaluation.minImprovement: 0.01 must be quoted: write "0.01"',
    ),
    "spec:\n": ("spec:\n  trigger: {schedule: always}\n", "spec.trigger.schedule: 'always': write five cron fields"),
    "\nspec:": (
        "\nspec:\n  rollout: {interval: 60}",
        f"c.yaml:6: {HEAD}spec.rollout.interval: 60 is not a duration: write a number with a unit",
    ),
    "      role: target\n": ("", "spec.evaluation.suites[0].role: is missing: target must improve"),
}


@pytest.mark.parametrize("written", MISTAKES)
def test_each_mistake_is_named_with_its_place_and_its_mending(written: str) -> None:
    instead, words = MISTAKES[written]
    assert said(CYCLE) == []
    assert any(words in line for line in said(CYCLE.replace(written, instead, 1))), said(
        CYCLE.replace(written, instead)
    )


def test_a_config_map_in_the_same_files_is_held_against_what_the_cycle_wants() -> None:
    assert said(CYCLE + "---\n" + MAP) == []
    missing = said(CYCLE + "---\n" + MAP.replace("target.jsonl", "other.jsonl"))
    assert missing == [
        "c.yaml:12: ImprovementCycle assistant: spec.evaluation.suites[0].cases.configMap: "
        "ConfigMap sets has no key target.jsonl (it has: other.jsonl)"
    ]
    broken = said(CYCLE + "---\n" + MAP.replace('{"id": "1"}', "oops"))
    assert "ConfigMap sets: data.target.jsonl: line 1 is no JSON" in broken[0]


def test_lists_json_and_strangers() -> None:
    documents, wrong = lint.read(
        "l.json", json.dumps({"kind": "List", "items": [{"kind": "Pod"}, {"kind": "ModelVersion"}]})
    )
    assert wrong == []
    assert [document.kind for document in documents] == ["Pod", "ModelVersion"]
    assert {problem.path for problem in lint.problems(documents)} == {"apiVersion", "metadata", "spec"}
    assert "is no YAML" in said("a: [")[0]
    assert "is no Kubernetes object" in said("- a")[0]
    assert said("---\n---\n") == []


def test_what_the_api_server_refuses_is_put_at_its_line() -> None:
    (document,), _ = lint.read("c.yaml", CYCLE)
    rule = (
        "evaluation.suites: no suite has role: target without being sealed, so nothing could be proven better; add one"
    )
    causes = [{"field": "spec.evaluation", "message": f'Invalid value: "object": {rule}'}]
    status = json.dumps({"message": "all of it", "details": {"causes": causes}})
    (problem,) = lint.refused(document, status)
    assert (problem.line, problem.path, problem.message) == (8, "spec.evaluation", rule)
    assert lint.refused(document, json.dumps({"message": "unknown field"}))[0].message == "unknown field"
    assert lint.refused(document, "<html>")[0].message == "<html>"
    assert lint.written(lint.parsed("spec.a[0].b[key].c")) == "spec.a[0].b.key.c"


def test_a_file_that_is_not_there_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", str(tmp_path / "none.yaml"), "--offline"]) == 2
    assert "there is no file" in capsys.readouterr().err


def test_without_a_cluster_it_says_what_it_did_not_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "cycle.yaml"
    file.write_text(CYCLE, encoding="utf-8")
    assert main(["lint", str(file), "--kubeconfig", str(tmp_path / "none")]) == 0
    assert "rules across fields were not checked" in capsys.readouterr().err


# Completion


def names(kind: str, options: argparse.Namespace) -> list[str]:
    found = {"CYCLE": ["assistant"], "VERSION": ["assistant-7"], "NAMESPACE": ["chat"]}
    return [
        f"{name}@{options.namespace}" if options.namespace else name for one in kind.split("|") for name in found[one]
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ratchet exp", ["explain", "export"]),
        ("ratchet explain ", ["assistant", "assistant-7"]),
        ("ratchet explain assistant-", ["assistant-7"]),
        ("ratchet abort assistant ", ["assistant-7"]),
        ("ratchet abort assistant assistant-7 ", []),
        ("ratchet pause -n chat ", ["assistant@chat"]),
        ("ratchet get -n ", ["chat"]),
        ("ratchet status --for ", ["idle", "promoted", "ready"]),
        ("ratchet status --for p", ["promoted"]),
        ("ratchet status --namespace=chat assi", ["assistant@chat"]),
        ("ratchet get --wat", ["--watch"]),
        ("ratchet lint ", []),
        ("ratchet completion ", ["bash", "fish", "zsh"]),
        ("ratchet local up --pa", ["--parts"]),
        ("ratchet nonsense ", []),
    ],
)
def test_completion(line: str, expected: list[str]) -> None:
    assert candidates(parser(), line.split(" ")[1:], names) == expected


def test_commands_are_offered_without_the_hidden_one() -> None:
    found = candidates(parser(), [""], names)
    assert {"get", "explain", "status", "run", "abort", "pause", "resume", "retry", "lint", "doctor"} <= set(found)
    assert "__complete" not in found


@pytest.mark.parametrize("shell", SCRIPTS)
def test_scripts_are_taken_by_their_shells(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "__complete" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)


def test_bash_completes(tmp_path: Path) -> None:
    command = tmp_path / "ratchet"
    command.write_text(
        '#!/bin/sh\n[ "$1" = __complete ] && [ "$4" = "" ] && printf "one\\ntwo words\\n"\n', encoding="utf-8"
    )
    command.chmod(0o755)
    script = f"""PATH={tmp_path}:$PATH
{SCRIPTS["bash"]}
COMP_WORDS=(ratchet get ""); COMP_CWORD=2; _ratchet; echo "${{#COMPREPLY[@]}} ${{COMPREPLY[1]}}" """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "2 two words\n"
