"""A thousand cycles and five thousand versions, beside kopf with handlers that do nothing: `benchmarks/scale/run.py`.

Fills the local platform's API server with cycles at rest, then starts the two sides in turns, each anew, and measures
what `side.py` reports and what /proc says. Writes results.json and README.md beside this file.
"""

import argparse
import asyncio
import json
import os
import platform as machine
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ground

from ratchet_local import Platform, PlatformConfig
from ratchet_operator.clients.transport import Api

HERE = Path(__file__).resolve().parent
STATE = ground.ROOT / ".ratchet" / "benchmark-scale"
NAMESPACE = "crowd"
WRITES = ("create", "update", "patch", "delete")
SIDES = ("noop", "ratchet")
AFTER = 10.0
"""Seconds that a side runs on after it has observed all: its peak of memory may come later."""


class Side:
    """One process under measurement."""

    def __init__(self, name: str, number: int, expected: int, environment: dict[str, str]) -> None:
        self.name = name
        self._report = STATE / f"{name}-{number}.json"
        self._log = STATE / f"{name}-{number}.log"
        self._report.unlink(missing_ok=True)
        arguments = [sys.executable, str(HERE / "side.py"), name, str(self._report), str(expected)]
        with self._log.open("w") as log:
            more = operator_arguments() if name == "ratchet" else []
            command = [*arguments, str(time.monotonic()), *more]
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def told(self) -> dict[str, Any]:
        """Its last report; empty before the first."""
        return dict(json.loads(self._report.read_text())) if self._report.exists() else {}

    def wait(self, seconds: float) -> None:
        """Until it has looked at all. Raises SystemExit with its log's last lines when it does not."""
        until = time.monotonic() + seconds
        while "passed" not in self.told().get("seconds", {}):
            if self._process.poll() is not None or time.monotonic() > until:
                last = self._log.read_text(errors="replace").splitlines()[-20:]
                raise SystemExit("\n".join([f"{self.name} has not looked at all: {self.told()}", *last]))
            time.sleep(0.1)

    def memory(self) -> dict[str, float]:
        """MiB: the most so far, and now."""
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        values = {key: int(rest.split()[0]) / 1024 for key, _, rest in (line.partition(":") for line in lines)
                  if key in ("VmHWM", "VmRSS")}  # fmt: skip
        return {"peak": round(values["VmHWM"], 1), "now": round(values["VmRSS"], 1)}

    def processor(self) -> float:
        """Seconds of processor time so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self) -> None:
        """SIGTERM, and SIGKILL if that does not do."""
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def operator_arguments() -> list[str]:
    """As the chart's, with leader election; nothing answers as Prometheus, and no cycle at rest asks it."""
    ports = [free_port(), free_port()]
    return [
        "run", "--gateway-namespace", NAMESPACE, "--prometheus-url", "http://127.0.0.1:1",
        "--trainer-image", ground.TRAINER_IMAGE, "--vllm-image", ground.VLLM_IMAGE,
        "--leader-election-namespace", NAMESPACE,
        "--health-address", f"127.0.0.1:{ports[0]}", "--metrics-address", f"127.0.0.1:{ports[1]}",
    ]  # fmt: skip


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def crowd(cycles: int, versions: int) -> Iterator[dict[str, str]]:
    """An API server full of cycles at rest, and the stubs; gives the environment of a client."""
    shutil.rmtree(STATE, ignore_errors=True)
    config = PlatformConfig(state=STATE / "platform", parts=frozenset({"control-plane"}), name="scale")
    with Platform(config, progress=print) as found:
        found.kubectl("apply", "--server-side", "-f", str(ground.ROOT / "crds"))
        found.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
        found.kubectl("create", "namespace", NAMESPACE)
        until(lambda: "default" in found.kubectl("get", "serviceaccount", "-n", NAMESPACE, "-o", "name"))
        for name in ("kube-controller-manager", "kube-scheduler"):
            found.stop(name)
        os.environ["KUBECONFIG"] = str(found.kubeconfig)
        made = asyncio.run(fill(cycles, versions))
        with ground.Stubs(made, NAMESPACE, cycles):
            yield dict(found.env())


def until(what: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for it."""
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            raise SystemExit(f"not within {seconds:.0f} s")
        time.sleep(0.2)


async def fill(cycles: int, versions: int) -> ground.Crowd:
    """Make all objects."""
    began = time.monotonic()
    objects = await ground.template(versions)
    api = await Api.connect()
    try:
        made = ground.Crowd(api, NAMESPACE, objects)
        await made.surroundings()
        await made.make(cycles)
    finally:
        await api.close()
    print(f"{cycles} cycles and {cycles * versions} versions made in {time.monotonic() - began:.0f} s", flush=True)
    return made


def writes(requests: dict[str, int]) -> int:
    """Of a count of requests."""
    return sum(requests.get(verb, 0) for verb in WRITES)


def settle(expected: int, environment: dict[str, str]) -> dict[str, Any]:
    """The operator once, unmeasured: whatever the copies lack is written now."""
    side = Side("ratchet", 0, expected, environment)
    try:
        side.wait(1800)
        before = -1
        while writes(side.told()["requests"]) != before:
            before = writes(side.told()["requests"])
            time.sleep(8)
        return {"requests": side.told()["requests"]}
    finally:
        side.end()


def measure(name: str, number: int, expected: int, environment: dict[str, str], rest: float) -> dict[str, Any]:
    """One start of one side."""
    side = Side(name, number, expected, environment)
    try:
        side.wait(1800)
        time.sleep(AFTER)
        told, cpu = side.told(), side.processor()
        found = {
            "side": name, "seconds": told["seconds"], "requests": told["requests"],
            "memory": side.memory(), "processor": round(cpu, 1),
        }  # fmt: skip
        if rest:
            time.sleep(rest)
            now = side.told()["requests"]
            more = dict(Counter(now) - Counter(told["requests"]))
            found["rest"] = {"seconds": rest, "requests": more, "memory": side.memory(),
                             "processor": round(side.processor() - cpu, 1)}  # fmt: skip
        return found
    finally:
        side.end()


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cycles", type=int, default=1000)
    parser.add_argument("--versions", type=int, default=5, help="of each cycle")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rest", type=float, default=240.0, help="seconds at rest after the last start of each side")
    options = parser.parse_args()
    expected = options.cycles * (1 + options.versions)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the platform and the sides end, too
    load, results = os.getloadavg()[0], []
    with crowd(options.cycles, options.versions) as environment:
        settled = settle(expected, environment)
        print("settled:", settled, flush=True)
        for number in range(1, options.rounds + 1):
            for name in SIDES:
                rest = options.rest if number == options.rounds else 0.0
                results.append(measure(name, number, expected, environment, rest))
                print(json.dumps(results[-1]), flush=True)
    report = {
        "cycles": options.cycles, "versions": options.cycles * options.versions, "rounds": options.rounds,
        "load": round(load, 1), "cores": os.cpu_count(), "machine": machine.machine(), "starts": results,
    }  # fmt: skip
    (HERE / "results.json").write_text(json.dumps(report, indent=1) + "\n")
    (HERE / "README.md").write_text(page(report))


def page(report: dict[str, Any]) -> str:
    """README.md."""
    starts = {name: [one for one in report["starts"] if one["side"] == name] for name in SIDES}

    def row(title: str, of: Callable[[dict[str, Any]], float], digits: int) -> str:
        pair = [[of(one) for one in starts[name]] for name in SIDES]
        cells = [f"{statistics.median(v):.{digits}f} ({min(v):.{digits}f}-{max(v):.{digits}f})" for v in pair]
        ratios = [ours / theirs for theirs, ours in zip(*pair, strict=True)]
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        return f"| {title} | {cells[0]} | {cells[1]} | {ratio} |"

    def said(requests: dict[str, int]) -> str:
        return ", ".join(f"{number} {verb}" for verb, number in sorted(requests.items())) or "none"

    resting = {name: starts[name][-1].get("rest") for name in SIDES}
    lines = [
        "# Many cycles at rest",
        "",
        f"`python benchmarks/scale/run.py` fills the local platform's API server with {report['cycles']} cycles and "
        f"{report['versions']} versions at rest, each cycle with an arm of one pod, and starts in turns kopf with "
        "handlers that do nothing for the two kinds (no-op), and the operator by its own entry point, as "
        "administrator, with leader election. Seconds count from the start of the process. Observed: the handler was "
        "called; the operator has the object in its memory. A pass is what the operator then does and the no-op does "
        "not: it decides anew what each object's status, arms and routes should be, and asks each arm and the gateway, "
        "which are stubs; of the no-op the row repeats the handlers.",
        "",
        "| | no-op kopf | Ratchet | ratio |",
        "|---|---|---|---|",
        row("seconds until all are observed", lambda one: one["seconds"]["observed"], 1),
        row("seconds until the first pass over each has ended", lambda one: one["seconds"]["passed"], 1),
        row("most memory, MiB (VmHWM)", lambda one: one["memory"]["peak"], 0),
        row(f"memory {AFTER:.0f} s later, MiB", lambda one: one["memory"]["now"], 0),
        row("processor seconds", lambda one: one["processor"], 1),
        "",
        f"Median (minimum-maximum) of {report['rounds']} starts of each side; the ratio is of neighbours. "
        f"{report['cores']} cores of {report['machine']}, which API server, etcd, stubs and both sides share; load "
        f"average before the run {report['load']}.",
        "",
        "Requests of a start (`probe`: to arms and gateway):",
        "",
        *(f"- {name}: {said(starts[name][-1]['requests'])}" for name in SIDES),
        "",
    ]
    for name, found in resting.items():
        if found is not None:
            lines += [
                f"In {found['seconds']:.0f} s at rest {name} made {writes(found['requests'])} writes; all requests: "
                f"{said(found['requests'])}; {found['processor']} processor seconds; most memory "
                f"{found['memory']['peak']:.0f} MiB.",
                "",
            ]
    lines += [
        "`lease` are the renewals of the leader election, which are no writes to anybody's objects. How many writes a "
        "transition costs is counted by `tests/operator_room/test_writes.py`; see `docs/scale.md`.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
