"""Collecting by hand: what is typed, what is recorded, and that curation reads it."""

import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.cli.openai_server import OpenAIServer, openai_server

from ratchet_api.records import RECORD, Feedback, Interaction
from ratchet_cli.collect import CollectError, WorkSessionCollector
from ratchet_cli.collect.errors import Misused, NotStored
from ratchet_cli.collect.judging import by_command, by_words
from ratchet_cli.collect.segments import finished
from ratchet_cli.collect.tasks import parse
from ratchet_cli.main import main
from ratchet_local import S3Access
from ratchet_trainer.cli import main as trainer

from .test_oncall_render import hold


def records(folder: Path) -> list[Interaction | Feedback]:
    lines = [line for file in sorted(folder.glob("sessions/dt=*/*.jsonl")) for line in file.read_bytes().splitlines()]
    return [RECORD.validate_json(line) for line in lines]


def curated(folder: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The statistics of what `ratchet curate` makes of a folder, with the rows beside them."""
    settings = out.with_suffix(".json")
    settings.write_text('{"variations": 0}')
    capsys.readouterr()
    assert trainer(["curate-files", str(folder), "--out", str(out), "--json", "--curation", str(settings)]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found | {"train": [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]}


# The class for notebooks


def test_what_a_notebook_records_becomes_a_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with WorkSessionCollector("notes", tmp_path / "work", principal="ada") as collector:
        collector.record("Name a prime", "2", {"success": True, "topic": "numbers"})
        collector.record("Name a square", "5", {"success": False, "correction": "4"})
        collector.record("Name a cube", "9", {"success": False})
        late = collector.record("Name an even number", "8", history=[{"role": "system", "content": "Be brief."}])
        collector.judge(late, True)
        collector.record("Never judged", "whatever")
    found = records(tmp_path / "work")
    asked = [record for record in found if isinstance(record, Interaction)]
    assert [type(record) for record in found][:3] == [Interaction, Feedback, Interaction]
    assert asked[0].parameters == {"metadata": {"success": True, "topic": "numbers"}}
    assert {record.session for record in asked} == {collector.session}
    assert len({record.principal for record in asked}) == 1
    assert "ada" not in asked[0].principal
    numbers = curated(tmp_path / "work", tmp_path / "out", capsys)
    assert numbers["formats"] == {"ratchet": 1}
    assert numbers["interactions"]["judged"] == 4
    assert [row["messages"][-1]["content"] for row in numbers["train"]] == ["2", "4", "8"]
    assert [row["origin"] for row in numbers["train"]] == ["answer", "correction", "answer"]


def test_every_record_can_be_read_before_the_collector_is_closed(tmp_path: Path) -> None:
    collector = WorkSessionCollector("notes", tmp_path)
    for number in range(3):
        collector.record(f"question {number}", "answer", {"success": True})
        assert len(records(tmp_path)) == 2 * (number + 1)
    collector.close()
    with pytest.raises(CollectError, match="is closed"):
        collector.record("too", "late")


def test_segments_end_with_their_day_and_at_their_size(tmp_path: Path) -> None:
    with WorkSessionCollector("notes", tmp_path, segment_bytes=1500) as collector:
        for minute in (0, 1, 2, 3, 4, 5):
            collector.record("q", "a", time=datetime(2026, 11, 20, 23, 57 + minute % 3, tzinfo=UTC))
        collector.record("q", "a", time=datetime(2026, 11, 21, tzinfo=UTC))
    days = [file.parent.name for file in sorted(tmp_path.glob("sessions/dt=*/*"))]
    assert days.count("dt=2026-11-20") > 1
    assert days.count("dt=2026-11-21") == 1
    assert len(records(tmp_path)) == 7


def test_threads_share_a_collector(tmp_path: Path) -> None:
    with WorkSessionCollector("notes", tmp_path) as collector:

        def work(number: int) -> None:
            for index in range(20):
                collector.record(f"{number} {index}", "a", {"success": True})

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = records(tmp_path)
    assert len({record.id for record in found}) == len(found) == 160


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"metadata": {"success": "yes"}}, "metadata.success: 'yes' is no verdict: write True or False"),
        ({"metadata": {"correction": 3}}, "metadata.correction: 3 is no text"),
        ({"metadata": {"file": object()}}, "cannot be written as JSON"),
        ({"user": 3}, None),
        ({"assistant": "\ud800"}, "cannot be written as JSON|string_unicode|surrogate"),
        ({"time": datetime(2026, 1, 1)}, "time"),
    ],
)
def test_what_cannot_be_recorded_is_named(tmp_path: Path, arguments: dict[str, Any], words: str | None) -> None:
    with WorkSessionCollector("notes", tmp_path) as collector:
        if words is None:
            collector.record(**{"user": "q", "assistant": "a"} | arguments)
        else:
            with pytest.raises(Misused, match=words):
                collector.record(**{"user": "q", "assistant": "a"} | arguments)
            assert records(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "out", "words"),
    [("../up", "x", "name: "), ("ok", "gs://bucket", "out: "), ("ok", "", "out: "), ("ok", "s3:///key", "no bucket")],
)
def test_a_collector_that_cannot_work_says_so(name: str, out: str, words: str) -> None:
    with pytest.raises(Misused, match=words):
        WorkSessionCollector(name, out)


_DIES = """
import os, sys
from ratchet_cli.collect import WorkSessionCollector
collector = WorkSessionCollector("crashed", sys.argv[1])
collector.record("kept", "yes", {"success": True})
with collector._segments.path.open("ab") as half:
    half.write(b'{"kind": "interaction", "id": "ha')
os._exit(9)
"""


def test_a_crash_loses_nothing_that_was_confirmed(tmp_path: Path) -> None:
    assert subprocess.run([sys.executable, "-c", _DIES, str(tmp_path)], check=False).returncode == 9
    living = WorkSessionCollector("living", tmp_path)
    living.record("still", "writing")
    left = list(finished(tmp_path))
    assert len(left) == 1
    assert "crashed" in left[0].key
    assert [json.loads(line)["kind"] for line in left[0].content.splitlines()] == ["interaction", "feedback"]
    living.close()


@pytest.mark.apiserver
def test_a_bucket_gets_what_was_recorded_once_it_is_there(
    tmp_path: Path, s3: S3Access, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = s3.client()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_key)
    options: dict[str, Any] = {
        "out": "s3://by-hand/assistant", "endpoint": s3.endpoint, "spool": tmp_path / "spool", "cycle": "assistant",
        "namespace": "default",
    }  # fmt: skip
    early = WorkSessionCollector("early", **options)
    early.record("before", "there was a bucket", {"success": True})
    with pytest.raises(NotStored, match=r"1 segments could not be sent .* they wait in"):
        early.close()

    def fail() -> None:
        with WorkSessionCollector("early", **options) as collector:
            collector.record("also", "before")
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fail()
    assert "could not be sent" in caplog.text
    client.create_bucket(Bucket="by-hand")
    with WorkSessionCollector("late", **options) as collector:
        collector.record("after", "it was made", {"success": True})
        collector.flush()
    keys = [entry["Key"] for entry in client.list_objects_v2(Bucket="by-hand")["Contents"]]
    assert len(keys) == 3
    assert all(key.startswith("assistant/sessions/dt=") for key in keys)
    bodies = b"".join(client.get_object(Bucket="by-hand", Key=key)["Body"].read() for key in keys)
    found = [RECORD.validate_json(line) for line in bodies.splitlines()]
    assert len(found) == 5
    assert {record.cycle for record in found} == {"assistant"}
    assert list((tmp_path / "spool").rglob("*.jsonl")) == []


# The chat


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with openai_server([]) as found:
        yield found


def run(monkeypatch: pytest.MonkeyPatch, typed: str, *words: str) -> int:
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    return main(list(words))


def test_a_chat_reads_as_agreed_and_is_recorded(
    server: OpenAIServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    server.says = ["Paris is it.", "Lyon.", "A broken <cut>", "Berlin.", "<503>", "Better now."]
    typed = (
        "/help\nWhat is the capital of France?\ny\nAnd of Italy?\nmaybe\nn\nRome.\n/system Be brief.\n"
        "And of Germany?\n/retry\n\n\n/what\n/new\n/retry\nHello?\n/retry\nn\n\n/quit\n"
    )
    assert run(monkeypatch, typed, "chat", "assistant", "--url", server.url, "--out", "work") == 0
    hold("chat", capsys.readouterr().out.replace(server.url, "http://server"))
    assert server.requests[1]["messages"][1:] == [
        {"role": "assistant", "content": "Paris is it. "}, {"role": "user", "content": "And of Italy?"},
    ]  # fmt: skip
    assert server.requests[3]["messages"][0] == {"role": "system", "content": "Be brief."}
    found = records(tmp_path / "work")
    asked = [record for record in found if isinstance(record, Interaction)]
    assert [record.status for record in asked] == [200, 200, 502, 200, 502, 200]
    assert [record.finish_reason for record in asked] == ["stop", "stop", "error", "stop", "error", "stop"]
    assert len({record.session for record in asked}) == 3
    assert asked[4].answer is None
    said = [record for record in found if isinstance(record, Feedback)]
    assert [(record.value, record.correction) for record in said] == [("up", ""), ("down", "Rome."), ("down", "")]
    numbers = curated(tmp_path / "work", tmp_path / "out", capsys)
    assert [row["messages"][-1]["content"] for row in numbers["train"]] == ["Paris is it.", "Rome."]
    assert numbers["interactions"]["dropped"] == {"belowThreshold": 2, "failed": 2}


def test_the_end_of_the_input_ends_a_chat(
    server: OpenAIServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.says = ["Yes."]
    assert run(monkeypatch, "Are you there?", "chat", "a", "--url", f"{server.url}/v1", "--out", str(tmp_path)) == 0
    assert "1 answers: 0 judged" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["chat", "assistant", "--url", "URL"], 2, "no Ratchet gateway, which would record this session: name"),
        (["chat", "assistant", "--url", "URL", "--out", "x", "--version", "v1"], 2, "knows no versions"),
        (["chat", "assistant", "--url", "nowhere"], 2, 'write it as "http://host:port"'),
        (["chat", "assistant", "--url", "http://127.0.0.1:9", "--out", "x"], 5, "cannot be reached"),
        (["chat", "assistant", "--kubeconfig", "missing"], 5, "no cluster is configured"),
        (["tasks", "run", "missing.yaml", "--url", "URL"], 2, "missing.yaml cannot be read"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(
    server: OpenAIServer, words: list[str], code: int, told: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "", *(server.url if word == "URL" else word for word in words)) == code
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_several_models_ask_for_a_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with openai_server(["Yes."], ["small", "large"]) as server:
        assert run(monkeypatch, "", "chat", "assistant", "--url", server.url, "--out", str(tmp_path)) == 2
        assert "has small, large: name one of them" in capsys.readouterr().err
        assert run(
            monkeypatch, "Hi\n", "chat", "a", "--url", server.url, "--out", str(tmp_path), "--model", "large"
        ) == 0  # fmt: skip
        assert server.requests[0]["model"] == "large"


# Tasks

TASKS = """
- {id: capital, prompt: "What is the capital of France?", expect: {all: [paris], none: [Lyon]}}
- id: json
  prompt: Write an empty JSON object
  system: Only JSON.
  command: [python3, -c, "import json, sys; json.load(sys.stdin)"]
- {id: either, prompt: 'Yes or no?', expect: {any: ["yes", "no"]}}
- {id: late, prompt: Anything, command: "sh -c 'cat; exec sleep 600'", timeout: 1s}
- {id: broken, prompt: Anything, expect: {all: [x]}}
"""


def test_tasks_are_done_judged_and_recorded(
    server: OpenAIServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tasks.yaml").write_text(TASKS)
    server.says = ["It is PARIS.", "{}", "Perhaps.", "Anything.", "Half <cut>"]
    assert run(monkeypatch, "", "tasks", "run", "tasks.yaml", "--url", server.url, "--out", "work") == 5
    shown = capsys.readouterr().out
    rows = {line.split()[0]: line for line in shown.splitlines()}
    assert "done" in rows["capital"]
    assert "done" in rows["json"]
    assert "has none of 'yes', 'no'" in rows["either"]
    assert "did not end within 1 s" in rows["late"]
    assert ("no answer" in rows["broken"] and "broke off" in rows["broken"]) or "cannot be reached" in rows["broken"]
    assert "2 of 5 tasks done, 5 recorded in work" in shown
    found = records(tmp_path / "work")
    asked = [record for record in found if isinstance(record, Interaction)]
    assert [record.parameters["metadata"].get("success") for record in asked] == [True, True, False, False, None]
    assert next(record.parameters["metadata"]["task"] for record in asked) == "capital"
    assert [record.value for record in found if isinstance(record, Feedback)] == ["up", "up", "down", "down"]
    numbers = curated(tmp_path / "work", tmp_path / "out", capsys)
    assert [row["messages"][-1]["content"] for row in numbers["train"]] == ["It is PARIS.", "{}"]
    assert [len(row["messages"]) for row in numbers["train"]] == [2, 3]


def test_exit_codes_for_pipelines(
    server: OpenAIServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.says = ["Paris"]
    task = '[{id: a, prompt: "?", expect: {all: [%s]}}]'
    assert run(monkeypatch, task % "Paris", "tasks", "run", "-", "--url", server.url) == 0
    assert "1 of 1 tasks done, recorded nowhere (--out says where)" in capsys.readouterr().out
    assert run(monkeypatch, task % "Rome", "tasks", "run", "-", "--url", server.url, "-o", "json") == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["successful"], document["unanswered"], document["outcomes"][0]["why"]) == (0, 0, "lacks 'Rome'")
    assert run(
        monkeypatch, '[{id: a, prompt: "?", command: no-such-program}]', "tasks", "run", "-", "--url", server.url
    ) == 2  # fmt: skip
    assert "task a: command: no-such-program cannot be started" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[", "is no YAML"),
        ("tasks: []", "tasks: List should have at least 1 item"),
        ("- {id: a, prompt: x}", r"tasks\[0\]: nothing says when it is done"),
        ("- {id: a, prompt: x, expect: {all: []}}", "nothing says when it is done"),
        ("- {id: a, prompt: x, expect: {all: [' ']}}", r"tasks\[0\].expect.all\[0\]"),
        ("- {id: a, prompt: x, expect: {al: [x]}}", r"tasks\[0\].expect.al: Extra inputs"),
        ("- {id: a, prompt: x, expect: {all: [x]}, timeout: 3s}", "`timeout` is the command's"),
        ("- {id: a, prompt: x, command: cat, timeout: soon}", r"tasks\[0\].timeout"),
        ("- {id: 3, prompt: x, command: cat}", r"tasks\[0\].id"),
        ("- {id: a, prompt: x, command: 'a \"b'}", r"tasks\[0\].command"),
        ("- {id: a, prompt: x, command: cat}\n- {id: a, prompt: x, command: cat}", "two tasks have the id a"),
        ("42", "the file|tasks"),
    ],
)
def test_a_task_file_that_makes_no_sense(text: str, words: str) -> None:
    with pytest.raises(Misused, match=words):
        parse(text, "tasks.yaml")


def test_judging() -> None:
    assert by_words("Straße", ["STRASSE"], [], []).success
    assert by_words("a b", ["a", "c"], ["x", "y"], ["b"]).why == "lacks 'c'; has none of 'x', 'y'; has 'b'"
    assert by_command("in", ["sh", "-c", "test $(cat) = in"], 60).success
    assert by_command("", ["sh", "-c", "echo why; exit 3"], 60).why == "exit code 3: why"
    assert by_command("", ["sh", "-c", "kill -9 $$"], 60).why == "signal SIGKILL"
    assert by_command("x" * 10_000_000, ["true"], 60).success  # it reads nothing


def test_a_command_leaves_nothing_running(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    script = f"sleep 600 & echo $! > {note}; wait"
    assert "did not end within 5 s" in by_command("", ["sh", "-c", script], 5).why
    state = Path(f"/proc/{int(note.read_text())}/stat")
    deadline = time.monotonic() + 60
    while state.exists() and state.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline, "the command's child still runs"
        time.sleep(0.01)
