"""Installs the Helm chart: by a helm binary when one is on PATH, else by the engine in the wheel `helm-python-sdk`.

Room: cli. Run as `python -m ratchet_cli.demo.chart ...` it is a process of its own, because the engine brings Go's
runtime and signal handling along.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from ratchet_cli.demo.errors import DemoError
from ratchet_local import Platform


def install(platform: Platform, chart: Path, release: str, namespace: str, values: Path, timeout: float) -> None:
    """Install the chart as a release and wait until its workloads are ready. Raises DemoError with helm's own words."""
    if (helm := shutil.which("helm")) is not None:
        command = [helm, "install", release, str(chart), "--namespace", namespace, "--values", str(values)]
        command += ["--wait", "--timeout", f"{timeout:.0f}s"]
    else:
        command = [sys.executable, "-m", "ratchet_cli.demo.chart", release, str(chart), "--namespace", namespace]
        command += ["--values", str(values), "--timeout", f"{timeout:.0f}"]
    answer = subprocess.run(command, env=platform.env(), capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        # Helm's engine logs to the same stream; what it logs begins with a date.
        words = [line for line in answer.stderr.splitlines() if line and not line[0].isdigit()]
        raise DemoError(f"the chart could not be installed: {'; '.join(words)}")


def main() -> int:
    """`helm install --wait` by the engine; KUBECONFIG says where."""
    import helm_python

    parser = argparse.ArgumentParser(description="Install a Helm chart and wait until it is ready.")
    parser.add_argument("release")
    parser.add_argument("chart", type=Path)
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--values", type=Path, required=True)
    parser.add_argument("--timeout", type=int, default=180, help="seconds")
    arguments = parser.parse_args()
    values = yaml.safe_load(arguments.values.read_text(encoding="utf-8"))
    try:
        with (
            helm_python.Chart.load(arguments.chart) as chart,
            helm_python.Config(namespace=arguments.namespace) as config,
        ):
            config.install(
                chart, arguments.release, values, namespace=arguments.namespace, wait="watcher",
                timeout=arguments.timeout,
            )  # fmt: skip
    except helm_python.HelmError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
