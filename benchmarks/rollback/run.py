"""How fast is a bad version off the traffic? `python benchmarks/rollback/run.py`, about half an hour.

Real parts: API server, scheduler, the chart with operator and gateway as pods, Prometheus that scrapes every 2 s. Not
real: the model servers (bin/vllm) and the evaluations. Writes results.json and README.md beside this file.
"""

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

from ground import HERE, POLL, SYSTEM_NAMESPACE, Crowd, Ground, ground

STABLE = "bench-0"
RATE = 20.0
"""Sessions a second, of one request each."""


def rollout(failure_limit: int = 0) -> dict[str, Any]:
    """interval 10 s, window 30 s, steps 25/50/75/100, limit 2 % errors."""
    return {
        "steps": [{"weight": weight, "minTime": "20s"} for weight in (25, 50, 75, 100)],
        "interval": "10s",
        "window": "30s",
        "metrics": [{"name": "errors", "preset": "errors", "margin": "0.02", "minSamples": 20}],
        "failureLimit": failure_limit,
        "unknownLimit": 1,
        "bake": "2m",
        "progressDeadline": "2m",
        "scaleDownDelay": "1s",
    }


class Bench:
    """One trial after the other."""

    def __init__(self, on: Ground, crowd: Crowd, generator: random.Random) -> None:
        self.on, self.crowd, self.random = on, crowd, generator

    def at_weight(self, percent: int, rising: float = 0.0) -> str:
        """A new version whose weight has been in force for a random while."""
        name = self.on.accepted_version()
        weights = self.crowd.weights
        self.on.until(f"{name} at {percent} %", lambda: weights.of(name) == percent, 400, 0.05)
        if rising:
            time.sleep(rising)
        else:
            time.sleep(self.random.uniform(2, 15))
        return name

    def zero(self, name: str, since: float, seconds: float = 120.0) -> tuple[float, int]:
        """(seconds from `since` to weight 0 in force, highest weight in between)."""
        weights = self.crowd.weights
        before = weights.of(name)
        self.on.until(f"{name} at 0 %", lambda: weights.of(name) == 0, seconds, 0.05)
        changes = weights.after(since, name)
        return changes[-1][0], max([before, *(percent for _, percent in changes)])

    def settled(self, name: str) -> str:
        """Waits for the end of the rollout; its outcome and deciding check."""

        def ended() -> str | None:
            status = self.on.rollout(name)
            if status is None or status.phase != "Done" or status.decision is None:
                return None
            return f"{status.decision.outcome} {status.decision.check or status.decision.reason}".strip()

        end = self.on.until(f"{name} ends", ended)
        self.on.until("one arm is left", lambda: not self.on.cycle().status.serving.retired)
        return str(end)

    # Cases

    def errors(self) -> dict[str, Any]:
        """Half of the answers fail, at a random moment in the first step."""
        name = self.at_weight(25)
        since = self.on.fault(name, {"errors": 0.5})
        seconds, highest = self.zero(name, since)
        return {"seconds": seconds, "highest": highest, "end": self.settled(name)}

    def crash(self) -> dict[str, Any]:
        """The server exits, and again whenever it is started."""
        name = self.at_weight(25)
        since = self.on.fault(name, {"exit": 3})
        seconds, highest = self.zero(name, since)
        return {"seconds": seconds, "highest": highest, "end": self.settled(name)}

    def in_the_bake(self) -> dict[str, Any]:
        """Half of the answers fail, half a minute after 100 %."""
        name = self.at_weight(100, rising=30)
        since = self.on.fault(name, {"errors": 0.5})
        seconds, highest = self.zero(name, since)
        return {"seconds": seconds, "highest": highest, "end": self.settled(name)}

    def blind(self) -> dict[str, Any]:
        """Prometheus is killed in a healthy canary, for a minute."""
        name = self.at_weight(25)
        since, before = time.monotonic(), self.crowd.weights.of(name)
        self.on.platform.stop("prometheus")
        self.on.until("Held", lambda: (r := self.on.rollout(name)) is not None and r.held_since is not None)
        held = time.monotonic() - since
        time.sleep(max(0.0, 60 - held))
        moved = [percent for _, percent in self.crowd.weights.after(since, name) if percent != before]
        self.on.platform.start("prometheus")
        back = time.monotonic()
        self.on.until("it goes on", lambda: self.crowd.weights.of(name) > before, 180, 0.05)
        on = time.monotonic() - back
        self.on.annotate(f"ratchet.dev/abort={name}")
        return {"held": held, "moved": len(moved), "on": on, "end": self.settled(name)}

    def no_operator(self) -> dict[str, Any]:
        """The operator is away for 15 s; the regression comes meanwhile."""
        name = self.at_weight(25)
        before = self.crowd.weights.of(name)
        scale = ("scale", "deployment/ratchet-operator", "-n", SYSTEM_NAMESPACE)
        kubectl = self.on.platform.kubectl
        kubectl("delete", "pod", "-n", SYSTEM_NAMESPACE, "-l", "app.kubernetes.io/component=operator",
                "--grace-period=0", "--force", "--wait=false")  # fmt: skip
        kubectl(*scale, "--replicas=0")
        gone = time.monotonic()
        self.on.fault(name, {"errors": 0.5})
        time.sleep(15)
        kubectl(*scale, "--replicas=1")
        self.on.until("the operator is back", self._operator_ready, 120, 0.05)
        ready = time.monotonic()
        seconds, highest = self.zero(name, gone)
        zero = gone + seconds
        return {"seconds": zero - ready, "up": highest > before, "end": self.settled(name)}

    def _operator_ready(self) -> bool:
        found = self.on.platform.kubectl(
            "get", "deployment", "ratchet-operator", "-n", SYSTEM_NAMESPACE, "-o", "jsonpath={.status.readyReplicas}"
        )
        return bool(found.strip() == "1")


def seconds(trials: list[dict[str, Any]], key: str = "seconds") -> str:
    """`median (minimum-maximum)`."""
    values = [trial[key] for trial in trials]
    return f"{statistics.median(values):.1f} ({min(values):.1f}-{max(values):.1f})"


ROWS = (
    ("errors 0 -> 50 %, failureLimit 0: to weight 0", "errors", "seconds", "18.1", "6.3"),
    ("the same, failureLimit 2", "errors, tolerant", "seconds", "36.4", "26.3"),
    ("server exits: to weight 0", "crash", "seconds", "", ""),
    ("operator away, regression meanwhile: from ready again to weight 0", "no operator", "seconds", "20.5", "up first"),
    ("errors 30 s after 100 %: to weight 0", "bake", "seconds", "nothing", "nothing"),
    ("Prometheus killed: until Held", "no Prometheus", "held", "rolled back", "promoted blind"),
    ("Prometheus back: until the next step", "no Prometheus", "on", "", ""),
)
"""Title, case, figure, and what was measured of Flagger and Argo Rollouts elsewhere."""


def render(found: dict[str, Any]) -> str:
    """README.md."""
    cases = found["cases"]
    rows = [
        f"| {title} | {len(cases[case])} | {seconds(cases[case], key)} | {flagger} | {argo} |"
        for title, case, key, flagger, argo in ROWS
    ]
    failing = [trial for case in ("errors", "errors, tolerant", "crash") for trial in cases[case]]
    rose = sum(trial["highest"] > 25 for trial in failing)
    moved = sum(trial["moved"] for trial in cases["no Prometheus"])
    up = sum(trial["up"] for trial in cases["no operator"])
    ends = "; ".join(f"{case}: {', '.join(sorted({t['end'] for t in trials}))}" for case, trials in cases.items())
    return f"""# Seconds until a bad version is off the traffic

`python benchmarks/rollback/run.py` runs the chart (operator and gateway as pods) on the local platform with a
Prometheus that scrapes every 2 s; {found["rate"]:g} sessions a second, interval 10 s, window 30 s, steps 25/50/75/100
of 20 s, limit 2 % errors, at least 20 samples. The model servers are stubs that answer in 30 ms and fail on request;
the gateway's weights are read every {1000 * POLL:.0f} ms.

| case | n | Ratchet, s | Flagger 1.44.0 | Argo Rollouts |
|---|---|---|---|---|
{chr(10).join(rows)}

Median (minimum-maximum). While a check was failing the weight rose in {rose} of {len(failing)} trials; while Prometheus
was away it moved {moved} times; an operator that came back took {up} steps up. How they ended: {ends}.

The medians of Flagger (threshold 1, then 3) and of Argo Rollouts (master of August 2026, failureLimit 0, then 2) were
measured on another machine, a real cluster, with the same settings, and not in this run: a scale, and no race.
{os.cpu_count()} cores, load average before the run {found["load"]:.1f}.
"""


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=10, help="of each timed rollback")
    parser.add_argument("--few", type=int, default=3, help="of each longer case")
    parser.add_argument("--only", default="", help="cases, by comma")
    options = parser.parse_args()
    began, load = time.monotonic(), os.getloadavg()[0]

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:7.1f} {text}", flush=True)

    results: dict[str, list[dict[str, Any]]] = {}
    with ground(say) as on:
        on.apply_cycle(rollout())
        on.until(f"{STABLE} serves", lambda: (s := on.cycle().status.serving.stable) and s.ready_replicas, 180)
        url = on.until("the gateway is ready", lambda: on.cluster.gateway_url(SYSTEM_NAMESPACE))
        with Crowd(url, RATE) as crowd:
            bench = Bench(on, crowd, random.Random(1))
            cases: list[tuple[str, Callable[[], dict[str, Any]], int, dict[str, Any]]] = [
                ("errors", bench.errors, options.trials, rollout()),
                ("errors, tolerant", bench.errors, options.trials, rollout(failure_limit=2)),
                ("crash", bench.crash, options.trials, rollout()),
                ("no operator", bench.no_operator, options.few, rollout()),
                ("bake", bench.in_the_bake, options.few, rollout()),
                ("no Prometheus", bench.blind, options.few, rollout()),
            ]
            for title, trial, count, settings in cases:
                if options.only and title not in options.only.split(","):
                    continue
                on.apply_cycle(settings)
                for number in range(count):
                    results.setdefault(title, []).append(found := trial())
                    say(f"{title} {number + 1}: {json.dumps(found)}")
            say(f"requests: {crowd.sent} sent, by code {crowd.codes}")
    if not options.only:
        found = {"rate": RATE, "load": load, "cases": results}
        (HERE / "results.json").write_text(json.dumps(found, indent=1) + "\n")
        (HERE / "README.md").write_text(render(found))


if __name__ == "__main__":
    main()
