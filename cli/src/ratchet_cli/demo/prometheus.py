"""What Prometheus measured: single numbers for the screen, whole series for the report.

Room: cli. Talks to Prometheus over HTTP.
"""

import json
import math
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ratchet_api import metrics

STEP_SECONDS = 2


@dataclass(frozen=True)
class Series:
    """One series over time; values that are not finite are left out."""

    labels: Mapping[str, str]
    times: tuple[datetime, ...]
    values: tuple[float, ...]


class Prometheus:
    """The two queries of its HTTP API that we need. Raises OSError when it cannot be asked."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    def vector(self, query: str) -> list[tuple[Mapping[str, str], float]]:
        """Present value of every series."""
        return [(item["metric"], float(item["value"][1])) for item in self._ask("query", query=query)]

    def series(self, query: str, begin: datetime, end: datetime) -> list[Series]:
        """Values between two moments, a point each STEP_SECONDS."""
        found = self._ask(
            "query_range", query=query, start=begin.timestamp(), end=end.timestamp(), step=STEP_SECONDS
        )  # fmt: skip
        return [_series(item) for item in found]

    def _ask(self, method: str, **parameters: str | float) -> list[dict[str, Any]]:
        url = f"{self._url}/api/v1/{method}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=15) as answer:
            result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return result


def _series(item: dict[str, Any]) -> Series:
    points = [(float(t), float(v)) for t, v in item["values"]]
    points = [(t, v) for t, v in points if math.isfinite(v)]
    return Series(
        labels=item["metric"],
        times=tuple(datetime.fromtimestamp(t, UTC) for t, _ in points),
        values=tuple(v for _, v in points),
    )


def selector(namespace: str, cycle: str, **labels: str) -> str:
    """`{...}` for the gateway's series of one cycle."""
    pairs = {"cycle_namespace": namespace, "cycle": cycle, **labels}
    return "{" + ",".join(f'{key}="{value}"' for key, value in pairs.items()) + "}"


def feedback_share(namespace: str, cycle: str, window: int) -> str:
    """PromQL: thumbs-up share of each version over the last `window` seconds, where at least five people judged: the
    share of one or two is noise."""
    up = selector(namespace, cycle, value="up")
    every = selector(namespace, cycle)
    return (
        f"sum by (version) (increase({metrics.FEEDBACK}{up}[{window}s]))"
        f" / (sum by (version) (increase({metrics.FEEDBACK}{every}[{window}s])) >= 5)"
    )


def latency_p95(namespace: str, cycle: str, window: int) -> str:
    """PromQL: 95th percentile of each version's answer time over the last `window` seconds."""
    every = selector(namespace, cycle)
    return (
        f"histogram_quantile(0.95, sum by (version, le) (rate({metrics.DURATION}_bucket{every}[{window}s])))"
    )  # fmt: skip


def weight(namespace: str, cycle: str) -> str:
    """PromQL: weight in force of each version."""
    return f"max by (version) ({metrics.WEIGHT}{selector(namespace, cycle)})"


def verdicts(prometheus: Prometheus, namespace: str, cycle: str) -> dict[str, tuple[int, int]]:
    """Version -> (thumbs up, thumbs down) so far, as counted at the gateway."""
    counts: dict[str, dict[str, int]] = {}
    query = f"sum by (version, value) ({metrics.FEEDBACK}{selector(namespace, cycle)})"
    for labels, value in prometheus.vector(query):
        counts.setdefault(labels.get("version", ""), {})[labels.get("value", "")] = round(value)
    return {version: (by.get("up", 0), by.get("down", 0)) for version, by in counts.items() if version}


def uploaded(prometheus: Prometheus, namespace: str, cycle: str) -> int:
    """Interactions that are in object storage, as counted by the gateway."""
    query = f"sum({metrics.INTERACTIONS}{selector(namespace, cycle, state='uploaded')})"
    return sum(round(value) for _, value in prometheus.vector(query))
