"""Our gateway beside LiteLLM's proxy, in front of one and the same upstream: `python benchmarks/gateway/run.py`.

Both are one process. Ours records every interaction durably; LiteLLM records nothing. Rounds alternate direct, ours and
LiteLLM, so that whatever else the machine does meets all of them. Writes results.json and README.md beside this file.

LiteLLM is installed, from requirements.lock, into a venv of its own in .ratchet/bench-venv.
"""

import argparse
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import uvloop

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from load import latencies, throughput  # noqa: E402
from stub import TOKENS  # noqa: E402

ROOT = HERE.parent.parent
STATE = ROOT / ".ratchet"
ADDRESS = "127.0.0.1"
TARGETS = {"addedLatency": 0.2, "addedLatencyStreaming": 0.2, "requests": 6.0, "streams": 20.0}
"""Ours / LiteLLM: at most for latencies, at least for rates."""


@dataclass(frozen=True)
class Options:
    """How long to measure."""

    rounds: int
    seconds: float
    """Of each throughput measurement."""
    answers: int
    """Of each latency measurement."""
    rate: float
    """Answers a second while latency is measured."""
    at_once: int


@dataclass(frozen=True)
class Measured:
    """One target in one round."""

    latency_ms: float
    """Median of whole answers at the low rate."""
    latency_streaming_ms: float
    """Median of streamed answers, to their end."""
    requests: float
    """Whole answers a second."""
    streams: float
    """Streamed answers a second."""


def free_port() -> int:
    """A port that nobody has now."""
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(command: list[str], port: int, path: str, log: Path, env: dict[str, str] | None = None) -> Iterator[str]:
    """A server process, from when it answers `path` to its end."""
    url = f"http://{ADDRESS}:{port}"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=env, cwd=log.parent)
        try:
            _wait(process, url + path, log)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise SystemExit(f"a server did not start; its log ends with:\n{log.read_text(errors='replace')[-2000:]}")


def bench_venv() -> Path:
    """LiteLLM's own venv, made from the lock file when it is not there or the lock has changed."""
    folder, lock = STATE / "bench-venv", HERE / "requirements.lock"
    stamp = folder / "requirements.lock"
    if not stamp.exists() or stamp.read_bytes() != lock.read_bytes():
        print("installing LiteLLM into its own venv", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        uv = [sys.executable, "-m", "uv"]
        subprocess.run([*uv, "venv", "--quiet", "--python", sys.executable, str(folder)], check=True)
        python = str(folder / "bin" / "python")
        subprocess.run(
            [*uv, "pip", "install", "--quiet", "--require-hashes", "--python", python, "-r", str(lock)], check=True
        )
        shutil.copy(lock, stamp)
    return folder


def litellm_command(venv: Path, folder: Path, stub: str, port: int) -> list[str]:
    """One worker, no database, no callbacks."""
    params = {"model": "openai/stub", "api_base": f"{stub}/v1", "api_key": "sk-none"}
    config = {
        "model_list": [{"model_name": "stub", "litellm_params": params}],
        "litellm_settings": {"telemetry": False, "num_retries": 0},
    }
    path = folder / "litellm.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    return [str(venv / "bin" / "litellm"), "--config", str(path), "--host", ADDRESS, "--port", str(port),
            "--num_workers", "1"]  # fmt: skip


async def measure(url: str, options: Options) -> Measured:
    """All four figures of one target."""
    low = {"rate": options.rate, "count": options.answers}
    high = {"at_once": options.at_once, "seconds": options.seconds}
    return Measured(
        latency_ms=1000 * statistics.median(await latencies(url, "stub", stream=False, **low)),
        latency_streaming_ms=1000 * statistics.median(await latencies(url, "stub", stream=True, **low)),
        requests=await throughput(url, "stub", stream=False, **high),
        streams=await throughput(url, "stub", stream=True, **high),
    )


async def run_rounds(urls: dict[str, str], options: Options) -> list[dict[str, Measured]]:
    """Every target in every round, in an order that turns."""
    for url in urls.values():  # first answers are slow everywhere
        await latencies(url, "stub", stream=False, rate=50, count=20)
        await latencies(url, "stub", stream=True, rate=50, count=20)
    rounds = []
    for number in range(options.rounds):
        names = list(urls) if number % 2 == 0 else list(reversed(urls))
        found = {name: await measure(urls[name], options) for name in names}
        for name in urls:
            row = found[name]
            print(
                f"round {number + 1} {name:8} {row.latency_ms:7.2f} ms {row.latency_streaming_ms:7.2f} ms streaming "
                f"{row.requests:8.0f} requests/s {row.streams:7.0f} streams/s",
                flush=True,
            )
        rounds.append(found)
    return rounds


def spread(values: list[float]) -> dict[str, float]:
    """Minimum, median and maximum."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def summarise(rounds: list[dict[str, Measured]]) -> dict[str, object]:
    """Figures of each target, and the ratios ours / LiteLLM of each round."""

    def added(row: dict[str, Measured], name: str, field: str) -> float:
        return float(getattr(row[name], field) - getattr(row["direct"], field))

    def ratio(field: str) -> list[float]:
        return [getattr(row["ours"], field) / getattr(row["litellm"], field) for row in rounds]

    def added_ratio(field: str) -> list[float]:
        return [added(row, "ours", field) / added(row, "litellm", field) for row in rounds]

    figures = {
        name: {field: spread([getattr(row[name], field) for row in rounds]) for field in Measured.__annotations__}
        for name in rounds[0]
    }
    for name in ("ours", "litellm"):
        figures[name]["added_ms"] = spread([added(row, name, "latency_ms") for row in rounds])
        figures[name]["added_streaming_ms"] = spread([added(row, name, "latency_streaming_ms") for row in rounds])
    ratios = {
        "addedLatency": spread(added_ratio("latency_ms")),
        "addedLatencyStreaming": spread(added_ratio("latency_streaming_ms")),
        "requests": spread(ratio("requests")),
        "streams": spread(ratio("streams")),
    }
    return {"figures": figures, "ratios": ratios}


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def render(results: dict) -> str:  # type: ignore[type-arg]
    """README.md."""
    figures, ratios, machine = results["figures"], results["ratios"], results["machine"]

    def cell(name: str, field: str, digits: int) -> str:
        value = figures[name].get(field)
        return (
            ""
            if value is None
            else f"{value['median']:.{digits}f} ({value['min']:.{digits}f}-{value['max']:.{digits}f})"
        )

    def line(label: str, field: str, digits: int, key: str) -> str:
        r, bound = ratios[key], f"{'<=' if key.startswith('added') else '>='} {TARGETS[key]:g}"
        cells = " | ".join(cell(name, field, digits) for name in ("direct", "ours", "litellm"))
        return f"| {label} | {cells} | {r['median']:.2f} ({r['min']:.2f}-{r['max']:.2f}) | {bound} |"

    options = results["options"]
    rows = [
        line("added p50, whole answer, ms", "added_ms", 1, "addedLatency"),
        line("added p50, streamed answer, ms", "added_streaming_ms", 1, "addedLatencyStreaming"),
        line(f"whole answers/s, {options['at_once']} at once", "requests", 0, "requests"),
        line(f"streamed answers/s, {options['at_once']} at once", "streams", 0, "streams"),
    ]
    return f"""# The gateway beside LiteLLM's proxy

`python benchmarks/gateway/run.py` measures both in front of the same stub upstream ({TOKENS} tokens an answer, each
chunk sent by itself) and writes this page and `results.json`. Both are one process. Our gateway records every
interaction and flushes it to disk before the client gets the end of its answer; LiteLLM
{results["versions"]["litellm"]} records nothing.

| | direct | ours | LiteLLM | ours / LiteLLM | target |
|---|---|---|---|---|---|
{chr(10).join(rows)}

Median (minimum-maximum) of {options["rounds"]} rounds that alternate the targets; latencies at {options["rate"]:g}
answers/s. {machine["cores"]} cores of {machine["processor"]}, Python {machine["python"]}.
The cores are shared by stub, proxy and client, and by whatever else ran meanwhile: the load average was
{machine["load"]:.1f} before the run (niceness of all parts {machine["niceness"]}). It should be near 0 for figures of
the machine itself; the ratios of a round suffer less than its figures.
"""


def main() -> None:
    """Runs everything."""
    root = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    root.add_argument("--rounds", type=int, default=5)
    root.add_argument("--seconds", type=float, default=5.0, help="of each throughput measurement")
    root.add_argument("--answers", type=int, default=40, help="of each latency measurement")
    root.add_argument("--rate", type=float, default=5.0, help="answers a second while latency is measured")
    root.add_argument("--at-once", type=int, default=32)
    options = Options(**vars(root.parse_args()))
    STATE.mkdir(exist_ok=True)
    venv, load_before = bench_venv(), os.getloadavg()[0]
    python = sys.executable
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=STATE, prefix="bench-")))
        ports = {name: free_port() for name in ("direct", "ours", "litellm")}
        stub_command = [python, str(HERE / "stub.py"), ADDRESS, str(ports["direct"])]
        stub = stack.enter_context(running(stub_command, ports["direct"], "/", folder / "stub.log"))
        ours_command = [python, str(HERE / "gateway.py"), stub, str(folder), ADDRESS, str(ports["ours"])]
        ours = stack.enter_context(running(ours_command, ports["ours"], "/readyz", folder / "ours.log"))
        environment = {
            **os.environ,
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_LOG": "ERROR",
            # No keys to check: neither does our gateway check any.
            "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
        }
        command = litellm_command(venv, folder, stub, ports["litellm"])
        litellm = stack.enter_context(
            running(command, ports["litellm"], "/health/liveliness", folder / "litellm.log", environment)
        )
        rounds = uvloop.run(run_rounds({"direct": stub, "ours": ours, "litellm": litellm}, options))
    listed = subprocess.run(
        [str(venv / "bin" / "python"), "-c", "from importlib.metadata import version; print(version('litellm'))"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    results = {
        "machine": {
            "cores": os.cpu_count(), "processor": processor(), "python": platform.python_version(), "load": load_before,
            "niceness": os.nice(0),
        },
        "versions": {"litellm": listed.stdout.strip(), "aiohttp": version("aiohttp"), "uvloop": version("uvloop")},
        "options": asdict(options),
        **summarise(rounds),
        "rounds": [{name: asdict(row) for name, row in found.items()} for found in rounds],
    }  # fmt: skip
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (HERE / "README.md").write_text(render(results))
    print(json.dumps(results["ratios"], indent=1))


if __name__ == "__main__":
    main()
