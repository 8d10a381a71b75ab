"""Recorded streams: counters as they were scraped, from JSON lines, CSV, or an answer of Prometheus' query_range.

Room: operator/simulate. Reads the file it is given.

A row has `at` (seconds since 1970, or RFC 3339), `arm` (candidate or stable), `metric` (its name in rollout.metrics, or
abTest for an outcome of its own), and what was scraped: cumulative `bad` and `all` of a proportion (of an outcome of
its own, `bad` is the number of good ones), or the `value` of another metric with, if it counts, its cumulative
`samples`. A dump of Prometheus holds the gateway's own series, and is told which versions are meant.
"""

import csv
import json
import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from ratchet_api import metrics as names
from ratchet_api.rollout import Rollout
from ratchet_operator.simulate.store import ArmName, Store
from ratchet_operator.simulate.traffic import SCRAPE

FIELDS = ("bad", "all", "value", "samples")


class BadRecording(Exception):
    """The file cannot be used; the text says where, and what to write instead."""


@dataclass(frozen=True)
class Row:
    """One number that was scraped."""

    at: float
    arm: ArmName
    metric: str
    field: str
    value: float


def read(path: Path, spec: Rollout, candidate: str, stable: str) -> list[Row]:
    """All rows, sorted by time. Raises BadRecording."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadRecording(f"{path} cannot be read: {error}") from None
    if path.suffix == ".csv":
        rows = _rows(enumerate(csv.DictReader(text.splitlines()), 2), path)
    elif (dump := _dump(text)) is not None:
        rows = _scraped(dump, spec, candidate, stable, path)
    else:
        rows = _rows(_lines(text, path), path)
    if not rows:
        raise BadRecording(f"{path} holds no row of an arm: see `ratchet simulate --help` for the format")
    known = {metric.name for metric in spec.metrics} | {"abTest"}
    if strange := sorted({row.metric for row in rows} - known):
        raise BadRecording(f"{path}: {strange[0]} is no metric of the spec: write one of {', '.join(sorted(known))}")
    return sorted(rows, key=lambda row: row.at)


def _dump(text: str) -> Mapping[str, Any] | None:
    try:
        document = json.loads(text)
    except ValueError:
        return None
    return document if isinstance(document, dict) and "data" in document else None


def _lines(text: str, path: Path) -> Iterable[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise BadRecording(f"{path}:{number}: no JSON ({error}): write one object a line") from None
        if not isinstance(row, dict):
            raise BadRecording(f"{path}:{number}: write an object with at, arm, metric and its numbers")
        yield number, row


def _rows(found: Iterable[tuple[int, Mapping[str, Any]]], path: Path) -> list[Row]:
    rows = []
    for number, entry in found:
        where = f"{path}:{number}"
        arm, metric = entry.get("arm"), entry.get("metric")
        if arm not in ("candidate", "stable"):
            raise BadRecording(f"{where}: arm is {arm!r}: write candidate or stable")
        if not isinstance(metric, str) or not metric:
            raise BadRecording(f"{where}: metric is {metric!r}: write its name in rollout.metrics")
        numbers = {key: entry[key] for key in FIELDS if entry.get(key) not in (None, "")}
        if not numbers:
            raise BadRecording(f"{where}: no number: write bad and all, or value")
        at = _time(entry.get("at"), where)
        rows += [Row(at, arm, metric, key, _number(value, f"{where}: {key}")) for key, value in numbers.items()]
    return rows


def _time(value: object, where: str) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        pass
    try:
        return datetime.fromisoformat(str(value)).timestamp()
    except ValueError:
        raise BadRecording(f"{where}: at is {value!r}: write seconds since 1970, or 2026-11-22T12:00:00Z") from None


def _number(value: object, where: str) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise BadRecording(f"{where} is {value!r}: write a number") from None


def _scraped(dump: Mapping[str, Any], spec: Rollout, candidate: str, stable: str, path: Path) -> list[Row]:
    """The gateway's counters of requests and feedback, summed over its pods and values."""
    data = dump["data"]
    if not isinstance(data, dict) or data.get("resultType") != "matrix":
        raise BadRecording(f"{path}: no matrix: dump /api/v1/query_range")
    arms: dict[str, ArmName] = {candidate: "candidate", stable: "stable"}
    presets = {metric.preset: metric.name for metric in spec.metrics}
    sums: dict[tuple[float, ArmName, str, str], float] = defaultdict(float)
    for series in data.get("result") or []:
        labels = series.get("metric") or {}
        arm = arms.get(labels.get("version", ""))
        if arm is None:
            continue
        if labels.get("__name__") == names.REQUESTS:
            metric, bad = presets.get("errors"), str(labels.get("code", "")).startswith("5")
        elif labels.get("__name__") == names.FEEDBACK:
            metric, bad = presets.get("feedback", "abTest"), labels.get("value") == "down"
        else:
            continue
        for at, value in series.get("values") or [] if metric is not None else []:
            sums[float(at), arm, str(metric), "all"] += float(value)
            sums[float(at), arm, str(metric), "bad"] += float(value) if bad else 0.0
    return [Row(*key, value) for key, value in sums.items()]


@dataclass
class Recorded:
    """A recording as it comes in. Its split is the one that was; the weights of the simulation do not change it."""

    rows: list[Row]
    store: Store = field(default_factory=Store)
    _now: float = 0.0
    _next: int = 0

    @property
    def begin(self) -> float:
        """Seconds since 1970 of the first row."""
        return self.rows[0].at

    @property
    def length(self) -> float:
        """Seconds from the first row to the last."""
        return self.rows[-1].at - self.begin

    def flow(self, weight: int) -> None:
        """SCRAPE more seconds."""
        self._now += SCRAPE
        until = bisect_right(self.rows, self.begin + self._now, key=lambda row: row.at)
        for row in self.rows[self._next : until]:
            if not math.isnan(row.value):
                self.store.counter(row.arm, row.metric, row.field).scrape(row.at - self.begin, row.value)
        self._next = until

    def skew(self, now: float) -> float:
        """One clock."""
        return 0.0
